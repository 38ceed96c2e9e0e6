import { AsyncResource } from 'node:async_hooks'
import { sql } from 'kysely'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { createDatabase, createSagas, type Database, type DatabaseOptions, Repository, saga } from '../../src/index.ts'
import { openSandbox, type Sandbox, sandbox, type SandboxOptions } from '../../src/testing.ts'
import { closeAfterTest, freshDatabaseUrl } from '../support/database.ts'

interface DB {
  notes: { id: number; text: string }
  pairs: { a: number; b: number }
}

class Notes extends Repository<DB, 'notes', DB['notes'], { readonly id: 'id'; readonly text: 'text' }> {
  constructor(database: Database<DB>) {
    super(database, { table: 'notes', columns: { id: 'id', text: 'text' } })
  }
}

const schema = `
  create table notes (id int primary key, text text not null default '');
  create table pairs (a int constraint pairs_a_key primary key, b int constraint pairs_b_fkey references pairs deferrable initially deferred)`

const logger = { info: () => undefined, warn: () => undefined }
const outside = AsyncResource.bind((work: () => unknown) => work())

const servers: Readonly<Record<string, () => Promise<DatabaseOptions['postgres']>>> = {
  'a server': async () => ({ url: await freshDatabaseUrl('empty') }),
  'the embedded PostgreSQL': async () => ({ embedded: { dataDir: 'memory' } }),
}

