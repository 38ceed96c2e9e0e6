import { AsyncResource } from 'node:async_hooks'
import { Readable } from 'node:stream'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { CamelCasePlugin, Kysely, type LogEvent, sql } from 'kysely'
import { types } from 'pg'
import { beforeEach, describe, expect, test, vi } from 'vitest'
import {
  createDatabase,
  type Database,
  type DatabaseOptions,
  type LeaseHolder,
  postgresDialect,
  type QueryEvent,
} from '../../src/index.ts'
import { freshDatabaseUrl } from '../support/database.ts'
import { startPgBouncer } from '../support/pgbouncer.ts'
import { startProxy } from '../../src/testing/fault-proxy.ts'

interface DB {
  notes: { id: number; text: string | null }
}

let url = ''

beforeEach(async () => {
  url = await freshDatabaseUrl('empty')
})

async function open(
  postgres: DatabaseOptions['postgres'] = {},
  options: Partial<DatabaseOptions> = {},
): Promise<Database<DB>> {
  const database = await createDatabase<DB>({ ...options, postgres: { url, ...postgres }, redis: false })
  await sql`create table if not exists notes (id int primary key, text text)`.execute(database.db)
  await sql`insert into notes select n, 'note ' || n from generate_series(1, 1000) n on conflict do nothing`.execute(
    database.db,
  )
  return database
}

/** One connection in all, so that whatever is not given back is missed at once. */
const openOne = (postgres: DatabaseOptions['postgres'] = {}): Promise<Database<DB>> =>
  open({ pipeline: false, pool: { max: 1, acquireTimeoutMs: 2_000 }, ...postgres })

const all = (database: Database<DB>) => database.db.selectFrom('notes').select(['id', 'text']).orderBy('id')

const count = (upTo: number) => sql<{ n: number }>`select n from generate_series(1, ${upTo}::int) n`

async function collect<Row>(rows: AsyncIterable<Row>): Promise<Row[]> {
  const collected: Row[] = []
  for await (const row of rows) collected.push(row)
  return collected
}

const pidOf = (database: Database<DB>): Promise<number | undefined> =>
  database.queryValue<number>(sql`select pg_backend_pid()`)

/** Runs a call as another request would make it, outside the transaction that surrounds it. */
const outside = AsyncResource.bind((work: () => Promise<unknown>) => work())

/** What runs on the server beside those who ask. */
const running = (database: Database<DB>, like: string): Promise<number> =>
  database.queryCount(
    sql`select count(*) from pg_stat_activity where datname = current_database() and state <> 'idle' and query like ${`%${like}%`} and pid <> pg_backend_pid()`,
  )

