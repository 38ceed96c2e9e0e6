import { fork } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { sql } from 'kysely'
import { expect, onTestFinished, test, vi } from 'vitest'
import { createDatabase } from '../../src/index.ts'
import { freshDatabaseUrl } from '../support/database.ts'
import { type OwnServer, startRedis } from '../support/servers.ts'
import type { InstanceOptions, InstanceReport } from './cache-instance.ts'
import type { VictimOptions } from './cache-victim.ts'
import { isFull, record, times } from './record.ts'
import { witness } from './witness.ts'

const keys = 20

/** Runs instances for a while, as something happens to them, and gives what each of them has seen. */
async function runInstances(
  kind: InstanceOptions['kind'],
  redis: OwnServer,
  durationMs: number,
  strike: (admin: Redis) => Promise<void> = () => delay(50),
): Promise<readonly InstanceReport[]> {
  const postgresUrl = await freshDatabaseUrl('empty')
  await using admin = await witness(postgresUrl)
  await admin.rows('create table items (id int primary key, version int not null)')
  await admin.rows(`insert into items select n, 1 from generate_series(1, ${keys}) n`)
  const namespace = `soak-${randomBytes(4).toString('hex')}`
  const options: InstanceOptions = {
    postgresUrl,
    redisUrl: redis.url,
    namespace,
    kind,
    keys,
    readers: 12,
    writesPerSecond: 50,
  }
  const instances = Array.from({ length: 3 }, () =>
    fork(join(import.meta.dirname, 'cache-instance.ts'), [JSON.stringify(options)]),
  )
  onTestFinished(() => void instances.map((instance) => instance.kill('SIGKILL')))
  const next = (instance: (typeof instances)[number]) =>
    new Promise<unknown>((resolve, reject) => {
      instance.once('message', resolve)
      instance.once('exit', (code) => reject(new Error(`an instance ended with ${String(code)}`)))
    })
  await Promise.all(instances.map(next))
  const hand = new Redis(redis.url, { maxRetriesPerRequest: 0 })
  hand.on('error', () => undefined)
  const over = new AbortController()
  const striking = (async () => {
    while (!over.signal.aborted) await strike(hand)
  })()
  await delay(durationMs)
  over.abort()
  await striking
  hand.disconnect()
  const reports = instances.map(next)
  for (const instance of instances) instance.send('stop')
  return (await Promise.all(reports)) as InstanceReport[]
}

/** Reads that gave what had been replaced for longer than the bound when they began, and the longest of these times. */
function staleReads(
  reports: readonly InstanceReport[],
  boundMs: number,
): { readonly stale: number; readonly worstMs: number } {
  const replacedAt = new Map<string, number>()
  for (const { writes } of reports) {
    // A version is no longer the latest once its successor is there.
    for (const [key, version, doneAt] of writes) replacedAt.set(`${key} ${version - 1}`, doneAt)
  }
  let stale = 0
  let worstMs = 0
  for (const { reads } of reports) {
    for (const [key, version, beganAt] of reads) {
      const replaced = replacedAt.get(`${key} ${version}`)
      if (replaced === undefined || replaced >= beganAt) continue
      const ageMs = (beganAt - replaced) / 1_000
      worstMs = Math.max(worstMs, ageMs)
      if (ageMs > boundMs) stale += 1
    }
  }
  return { stale, worstMs }
}

function countsOf(reports: readonly InstanceReport[]): string {
  const sum = (of: (report: InstanceReport) => number): number => reports.reduce((all, report) => all + of(report), 0)
  const reads = sum(({ reads: each }) => each.length)
  const hits = sum(({ stats }) => stats.memoryHits + stats.redisHits)
  return `${reads} reads, ${((hits / reads) * 100).toFixed(0)} % hits, ${sum(({ writes }) => writes.length)} writes, ${sum(({ stats }) => stats.gaps)} gaps`
}

/** What happens again and again, and how old a value may be then. */
interface Fault {
  readonly boundMs: number
  strike(admin: Redis): Promise<void>
}

async function cutMessages(admin: Redis): Promise<void> {
  await delay(400)
  await admin.call('client', 'kill', 'type', 'pubsub').catch(() => undefined)
}

async function loseEverything(admin: Redis): Promise<void> {
  await delay(300)
  await admin.flushall().catch(() => undefined)
}

const both: Fault = {
  boundMs: 250,
  async strike(admin) {
    await cutMessages(admin)
    await loseEverything(admin)
  },
}

