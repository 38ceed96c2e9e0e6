import { sql } from 'kysely'
import { afterEach, expect, test } from 'vitest'
import { getDatabase, getDatabaseHealth, initializeDatabase, shutdownDatabase } from '../../src/index.ts'
import { freshDatabaseUrl } from '../support/database.ts'

afterEach(() => shutdownDatabase())

test('one database serves the whole process', async () => {
  const options = { postgres: { url: await freshDatabaseUrl('empty') }, redis: false } as const
  const [one, other] = await Promise.all([initializeDatabase(options), initializeDatabase(options)])
  expect(one).toBe(other)
  expect(getDatabase()).toBe(one)
  expect(await getDatabaseHealth()).toMatchObject({ status: 'up' })
  await sql`select 1`.execute(getDatabase().db)
})

test('before the start and after the shutdown there is none', async () => {
  expect(() => getDatabase()).toThrow(expect.objectContaining({ code: 'DATABASE_CLOSED' }) as Error)
  expect(await getDatabaseHealth()).toBeUndefined()
  await initializeDatabase({ postgres: { url: await freshDatabaseUrl('empty') }, redis: false })
  await shutdownDatabase()
  expect(() => getDatabase()).toThrow(expect.objectContaining({ code: 'DATABASE_CLOSED' }) as Error)
})

test('after a failed start the next one tries again', async () => {
  const nowhere = { postgres: { url: 'postgres://nobody@127.0.0.1:1/nothing' }, redis: false } as const
  await expect(initializeDatabase(nowhere)).rejects.toMatchObject({ code: 'CONNECTION_FAILED' })
  await initializeDatabase({ postgres: { url: await freshDatabaseUrl('empty') }, redis: false })
  expect(await getDatabaseHealth()).toMatchObject({ status: 'up' })
})

test('a shutdown while it opens closes what has opened', async () => {
  const opening = initializeDatabase({ postgres: { url: await freshDatabaseUrl('empty') }, redis: false })
  await shutdownDatabase()
  const database = await opening
  await expect(sql`select 1`.execute(database.db)).rejects.toMatchObject({ code: 'DATABASE_CLOSED' })
})

test('one that was closed by hand is opened anew, and shutdowns at the same time end together', async () => {
  const options = { postgres: { url: await freshDatabaseUrl('empty') }, redis: false } as const
  const first = await initializeDatabase(options)
  await first.close()
  const second = await initializeDatabase(options)
  expect(second).not.toBe(first)
  const running = sql`select pg_sleep(0.1)`.execute(second.db)
  const shutdowns = [shutdownDatabase(), shutdownDatabase()]
  await shutdowns[1]
  expect(second.stats().pool.total).toBe(0)
  await Promise.all([running, ...shutdowns])
})