describe('the rows of a stream', () => {
  test.each([1, 7, 999, 1_000, 1_001, undefined])('are those of the query, in chunks of %s', async (chunkSize) => {
    await using database = await openOne()
    const expected = await all(database).execute()
    for (let n = 0; n < 5; n += 1) {
      expect(await collect(database.stream(all(database), { chunkSize }))).toEqual(expected)
      expect(await collect(all(database).stream(chunkSize))).toEqual(expected)
    }
    expect(database.stats().pool).toMatchObject({ total: 1, idle: 1, waiting: 0 })
  })

  test('come in chunks of the asked size to those who want many at once', async () => {
    await using database = await openOne()
    const sizes: number[] = []
    for await (const rows of database.stream(all(database), { chunkSize: 300 }).chunks()) sizes.push(rows.length)
    expect(sizes).toEqual([300, 300, 300, 100])
    const stream = database.stream(all(database), { chunkSize: 10 })
    expect(await stream.next()).toMatchObject({ value: { id: 1 } })
    const [rest] = await collect(stream.chunks())
    expect(rest?.map(({ id }) => id)).toEqual([2, 3, 4, 5, 6, 7, 8, 9, 10])
  })

  test('may be none, and statements that give no rows give none', async () => {
    await using database = await openOne()
    expect(await collect(database.stream(all(database).where('id', '<', 0)))).toEqual([])
    expect(await collect(database.stream(sql`insert into notes values (2000, 'x')`))).toEqual([])
    expect(await collect(database.stream(sql`create index on notes (text)`))).toEqual([])
    expect(await collect(database.stream(sql``))).toEqual([])
    expect(await collect(database.stream(sql`select from notes limit 2`))).toEqual([{}, {}])
    expect(await database.queryCount(sql`select count(*) from notes`)).toBe(1_001)
  })

  test('of a write come in chunks, and the write is done also for a reader that leaves', async () => {
    await using database = await openOne()
    const moved = sql<{ id: number }>`update notes set text = 'moved' returning id`
    for await (const _row of database.stream(moved, { chunkSize: 10 })) break
    expect(await database.queryCount(sql`select count(*) from notes where text = 'moved'`)).toBe(1_000)
    expect(await collect(database.stream(moved, { chunkSize: 10 }))).toHaveLength(1_000)
  })

  test('are asked for one by one at once, or through a Readable, in their order', async () => {
    await using database = await openOne()
    const stream = database.stream(count(25), { chunkSize: 10 })
    const results = await Promise.all(Array.from({ length: 30 }, () => stream.next()))
    expect(results.map(({ value }) => value?.n)).toEqual(
      Array.from({ length: 30 }, (_, n) => (n < 25 ? n + 1 : undefined)),
    )
    expect(await collect(Readable.from(database.stream(count(25), { chunkSize: 10 })))).toHaveLength(25)
    expect(database.stats().pool.idle).toBe(1)
  })

  test('are at most two chunks ahead of their reader', async () => {
    await using database = await open()
    await sql`create sequence given`.execute(database.db)
    const given = (): Promise<number> => database.queryCount(sql`select last_value from given`)
    const stream = database.stream(sql<{ n: string }>`select nextval('given') as n from generate_series(1, 1000)`, {
      chunkSize: 10,
    })
    for (let n = 1; n <= 30; n += 1) await stream.next()
    await vi.waitUntil(async () => (await given()) === 40)
    await stream.next()
    await vi.waitUntil(async () => (await given()) === 50)
    await stream.return()
    expect(await given()).toBe(50)
  })

  test('take no more memory when they are many', async () => {
    await using database = await openOne()
    // 300 MB in all, of which a reader that kept them would have to hold each.
    const many = sql<{ n: number; text: string }>`select n, repeat('x', 1000) as text from generate_series(1, 300000) n`
    setFlagsFromString('--expose-gc')
    const collectGarbage = runInNewContext('gc') as () => void
    collectGarbage()
    const before = process.memoryUsage()
    let mostBytes = 0
    let sum = 0
    for await (const { n, text } of database.stream(many)) {
      sum += text.length
      if (n % 20_000 !== 0) continue
      // What is only waiting to be collected is no memory that it takes.
      collectGarbage()
      const { heapUsed, external } = process.memoryUsage()
      mostBytes = Math.max(mostBytes, heapUsed + external - before.heapUsed - before.external)
    }
    expect(sum).toBe(300_000_000)
    expect(mostBytes).toBeLessThan(30_000_000)
  })

  test('adapt the size of their chunks to their width', async () => {
    await using database = await openOne()
    const chunksOf = async (width: number, rows: number): Promise<number[]> => {
      const wide = sql`select repeat('x', ${width}::int) as text from generate_series(1, ${rows}::int)`
      const sizes: number[] = []
      for await (const chunk of database.stream(wide).chunks()) sizes.push(chunk.length)
      return sizes
    }
    const narrow = await chunksOf(10, 50_000)
    expect(narrow.slice(0, 2)).toEqual([100, 400])
    expect(Math.max(...narrow)).toBeGreaterThan(2_000)
    const wide = await chunksOf(100_000, 400)
    expect(wide[0]).toBe(100)
    expect(Math.max(...wide.slice(2))).toBeLessThan(20)
  })

  test('pass through the plugins of the database, and its log hears of the stream', async () => {
    const logged: LogEvent[] = []
    await using database = await createDatabase<{ notes: { id: number; someText: string } }>({
      postgres: { url },
      redis: false,
      plugins: [new CamelCasePlugin()],
      log: (event) => void logged.push(event),
    })
    await sql`create table notes (id int, some_text text)`.execute(database.db)
    await sql`insert into notes values (1, 'a'), (2, 'b')`.execute(database.db)
    const query = database.db.selectFrom('notes').selectAll().orderBy('id')
    const expected = [
      { id: 1, someText: 'a' },
      { id: 2, someText: 'b' },
    ]
    expect(await collect(database.stream(query))).toEqual(expected)
    expect(await collect(query.stream())).toEqual(expected)
    await database.transaction(async () => expect(await collect(query.stream())).toEqual(expected))
    await database.db
      .transaction()
      .execute(async (trx) => expect(await collect(trx.selectFrom('notes').selectAll().stream())).toEqual(expected))
    const streams = logged.filter((event) => event.level === 'query' && event.isStream === true)
    expect(streams).toHaveLength(4)
  })

  test('come through the dialect, in transactions and out of them', async () => {
    const db = new Kysely<DB>({ dialect: postgresDialect({ url, pool: { max: 1 } }) })
    await sql`create table notes as select n as id, 'x' as text from generate_series(1, 250) n`.execute(db)
    for (let n = 0; n < 3; n += 1)
      expect(await collect(db.selectFrom('notes').selectAll().stream(100))).toHaveLength(250)
    for await (const _row of db.selectFrom('notes').selectAll().stream(100)) break
    await db.transaction().execute(async (trx) => {
      for await (const _row of trx.selectFrom('notes').selectAll().stream(100)) break
      expect(await collect(trx.selectFrom('notes').selectAll().stream(100))).toHaveLength(250)
      await trx.insertInto('notes').values({ id: 251, text: 'y' }).execute()
    })
    expect(await collect(db.selectFrom('notes').selectAll().stream())).toHaveLength(251)
    await db.destroy()
  })

  test('come from a prepared statement once its text is used often', async () => {
    await using database = await openOne()
    for (let n = 0; n < 4; n += 1) await collect(database.stream(all(database), { chunkSize: 400 }))
    const names = await database.query<{ statement: string }>(sql`select statement from pg_prepared_statements`)
    expect(names.filter(({ statement }) => statement.includes('"notes"'))).toHaveLength(1)
    await sql`alter table notes add column extra int default 7`.execute(database.db)
    await sql`deallocate all`.execute(database.db)
    expect(await collect(database.stream(all(database)))).toHaveLength(1_000)
  })

  test('come after the plan has changed', async () => {
    await using database = await openOne()
    const star = (): Promise<object[]> => collect(database.stream(database.db.selectFrom('notes').selectAll().limit(1)))
    for (let n = 0; n < 4; n += 1) await star()
    await sql`alter table notes add column extra int default 7`.execute(database.db)
    expect(await star()).toEqual([expect.objectContaining({ extra: 7 })])
  })

  test('come from the embedded PostgreSQL', async () => {
    await using database = await createDatabase({ postgres: { embedded: { dataDir: 'memory' } }, redis: false })
    const rows = (): AsyncIterable<{ n: number }> => database.stream(count(1_000), { chunkSize: 100 })
    expect(await collect(rows())).toHaveLength(1_000)
    for await (const _row of rows()) break
    await database.transaction(async () => {
      for await (const { n } of rows()) if (n === 150) break
      expect(await collect(rows())).toHaveLength(1_000)
    })
    const failing = database.stream(sql`select 1 / (n - 500) from generate_series(1, 1000) n`, { chunkSize: 100 })
    await expect(collect(failing)).rejects.toMatchObject({ code: 'INVALID_DATA' })
    expect(await database.queryCount(sql`select 7`)).toBe(7)
  })

  test('come through PgBouncer in transaction mode, while others use its connections', async () => {
    const bouncer = await startPgBouncer(url, { poolSize: 2 })
    await using stack = new AsyncDisposableStack()
    stack.defer(() => bouncer.stop())
    const through = new URL(bouncer.url)
    through.pathname = new URL(url).pathname
    await using database = await open({ url: through.href, pool: { max: 4 } })
    const others = Promise.all(Array.from({ length: 200 }, (_, n) => database.queryValue(sql`select ${n}::int`)))
    for (let n = 0; n < 4; n += 1) {
      const ids = await collect(database.stream(all(database), { chunkSize: 50 }))
      expect(ids.map(({ id }) => id)).toEqual(Array.from({ length: 1_000 }, (_, i) => i + 1))
    }
    for (let n = 0; n < 20; n += 1) for await (const _row of database.stream(all(database), { chunkSize: 10 })) break
    expect(await others).toEqual(Array.from({ length: 200 }, (_, n) => n))
    await database.transaction(async () => {
      await database.query(sql`update notes set text = 'x' where id = 1`)
      expect(await collect(database.stream(all(database), { chunkSize: 300 }))).toHaveLength(1_000)
    })
  })
})

