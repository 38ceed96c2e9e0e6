import { AsyncResource } from 'node:async_hooks'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { CamelCasePlugin, Kysely, type LogEvent, sql } from 'kysely'
import { beforeEach, describe, expect, test, vi } from 'vitest'
import {
  createDatabase,
  type Database,
  type DatabaseOptions,
  type Parameters,
  postgresDialect,
  type QueryEvent,
} from '../../src/index.ts'
import { freshDatabaseUrl } from '../support/database.ts'

interface DB {
  notes: { id: number; text: string | null }
}

let url = ''

beforeEach(async () => {
  url = await freshDatabaseUrl('empty')
})

async function open(postgres: DatabaseOptions['postgres'] = {}): Promise<Database<DB>> {
  const database = await createDatabase<DB>({ postgres: { url, ...postgres }, redis: false })
  await sql`create table if not exists notes (id int primary key, text text)`.execute(database.db)
  await sql`insert into notes select n, 'note ' || n from generate_series(1, 100) n on conflict do nothing`.execute(
    database.db,
  )
  return database
}

const byId = (database: Database<DB>, id: number): Promise<DB['notes'] | undefined> =>
  database.db.selectFrom('notes').selectAll().where('id', '=', id).executeTakeFirst()

const pipelineIsUp = (database: Database<DB>): Promise<boolean> =>
  vi.waitUntil(() => database.stats().pipeline?.connections === 2)

/** Runs a call as another request would make it, outside the transaction that surrounds it. */
const outside = AsyncResource.bind((work: () => Promise<unknown>) => work())

describe('the pipeline', () => {
  test('carries many single statements at once, and each gets its own answer', async () => {
    await using database = await open({ pool: { max: 1 } })
    await pipelineIsUp(database)
    const found = await Promise.all(Array.from({ length: 500 }, (_, n) => byId(database, (n % 100) + 1)))
    expect(found.map((note) => note?.text)).toEqual(Array.from({ length: 500 }, (_, n) => `note ${(n % 100) + 1}`))
  })

  test('lets a failing statement fail alone', async () => {
    await using database = await open({ pool: { max: 1 } })
    await pipelineIsUp(database)
    const outcomes = await Promise.allSettled(
      Array.from({ length: 50 }, (_, n) =>
        n % 5 === 0
          ? database.db.insertInto('notes').values({ id: 1, text: '' }).execute()
          : database.db.selectFrom('notes').select('id').where('id', '=', n).execute(),
      ),
    )
    expect(outcomes.map(({ status }) => status)).toEqual(
      Array.from({ length: 50 }, (_, n) => (n % 5 === 0 ? 'rejected' : 'fulfilled')),
    )
  })

  test('is not held up by a statement that is known to be slow', async () => {
    await using database = await open({ pool: { max: 2 } })
    await pipelineIsUp(database)
    const slow = (): Promise<unknown> =>
      database.db
        .selectNoFrom(sql`pg_sleep(0.3)`.as('slept'))
        .where(sql<boolean>`${1} = 1`)
        .execute()
    await slow()
    const sleeping = slow()
    await vi.waitUntil(() => database.stats().pool.holders.length === 1)
    expect(database.stats().pipeline?.inFlight).toBe(0)
    const start = performance.now()
    await byId(database, 1)
    expect(performance.now() - start).toBeLessThan(250)
    await sleeping
  })

  test('gives nothing more to a connection that is stuck with its present statement', async () => {
    await using database = await open({ pipeline: { connections: 1 }, pool: { max: 4 } })
    await vi.waitUntil(() => database.stats().pipeline?.connections === 1)
    const sleeping = database.db.selectNoFrom(sql`pg_sleep(0.3)`.as('slept')).execute()
    await vi.waitUntil(() => database.stats().pipeline?.inFlight === 1)
    const sentBefore = performance.now()
    await vi.waitUntil(() => performance.now() - sentBefore > 10, { interval: 2 })
    const start = performance.now()
    await byId(database, 1)
    expect(performance.now() - start).toBeLessThan(250)
    await sleeping
  })

  test('comes back after its connections were killed, while the pool serves', async () => {
    await using database = await open()
    await pipelineIsUp(database)
    await database.query(
      sql`select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`,
    )
    expect(await byId(database, 7)).toMatchObject({ id: 7 })
    await pipelineIsUp(database)
    expect(await byId(database, 8)).toMatchObject({ id: 8 })
  })

  test('can be switched off', async () => {
    await using database = await open({ pipeline: false })
    expect(await byId(database, 1)).toMatchObject({ id: 1 })
    expect(database.stats().pipeline).toBeUndefined()
  })
})

