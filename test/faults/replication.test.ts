import { randomUUID } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { sql } from 'kysely'
import { expect, onTestFinished, test, vi } from 'vitest'
import type { Database, ErrorCode } from '../../src/index.ts'
import { type OwnServer, startPostgres, startStandby } from '../support/servers.ts'
import { open } from './open.ts'
import { isFull, record, tally, times } from './record.ts'
import { attempt, witness } from './witness.ts'

interface Journal {
  entries: { id: string }
}

/** After these nobody knows whether the entry is there. */
const ambiguous: ReadonlySet<ErrorCode | undefined> = new Set<ErrorCode>([
  'COMMIT_OUTCOME_UNKNOWN',
  'CONNECTION_LOST',
  'QUERY_TIMEOUT',
  'SERVER_CRASHED',
  'SERVER_SHUTDOWN',
])

interface Entry {
  readonly id: string
  /** When the call ended, as `performance.now()`. */
  readonly at: number
  readonly error: ErrorCode | undefined
  /** The port of the server that wrote it. */
  readonly port: number | undefined
}

/** Writers that go on until they are told to stop: half of them in transactions. */
function writers(database: Database<Journal>, count: number): { readonly entries: Entry[]; stop(): Promise<void> } {
  const entries: Entry[] = []
  const over = new AbortController()
  const write = async (id: string): Promise<number> => {
    const row = await database.db
      .insertInto('entries')
      .values({ id })
      .returning(sql<number>`inet_server_port()`.as('port'))
      .executeTakeFirstOrThrow()
    return row.port
  }
  const writer = async (number: number): Promise<void> => {
    while (!over.signal.aborted) {
      const id = randomUUID()
      const { value, error } = await attempt(() =>
        number % 2 === 0 ? write(id) : database.transaction(() => write(id), { timeoutMs: 3_000 }),
      )
      entries.push({ id, at: performance.now(), error: error?.code, port: value })
      if (error !== undefined) await delay(5)
    }
  }
  const all = Array.from({ length: count }, (_, number) => writer(number))
  return {
    entries,
    async stop() {
      over.abort()
      await Promise.all(all)
    },
  }
}

/** A primary whose commits are on its standby before they are reported, and that standby. */
async function replicated(): Promise<readonly [primary: OwnServer, standby: OwnServer]> {
  const primary = await startPostgres({ settings: { synchronous_commit: 'on' } })
  onTestFinished(() => primary.stop())
  await using admin = await witness(primary.url)
  await admin.rows('create table entries (id uuid primary key)')
  const standby = await startStandby(primary, { settings: { synchronous_commit: 'on' } })
  onTestFinished(() => standby.stop())
  await admin.rows(`alter system set synchronous_standby_names = '*'`)
  await admin.rows('select pg_reload_conf()')
  await vi.waitUntil(async () => (await admin.value('select sync_state from pg_stat_replication')) === 'sync', {
    timeout: 10_000,
  })
  return [primary, standby]
}

const ends = {
  killed: (primary: OwnServer) => primary.kill('SIGKILL'),
  async demoted(primary: OwnServer) {
    await using admin = await witness(primary.url)
    await admin.rows('alter system set default_transaction_read_only = on')
    await admin.rows('select pg_reload_conf()')
    // It serves reads to the new primary's clients no longer than that, and keeps nobody waiting for the standby.
    await admin.rows('set default_transaction_read_only = off')
    await admin.rows(`alter system set synchronous_standby_names = ''`)
    await admin.rows('select pg_reload_conf()')
  },
} as const

test.each(['killed', 'demoted'] as const)(
  'row 13: after the primary was %s and its standby promoted, writes go there within five seconds, and none is lost',
  async (end) => {
    for (let round = 0; round < times(3, 1); round += 1) {
      const [primary, standby] = await replicated()
      const url = `postgres://postgres@127.0.0.1:${primary.port},127.0.0.1:${standby.port}/postgres`
      await using database = await open<Journal>(url, { queryTimeoutMs: 3_000 })
      const load = writers(database, 8)
      const written = (): number => load.entries.filter(({ error }) => error === undefined).length
      await vi.waitUntil(() => written() > 300, { timeout: 10_000 })

      const diedAt = performance.now()
      await ends[end](primary)
      // What watches over the servers needs a moment, too.
      await delay(300)
      await using admin = await witness(standby.url)
      await admin.rows('select pg_promote()')
      const promotedAt = performance.now()
      const isOnNew = (entry: Entry): boolean => entry.port === standby.port
      await vi.waitUntil(() => load.entries.filter(isOnNew).length > 300, { timeout: 10_000 })
      await load.stop()

      const firstError = load.entries.find(({ error, at }) => error !== undefined && at >= diedAt)
      const firstOnNew = load.entries.find(isOnNew) as Entry
      const between = load.entries.filter(({ error, at }) => error !== undefined && at >= diedAt)
      const kept = new Set((await admin.rows<{ id: string }>('select id from entries')).map(({ id }) => id))
      const lost = load.entries.filter(({ id, error }) => error === undefined && !kept.has(id))
      const ghosts = load.entries.filter(
        ({ id, error }) => error !== undefined && !ambiguous.has(error) && kept.has(id),
      )
      const ms = (at: number | undefined): string => (at === undefined ? 'none' : `${(at - diedAt).toFixed(0)} ms`)
      record(
        13,
        1,
        `${end} at 0; first error ${ms(firstError?.at)}, standby promoted ${ms(promotedAt)}, first write there ${ms(firstOnNew.at)}; ` +
          `errors in between: ${tally(between.map(({ error }) => error))}; ${written()} written, ${lost.length} lost, ${ghosts.length} there although they failed`,
      )
      expect(firstOnNew.at - promotedAt).toBeLessThan(5_000)
      expect(lost).toEqual([])
      expect(ghosts).toEqual([])
      // Nothing is left behind on the old one.
      expect(load.entries.filter(({ at, port }) => at > firstOnNew.at + 1_000 && port === primary.port)).toEqual([])
    }
  },
  isFull ? 300_000 : 60_000,
)