describe.each(Object.keys(servers))('on %s', (kind) => {
  let database: Database<DB>

  // One for all: what a sandbox left there would be seen by the next test.
  beforeAll(async () => {
    const postgres = { ...(await servers[kind]?.()), pool: { acquireTimeoutMs: 1_000 } }
    database = closeAfterTest(await createDatabase<DB>({ postgres, redis: false, logger }))
    await database.query(sql.raw(schema))
  })

  afterAll(() => database.close())

  afterEach(async () => {
    await database.query(sql`delete from notes where id = 1`)
    const left = [...database.stats().pool.holders.map(({ purpose }) => purpose), ...(await ids(database))]
    if (left.length > 0) throw new Error(`A sandbox has left ${left.join(', ')}`)
  })

  const write = (to: Database<DB>, id: number): Promise<unknown> =>
    to.db.insertInto('notes').values({ id, text: '' }).execute()
  const ids = async (of: Database<DB>): Promise<number[]> =>
    (await of.db.selectFrom('notes').select('id').orderBy('id').execute()).map(({ id }) => id)
  const open = (options?: SandboxOptions): Promise<Sandbox<DB>> => openSandbox(database, options)

  test('whatever is done is undone at the end, and the connection is as it was', async () => {
    await write(database, 1)
    const result = await sandbox(database, async (inside) => {
      await write(inside, 2)
      await inside.transaction(() => write(inside, 3))
      await inside.db.transaction().execute((trx) => trx.insertInto('notes').values({ id: 4, text: '' }).execute())
      await new Notes(inside).create({ id: 5, text: 'by a repository' })
      await inside.insertMany(
        'notes',
        [6, 7].map((id) => ({ id, text: '' })),
      )
      await inside.query(sql`create table others ()`)
      await inside.query(sql`set application_name = 'changed'`)
      return ids(inside)
    })
    expect(result).toEqual([1, 2, 3, 4, 5, 6, 7])
    expect(await ids(database)).toEqual([1])
    expect(await database.queryValue(sql`select to_regclass('others') is null`)).toBe(true)
    expect(await database.queryValue(sql`show application_name`)).not.toBe('changed')
    expect(database.stats().pool.holders).toEqual([])
    // Again on the same connection, with what it has prepared.
    for (let round = 0; round < 5; round += 1) await sandbox(database, (inside) => write(inside, 2))
    expect(await ids(database)).toEqual([1])
  })

  test('it is undone when the test fails, with the error of the test', async () => {
    const failed = sandbox(database, async (inside) => {
      await write(inside, 1)
      throw new Error('expected 2 to be 3')
    })
    await expect(failed).rejects.toThrow('expected 2 to be 3')
    expect(await ids(database)).toEqual([])
  })

  test('a statement that fails outside of a transaction undoes itself alone', async () => {
    await using box = await open()
    await write(box.database, 1)
    await expect(write(box.database, 1)).rejects.toMatchObject({ code: 'UNIQUE_VIOLATION' })
    await expect(box.database.query(sql`selekt`)).rejects.toMatchObject({ code: 'SYNTAX_ERROR' })
    await expect(box.database.query(sql`insert into notes values (8); select 1/0`)).rejects.toThrow('division')
    await write(box.database, 2)
    expect(await ids(box.database)).toEqual([1, 2])
  })

  test('a transaction commits with its hooks, or is undone alone with its own', async () => {
    await using box = await open()
    const heard: string[] = []
    const { database: inside } = box
    await inside.transaction(async () => {
      await write(inside, 1)
      const inner = inside.transaction(async () => {
        await write(inside, 2)
        inside.afterRollback(() => heard.push('inner undone'))
        throw new Error('changed my mind')
      })
      await expect(inner).rejects.toThrow('changed my mind')
      inside.afterCommit(async () => heard.push(`committed, sees ${String(await ids(inside))}`))
    })
    const failed = inside.transaction(async () => {
      await write(inside, 3)
      inside.afterCommit(() => heard.push('never'))
      inside.afterRollback(() => heard.push('undone'))
      await write(inside, 1)
    })
    await expect(failed).rejects.toMatchObject({ code: 'UNIQUE_VIOLATION' })
    expect(heard).toEqual(['inner undone', 'committed, sees 1', 'undone'])
    expect(await ids(inside)).toEqual([1])
  })

  test('a swallowed error aborts a transaction as it does elsewhere, and nothing after it', async () => {
    await using box = await open()
    const { database: inside } = box
    await write(inside, 1)
    const aborted = inside.transaction(async () => {
      await write(inside, 2)
      await write(inside, 1).catch(() => undefined)
    })
    await expect(aborted).rejects.toMatchObject({ code: 'TRANSACTION_ABORTED' })
    expect(await ids(inside)).toEqual([1])
  })

  test('transactions and statements at the same time take turns', async () => {
    await using box = await open()
    const { database: inside } = box
    const bump = (by: number): Promise<void> =>
      inside.transaction(async () => {
        await write(inside, by)
        await write(inside, by + 100)
      })
    await Promise.all([bump(1), bump(2), write(inside, 50), bump(3), ids(inside)])
    expect(await ids(inside)).toEqual([1, 2, 3, 50, 101, 102, 103])
  })

  test('who waits in a transaction for something outside of it is told who holds the connection', async () => {
    await using box = await open()
    const { database: inside } = box
    const stuck = inside.transaction(async () => {
      await inside.query(sql`select 1`)
      await outside(() => inside.query(sql`select 2`))
    })
    await expect(stuck).rejects.toMatchObject({
      code: 'POOL_TIMEOUT',
      message: expect.stringContaining('sandbox.test.ts') as string,
    })
  })

  test('constraints that are deferred are checked when the code under test commits', async () => {
    await using box = await open()
    const { db } = box.database
    const orphan = () => db.insertInto('pairs').values({ a: 1, b: 2 }).execute()
    await expect(box.database.transaction(orphan)).rejects.toMatchObject({ constraint: 'pairs_b_fkey' })
    await expect(orphan()).rejects.toMatchObject({ constraint: 'pairs_b_fkey' })
    for (const b of [1, 2]) {
      await box.database.transaction(async () => {
        await db
          .insertInto('pairs')
          .values({ a: 2 * b, b: 2 * b + 1 })
          .execute()
        await db
          .insertInto('pairs')
          .values({ a: 2 * b + 1, b: 2 * b })
          .execute()
      })
    }
    expect(await box.database.queryCount(sql`select count(*) from pairs`)).toBe(4)
  })

  test('constraints that are deferred may come and go in it', async () => {
    await using box = await open()
    const { database: inside } = box
    await inside.query(
      sql`create table twins (a int primary key, b int references twins deferrable initially deferred)`,
    )
    await inside.transaction(() => inside.query(sql`drop table pairs`))
    await inside.transaction(async () => {
      await inside.query(sql`insert into twins values (1, 2)`)
      await inside.query(sql`insert into twins values (2, 1)`)
    })
    const alone = inside.transaction(() => inside.query(sql`insert into twins values (3, 4)`))
    await expect(alone).rejects.toMatchObject({ code: 'FOREIGN_KEY_VIOLATION' })
    expect(await inside.queryCount(sql`select count(*) from twins`)).toBe(2)
  })

  test('a transaction that only reads may not write, and the next one may', async () => {
    await using box = await open()
    const { database: inside } = box
    const refused = inside.transaction(() => write(inside, 1), { accessMode: 'read only' })
    await expect(refused).rejects.toMatchObject({ code: 'READ_ONLY' })
    await inside.transaction(() => write(inside, 2))
    await write(inside, 3)
    expect(await inside.transaction(() => ids(inside), { accessMode: 'read only' })).toEqual([2, 3])
    await write(inside, 4)
  })

  test('isolation beyond its own is refused, and had when it is opened with it', async () => {
    const asked = { isolationLevel: 'serializable' } as const
    await using box = await open()
    await expect(box.database.transaction(() => write(box.database, 1), asked)).rejects.toMatchObject({
      code: 'TRANSACTION_MISUSE',
      message: expect.stringContaining("{ isolationLevel: 'serializable' }") as string,
    })
    await write(box.database, 2)
    await box.close()
    await using isolated = await open(asked)
    await isolated.database.transaction(async () => {
      expect(await isolated.database.queryValue(sql`show transaction_isolation`)).toBe('serializable')
    }, asked)
  })

  test('streams, COPY and prepared queries work, also when they are left or fail', async () => {
    await using box = await open()
    const { database: inside } = box
    const rows = Array.from({ length: 5_000 }, (_, n) => ({ id: n, text: 'x'.repeat(50) }))
    expect(await inside.copy.from('notes', rows)).toEqual({ count: 5_000 })
    await expect(inside.copy.from('notes', [{ id: 1, text: 'again' }])).rejects.toMatchObject({
      code: 'UNIQUE_VIOLATION',
    })
    let seen = 0
    for await (const row of inside.stream(inside.db.selectFrom('notes').selectAll())) seen += row.id >= 0 ? 1 : 0
    expect(seen).toBe(5_000)
    for await (const row of inside.stream(inside.db.selectFrom('notes').selectAll())) if (row.id >= 0) break
    const failing = inside.stream(sql`select 1 / (3000 - id) from notes order by id`)
    const read = async (): Promise<void> => {
      for await (const row of failing) expect(row).toBeDefined()
    }
    await expect(read()).rejects.toThrow('division')
    let bytes = 0
    for await (const piece of inside.copy.to('notes')) bytes += piece.length
    expect(bytes).toBeGreaterThan(5_000 * 50)
    const byId = inside.prepare<{ text: string }, { id: number }>((p) =>
      inside.db.selectFrom('notes').select('text').where('id', '=', p('id')),
    )
    for (let id = 0; id < 10; id += 1) expect(await byId({ id })).toHaveLength(1)
    await inside.transaction(async () => {
      await inside.db.deleteFrom('notes').execute()
      await inside.copy.from('notes', [{ id: 1, text: 'new' }])
    })
    expect(await ids(inside)).toEqual([1])
  })

  test('a cache of its own has the rows of queries, and forgets them with what is written', async () => {
    await using box = await open()
    const { database: inside } = box
    const all = inside.db.selectFrom('notes').select('id').orderBy('id')
    await write(inside, 1)
    expect(await inside.cached(all)).toEqual([{ id: 1 }])
    expect(await inside.cached(all)).toEqual([{ id: 1 }])
    expect(inside.cache.stats().memoryHits).toBe(1)
    await inside.transaction(() => write(inside, 2))
    expect(await inside.cached(all)).toEqual([{ id: 1 }, { id: 2 }])
    await box.close()
    expect(await database.cached(all)).toEqual([])
  })

  test('what only a commit does is refused with an error that says so', async () => {
    await using box = await open()
    const { database: inside } = box
    await expect(inside.listen('orders')).rejects.toMatchObject({ code: 'NOTIFICATIONS_UNAVAILABLE' })
    await expect(inside.query(sql`listen orders`)).rejects.toMatchObject({ code: 'TRANSACTION_MISUSE' })
    await expect(inside.query(sql`prepare transaction 'x'`)).rejects.toMatchObject({ code: 'TRANSACTION_MISUSE' })
    await expect(inside.query(sql`vacuum notes`)).rejects.toMatchObject({ code: 'TRANSACTION_MISUSE' })
    await expect(inside.publish('orders', 'x')).rejects.toMatchObject({ code: 'REDIS_UNAVAILABLE' })
    await inside.notify('orders', 'x')
    expect(await inside.withLock('report', () => ids(inside))).toEqual([])
    expect(await inside.replica().selectFrom('notes').select('id').execute()).toEqual([])
  })

  test('transactions by hand are those of the sandbox, in whatever text they come', async () => {
    await using box = await open()
    const { database: inside } = box
    await inside.query(sql.raw('begin; insert into notes values (1); commit'))
    await inside.query(sql.raw('/* first */ begin; insert into notes values (2); rollback'))
    await inside.db.connection().execute(async (connection) => {
      await sql`start transaction`.execute(connection)
      await sql`insert into notes values (3)`.execute(connection)
      await sql`-- done\n end`.execute(connection)
      await sql`begin`.execute(connection)
      await sql`insert into notes values (4)`.execute(connection)
      await expect(sql`insert into notes values (4)`.execute(connection)).rejects.toMatchObject({
        code: 'UNIQUE_VIOLATION',
      })
      await sql`commit`.execute(connection)
    })
    await inside.query(sql`commit`)
    await inside.query(sql`rollback`)
    // Words of commands in what is none.
    const { prepared } = (await inside.queryOne<{ prepared: string }>(
      sql`select prepared from (values ('begin; commit')) as start (prepared) -- commit`,
    )) ?? { prepared: '' }
    expect(prepared).toBe('begin; commit')
    await expect(inside.query(sql.raw('commit; insert into notes values (9)'))).rejects.toMatchObject({
      code: 'TRANSACTION_MISUSE',
    })
    expect(await ids(inside)).toEqual([1, 3])
    await box.close()
    expect(await ids(database)).toEqual([])
  })

  test('sagas run in it, and try again', async () => {
    await using box = await open()
    const { database: inside } = box
    let attempts = 0
    const definition = saga<{ id: number }>('write').step('note', {
      retry: { attempts: 2, minDelayMs: 1, maxDelayMs: 2 },
      run: async ({ input }) => {
        attempts += 1
        if (attempts === 1) throw new Error('not yet')
        await write(inside, input.id)
      },
    })
    await using sagas = await createSagas(inside, [definition], { pollMs: 50, logger })
    await sagas.run(definition, { id: 1 }, { signal: AbortSignal.timeout(5_000) })
    expect([attempts, await ids(inside)]).toEqual([2, [1]])
  })

  test('in a sandbox there can be another', async () => {
    await using box = await open()
    await write(box.database, 1)
    await sandbox(box.database, async (inner) => {
      await inner.transaction(() => write(inner, 2))
      expect(await ids(inner)).toEqual([1, 2])
    })
    expect(await ids(box.database)).toEqual([1])
  })
})
