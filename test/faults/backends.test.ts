import { sql } from 'kysely'
import { expect, onTestFinished, test, vi } from 'vitest'
import { freshDatabaseUrl } from '../support/database.ts'
import { startPostgres } from '../support/servers.ts'
import { open, select } from './open.ts'
import { isFull, quantile, record, tally, times } from './record.ts'
import { type Attempt, attempt, witness } from './witness.ts'

const graceMs = 50

test('row 4: a terminated idle connection is replaced, and the next query works', async () => {
  const url = await freshDatabaseUrl('empty')
  await using database = await open(url, { breaker: false, pool: { max: 4, min: 4 } })
  await using admin = await witness(url)
  const runs = times(200, 10)
  const codes: string[] = []
  for (let run = 0; run < runs; run += 1) {
    await vi.waitUntil(() => database.stats().pool.total === 4 && database.stats().pool.idle === 4)
    const killed = await admin.rows<{ pid: number }>(
      `select pid, pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and application_name = 'kanta' ${run % 2 === 0 ? 'limit 1' : ''}`,
    )
    const pids = killed.map(({ pid }) => pid)
    await vi.waitUntil(
      async () => (await admin.value('select count(*)::int from pg_stat_activity where pid = any($1)', [pids])) === 0,
      { interval: 1 },
    )
    // A death that nobody has heard of yet may meet a statement on its way; what is known must not.
    await vi.waitUntil(async () => (await attempt(() => database.query(sql`select 1`))).error === undefined, {
      interval: 1,
    })
    await vi.waitUntil(() => database.stats().pool.total === 4)
    for (const next of [sql`select ${run}::int as run`, select(database, sql`${run}::int`)]) {
      codes.push((await attempt(() => database.query(next))).error?.code ?? 'answer')
    }
  }
  record(4, runs, `idle: ${tally(codes)} at the next queries, pool back to 4 each time`)
  expect(codes).toEqual(codes.map(() => 'answer'))
})

test('row 4: a connection terminated while a transaction holds it fails that transaction alone', async () => {
  const url = await freshDatabaseUrl('empty')
  await using database = await open(url, { breaker: false, pool: { max: 4, min: 4 } })
  await using admin = await witness(url)
  await admin.rows('create table notes (id int)')
  const runs = times(200, 10)
  const codes: string[] = []
  for (let run = 0; run < runs; run += 1) {
    const { error } = await attempt(() =>
      database.transaction(
        async () => {
          const [row] = await database.query(
            sql<{ pid: number }>`insert into notes values (${run}) returning pg_backend_pid() as pid`,
          )
          await admin.rows('select pg_terminate_backend($1)', [row?.pid])
          await vi.waitUntil(
            async () =>
              (await admin.value('select count(*)::int from pg_stat_activity where pid = $1', [row?.pid])) === 0,
            { interval: 1 },
          )
          await database.query(sql`insert into notes values (${run})`)
        },
        { attempts: 1 },
      ),
    )
    codes.push(error?.code ?? 'none')
    const next = await attempt(() => database.query(sql<{ run: number }>`select ${run}::int as run`))
    expect(next.value).toEqual([{ run }])
    await vi.waitUntil(() => database.stats().pool.total === 4 && database.stats().pool.idle === 4)
  }
  record(4, runs, `held: ${tally(codes)}, pool back to 4 each time`)
  expect(codes).not.toContain('none')
  expect(await admin.value('select count(*)::int from notes')).toBe(0)
})

test('row 4: a connection terminated under a statement fails that statement alone', async () => {
  const url = await freshDatabaseUrl('empty')
  await using database = await open(url, { breaker: false, pool: { max: 4, min: 4 } })
  await using admin = await witness(url)
  const runs = times(200, 10)
  const codes: string[] = []
  for (let run = 0; run < runs; run += 1) {
    const sleep = (): Promise<unknown> => database.query(sql`select pg_sleep(60)`)
    const ways = [
      () => database.transaction(sleep, { attempts: 1 }),
      sleep,
      () => database.query(select(database, sql`pg_sleep(60)`)),
    ]
    const sleeping = attempt(async () => ways[run % ways.length]?.())
    await vi.waitUntil(
      async () =>
        (await admin.value(
          `select count(pg_terminate_backend(pid))::int from pg_stat_activity
            where datname = current_database() and state = 'active' and query like '%pg_sleep%' and pid <> pg_backend_pid()`,
        )) === 1,
      { interval: 1 },
    )
    codes.push((await sleeping).error?.code ?? 'none')
    const next = await attempt(() => database.query(sql<{ run: number }>`select ${run}::int as run`))
    expect(next.value).toEqual([{ run }])
    await vi.waitUntil(() => database.stats().pool.total === 4 && database.stats().pool.idle === 4)
  }
  record(4, runs, `active: ${tally(codes)}, pool back to 4 each time`)
  expect(new Set(codes)).toEqual(new Set(['SERVER_SHUTDOWN']))
})

