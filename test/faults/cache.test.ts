import { fork } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { expect, onTestFinished, test } from 'vitest'
import { freshDatabaseUrl } from '../support/database.ts'
import { type OwnServer, startRedis } from '../support/servers.ts'
import type { InstanceOptions, InstanceReport } from './cache-instance.ts'
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

const faults = {
  'while nothing happens': { boundMs: 100, strike: () => delay(50) },
  'while the link of the invalidations is cut every 400 ms': {
    boundMs: 250,
    async strike(admin: Redis) {
      await delay(400)
      await admin.call('client', 'kill', 'type', 'pubsub').catch(() => undefined)
    },
  },
  'while Redis loses everything': {
    boundMs: 250,
    async strike(admin: Redis) {
      await delay(700)
      await admin.flushall().catch(() => undefined)
    },
  },
}

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
