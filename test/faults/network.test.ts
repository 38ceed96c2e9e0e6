import { sql } from 'kysely'
import { expect, onTestFinished, test, vi } from 'vitest'
import type { Database } from '../../src/index.ts'
import { freshDatabaseUrl } from '../support/database.ts'
import { type Fault, type Proxy, type ServerMessage, startProxy } from '../../src/testing/fault-proxy.ts'
import { makeCertificate, startTlsPostgres } from './certificates.ts'
import { open, select } from './open.ts'
import { isFull, quantile, record, tally, times } from './record.ts'
import { type Attempt, attempt, witness } from './witness.ts'

const deadlineMs = 200
const graceMs = 50

async function proxyTo(url: string): Promise<Proxy> {
  const proxy = await startProxy({ to: url })
  onTestFinished(() => proxy.close())
  return proxy
}

function lateness(attempts: readonly Attempt<unknown>[]): number {
  return Math.max(...attempts.map(({ tookMs }) => tookMs)) - deadlineMs
}

/** Whether the pool can still give all its connections at once. */
async function givesAll(database: Database<never>, max: number): Promise<boolean> {
  const everyone = Promise.withResolvers<void>()
  let arrived = 0
  const all = await Promise.all(
    Array.from({ length: max }, () =>
      attempt(() =>
        database.transaction(async () => {
          await database.query(sql`select 1`)
          arrived += 1
          if (arrived === max) everyone.resolve()
          await everyone.promise
        }),
      ),
    ),
  )
  return all.every(({ error }) => error === undefined)
}

/** Calls on connections of both kinds, once those there were are gone. */
async function eightInTheDark(database: Database<never>): Promise<Attempt<unknown>[]> {
  await vi.waitUntil(() => database.stats().pool.total === 0)
  return Promise.all(
    Array.from({ length: 8 }, (_, caller) =>
      attempt(() =>
        database.query(caller % 2 === 0 ? sql`select 1` : select(database, sql`1`), { timeoutMs: deadlineMs }),
      ),
    ),
  )
}

async function backToFour(database: Database<never>): Promise<void> {
  await vi.waitUntil(async () => (await attempt(() => database.query(sql`select 1`))).error === undefined, {
    timeout: 5_000,
  })
  expect(await givesAll(database, 4)).toBe(true)
}

function allFailedInTime(where: string, attempts: readonly Attempt<unknown>[]): void {
  const codes = tally(attempts.map(({ error }) => error?.code ?? 'answer'))
  record(6, attempts.length, `${where}: ${codes}; latest ${lateness(attempts).toFixed(0)} ms after its deadline`)
  expect(attempts.filter(({ error }) => error === undefined)).toEqual([])
  expect(lateness(attempts)).toBeLessThanOrEqual(graceMs)
}

test(
  'row 6: a connect that hears nothing fails in time, and no slot is lost',
  async () => {
    const url = await freshDatabaseUrl('empty')
    const proxy = await proxyTo(url)
    const attempts: Attempt<unknown>[] = []
    const rounds = times(20, 2)
    await using database = await open<never>(proxy.url, { connectTimeoutMs: 1_000, breaker: false, pool: { max: 4 } })
    for (let round = 0; round < rounds; round += 1) {
      proxy.freeze()
      proxy.cut()
      attempts.push(...(await eightInTheDark(database)))
      proxy.cut()
      proxy.thaw()
      await backToFour(database)
    }
    allFailedInTime('at connect', attempts)
  },
  isFull ? 120_000 : 30_000,
)

test(
  'row 6: a TLS handshake that is swallowed fails in time, and no slot is lost',
  async () => {
    const certificate = makeCertificate('127.0.0.1')
    const server = await startTlsPostgres(certificate)
    onTestFinished(() => server.stop())
    const proxy = await proxyTo(server.url)
    const attempts: Attempt<unknown>[] = []
    const rounds = times(20, 2)
    await using database = await open<never>(proxy.url, {
      ssl: 'verify-full',
      sslCa: certificate.certificate,
      connectTimeoutMs: 1_000,
      breaker: false,
      pool: { max: 4 },
    })
    for (let round = 0; round < rounds; round += 1) {
      // Either the client's greeting or the server's answer to it never arrives.
      const from = round % 2 === 0 ? 'client' : 'server'
      const rule = proxy.on({ from, message: 'Bytes' }, 'black-hole', { times: Infinity })
      proxy.cut()
      attempts.push(...(await eightInTheDark(database)))
      rule.off()
      proxy.cut()
      await backToFour(database)
    }
    allFailedInTime('in TLS', attempts)
  },
  isFull ? 120_000 : 30_000,
)

