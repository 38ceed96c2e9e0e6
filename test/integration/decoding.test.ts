import {
  assert,
  array,
  asyncProperty,
  bigInt,
  constantFrom,
  date,
  double,
  float,
  integer,
  oneof,
  option,
  record,
  string,
} from 'fast-check'
import { sql } from 'kysely'
import { Client } from 'pg'
import { beforeEach, describe, expect, test, vi } from 'vitest'
import { createDatabase, type Database, type DatabaseOptions } from '../../src/index.ts'
import { freshDatabaseUrl } from '../support/database.ts'
import { startProxy } from '../../src/testing/fault-proxy.ts'

let url = ''

beforeEach(async () => {
  url = await freshDatabaseUrl('empty')
})

const open = (postgres: DatabaseOptions['postgres'] = {}): Promise<Database<Record<string, never>>> =>
  createDatabase({ postgres: { url, ...postgres }, redis: false })

/** A client of `pg` itself, for what it makes of the same. */
async function driver(): Promise<Client & AsyncDisposable> {
  const client = new Client({ connectionString: url })
  await client.connect()
  return Object.assign(client, { [Symbol.asyncDispose]: () => client.end() })
}

const moment = date({
  min: new Date('0001-01-01T00:00:00Z'),
  max: new Date('9999-12-31T00:00:00Z'),
  noInvalidDate: true,
}).map((at) => at.toISOString())
const word = string({ unit: 'grapheme', maxLength: 12 }).map((text) => text.replaceAll('\0', ''))
/** By the name of the type, in which a value is sent as text. */
const kinds = {
  int2: option(integer({ min: -32_768, max: 32_767 })),
  int4: option(integer()),
  int8: option(bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }).map(String)),
  float4: option(float({ noNaN: true }).map(String)),
  float8: option(
    oneof(double({ min: -1e300, max: 1e300 }).map(String), constantFrom('-0', '1e308', 'Infinity', '5e-324')),
  ),
  numeric: option(oneof(bigInt().map(String), constantFrom('NaN', '0.00', '-12.3400'))),
  bool: option(constantFrom('t', 'f')),
  timestamptz: option(
    oneof(moment, constantFrom('infinity', '0044-03-15 12:00:00+00 BC', '12026-02-28 23:59:59.999999+00')),
  ),
  timestamp: option(oneof(moment, constantFrom('-infinity', '2026-03-29 03:30:00', '1900-02-28 24:00:00'))),
  date: option(
    oneof(
      moment.map((at) => at.slice(0, 10)),
      constantFrom('infinity', '2011-12-30', '0044-03-15 BC'),
    ),
  ),
  uuid: option(constantFrom('00000000-0000-0000-0000-000000000000', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11')),
  bytea: option(string().map((text) => `\\x${Buffer.from(text).toString('hex')}`)),
  text: option(word),
  'character(8)': option(constantFrom('', 'a', 'ÄÖ')),
  jsonb: option(word.map((text) => JSON.stringify({ text, list: [1, null, { a: 1.5 }] }))),
  name: option(constantFrom('n', 'a name')),
  'int4[]': option(array(option(integer()), { maxLength: 4 })),
  'text[]': option(array(option(word), { maxLength: 4 })),
  'timestamptz[]': option(array(option(moment), { maxLength: 3 })),
  'bool[]': option(array(option(constantFrom('t', 'f')), { maxLength: 3 })),
  'float8[]': option(array(option(double({ noNaN: true, min: -1e300, max: 1e300 })), { maxLength: 3 })),
  'uuid[]': option(array(constantFrom('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'), { maxLength: 2 })),
}
const values = record(kinds)
const names = Object.keys(kinds)
const selectValues = `select ${names.map((name, index) => `$${index + 1}::${name} as "${name}"`).join(', ')}`

describe.each([
  ['UTC', 'ISO, MDY', 'hex'],
  ['Europe/Helsinki', 'ISO, DMY', 'escape'],
  ['Asia/Kathmandu', 'German', 'hex'],
  ['America/St_Johns', 'SQL, DMY', 'hex'],
  ['Africa/Monrovia', 'Postgres, MDY', 'hex'],
])('on a server with TimeZone %s, DateStyle %s and bytea_output %s', (timeZone, dateStyle, byteaOutput) => {
  test('random values of all common types are what pg makes of them', async () => {
    await using client = await driver()
    const { rows } = await client.query<{ name: string }>('select current_database() as name')
    for (const [setting, value] of Object.entries({
      timezone: timeZone,
      datestyle: dateStyle,
      bytea_output: byteaOutput,
    }))
      await client.query(`alter database ${rows[0]?.name} set ${setting} to '${value}'`)
    // What pg itself can read; our connections see to that by themselves.
    await client.query(`set timezone to '${timeZone}'`)
    await client.query(`set bytea_output to '${byteaOutput}'`)
    await using database = await open()
    await assert(
      asyncProperty(values, async (row) => {
        const parameters = names.map((name) => row[name as keyof typeof kinds])
        const expected = await client.query(selectValues, parameters)
        const query = sql.raw(selectValues).compile(database.db)
        const found = await database.db.executeQuery({ ...query, parameters })
        expect(found.rows).toStrictEqual(expected.rows)
      }),
      { numRuns: 60 },
    )
    expect(await database.queryValue(sql`select current_setting('TimeZone')`)).toBe(timeZone)
    expect(await database.queryValue(sql`select current_setting('DateStyle')`)).toMatch(/^ISO/)
  })
})

const wide = (columns: number): string =>
  `select ${Array.from({ length: columns }, (_, index) => `n * ${index} as c${index}`).join(', ')} from generate_series(1, 1000) n`

describe('rows', () => {
  test('of 300 columns, and of 1600, are what pg gives', async () => {
    await using client = await driver()
    await using database = await open()
    for (const columns of [300, 1_600]) {
      const { rows } = await client.query<Record<string, number>>(wide(columns))
      expect(await database.query(sql.raw(wide(columns)))).toStrictEqual(rows)
    }
  })

  test('may have no columns, two of one name, or names that mean something to JavaScript', async () => {
    await using database = await open()
    expect(await database.query(sql`select from generate_series(1, 3)`)).toStrictEqual([{}, {}, {}])
    expect(await database.query(sql`select 1 as id, 2 as name, 3 as id`)).toStrictEqual([{ id: 3, name: 2 }])
    const [row] = await database.query<object>(
      sql`select '{"isAdmin": true}'::jsonb as "__proto__", 1 as constructor, 2 as "a""b", 3 as "a\\b", null::int as "${sql.raw("it's")}"`,
    )
    expect(Object.entries(row as object)).toStrictEqual([
      ['__proto__', { isAdmin: true }],
      ['constructor', 1],
      ['a"b', 2],
      ['a\\b', 3],
      ["it's", null],
    ])
    expect(Object.getPrototypeOf(row)).toBe(Object.prototype)
  })

  test('are the same prepared and not, shared and borrowed, in a transaction and in a stream', async () => {
    await using database = await open({ types: { int8: 'bigint', numeric: 'number', date: 'string' } })
    await vi.waitUntil(() => database.stats().pipeline?.connections === 2)
    const { db } = database
    const built = db.selectNoFrom([
      sql<bigint>`9007199254740993::int8`.as('big'),
      sql<number>`12.50::numeric`.as('amount'),
      sql<string>`date '2026-11-21'`.as('day'),
      sql<(bigint | null)[]>`array[1, null]::int8[]`.as('bigs'),
      sql<number[]>`array[0.5, 2]::numeric[]`.as('amounts'),
      sql<string[]>`array[date '2026-11-21']`.as('days'),
    ])
    const expected = {
      big: 9_007_199_254_740_993n,
      amount: 12.5,
      day: '2026-11-21',
      bigs: [1n, null],
      amounts: [0.5, 2],
      days: ['2026-11-21'],
    }
    for (let use = 0; use < 6; use += 1) expect(await built.execute()).toStrictEqual([expected])
    expect(await database.query(sql`${built}`)).toStrictEqual([expected])
    expect(await database.prepare(() => built)({})).toStrictEqual([expected])
    await database.transaction(async () => {
      for (let use = 0; use < 4; use += 1) expect(await built.execute()).toStrictEqual([expected])
    })
    const streamed: unknown[] = []
    for await (const row of built.stream()) streamed.push(row)
    expect(streamed).toStrictEqual([expected])
    expect(await database.queryCount(sql`select count(*) from generate_series(1, 7)`)).toBe(7)
  })
})

describe('two databases with other settings in one process', () => {
  test('do not disturb one another', async () => {
    await using asBigint = await open({ types: { int8: 'bigint' } })
    await using asNumber = await open({ types: { int8: 'number' } })
    await using plain = await open()
    const query = sql`select count(*) as n, array[5::int8] as list from generate_series(1, 5)`
    for (let use = 0; use < 5; use += 1) {
      expect(await asBigint.query(query)).toEqual([{ n: 5n, list: [5n] }])
      expect(await asNumber.query(query)).toEqual([{ n: 5, list: [5] }])
      expect(await plain.query(query)).toEqual([{ n: '5', list: ['5'] }])
    }
  })

  test('and the embedded PostgreSQL reads as the setting says, too', async () => {
    await using database = await createDatabase({
      postgres: { embedded: { dataDir: 'memory' }, types: { int8: 'bigint' } },
      redis: false,
      logger: { info: () => undefined, warn: () => undefined },
    })
    expect(await database.query(sql`select 5::int8 as n, '{}'::int8[] as list`)).toEqual([{ n: 5n, list: [] }])
  })
})

describe('a value that cannot be read', () => {
  test('rejects its query by the name of the column, and the connection goes on', async () => {
    await using database = await open({ pool: { max: 1 }, pipeline: false, types: { int8: 'number' } })
    for (let use = 0; use < 5; use += 1) {
      const query = database.query(sql`select 1 as fine, 9007199254740992::int8 as total from generate_series(1, 3)`)
      await expect(query).rejects.toMatchObject({
        code: 'INVALID_DATA',
        message: expect.stringMatching(/column total cannot be read: .*MAX_SAFE_INTEGER/) as string,
      })
      expect(await database.queryValue(sql`select 9007199254740991::int8`)).toBe(Number.MAX_SAFE_INTEGER)
    }
    expect(database.stats().pool.total).toBe(1)
  })

  test('because the message is damaged, ends no more than its connection', async () => {
    await using proxy = await proxied()
    await using database = await createDatabase({
      postgres: { url: proxy.url, pipeline: false, pool: { max: 1 }, retry: false },
      redis: false,
    })
    const query = sql`select 12345 as number, timestamptz '2026-11-21 09:30:00Z' as at, repeat('x', 100) as text`
    const expected = await database.query(query)
    // The type, the length, the count of columns, the length of the first value, and each byte of the first two.
    const outcomes = new Set<string>()
    for (let byte = 0; byte < 52; byte += 1) {
      proxy.on({ from: 'server', message: 'DataRow' }, { corruptByte: byte })
      const outcome = await database.query(query, { timeoutMs: 400 }).catch((error: { code?: string }) => error)
      outcomes.add(Array.isArray(outcome) ? 'rows' : typeof outcome.code)
      expect(await database.query(query)).toEqual(expected)
    }
    expect(outcomes).toEqual(new Set(['rows', 'string']))
    for (const length of [0, 3, -1, -(2 ** 31)]) {
      proxy.on({ from: 'server', message: 'DataRow' }, { length: () => length })
      await expect(database.query(query, { timeoutMs: 400 })).rejects.toMatchObject({
        code: expect.any(String) as string,
      })
      expect(await database.query(query)).toEqual(expected)
    }
  })
})

describe('a message that comes in pieces', () => {
  test('of one byte each is read as if it had come at once', async () => {
    await using proxy = await proxied()
    await using database = await createDatabase({
      postgres: { url: proxy.url, pipeline: false, pool: { max: 1 } },
      redis: false,
    })
    const query = sql`select n, 'é' || n as text, null as nothing from generate_series(1, 20) n`
    const expected = await database.query(query)
    proxy.on({ from: 'server', message: 'BindComplete' }, { trickleMs: 0.1 })
    expect(await database.query(query)).toStrictEqual(expected)
  })

  test('or of many megabytes, goes both ways whole', { timeout: 60_000 }, async () => {
    await using database = await open({ pool: { max: 1 }, pipeline: false })
    const size = 20_000_000
    const text = 'aé'.repeat(size / 2)
    const bytes = Buffer.alloc(size, 'raw \0 bytes')
    const row = await database.queryOne<{ text: string; bytes: Buffer; after: number }>(
      sql`select ${text}::text as text, ${bytes}::bytea as bytes, 7 as after`,
    )
    expect(row?.text === text).toBe(true)
    expect(row?.bytes.equals(bytes)).toBe(true)
    expect(row?.after).toBe(7)
    expect(await database.queryValue(sql`select 1`)).toBe(1)
  })
})

async function proxied(): Promise<Awaited<ReturnType<typeof startProxy>> & AsyncDisposable> {
  const proxy = await startProxy({ to: url })
  return Object.assign(proxy, { [Symbol.asyncDispose]: () => proxy.close() })
}
