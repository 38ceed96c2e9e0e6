import { execFile } from 'node:child_process'
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { runner } from 'node-pg-migrate'
import { Client } from 'pg'
import { afterEach, expect, test } from 'vitest'
import { createMigrator, type MigrateOptions, type Migrator } from '../../src/migrate.ts'
import { freshDatabaseUrl } from '../support/database.ts'
import { startPostgres } from '../support/servers.ts'

const run = promisify(execFile)

const cleanups: (() => Promise<unknown>)[] = []

afterEach(async () => {
  for (const clean of cleanups.splice(0).toReversed()) await clean()
})

type Files = Readonly<Record<string, string>>

async function folderWith(files: Files): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'kanta-migrations-'))
  cleanups.push(() => rm(folder, { recursive: true }))
  for (const [name, content] of Object.entries(files)) await writeFile(join(folder, name), content)
  return folder
}

async function open(options: MigrateOptions): Promise<Migrator> {
  const migrator = await createMigrator({ logger: { info: () => {}, warn: () => {} }, ...options })
  cleanups.push(() => migrator.close())
  return migrator
}

async function connect(url: string): Promise<Client> {
  const client = new Client({ connectionString: url })
  client.on('error', () => {})
  await client.connect()
  cleanups.push(() => client.end())
  return client
}

/** A new database, a migrator for it over the given files, and a connection to look. */
async function fixture(files: Files, options: MigrateOptions = {}) {
  const [url, directory] = await Promise.all([freshDatabaseUrl('empty'), folderWith(files)])
  const [client, migrator] = await Promise.all([connect(url), open({ postgres: { url }, directory, ...options })])
  return { url, directory, client, migrator }
}

async function tablesOf(client: Client): Promise<string[]> {
  const { rows } = await client.query<{ name: string }>(
    "select relname as name from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' and relname <> 'pgmigrations' order by 1",
  )
  return rows.map((row) => row.name)
}

/** Everything in the schema, as text, that a migration can make. */
async function fingerprint(client: Client): Promise<string[]> {
  const { rows } = await client.query<{ line: string }>(`
    with tables as (select c.oid, c.oid::regclass::text as name from pg_class c
      where relnamespace = 'public'::regnamespace and relkind in ('r', 'v', 'm') and relname <> 'pgmigrations')
    select line from (
      select format('column %s.%s %s %s %s %s', t.name, attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid), col_description(t.oid, attnum))
        from tables t join pg_attribute a on attrelid = t.oid left join pg_attrdef on adrelid = t.oid and adnum = attnum
        where attnum > 0 and not attisdropped
      union all select format('constraint %s %s %s', name, conname, pg_get_constraintdef(k.oid)) from tables t join pg_constraint k on conrelid = t.oid
      union all select pg_get_indexdef(indexrelid) from tables t join pg_index on indrelid = t.oid
      union all select pg_get_functiondef(p.oid) from pg_proc p where pronamespace = 'public'::regnamespace
        and not exists (select from pg_depend where classid = 'pg_proc'::regclass and objid = p.oid and deptype = 'e')
      union all select format('type %s %s', enumtypid::regtype, string_agg(enumlabel, ',' order by enumsortorder)) from pg_enum group by enumtypid
      union all select format('comment %s %s', name, obj_description(oid, 'pg_class')) from tables
    ) as everything(line) order by line collate "C"`)
  return rows.map((row) => row.line)
}

/** The backend that is in the middle of a statement like this. */
async function backendThatRuns(client: Client, like: string): Promise<number> {
  let pid: number | undefined
  const find = async (): Promise<number | undefined> => {
    const { rows } = await client.query<{ pid: number }>(
      `select pid from pg_stat_activity where state = 'active' and query like $1 and pid <> pg_backend_pid()`,
      [like],
    )
    pid = rows[0]?.pid
    return pid
  }
  await expect.poll(find, { timeout: 10_000, interval: 5 }).toBeTypeOf('number')
  return pid as number
}

const table = (name: string): string =>
  `-- Up Migration\ncreate table ${name} (a int);\n-- Down Migration\ndrop table ${name};\n`

