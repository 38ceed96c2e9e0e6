import { randomInt } from 'node:crypto'
import { Kysely, sql } from 'kysely'
import { expect, test, vi } from 'vitest'
import { createDatabase, postgresDialect } from '../../src/index.ts'
import { freshDatabaseUrl } from '../support/database.ts'
import { startProxy } from '../../src/testing/fault-proxy.ts'
import { open, select } from './open.ts'
import { isFull, record, tally, times } from './record.ts'
import { attempt, witness } from './witness.ts'

test(
  'row 9: after a read timeout the backend is gone within a second and the next borrower gets its own answer',
  async () => {
    const url = await freshDatabaseUrl('empty')
    await using database = await open<never>(url, { breaker: false, pool: { max: 4 } })
    await using admin = await witness(url)
    const runs = times(1_000, 40)
    const codes: string[] = []
    let clean = 0
    let longestMs = 0
    const sleepers = (): Promise<number> =>
      admin.value(
        `select count(*)::int from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid() and state = 'active' and query like '%pg_sleep%'`,
      )
    for (let batch = 0; batch < runs / 4; batch += 1) {
      await Promise.all(
        Array.from({ length: 4 }, async (_, caller) => {
          const run = batch * 4 + caller
          const sleep = (): Promise<unknown> => database.query(sql`select pg_sleep(60)`, { timeoutMs: 20 })
          const sleepOnShared = (): Promise<unknown> =>
            database.query(select(database, sql`pg_sleep(60 + ${sql.raw(String(run % 50))})`), { timeoutMs: 20 })
          const sleeps = [sleep, () => database.transaction(sleep), sleepOnShared, sleepOnShared]
          const { error } = await attempt(async () => sleeps[caller]?.())
          codes.push(error?.code ?? 'answer')
          const read = (): Promise<{ value: number }[]> =>
            database.query(sql<{ value: number }>`select ${run}::int as value`)
          const readOnShared = (): Promise<{ value: number }[]> =>
            database.query(select(database, sql<number>`${run}::int`))
          const reads = [read, () => database.transaction(read), readOnShared, read]
          const next = await attempt(async () => reads[caller]?.())
          if (next.value?.[0]?.value === run) clean += 1
        }),
      )
      const start = performance.now()
      await vi.waitUntil(async () => (await sleepers()) === 0, { timeout: 5_000, interval: 2 })
      longestMs = Math.max(longestMs, performance.now() - start)
    }
    record(
      9,
      runs,
      `${tally(codes)}; ${clean} of ${runs} next borrowers clean; backends gone after ${longestMs.toFixed(0)} ms at most`,
    )
    expect(new Set(codes)).toEqual(new Set(['QUERY_TIMEOUT']))
    expect(clean).toBe(runs)
    expect(longestMs).toBeLessThan(1_000)
  },
  isFull ? 180_000 : 30_000,
)

test.each([
  ['at once', 0],
  ['late', 5],
])(
  'row 10: a query canceled at any moment never takes another with it, with cancel requests that arrive %s',
  async (when, delayMs) => {
    const url = await freshDatabaseUrl('empty')
    await using proxy = await proxyTo(url)
    await using database = await open<never>(proxy.url, { breaker: false, pool: { max: 4 } })
    if (delayMs > 0) proxy.on({ from: 'client', message: 'CancelRequest' }, { delayMs }, { times: Infinity })
    const runs = times(5_000, 150)
    const canceled: string[] = []
    const innocent: string[] = []
    const left = Array.from({ length: runs }, (_, run) => run).values()
    const over = new AbortController()
    const cancelingCaller = async (): Promise<void> => {
      for (const run of left) {
        const controller = new AbortController()
        const reason = new Error('given up')
        const call = (): Promise<unknown> => database.query(sql`select pg_sleep(0.001)`, { signal: controller.signal })
        const outcome = attempt(() => (run % 2 === 0 ? call() : database.transaction(call))).then(
          ({ error }) => error?.code ?? 'answer',
          (error: unknown) => (error === reason ? 'given up' : String(error)),
        )
        await microseconds(randomInt(3_000))
        controller.abort(reason)
        canceled.push(await outcome)
      }
    }
    const innocentCaller = async (caller: number): Promise<void> => {
      for (let call = 0; !over.signal.aborted; call += 1) {
        const read = (): Promise<{ value: number }[]> =>
          database.query(sql<{ value: number }>`select ${call}::int as value, pg_sleep(${caller === 0 ? 0 : 0.001})`)
        const ways = [
          read,
          () => database.transaction(read),
          () => database.query(select(database, sql<number>`${call}::int`)),
        ]
        const { error, value } = await attempt(async () => ways[caller]?.())
        innocent.push(error?.code ?? (value?.[0]?.value === call ? 'answer' : 'a wrong answer'))
      }
    }
    const others = [0, 1, 2].map(innocentCaller)
    await Promise.all(Array.from({ length: 4 }, cancelingCaller))
    over.abort()
    await Promise.all(others)
    record(
      10,
      runs,
      `${when}: ${tally(canceled)}, ${proxy.count('client', 'CancelRequest')} cancel requests; of the others ${tally(innocent)}`,
    )
    expect(new Set(innocent)).toEqual(new Set(['answer']))
    expect([...new Set(canceled)].filter((fate) => !['answer', 'given up', 'QUERY_CANCELED'].includes(fate))).toEqual(
      [],
    )
    expect(canceled).toContain('given up')
    expect(proxy.count('client', 'CancelRequest')).toBeGreaterThan(runs / 20)
  },
  isFull ? 300_000 : 30_000,
)