describe('a reader that leaves', () => {
  test('a thousand times leaves the same clean connection', async () => {
    await using database = await openOne()
    const pid = await pidOf(database)
    for (let n = 0; n < 1_000; n += 1) {
      for await (const { id } of database.stream(all(database), { chunkSize: 1 + (n % 50) })) if (id >= n % 60) break
    }
    expect(await pidOf(database)).toBe(pid)
    expect(database.stats().pool).toMatchObject({ total: 1, idle: 1 })
  })

  test('by an error gets that error, and the connection goes back', async () => {
    await using database = await openOne()
    const boom = new Error('boom')
    const failed = (async () => {
      for await (const _row of database.stream(all(database), { chunkSize: 10 })) throw boom
    })()
    await expect(failed).rejects.toBe(boom)
    expect(database.stats().pool.idle).toBe(1)
  })

  test('stops the server at once although the next rows take long', async () => {
    await using database = await open({ pipeline: false, pool: { max: 2 } })
    const slow = sql<{
      pid: number
    }>`select pg_backend_pid() as pid, case when n > 10 then pg_sleep(30) end from generate_series(1, 100) n`
    let pid = 0
    for await (const row of database.stream(slow, { chunkSize: 10 })) {
      pid = row.pid
      break
    }
    await vi.waitUntil(async () => (await running(database, 'pg_sleep(30)')) === 0, 1_000)
    await vi.waitUntil(() => database.stats().pool.holders.length === 0)
    expect(await database.queryCount(sql`select count(*) from pg_stat_activity where pid = ${pid}`)).toBe(1)
  })

  test('before the first row stops the server, and its question is answered with the end', async () => {
    await using database = await open()
    const stream = database.stream(sql`select pg_sleep(30)`)
    const first = stream.next()
    await vi.waitUntil(async () => (await running(database, 'pg_sleep(30)')) === 1)
    await stream.return()
    expect(await first).toEqual({ value: undefined, done: true })
    await vi.waitUntil(async () => (await running(database, 'pg_sleep(30)')) === 0, 1_000)
    await vi.waitUntil(() => database.stats().pool.holders.length === 0)
  })

  test('while it waits for a connection takes none', async () => {
    await using database = await openOne()
    await database.transaction(async () => {
      await database.query(sql`select 1`)
      const waiting = outside(async () => {
        const stream = database.stream(count(1))
        const first = stream.next()
        await vi.waitUntil(() => database.stats().pool.waiting === 1)
        await stream.return()
        return first
      })
      void waiting.then((result) => expect(result).toEqual({ value: undefined, done: true }))
      await vi.waitUntil(() => database.stats().pool.waiting === 1)
    })
    expect(await database.queryCount(sql`select 1`)).toBe(1)
  })

  test('without having begun has borrowed nothing', async () => {
    await using database = await openOne()
    const stream = database.stream(sql`select 1 / 0`)
    expect(database.stats().pool.idle).toBe(1)
    await stream.return()
    expect(await stream.next()).toEqual({ value: undefined, done: true })
    expect(database.stats().pool.idle).toBe(1)
  })

  test('with await using is one', async () => {
    await using database = await openOne()
    {
      await using stream = database.stream(all(database), { chunkSize: 10 })
      await stream.next()
      expect(database.stats().pool.idle).toBe(0)
    }
    expect(database.stats().pool.idle).toBe(1)
  })

  test('and never says so is reported as a leak, with the place; one that reads on is not', async () => {
    const leaks: LeaseHolder[] = []
    await using database = await open({ pool: { leakWarningMs: 100, drainTimeoutMs: 10 } })
    database.events.on('leak', (holder) => leaks.push(holder))
    const steady = database.stream(count(1_000), { chunkSize: 1 })
    async function forgetful(): Promise<void> {
      await database.stream(all(database), { chunkSize: 10 }).next()
      await all(database).stream(10).next()
    }
    await forgetful()
    await vi.waitUntil(async () => (await steady.next()) && leaks.length >= 2)
    await steady.return()
    expect(leaks).toHaveLength(2)
    for (const leak of leaks) {
      expect(leak).toMatchObject({ purpose: 'a stream', lastSql: expect.stringContaining('"notes"') as string })
      expect(leak.callSite).toMatch(/forgetful.*streams\.test\.ts/)
    }
  })
})

