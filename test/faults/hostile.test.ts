import { type ExpressionBuilder, sql } from 'kysely'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Database } from '../../src/index.ts'
import { freshDatabaseUrl } from '../support/database.ts'
import { type Proxy, startProxy } from '../../src/testing/fault-proxy.ts'
import { open } from './open.ts'
import { record, tally } from './record.ts'
import { attempt, witness, type Witness } from './witness.ts'

interface Tables {
  notes: { id: number; body: string | null; settings: Record<string, unknown> | null }
}

/** What an attacker can send as a string. */
const strings: readonly string[] = [
  `'; drop table notes; --`,
  `' or '1'='1`,
  `"; drop table notes; --`,
  `\\'; drop table notes; --`,
  `\\`,
  `$1`,
  `$1::text) returning *; drop table notes; --`,
  `?`,
  `:name`,
  `E'\\x27'`,
  `$$; drop table notes; $$`,
  `$a$`,
  `/*`,
  `*/ drop table notes`,
  `--`,
  `%s %I %L`,
  '\u0000',
  'before\u0000after',
  '\uD800',
  '\u02BC\uFF07\u2019; drop table notes; --',
  '\u202E;setoN elbat pord',
  '\n\r\t\b\f\v',
  'x'.repeat(70_000),
  '__proto__',
  'constructor',
  'toString',
  'null',
  'NaN',
  '{"a": 1}',
  '{1,2}',
  '{"',
  `b'1'`,
  `ROW(1)`,
]

/** What an attacker can make JSON.parse return where a string was expected. */
const parsed: readonly unknown[] = [
  { toString: 'x' },
  { length: 1 },
  { toSQL: 'drop table notes', sql: 'drop table notes', parameters: [] },
  { toOperationNode: 'x', isRawBuilder: true, sql: '1; drop table notes' },
  { kind: 'RawNode', sqlFragments: ['1; drop table notes'], parameters: [] },
  { toPostgres: 'drop table notes' },
  { name: 'x', text: 'drop table notes', values: [] },
  JSON.parse('{"__proto__": {"toPostgres": "x", "isAdmin": true}}'),
  JSON.parse('{"constructor": {"prototype": {"isAdmin": true}}}'),
  ['; drop table notes', ["'"], { a: `"` }, null],
  [],
  {},
  true,
  0,
  -1,
  1e308,
  Number.NaN,
  null,
]

let proxy: Proxy
let admin: Witness
let database: Database<Tables>

beforeEach(async () => {
  const url = await freshDatabaseUrl('empty')
  proxy = await startProxy({ to: url })
  admin = await witness(url)
  await admin.rows('create table notes (id int, body text, settings jsonb)')
  await admin.rows(`insert into notes values (1, 'one', '{"a": {"b": 1}}'), (2, 'two', '{"a": {"b": 2}}')`)
  database = await open<Tables>(proxy.url, { pool: { max: 2 } })
})

afterEach(async () => {
  await database.close()
  await admin[Symbol.asyncDispose]()
  await proxy.close()
})

/** The statements that came to the server since the last call. */
function newStatements(known: Set<string>): string[] {
  const fresh = [...proxy.statements].filter((statement) => !known.has(statement))
  for (const statement of fresh) known.add(statement)
  return fresh
}

/** How a call ended; Kysely refuses some sort keys before there is a statement. */
async function fate(call: () => Promise<unknown>): Promise<string> {
  try {
    return (await attempt(call)).error?.code ?? 'answer'
  } catch (error) {
    if (error instanceof Error && error.message.startsWith('Invalid order by direction')) return 'refused by Kysely'
    throw error
  }
}

async function tableIsWhole(): Promise<boolean> {
  return (await admin.value<number>('select count(*)::int from notes where id in (1, 2)')) === 2 && !('isAdmin' in {})
}

