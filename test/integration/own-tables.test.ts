import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { promisify } from 'node:util'
import { type Kysely, sql } from 'kysely'
import { expect, inject, onTestFinished, test } from 'vitest'
import { createDatabase, createOutbox, createSagas, type Database, saga } from '../../src/index.ts'
import { ensureOwnTables, type OwnTables, ownTablesSql } from '../../src/schema/own-tables.ts'
import { ownParts } from '../../src/work/own-parts.ts'
import { witness } from '../faults/witness.ts'
import { closeAfterTest, freshDatabaseUrl } from '../support/database.ts'

const first: OwnTables = { part: 'things', versions: ['create table kanta.things (id int primary key)'] }
const second: OwnTables = {
  part: 'things',
  versions: [
    ...first.versions,
    `alter table kanta.things add column note text default 'a;b'; create index on kanta.things (note)`,
  ],
}

async function open(url: string): Promise<Database<never>> {
  return closeAfterTest(await createDatabase<never>({ postgres: { url, pool: { max: 12 } }, redis: false }))
}

const columnsOf = async (db: Kysely<never>, table: string): Promise<string[]> => {
  const { rows } = await sql<{ column_name: string }>`
    select column_name from information_schema.columns where table_schema = 'kanta' and table_name = ${table}
    order by 1`.execute(db)
  return rows.map(({ column_name }) => column_name)
}

test('many at once install a part once, whatever the isolation of their role', async () => {
  const url = await freshDatabaseUrl('empty')
  await using admin = await witness(url)
  await admin.rows(
    `alter database ${new URL(url).pathname.slice(1)} set default_transaction_isolation = 'repeatable read'`,
  )
  const databases = await Promise.all([open(url), open(url), open(url)])
  const changes = await Promise.all(
    databases.flatMap(({ db }) => [ensureOwnTables(db, first), ensureOwnTables(db, first)]),
  )
  expect(changes.filter(({ from }) => from === 0)).toHaveLength(1)
  expect(changes.every(({ to }) => to === 1)).toBe(true)
})

test('a newer kanta adds to what an older one has made, and the older one leaves that alone', async () => {
  const { db } = await open(await freshDatabaseUrl('empty'))
  expect(await ensureOwnTables(db, first)).toEqual({ part: 'things', from: 0, to: 1 })
  expect(await ensureOwnTables(db, second)).toEqual({ part: 'things', from: 1, to: 2 })
  expect(await ensureOwnTables(db, second)).toEqual({ part: 'things', from: 2, to: 2 })
  expect(await ensureOwnTables(db, first)).toEqual({ part: 'things', from: 2, to: 2 })
  expect(await columnsOf(db, 'things')).toEqual(['id', 'note'])
})

test('a script that fails leaves nothing behind', async () => {
  const { db } = await open(await freshDatabaseUrl('empty'))
  const broken = { part: 'things', versions: ['create table kanta.things (id int); select 1 / 0'] }
  await expect(ensureOwnTables(db, broken)).rejects.toMatchObject({ code: 'INVALID_DATA' })
  expect(await columnsOf(db, 'parts')).toEqual([])
})

test('a role that may not make them is told what to run, and works once they are there', async () => {
  const url = await freshDatabaseUrl('empty')
  await using admin = await witness(url)
  const role = `app_${new URL(url).pathname.slice(-8)}`
  await admin.rows(`create role ${role} login`)
  onTestFinished(async () => {
    await using last = await witness(inject('postgresUrl'))
    await last.rows(`drop role ${role}`)
  })
  const database = await open(Object.assign(new URL(url), { username: role }).href)
  const refused = createOutbox(database)
  await expect(refused).rejects.toMatchObject({ code: 'INSUFFICIENT_PRIVILEGE', sqlState: '42501' })
  await expect(refused).rejects.toThrow('kanta install')
  // With the SQL that `kanta install --sql` gives.
  await admin.rows(ownTablesSql(ownParts))
  await expect(createOutbox(database)).rejects.toThrow('grant')
  await admin.rows(`
    grant usage on schema kanta to ${role};
    grant select on kanta.parts to ${role};
    grant select, insert, update, delete on kanta.outbox to ${role}`)
  const outbox = await createOutbox<{ seen: number }>(database)
  const seen: number[] = []
  const relay = outbox.relay((event) => void seen.push(event.payload))
  await outbox.publish('seen', 1, { key: 'k' })
  await expect.poll(() => seen).toEqual([1])
  await relay.close()
  expect(await outbox.retryDead('all')).toBe(0)

  const [grants] = (await readFile('docs/sagas.md', 'utf8')).match(/GRANT [^`]+/) ?? []
  await admin.rows((grants ?? '').replaceAll('TO app', `TO ${role}`))
  const simple = saga('simple').step('one', { run: () => 1 })
  await using sagas = await createSagas(database, [simple])
  expect(await sagas.run(simple, undefined)).toEqual({ one: 1 })
})

test('kanta install makes all parts, says so, and does nothing the second time', async () => {
  const url = await freshDatabaseUrl('empty')
  const kanta = async (...args: string[]): Promise<string> => {
    const env = { ...process.env, DATABASE_URL: url, NO_COLOR: '1' }
    return (await promisify(execFile)(process.execPath, ['src/cli/main.ts', ...args], { env })).stdout
  }
  expect(await kanta('install', '--sql')).toBe(`${ownTablesSql(ownParts)}\n`)
  expect(await kanta('install')).toMatch(/^outbox +version 1, installed$/m)
  expect(JSON.parse(await kanta('install', '--json'))).toContainEqual({ part: 'outbox', from: 1, to: 1 })
  const database = await open(url)
  expect(await columnsOf(database.db, 'parts')).toEqual(['changed_at', 'part', 'version'])
  expect(await (await createOutbox(database)).stats()).toMatchObject({ waiting: 0 })
})
