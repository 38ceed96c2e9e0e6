import { sql } from 'kysely'
import { Client } from 'pg'
import { beforeEach, expect, test, vi } from 'vitest'
import { createDatabase, type Database } from '../../src/index.ts'
import { faultProxy, openSandbox, type Proxy, sandbox } from '../../src/testing.ts'
import { closeAfterTest, freshDatabaseUrl } from '../support/database.ts'

interface DB {
  notes: { id: number }
}

let database: Database<DB>
let proxy: Proxy
let url = ''

beforeEach(async () => {
  url = await freshDatabaseUrl('empty')
  proxy = await faultProxy(url)
  const logger = { info: () => undefined, warn: () => undefined }
  database = closeAfterTest(
    await createDatabase<DB>({
      postgres: { url: proxy.url, pool: { max: 3, drainTimeoutMs: 100 } },
      redis: false,
      logger,
    }),
  )
  await database.query(sql`create table notes (id int primary key)`)
  return () => proxy.close()
})

const write = (to: Database<DB>, id: number): Promise<unknown> => to.db.insertInto('notes').values({ id }).execute()
const ids = async (of: Database<DB>): Promise<number[]> =>
  (await of.db.selectFrom('notes').select('id').orderBy('id').execute()).map(({ id }) => id)

test('a statement that runs out of time is undone alone, and the sandbox goes on', async () => {
  await using box = await openSandbox(database)
  const { database: inside } = box
  await write(inside, 1)
  const slow = inside.query(sql`insert into notes select 2 from pg_sleep(60)`, { timeoutMs: 50 })
  await expect(slow).rejects.toMatchObject({ code: 'QUERY_TIMEOUT' })
  await write(inside, 3)
  const aborted = inside.query(sql`insert into notes select 4 from pg_sleep(60)`, { signal: AbortSignal.timeout(50) })
  await expect(aborted).rejects.toThrow('timeout')
  expect(await ids(inside)).toEqual([1, 3])
})

test('a transaction that runs out of time is undone as a whole, and the sandbox goes on', async () => {
  await using box = await openSandbox(database)
  const { database: inside } = box
  await write(inside, 1)
  const slow = async (): Promise<void> => {
    await write(inside, 2)
    await inside.query(sql`select pg_sleep(60)`)
  }
  await expect(inside.transaction(slow, { timeoutMs: 100 })).rejects.toMatchObject({ code: 'TRANSACTION_TIMEOUT' })
  const statement = inside.transaction(async () => {
    await write(inside, 3)
    await inside.query(sql`select pg_sleep(60)`, { timeoutMs: 50 })
  })
  await expect(statement).rejects.toMatchObject({ code: 'QUERY_TIMEOUT' })
  expect(await ids(inside)).toEqual([1])
})

test('what was prepared before a connection was given up can be prepared again', async () => {
  await using box = await openSandbox(database)
  const { database: inside } = box
  for (let n = 0; n < 5; n += 1) await ids(inside)
  const slow = inside.transaction(() => inside.query(sql`select pg_sleep(60)`), { timeoutMs: 50 })
  await expect(slow).rejects.toMatchObject({ code: 'TRANSACTION_TIMEOUT' })
  let attempts = 0
  await inside.transaction(async () => {
    attempts += 1
    await ids(inside)
  })
  expect(attempts).toBe(1)
})

test('a limit on idle transactions is not one on the sandbox', async () => {
  await using box = await openSandbox(database)
  const { database: inside } = box
  await inside.transaction(async () => {
    await inside.query(sql`select set_config('idle_in_transaction_session_timeout', '100', true)`)
    await write(inside, 1)
  })
  expect(await inside.queryValue(sql`show idle_in_transaction_session_timeout`)).toBe('0')
  expect(await ids(inside)).toEqual([1])
})

