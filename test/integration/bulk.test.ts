import { Readable } from 'node:stream'
import * as fc from 'fast-check'
import { CamelCasePlugin, type Generated, sql } from 'kysely'
import { describe, expect, test } from 'vitest'
import { createDatabase } from '../../src/index.ts'
import { freshDatabaseUrl } from '../support/database.ts'
import { startProxy } from '../../src/testing/fault-proxy.ts'
import { countOf as count, named, odd, openThings as open, schema, type Tables } from '../support/things.ts'

describe('insertMany', () => {
  test('more rows than parameters would allow are written in order, by few statements of one text', async () => {
    await using database = await open()
    const texts: string[] = []
    database.events.on('query', ({ sql: text }) => texts.push(text))
    const seen: number[] = []
    const { count: written, rows } = await database.insertMany('things', named(70_000), {
      returning: ['id', 'name'],
      onProgress: ({ rows: done }) => seen.push(done),
    })
    expect(written).toBe(70_000)
    expect(rows).toHaveLength(70_000)
    expect(rows[69_999]).toEqual({ id: 70_000, name: 'name 69999' })
    expect(await count(database)).toBe(70_000)
    const inserts = texts.filter((text) => /insert/.test(text))
    expect(inserts).toHaveLength(35)
    expect(new Set(inserts).size).toBe(1)
    expect(seen).toEqual(Array.from({ length: 35 }, (_, n) => 2_000 * (n + 1)))
  })

  test('every kind of value means what it means as a parameter', async () => {
    await using database = await open()
    await database.db
      .insertInto('things')
      .values({ ...odd, name: 'one by one', data: JSON.stringify([1, { a: 'b' }]) })
      .execute()
    await database.insertMany('things', [{ ...odd, data: [1, { a: 'b' }] }])
    const [single, many] = await database.db.selectFrom('things').selectAll().orderBy('id').execute()
    expect(many).toEqual({ ...single, id: 2, name: odd.name, length: odd.name.length })
  })

  test('any text and any bytes survive, alone and in arrays', async () => {
    await using database = await open()
    const text = fc.string({ unit: 'grapheme', maxLength: 30 }).map((value) => value.replaceAll('\0', ''))
    const row = fc.record({
      note: fc.option(text),
      tags: fc.option(fc.array(text, { maxLength: 5 })),
      raw: fc.option(fc.uint8Array({ maxLength: 20 }).map((bytes) => Buffer.from(bytes))),
      data: fc
        .jsonValue({ maxDepth: 2 })
        .filter((value) => typeof value === 'object' && value !== null && !JSON.stringify(value).includes('\\u0000')),
    })
    await fc.assert(
      fc.asyncProperty(fc.array(row, { minLength: 1, maxLength: 30 }), async (rows) => {
        await database.query(sql`truncate things`)
        const given = rows.map((one, n) => ({ name: String(n), ...one }))
        await database.insertMany('things', given, { chunkRows: 7 })
        const { rows: kept } = await sql<object>`select name, note, tags, raw, data from things order by id`.execute(
          database.db,
        )
        // JSON has no negative zero.
        expect(kept).toEqual(given.map((one) => ({ ...one, data: JSON.parse(JSON.stringify(one.data)) as unknown })))
      }),
      { numRuns: 40 },
    )
  })

  test('values of each type are stored as single statements store them, whatever is in the rows around them', async () => {
    await using database = await createDatabase<{ kinds: Record<string, unknown> }>({
      postgres: { url: await freshDatabaseUrl() },
      redis: false,
    })
    const uuid = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'
    const values: Readonly<Record<string, readonly unknown[]>> = {
      bool: [true, false, 'off'],
      int2: [0, -0, 32_767, -32_768, '12'],
      int4: [1, 2_147_483_647, -2_147_483_648, ' 7'],
      int8: [1, -1, 2 ** 31, 2 ** 53 - 1, 1 - 2 ** 53, 2n ** 63n - 1n, -(2n ** 63n), '42'],
      float4: [0.1, 16_777_217, -0],
      float8: [0.1, -0, 5, NaN, -Infinity, 5e-324, '2.5'],
      numeric: ['1.20', 3.5, NaN],
      text: ['', 'null', 'ünï 🎉', '"\\{,}', 'x'.repeat(9_000), 'é'.repeat(5_000), 5, true, { a: 1 }],
      'varchar(7)': ['seven', 'ß'.repeat(7), 1n],
      'char(3)': ['a', 'abc'],
      json: [{ a: '"\\' }, '[1, null]', 7, true],
      jsonb: [{ b: [1], a: 'é' }, '"text"', 7, '{"a": "\\u00e9"}'],
      uuid: [uuid, uuid.toUpperCase(), `{${uuid}}`, uuid.replaceAll('-', '')],
      bytea: [Buffer.from([0, 255, 92]), new Uint8Array([1]), Buffer.alloc(0), '\\x00ff'],
      timestamptz: [
        ...['2026-11-21T12:34:56.789Z', '0001-01-01T00:00:00Z', '9999-12-31T23:59:59.999Z'].map((at) => new Date(at)),
        ...[0, -1, Date.UTC(2000) - 1].map((at) => new Date(at)),
        '2026-01-01 12:00:00.000001+02',
        'infinity',
        new Date('-000001-01-01T00:00:00Z'),
      ],
      timestamp: [new Date(0), '2026-01-01'],
      date: [new Date(0), '2026-01-01'],
      'int4[]': [[1, null], [], '{3}'],
      score: [3, '4'],
      mood: ['good'],
    }
    await database.query(sql`create domain score as int check (value < 100)`)
    await database.query(sql`create type mood as enum ('good', 'bad')`)
    const columns = Object.keys(values)
    const parts = columns.map((type) => sql`${sql.id(type)} ${sql.raw(type)}`)
    for (const table of ['kinds', 'alone'])
      await database.query(sql`create table ${sql.id(table)} (n int, ${sql.join(parts)})`)
    const row = fc.record(
      Object.fromEntries(
        columns.map((type) => [type, fc.option(fc.constantFrom(...(values[type] as [])), { freq: 4 })]),
      ),
    )
    const stored = async (table: string) => {
      const texts = columns.map((type) => sql`${sql.id(type)}::text`)
      return database.query(sql<object>`select ${sql.join(texts)} from ${sql.id(table)} order by n`)
    }
    await fc.assert(
      fc.asyncProperty(fc.array(row, { minLength: 1, maxLength: 6 }), async (rows) => {
        await database.query(sql`truncate kinds, alone`)
        const given = rows.map((one, n) => ({ n, ...one }))
        await database.insertMany('kinds', given)
        await database.transaction(async () => {
          for (const one of given)
            await database.query(
              sql`insert into alone values (${sql.join(Object.values(one).map((value) => sql`${value}`))})`,
            )
        })
        expect(await stored('kinds')).toEqual(await stored('alone'))
      }),
      { numRuns: 150 },
    )
    const refused: readonly (readonly [column: string, value: unknown])[] = [
      ['int2', 32_768],
      ['int4', 2 ** 31],
      ['int4', 1.5],
      ['int8', 2 ** 63],
      ['int8', 2n ** 63n],
      ['bool', 2],
      ['uuid', 'a0eebc99'],
      ['uuid', uuid.replace('a0', 'g0')],
      ['timestamptz', new Date(NaN)],
      ['varchar(7)', 'eight---'],
      ['json', '{'],
      ['jsonb', '{'],
      ['score', 100],
    ]
    for (const [column, value] of refused) {
      const alone = database.query(sql`insert into alone (${sql.id(column)}) values (${value})`)
      const codes = await Promise.allSettled([alone, database.insertMany('kinds', [{ [column]: value }])])
      const [first, second] = codes.map((result) => (result as { reason?: { code: string } }).reason?.code)
      expect({ column, code: second }).toEqual({ column, code: first ?? 'an error' })
    }
  })

  test('a column that a row leaves out, or has as undefined, gets its default', async () => {
    await using database = await open()
    await database.insertMany('things', [
      { name: 'a', state: 'old' },
      { name: 'b' },
      { name: 'c', state: undefined, note: null } as never,
      { name: 'd', state: 'old' },
    ])
    const rows = await database.db.selectFrom('things').select(['name', 'state', 'note']).orderBy('name').execute()
    expect(rows).toEqual([
      { name: 'a', state: 'old', note: null },
      { name: 'b', state: 'new', note: null },
      { name: 'c', state: 'new', note: null },
      { name: 'd', state: 'old', note: null },
    ])
  })

  test('a value that is too long for its column is refused, and not cut', async () => {
    await using database = await open()
    await expect(database.insertMany('things', [{ name: 'x'.repeat(21) }])).rejects.toMatchObject({
      code: 'INVALID_DATA',
    })
    await expect(database.insertMany('things', [{ name: 'forbidden' }])).rejects.toMatchObject({
      code: 'CHECK_VIOLATION',
    })
  })

  test('of a source that fails half way nothing is written, and the error says where it was', async () => {
    await using database = await open()
    const failing = async function* () {
      yield* named(11_000)
      throw new Error('the file is broken')
    }
    const failed = database.insertMany('things', failing())
    await expect(failed).rejects.toMatchObject({
      code: 'BULK_SOURCE_FAILED',
      message: 'insert into things: The source of the rows failed after row 11000. Nothing was written.',
      cause: { message: 'the file is broken' },
    })
    expect(await count(database)).toBe(0)
    await expect(database.insertMany('things', failing(), { atomic: false })).rejects.toMatchObject({
      rowsWritten: 10_000,
      message: expect.stringContaining('10000 rows are written') as string,
    })
    expect(await count(database)).toBe(10_000)
  })

  test('a row that cannot be written undoes all, or with atomic: false only its own statement', async () => {
    await using database = await open()
    const rows = [...named(30), ...named(1), ...named(9, 30)]
    await expect(database.insertMany('things', rows, { chunkRows: 10 })).rejects.toMatchObject({
      code: 'UNIQUE_VIOLATION',
      rowsWritten: undefined,
    })
    expect(await count(database)).toBe(0)
    await expect(database.insertMany('things', rows, { chunkRows: 10, atomic: false })).rejects.toMatchObject({
      code: 'UNIQUE_VIOLATION',
      rowsWritten: 30,
    })
    expect(await count(database)).toBe(30)
  })

  test('rows that cannot be sent are refused by their number, and nothing of them is in the message', async () => {
    await using database = await open()
    const refused = (rows: readonly object[]) => database.insertMany('things', rows as never)
    await expect(refused([{ name: 'a' }, { name: 'secret\0' }])).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(/^insert into things: Row 2 has a NUL character in name(?!.*secret)/) as string,
    })
    await expect(refused([{ name: 'a' }, { nmae: 'b' }])).rejects.toThrow(
      'Row 2 has nmae, which is no column of things',
    )
    await expect(refused([{}])).rejects.toThrow('Row 1 has no values')
    await expect(refused([null as never])).rejects.toThrow('Row 1 is null')
    await expect(database.insertMany('nowhere' as never, named(1) as never)).rejects.toMatchObject({
      code: 'UNDEFINED_OBJECT',
    })
    await expect(database.insertMany('things', named(1), { chunkRows: 0 })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    })
    expect(await count(database)).toBe(0)
  })

  test('a row that no statement can hold is refused by its number', async () => {
    await using database = await open()
    // As text, which it has to be beside one that is given so, it would be longer than a string can be.
    const rows = [
      { name: 'a', raw: '\\x00' },
      { name: 'b', raw: Buffer.alloc(270_000_000) },
    ]
    await expect(database.insertMany('things', rows as never, { atomic: false })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: 'insert into things: Row 2 is too long to be sent. Nothing was written.',
      rowsWritten: 0,
    })
    expect(await count(database)).toBe(0)
  })

  test('it joins the transaction around it, and only its own rows are undone when it fails there', async () => {
    await using database = await open()
    await database.transaction(async () => {
      await database.insertMany('things', named(3))
      await expect(database.insertMany('things', [...named(2, 10), ...named(1)])).rejects.toMatchObject({
        code: 'UNIQUE_VIOLATION',
      })
      expect(await count(database)).toBe(3)
    })
    expect(await count(database)).toBe(3)
    const undone = database.transaction(async () => {
      await database.insertMany('things', named(3, 20))
      throw new Error('no')
    })
    await expect(undone).rejects.toThrow('no')
    expect(await count(database)).toBe(3)
  })

  test('an empty source writes nothing, and a signal stops it', async () => {
    await using database = await open()
    expect(await database.insertMany('things', [])).toEqual({ count: 0, rows: [] })
    const stop = new AbortController()
    const stopping = database.insertMany('things', named(50_000), {
      signal: stop.signal,
      onProgress: () => stop.abort(new Error('enough')),
    })
    await expect(stopping).rejects.toThrow('enough')
    expect(await count(database)).toBe(0)
  })

  test('a signal stops it although its source waits, and closes that', async () => {
    await using database = await open()
    for (const atomic of [true, false]) {
      for (const rows of [0, 7]) {
        const stop = new AbortController()
        const waiting = Promise.withResolvers<void>()
        const source = new Readable({ objectMode: true, read: () => waiting.resolve() })
        for (const row of named(rows)) source.push(row)
        const stopping = database.insertMany('things', source, { atomic, signal: stop.signal })
        stopping.catch(() => undefined)
        await waiting.promise
        stop.abort(new Error('enough'))
        await expect(stopping).rejects.toThrow('enough')
        expect(source.destroyed).toBe(true)
      }
    }
    expect(await count(database)).toBe(0)
  })

  test('an object whose toJSON gives nothing is null, as it is as a parameter', async () => {
    await using database = await open()
    const data = { toJSON: () => undefined }
    await database.insertMany('things', [{ name: 'bulk', data }])
    await database.copy.from('things', [{ name: 'copy', data }])
    expect(await database.query(sql`select data from things`)).toEqual([{ data: null }, { data: null }])
  })

  test('with a plugin that renames columns, rows have the names of the program', async () => {
    const url = await freshDatabaseUrl('empty')
    await using database = await createDatabase<{ someThings: { id: Generated<number>; isGood: boolean } }>({
      postgres: { url },
      redis: false,
      plugins: [new CamelCasePlugin()],
    })
    await database.query(sql`create table some_things (id int generated always as identity, is_good boolean)`)
    const { rows } = await database.insertMany('someThings', [{ isGood: true }, { isGood: false }], {
      returning: ['isGood'],
    })
    expect(rows).toEqual([{ isGood: true }, { isGood: false }])
  })

  test('a connection that is lost on the way leaves nothing behind', async () => {
    const url = await freshDatabaseUrl('empty')
    const proxy = await startProxy({ to: url })
    {
      await using direct = await createDatabase<Tables>({ postgres: { url }, redis: false })
      await direct.query(sql.raw(schema))
      await using database = await createDatabase<Tables>({ postgres: { url: proxy.url, retry: false }, redis: false })
      proxy.on({ from: 'client', message: 'Bind', sql: /insert into/ }, 'reset', { nth: 3 })
      const once = function* () {
        yield* named(20_000)
      }
      await expect(database.insertMany('things', once())).rejects.toMatchObject({ code: 'CONNECTION_LOST' })
      expect(await count(direct)).toBe(0)
    }
    await proxy.close()
  })
})

