import { sql } from 'kysely'
import { expect, onTestFinished, test, vi } from 'vitest'
import { createDatabase } from '../../src/index.ts'
import { freshDatabaseUrl, redisUrl } from '../support/database.ts'
import { startProxy } from '../../src/testing/fault-proxy.ts'
import { startPostgres, startRedis } from '../support/servers.ts'

test('health tells version, round trip and pool of each server', async () => {
  const url = await freshDatabaseUrl('empty')
  await using database = await createDatabase<never>({ postgres: { url }, redis: { url: redisUrl() } })
  const health = await database.health()
  expect(health).toMatchObject({
    status: 'up',
    postgres: { status: 'up', embedded: false, readOnly: false, pool: { total: 1 } },
    redis: { status: 'up' },
  })
  expect(health.postgres.version).toMatch(/^\d+/)
  expect(health.redis?.version).toMatch(/^\d+/)
  expect(health.postgres.latencyMs).toBeGreaterThan(0)
})

test('health shows no credentials', async () => {
  const url = Object.assign(new URL(await freshDatabaseUrl('empty')), { password: 'hunter2' }).href
  const redis = { url: 'redis://:hunter2@127.0.0.1:1/0' }
  await using database = await createDatabase<never>({ postgres: { url }, redis })
  expect(JSON.stringify(await database.health())).not.toContain('hunter2')
})

test('without Redis queries go on and health is degraded, until Redis is back', async () => {
  const redis = await startRedis()
  try {
    const url = await freshDatabaseUrl('empty')
    await using database = await createDatabase<never>({ postgres: { url }, redis: { url: redis.url } })
    await vi.waitUntil(async () => (await database.health()).status === 'up')
    await redis.kill('SIGKILL')
    expect(await database.health()).toMatchObject({
      status: 'degraded',
      redis: { status: 'down', error: { code: 'REDIS_UNAVAILABLE' } },
    })
    expect((await sql<{ one: number }>`select 1 as one`.execute(database.db)).rows).toEqual([{ one: 1 }])
    await redis.restart()
    await vi.waitUntil(async () => (await database.health()).status === 'up', { timeout: 10_000 })
  } finally {
    await redis.stop()
  }
})

test('a frozen Redis delays health by no more than its time limits, and close not at all', async () => {
  const redis = await startRedis()
  try {
    const url = await freshDatabaseUrl('empty')
    const database = await createDatabase<never>({
      postgres: { url },
      redis: { url: redis.url, commandTimeoutMs: 100 },
    })
    await vi.waitUntil(async () => (await database.health()).status === 'up')
    await redis.kill('SIGSTOP')
    const start = performance.now()
    expect((await database.health()).redis).toMatchObject({ status: 'down' })
    await database.close()
    expect(performance.now() - start).toBeLessThan(1_500)
  } finally {
    await redis.stop()
  }
})

test('a frozen PostgreSQL is down within two seconds', async () => {
  const server = await startPostgres()
  try {
    const settings = {
      url: server.url,
      connectTimeoutMs: 60_000,
      pool: { idleTimeoutMs: 10, acquireTimeoutMs: 60_000 },
    }
    const database = await createDatabase<never>({ postgres: settings, redis: false })
    await vi.waitUntil(() => database.stats().pool.total === 0)
    await server.kill('SIGSTOP')
    const start = performance.now()
    const health = await database.health()
    expect(performance.now() - start).toBeLessThan(2_500)
    expect(health).toMatchObject({ status: 'down', postgres: { status: 'down', error: { code: 'QUERY_TIMEOUT' } } })
    await server.kill('SIGCONT')
    await database.close()
  } finally {
    await server.stop()
  }
})

test.each(['reset', 'close'] as const)(
  'a connection that breaks under the health check (%s) is an answer, not a rejection, and is replaced',
  async (fault) => {
    const proxy = await startProxy({ to: await freshDatabaseUrl('empty') })
    onTestFinished(() => proxy.close())
    await using database = await createDatabase<never>({
      postgres: { url: proxy.url, pipeline: false, pool: { max: 1 } },
      redis: false,
    })
    proxy.on({ from: 'server', message: 'DataRow' }, fault)
    expect(await database.health()).toMatchObject({ status: 'down', postgres: { error: { code: 'CONNECTION_LOST' } } })
    expect(await database.health()).toMatchObject({ status: 'up' })
  },
)
