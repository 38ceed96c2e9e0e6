/**
 * Makes a fresh clone ready and runs a script on the right Node: `node scripts/setup.mjs <file> [arguments…]`.
 *
 * The machine may have an older Node (18 or newer), so this file is plain JavaScript without dependencies. It installs
 * the packages of package-lock.json where they are missing or outdated, and takes the Node that comes with them.
 * `node scripts/setup.mjs --installed` is npm's `dependencies` step: it records what a plain `npm install` has put there.
 */

import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, linkSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { constants } from 'node:os'
import { delimiter, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const bin = join(root, 'node_modules', '.bin')
const packagedNode = join(root, 'node_modules', 'node', 'bin', 'node')
const stamp = join(root, 'node_modules', '.kanta-installed')
const lock = join(root, '.cache', 'install.lock')

const [target, ...args] = process.argv.slice(2)
if (target === '--installed') {
  writeFileSync(stamp, wantedInstall())
} else if (target === undefined) {
  fail('Usage: node scripts/setup.mjs <file> [arguments…]')
} else {
  if (!isInstalled()) await withInstallLock(() => isInstalled() || install())
  run(rightNode(), [join(root, target), ...args])
}

/** What node_modules must have been installed from; a module built for one platform is no use on another. */
function wantedInstall() {
  const { dependencies, devDependencies, peerDependencies } = JSON.parse(
    readFileSync(join(root, 'package.json'), 'utf8'),
  )
  const hash = createHash('sha256')
    .update(JSON.stringify({ dependencies, devDependencies, peerDependencies }))
    .update(readFileSync(join(root, 'package-lock.json')))
  return `${hash.digest('hex')} ${process.platform}-${process.arch}\n`
}

function isInstalled() {
  return existsSync(stamp) && readFileSync(stamp, 'utf8') === wantedInstall()
}

/** @returns {Promise<void>} */
async function install() {
  const started = Date.now()
  const seconds = () => Math.round((Date.now() - started) / 1000)
  const inTerminal = process.stderr.isTTY === true
  const message = 'Installing the packages of package-lock.json (once, a minute or so)'
  process.stderr.write(inTerminal ? `${message} …` : `${message} …\n`)
  const ticker = inTerminal && setInterval(() => process.stderr.write(`\r${message} … ${seconds()} s`), 1000)

  // npm must not run on the Node inside the node_modules that it is about to change.
  const path = (process.env.PATH ?? '').split(delimiter).filter((folder) => folder !== bin)
  // It empties node_modules first, the stamp too, so that an interrupted install has none and is done again.
  const npm = spawn('npm ci --include=dev', {
    cwd: root,
    env: { ...process.env, PATH: path.join(delimiter) },
    shell: true,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  npm.stdout.on('data', (chunk) => (output += chunk))
  npm.stderr.on('data', (chunk) => (output += chunk))
  const code = await new Promise((resolve) => npm.once('close', resolve))
  if (ticker) clearInterval(ticker)
  if (inTerminal) process.stderr.write('\n')
  if (code !== 0)
    fail(
      `${output.trim()}\n\nnpm ci failed (exit code ${code}); its output is above. Mend that and run the command again.`,
    )
  writeFileSync(stamp, wantedInstall())
  process.stderr.write(`Installed in ${seconds()} s.\n`)
}

/** Two scripts started at once in a fresh clone must not install over one another. */
async function withInstallLock(work) {
  mkdirSync(dirname(lock), { recursive: true })
  const claim = `${lock}.${process.pid}`
  writeFileSync(claim, String(process.pid))
  let held = false
  process.on('exit', () => {
    rmSync(claim, { force: true })
    if (held) rmSync(lock, { force: true })
  })
  for (let announced = false; !held;) {
    try {
      // A link appears with its content at once, so nobody reads a lock without an owner.
      linkSync(claim, lock)
      held = true
    } catch (error) {
      if (error.code !== 'EEXIST') throw error
      const owner = lockOwner()
      if (owner !== undefined && !isAlive(owner)) {
        rmSync(lock, { force: true })
        continue
      }
      if (!announced) process.stderr.write(`Waiting for another install in this folder (process ${owner}) …\n`)
      announced = true
      await new Promise((resolve) => setTimeout(resolve, 200))
    }
  }
  await work()
  rmSync(lock, { force: true })
  held = false
}

function lockOwner() {
  try {
    return Number(readFileSync(lock, 'utf8'))
  } catch {
    return undefined
  }
}

function isAlive(pid) {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return error.code === 'EPERM'
  }
}

/** The Node of node_modules, or the running one where that is new enough to run TypeScript by itself. */
function rightNode() {
  if (existsSync(packagedNode) && spawnSync(packagedNode, ['--version']).status === 0) return packagedNode
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  if (major > 22 || (major === 22 && minor >= 18)) return process.execPath
  return fail(
    [
      `kanta needs Node 22.18 or newer and this is ${process.versions.node}.`,
      'The right one comes with the packages, but its install script did not run; npm was probably told to block scripts.',
      'Either run  npm rebuild node --ignore-scripts=false  in this folder, or install Node 24 (https://nodejs.org).',
    ].join('\n'),
  )
}

function run(node, nodeArgs) {
  const path = [bin, ...(process.env.PATH ?? '').split(delimiter).filter((folder) => folder !== bin)]
  const child = spawn(node, nodeArgs, { stdio: 'inherit', env: { ...process.env, PATH: path.join(delimiter) } })
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.on(signal, () => {
      // A terminal sends Ctrl-C to the child as well, and two of them mean "now" to many programs.
      if (signal !== 'SIGINT' || process.stdin.isTTY !== true) child.kill(signal)
    })
  }
  if (process.env.npm_lifecycle_event !== undefined) {
    // npm runs scripts through a shell, and that dies of a SIGTERM without passing it on.
    const shell = process.ppid
    setInterval(() => process.ppid === shell || child.kill('SIGTERM'), 500).unref()
  }
  child.once('error', (error) => fail(`Cannot run ${node}: ${error.message}`))
  child.once('close', (code, signal) => {
    process.exitCode = code ?? 128 + constants.signals[signal]
  })
}

/** @returns {never} */
function fail(message) {
  process.stderr.write(`${message}\n`)
  process.exit(2)
}
