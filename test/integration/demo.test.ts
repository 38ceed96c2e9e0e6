import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { sql } from 'kysely'
import { expect, test } from 'vitest'
import { createDatabase, type Database } from '../../src/index.ts'
import { type DB, scryptPasswordHasher, UserRepository } from '../../src/domain.ts'
import { freshDatabaseUrl } from '../support/database.ts'

const script = join(import.meta.dirname, '../../scripts/demo.ts')

async function runDemo(url: string): Promise<{ code: number; output: string }> {
  return await new Promise((resolve) => {
    const env = { PATH: process.env['PATH'], DATABASE_URL: url }
    const demo = execFile(process.execPath, [script], { env }, (_error, stdout, stderr) => {
      resolve({ code: demo.exitCode ?? -1, output: stdout + stderr })
    })
  })
}

function open(url: string): Promise<Database<DB>> {
  return createDatabase<DB>({ postgres: { url }, redis: false })
}

async function tables(url: string): Promise<string[]> {
  await using database = await open(url)
  const { rows } = await sql<{ relname: string }>`
    select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' order by 1
  `.execute(database.db)
  return rows.map((row) => row.relname)
}

test('on an empty database the demo shows its seven parts and leaves its data', { timeout: 120_000 }, async () => {
  const url = await freshDatabaseUrl('empty')
  const { code, output } = await runDemo(url)
  expect({ code, output }).toMatchObject({ code: 0 })
  for (let part = 1; part <= 7; part++) expect(output).toMatch(new RegExp(`^${part}  `, 'm'))
  expect(output).toContain('users_email_key of table users')
  expect(output).toMatch(/orders: unchanged/)
  expect(output).not.toContain('CHANGED')
  // No colours and no moving lines where nobody watches.
  expect(output).not.toContain('\u001B')
  await using database = await open(url)
  expect(await new UserRepository(database).withDeleted().count()).toBe(2_000)
})

test('a database with other tables is refused and left as it was', async () => {
  const url = await freshDatabaseUrl('empty')
  {
    await using database = await open(url)
    await sql`create table invoices (id integer)`.execute(database.db)
  }
  const { code, output } = await runDemo(url)
  expect(code).toBe(2)
  expect(output).toContain('invoices')
  expect(output).toContain('Nothing was changed')
  expect(await tables(url)).toEqual(['invoices'])
})

test('a database of the same schema with users of its own is refused', async () => {
  const url = await freshDatabaseUrl()
  await using database = await open(url)
  const users = new UserRepository(database, { passwordHasher: scryptPasswordHasher({ logCost: 14 }) })
  await users.createUser({ email: 'grace@example.org', username: 'grace', name: 'Grace', password: 'a secret of mine' })
  const { code, output } = await runDemo(url)
  expect(code).toBe(2)
  expect(output).toContain('users of its own')
  expect(await users.count()).toBe(1)
})

test('a server that is down is said in a line, without a stack', async () => {
  const { code, output } = await runDemo('postgres://postgres@127.0.0.1:1/kanta')
  expect(code).toBe(2)
  expect(output).toContain('CONNECTION_FAILED')
  expect(output).not.toMatch(/^\s+at /m)
})
