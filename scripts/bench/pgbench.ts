import { execFile } from 'node:child_process'
import { existsSync, mkdtempSync, writeFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { promisify } from 'node:util'
import { findPostgres } from '../../test/support/servers.ts'
import type { PgbenchScript } from './workloads.ts'

/** The statements of a script that go out together when it is pipelined. */
const pipelined = 8

/** The programs of pgbench, at hand while it is not disposed. */
export interface Pgbench extends AsyncDisposable {
  /** Executions of the script per second on one thread, each statement prepared. */
  run(work: PgbenchScript): Promise<number>
  /** The same with eight executions in one pipeline per client. */
  runPipelined(work: PgbenchScript): Promise<number>
}

/** Finds pgbench, which comes with the server; undefined where it does not. */
export function openPgbench(url: string): Pgbench | undefined {
  const folders = [...(process.env['PATH'] ?? '').split(delimiter), findPostgres() ?? '']
  const program = folders
    .map((folder) => join(folder, 'pgbench'))
    .find((file) => file.startsWith('/') && existsSync(file))
  if (program === undefined) return undefined
  const folder = mkdtempSync(join(tmpdir(), 'kanta-bench-'))

  async function execute(script: string, clients: number): Promise<number> {
    const file = join(folder, 'script.sql')
    writeFileSync(file, script)
    const flags = ['--no-vacuum', '--protocol=prepared', '--jobs=1', '--time=1']
    const { stdout } = await promisify(execFile)(program as string, [
      ...flags,
      `--client=${clients}`,
      `--file=${file}`,
      url,
    ])
    const found = /^tps = ([\d.]+)/m.exec(stdout)?.[1]
    if (found === undefined) throw new Error(`pgbench gave no figure:\n${stdout}`)
    return Number(found)
  }

  return {
    run: ({ script, clients }) => execute(script, clients),
    async runPipelined({ script, clients }) {
      return pipelined * (await execute(`\\startpipeline\n${script.repeat(pipelined)}\\endpipeline\n`, clients))
    },
    [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }),
  }
}