test('row 26: hostile strings as values come back as they are, and the SQL does not change with them', async () => {
  const known = new Set<string>()
  const echo = (value: string): Promise<{ value: string }[]> =>
    database.query(sql<{ value: string }>`select ${value}::text as value`)
  const find = (value: string): Promise<unknown[]> =>
    database.db.selectFrom('notes').select('id').where('body', '=', value).execute()
  const add = (value: string): Promise<unknown[]> =>
    database.db.insertInto('notes').values({ id: 3, body: value }).returning('body').execute()
  const like = (value: string): Promise<unknown[]> =>
    database.db.selectFrom('notes').select('id').where('body', 'in', [value, 'x']).execute()
  for (const call of [echo, find, add, like]) await call('harmless')
  newStatements(known)
  const codes: string[] = []
  const wrong: string[] = []
  for (const value of strings) {
    for (const call of [echo, find, add, like]) {
      const outcome = await attempt(() => call(value))
      codes.push(outcome.error?.code ?? 'answer')
      // PostgreSQL's text holds neither NUL nor half a surrogate pair.
      const isRefused = value.includes('\u0000')
      if ((outcome.error !== undefined) !== isRefused)
        wrong.push(`${call.name} ${JSON.stringify(value.slice(0, 40))}: ${outcome.error?.message ?? 'no error'}`)
      const [row] = (outcome.value ?? []) as ({ value?: string; body?: string } | undefined)[]
      if (call === echo && !isRefused && row?.value !== value.toWellFormed())
        wrong.push(`echo of ${JSON.stringify(value.slice(0, 40))}`)
      if (call === add && !isRefused && row?.body !== value.toWellFormed())
        wrong.push(`insert of ${JSON.stringify(value.slice(0, 40))}`)
    }
  }
  const changed = newStatements(known)
  record(26, codes.length, `values: ${tally(codes)}; ${changed.length} changed statements, ${wrong.length} wrong`)
  expect(wrong).toEqual([])
  expect(changed).toEqual([])
  expect(await tableIsWhole()).toBe(true)
})

test('row 26: parsed JSON where a string was expected is data, never SQL', async () => {
  const known = new Set<string>()
  const find = (value: unknown): Promise<unknown> =>
    database.db
      .selectFrom('notes')
      .select('id')
      .where('body', '=', value as string)
      .execute()
  const isIt = (value: unknown): Promise<unknown> => database.query(sql`select id from notes where body = ${value}`)
  const change = (value: unknown): Promise<unknown> =>
    database.db
      .updateTable('notes')
      .set({ body: value as string })
      .where('id', '=', 3)
      .execute()
  const store = (value: unknown): Promise<unknown> =>
    database.db
      .insertInto('notes')
      .values({ id: 4, settings: value as Record<string, unknown> })
      .execute()
  for (const call of [find, isIt, change, store]) await call(call === store ? { a: 1 } : 'harmless')
  newStatements(known)
  const codes: string[] = []
  for (const value of parsed) {
    for (const call of [find, isIt, change, store])
      codes.push((await attempt(() => call(value))).error?.code ?? 'answer')
  }
  const changed = newStatements(known)
  record(26, codes.length, `parsed JSON: ${tally(codes)}; ${changed.length} changed statements`)
  // Kysely makes an array a list of parameters wherever a value may stand; the list is all that changes.
  expect(changed.map((statement) => statement.replace(/ = \((?:\$\d+(?:, \$\d+)*)?\)$/, ' = $1'))).toEqual(
    changed.map(() => 'select "id" from "notes" where "body" = $1'),
  )
  expect(await tableIsWhole()).toBe(true)
})

