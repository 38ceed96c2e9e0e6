/** The packages of the other contenders: installed when they are missing, next to this file and nowhere else. */

import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type ContenderName, contenders } from './contender.ts'

const here = import.meta.dirname
const root = join(here, '../..')
const stamp = join(here, 'node_modules', '.bench-installed')

/** Installs what package-lock.json says where that has not been done. `report` gets a line before and after. */
export async function installPeers(report: (line: string) => void): Promise<void> {
  const wanted = createHash('sha256')
    .update(readFileSync(join(here, 'package.json')))
    .update(readFileSync(join(here, 'package-lock.json')))
    .digest('hex')
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === wanted) return
  const begun = performance.now()
  report('Installing the peers that kanta is measured against (once, some 20 s) …')
  rmSync(stamp, { force: true })
  // As in scripts/setup.mjs: `npm ci` refuses a lock file that was written for another platform's optional packages.
  const npm = spawn('npm install --no-save --ignore-scripts', {
    cwd: here,
    shell: true,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  npm.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()))
  npm.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()))
  const code = await new Promise<number | null>((resolve) => npm.once('close', resolve))
  if (code !== 0) throw new Error(`npm install in scripts/bench failed (exit code ${code}):\n${output.trim()}`)
  writeFileSync(stamp, wanted)
  report(`Installed in ${((performance.now() - begun) / 1000).toFixed(0)} s.`)
}

/**
 * The versions of all contenders. Throws if the peers have another `pg` or `kysely` than kanta: then part of every
 * ratio would be the difference between two versions.
 */
export function contenderVersions(): Record<ContenderName, string> {
  for (const name of ['pg', 'kysely']) {
    const ours = versionOf(root, name)
    const theirs = versionOf(here, name)
    if (ours !== theirs)
      throw new Error(
        `kanta runs on ${name} ${ours}, its peers on ${theirs}. Run  npm install --save-exact ${name}@${ours}  in scripts/bench.`,
      )
  }
  const own = (JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string }).version
  const entries = Object.entries(contenders).map(([name, entry]) => [
    name,
    entry.package === undefined ? own : versionOf(here, entry.package),
  ])
  return Object.fromEntries(entries) as Record<ContenderName, string>
}

function versionOf(folder: string, name: string): string {
  const file = join(folder, 'node_modules', name, 'package.json')
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version
}
