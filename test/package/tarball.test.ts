/** What users get: the packed tarball, installed into an empty project with nothing of this repository around it. */

import { type ExecFileOptions, execFile } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, test } from 'vitest'

const root = join(import.meta.dirname, '../..')
const folder = mkdtempSync(join(tmpdir(), 'kanta-package-'))
const project = join(folder, 'project with spaces')
let tarball = ''
let packed: string[] = []

interface Manifest {
  readonly exports: Readonly<Record<string, { readonly types: string; readonly default: string }>>
  readonly devDependencies: Readonly<Record<string, string>>
}

const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as Manifest

beforeAll(async () => {
  await node(root, ['scripts/build.ts'])
  const [pack] = JSON.parse(
    await run('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', folder], { cwd: root }),
  ) as [{ filename: string; files: { path: string }[] }]
  tarball = join(folder, pack.filename)
  packed = pack.files.map((file) => file.path)

  cpSync(join(import.meta.dirname, 'project'), project, { recursive: true })
  const versionOf = (name: string): string => `${name}@${manifest.devDependencies[name] ?? ''}`
  const peers = ['@electric-sql/pglite', '@types/node', 'typescript'].map(versionOf)
  const quiet = ['--no-audit', '--no-fund', '--prefer-offline', '--loglevel=error']
  await run('npm', ['install', ...quiet, tarball, ...peers], { cwd: project })
})

afterAll(() => rmSync(folder, { recursive: true, force: true, maxRetries: 5 }))

test('it holds the build, the migrations of the domain, and nothing of the sources, tests and scripts', () => {
  const expected = /^(dist\/.+\.(js|d\.ts)|migrations\/\d{4}_\w+\.sql|package\.json|README\.md|CHANGELOG\.md|LICENSE)$/
  expect(packed.filter((path) => !expected.test(path))).toEqual([])
  expect(packed).toContain('migrations/0001_identifiers.sql')
  for (const { types, default: file } of Object.values(manifest.exports)) {
    expect(packed).toContain(types.slice('./'.length))
    expect(packed).toContain(file.slice('./'.length))
  }
})

test('publint finds nothing', async () => {
  await node(root, ['node_modules/publint/src/cli.js', 'run', tarball, '--strict'])
})

test('its types resolve for every kind of import', async () => {
  await node(root, ['node_modules/@arethetypeswrong/cli/dist/index.js', tarball, '--profile', 'esm-only', '--no-emoji'])
})

test('its named entry points can be imported, and nothing else can', async () => {
  const entries = Object.keys(manifest.exports).map((path) => path.replace(/^\./, 'kanta'))
  const inner = [
    'kanta/dist/index.js',
    'kanta/index.js',
    'kanta/core/errors',
    'kanta/dist/core/errors.js',
    'kanta/package.json',
  ]
  const script = `
    const outcome = (name) => import(name).then(() => 'imported', (error) => error.code)
    const names = ${JSON.stringify([...entries, ...inner])}
    console.log(JSON.stringify(await Promise.all(names.map(outcome))))`
  expect(JSON.parse(await node(project, ['--input-type=module', '--eval', script]))).toEqual([
    ...entries.map(() => 'imported'),
    ...inner.map(() => 'ERR_PACKAGE_PATH_NOT_EXPORTED'),
  ])
})

test('importing it does not load the embedded PostgreSQL or the TypeScript compiler', async () => {
  rmSync(join(folder, 'bare'), { recursive: true, force: true })
  mkdirSync(join(folder, 'bare'))
  // The same packages without the optional peers.
  cpSync(join(project, 'node_modules'), join(folder, 'bare/node_modules'), { recursive: true, verbatimSymlinks: true })
  for (const peer of ['@electric-sql', 'typescript'])
    rmSync(join(folder, 'bare/node_modules', peer), { recursive: true })
  await node(join(folder, 'bare'), [
    '--input-type=module',
    '--eval',
    `await import('kanta'); await import('kanta/migrate'); await import('kanta/testing')`,
  ])
})

test('the first five minutes: a migration, its types, a program that compiles and runs', async () => {
  expect(await kanta('--help')).toContain('kanta migrate')
  await kanta('migrate', 'up')
  expect(await kanta('migrate', 'status')).toContain('1 applied, 0 pending')
  await kanta('codegen')
  expect(await kanta('codegen', '--check')).toContain('up to date')
  await node(project, ['node_modules/typescript/bin/tsc', '-p', '.'])
  expect(await node(project, ['src/main.ts'])).toBe('1 note: Buy milk\nUNIQUE_VIOLATION notes_title_key\n')
})

test('a changed column makes the program fail to compile', async () => {
  writeFileSync(
    join(project, 'migrations/0002_rename.sql'),
    '-- Up Migration\nALTER TABLE notes RENAME COLUMN title TO heading;\n-- Down Migration\nALTER TABLE notes RENAME COLUMN heading TO title;\n',
  )
  await expect(kanta('codegen', '--check')).rejects.toThrow('heading')
  await kanta('codegen')
  await expect(node(project, ['node_modules/typescript/bin/tsc', '-p', '.'])).rejects.toThrow(/src\/main\.ts.+title/)
})

function kanta(...args: string[]): Promise<string> {
  return run('npx', ['--no-install', 'kanta', ...args], { cwd: project })
}

/** Runs a file on the Node that runs this. */
function node(cwd: string, args: string[]): Promise<string> {
  return run(process.execPath, args, { cwd })
}

/** What a command writes to its standard output; if it fails, an error with all that it wrote. */
async function run(program: string, args: string[], options: ExecFileOptions): Promise<string> {
  // A program of a user knows nothing of this run, of CI, or of a database that this machine may have.
  const inherited = ['HOME', 'PATH', 'TMPDIR', 'NODE_EXTRA_CA_CERTS', 'HTTPS_PROXY', 'HTTP_PROXY', 'NO_PROXY']
  const env = Object.fromEntries(inherited.map((name) => [name, process.env[name]]))
  try {
    const { stdout } = await promisify(execFile)(program, args, { ...options, env, encoding: 'utf8' })
    return stdout
  } catch (error) {
    const { stdout, stderr } = error as { stdout: string; stderr: string }
    throw new Error(`${program} ${args.join(' ')} failed:\n${stdout}${stderr}`, { cause: error })
  }
}
