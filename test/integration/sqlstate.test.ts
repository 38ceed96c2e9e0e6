import { sql } from 'kysely'
import { expect, onTestFinished, test } from 'vitest'
import { createDatabase, type Database, type ErrorCode, type PostgresOptions } from '../../src/index.ts'
import { freshDatabaseUrl } from '../support/database.ts'
import { startProxy } from '../../src/testing/fault-proxy.ts'
import { startPostgres } from '../support/servers.ts'

function open(url: string, postgres: PostgresOptions = {}): Promise<Database<never>> {
  const alone = { url, pipeline: false as const, retry: false as const, pool: { max: 1 } }
  return createDatabase<never>({ postgres: { ...alone, ...postgres }, redis: false })
}

const pidOf = (database: Database<never>): Promise<unknown> => database.queryValue(sql`select pg_backend_pid()`)

// Each code is provoked as itself by errors-page.test.ts; here is what becomes of the connection that it came on.
test.each<[sqlState: string, code: ErrorCode, statement: string, isKept: boolean]>([
  ['23505', 'UNIQUE_VIOLATION', 'insert into notes values (1)', true],
  ['23502', 'NOT_NULL_VIOLATION', 'insert into notes values (null)', true],
  ['22012', 'INVALID_DATA', 'select 1 / 0', true],
  ['22011', 'INVALID_DATA', `select overlay('x' placing 'y' from 0)`, true],
  ['42703', 'UNDEFINED_OBJECT', 'select nothing from notes', true],
  ['42883', 'UNDEFINED_OBJECT', 'select no_such_function()', true],
  ['42704', 'UNDEFINED_OBJECT', 'drop type nothing', true],
  ['3F000', 'UNDEFINED_OBJECT', 'create table nowhere.notes ()', true],
  ['42P07', 'QUERY_FAILED', 'create table notes ()', true],
  ['42601', 'SYNTAX_ERROR', 'select from where', true],
  ['0A000', 'QUERY_FAILED', 'select count(*) from notes for update', true],
  ['P0001', 'QUERY_FAILED', `do $$ begin raise 'no'; end $$`, true],
  ['55P03', 'LOCK_TIMEOUT', `do $$ begin raise 'busy' using errcode = '55P03'; end $$`, true],
  ['57014', 'STATEMENT_TIMEOUT', `set local statement_timeout = 10; select pg_sleep(10)`, true],
  ['53400', 'CONFIGURATION_LIMIT', `do $$ begin raise 'too much' using errcode = '53400'; end $$`, true],
  ['58P01', 'SYSTEM_ERROR', `select pg_read_file('no such file')`, false],
  ['XX000', 'INTERNAL_ERROR', `do $$ begin raise 'cache lookup failed' using errcode = 'XX000'; end $$`, false],
  ['57P01', 'SERVER_SHUTDOWN', 'select pg_terminate_backend(pg_backend_pid())', false],
])('%s is %s and keeps or costs its connection', async (sqlState, code, statement, isKept) => {
  await using database = await open(await freshDatabaseUrl('empty'))
  await database.query(sql`create table notes (id int primary key)`)
  await database.query(sql`insert into notes values (1)`)
  const before = await pidOf(database)
  await expect(database.query(sql.raw(statement))).rejects.toMatchObject({ code, sqlState })
  expect((await pidOf(database)) === before).toBe(isKept)
})

test('a statement after the failed one of a transaction is TRANSACTION_ABORTED by 25P02', async () => {
  await using database = await open(await freshDatabaseUrl('empty'))
  const failed = database.transaction(async () => {
    await database.query(sql`select 1 / 0`).catch(() => undefined)
    await database.query(sql`select 1`)
  })
  await expect(failed).rejects.toMatchObject({ code: 'TRANSACTION_ABORTED', sqlState: '25P02', retry: 'none' })
})

test.each([
  ['reset', 'reset'],
  ['closed in order', 'close'],
  ['closed in mid-message', 'halve'],
] as const)('a connection that is %s under a statement is CONNECTION_LOST', async (_, fault) => {
  const proxy = await startProxy({ to: await freshDatabaseUrl('empty') })
  onTestFinished(() => proxy.close())
  await using database = await open(proxy.url)
  proxy.on({ from: 'server', message: 'DataRow' }, fault)
  await expect(database.query(sql`select 1`)).rejects.toMatchObject({
    code: 'CONNECTION_LOST',
    retry: 'none',
    message: expect.stringContaining(new URL(proxy.url).port) as string,
  })
})

test('a host that has no address is CONNECTION_FAILED, and nothing was sent', async () => {
  await expect(open('postgres://app@no-such-host.invalid/shop')).rejects.toMatchObject({
    code: 'CONNECTION_FAILED',
    retry: 'statement',
  })
})

test('an immediate shutdown is told by its name, not as a connection that broke', async () => {
  const server = await startPostgres()
  onTestFinished(() => server.stop())
  await using database = await open(server.url)
  const sleeping = database.query(sql`select pg_sleep(60)`).catch((error: unknown) => error)
  await using other = await open(server.url)
  await expect
    .poll(() => other.queryCount(sql`select count(*) from pg_stat_activity where query = 'select pg_sleep(60)'`))
    .toBe(1)
  await server.kill('SIGQUIT')
  expect(await sleeping).toMatchObject({
    code: 'SERVER_SHUTDOWN',
    sqlState: '57P01',
    message: expect.stringContaining('immediate shutdown') as string,
  })
})

test('who sits idle in a transaction is told so, and the transaction is not repeated', async () => {
  const url = await freshDatabaseUrl('empty')
  await using other = await open(url)
  await using database = await open(url, { retry: { attempts: 3 }, breaker: false })
  let attempts = 0
  const idle = database.transaction(async () => {
    attempts += 1
    await database.query(sql`set local idle_in_transaction_session_timeout = 20`)
    const pid = await pidOf(database)
    await expect.poll(() => aliveIn(other, pid)).toBe(0)
    await database.query(sql`select 1`)
  })
  await expect(idle).rejects.toMatchObject({ code: 'IDLE_IN_TRANSACTION_TIMEOUT', sqlState: '25P03', retry: 'none' })
  expect(attempts).toBe(1)
})

test('a lock by name that is not free in time is named, with the limit', async () => {
  const url = await freshDatabaseUrl('empty')
  await using database = await open(url)
  await using other = await open(url)
  await database.withLock('month end', async () => {
    const refused = other.withLock('month end', () => Promise.resolve(), { waitMs: 30 })
    await expect(refused).rejects.toMatchObject({
      code: 'LOCK_TIMEOUT',
      sqlState: '55P03',
      limitMs: 30,
      message: expect.stringContaining('"month end" was not free within 30 ms') as string,
    })
  })
})

async function aliveIn(database: Database<never>, pid: unknown): Promise<number> {
  return database.queryCount(sql`select count(*) from pg_stat_activity where pid = ${pid}`)
}
