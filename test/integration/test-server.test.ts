import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { sql } from 'kysely'
import { Client } from 'pg'
import { afterAll, afterEach, beforeEach, expect, inject, onTestFinished, test, vi } from 'vitest'
import type { Database } from '../../src/index.ts'
import { memoryDatabase, type TestServerOptions, testServer } from '../../src/testing.ts'

interface DB {
  notes: { id: number; text: string }
}

const root = join(import.meta.dirname, '../..')
const folder = mkdtempSync(join(tmpdir(), 'kanta-testing-'))
afterAll(() => rmSync(folder, { recursive: true }))

let name = ''
let made = 0
const seed = async (database: Database<DB>): Promise<void> => {
  await database.insertMany('notes', [{ id: 1, text: 'seeded' }])
}

beforeEach(() => {
  made += 1
  name = `t${process.pid}_${made}`
})

afterEach(async () => {
  await admin((client) => client.query(`drop database if exists ${name}_foreign`))
  for (const database of await databases()) await admin((client) => client.query(`drop database ${database}`))
})

function migrations(extra = ''): string {
  const directory = mkdtempSync(join(folder, 'm-'))
  mkdirSync(directory, { recursive: true })
  const up = `create table notes (id int primary key, text text not null); ${extra}`
  writeFileSync(join(directory, '0001_notes.sql'), `-- Up Migration\n${up}\n`)
  return directory
}

async function admin<T>(work: (client: Client) => Promise<T>): Promise<T> {
  const client = new Client({ connectionString: inject('postgresUrl') })
  await client.connect()
  try {
    return await work(client)
  } finally {
    await client.end()
  }
}

async function databases(): Promise<string[]> {
  const { rows } = await admin((client) =>
    client.query<{ datname: string }>('select datname from pg_database where starts_with(datname, $1) order by 1', [
      `${name}_`,
    ]),
  )
  return rows.map(({ datname }) => datname)
}

async function open(options: TestServerOptions<DB> = {}) {
  const server = await testServer<DB>({ url: inject('postgresUrl'), name, migrations: migrations(), seed, ...options })
  onTestFinished(() => server.close())
  return server
}

/** A process that opens a server and prints its template, how long it took, and what a database of it holds. */
function inProcess(directory: string, then = 'await server.close()'): [string, string[]] {
  const script = `
    import { testServer } from ${JSON.stringify(join(root, 'src/testing.ts'))}
    const seed = async (database) => {
      await database.insertMany('notes', [{ id: 1, text: 'seeded' }])
    }
    const server = await testServer({ url: ${JSON.stringify(inject('postgresUrl'))}, name: '${name}', migrations: ${JSON.stringify(directory)}, seed })
    const database = await server.database()
    const [row] = await database.db.selectFrom('notes').selectAll().execute()
    console.log(server.template, row.text)
    ${then}`
  return [process.execPath, ['--input-type=module', '--eval', script]]
}

test('a database is a copy with the migrations and the seed in it, and is gone when it is closed', async () => {
  const server = await open()
  const { template } = server
  expect(template).toMatch(new RegExp(`^${name}_template_[0-9a-f]{12}$`))
  const database = await server.database()
  expect(await database.db.selectFrom('notes').selectAll().execute()).toEqual([{ id: 1, text: 'seeded' }])
  expect(await databases()).toEqual([expect.stringMatching(`^${name}_${process.pid}_[0-9a-f]{8}_2$`), template])
  await database.close()
  expect(await databases()).toEqual([template])
})

test('it is dropped although somebody is connected to it', async () => {
  const server = await open()
  const url = await server.databaseUrl()
  const guest = new Client({ connectionString: url })
  const ended = new Promise<void>((resolve) => guest.once('end', resolve))
  guest.on('error', () => undefined)
  await guest.connect()
  await server.close()
  await ended
  expect(await databases()).toEqual([server.template])
})

test('many at once are copies of their own', async () => {
  const server = await open()
  const copies = await Promise.all(Array.from({ length: 8 }, () => server.database()))
  await Promise.all(
    copies.map(({ db }, id) =>
      db
        .insertInto('notes')
        .values({ id: 10 + id, text: 'own' })
        .execute(),
    ),
  )
  const counts = await Promise.all(copies.map((copy) => copy.queryCount(sql`select count(*) from notes`)))
  expect(counts).toEqual(copies.map(() => 2))
  await Promise.all(copies.map((copy) => copy.close()))
  expect(await databases()).toEqual([server.template])
})