test("the domain's migrations go up, down to nothing, and up to the same schema", async () => {
  const url = await freshDatabaseUrl('empty')
  const [client, migrator] = await Promise.all([connect(url), open({ postgres: { url } })])
  const empty = await fingerprint(client)

  const first = await migrator.up()
  const schema = await fingerprint(client)
  expect(schema.length).toBeGreaterThan(150)
  const undone = await migrator.down({ count: first.length })
  expect(undone.map((done) => done.name)).toEqual(first.map((done) => done.name).toReversed())
  expect(await fingerprint(client)).toEqual(empty)

  await migrator.up()
  expect(await fingerprint(client)).toEqual(schema)
  expect(await migrator.up()).toEqual([])
})

test('the embedded PostgreSQL takes the same migrations, and two migrators on it take turns', async () => {
  const migrator = await open({ postgres: { embedded: { dataDir: 'memory' } } })
  // Either may be the first to get the connection.
  const [none, all] = (await Promise.all([migrator.up(), migrator.up()])).toSorted((a, b) => a.length - b.length)
  expect(none).toEqual([])
  const count = all?.length ?? 0
  expect(count).toBeGreaterThan(0)
  await migrator.down({ count })
  expect((await migrator.status()).every((row) => row.state === 'pending')).toBe(true)
  expect(await migrator.up()).toHaveLength(count)
})

test('a failed migration leaves the embedded schema as it was, and the session usable', async () => {
  const directory = await folderWith({
    '1_a.sql': table('a'),
    '2_b.sql': '-- Up Migration\ncreate table b (a int);\ninsert into nowhere values (1);\n',
  })
  const migrator = await open({ postgres: { embedded: { dataDir: 'memory' } }, directory })
  await expect(migrator.up()).rejects.toMatchObject({
    code: 'MIGRATION_FAILED',
    line: 3,
    statement: 'insert into nowhere values (1)',
  })
  expect(await migrator.status()).toMatchObject([{ state: 'applied' }, { state: 'pending' }])
  await writeFile(join(directory, '2_b.sql'), table('b'))
  expect(await migrator.up()).toMatchObject([{ name: '2_b' }])
})

test('migrators that start at the same time apply each file once, and all succeed', async () => {
  const files = Object.fromEntries(Array.from({ length: 8 }, (_, i) => [`${i + 1}_t.sql`, table(`t${i + 1}`)]))
  const { url, directory, migrator, client } = await fixture(files)
  const others = await Promise.all([1, 2, 3].map(() => open({ postgres: { url }, directory })))
  const runs = await Promise.all([migrator, ...others].map((each) => each.up()))
  expect(runs.map((applied) => applied.length).toSorted((a, b) => a - b)).toEqual([0, 0, 0, 8])
  expect((await client.query('select name from pgmigrations order by id')).rows.map((row) => row.name)).toEqual(
    Object.keys(files).map((name) => name.slice(0, -4)),
  )
})