test('row 26: hostile identifiers and sort keys name columns that do not exist, and nothing else', async () => {
  const identifiers = strings.filter((text) => !text.includes('\u0000') && text.length < 1_000)
  const codes: string[] = []
  const known = new Set<string>()
  newStatements(known)
  for (const name of identifiers) {
    const column = name as 'body'
    codes.push(
      await fate(() => database.db.selectFrom('notes').select('id').orderBy(column).execute()),
      await fate(() => database.db.selectFrom('notes').select(column).execute()),
      await fate(() =>
        database.db
          .selectFrom(name as 'notes')
          .select('id')
          .execute(),
      ),
      await fate(() => database.query(sql`select id from notes order by ${sql.ref(name)}`)),
      await fate(() => database.query(sql`select id from ${sql.table(name)}`)),
      await fate(() => database.query(sql`select id as ${sql.id(name)} from notes`)),
    )
  }
  // Whatever it was, it stood between double quotes, with its own doubled.
  const loose = newStatements(known).filter((statement) =>
    /drop table|or '1'='1|pg_sleep/i.test(statement.replaceAll(/"(?:[^"]|"")*"/g, '')),
  )
  const directions = await Promise.all(
    ['asc; drop table notes', 'desc nulls last, (select pg_sleep(10))'].map((direction) =>
      fate(() =>
        database.db
          .selectFrom('notes')
          .select('id')
          .orderBy('id', direction as 'asc')
          .execute(),
      ),
    ),
  )
  record(
    26,
    codes.length + directions.length,
    `identifiers and sort keys: ${tally(codes)}; ${loose.length} outside quotes`,
  )
  expect(loose).toEqual([])
  expect(directions).not.toContain('answer')
  expect([...proxy.statements].filter((statement) => statement.includes('asc; drop'))).toEqual([])
  expect(await tableIsWhole()).toBe(true)
})

test('row 26: hostile JSON paths stay inside their literal', async () => {
  const codes: string[] = []
  const keys = strings.filter((text) => !text.includes('\u0000') && text.length < 1_000)
  const known = new Set<string>()
  newStatements(known)
  for (const key of keys) {
    const path = (eb: ExpressionBuilder<Tables, 'notes'>) =>
      eb
        .ref('settings', '->$')
        .key(key as never)
        .as('found')
    const arrow = (eb: ExpressionBuilder<Tables, 'notes'>) =>
      eb
        .ref('settings', '->')
        .key(key as never)
        .as('found')
    codes.push(
      ...(
        await Promise.all([
          attempt(() => database.db.selectFrom('notes').select(path).execute()),
          attempt(() => database.db.selectFrom('notes').select(arrow).execute()),
          attempt(() => database.query(sql`select settings #> ${['a', key]}::text[] from notes`)),
          attempt(() => database.query(sql`select jsonb_path_query(settings, ${`$."${key}"`}::jsonpath) from notes`)),
        ])
      ).map(({ error }) => error?.code ?? 'answer'),
    )
  }
  const loose = newStatements(known).filter((statement) =>
    /drop table|or '1'='1/i.test(statement.replaceAll(/'(?:[^']|'')*'|"(?:[^"]|"")*"/g, '')),
  )
  record(26, codes.length, `JSON paths: ${tally(codes)}; ${loose.length} outside quotes`)
  expect(loose).toEqual([])
  expect(await tableIsWhole()).toBe(true)
})

test('row 26: hostile column names make rows with those keys, and change nothing else', async () => {
  const names = strings.filter(
    (text) => !text.includes('\u0000') && text.isWellFormed() && text.length < 60 && text !== '',
  )
  const hostile = [
    ...names,
    '"]: globalThis.hacked = 1, ["x',
    '${globalThis.hacked = 1}',
    '\u2028',
    '`',
    ');globalThis.hacked=1;//',
    '\\u0022',
  ]
  const wrong: string[] = []
  for (const name of hostile) {
    // Twice, for a shape that is known already.
    for (const value of [1, 2]) {
      const quoted = `"${name.replaceAll('"', '""')}"`
      const { value: rows, error } = await attempt(() =>
        database.query(sql<Record<string, unknown>>`select ${value}::int as ${sql.raw(quoted)}, 7 as id`),
      )
      const [row] = rows ?? []
      const isRight =
        row !== undefined &&
        Object.hasOwn(row, name) &&
        row[name] === value &&
        row['id'] === 7 &&
        Object.keys(row).length === 2
      if (!isRight) wrong.push(`${JSON.stringify(name)}: ${error?.message ?? JSON.stringify(row)}`)
    }
  }
  record(26, hostile.length * 2, `column names: ${wrong.length} wrong`)
  expect(wrong).toEqual([])
  expect('hacked' in globalThis).toBe(false)
  expect(Object.getPrototypeOf({})).toBe(Object.prototype)
})