test(
  'row 5: with frozen backends every call settles within its deadline, and new connections take over',
  async () => {
    const server = await startPostgres()
    onTestFinished(() => server.stop())
    await using database = await open(server.url, { connectTimeoutMs: 1_000, pool: { max: 4, min: 4 } })
    await using admin = await witness(server.url)
    const deadlineMs = 200
    const runs = times(40, 3)
    const attempts: Attempt<unknown>[] = []
    const frozen = new Set<number>()
    try {
      for (let run = 0; run < runs; run += 1) {
        const backends = await admin.rows<{ pid: number }>(
          `select pid from pg_stat_activity where application_name = 'kanta'`,
        )
        for (const { pid } of backends) if (process.kill(pid, 'SIGSTOP')) frozen.add(pid)
        attempts.push(
          ...(await Promise.all(
            Array.from({ length: 8 }, (_, caller) =>
              attempt(() =>
                database.query(caller % 2 === 0 ? sql`select 1` : select(database, sql`1`), { timeoutMs: deadlineMs }),
              ),
            ),
          )),
        )
        await vi.waitUntil(
          async () =>
            (await attempt(() => database.query(sql`select 1`, { timeoutMs: deadlineMs }))).error === undefined,
          { timeout: 10_000, interval: 5 },
        )
      }
    } finally {
      for (const pid of frozen) process.kill(pid, 'SIGCONT')
    }
    const latest = Math.max(...attempts.map(({ tookMs }) => tookMs)) - deadlineMs
    record(
      5,
      attempts.length,
      `backends: ${tally(attempts.map(({ error }) => error?.code ?? 'answer'))}; latest ${latest.toFixed(0)} ms after its deadline`,
    )
    expect(latest).toBeLessThanOrEqual(graceMs)
    expect(attempts.some(({ error }) => error !== undefined)).toBe(true)
  },
  isFull ? 120_000 : 30_000,
)

test(
  'row 5: with everything frozen calls settle in time, the breaker opens, and one probe brings it back',
  async () => {
    const server = await startPostgres()
    onTestFinished(() => server.stop())
    await using admin = await witness(server.url)
    const deadlineMs = 200
    const rounds = times(10, 1)
    const attempts: Attempt<unknown>[] = []
    const probes: number[] = []
    const neverOpened: string[] = []
    for (let round = 0; round < rounds; round += 1) {
      await using database = await open(server.url, {
        connectTimeoutMs: 1_000,
        pool: { max: 4, min: 4, acquireTimeoutMs: 1_000 },
      })
      const states: string[] = []
      database.events.on('breaker', (event) => states.push(event.state))
      let calls = 0
      const call = (): Promise<Attempt<unknown>> => {
        calls += 1
        const query = calls % 2 === 0 ? sql`select 1` : select(database, sql`1`)
        return attempt(() => database.query(query, { timeoutMs: deadlineMs }))
      }
      const backends = await admin.rows<{ pid: number }>(
        `select pid from pg_stat_activity where application_name = 'kanta'`,
      )
      const everyone = [server.pid, ...backends.map(({ pid }) => pid)]
      for (const pid of everyone) process.kill(pid, 'SIGSTOP')
      try {
        for (let batch = 0; batch < 40 && !states.includes('open'); batch += 1) {
          attempts.push(...(await Promise.all(Array.from({ length: 8 }, call))))
        }
        attempts.push(await call())
      } finally {
        for (const pid of everyone) process.kill(pid, 'SIGCONT')
      }
      const refused = attempts.at(-1)
      if (refused?.error?.code !== 'CIRCUIT_OPEN' || refused.tookMs > graceMs) {
        neverOpened.push(`round ${round}: ${refused?.error?.code} after ${refused?.tookMs.toFixed(0)} ms`)
      }
      const before = states.length
      await vi.waitUntil(async () => (await call()).error === undefined, { timeout: 20_000, interval: 5 })
      probes.push(states.slice(before).filter((state) => state === 'half-open').length)
      const after = await Promise.all(Array.from({ length: 8 }, call))
      expect(after.filter(({ error }) => error !== undefined)).toEqual([])
    }
    const latest = Math.max(...attempts.map(({ tookMs }) => tookMs)) - deadlineMs
    record(
      5,
      attempts.length,
      `server: ${tally(attempts.map(({ error }) => error?.code ?? 'answer'))}; latest ${latest.toFixed(0)} ms after its deadline; probes until back ${quantile(probes, 1)}`,
    )
    expect(latest).toBeLessThanOrEqual(graceMs)
    expect(neverOpened).toEqual([])
    expect(new Set(probes)).toEqual(new Set([1]))
  },
  isFull ? 300_000 : 30_000,
)
