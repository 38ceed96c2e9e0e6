import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { sql } from 'kysely'
import { afterAll, expect, test } from 'vitest'
import { createDatabase, type Database } from '../../src/index.ts'

const folder = mkdtempSync(join(tmpdir(), 'kanta-embedded-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const notices: string[] = []
const logger = { info: (message: string) => void notices.push(message), warn: () => {} }

function open(dataDir: string): Promise<Database<never>> {
  return createDatabase<never>({ postgres: { embedded: { dataDir } }, redis: false, logger })
}

test('in memory it says what it is, and refuses a duplicate as a server does', async () => {
  await using database = await open('memory')
  expect(notices).toEqual([expect.stringMatching(/embedded PostgreSQL in memory.*DATABASE_URL/)])
  expect(await database.health()).toMatchObject({ status: 'up', postgres: { embedded: true, pool: { max: 1 } } })

  await sql`create table users (email text constraint users_email_key unique)`.execute(database.db)
  const insert = sql`insert into users values ('ada@example.org')`
  await insert.execute(database.db)
  await expect(insert.execute(database.db)).rejects.toMatchObject({
    code: 'UNIQUE_VIOLATION',
    constraint: 'users_email_key',
  })
})

test('concurrent callers share its one connection, and a transaction rolls back', async () => {
  await using database = await open('memory')
  await sql`create table notes (id int)`.execute(database.db)
  await Promise.all(Array.from({ length: 20 }, (_, n) => sql`insert into notes values (${n})`.execute(database.db)))
  const failed = database.db.transaction().execute(async (trx) => {
    await sql`delete from notes`.execute(trx)
    throw new Error('changed my mind')
  })
  await expect(failed).rejects.toThrow('changed my mind')
  const { rows } = await sql<{ count: string }>`select count(*) from notes`.execute(database.db)
  expect(rows).toEqual([{ count: '20' }])
})

test('a folder keeps its data, belongs to one user at a time, and is free after close', async () => {
  const dataDir = join(folder, 'kept')
  const first = await open(dataDir)
  await sql`create table notes (id int)`.execute(first.db)
  await sql`insert into notes values (7)`.execute(first.db)
  await expect(open(dataDir)).rejects.toMatchObject({
    code: 'EMBEDDED_UNAVAILABLE',
    message: expect.stringContaining('this process') as string,
  })
  await first.close()
  expect(existsSync(`${dataDir}.lock`)).toBe(false)

  await using second = await open(dataDir)
  expect((await sql`select id from notes`.execute(second.db)).rows).toEqual([{ id: 7 }])
})

test('a folder in use by another process is refused by its number, and free once that was killed', async () => {
  const dataDir = join(folder, 'contended')
  const other = spawn(process.execPath, ['-e', 'process.stdin.resume()'], { stdio: ['pipe', 'ignore', 'ignore'] })
  writeFileSync(`${dataDir}.lock`, String(other.pid))
  await expect(open(dataDir)).rejects.toMatchObject({
    message: expect.stringContaining(`process ${other.pid}`) as string,
  })

  other.kill('SIGKILL')
  await once(other, 'exit')
  await (await open(dataDir)).close()
})

test('what was committed survives kill -9 of the process', async () => {
  const dataDir = join(folder, 'killed')
  const script = `
    import { createDatabase } from ${JSON.stringify(new URL('../../src/index.ts', import.meta.url).href)}
    import { sql } from 'kysely'
    const { db } = await createDatabase({ postgres: { embedded: { dataDir: ${JSON.stringify(dataDir)} } }, redis: false })
    await sql\`create table notes (id int)\`.execute(db)
    await sql\`insert into notes values (7)\`.execute(db)
    console.log('written')
    setInterval(() => {}, 1000)`
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
  await once(child.stdout, 'data')
  child.kill('SIGKILL')
  await once(child, 'exit')

  await using database = await open(dataDir)
  expect((await sql`select id from notes`.execute(database.db)).rows).toEqual([{ id: 7 }])
})

test('a folder that holds something else is refused and left as it is', async () => {
  const dataDir = join(folder, 'thesis')
  mkdirSync(dataDir)
  writeFileSync(join(dataDir, 'thesis.txt'), 'years of work')
  await expect(open(dataDir)).rejects.toMatchObject({
    code: 'EMBEDDED_UNAVAILABLE',
    message: expect.stringContaining('something else') as string,
  })
  expect(readdirSync(dataDir)).toEqual(['thesis.txt'])
  expect(existsSync(`${dataDir}.lock`)).toBe(false)
})

test('what a killed first start left behind is cleared', async () => {
  const dataDir = join(folder, 'half')
  mkdirSync(dataDir)
  writeFileSync(join(dataDir, 'PG_VERSION'), '18')
  writeFileSync(`${dataDir}.unfinished`, '')
  await (await open(dataDir)).close()
  expect(existsSync(`${dataDir}.unfinished`)).toBe(false)
})