describe('a signal', () => {
  test.each(['waiting for the first row', 'between rows', 'waiting for the next row'])(
    'ends a stream while it is %s, and stops the server',
    async (when) => {
      await using database = await openOne()
      const pid = await pidOf(database)
      const slowFrom = when === 'waiting for the first row' ? 0 : when === 'between rows' ? 1_000 : 10
      const slow = sql`select n, case when n > ${slowFrom} then pg_sleep(30) end from generate_series(1, 100) n`
      const controller = new AbortController()
      const reason = new Error('the user left')
      let read = 0
      const failed = (async () => {
        if (when === 'waiting for the first row') setTimeout(() => controller.abort(reason), 50)
        for await (const _row of database.stream(slow, { chunkSize: 10, signal: controller.signal })) {
          read += 1
          if (when === 'between rows' && read === 5) controller.abort(reason)
          if (when === 'waiting for the next row' && read === 10) setTimeout(() => controller.abort(reason), 50)
        }
      })()
      await expect(failed).rejects.toBe(reason)
      expect(read).toBe(when === 'waiting for the first row' ? 0 : when === 'between rows' ? 5 : 10)
      expect(await pidOf(database)).toBe(pid)
      await expect.poll(() => running(database, 'pg_sleep(30)')).toBe(0)
    },
  )

  test('that is aborted already lets nothing begin', async () => {
    await using database = await openOne()
    const reason = new Error('no')
    const stream = database.stream(sql`select 1 / 0`, { signal: AbortSignal.abort(reason) })
    await expect(stream.next()).rejects.toBe(reason)
    expect(await stream.next()).toEqual({ value: undefined, done: true })
    expect(database.stats().pool.idle).toBe(1)
  })

  test("of Kysely's own stream does the same", async () => {
    await using database = await openOne()
    const controller = new AbortController()
    const reason = new Error('enough')
    const rows = database.db
      .selectFrom('notes')
      .select(sql`case when id > 10 then pg_sleep(30) end`.as('slept'))
      .orderBy('id')
      .stream({ chunkSize: 10, signal: controller.signal })
    setTimeout(() => controller.abort(reason), 100)
    await expect(collect(rows)).rejects.toBe(reason)
    expect(await database.queryCount(sql`select 1`)).toBe(1)
  })

  test('a hundred times at random moments never hits the next statement', async () => {
    await using database = await open({ pipeline: false, pool: { max: 2 } })
    for (let n = 0; n < 100; n += 1) {
      const controller = new AbortController()
      setTimeout(() => controller.abort(new Error('enough')), Math.random() * 5)
      await collect(database.stream(all(database), { chunkSize: 5, signal: controller.signal })).catch(() => undefined)
      expect(await database.queryValue(sql`select ${n}::int`)).toBe(n)
    }
  })
})

