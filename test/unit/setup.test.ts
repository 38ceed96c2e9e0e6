import { type ChildProcess, spawn } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeEach, afterEach, expect, test, vi } from 'vitest'

/** A clone in which `npm` is a script that puts what the test wants into node_modules. */
let clone = ''

beforeEach(() => {
  clone = join(mkdtempSync(join(tmpdir(), 'kanta-setup-')), 'a clone')
  mkdirSync(join(clone, 'scripts'), { recursive: true })
  mkdirSync(join(clone, 'bin'))
  cpSync(join(import.meta.dirname, '../../scripts/setup.mjs'), join(clone, 'scripts/setup.mjs'))
  writeFileSync(join(clone, 'package.json'), '{"dependencies":{"a":"1"}}')
  writeFileSync(join(clone, 'package-lock.json'), '{}')
  writeFileSync(join(clone, 'hello.mjs'), `console.log('hello', ...process.argv.slice(2))`)
  fakeNpm('mkdir -p node_modules/node/bin && ln -sf "$REAL_NODE" node_modules/node/bin/node')
})

afterEach(() => rmSync(join(clone, '..'), { recursive: true, force: true }))

function fakeNpm(commands: string): void {
  writeFileSync(join(clone, 'bin/npm'), `#!/bin/sh\necho called >> npm.log\n${commands}\n`, { mode: 0o755 })
}

const npmCalls = (): number =>
  existsSync(join(clone, 'npm.log')) ? readFileSync(join(clone, 'npm.log'), 'utf8').split('\n').length - 1 : 0

interface Running {
  readonly process: ChildProcess
  readonly ended: Promise<{ code: number | null; stdout: string; stderr: string }>
}

function start(...args: string[]): Running {
  const child = spawn(process.execPath, ['scripts/setup.mjs', ...args], {
    cwd: clone,
    env: { PATH: `${join(clone, 'bin')}:/usr/bin:/bin`, REAL_NODE: process.execPath },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const output = { stdout: '', stderr: '' }
  child.stdout.on('data', (chunk: Buffer) => (output.stdout += chunk.toString()))
  child.stderr.on('data', (chunk: Buffer) => (output.stderr += chunk.toString()))
  const ended = new Promise<{ code: number | null; stdout: string; stderr: string }>((resolve) => {
    child.once('close', (code) => resolve({ code, ...output }))
  })
  return { process: child, ended }
}

const setup = (...args: string[]): Running['ended'] => start(...args).ended

test('a fresh clone is installed once and then runs the script at once, with its arguments', async () => {
  expect(await setup('hello.mjs', 'a', 'b c')).toMatchObject({ code: 0, stdout: 'hello a b c\n' })
  expect(await setup('hello.mjs', 'again')).toEqual({ code: 0, stdout: 'hello again\n', stderr: '' })
  expect(npmCalls()).toBe(1)
})

test.each(['package.json', 'package-lock.json'])('a changed %s is installed', async (file) => {
  await setup('hello.mjs')
  writeFileSync(join(clone, file), '{"dependencies":{"a":"2"}}')
  expect(await setup('hello.mjs')).toMatchObject({ code: 0 })
  expect(npmCalls()).toBe(2)
})

test('what `npm install` has put there is not installed again', async () => {
  mkdirSync(join(clone, 'node_modules'))
  expect(await setup('--installed')).toMatchObject({ code: 0 })
  expect(await setup('hello.mjs')).toMatchObject({ code: 0, stdout: 'hello\n' })
  expect(npmCalls()).toBe(0)
})

test('an interrupted install is noticed and done again', async () => {
  fakeNpm('mkdir -p node_modules/half && kill -9 $PPID')
  await setup('hello.mjs')
  fakeNpm('mkdir -p node_modules')
  expect(await setup('hello.mjs')).toMatchObject({ code: 0, stdout: 'hello\n' })
  expect(npmCalls()).toBe(2)
})

test('two scripts started at once install once', async () => {
  fakeNpm('mkdir -p node_modules; while [ ! -e proceed ]; do sleep 0.01; done')
  const first = start('hello.mjs', '1')
  await vi.waitUntil(() => npmCalls() === 1)
  const second = start('hello.mjs', '2')
  let waits = ''
  second.process.stderr?.on('data', (chunk: Buffer) => (waits += chunk.toString()))
  await vi.waitUntil(() => waits.includes('Waiting for another install'), 5_000)
  writeFileSync(join(clone, 'proceed'), '')
  expect(await first.ended).toMatchObject({ code: 0, stdout: 'hello 1\n' })
  expect(await second.ended).toMatchObject({ code: 0, stdout: 'hello 2\n' })
  expect(npmCalls()).toBe(1)
})

test('a failed install shows what npm said and runs nothing', async () => {
  fakeNpm('echo no such version >&2; exit 7')
  const { code, stdout, stderr } = await setup('hello.mjs')
  expect({ code, stdout }).toEqual({ code: 2, stdout: '' })
  expect(stderr).toContain('no such version')
  expect(stderr).toContain('npm ci failed (exit code 7)')
})

test('the exit code of the script is passed on, and a signal reaches it', async () => {
  writeFileSync(join(clone, 'exit.mjs'), 'process.exitCode = 3')
  expect(await setup('exit.mjs')).toMatchObject({ code: 3 })

  writeFileSync(
    join(clone, 'wait.mjs'),
    `process.on('SIGTERM', () => process.exit(5)); setInterval(() => {}, 1000); console.log('up')`,
  )
  const running = start('wait.mjs')
  await new Promise((resolve) => running.process.stdout?.once('data', resolve))
  running.process.kill('SIGTERM')
  expect(await running.ended).toMatchObject({ code: 5 })
})