describe('upsertMany', () => {
  test('new rows are inserted, and those that are there take what is new', async () => {
    await using database = await open()
    await database.insertMany('keyed', [
      { a: 1, b: 'x', n: 1 },
      { a: 1, b: 'y', n: 2 },
    ])
    const { count: written, rows } = await database.upsertMany(
      'keyed',
      [
        { a: 1, b: 'y', n: 20 },
        { a: 2, b: 'y', n: 30 },
      ],
      { conflict: ['a', 'b'], returning: ['a', 'b', 'n'] },
    )
    expect(written).toBe(2)
    expect(rows).toEqual([
      { a: 1, b: 'y', n: 20 },
      { a: 2, b: 'y', n: 30 },
    ])
    const kept = await database.db.selectFrom('keyed').selectAll().orderBy('a').orderBy('b').execute()
    expect(kept.map(({ n }) => n)).toEqual([1, 20, 30])
  })

  test('the columns to update can be named, or none', async () => {
    await using database = await open()
    await database.insertMany('things', [{ name: 'a', note: 'first', state: 'new' }])
    await database.upsertMany('things', [{ name: 'a', note: 'second', state: 'old' }], {
      conflict: 'things_name_key',
      update: ['note'],
    })
    expect(await database.queryOne(sql`select note, state from things`)).toEqual({ note: 'second', state: 'new' })
    const kept = await database.upsertMany('things', [{ name: 'a', note: 'third' }, { name: 'b' }], {
      conflict: ['name'],
      update: 'none',
    })
    expect(kept.count).toBe(1)
    expect(await database.queryOne(sql`select note from things where name = 'a'`)).toEqual({ note: 'second' })
  })

  test('a key that comes twice is refused, by whoever notices', async () => {
    await using database = await open()
    const twice = [
      { a: 1, b: 'x', n: 1 },
      { a: 1, b: 'x', n: 2 },
    ]
    await expect(database.upsertMany('keyed', twice, { conflict: ['a', 'b'] })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('Row 2 has the key of another row') as string,
    })
    await expect(database.upsertMany('keyed', twice, { conflict: 'keyed_pkey', update: ['n'] })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('the same key') as string,
    })
    await expect(database.upsertMany('keyed', [{ a: 1, n: 1 } as never], { conflict: ['a', 'b'] })).rejects.toThrow(
      'Row 1 has no b',
    )
    expect(await count(database, 'keyed')).toBe(0)
  })
})

describe('updateMany', () => {
  test('each row gets its own values, and what is not there is not counted', async () => {
    await using database = await open()
    await database.insertMany(
      'keyed',
      Array.from({ length: 12_000 }, (_, a) => ({ a, b: 'x', n: 0 })),
    )
    const changes = Array.from({ length: 12_001 }, (_, a) => ({ a, b: 'x', n: a % 3 === 0 ? null : a }))
    const { count: changed, rows } = await database.updateMany('keyed', changes, { key: ['a', 'b'], returning: ['a'] })
    expect(changed).toBe(12_000)
    expect(rows).toHaveLength(12_000)
    const wrong = await database.queryCount(
      sql`select count(*) from keyed where n is distinct from case when a % 3 = 0 then null else a end`,
    )
    expect(wrong).toBe(0)
  })

  test('a row that has only its key is refused', async () => {
    await using database = await open()
    await expect(database.updateMany('keyed', [{ a: 1, b: 'x' }], { key: ['a', 'b'] })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    })
  })
})