test(
  'row 6: an answer that stops in mid-row fails in time, and no slot is lost',
  async () => {
    const url = await freshDatabaseUrl('empty')
    const proxy = await proxyTo(url)
    const attempts: Attempt<unknown>[] = []
    const runs = times(100, 6)
    await using database = await open<never>(proxy.url, { breaker: false, pool: { max: 4 } })
    for (let run = 0; run < runs; run += 1) {
      const rule = proxy.on({ from: 'server', message: 'DataRow' }, 'black-hole', { nth: 1 + (run % 5) })
      const read = (): Promise<unknown> =>
        database.query(sql`select n, repeat('x', 1000) from generate_series(1, 10) n`, { timeoutMs: deadlineMs })
      const ways = [
        read,
        () => database.transaction(read),
        () => database.query(select(database, sql`generate_series(1, 10)`), { timeoutMs: deadlineMs }),
      ]
      attempts.push(await attempt(async () => ways[run % ways.length]?.()))
      expect(rule.hits).toBe(1)
      rule.off()
      for (const next of [
        sql<{ value: number }>`select ${run}::int as value`,
        select(database, sql<number>`${run}::int`),
      ]) {
        expect((await attempt(() => database.query(next))).value).toEqual([{ value: run }])
      }
    }
    expect(await givesAll(database, 4)).toBe(true)
    allFailedInTime('in mid-row', attempts)
    // In a black hole the server is not told that its clients are gone.
    proxy.cut()
  },
  isFull ? 120_000 : 30_000,
)

/** The rows 1, 2, 3 and so on. */
function isAnswer(value: unknown): boolean {
  const rows = value as readonly { value: number }[]
  return rows.length >= 3 && rows.every((row, index) => row.value === index + 1)
}

const damaged: readonly ServerMessage[] = [
  'ParseComplete',
  'BindComplete',
  'RowDescription',
  'DataRow',
  'CommandComplete',
  'ReadyForQuery',
]
const damages: readonly (readonly [string, Fault])[] = [
  ['half of it', 'halve'],
  ['a wrong type', { corruptByte: 0 }],
  ['a length of 0', { length: () => 0 }],
  ['a length one too small', { length: (right) => right - 1 }],
  ['a length far too large', { length: () => 1_000_000 }],
  ['a negative length', { length: () => -1 }],
]

test(
  'row 7: half, corrupt and mismeasured messages fail their statement in time and cost the connection',
  async () => {
    const url = await freshDatabaseUrl('empty')
    const proxy = await proxyTo(url)
    await using admin = await witness(url)
    await using database = await open<never>(proxy.url, { breaker: false, pool: { max: 2 } })
    const backends = async (): Promise<number[]> =>
      (
        await admin.rows<{ pid: number }>(
          `select pid from pg_stat_activity where application_name = 'kanta' and datname = current_database()`,
        )
      ).map(({ pid }) => pid)

    const attempts: Attempt<unknown>[] = []
    const wrong: string[] = []
    const rounds = times(10, 1)
    let number = 0
    for (let round = 0; round < rounds; round += 1) {
      for (const message of damaged) {
        for (const [damage, fault] of damages) {
          number += 1
          const isAlone = (number + round + Math.floor(number / damages.length)) % 2 === 0
          await attempt(() => database.query(sql`select 1`, { timeoutMs: 1_000 }))
          await attempt(() => database.query(select(database, sql`1`), { timeoutMs: 1_000 }))
          // Else the damage hits the greeting of a connection that replaces one of the round before.
          await vi.waitUntil(() => database.stats().pipeline?.connections === 2, { timeout: 10_000, interval: 2 })
          const before = await backends()
          const rule = proxy.on({ from: 'server', message }, fault)
          // A text of its own each time, so that it is parsed and described.
          const own = sql.raw(`'text ${number}'`)
          const query = isAlone
            ? sql`select n as value, ${own} as body from generate_series(1, 3) n where n > ${0}`
            : select(database, sql`generate_series(1, ${3}::int + length(${own}))`)
          const outcome = await attempt(() => database.query(query, { timeoutMs: deadlineMs }))
          rule.off()
          attempts.push(outcome)
          const what = `${damage} in ${message} of ${isAlone ? 'its own' : 'a shared'} connection`
          if (rule.hits === 0) wrong.push(`${what} was not provoked`)
          if (outcome.error === undefined) {
            // A ReadyForQuery with a wrong length comes after a whole answer; what is out of step is the next one.
            const isWhole = message === 'ReadyForQuery' && 'length' in Object(fault) && isAnswer(outcome.value)
            if (!isWhole) wrong.push(`${what} gave ${JSON.stringify(outcome.value)}`)
            for (const next of isWhole ? [1, 2, 3, 4] : []) {
              const following = isAlone
                ? sql<{ value: number }>`select ${next}::int as value`
                : select(database, sql<number>`${next}::int`)
              const { value, error, tookMs } = await attempt(() => database.query(following, { timeoutMs: deadlineMs }))
              if (error === undefined && value?.[0]?.value !== next) wrong.push(`${what} gave another's answer`)
              if (tookMs > deadlineMs + graceMs) wrong.push(`${what} took the next query ${tookMs.toFixed(0)} ms`)
            }
          }
          if (outcome.tookMs > deadlineMs + graceMs) wrong.push(`${what} took ${outcome.tookMs.toFixed(0)} ms`)
          const isGone = await vi
            .waitUntil(async () => (await backends()).filter((pid) => before.includes(pid)).length < before.length, {
              timeout: 1_000,
              interval: 2,
            })
            .catch(() => false)
          if (!isGone) wrong.push(`${what} left its connection open`)
          const nextQueries = [
            sql<{ value: number }>`select ${number}::int as value`,
            select(database, sql<number>`${number}::int`),
          ]
          for (const following of nextQueries) {
            const next = await attempt(() => database.query(following, { timeoutMs: 1_000 }))
            if (next.value?.[0]?.value === number) continue
            wrong.push(`${what} spoilt the next query: ${next.error?.message ?? JSON.stringify(next.value)}`)
          }
        }
      }
    }
    record(
      7,
      attempts.length,
      `${tally(attempts.map(({ error }) => error?.code ?? 'answer'))}; ${wrong.length} wrong; latest ${lateness(attempts).toFixed(0)} ms after its deadline`,
    )
    expect(wrong).toEqual([])
  },
  isFull ? 400_000 : 60_000,
)