describe('a deadline', () => {
  test('holds for each chunk, in which the time of the reader does not count', async () => {
    await using database = await openOne()
    let read = 0
    for await (const _row of database.stream(count(4), { chunkSize: 1, chunkTimeoutMs: 300 })) {
      const since = performance.now()
      await vi.waitUntil(() => performance.now() - since > 350, { interval: 5 })
      read += 1
    }
    expect(read).toBe(4)
    const slow = sql`select n, case when n > 2 then pg_sleep(30) end from generate_series(1, 100) n`
    const start = performance.now()
    await expect(collect(database.stream(slow, { chunkSize: 1, chunkTimeoutMs: 100 }))).rejects.toMatchObject({
      code: 'QUERY_TIMEOUT',
      message: expect.stringContaining('chunkTimeoutMs') as string,
    })
    expect(performance.now() - start).toBeLessThan(2_000)
    await expect.poll(() => running(database, 'pg_sleep(30)')).toBe(0)
  })

  test('is that of queries when none is given, and covers the wait for a connection', async () => {
    await using database = await openOne({ queryTimeoutMs: 100 })
    await expect(collect(database.stream(sql`select pg_sleep(30)`))).rejects.toMatchObject({ code: 'QUERY_TIMEOUT' })
    await database.transaction(async () => {
      await database.query(sql`select 1`)
      await expect(outside(() => collect(database.stream(count(1))))).rejects.toMatchObject({ code: 'POOL_TIMEOUT' })
    })
  })

  test('holds on a server that freezes in the middle of a row', async () => {
    await using proxy = await startProxy({ to: url })
    await using database = await openOne({ url: proxy.url, pool: { max: 1, drainTimeoutMs: 10 } })
    proxy.on({ from: 'server', message: 'DataRow' }, 'stall', { nth: 150 })
    let read = 0
    const failed = (async () => {
      for await (const _row of database.stream(all(database), { chunkSize: 100, chunkTimeoutMs: 100 })) read += 1
    })()
    await expect(failed).rejects.toMatchObject({ code: 'QUERY_TIMEOUT' })
    expect(read).toBe(100)
    proxy.thaw()
    expect(await database.queryCount(sql`select 1`)).toBe(1)
  })
})