// The whole run looks at each by itself.
const faults: Readonly<Record<string, Fault>> = isFull
  ? {
      'while nothing happens': { boundMs: 100, strike: () => delay(50) },
      'while its messages are cut off every 400 ms': { boundMs: 250, strike: cutMessages },
      'while Redis loses everything': { boundMs: 250, strike: loseEverything },
      'while both happen': both,
    }
  : { 'while its messages are cut off and Redis loses everything': both }

const durationMs = times(20_000, 2_000)
const timeout = isFull ? 120_000 : 40_000

for (const [name, fault] of Object.entries(faults)) {
  const { boundMs } = fault
  test(
    `row 24: no read of three instances is stale ${name}`,
    async () => {
      const redis = await startRedis()
      onTestFinished(() => redis.stop())
      const reports = await runInstances('kanta', redis, durationMs, (admin) => fault.strike(admin))
      const { stale, worstMs } = staleReads(reports, boundMs)
      record(
        24,
        reports.length,
        `${name}: ${countsOf(reports)}; ${stale} stale beyond ${boundMs} ms, the oldest by ${worstMs.toFixed(1)} ms`,
      )
      expect(reports.flatMap(({ failures }) => failures)).toEqual([])
      expect(stale).toBe(0)
    },
    timeout,
  )
}

test(
  'row 24: no read is stale beyond the bound of an outage while Redis is restarted, and none waits for it',
  async () => {
    const redis = await startRedis()
    onTestFinished(() => redis.stop())
    const reports = await runInstances('kanta', redis, durationMs, async () => {
      await delay(1_000)
      await redis.kill('SIGKILL')
      await delay(500)
      await redis.restart()
      await delay(1_000)
    })
    const boundMs = 1_500
    const { stale, worstMs } = staleReads(reports, boundMs)
    record(
      24,
      reports.length,
      `restarts: ${countsOf(reports)}; ${stale} stale beyond ${boundMs} ms, the oldest by ${worstMs.toFixed(1)} ms`,
    )
    expect(reports.flatMap(({ failures }) => failures)).toEqual([])
    expect(stale).toBe(0)
  },
  timeout,
)

test(
  'the same finds stale reads of a cache that is as most are',
  async () => {
    const redis = await startRedis()
    onTestFinished(() => redis.stop())
    const reports = await runInstances('naive', redis, durationMs)
    const { stale } = staleReads(reports, 100)
    expect(stale).toBeGreaterThan(0)
  },
  timeout,
)

test('row 24: a process that dies between COMMIT and invalidation leaves nothing stale behind in strict mode', async () => {
  const redis = await startRedis()
  onTestFinished(() => redis.stop())
  for (const holdMs of [300, false] as const) {
    const postgresUrl = await freshDatabaseUrl('empty')
    await using admin = await witness(postgresUrl)
    await admin.rows('create table items (id int primary key, version int not null)')
    await admin.rows('insert into items values (1, 1)')
    const namespace = `victim-${randomBytes(4).toString('hex')}`
    await using database = await createDatabase({
      postgres: { url: postgresUrl },
      redis: { url: redis.url },
      cache: { namespace },
    })
    await vi.waitUntil(() => database.cache.stats().isTrusted)
    const load = () => database.queryValue<number>(sql`select version from items`)
    const readBoth = async (): Promise<(number | undefined)[]> => [
      await database.cache.getOrSet('by key', load),
      await database.cache.getOrSet('by tag', load, { tags: ['items'] }),
    ]
    expect(await readBoth()).toEqual([1, 1])
    await vi.waitUntil(() => database.cache.stats().entries === 2)
    const options: VictimOptions = { postgresUrl, redisUrl: redis.url, namespace, holdMs }
    const victim = fork(join(import.meta.dirname, 'cache-victim.ts'), [JSON.stringify(options)])
    const signal = await new Promise((resolve) => victim.once('exit', (_, killedBy) => resolve(killedBy)))
    expect(signal).toBe('SIGKILL')
    expect(await admin.value('select version from items')).toBe(2)
    // Without holds the invalidation died with the process, which shows that the test sees it.
    expect(await readBoth()).toEqual(holdMs === false ? [1, 1] : [2, 2])
    if (holdMs === false) continue
    await vi.waitUntil(async () => {
      expect(await readBoth()).toEqual([2, 2])
      return database.cache.stats().entries === 2
    })
  }
})