test('the template is made once for the same content, and anew for another', async () => {
  let seeded = 0
  const count = async (): Promise<void> => void (seeded += 1)
  const directory = migrations()
  const first = await open({ migrations: directory, seed: count })
  const second = await open({ migrations: migrations(), seed: count })
  expect([second.template, seeded]).toEqual([first.template, 1])
  const changed = await open({ migrations: migrations('create table others ();'), seed: count })
  const seededAnew = await open({ migrations: directory, seed: count, version: '2' })
  expect(seeded).toBe(3)
  expect(new Set([first, changed, seededAnew].map(({ template }) => template)).size).toBe(3)
})

test('a template that is dropped meanwhile is made again for the next copies', async () => {
  const server = await open()
  await admin((client) => client.query(`drop database ${server.template}`))
  const copies = await Promise.all([server.database(), server.database()])
  for (const copy of copies) {
    expect(await copy.queryCount(sql`select count(*) from notes`)).toBe(1)
    await copy.close()
  }
})

test('closed while databases are made it leaves none of them', async () => {
  const server = await open()
  const making = Promise.allSettled([server.database(), server.databaseUrl()])
  await server.close()
  expect(await databases()).toEqual([server.template])
  for (const outcome of await making) {
    if (outcome.status === 'fulfilled' && typeof outcome.value === 'object') await outcome.value.close()
  }
})

test('processes that start together make it once', async () => {
  const directory = migrations('select pg_sleep(0.3);')
  const outputs = await Promise.all(
    [1, 2].map(async () => {
      const { stdout } = await promisify(execFile)(...inProcess(directory))
      return stdout.trim()
    }),
  )
  const [template] = await databases()
  expect(outputs).toEqual([1, 2].map(() => `${template} seeded`))
  expect(await databases()).toEqual([template])
})

test('what a killed process has left is dropped by the next one, and nothing else', async () => {
  const directory = migrations()
  const [program, args] = inProcess(directory, 'setInterval(() => undefined, 1000)')
  const victim = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  onTestFinished(() => void victim.kill('SIGKILL'))
  await once(victim.stdout, 'data')
  await admin((client) => client.query(`create database ${name}_foreign`))
  const alive = await open({ version: 'of another' })
  // It still lives, so its database and its template are kept.
  expect(await databases()).toHaveLength(4)
  victim.kill('SIGKILL')
  await once(victim, 'exit')
  await vi.waitUntil(async () => {
    const url = inject('postgresUrl')
    await (await testServer<DB>({ url, name, migrations: migrations(), seed, version: 'of another' })).close()
    return (await databases()).length === 2
  })
  expect(await databases()).toEqual([`${name}_foreign`, alive.template])
})

test('a template that nobody uses any more goes when another is made', async () => {
  const first = await open()
  const second = await open({ version: '2' })
  expect(new Set(await databases())).toEqual(new Set([first.template, second.template]))
  await first.close()
  await vi.waitUntil(async () => {
    await (
      await testServer<DB>({ url: inject('postgresUrl'), name, migrations: migrations(), seed, version: '2' })
    ).close()
    return (await databases()).length === 1
  })
  expect(await databases()).toEqual([second.template])
})

test('a seed that fails leaves nothing, and its error is told', async () => {
  const failing = open({ seed: () => Promise.reject(new Error('no more names')) })
  await expect(failing).rejects.toThrow('no more names')
  expect(await databases()).toEqual([])
})

test('a name that is none is refused before anything is done', async () => {
  await expect(open({ name: 'x"; drop' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
})

test('without a server each database is one in memory, a copy of the first', async () => {
  vi.stubEnv('TEST_DATABASE_URL', '')
  onTestFinished(() => void vi.unstubAllEnvs())
  let seeded = 0
  const counted = async (database: Database<DB>): Promise<void> => {
    seeded += 1
    await seed(database)
  }
  const options = { migrations: migrations(), seed: counted }
  const server = await testServer<DB>(options)
  expect([server.kind, server.template]).toEqual(['embedded', undefined])
  await expect(server.databaseUrl()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  const [one, other] = await Promise.all([server.database(), memoryDatabase<DB>(options)])
  await one.db.insertInto('notes').values({ id: 2, text: 'own' }).execute()
  expect(await other.db.selectFrom('notes').select('id').execute()).toEqual([{ id: 1 }])
  await other.close()
  await server.close()
  expect([one.isClosed, seeded]).toEqual([true, 1])
})