test(
  'row 14: a replica that is killed, frozen or in conflict with its recovery costs less than one read in a thousand',
  async () => {
    const primary = await startPostgres({ settings: { synchronous_commit: 'on' } })
    onTestFinished(() => primary.stop())
    await using admin = await witness(primary.url)
    await admin.rows('create table entries (id uuid primary key)')
    await admin.rows('create table churned (id int primary key, n int)')
    await admin.rows('insert into churned select n, 0 from generate_series(1, 100) n')
    const settings = { settings: { max_standby_streaming_delay: 0, hot_standby_feedback: false } }
    const standbys = await Promise.all([startStandby(primary, settings), startStandby(primary, settings)])
    const [first] = standbys
    for (const standby of standbys) onTestFinished(() => standby.stop())
    await using database = await open<Journal>(primary.url, {
      replicas: standbys.map(({ url }) => url),
      replicaReads: { checkIntervalMs: 100 },
      queryTimeoutMs: 5_000,
    })
    const codes: (ErrorCode | 'answer')[] = []
    let latest = 0
    const over = new AbortController()
    let retries = 0
    database.events.on('retry', () => (retries += 1))
    // Some of them long enough for the log of the primary to need what they read.
    const readers = Array.from({ length: 8 }, async (_, number) => {
      while (!over.signal.aborted) {
        const read =
          number === 0
            ? sql`select sum(n), pg_sleep(0.05) from churned`
            : sql`select count(*)::int as count from churned where n >= 0`
        const { error, tookMs } = await attempt(() => database.query(read, { replica: true }))
        codes.push(error?.code ?? 'answer')
        latest = Math.max(latest, tookMs)
      }
    })
    const more = async (count: number): Promise<void> => {
      const until = codes.length + count
      await vi.waitUntil(() => codes.length > until, { timeout: 30_000, interval: 5 })
    }
    const state = (): string | undefined => database.stats().replicas?.[0]?.state
    const rounds = times(10, 1)
    for (let round = 0; round < rounds; round += 1) {
      await vi.waitUntil(() => state() === 'up', { timeout: 10_000 })
      await more(500)
      await first.kill(round % 2 === 0 ? 'SIGKILL' : 'SIGINT')
      await more(500)
      await first.restart()
      await vi.waitUntil(() => state() === 'up', { timeout: 10_000 })
      const stop = new AbortController()
      const churn = (async () => {
        while (!stop.signal.aborted) {
          await admin.rows('update churned set n = n + 1')
          await admin.rows('vacuum churned')
        }
      })()
      await more(500)
      stop.abort()
      await churn
    }
    over.abort()
    await Promise.all(readers)
    const failed = codes.filter((code) => code !== 'answer').length
    record(
      14,
      rounds * 2,
      `${codes.length} reads, ${failed} failed (${tally(codes)}); ${retries} went elsewhere; slowest ${latest.toFixed(0)} ms`,
    )
    expect(failed / codes.length).toBeLessThan(0.001)
    expect(retries).toBeGreaterThan(0)
  },
  isFull ? 300_000 : 60_000,
)

test(
  'row 14: a replica that is frozen costs the reads on it no more than the check that finds it',
  async () => {
    const primary = await startPostgres({ settings: { synchronous_commit: 'on' } })
    onTestFinished(() => primary.stop())
    const standby = await startStandby(primary)
    onTestFinished(() => standby.stop())
    await using database = await open<Journal>(primary.url, {
      replicas: [standby.url],
      replicaReads: { checkIntervalMs: 200 },
    })
    await using hand = await witness(standby.url)
    const rounds = times(10, 1)
    let slowest = 0
    for (let round = 0; round < rounds; round += 1) {
      await vi.waitUntil(() => database.stats().replicas?.[0]?.state === 'up', { timeout: 10_000 })
      const onReplica = sql<{ port: number }>`select inet_server_port() as port`
      await database.query(onReplica, { replica: true })
      const pids = await hand.rows<{ pid: number }>(`select pid from pg_stat_activity where application_name = 'kanta'`)
      await standby.kill('SIGSTOP')
      for (const { pid } of pids) process.kill(pid, 'SIGSTOP')
      const attempts = await Promise.all(
        Array.from({ length: 20 }, () => attempt(() => database.query(onReplica, { replica: true }))),
      )
      slowest = Math.max(slowest, ...attempts.map(({ tookMs }) => tookMs))
      for (const { pid } of pids) process.kill(pid, 'SIGCONT')
      await standby.kill('SIGCONT')
      expect(attempts.map(({ error }) => error?.code)).toEqual(attempts.map(() => undefined))
    }
    record(14, rounds, `frozen: ${rounds * 20} reads, 0 failed; slowest ${slowest.toFixed(0)} ms`)
    expect(slowest).toBeLessThan(3_000)
  },
  isFull ? 120_000 : 60_000,
)
