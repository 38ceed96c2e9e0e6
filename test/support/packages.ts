/** Installs what a run needs, on a Debian machine where we may. */

import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'

/** Whether {@link installPackages} can do anything here. */
export function canInstall(): boolean {
  return process.getuid?.() === 0 && existsSync('/usr/bin/apt-get')
}

/** For the one process that sets a run up, before its tests: of two at once, one fails at apt's lock. */
export function installPackages(packages: readonly string[]): void {
  console.log(`Installing ${packages.join(' and ')} with apt-get, for the tests …`)
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
  execFileSync('apt-get', ['update', '-q'], { env, stdio: 'pipe' })
  execFileSync('apt-get', ['install', '-qy', '--no-install-recommends', ...packages], { env, stdio: 'pipe' })
}
