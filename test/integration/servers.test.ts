import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { expect, onTestFinished, test, vi } from 'vitest'
import { startPostgres, startRedis, type OwnServer } from '../support/servers.ts'

const isAlive = (pid: number): boolean => {
  try {
    return process.kill(pid, 0)
  } catch {
    return false
  }
}

test.each([
  ['PostgreSQL', startPostgres],
  ['Redis', startRedis],
])('%s comes back on its port after a crash, and stop leaves nothing', async (_name, start) => {
  const server: OwnServer = await start()
  onTestFinished(() => server.stop())
  const { pid, url } = server
  await server.kill('SIGKILL')
  expect(isAlive(pid)).toBe(false)
  await server.restart()
  expect(server.pid).not.toBe(pid)
  expect(server.url).toBe(url)
  await server.stop()
  expect(isAlive(server.pid)).toBe(false)
  expect(existsSync(server.dataDir)).toBe(false)
})

test('a run that is killed leaves no server and no folder behind, not even a frozen one', async () => {
  const servers = join(import.meta.dirname, '../support/servers.ts')
  const run = spawn(process.execPath, [
    '--input-type=module',
    '--eval',
    `import { startPostgres } from ${JSON.stringify(servers)}
     const { pid, dataDir } = await startPostgres()
     process.kill(pid, 'SIGSTOP')
     console.log(JSON.stringify({ pid, dataDir }))
     setInterval(() => {}, 1000)`,
  ])
  const [line] = (await once(createInterface({ input: run.stdout }), 'line')) as [string]
  const { pid, dataDir } = JSON.parse(line) as { pid: number; dataDir: string }
  expect(isAlive(pid)).toBe(true)
  run.kill('SIGKILL')
  await vi.waitUntil(() => !isAlive(pid) && !existsSync(dataDir), 10_000)
})
