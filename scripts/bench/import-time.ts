import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { promisify } from 'node:util'
import { median } from './statistics.ts'

const root = join(import.meta.dirname, '../..')
const runs = 15

/** Milliseconds from the first import to the last, in a fresh process, median of 15. */
export interface ImportTimes {
  readonly kantaMs: number
  /** kysely, pg and ioredis, which an application would import by itself. */
  readonly partsMs: number
  /** Median of the ratios of one run of each after the other. */
  readonly ratio: number
}

/** Builds the package as it is published, then imports it and its main parts in turn. Throws if it does not build. */
export async function measureImports(): Promise<ImportTimes> {
  const build = join(root, '.cache/bench-build')
  const compiler = join(root, 'node_modules/typescript/bin/tsc')
  try {
    await promisify(execFile)(process.execPath, [compiler, '-p', 'tsconfig.build.json', '--outDir', build], {
      cwd: root,
    })
  } catch (error) {
    throw new Error(`kanta does not build:\n${(error as { stdout?: string }).stdout ?? String(error)}`, {
      cause: error,
    })
  }
  const kanta = [pathToFileURL(join(build, 'index.js')).href]
  const parts = ['kysely', 'pg', 'ioredis']
  const kantaMs: number[] = []
  const partsMs: number[] = []
  for (let run = 0; run < runs; run++) {
    kantaMs.push(await timeImports(kanta))
    partsMs.push(await timeImports(parts))
  }
  const ratios = kantaMs.map((ms, run) => ms / (partsMs[run] ?? Number.NaN))
  return { kantaMs: median(kantaMs), partsMs: median(partsMs), ratio: median(ratios) }
}

async function timeImports(modules: readonly string[]): Promise<number> {
  const code = `
    const begun = performance.now()
    for (const name of ${JSON.stringify(modules)}) await import(name)
    process.stdout.write(String(performance.now() - begun))
    process.exit()`
  const { NODE_COMPILE_CACHE: _cache, NODE_OPTIONS: _options, ...env } = process.env
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '--eval', code], {
    cwd: root,
    env,
  })
  return Number(stdout)
}