describe('prepared statements', () => {
  const prepared = (database: Database<DB>): Promise<{ name: string; statement: string }[]> =>
    database.query(sql`select name, statement from pg_prepared_statements order by name`)

  test('get a name with the third use of a text', async () => {
    await using database = await open({ pipeline: false, pool: { max: 1 } })
    for (const expected of [0, 0, 1, 1]) {
      await byId(database, 1)
      const names = (await prepared(database)).filter(({ statement }) => statement.includes('"notes"'))
      expect(names).toHaveLength(expected)
    }
  })

  test('are capped: the least recently used is deallocated', async () => {
    await using database = await open({
      pipeline: false,
      pool: { max: 1 },
      preparedStatements: { threshold: 1, max: 5 },
    })
    for (let n = 1; n <= 20; n += 1) {
      await database.db
        .selectFrom('notes')
        .select('id')
        .where('id', '<', 10)
        .limit(5)
        .$if(n % 2 === 0, (q) => q.offset(n))
        .execute()
      await database.query(sql`select ${sql.lit(n)} + ${1}::int as n`)
    }
    const names = await prepared(database)
    expect(names.length).toBeLessThanOrEqual(5)
    expect(names.some(({ statement }) => statement.startsWith('select 20 +'))).toBe(true)
  })

  test.each([true, false])('survive a change of their table, pipelined or not (%s)', async (isPipelined) => {
    await using database = await open(isPipelined ? { pool: { max: 1 } } : { pipeline: false, pool: { max: 1 } })
    if (isPipelined) await pipelineIsUp(database)
    const all = (): Promise<object[]> => database.db.selectFrom('notes').selectAll().where('id', '=', 1).execute()
    for (let n = 0; n < 5; n += 1) await all()
    await sql`alter table notes add column extra int default 7`.execute(database.db)
    expect(await all()).toEqual([{ id: 1, text: 'note 1', extra: 7 }])
    await sql`alter table notes drop column extra`.execute(database.db)
    const results = await Promise.all(Array.from({ length: 20 }, all))
    expect(results).toEqual(Array.from({ length: 20 }, () => [{ id: 1, text: 'note 1' }]))
  })

  test('that the server lost are prepared again without anyone noticing', async () => {
    await using database = await open({ pipeline: false, pool: { max: 1 } })
    for (let n = 0; n < 5; n += 1) await byId(database, 1)
    await sql`deallocate all`.execute(database.db)
    expect(await byId(database, 2)).toMatchObject({ id: 2 })
  })

  test("that the application's own EXECUTE does not find are its own mistake, and nothing is repeated", async () => {
    await using database = await open({ pipeline: false, pool: { max: 1 } })
    const attempts: number[] = []
    database.events.on('query', (event) => attempts.push(event.attempts))
    // With a parameter it goes the way of prepared statements, and is one itself from its third use on.
    const execute = (): Promise<unknown> => database.query(sql`execute nowhere`)
    for (let n = 0; n < 5; n += 1) {
      await expect(execute()).rejects.toMatchObject({ code: 'UNDEFINED_OBJECT', sqlState: '26000', retry: 'none' })
    }
    await database.db.connection().execute(async (connection) => {
      await sql`prepare mine as select 1`.execute(connection)
      await expect(sql`prepare mine as select 2`.execute(connection)).rejects.toMatchObject({
        code: 'QUERY_FAILED',
        sqlState: '42P05',
      })
    })
    expect(new Set(attempts)).toEqual(new Set([1]))
    for (let n = 0; n < 4; n += 1) await byId(database, 1)
    expect((await prepared(database)).some(({ name }) => name.startsWith('k_'))).toBe(true)
  })

  test('whose first preparation fails fail each caller with the real reason', async () => {
    await using database = await open({ preparedStatements: { threshold: 1 } })
    await pipelineIsUp(database)
    const wrong = (): Promise<unknown> =>
      database.db
        .selectFrom('nowhere' as 'notes')
        .selectAll()
        .execute()
    const outcomes = await Promise.allSettled(Array.from({ length: 20 }, wrong))
    for (const outcome of outcomes)
      expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'UNDEFINED_OBJECT' } })
    expect(await byId(database, 1)).toMatchObject({ id: 1 })
  })

  test('can be switched off', async () => {
    await using database = await open({ pipeline: false, pool: { max: 1 }, preparedStatements: false })
    for (let n = 0; n < 10; n += 1) await byId(database, 1)
    expect(await prepared(database)).toEqual([])
  })
})