describe('in a transaction', () => {
  test('a stream sees what the transaction wrote, begins it in one breath, and leaves it usable', async () => {
    await using proxy = await startProxy({ to: url })
    await using database = await openOne({ url: proxy.url })
    const syncs = proxy.count('client', 'Sync')
    await database.transaction(async () => {
      expect(await collect(database.stream(all(database), { chunkSize: 10_000 }))).toHaveLength(1_000)
      expect(proxy.count('client', 'Sync')).toBe(syncs + 1)
      await database.query(sql`insert into notes values (1001, 'new')`)
      await database.transaction(async () => {
        for await (const { id } of database.stream(all(database), { chunkSize: 10 })) if (id === 15) break
        expect(await collect(all(database).stream(100))).toHaveLength(1_001)
      })
      expect(await database.queryCount(sql`select count(*) from notes`)).toBe(1_001)
    })
    expect(await database.queryCount(sql`select count(*) from notes`)).toBe(1_001)
  })

  test('nothing else runs inside its loop, in whichever way it is asked for', async () => {
    await using database = await openOne()
    const byId = database.prepare(() => all(database).where('id', '=', 1))
    const tries: (() => Promise<unknown>)[] = [
      () => database.query(sql`select 1`),
      () => all(database).execute(),
      () => byId({}),
      () => database.transaction(() => Promise.resolve(1)),
      () => database.withLock('x', () => Promise.resolve(1)),
      () => database.db.transaction().execute((trx) => trx.selectFrom('notes').selectAll().execute()),
      () => collect(database.stream(count(1))),
      () => collect(all(database).stream()),
    ]
    for (const attempt of tries) {
      await database.transaction(async () => {
        for await (const _row of database.stream(all(database), { chunkSize: 10_000 })) {
          await expect(attempt()).rejects.toMatchObject({ code: 'TRANSACTION_MISUSE' })
          break
        }
        expect(await database.queryCount(sql`select 1`)).toBe(1)
      })
    }
  })

  test('hooks can be added inside its loop', async () => {
    await using database = await openOne()
    const mailed: number[] = []
    await database.transaction(async () => {
      for await (const { n } of database.stream(count(3))) database.afterCommit(() => mailed.push(n))
    })
    expect(mailed).toEqual([1, 2, 3])
  })

  test('on a connection of Kysely the same holds, and an abandoned stream does not keep the connection', async () => {
    await using database = await openOne()
    await database.db.connection().execute(async (db) => {
      for await (const _row of db.selectFrom('notes').selectAll().stream(10)) {
        await expect(db.selectFrom('notes').selectAll().execute()).rejects.toMatchObject({ code: 'TRANSACTION_MISUSE' })
        break
      }
      expect(await db.selectFrom('notes').selectAll().execute()).toHaveLength(1_000)
      await db.selectFrom('notes').selectAll().stream(10).next()
    })
    expect(await database.queryCount(sql`select 1`)).toBe(1)
    const trx = await database.db.startTransaction().execute()
    const abandoned = trx.selectFrom('notes').selectAll().stream(10)
    await abandoned.next()
    await expect(trx.commit().execute()).rejects.toMatchObject({ code: 'TRANSACTION_MISUSE' })
    await abandoned.return?.()
    await trx.commit().execute()
    const failed = database.db.transaction().execute((inner) => inner.selectFrom('notes').selectAll().stream(10).next())
    await expect(failed).rejects.toMatchObject({ code: 'TRANSACTION_MISUSE' })
    expect(await database.queryCount(sql`select 1`)).toBe(1)
  })

  test('a stream that was not read to its end or left fails the transaction', async () => {
    await using database = await openOne()
    let stream: AsyncIterator<unknown> | undefined
    const failed = database.transaction(async () => {
      await database.query(sql`update notes set text = 'x'`)
      stream = database.stream(all(database), { chunkSize: 10 })
      for (let n = 0; n < 10; n += 1) await stream.next()
    })
    await expect(failed).rejects.toMatchObject({
      code: 'TRANSACTION_MISUSE',
      sql: expect.stringContaining('"notes"') as string,
    })
    await expect(stream?.next()).rejects.toMatchObject({ code: 'QUERY_CANCELED' })
    expect(await database.queryCount(sql`select count(*) from notes where text = 'x'`)).toBe(0)
  })

  test('a stream that was made in it and is read after it is misuse', async () => {
    await using database = await openOne()
    const stream = await database.transaction(() => Promise.resolve({ rows: database.stream(count(3)) }))
    await expect(collect(stream.rows)).rejects.toMatchObject({ code: 'TRANSACTION_MISUSE' })
  })

  test('its end by a deadline ends the stream, and the server stops', async () => {
    await using database = await open({ pipeline: false, pool: { max: 2 } })
    const slow = sql`select n, case when n > 3 then pg_sleep(30) end from generate_series(1, 100) n`
    const failed = database.transaction(() => collect(database.stream(slow, { chunkSize: 1 })), { timeoutMs: 150 })
    await expect(failed).rejects.toMatchObject({ code: 'TRANSACTION_TIMEOUT' })
    await expect.poll(() => running(database, 'pg_sleep(30)')).toBe(0)
  })

  test('a failure in the middle fails it, and a savepoint undoes that', async () => {
    await using database = await openOne()
    const failing = sql`select 1 / (n - 50) from generate_series(1, 100) n`
    const swallowed = database.transaction(async () => {
      await database.query(sql`update notes set text = 'x'`)
      await collect(database.stream(failing, { chunkSize: 10 })).catch(() => undefined)
    })
    await expect(swallowed).rejects.toMatchObject({ code: 'TRANSACTION_ABORTED' })
    await database.transaction(async () => {
      await database.query(sql`update notes set text = 'y'`)
      const nested = database.transaction(() => collect(database.stream(failing, { chunkSize: 10 })))
      await expect(nested).rejects.toMatchObject({ code: 'INVALID_DATA', retry: 'none' })
    })
    expect(await database.queryCount(sql`select count(*) from notes where text = 'y'`)).toBe(1_000)
  })
})