test(
  'row 8: an answer of one byte per second ends at its deadline and does not slow the others',
  async () => {
    const url = await freshDatabaseUrl('empty')
    const proxy = await proxyTo(url)
    await using database = await open<never>(proxy.url, { breaker: false, pool: { max: 8 } })
    const runs = times(40, 4)
    const slow: Attempt<unknown>[] = []
    const undisturbed: number[] = []
    const disturbed: number[] = []

    const measure = async (into: number[], isOver: () => boolean): Promise<void> => {
      await Promise.all(
        Array.from({ length: 4 }, async (_, caller) => {
          do {
            const { tookMs, error } = await attempt(() =>
              database.query(caller % 2 === 0 ? sql`select ${caller}::int` : select(database, sql`${caller}::int`)),
            )
            // A caller that was dragged along waited for ever.
            into.push(error === undefined ? tookMs : Number.POSITIVE_INFINITY)
          } while (!isOver())
        }),
      )
    }
    for (let run = 0; run < runs; run += 1) {
      const end = performance.now() + deadlineMs
      await measure(undisturbed, () => performance.now() > end)
      let isOver = false
      const rule = proxy.on({ from: 'server', message: 'RowDescription' }, { trickleMs: 1_000 })
      const rows = sql`generate_series(1, ${100}::int + ${sql.raw(String(run))})`
      const query = run % 2 === 0 ? sql`select ${rows}` : select(database, rows)
      const trickled = attempt(() => database.query(query, { timeoutMs: deadlineMs }))
      const others = rule.struck.then(() => measure(disturbed, () => isOver))
      slow.push(await trickled)
      isOver = true
      await others
    }
    const ratio = quantile(disturbed, 0.99) / quantile(undisturbed, 0.99)
    record(
      8,
      runs,
      `${tally(slow.map(({ error }) => error?.code ?? 'answer'))}; latest ${lateness(slow).toFixed(0)} ms after its deadline; others' p99 ${quantile(undisturbed, 0.99).toFixed(1)} → ${quantile(disturbed, 0.99).toFixed(1)} ms (${disturbed.length} calls, ${disturbed.filter((ms) => ms === Number.POSITIVE_INFINITY).length} failed)`,
    )
    expect(slow.filter(({ error }) => error === undefined)).toEqual([])
    expect(lateness(slow)).toBeLessThanOrEqual(graceMs)
    expect(ratio).toBeLessThan(2)
  },
  isFull ? 120_000 : 30_000,
)
