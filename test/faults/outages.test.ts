import { setTimeout as delay } from 'node:timers/promises'
import { sql } from 'kysely'
import { expect, onTestFinished, test, vi } from 'vitest'
import type { Database } from '../../src/index.ts'
import { freshDatabaseUrl } from '../support/database.ts'
import { startProxy } from '../../src/testing/fault-proxy.ts'
import { startPostgres } from '../support/servers.ts'
import { open, select } from './open.ts'
import { isFull, quantile, record, tally, times } from './record.ts'
import { type Attempt, attempt, witness } from './witness.ts'

/** Callers that go on until they are told to stop, and what became of their calls. */
function load(
  databases: readonly Database<never>[],
  callersEach: number,
): { readonly attempts: Attempt<unknown>[]; stop(): Promise<void> } {
  const attempts: Attempt<unknown>[] = []
  const over = new AbortController()
  const caller = async (database: Database<never>, number: number): Promise<void> => {
    while (!over.signal.aborted) {
      const query = number % 2 === 0 ? sql`select 1` : select(database, sql`1`)
      const outcome = await attempt(() => database.query(query, { timeoutMs: 2_000 }))
      attempts.push(outcome)
      // Callers that fail at once and do not wait a little would drown everything else.
      if (outcome.error !== undefined) await delay(2)
    }
  }
  const callers = databases.flatMap((database) =>
    Array.from({ length: callersEach }, (_, number) => caller(database, number)),
  )
  return {
    attempts,
    async stop() {
      over.abort()
      await Promise.all(callers)
    },
  }
}

test(
  'row 12: after a restart calls succeed within two seconds of readiness, and the connects are spread out',
  async () => {
    const server = await startPostgres()
    onTestFinished(() => server.stop())
    const proxy = await startProxy({ to: server.url })
    onTestFinished(() => proxy.close())
    const rounds = times(10, 1)
    const backMs: number[] = []
    const worstBursts: number[] = []
    let connectsWhileDown = 0
    let downMs = 0
    const codes: string[] = []
    // As many as there would be processes; they know nothing of each other. Of fewer, a third may come together by chance.
    const databases = await Promise.all(
      Array.from({ length: 6 }, () => open<never>(proxy.url, { pool: { max: 5, min: 2 } })),
    )
    try {
      for (let round = 0; round < rounds; round += 1) {
        const callers = load(databases, 5)
        await vi.waitUntil(() => callers.attempts.filter(({ error }) => error === undefined).length > 200, {
          timeout: 10_000,
          interval: 5,
        })
        const downAt = performance.now()
        const connectsBefore = proxy.accepted.length
        await server.kill('SIGQUIT')
        await vi.waitUntil(
          () => performance.now() - downAt > 1_000 && callers.attempts.some(({ error }) => error !== undefined),
          { timeout: 5_000, interval: 5 },
        )
        const restarted = server.restart()
        await restarted
        const readyAt = performance.now()
        downMs += readyAt - downAt
        connectsWhileDown += proxy.accepted.filter((at, index) => index >= connectsBefore && at < readyAt).length
        await Promise.all(
          databases.map((database) =>
            vi.waitUntil(
              async () =>
                (await attempt(() => database.query(sql`select 1`, { timeoutMs: 2_000 }))).error === undefined,
              { timeout: 10_000, interval: 1 },
            ),
          ),
        )
        backMs.push(performance.now() - readyAt)
        await vi.waitUntil(() => performance.now() - readyAt > 1_000, { timeout: 2_000 })
        await callers.stop()
        codes.push(...callers.attempts.flatMap(({ error }) => (error === undefined ? [] : [error.code])))
        const connects = proxy.accepted.filter((at) => at >= readyAt - 100 && at < readyAt + 2_000)
        worstBursts.push(
          Math.max(0, ...connects.map((from) => connects.filter((at) => at >= from && at < from + 10).length)) /
            connects.length,
        )
      }
    } finally {
      await Promise.all(databases.map((database) => database.close()))
    }
    const perSecond = (connectsWhileDown / downMs) * 1_000
    record(
      12,
      rounds,
      `all 6 back after ${quantile(backMs, 1).toFixed(0)} ms at most; ${perSecond.toFixed(0)} connects/s while down; at most ${(quantile(worstBursts, 1) * 100).toFixed(0)} % of the reconnects within 10 ms (${tally(codes)})`,
    )
    expect(quantile(backMs, 1)).toBeLessThan(2_000)
    // 30 callers whose every call tried to connect would make thousands.
    expect(perSecond).toBeLessThan(100)
    expect(quantile(worstBursts, 1)).toBeLessThanOrEqual(0.34)
  },
  isFull ? 300_000 : 40_000,
)