describe('a failure', () => {
  test('of the server comes typed after the rows before it, and leaves the connection', async () => {
    await using database = await openOne()
    const pid = await pidOf(database)
    const failing = sql<{ n: number }>`select 1 / (n - 55) as n from generate_series(1, 100) n`
    let read = 0
    const failed = (async () => {
      for await (const _row of database.stream(failing, { chunkSize: 10 })) read += 1
    })()
    await expect(failed).rejects.toMatchObject({
      code: 'INVALID_DATA',
      sqlState: '22012',
      sql: expect.stringContaining('generate_series') as string,
    })
    expect(read).toBe(50)
    await expect(collect(database.stream(sql`select * from nowhere`))).rejects.toMatchObject({
      code: 'UNDEFINED_OBJECT',
    })
    expect(await pidOf(database)).toBe(pid)
  })

  test('of a parameter, an option, or several statements in one text is told before anything runs', async () => {
    await using database = await openOne()
    const circular: { self?: unknown } = {}
    circular.self = circular
    await expect(collect(database.stream(sql`select ${circular}::jsonb`))).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    })
    for (const chunkSize of [0, -1, 1.5, Number.NaN])
      expect(() => database.stream(count(1), { chunkSize })).toThrow(/chunkSize/)
    await expect(collect(all(database).stream(0))).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await expect(collect(database.stream(sql`select 1; delete from notes`))).rejects.toMatchObject({
      code: 'SYNTAX_ERROR',
      message: expect.stringContaining('multiple commands') as string,
    })
    expect(await database.queryCount(sql`select count(*) from notes`)).toBe(1_000)
  })

  test('of COPY is told, and the connection goes on', async () => {
    await using database = await openOne()
    const pid = await pidOf(database)
    const copies = [sql`copy notes to stdout`, sql`copy (select 1 where false) to stdout`, sql`copy notes from stdin`]
    for (const copy of copies) {
      await expect(collect(database.stream(copy))).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringContaining('database.copy') as string,
      })
      expect(await pidOf(database)).toBe(pid)
    }
    for (const copy of [copies[0], copies[2]]) {
      await expect(database.query(copy as (typeof copies)[0])).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringContaining('database.copy') as string,
      })
      expect(await pidOf(database)).toBe(pid)
    }
  })

  test('of a parser rejects the stream and nothing else', async () => {
    await using database = await openOne()
    const pid = await pidOf(database)
    const macaddr = 829
    types.setTypeParser(macaddr, (text) => {
      if (text.endsWith('32')) throw new Error('cannot read that')
      return text
    })
    try {
      const addresses = sql`select ('08:00:2b:01:02:' || lpad(n::text, 2, '0'))::macaddr as mac from generate_series(1, 60) n`
      let read = 0
      const failed = (async () => {
        for await (const _row of database.stream(addresses, { chunkSize: 10 })) read += 1
      })()
      await expect(failed).rejects.toMatchObject({ code: 'INVALID_DATA' })
      expect(read).toBe(30)
      expect(await pidOf(database)).toBe(pid)
    } finally {
      types.setTypeParser(macaddr, (text) => text)
    }
  })

  test('of the connection before the first row is repeated, after it is not', async () => {
    await using proxy = await startProxy({ to: url })
    await using database = await openOne({ url: proxy.url, retry: { attempts: 3, baseDelayMs: 1, maxDelayMs: 5 } })
    const heard: QueryEvent[] = []
    database.events.on('query', (event) => heard.push(event))
    proxy.on({ from: 'server', message: 'DataRow' }, 'reset')
    expect(await collect(database.stream(all(database)))).toHaveLength(1_000)
    expect(heard.at(-1)).toMatchObject({ attempts: 2, rowCount: 1_000 })
    // In order: what came before a reset may be lost to it.
    proxy.on({ from: 'server', message: 'DataRow' }, 'close', { nth: 350 })
    let read = 0
    const failed = (async () => {
      for await (const _row of database.stream(all(database), { chunkSize: 100 })) read += 1
    })()
    await expect(failed).rejects.toMatchObject({ code: 'CONNECTION_LOST' })
    expect(read).toBe(300)
    expect(heard.at(-1)).toMatchObject({ attempts: 1, error: 'CONNECTION_LOST', rowCount: 300 })
    expect(await database.queryCount(sql`select 1`)).toBe(1)
  })

  test('of a backend that is killed is told, in a transaction too, which then runs again', async () => {
    await using database = await open({ pool: { max: 2 } })
    const killed = async (): Promise<number> => {
      let read = 0
      for await (const { pid } of database.stream(
        sql<{ pid: number }>`select pg_backend_pid() as pid from generate_series(1, 5000)`,
        { chunkSize: 100 },
      )) {
        read += 1
        if (read === 150) await outside(() => database.query(sql`select pg_terminate_backend(${pid}, 1000)`))
      }
      return read
    }
    await expect(killed()).rejects.toMatchObject({ code: 'SERVER_SHUTDOWN' })
    let attempts = 0
    await database.transaction(async () => {
      attempts += 1
      if (attempts === 1) await killed()
    })
    expect(attempts).toBe(2)
  })

  test('that speaks of the health of the server counts for the breaker', async () => {
    await using proxy = await startProxy({ to: url })
    await using database = await openOne({
      url: proxy.url,
      retry: false,
      breaker: { volumeThreshold: 4, resetTimeoutMs: 60_000 },
    })
    proxy.on({ from: 'server', message: 'DataRow' }, 'reset', { nth: 150, times: Number.POSITIVE_INFINITY })
    for (let n = 0; n < 20 && database.stats().breaker === 'closed'; n += 1)
      await collect(database.stream(all(database), { chunkSize: 100 })).catch(() => undefined)
    expect(database.stats().breaker).toBe('open')
    await expect(collect(database.stream(count(1)))).rejects.toMatchObject({ code: 'CIRCUIT_OPEN' })
  })
})