test('`to` and `count` choose how far to go', async () => {
  const { migrator } = await fixture({
    '0001_a.sql': table('a'),
    '0002_b.sql': table('b'),
    '0003_c.sql': table('c'),
    '0004_d.sql': table('d'),
  })
  expect((await migrator.up({ to: '2' })).map((done) => done.name)).toEqual(['0001_a', '0002_b'])
  expect(await migrator.up({ to: '0001_a.sql' })).toEqual([])
  expect((await migrator.up({ count: 1 })).map((done) => done.name)).toEqual(['0003_c'])
  await expect(migrator.up({ to: '0009' })).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: expect.stringContaining('0004_d'),
  })
  await expect(migrator.up({ count: 0 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  await expect(migrator.down({ count: 1.5 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  expect((await migrator.down()).map((done) => done.name)).toEqual(['0003_c'])
})

test('status tells what is applied, since when, what is pending, and what has lost its file', async () => {
  const { migrator, directory, client } = await fixture({
    '1_a.sql': table('a'),
    '2_b.sql': table('b'),
    '3_c.sql': table('c'),
  })
  expect((await migrator.status()).map((row) => row.state)).toEqual(['pending', 'pending', 'pending'])
  // The server's time zone must not shift the times.
  await client.query(
    "do $$ begin execute format('alter database %I set timezone = ''Asia/Tokyo''', current_database()); end $$",
  )
  const before = Date.now()
  await migrator.up({ count: 2 })
  await rm(join(directory, '2_b.sql'))
  const status = await migrator.status()
  expect(status.map(({ name, state }) => `${name} ${state}`)).toEqual(['1_a applied', '2_b missing', '3_c pending'])
  expect(Math.abs(Number(status[0]?.appliedAt) - before)).toBeLessThan(60_000)
})

test.each([
  [
    'a syntax error',
    'create table b (a int);\n\ncreate table\n  c (a int,, b int);',
    5,
    'create table\n  c (a int,, b int)',
    '42601',
  ],
  [
    'an unknown column',
    "select 'é😀';\nselect '😀😀', 1,\n  nothing from a;",
    4,
    "select '😀😀', 1,\n  nothing from a",
    '42703',
  ],
  [
    'an error without a position',
    'create table b (a int);\ncreate table a (b int);\nselect 1;',
    3,
    'create table a (b int)',
    '42P07',
  ],
  [
    'a row that breaks a rule',
    'alter table a add check (a > 0);\n-- Next.\ninsert into a values (0);',
    4,
    'insert into a values (0)',
    '23514',
  ],
  [
    'an error in a body',
    "select 1;\ndo $$ begin\n  raise exception 'no; %', 1;\nend $$;",
    3,
    "do $$ begin\n  raise exception 'no; %', 1;\nend $$",
    'P0001',
  ],
  [
    'a statement that wants no transaction',
    'create index concurrently on a (a);',
    2,
    'create index concurrently on a (a)',
    '25001',
  ],
  ['COPY from the client', 'copy a from stdin;', 2, 'copy a from stdin', '57014'],
])('%s: the file is undone, the statement and its line are named', async (_, sql, line, statement, sqlState) => {
  const { migrator, client, directory } = await fixture({
    '1_a.sql': table('a'),
    '2_b.sql': `-- Up Migration\n${sql}\n-- Down Migration\n`,
  })
  const failure = migrator.up()
  await expect(failure).rejects.toMatchObject({
    code: 'MIGRATION_FAILED',
    file: join(directory, '2_b.sql'),
    line,
    statement,
    sqlState,
  })
  await expect(failure).rejects.toThrow(`2_b.sql:${line} failed: `)
  expect(await tablesOf(client)).toEqual(['a'])
  expect(await migrator.status()).toMatchObject([{ state: 'applied' }, { state: 'pending' }])
})

test('a constraint that is checked at COMMIT undoes the file, too', async () => {
  const { migrator, client } = await fixture({
    '1_a.sql':
      '-- Up Migration\ncreate table a (b int primary key references a deferrable initially deferred, c int);\nalter table a add d int references a deferrable initially deferred;\ninsert into a values (1, 1, 2);',
  })
  await expect(migrator.up()).rejects.toMatchObject({
    code: 'MIGRATION_FAILED',
    sqlState: '23503',
    statement: undefined,
  })
  expect(await tablesOf(client)).toEqual([])
})

test('a migration that fails when it is undone stays applied', async () => {
  const { migrator } = await fixture({
    '1_a.sql': '-- Up Migration\ncreate table a (b int);\n-- Down Migration\ndrop table a;\ndrop table b;',
  })
  await migrator.up()
  await expect(migrator.down()).rejects.toMatchObject({ code: 'MIGRATION_FAILED', line: 5, statement: 'drop table b' })
  expect(await migrator.status()).toMatchObject([{ state: 'applied' }])
})

test('down refuses before anything runs if one of the files cannot be undone', async () => {
  const { migrator, client } = await fixture({
    '1_a.sql': '-- Up Migration\ncreate table a ();\n-- Down Migration\n-- Nothing.',
    '2_b.sql': table('b'),
  })
  await migrator.up()
  await expect(migrator.down({ count: 2 })).rejects.toMatchObject({
    code: 'MIGRATION_INVALID',
    message: expect.stringContaining('1_a.sql'),
  })
  expect(await tablesOf(client)).toEqual(['a', 'b'])
})

test('a missing applied file and a new file in between are refused before anything runs', async () => {
  const { migrator, client, directory } = await fixture({ '1_a.sql': table('a'), '3_c.sql': table('c') })
  await migrator.up()
  await writeFile(join(directory, '2_b.sql'), table('b'))
  await writeFile(join(directory, '4_d.sql'), table('d'))
  await expect(migrator.up()).rejects.toMatchObject({
    code: 'MIGRATION_INVALID',
    file: join(directory, '2_b.sql'),
    message: expect.stringContaining('a number after 3_c'),
  })
  await rm(join(directory, '2_b.sql'))
  await rm(join(directory, '3_c.sql'))
  await expect(migrator.up()).rejects.toMatchObject({
    code: 'MIGRATION_INVALID',
    message: expect.stringContaining('3_c.sql'),
  })
  await expect(migrator.down()).rejects.toMatchObject({ code: 'MIGRATION_INVALID' })
  expect(await tablesOf(client)).toEqual(['a', 'c'])
})

const lockOfMigrators = 'select pg_advisory_lock(7241865325823964)'

test('while someone else migrates, the wait is bounded and the holder is named', async () => {
  const { migrator, client } = await fixture({ '1_a.sql': table('a') }, { waitForLockMs: 300 })
  await client.query("set application_name = 'deploy 42'")
  await client.query(lockOfMigrators)
  const { rows } = await client.query<{ pid: number }>('select pg_backend_pid() as pid')
  const started = performance.now()
  await expect(migrator.up()).rejects.toMatchObject({
    code: 'MIGRATION_LOCKED',
    transient: true,
    message: expect.stringMatching(`backend ${rows[0]?.pid} \\(deploy 42, connected for `),
  })
  expect(performance.now() - started).toBeLessThan(5_000)
  await client.query('select pg_advisory_unlock_all()')
  expect(await migrator.up()).toHaveLength(1)
})

test('the lock is held however long a file takes, whatever limit the database has for idle transactions', async () => {
  const slow = (name: string) => `-- Up Migration\ncreate table ${name} ();\nselect pg_sleep(0.2);`
  const { url, client, migrator } = await fixture({ '1_a.sql': slow('a'), '2_b.sql': slow('b') })
  const database = new URL(url).pathname.slice(1)
  await client.query(`alter database ${database} set idle_in_transaction_session_timeout = '50ms'`)
  expect(await migrator.up()).toHaveLength(2)
})

test('a table lock that is held is waited for again and again, and others get their turn in between', async () => {
  const attempts: string[] = []
  const { migrator, client } = await fixture(
    { '1_a.sql': table('a'), '2_b.sql': '-- Up Migration\ncreate table b ();\nalter table a add b int;' },
    {
      lockTimeoutMs: 50,
      logger: {
        info: () => {},
        warn: (message) => {
          attempts.push(message)
          if (attempts.length === 2) void client.query('commit')
        },
      },
    },
  )
  await migrator.up({ count: 1 })
  await client.query('begin; lock table a in access share mode')
  expect(await migrator.up()).toMatchObject([{ name: '2_b' }])
  expect(attempts).toHaveLength(2)
  expect(attempts[0]).toContain('attempt 1 of 6')
  expect(await tablesOf(client)).toEqual(['a', 'b'])
})

test('a table lock that is never given up ends the migration and leaves nothing behind', async () => {
  const { migrator, client } = await fixture(
    { '1_a.sql': table('a'), '2_b.sql': '-- Up Migration\ncreate table b ();\nalter table a add b int;' },
    { lockTimeoutMs: 20 },
  )
  await migrator.up({ count: 1 })
  await client.query('begin; lock table a in access share mode')
  await expect(migrator.up()).rejects.toMatchObject({
    code: 'MIGRATION_FAILED',
    line: 3,
    cause: { code: 'LOCK_TIMEOUT' },
    message: expect.stringContaining('in 6 attempts'),
  })
  expect(await tablesOf(client)).toEqual(['a'])
})

test('a statement that runs too long is stopped, and the limit is named', async () => {
  const { migrator } = await fixture({ '1_a.sql': '-- Up Migration\nselect pg_sleep(60);' }, { statementTimeoutMs: 50 })
  await expect(migrator.up()).rejects.toMatchObject({
    code: 'MIGRATION_FAILED',
    cause: { code: 'STATEMENT_TIMEOUT' },
    message: expect.stringContaining('The limit is 50 ms'),
  })
})

test("the application's statement timeout does not stop a migration", async () => {
  const [url, directory] = await Promise.all([
    freshDatabaseUrl('empty'),
    folderWith({ '1_a.sql': '-- Up Migration\nselect pg_sleep(0.5);' }),
  ])
  const migrator = await open({ postgres: { url, statementTimeoutMs: 400 }, directory, statementTimeoutMs: false })
  expect(await migrator.up()).toHaveLength(1)
})

test('a backend that is killed in the middle of a file leaves nothing of it, and the next run applies it', async () => {
  const { migrator, client, directory } = await fixture({
    '1_a.sql': '-- Up Migration\ncreate table a ();\nselect pg_sleep(60);',
  })
  const failed = migrator.up().catch((error: unknown) => error)
  const kill =
    "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query = 'select pg_sleep(60)'"
  await expect.poll(async () => (await client.query(kill)).rowCount, { timeout: 10_000 }).toBe(1)
  expect(await failed).toMatchObject({ code: 'MIGRATION_FAILED', line: 3, statement: 'select pg_sleep(60)' })
  expect(await tablesOf(client)).toEqual([])
  await writeFile(join(directory, '1_a.sql'), table('a'))
  expect(await migrator.up()).toHaveLength(1)
})

test('a server that freezes in the middle of a file ends the migration in time, and leaves nothing of it', async () => {
  const server = await startPostgres()
  cleanups.push(() => server.stop())
  const directory = await folderWith({ '1_a.sql': '-- Up Migration\ncreate table a ();\nselect pg_sleep(0.5);\n' })
  const client = await connect(server.url)
  const migrator = await open({
    postgres: { url: server.url },
    directory,
    statementTimeoutMs: 1_000,
    lockTimeoutMs: 50,
  })
  const failed = migrator.up().catch((error: unknown) => error)
  const sleeper = await backendThatRuns(client, 'select pg_sleep(0.5)')
  process.kill(sleeper, 'SIGSTOP')
  const frozenAt = performance.now()
  const error = await failed
  expect(performance.now() - frozenAt).toBeLessThan(8_000)
  expect(error).toMatchObject({ code: 'MIGRATION_FAILED', line: 3, cause: { code: 'QUERY_TIMEOUT' } })
  expect((error as Error).message).toContain('no answer within 6000 ms')
  process.kill(sleeper, 'SIGCONT')
  await expect.poll(() => tablesOf(client)).toEqual([])
  await writeFile(join(directory, '1_a.sql'), table('a'))
  expect(await migrator.up()).toHaveLength(1)
}, 30_000)

test('a server that freezes while the migrator asks for its own is given up in time', async () => {
  const server = await startPostgres()
  cleanups.push(() => server.stop())
  const directory = await folderWith({ '1_a.sql': table('a') })
  const client = await connect(server.url)
  const migrator = await open({ postgres: { url: server.url }, directory, lockTimeoutMs: 50 })
  await migrator.up()
  await client.query('begin; lock table pgmigrations')
  const failed = migrator.up().catch((error: unknown) => error)
  const start = performance.now()
  // In a transaction the statistics stand still.
  const asked = await backendThatRuns(await connect(server.url), '%from public.pgmigrations%')
  process.kill(asked, 'SIGSTOP')
  const error = await failed
  const tookMs = performance.now() - start
  // Else its server would wait for it when it is stopped.
  process.kill(asked, 'SIGCONT')
  expect(error).toMatchObject({ code: 'QUERY_TIMEOUT', limitMs: 5_050 })
  expect(tookMs).toBeLessThan(8_000)
}, 30_000)

test('a failure outside the statements of a file says at which step, not that it could not be committed', async () => {
  const { migrator, client, directory } = await fixture({ '1_a.sql': table('a'), '2_b.sql': table('b') })
  await migrator.up({ count: 1 })
  await client.query(
    `create function no_more() returns trigger language plpgsql as $$ begin raise 'the ledger is full'; end $$`,
  )
  await client.query('create trigger no_more before insert on pgmigrations for each row execute function no_more()')
  const failed = await migrator.up().catch((error: unknown) => error as Error)
  expect(failed).toMatchObject({ code: 'MIGRATION_FAILED', statement: undefined, sqlState: 'P0001' })
  const { message } = failed as Error
  expect(message).toContain(
    `${join(directory, '2_b.sql')} ran, but could not be noted in pgmigrations: the ledger is full`,
  )
  expect(message).toContain('Nothing of this file is in effect.')
  expect(message).not.toContain('committed')
  expect(await tablesOf(client)).toEqual(['a'])
})

test("node-pg-migrate's own runner keeps the same ledger and takes the same lock", async () => {
  const { migrator, client, directory, url } = await fixture({ '1_a.sql': table('a'), '2_b.sql': table('b') })
  const theirs = { dbClient: client, dir: directory, migrationsTable: 'pgmigrations', log: () => {} }
  await migrator.up({ count: 1 })
  expect((await runner({ ...theirs, direction: 'up' })).map((done) => done.name)).toEqual(['2_b'])
  expect(await migrator.up()).toEqual([])
  const other = await connect(url)
  await other.query(lockOfMigrators)
  await expect(runner({ ...theirs, direction: 'up' })).rejects.toThrow('Another migration is already running')
})

test('every foreign key has an index that begins with its columns', async () => {
  const client = await connect(await freshDatabaseUrl())
  const { rows } = await client.query(`
    select conrelid::regclass::text as table, conname as name from pg_constraint k
    where contype = 'f' and connamespace = 'public'::regnamespace and not exists (
      select from pg_index i where i.indrelid = k.conrelid and i.indpred is null
        and (i.indkey::int2[])[0:cardinality(k.conkey) - 1] @> k.conkey)`)
  expect(rows).toEqual([])
})

test('every table has a comment, and every constraint a name of ours', async () => {
  const client = await connect(await freshDatabaseUrl())
  const { rows: tables } = await client.query(
    "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' and relname <> 'pgmigrations' and obj_description(oid, 'pg_class') is null",
  )
  expect(tables).toEqual([])
  const files = (await readdir('migrations')).map((name) => readFile(`migrations/${name}`, 'utf8'))
  const sql = (await Promise.all(files)).join('\n')
  const { rows } = await client.query<{ name: string }>(
    "select conname as name from pg_constraint where connamespace = 'public'::regnamespace and contype <> 'n' and conrelid <> 'pgmigrations'::regclass",
  )
  expect(rows.map((row) => row.name).filter((name) => !sql.includes(`CONSTRAINT ${name} `))).toEqual([])
})

test('identifiers are UUIDs of version 7, unique, and in the order of creation', async () => {
  const client = await connect(await freshDatabaseUrl())
  const before = Date.now()
  const { rows } = await client.query<{ id: string }>('select uuid_v7() as id from generate_series(1, 2000)')
  const ids = rows.map((row) => row.id)
  for (const id of ids) expect(id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
  expect(new Set(ids).size).toBe(2000)
  // 48 bits of time and 12 of its fraction: what comes before the random part never goes back.
  const times = ids.map((id) => id.slice(0, 18))
  expect(times.toSorted()).toEqual(times)
  const [first = ''] = ids
  expect(Math.abs(Number.parseInt(first.replace('-', '').slice(0, 12), 16) - before)).toBeLessThan(10_000)
})

const alice = "'ada@example.org', 'ada', 'Ada', '$scrypt$not-a-real-hash'"

test.each([
  [
    "insert into users (email, username, name, password_hash) values ('ADA@example.ORG', 'ada2', 'Ada', '$scrypt$not-a-real-hash')",
    'users_email_key',
  ],
  [
    "insert into users (email, username, name, password_hash) values ('ada2@example.org', 'ADA', 'Ada', '$scrypt$not-a-real-hash')",
    'users_username_key',
  ],
  [
    "insert into users (email, username, name, password_hash) values ('not an address', 'ada2', 'Ada', '$scrypt$not-a-real-hash')",
    'users_email_check',
  ],
  ["update users set name = '  '", 'users_name_check'],
  [
    "insert into categories (id, parent_id, slug, name) select id, id, 'a', 'A' from (select uuid_v7() as id) as new",
    'categories_parent_check',
  ],
  ["insert into products (sku, name, price_minor, stock) values ('A-1', 'A', 100, -1)", 'products_stock_check'],
  [
    "insert into products (sku, name, price_minor, currency) values ('A-1', 'A', 100, 'eur')",
    'products_currency_check',
  ],
  ["insert into user_profiles (user_id, preferences) select id, '[]' from users", 'user_profiles_preferences_check'],
  ['insert into user_profiles (user_id) values (uuid_v7())', 'user_profiles_user_id_fkey'],
])('%s violates %s', async (sql, constraint) => {
  const client = await connect(await freshDatabaseUrl())
  await client.query(`insert into users (email, username, name, password_hash) values (${alice})`)
  await expect(client.query(sql)).rejects.toMatchObject({ constraint })
})

test('the search vector follows name and description, and the name weighs more', async () => {
  const client = await connect(await freshDatabaseUrl())
  await client.query(
    "insert into products (sku, name, description, price_minor) values ('A-1', 'Lamp', 'Gives light to chairs', 1), ('A-2', 'Chair', 'To sit on', 1)",
  )
  const { rows } = await client.query(
    "select sku from products, websearch_to_tsquery('english', 'chairs') q where search_vector @@ q order by ts_rank(search_vector, q) desc",
  )
  expect(rows).toEqual([{ sku: 'A-2' }, { sku: 'A-1' }])
})

interface Ended {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

async function kanta(args: readonly string[], env: NodeJS.ProcessEnv): Promise<Ended> {
  const options = { env: { PATH: process.env['PATH'], NO_COLOR: '1', ...env } }
  try {
    return { code: 0, ...(await run(process.execPath, ['src/cli/main.ts', ...args], options)) }
  } catch (error) {
    return error as Ended
  }
}

test('the command line migrates, reports by exit code and JSON, and keeps production from going back by mistake', async () => {
  const [url, directory] = await Promise.all([freshDatabaseUrl('empty'), folderWith({ '0001_a.sql': table('a') })])
  const env = { DATABASE_URL: url }
  const on = ['--migrations', directory]

  expect(await kanta(['migrate', 'status', '--exit-code', ...on], env)).toMatchObject({
    code: 1,
    stdout: '0001_a  pending\n0 applied, 1 pending\n',
  })
  expect(await kanta(['migrate', ...on], env)).toMatchObject({
    code: 0,
    stdout: expect.stringMatching(/^applied 1 migration in \d+ ms\n$/),
  })
  const status = await kanta(['migrate', 'status', '--exit-code', '--json', ...on], env)
  expect(JSON.parse(status.stdout)).toEqual([{ name: '0001_a', state: 'applied', appliedAt: expect.any(String) }])
  expect(status.code).toBe(0)
  const production = { ...env, NODE_ENV: 'production' }
  expect(await kanta(['migrate', 'down', ...on], production)).toMatchObject({
    code: 1,
    stdout: expect.stringContaining('--yes'),
  })
  expect(await kanta(['migrate', 'down', '--yes', ...on], production)).toMatchObject({ code: 0 })

  expect(await kanta(['migrate', 'create', 'add', 'b', ...on], env)).toMatchObject({
    code: 0,
    stdout: expect.stringContaining('0002_add_b.sql'),
  })
  const failed = await kanta(['migrate', 'up', ...on], env)
  expect(failed).toMatchObject({ code: 2, stdout: '' })
  expect(failed.stderr).toMatch(
    /^kanta: \S+0002_add_b\.sql:1 has no SQL under `-- Up Migration`\. .*\n\(MIGRATION_INVALID\)\n$/,
  )
  const asJson = await kanta(['migrate', 'up', '--json', ...on], env)
  expect(JSON.parse(asJson.stdout)).toMatchObject({ error: { code: 'MIGRATION_INVALID', line: 1 } })
  expect(await kanta(['migrate', 'up', '--count', 'x', ...on], env)).toMatchObject({
    code: 2,
    stderr: expect.stringContaining('whole number'),
  })
}, 60_000)

test('a server that is down, seen from the command line, is one message and exit code 2', async () => {
  const { code, stderr, stdout } = await kanta(['migrate', 'up', '--json'], {
    DATABASE_URL: 'postgres://app:secret@127.0.0.1:1/app',
  })
  expect(code).toBe(2)
  expect(JSON.parse(stdout)).toMatchObject({ error: { code: 'CONNECTION_FAILED' } })
  expect(stdout + stderr).not.toMatch(/secret|\n\s+at /)
})

test("the domain's migrations can be copied and continued by another team", async () => {
  const url = await freshDatabaseUrl()
  const directory = await folderWith({})
  await cp('migrations', directory, { recursive: true })
  await writeFile(join(directory, '0100_invoices.sql'), table('invoices'))
  const migrator = await open({ postgres: { url }, directory })
  expect((await migrator.up()).map((done) => done.name)).toEqual(['0100_invoices'])
})