test(
  'row 15: with no slot left on the server calls get a typed error, do not storm it, and recover',
  async () => {
    const server = await startPostgres({ settings: { max_connections: 12, superuser_reserved_connections: 2 } })
    onTestFinished(() => server.stop())
    const proxy = await startProxy({ to: Object.assign(new URL(server.url), { username: 'app' }).href })
    onTestFinished(() => proxy.close())
    await using admin = await witness(server.url)
    await admin.rows('create role app login')
    // One is the witness's, and two are kept for superusers.
    const slots = 9
    const rounds = times(20, 2)
    const codes: string[] = []
    const rates: number[] = []
    for (let round = 0; round < rounds; round += 1) {
      await using database = await open<never>(proxy.url, { pool: { max: 8, min: 0, acquireTimeoutMs: 1_000 } })
      const appUrl = Object.assign(new URL(server.url), { username: 'app' }).href
      // Others take every slot, and in every second round none is left to the database: all of its connections end.
      const hasSome = round % 2 === 1
      const greedy: (AsyncDisposable & object)[] = []
      await vi.waitUntil(
        async () => {
          const one = await witness(appUrl).catch(() => undefined)
          if (one) greedy.push(one)
          else if (!hasSome) proxy.cut()
          return hasSome ? one === undefined : greedy.length === slots
        },
        { timeout: 10_000, interval: 5 },
      )
      const connectsBefore = proxy.accepted.length
      const start = performance.now()
      const callers = load([database], 50)
      const isNoticed = (): boolean =>
        callers.attempts.some(({ error }) => hasSome || error?.code === 'TOO_MANY_CONNECTIONS')
      await vi.waitUntil(() => performance.now() - start > 1_000 && isNoticed(), { timeout: 5_000 })
      rates.push(((proxy.accepted.length - connectsBefore) / (performance.now() - start)) * 1_000)
      const answersMeanwhile = callers.attempts.filter(({ error }) => error === undefined).length
      expect(answersMeanwhile > 0).toBe(hasSome)
      await Promise.all(greedy.map((one) => one[Symbol.asyncDispose]()))
      await vi.waitUntil(
        () => callers.attempts.filter(({ error }) => error === undefined).length > answersMeanwhile + 100,
        { timeout: 10_000 },
      )
      await callers.stop()
      codes.push(...callers.attempts.map(({ error }) => error?.code ?? 'answer'))
    }
    record(15, rounds, `${tally(codes)}; at most ${quantile(rates, 1).toFixed(0)} connects/s by 50 callers`)
    const expected = new Set([
      'answer',
      'TOO_MANY_CONNECTIONS',
      'CIRCUIT_OPEN',
      'POOL_TIMEOUT',
      'POOL_OVERLOADED',
      'QUERY_TIMEOUT',
    ])
    expect([...new Set(codes)].filter((code) => !expected.has(code))).toEqual([])
    expect(codes).toContain('TOO_MANY_CONNECTIONS')
    expect(quantile(rates, 1)).toBeLessThan(100)
  },
  isFull ? 180_000 : 30_000,
)

test(
  'row 16: under ten times its load everything settles within the acquire timeout, and the queue is bounded',
  async () => {
    const url = await freshDatabaseUrl('empty')
    const acquireTimeoutMs = 500
    const maxWaiting = 200
    await using database = await open<never>(url, { breaker: false, pool: { max: 4, maxWaiting, acquireTimeoutMs } })
    const attempts: Attempt<unknown>[] = []
    const under: Promise<void>[] = []
    const workMs = 20
    // Four connections do 200 such transactions a second.
    const perSecond = 2_000
    const durationMs = times(5_000, 1_000)
    let longestQueue = 0
    const start = performance.now()
    let offered = 0
    while (performance.now() - start < durationMs) {
      const due = Math.floor(((performance.now() - start) / 1_000) * perSecond)
      for (; offered < due; offered += 1) {
        under.push(
          attempt(() => database.transaction(() => database.query(sql`select pg_sleep(${workMs / 1_000})`))).then(
            (outcome) => void attempts.push(outcome),
          ),
        )
      }
      longestQueue = Math.max(longestQueue, database.stats().pool.waiting)
      await new Promise((resolve) => setImmediate(resolve))
    }
    await Promise.all(under)
    const longest = quantile(
      attempts.map(({ tookMs }) => tookMs),
      1,
    )
    record(
      16,
      offered,
      `${tally(attempts.map(({ error }) => error?.code ?? 'done'))}; slowest ${longest.toFixed(0)} ms; at most ${longestQueue} waiting of ${maxWaiting}`,
    )
    const expected = new Set(['done', 'POOL_OVERLOADED', 'POOL_TIMEOUT'])
    expect(
      [...new Set(attempts.map(({ error }) => error?.code ?? 'done'))].filter((code) => !expected.has(code)),
    ).toEqual([])
    expect(longestQueue).toBeLessThanOrEqual(maxWaiting)
    // Who got a connection in time still has its own work to do.
    expect(longest).toBeLessThanOrEqual(acquireTimeoutMs + 100)
    expect(attempts.filter(({ error }) => error === undefined).length).toBeGreaterThan((durationMs / 1_000) * 100)
  },
  isFull ? 60_000 : 30_000,
)
