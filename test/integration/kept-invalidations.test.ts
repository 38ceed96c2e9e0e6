import { sql } from 'kysely'
import { expect, test, vi } from 'vitest'
import { createDatabase, keepInvalidations } from '../../src/index.ts'
import { inRedis, one } from '../support/caches.ts'
import { freshDatabaseUrl } from '../support/database.ts'

const until = (isSo: () => boolean | Promise<boolean>): Promise<unknown> => vi.waitUntil(isSo, 10_000)

type Cached = Awaited<ReturnType<typeof one>>

const written = (database: Cached): Promise<number> => database.queryCount(sql`select count(*) from kanta.outbox`)

test('what a transaction ends is written with it, and taken back once it is done', async () => {
  const database = await one(inRedis)
  await using kept = await keepInvalidations(database, { delayMs: 60_000 })
  const sent: string[] = []
  database.events.on('query', ({ sql: text }) => sent.push(text))
  await database.cache.set('a', 1)
  expect(sent.some((text) => text.includes('insert into kanta.outbox'))).toBe(false)
  await database.transaction(async () => {
    await database.db.updateTable('items').set({ version: 2 }).execute()
    await database.transaction(() => database.cache.invalidate({ tags: ['t'] }))
    await database.cache.delete('a')
  })
  expect(await database.cache.get('a')).toBeUndefined()
  expect(sent.filter((text) => text.includes('insert into kanta.outbox'))).not.toEqual([])
  await until(async () => (await written(database)) === 0)
  expect(kept.stats().delivered).toBe(0)
})

test('a transaction that is rolled back, or ends nothing, writes nothing', async () => {
  const database = await one(inRedis)
  await using _kept = await keepInvalidations(database, { delayMs: 60_000 })
  const sent: string[] = []
  database.events.on('query', ({ sql: text }) => sent.push(text))
  const undone = database.transaction(async () => {
    await database.cache.invalidate({ tags: ['t'] })
    throw new Error('no')
  })
  await expect(undone).rejects.toThrow('no')
  await database.transaction(async () => {
    await database.query(sql`select 1`)
  })
  expect(sent.filter((text) => text.includes('insert into kanta.outbox'))).toEqual([])
})

test('where it cannot be written, the transaction fails and changes nothing', async () => {
  const database = await one(inRedis)
  await using _kept = await keepInvalidations(database, { delayMs: 60_000 })
  await database.query(sql`alter table kanta.outbox add constraint nothing check (false) not valid`)
  const failing = database.transaction(async () => {
    await database.db.updateTable('items').set({ version: 9 }).execute()
    await database.cache.invalidate({ tags: ['t'] })
  })
  await expect(failing).rejects.toMatchObject({ code: 'TRANSACTION_ABORTED' })
  expect(await database.queryCount(sql`select count(*) from items where version = 9`)).toBe(0)
})

test('once it is closed, nothing is written any more', async () => {
  const database = await one(inRedis)
  const kept = await keepInvalidations(database)
  await kept.close()
  await database.transaction(() => database.cache.invalidate({ tags: ['t'] }))
  expect(await written(database)).toBe(0)
})

test('who closes his own takes nothing from others', async () => {
  const database = await one(inRedis)
  const first = await keepInvalidations(database)
  const second = await keepInvalidations(database)
  await first.close()
  await database.transaction(() => database.cache.invalidate({ tags: ['t'] }))
  expect(await written(database)).toBe(1)
  await second.close()
})

test('it is refused without Redis, and with a time that is none', async () => {
  await using database = await createDatabase({ postgres: { url: await freshDatabaseUrl('empty') }, redis: false })
  await expect(keepInvalidations(database)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  const other = await one(inRedis)
  await expect(keepInvalidations(other, { delayMs: -1 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
})