test('an event tells of a stream at its end, and stats while it runs', async () => {
  await using database = await openOne()
  const heard: QueryEvent[] = []
  database.events.on('query', (event) => heard.push(event))
  const stream = database.stream(count(250), { chunkSize: 100 })
  await stream.next()
  expect(database.stats().pool.holders).toMatchObject([
    { purpose: 'a stream', lastSql: expect.stringContaining('generate_series') as string },
  ])
  expect(heard).toEqual([])
  await collect(stream)
  await collect(database.stream(sql`select 1 / 0`)).catch(() => undefined)
  await database.transaction(() => collect(database.stream(count(3))))
  for await (const _row of database.stream(count(1_000), { chunkSize: 100 })) break
  expect(heard).toEqual([
    expect.objectContaining({ rowCount: 250, attempts: 1, inTransaction: false, error: undefined }),
    expect.objectContaining({ rowCount: 0, error: 'INVALID_DATA' }),
    expect.objectContaining({ rowCount: 3, inTransaction: true }),
    expect.objectContaining({ error: undefined }),
  ])
})

test('a value whose own conversion sends a statement does not mix the two up', async () => {
  for (const pipeline of [false as const, { connections: 1 }]) {
    await using database = await open({ pipeline, preparedStatements: { threshold: 1 } })
    if (pipeline) await vi.waitUntil(() => database.stats().pipeline?.connections === 1)
    const inner: Promise<unknown>[] = []
    const asked = (n: number) => database.db.selectNoFrom(sql<number>`${n}::int`.as('n'))
    const nosy = (n: number) => ({
      toPostgres() {
        inner.push(database.query(asked(n)))
        return String(n)
      },
    })
    const outer = (n: number) => database.query(database.db.selectNoFrom(sql`${'x'}::text || ${nosy(n)}`.as('n')))
    const results = await Promise.all(Array.from({ length: 20 }, (_, n) => outer(n)))
    expect(results).toEqual(Array.from({ length: 20 }, (_, n) => [{ n: `x${n}` }]))
    expect(await Promise.all(inner)).toEqual(Array.from({ length: 20 }, (_, n) => [{ n }]))
    inner.length = 0
    await database.transaction(async () => {
      expect(await outer(7)).toEqual([{ n: 'x7' }])
      expect(await Promise.all(inner)).toEqual([[{ n: 7 }]])
    })
  }
})