test.each(['database.db', 'postgresDialect'] as const)(
  'row 10: what Kysely cancels on a connection of its own takes nothing with it that comes behind, on %s',
  async (kind) => {
    const url = await freshDatabaseUrl('empty')
    await using proxy = await proxyTo(url)
    proxy.on({ from: 'client', message: 'CancelRequest' }, { delayMs: 2 }, { times: Infinity })
    const settings = { url: proxy.url, breaker: false, pipeline: false, pool: { max: 1 } } as const
    const database = kind === 'database.db' ? await createDatabase({ postgres: settings, redis: false }) : undefined
    const db = database?.db ?? new Kysely<unknown>({ dialect: postgresDialect(settings) })
    const runs = times(1_000, 20)
    const behind: string[] = []
    const next = async (on: Kysely<unknown>): Promise<void> => {
      const { error } = await attempt(() => sql`select pg_sleep(0.002)`.execute(on))
      behind.push(error?.code ?? 'answer')
    }
    const aborted = async (on: Kysely<unknown>, run: number): Promise<void> => {
      const controller = new AbortController()
      const { signal } = controller
      if (run % 2 === 0) {
        const numbers = on.selectFrom(sql<{ i: number }>`generate_series(1, 3)`.as('t')).selectAll()
        await attempt(async () => {
          for await (const _ of numbers.stream({ chunkSize: 1, signal })) controller.abort()
        }).catch(() => undefined)
        return
      }
      const options = { signal, inflightQueryAbortStrategy: 'cancel query' } as const
      const query = sql`select pg_sleep(0.002)`.execute(on, options).catch(() => undefined)
      await microseconds(randomInt(5_000))
      controller.abort()
      await query
    }
    for (let run = 0; run < runs; run += 1) {
      await aborted(db, run)
      await next(db)
      await db.connection().execute((connection) => aborted(connection, run))
      await next(db)
      await db.connection().execute(async (connection) => {
        await aborted(connection, run)
        await next(connection)
      })
    }
    record(
      10,
      runs * 3,
      `${kind}: ${proxy.count('client', 'CancelRequest')} cancel requests; behind them ${tally(behind)}`,
    )
    expect(new Set(behind)).toEqual(new Set(['answer']))
    expect(proxy.count('client', 'CancelRequest')).toBeGreaterThan(runs)
    await (database?.close() ?? db.destroy())
  },
  isFull ? 120_000 : 30_000,
)

async function proxyTo(url: string): Promise<Awaited<ReturnType<typeof startProxy>> & AsyncDisposable> {
  const proxy = await startProxy({ to: url })
  return Object.assign(proxy, { [Symbol.asyncDispose]: () => proxy.close() })
}

/** Timers are good for milliseconds only; in between other callers have their turn. */
async function microseconds(count: number): Promise<void> {
  const end = performance.now() + count / 1_000
  while (performance.now() < end) await new Promise((resolve) => setImmediate(resolve))
}