describe('prepared typed queries', () => {
  test('are compiled once, and fill in their parameters in whatever order', async () => {
    await using database = await open()
    const between = database.prepare((p: Parameters<{ from: number; to: number; not: string }>) =>
      database.db
        .selectFrom('notes')
        .select('id')
        .where('id', '<=', p('to'))
        .where('id', '>=', p('from'))
        .where('text', '!=', p('not'))
        .orderBy('id'),
    )
    expect(await between({ from: 3, to: 5, not: 'note 4' })).toEqual([{ id: 3 }, { id: 5 }])
    expect(await between.first({ to: 9, not: '', from: 8 })).toEqual({ id: 8 })
    expect(between.sql).toContain('$3')
  })

  test('join the transaction they are called in', async () => {
    await using database = await open()
    const add = database.prepare((p: Parameters<{ id: number }>) =>
      database.db
        .insertInto('notes')
        .values({ id: p('id'), text: 'new' })
        .returning('id'),
    )
    const failed = database.transaction(async () => {
      expect(await add({ id: 1000 })).toEqual([{ id: 1000 }])
      throw new Error('boom')
    })
    await expect(failed).rejects.toThrow('boom')
    expect(await byId(database, 1000)).toBeUndefined()
  })

  test('refuse a missing value, and take null', async () => {
    await using database = await open()
    const set = database.prepare((p: Parameters<{ text: string | null }>) =>
      database.db
        .updateTable('notes')
        .set({ text: p('text') })
        .where('id', '=', 1)
        .returning('text'),
    )
    await expect(set({} as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    expect(await set({ text: null })).toEqual([{ text: null }])
  })
})

describe('deadlines and cancel', () => {
  const sleepers = (database: Database<DB>): Promise<number> =>
    database.queryCount(
      sql`select count(*) from pg_stat_activity where datname = current_database() and state = 'active' and query like '%pg_sleep(30)%' and pid <> pg_backend_pid()`,
    )

  test.each([true, false])(
    'a statement over its deadline fails in time and stops on the server (pipeline %s)',
    async (isPipelined) => {
      await using database = await open({ ...(isPipelined ? {} : { pipeline: false as const }) })
      if (isPipelined) await pipelineIsUp(database)
      const start = performance.now()
      const query = database.db.selectNoFrom(sql`pg_sleep(30)`.as('slept'))
      await expect(database.query(query, { timeoutMs: 100 })).rejects.toMatchObject({
        code: 'QUERY_TIMEOUT',
        retry: 'none',
      })
      expect(performance.now() - start).toBeLessThan(200)
      await vi.waitUntil(async () => (await sleepers(database)) === 0, 1_000)
      expect(await byId(database, 1)).toMatchObject({ id: 1 })
    },
  )

  test('those behind a statement that is stopped on a shared connection get their answers', async () => {
    await using database = await open({ pipeline: { connections: 1 }, pool: { max: 1 } })
    await vi.waitUntil(() => database.stats().pipeline?.connections === 1)
    const slow = database.query(database.db.selectNoFrom(sql`pg_sleep(30)`.as('slept')), { timeoutMs: 100 })
    const behind = Promise.all(Array.from({ length: 20 }, (_, n) => byId(database, n + 1)))
    await expect(slow).rejects.toMatchObject({ code: 'QUERY_TIMEOUT' })
    expect((await behind).map((note) => note?.id)).toEqual(Array.from({ length: 20 }, (_, n) => n + 1))
  })

  test('an aborted call rejects with the reason of its signal, and its connection is fit for the next', async () => {
    await using database = await open({ pipeline: false, pool: { max: 1 } })
    const controller = new AbortController()
    const query = database.query(sql`select pg_sleep(30)`, { signal: controller.signal })
    await vi.waitUntil(() => database.stats().pool.holders.length === 1)
    const reason = new Error('the user left')
    controller.abort(reason)
    await expect(query).rejects.toBe(reason)
    expect(await byId(database, 1)).toMatchObject({ id: 1 })
    expect(await sleepers(database)).toBe(0)
  })

  test('an aborted caller stops waiting for a connection', async () => {
    await using database = await open({ pipeline: false, pool: { max: 1 } })
    await database.transaction(async () => {
      await database.query(sql`select 1`)
      const waiting = outside(() => database.query(sql`select 1`, { signal: AbortSignal.timeout(20) }))
      await expect(waiting).rejects.toMatchObject({ name: 'TimeoutError' })
    })
    expect(database.stats().pool.waiting).toBe(0)
  })

  test("Kysely's own signal option cancels on request", async () => {
    await using database = await open()
    const controller = new AbortController()
    const query = sql`select pg_sleep(30)`.execute(database.db, {
      signal: controller.signal,
      inflightQueryAbortStrategy: 'cancel query',
    } as never)
    await vi.waitUntil(() => database.stats().pool.holders.length === 1)
    controller.abort(new Error('enough'))
    await expect(query).rejects.toThrow('enough')
    await vi.waitUntil(async () => (await sleepers(database)) === 0, 1_000)
  })

  test('a hundred cancels at random moments never hit the next statement', async () => {
    await using database = await open({ pipeline: false, pool: { max: 2 } })
    for (let n = 0; n < 100; n += 1) {
      const controller = new AbortController()
      const query = database.query(sql`select pg_sleep(${Math.random() / 500})`, { signal: controller.signal })
      setTimeout(() => controller.abort(new Error('enough')), Math.random() * 3)
      await query.catch(() => undefined)
      expect(await database.queryValue(sql`select ${n}::int as n`)).toBe(n)
    }
  })
})

describe('raw helpers', () => {
  test('give rows, a row, a value, a count, a boolean', async () => {
    await using database = await open()
    expect(await database.query(sql`select id from notes where id < ${3} order by id`)).toEqual([{ id: 1 }, { id: 2 }])
    expect(await database.queryOne(sql`select id from notes where id = ${-1}`)).toBeUndefined()
    expect(await database.queryOne(database.db.selectFrom('notes').selectAll().where('id', '=', 2))).toEqual({
      id: 2,
      text: 'note 2',
    })
    expect(await database.queryValue(sql`select max(id) from notes`)).toBe(100)
    expect(await database.queryCount(sql`select count(*) from notes`)).toBe(100)
    expect(await database.queryCount(sql`select 1 where false`)).toBe(0)
    expect(await database.queryBoolean(sql`select exists (select from notes where id = 1)`)).toBe(true)
    expect(await database.queryBoolean(sql`select false`)).toBe(false)
    await expect(database.queryCount(sql`select 'x'`)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })
})

describe('errors', () => {
  test('have the SQL, never its parameters, and the stack of the caller', async () => {
    await using database = await open()
    async function theCaller(): Promise<void> {
      await database.db.insertInto('notes').values({ id: 1, text: 'hunter2' }).execute()
    }
    const error = await theCaller().catch((thrown: unknown) => thrown as Error)
    expect(error).toMatchObject({ code: 'UNIQUE_VIOLATION', sql: 'insert into "notes" ("id", "text") values ($1, $2)' })
    expect((error as Error).stack).toContain('theCaller')
    expect(JSON.stringify(error) + String(error)).not.toContain('hunter2')
  })

  test('of a parameter that cannot be converted leave the connection as it was', async () => {
    await using database = await open({ pipeline: false, pool: { max: 1 } })
    const circular: { self?: unknown } = {}
    circular.self = circular
    for (let n = 0; n < 5; n += 1) {
      await expect(database.query(sql`select ${circular}::jsonb`)).rejects.toThrow(/circular/i)
    }
    expect(await byId(database, 1)).toMatchObject({ id: 1 })
    expect(database.stats().pool.total).toBe(1)
  })
})

describe('events', () => {
  test('tell of each query with its text, and are published on diagnostics channels', async () => {
    await using database = await open()
    const heard: QueryEvent[] = []
    const published: unknown[] = []
    const listener = (event: unknown): void => void published.push(event)
    const stop = database.events.on('query', (event) => heard.push(event))
    subscribe('kanta:query', listener)
    await byId(database, 1)
    await database.query(sql`select * from nowhere`).catch(() => undefined)
    unsubscribe('kanta:query', listener)
    stop()
    await byId(database, 1)
    expect(heard).toEqual([
      expect.objectContaining({
        sql: expect.stringContaining('"notes"') as string,
        rowCount: 1,
        attempts: 1,
        error: undefined,
      }),
      expect.objectContaining({ error: 'UNDEFINED_OBJECT' }),
    ])
    expect(published).toEqual(heard)
  })

  test('of a listener that throws leave the query alone', async () => {
    await using database = await open()
    database.events.on('query', () => {
      throw new Error('listener')
    })
    const warned = new Promise((resolve) => process.once('warning', resolve))
    expect(await byId(database, 1)).toMatchObject({ id: 1 })
    expect(await warned).toMatchObject({ message: expect.stringContaining('listener') as string })
  })

  test('and the logger tell of a connection that is kept too long, by the place that borrowed it', async () => {
    const warnings: string[] = []
    await using database = await createDatabase<DB>({
      postgres: { url, pool: { leakWarningMs: 20 } },
      redis: false,
      logger: { info: () => {}, warn: (message) => void warnings.push(message) },
    })
    async function forgetful(): Promise<void> {
      await database.transaction(async () => {
        await database.query(sql`select 1`)
        await vi.waitUntil(() => warnings.length > 0)
      })
    }
    await forgetful()
    expect(warnings[0]).toMatch(/a transaction at .*engine\.test\.ts.*transaction open, last select 1/)
  })
})

describe('shedding', () => {
  test('turns callers away when too many wait', async () => {
    await using database = await open({ pipeline: false, pool: { max: 1, maxWaiting: 2 } })
    const outcomes = await Promise.allSettled(
      Array.from({ length: 5 }, () => database.query(sql`select pg_sleep(0.05)`)),
    )
    const codes = outcomes.map((outcome) =>
      outcome.status === 'rejected' ? (outcome.reason as { code: string }).code : 'ok',
    )
    expect(codes).toEqual(['ok', 'ok', 'ok', 'POOL_OVERLOADED', 'POOL_OVERLOADED'])
  })

  test('and prewarming opens what is asked for', async () => {
    await using database = await open({ pool: { min: 3, max: 5 } })
    expect(database.stats().pool.total).toBe(3)
  })
})

describe('Kysely', () => {
  test('keeps its plugins, its log, withSchema and streams', async () => {
    const logged: LogEvent[] = []
    await using database = await createDatabase<{ notes: { id: number; someText: string } }>({
      postgres: { url },
      redis: false,
      plugins: [new CamelCasePlugin()],
      log: (event) => void logged.push(event),
    })
    await sql`create schema other`.execute(database.db)
    await sql`create table other.notes (id int, some_text text)`.execute(database.db)
    const { db } = database
    await db
      .withSchema('other')
      .insertInto('notes')
      .values([
        { id: 1, someText: 'a' },
        { id: 2, someText: 'b' },
      ])
      .execute()
    const rows: object[] = []
    for await (const row of db.withSchema('other').selectFrom('notes').selectAll().orderBy('id').stream(1))
      rows.push(row)
    expect(rows).toEqual([
      { id: 1, someText: 'a' },
      { id: 2, someText: 'b' },
    ])
    expect(logged.some((event) => event.level === 'query' && event.query.sql.includes('"other"."notes"'))).toBe(true)
    await expect(sql`select * from nowhere`.execute(db)).rejects.toMatchObject({ code: 'UNDEFINED_OBJECT' })
    expect(logged.at(-1)).toMatchObject({ level: 'error' })
  })

  test('is told where in the program a statement stands that failed inside a transaction, with a log as well', async () => {
    await using database = await createDatabase<DB>({ postgres: { url }, redis: false, log: () => undefined })
    const failing = database.db.transaction().execute((trx) => sql`select * from nowhere`.execute(trx))
    const limit = Error.stackTraceLimit
    await expect(failing).rejects.toMatchObject({ stack: expect.stringContaining('engine.test.ts') as string })
    expect(Error.stackTraceLimit).toBe(limit)
  })

  test('gets results that have nothing but what Kysely says', async () => {
    await using database = await open({ preparedStatements: { threshold: 1 } })
    const { db } = database
    const insert = (id: number): Promise<object> => sql`insert into notes values (${id}, 'x')`.execute(db)
    const inserted = { rows: [], numAffectedRows: 1n }
    expect({ ...(await insert(200)) }).toEqual(inserted)
    expect(await database.transaction(async () => ({ ...(await insert(201)) }))).toEqual(inserted)
    expect(Object.keys(await sql`select 1`.execute(db)).filter((key) => key !== 'numAffectedRows')).toEqual(['rows'])
  })

  describe('reads what was changed under it', () => {
    const columns = (rows: readonly object[]): string[] => Object.keys(rows[0] ?? {})
    const read = async (db: Kysely<DB>): Promise<string[]> =>
      columns(await db.selectFrom('notes').selectAll().where('id', '=', 1).execute())
    const alter = (db: Kysely<DB>): Promise<unknown> => sql`alter table notes add added int`.execute(db)
    const before = ['id', 'text']
    const after = ['id', 'text', 'added']

    test('in a transaction of either kind, and in one that is undone', async () => {
      await using database = await open({ preparedStatements: { threshold: 1 }, pipeline: false, pool: { max: 1 } })
      const { db } = database
      const runs: ((work: (inside: Kysely<DB>) => Promise<void>) => Promise<void>)[] = [
        (work) => db.transaction().execute(work),
        (work) => database.transaction(() => work(db), { attempts: 1 }),
        async (work) => {
          const controlled = await db.startTransaction().execute()
          await work(controlled)
          await controlled.commit().execute()
        },
      ]
      for (const run of runs) {
        expect(await read(db)).toEqual(before)
        const undone = database.transaction(
          async () => {
            expect(await read(db)).toEqual(before)
            await alter(db)
            expect(await read(db)).toEqual(after)
            throw new Error('undone')
          },
          { attempts: 1 },
        )
        await expect(undone).rejects.toThrow('undone')
        await run(async (inside) => {
          expect(await read(inside)).toEqual(before)
          await alter(inside)
          expect(await read(inside)).toEqual(after)
        })
        await db.transaction().execute(async (inside) => {
          expect(await read(inside)).toEqual(after)
          await sql`do 'begin alter table notes drop added; end'`.execute(inside)
          expect(await read(inside)).toEqual(before)
        })
      }
      // Names are used again afterwards.
      await read(db)
      const names = sql<{
        count: string
      }>`select count(*) from pg_prepared_statements where statement like '%from "notes"%'`
      expect((await names.execute(db)).rows).toEqual([{ count: '1' }])
    })

    test('in a transaction of Kysely, when another connection of this process has changed it', async () => {
      await using database = await open({ preparedStatements: { threshold: 1 }, pool: { max: 2 } })
      const { db } = database
      const both = (): Promise<string[][]> => Promise.all([0, 1].map(() => db.transaction().execute(read)))
      expect(await both()).toEqual([before, before])
      await alter(db)
      expect(await both()).toEqual([after, after])
      await sql`drop table notes`.execute(db)
      await sql`create table notes as select 1 as id, 2 as other`.execute(db)
      expect(await both()).toEqual([
        ['id', 'other'],
        ['id', 'other'],
      ])
    })

    test('on one connection, by itself and by another', async () => {
      await using database = await open({ preparedStatements: { threshold: 1 } })
      const other = new Kysely<DB>({ dialect: postgresDialect({ url, preparedStatements: { threshold: 1 } }) })
      await database.db.connection().execute(async (connection) => {
        expect(await read(connection)).toEqual(before)
        await alter(connection)
        expect(await read(connection)).toEqual(after)
        expect(await read(other)).toEqual(after)
        await sql`alter table notes drop added`.execute(other)
        expect(await read(connection)).toEqual(before)
        await alter(connection)
      })
      for (let n = 0; n < 5; n += 1) expect(await read(other)).toEqual(after)
      await other.destroy()
    })
  })

  test('of the user runs on the same engine through the dialect', async () => {
    const db = new Kysely<DB>({ dialect: postgresDialect({ url, pool: { max: 2 } }) })
    await sql`create table notes (id int primary key, text text)`.execute(db)
    await db.transaction().execute(async (trx) => {
      await trx.insertInto('notes').values({ id: 1, text: 'x' }).execute()
    })
    await expect(db.insertInto('notes').values({ id: 1, text: 'x' }).execute()).rejects.toMatchObject({
      code: 'UNIQUE_VIOLATION',
    })
    expect(await db.selectFrom('notes').selectAll().execute()).toEqual([{ id: 1, text: 'x' }])
    await db.destroy()
  })
})