test('a COPY and a stream that are given up leave nothing behind', async () => {
  await using box = await openSandbox(database)
  const { database: inside } = box
  const failing = function* (): Generator<{ id: number }> {
    for (let id = 0; id < 50_000; id += 1) yield { id }
    throw new Error('the file ended')
  }
  await expect(inside.copy.from('notes', failing())).rejects.toMatchObject({ code: 'BULK_SOURCE_FAILED' })
  const controller = new AbortController()
  const rows = inside.stream(sql`select n from generate_series(1, 10000000) n`, { signal: controller.signal })
  const read = async (): Promise<void> => {
    for await (const row of rows) if (row !== undefined) controller.abort(new Error('enough'))
  }
  await expect(read()).rejects.toThrow('enough')
  await write(inside, 1)
  expect(await ids(inside)).toEqual([1])
})

test('a serialization failure runs the transaction again, in the sandbox', async () => {
  await using box = await openSandbox(database)
  const { database: inside } = box
  await write(inside, 1)
  proxy.failNext({ sqlState: '40001', statement: /insert into "notes"/ })
  let attempts = 0
  await inside.transaction(async () => {
    attempts += 1
    await write(inside, 2)
  })
  expect([attempts, await ids(inside)]).toEqual([2, [1, 2]])
})

test('when its connection is lost, everything in it is, and it says so', async () => {
  const box = await openSandbox(database)
  await write(box.database, 1)
  proxy.cut()
  await expect(write(box.database, 2)).rejects.toMatchObject({ code: expect.stringMatching(/^CONNECTION_/) as string })
  await expect(ids(box.database)).rejects.toMatchObject({
    code: 'CONNECTION_FAILED',
    message: expect.stringContaining('Open another sandbox') as string,
  })
  await box.close()
  await vi.waitUntil(() => database.stats().pool.holders.length === 0)
  await sandbox(database, async (inside) => expect(await ids(inside)).toEqual([]))
})

test('closed in the middle of a transaction it undoes that, and lets go of its locks', async () => {
  await write(database, 1)
  const box = await openSandbox(database)
  const inside = Promise.withResolvers<void>()
  const over = Promise.withResolvers<void>()
  const open = box.database.transaction(async () => {
    await box.database.db.updateTable('notes').set({ id: 2 }).execute()
    await box.database.query(sql`select pg_advisory_lock(7)`)
    inside.resolve()
    await over.promise
  })
  open.catch(() => undefined)
  await inside.promise
  await box.close()
  const witness = new Client({ connectionString: url })
  await witness.connect()
  const { rows } = await witness.query<{ free: boolean; id: number }>(
    'select pg_try_advisory_lock(7) as free, id from notes for update nowait',
  )
  await witness.end()
  expect(rows).toEqual([{ free: true, id: 1 }])
  over.resolve()
  await expect(open).rejects.toMatchObject({ code: expect.any(String) as string })
})

test('a hook that asks the database does so after the connection is free, in and out of a sandbox', async () => {
  const single = closeAfterTest(
    await createDatabase<DB>({
      postgres: { url, pool: { max: 1, acquireTimeoutMs: 500 }, pipeline: false },
      redis: false,
    }),
  )
  const check = async (each: Database<DB>): Promise<void> => {
    const seen: number[][] = []
    await each.transaction(async () => {
      await write(each, 1)
      each.afterCommit(async () => seen.push(await ids(each)))
    })
    expect(seen).toEqual([[1]])
  }
  await sandbox(single, check)
  await check(single)
})

test('a role that may not use a schema with deferred constraints has a sandbox all the same', async () => {
  await database.query(sql`create schema hidden`)
  await database.query(sql`create table hidden.pairs (a int primary key deferrable initially deferred)`)
  const role = `kanta_small_${process.pid}`
  await database.query(sql`create role ${sql.id(role)} login password 'small'`)
  await database.query(sql`grant all on notes to ${sql.id(role)}`)
  const ofRole = new URL(url)
  ofRole.username = role
  ofRole.password = 'small'
  const small = await createDatabase<DB>({ postgres: { url: ofRole.href }, redis: false })
  try {
    await sandbox(small, async (inside) => {
      await inside.transaction(() => write(inside, 1))
      await inside.transaction(() => write(inside, 2))
      expect(await ids(inside)).toEqual([1, 2])
    })
  } finally {
    await small.close()
    await database.query(sql`drop owned by ${sql.id(role)}`)
    await database.query(sql`drop role ${sql.id(role)}`)
  }
})

test('what is no database of kanta is refused', async () => {
  await expect(openSandbox({} as Database<DB>)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
})
