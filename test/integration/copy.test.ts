import { AsyncResource } from 'node:async_hooks'
import { createReadStream, createWriteStream, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PassThrough, Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import * as fc from 'fast-check'
import { CamelCasePlugin, type Generated, sql } from 'kysely'
import { describe, expect, test, vi } from 'vitest'
import {
  createDatabase,
  type Database,
  type PostgresOptions,
  type QueryEvent,
  type RowSource,
} from '../../src/index.ts'
import { freshDatabaseUrl } from '../support/database.ts'
import { type Fault, type MessagePattern, type Proxy, startProxy } from '../../src/testing/fault-proxy.ts'
import { countOf as count, named, odd, openThings as open, schema, type Tables } from '../support/things.ts'

/** One connection, so that whatever does not give it back is noticed. */
const one: PostgresOptions = { pipeline: false, pool: { max: 1, acquireTimeoutMs: 2_000 } }

async function textOf(pieces: AsyncIterable<Buffer>): Promise<string> {
  const all: Buffer[] = []
  for await (const piece of pieces) all.push(piece)
  return Buffer.concat(all).toString()
}

/** Runs a call as another request would make it, outside the transaction that surrounds it. */
const outside = AsyncResource.bind((work: () => Promise<unknown>) => work())

const numbers = (upTo: number) => sql<{ n: number }>`select n from generate_series(1, ${upTo}::int) n`

describe('rows into a table', () => {
  test('are all there, and the event says how many', async () => {
    await using database = await open()
    const heard: QueryEvent[] = []
    database.events.on('query', (event) => heard.push(event))
    const seen: (number | undefined)[] = []
    const { count: written } = await database.copy.from('things', named(50_000), {
      onProgress: ({ rows }) => seen.push(rows),
    })
    expect(written).toBe(50_000)
    expect(await count(database)).toBe(50_000)
    expect(heard.find(({ sql: text }) => text.startsWith('copy'))).toMatchObject({
      rowCount: 50_000,
      inTransaction: true,
    })
    expect(seen.length).toBeGreaterThan(5)
    expect(seen.at(-1)).toBe(50_000)
    expect(seen).toEqual(seen.toSorted((a = 0, b = 0) => a - b))
  })

  test('mean what they mean as parameters', async () => {
    await using database = await open()
    const data = [1, { a: 'b' }]
    await database.db
      .insertInto('things')
      .values({ ...odd, name: 'one by one', data: JSON.stringify(data) })
      .execute()
    await database.copy.from('things', [{ ...odd, data }])
    const [single, copied] = await database.db.selectFrom('things').selectAll().orderBy('id').execute()
    expect(copied).toEqual({ ...single, id: 2, name: odd.name, length: odd.name.length })
  })

  test('of any text and any bytes survive', async () => {
    await using database = await open()
    const text = fc.string({ unit: 'grapheme', maxLength: 30 }).map((value) => value.replaceAll('\0', ''))
    const special = fc.string({
      unit: fc.constantFrom('\\', '\b', '\f', '\n', '\r', '\t', '\v', '.', 'N', '"', "'"),
      maxLength: 8,
    })
    const row = fc.record({
      note: fc.option(fc.oneof(text, special)),
      tags: fc.option(fc.array(fc.oneof(text, special), { maxLength: 5 })),
      raw: fc.option(fc.uint8Array({ maxLength: 20 }).map((bytes) => Buffer.from(bytes))),
    })
    await fc.assert(
      fc.asyncProperty(fc.array(row, { minLength: 1, maxLength: 30 }), async (rows) => {
        await database.query(sql`truncate things`)
        const given = rows.map((each, n) => ({ name: String(n), ...each }))
        await database.copy.from('things', given)
        const kept = await database.query(sql`select name, note, tags, raw from things order by id`)
        expect(kept).toEqual(given)
      }),
      { numRuns: 40 },
    )
  })

  test('longer than any buffer survive, between short ones', async () => {
    await using database = await open()
    const long = '€'.repeat(300_000)
    const notes = ['short', long, 'ü', `${long}\n${long}`, 'end']
    await database.copy.from(
      'things',
      notes.map((note, n) => ({ name: String(n), note })),
    )
    const kept = await database.query<{ note: string }>(sql`select note from things order by id`)
    expect(kept.map(({ note }) => note)).toEqual(notes)
  })

  test('may have their columns in any order, and only those of the first or those that were named', async () => {
    await using database = await open()
    await database.copy.from('things', [
      { name: 'a', note: 'x' },
      { note: 'y', name: 'b' },
    ] as never)
    await database.copy.from('things', [{ name: 'c', note: null }], { columns: ['note', 'name'] })
    expect(await database.query(sql`select name, note, state from things order by id`)).toEqual([
      { name: 'a', note: 'x', state: 'new' },
      { name: 'b', note: 'y', state: 'new' },
      { name: 'c', note: null, state: 'new' },
    ])
    const refused = (rows: readonly object[]) => database.copy.from('things', rows as never)
    await expect(refused([{ name: 'd', note: 'x' }, { name: 'e' }])).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(/^copy into things: Row 2 has no note\..* Nothing was written\.$/) as string,
    })
    await expect(refused([{ name: 'd' }, { name: 'e', note: 'x' }])).rejects.toThrow('Row 2 has note, which is not')
    await expect(refused([{ name: 'd' }, { name: 'secret\0' }])).rejects.toThrow('Row 2 has a NUL character in name')
    await expect(refused([{ nmae: 'd' }])).rejects.toThrow('There is no column nmae in things')
    await expect(refused([{}])).rejects.toThrow('Row 1 has no values')
    await expect(refused(['a,b'] as never)).rejects.toThrow('To copy text or bytes, give their format')
    await expect(database.copy.from('nowhere' as never, [{ a: 1 }] as never)).rejects.toMatchObject({
      code: 'UNDEFINED_OBJECT',
    })
    expect(await count(database)).toBe(3)
  })

  test('that are none write nothing', async () => {
    await using database = await open()
    expect(await database.copy.from('things', [])).toEqual({ count: 0 })
    expect(await database.copy.from('things', [], { columns: ['name'] })).toEqual({ count: 0 })
    expect(await database.copy.from('things', [], { format: 'csv' })).toEqual({ count: 0 })
  })

  test('may come from a query of the same database, also within a transaction, and from a generator that asks it', async () => {
    await using database = await open()
    await database.copy.from('things', named(5_000))
    await database.copy.from(
      'keyed',
      database.stream(sql<Tables['keyed']>`select id as a, name as b, id as n from things`),
    )
    expect(await count(database, 'keyed')).toBe(5_000)
    const asking = async function* () {
      for (let a = 6_001; a <= 6_010; a += 1) {
        yield { a, b: 'x', n: (await database.queryValue<number>(sql`select ${a}::int`)) ?? null }
      }
    }
    await database.copy.from('keyed', asking())
    expect(await count(database, 'keyed')).toBe(5_010)
  })

  test('with a plugin that renames columns have the names of the program', async () => {
    const url = await freshDatabaseUrl('empty')
    await using database = await createDatabase<{ someThings: { id: Generated<number>; isGood: boolean } }>({
      postgres: { url },
      redis: false,
      plugins: [new CamelCasePlugin()],
    })
    await database.query(sql`create table some_things (id int generated always as identity, is_good boolean)`)
    await database.copy.from('someThings', [{ isGood: true }, { isGood: false }])
    expect(await textOf(database.copy.to('someThings', { columns: ['isGood'] }))).toBe('t\nf\n')
    const good = database.db.selectFrom('someThings').select('id').where('isGood', '=', true)
    expect(await textOf(database.copy.to(good))).toBe('1\n')
  })
})

describe('bytes into a table', () => {
  test('come from a file in any format, whatever the pieces they come in', async () => {
    await using database = await open()
    await database.copy.from('things', [{ ...odd, data: { a: 1 } }])
    await database.copy.from('things', named(3_000))
    const folder = mkdtempSync(join(tmpdir(), 'kanta-copy-'))
    const columns = ['name', 'note', 'tags', 'raw', 'seen_at', 'price'] as const
    const listed = sql`select name, note, tags, raw, seen_at, price from things order by id`
    const before = await database.query(listed)
    try {
      for (const format of ['text', 'csv', 'binary'] as const) {
        const file = join(folder, format)
        const options = { format, columns: [...columns], ...(format === 'csv' && { header: true, delimiter: ';' }) }
        await pipeline(database.copy.to('things', options), createWriteStream(file))
        await database.query(sql`truncate things`)
        const pieces = createReadStream(file, { highWaterMark: 777 })
        expect(await database.copy.from('things', pieces, options)).toEqual({ count: 3_001 })
        expect(await database.query(listed)).toEqual(before)
      }
      expect(readFileSync(join(folder, 'csv'), 'utf8')).toMatch(/^name;note;tags;raw;seen_at;price\n/)
    } finally {
      rmSync(folder, { recursive: true })
    }
  })

  test('may come in a buffer that their source uses again', async () => {
    await using database = await open()
    const reused = Buffer.alloc(6)
    const source = function* () {
      for (let n = 0; n < 5; n += 1) {
        reused.write(`${n},b,\n`.padStart(6))
        yield reused
      }
    }
    await database.copy.from('keyed', source(), { format: 'csv' })
    expect(await database.query(sql`select a from keyed order by a`)).toEqual([0, 1, 2, 3, 4].map((a) => ({ a })))
  })

  test('may be strings, and one very large piece', async () => {
    await using database = await open()
    const lines = Array.from({ length: 200_000 }, (_, n) => `${n},b,\n`)
    const crumbs = function* () {
      for (const line of lines.slice(0, 5_000)) {
        yield line.slice(0, 2)
        yield ''
        yield line.slice(2)
      }
    }
    const format = { format: 'csv', columns: ['a', 'b', 'n'] } as const
    expect(await database.copy.from('keyed', crumbs(), { ...format, columns: [...format.columns] })).toEqual({
      count: 5_000,
    })
    await database.query(sql`truncate keyed`)
    const seen: number[] = []
    await database.copy.from('keyed', [Buffer.from(lines.join(''))], {
      ...format,
      columns: [...format.columns],
      onProgress: ({ bytes }) => seen.push(bytes),
    })
    expect(await count(database, 'keyed')).toBe(200_000)
    expect(seen).toEqual([Buffer.byteLength(lines.join(''))])
  })

  test('may be strings that are cut within a character, but only in the encoding of strings', async () => {
    await using database = await open()
    const columns: ('a' | 'b')[] = ['a', 'b']
    const halves = [
      '1,\uD83D',
      '\uDE00',
      '\n2,',
      '\uD83D',
      '',
      '\uDE00\uD83D',
      '\uDE00\n3,\uD83D',
      Buffer.from('x\n'),
      '4,\uD83D',
    ]
    await database.copy.from('keyed', halves, { format: 'csv', columns })
    const kept = await database.query<{ b: string }>(sql`select b from keyed order by a`)
    expect(kept.map(({ b }) => b)).toEqual(['😀', '😀😀', '\uFFFDx', '\uFFFD'])
    const long = `x,${'😀'.repeat(100_000)}`
    const ofThings = { format: 'csv', columns: ['name', 'note'] } as const
    await database.copy.from('things', [long.slice(0, 99_999), long.slice(99_999)], { ...ofThings })
    expect(await database.queryValue(sql`select length(note) from things`)).toBe(100_000)
    const encoded = (encoding: string) => database.copy.from('keyed', ['6,ü\n'], { format: 'csv', columns, encoding })
    await encoded('utf-8')
    await expect(encoded('LATIN1')).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('Chunk 1 is a string, whose bytes would not be LATIN1') as string,
    })
  })

  test('can have another null, quote, escape and encoding', async () => {
    await using database = await open()
    await database.copy.from('keyed', [Buffer.from("a|b|n\n1|'f\xfcr \\'x\\''|NIX\n", 'latin1')], {
      format: 'csv',
      header: 'match',
      delimiter: '|',
      quote: "'",
      escape: '\\',
      nullText: 'NIX',
      encoding: 'LATIN1',
    })
    expect(await database.query(sql`select * from keyed`)).toEqual([{ a: 1, b: "für 'x'", n: null }])
  })

  test('that never come keep nobody else waiting', async () => {
    await using database = await open(one)
    const stop = new AbortController()
    const timer = setTimeout(() => stop.abort(new Error('enough')), 50)
    const nothing = function* () {
      // Bounded, so that the test fails instead of hanging.
      for (let n = 0; n < 200_000_000; n += 1) yield ''
    }
    const copying = database.copy.from('keyed', nothing(), { format: 'csv', signal: stop.signal })
    await expect(copying).rejects.toThrow('enough')
    clearTimeout(timer)
  })

  test('that are wrong are refused with the line, and no value is in the message', async () => {
    await using database = await open()
    const copied = (text: string) => database.copy.from('keyed', [text], { format: 'text' })
    await expect(copied('1\tx\t2\n2\ty\tsecret\n')).rejects.toMatchObject({
      code: 'INVALID_DATA',
      message: expect.stringMatching(/\(line 2, column n\)(?!.*secret)/) as string,
    })
    await expect(copied('1\tx\t2\n1\tx\t3\n')).rejects.toMatchObject({
      code: 'UNIQUE_VIOLATION',
      message: expect.stringContaining('(line 2)') as string,
    })
    await expect(copied('1\tx\n')).rejects.toMatchObject({ code: 'INVALID_DATA' })
    await expect(database.copy.from('keyed', [1] as never, { format: 'text' })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('Chunk 1 is neither a string nor bytes') as string,
    })
    expect(await count(database, 'keyed')).toBe(0)
  })

  test('cannot bring SQL along by their options', async () => {
    await using database = await open()
    const injections = ["'); drop table keyed; --", "\\'); drop table keyed; --", 'csv); drop table keyed; --']
    for (const text of injections) {
      for (const name of ['delimiter', 'nullText', 'quote', 'escape', 'encoding', 'format', 'header']) {
        const options = { format: 'csv', [name]: text } as never
        await database.copy.from('keyed', ['1,x,2\n'], options).catch(() => undefined)
        await textOf(database.copy.to('keyed', options)).catch(() => undefined)
      }
      await expect(
        database.copy.from('keyed', ['1\n'], { format: 'csv', columns: [text] as never }),
      ).rejects.toMatchObject({ code: 'UNDEFINED_OBJECT' })
    }
    expect(await count(database, 'keyed')).toBeLessThanOrEqual(1)
  })
})

describe('a copy into a table that fails', () => {
  test('for its source writes nothing, and says where the source was', async () => {
    await using database = await open(one)
    const failing = async function* () {
      yield* named(12_000)
      throw new Error('the file is broken')
    }
    await expect(database.copy.from('things', failing())).rejects.toMatchObject({
      code: 'BULK_SOURCE_FAILED',
      message: 'copy into things: The source of the rows failed after row 12000. Nothing was written.',
      cause: { message: 'the file is broken' },
    })
    await expect(
      database.copy.from('things', createReadStream('/nowhere/at/all'), { format: 'csv' }),
    ).rejects.toMatchObject({ code: 'BULK_SOURCE_FAILED', cause: { code: 'ENOENT' } })
    expect(await count(database)).toBe(0)
  })

  test('before it begins closes its source, which may fail by itself meanwhile', async () => {
    await using database = await open({ pool: { max: 1, acquireTimeoutMs: 100 }, pipeline: false })
    await database.transaction(async () => {
      await database.query(sql`select 1`)
      for (const write of [
        (source: Readable) => database.copy.from('keyed', source, { format: 'csv' }),
        (source: Readable) => database.insertMany('keyed', source),
      ]) {
        for (const openSource of [() => new PassThrough(), () => createReadStream('/nowhere/at/all')]) {
          const source = openSource()
          await expect(outside(() => write(source))).rejects.toMatchObject({ code: 'POOL_TIMEOUT' })
          expect(source.destroyed).toBe(true)
        }
      }
    })
  })

  test('for what onProgress throws is passed that', async () => {
    await using database = await open(one)
    const full = new Error('enough')
    const onProgress = (): void => {
      throw full
    }
    await expect(database.copy.from('things', named(20_000), { onProgress })).rejects.toBe(full)
    await expect(database.copy.from('things', named(2), { onProgress })).rejects.toBe(full)
    await expect(textOf(database.copy.to(numbers(10), { onProgress }))).rejects.toBe(full)
    const later = (): Promise<void> => Promise.reject(full)
    await expect(database.copy.from('things', named(20_000), { onProgress: later })).rejects.toBe(full)
    await expect(textOf(database.copy.to(numbers(10), { onProgress: later }))).rejects.toBe(full)
    await expect(database.insertMany('things', named(2), { onProgress: later })).rejects.toBe(full)
    expect(await count(database)).toBe(0)
  })

  test('for a row ends at once, and its source is closed, also one that hangs', async () => {
    await using database = await open(one)
    const source = new PassThrough()
    source.write(`1\tx\t${'y'.repeat(100_000)}\n`)
    await expect(database.copy.from('keyed', source, { format: 'text' })).rejects.toMatchObject({
      code: 'INVALID_DATA',
    })
    expect(source.destroyed).toBe(true)
    let isClosed = false
    const endless = function* () {
      try {
        for (;;) yield { a: 1, b: 'x', n: 1 }
      } finally {
        isClosed = true
      }
    }
    await expect(database.copy.from('keyed', endless())).rejects.toMatchObject({ code: 'UNIQUE_VIOLATION' })
    expect(isClosed).toBe(true)
    expect(await count(database, 'keyed')).toBe(0)
  })

  test('by its signal writes nothing, whatever it waits for, and the connection is used again', async () => {
    await using database = await open(one)
    const pid = await database.queryValue(sql`select pg_backend_pid()`)
    const reason = new Error('enough')
    expect.assertions(8)
    const stopping = async (source: (stop: () => void) => AsyncIterable<{ name: string }>) => {
      const stop = new AbortController()
      const copying = database.copy.from(
        'things',
        source(() => stop.abort(reason)),
        { signal: stop.signal },
      )
      await expect(copying).rejects.toBe(reason)
    }
    // While it waits for the first row, and for a later one.
    for (const rows of [0, 1, 5_000]) {
      await stopping(async function* (stop) {
        yield* named(rows)
        stop()
        await new Promise(() => undefined)
      })
    }
    // At its last row.
    await stopping(async function* (stop) {
      yield* named(10)
      stop()
    })
    await expect(database.copy.from('things', named(1), { signal: AbortSignal.abort(reason) })).rejects.toBe(reason)
    expect(await count(database)).toBe(0)
    expect(await database.queryValue(sql`select pg_backend_pid()`)).toBe(pid)
    expect(database.stats().pool.holders).toEqual([])
  })

  test('is told although its source does not end', async () => {
    await using database = await open(one)
    const clinging = async function* () {
      try {
        yield { name: 'a', note: 'x' }
        yield { name: 'b' }
      } finally {
        await new Promise(() => undefined)
      }
    }
    await expect(database.copy.from('things', clinging() as never)).rejects.toThrow('Row 2 has no note')
    await expect(database.insertMany('things', [undefined] as never)).rejects.toThrow('Row 1 is undefined')
    await expect(database.copy.from('things', [undefined, { name: 'a' }] as never)).rejects.toThrow('Row 1 is no row')
    expect(await count(database)).toBe(0)
  })

  test('does not outlive its database, whatever its source waits for', async () => {
    const hanging = async function* (rows: number) {
      yield* named(rows)
      await new Promise(() => undefined)
    }
    for (const rows of [0, 1, 20_000]) {
      for (const write of ['copy', 'insert'] as const) {
        await using database = await open({ ...one, pool: { ...one.pool, drainTimeoutMs: 50 } })
        const source = hanging(rows)
        const writing = write === 'copy' ? database.copy.from('things', source) : database.insertMany('things', source)
        writing.catch(() => undefined)
        await vi.waitFor(() => expect(database.stats().pool.holders).toHaveLength(1))
        await database.close()
        await expect(writing).rejects.toMatchObject({ code: expect.stringMatching(/^CONNECTION_/) as string })
      }
    }
  })

  test('whose source is none is refused', async () => {
    await using database = await open(one)
    const sources = [null, undefined, 'a,b', 5, {}, Buffer.from('a,b')]
    for (const source of sources) {
      for (const write of [
        () => database.copy.from('keyed', source as never, { format: 'csv' }),
        () => database.copy.from('keyed', source as never),
        () => database.insertMany('keyed', source as never),
      ])
        await expect(write()).rejects.toMatchObject({
          code: 'INVALID_ARGUMENT',
          message: expect.stringMatching(
            /^The source of the (rows|chunks) is (null|a buffer|of type \w+)\. Give an array/,
          ) as string,
        })
    }
  })

  test('for a row that no string can hold says which', async () => {
    await using database = await open(one)
    const note = 'x'.repeat(300_000_000)
    const tooLong = [
      { name: 'a', note: 'short' },
      { name: 'b', note, data: note },
    ] as never
    for (const write of [
      () => database.copy.from('things', tooLong, { columns: ['name', 'note', 'data'] }),
      () => database.copy.from('things', [{ name: note, note }] as never),
      () => database.insertMany('things', [{ name: 'a' }, { name: 'b', tags: [note, note] }]),
    ])
      await expect(write()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    expect(await count(database)).toBe(0)
  })

  test('after the transaction around it has ended touches nobody else', async () => {
    await using database = await open(one)
    const release = Promise.withResolvers<void>()
    const late = async function* () {
      await release.promise
      yield { name: 'late' }
    }
    let copying: Promise<unknown> = Promise.resolve()
    const failed = database.transaction(async () => {
      await database.query(sql`select 1`)
      copying = database.copy.from('things', late())
      copying.catch(() => undefined)
      throw new Error('no')
    })
    await expect(failed).rejects.toThrow('no')
    await database.transaction(async () => {
      await database.copy.from('things', named(1))
      release.resolve()
      await expect(copying).rejects.toMatchObject({ code: 'TRANSACTION_MISUSE' })
      await database.copy.from('things', named(1, 1))
    })
    expect(await database.query(sql`select name from things order by id`)).toEqual([
      { name: 'name 0' },
      { name: 'name 1' },
    ])
  })

  test('in a transaction undoes only itself', async () => {
    await using database = await open(one)
    await database.transaction(async () => {
      await database.copy.from('things', named(3))
      await expect(database.copy.from('things', [...named(5_000, 10), ...named(1)])).rejects.toMatchObject({
        code: 'UNIQUE_VIOLATION',
      })
      await expect(database.copy.from('things', ['x'] as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
      expect(await count(database)).toBe(3)
      await database.copy.from('things', named(2, 100))
    })
    expect(await count(database)).toBe(5)
    const undone = database.transaction(async () => {
      await database.copy.from('things', named(3, 200))
      throw new Error('no')
    })
    await expect(undone).rejects.toThrow('no')
    expect(await count(database)).toBe(5)
  })

  test('for a constraint that is checked at the end is told, and a statement beside it is misuse', async () => {
    await using database = await open(one)
    await database.query(sql`create table keyed_ids (id int primary key)`)
    await database.query(
      sql`create table orders (id int, of int references keyed_ids (id) deferrable initially deferred)`,
    )
    await expect(database.copy.from('orders' as never, [{ id: 1, of: 7 }] as never)).rejects.toMatchObject({
      code: 'FOREIGN_KEY_VIOLATION',
    })
    await database.transaction(async () => {
      const source = new PassThrough({ objectMode: true })
      const copying = database.copy.from('keyed', source)
      source.write({ a: 1, b: 'x', n: 1 })
      await expect(database.query(sql`select 1`)).rejects.toMatchObject({ code: 'TRANSACTION_MISUSE' })
      source.end()
      await copying
    })
    expect(await count(database, 'keyed')).toBe(1)
  })

  test('with the server ends in time, and another connection serves the next call', async () => {
    await using setup = await openBehindProxy({ queryTimeoutMs: 300 })
    const { database, proxy } = setup
    const began = performance.now()
    const endless = function* () {
      for (let n = 0; ; n += 1) {
        if (n === 20_000) proxy.freeze()
        yield { name: String(n) }
      }
    }
    await expect(database.copy.from('things', endless())).rejects.toMatchObject({ code: 'QUERY_TIMEOUT' })
    expect(performance.now() - began).toBeLessThan(10_000)
    proxy.thaw()
    expect(await count(database)).toBe(0)
  })

  const cuts: readonly (readonly [string, MessagePattern, Fault])[] = [
    ['before it begins', { from: 'client', message: 'Query', sql: /copy/ }, 'reset'],
    ['when the server is ready', { from: 'server', message: 'CopyInResponse' }, 'reset'],
    ['at a piece', { from: 'client', message: 'CopyData' }, 'reset'],
    ['at its end', { from: 'client', message: 'CopyDone' }, 'close'],
    ['before its answer', { from: 'server', message: 'CommandComplete', tag: 'COPY 5000' }, 'reset'],
  ]
  test.for(cuts)(
    'with the connection, %s, leaves nothing; rows of an array are copied again',
    async ([, pattern, fault]) => {
      await using setup = await openBehindProxy()
      const { database, proxy } = setup
      proxy.on(pattern, fault)
      const source = async function* () {
        yield* named(5_000)
      }
      await expect(database.copy.from('things', source())).rejects.toMatchObject({ code: 'CONNECTION_LOST' })
      expect(await count(database)).toBe(0)
      proxy.on(pattern, fault)
      expect(await database.copy.from('things', named(5_000))).toEqual({ count: 5_000 })
      expect(await count(database)).toBe(5_000)
    },
  )

  test('with the connection after it is an error of the transaction', async () => {
    await using setup = await openBehindProxy({ retry: false })
    const { database, proxy } = setup
    // What follows the copy asks for the number of the transaction, as the question for the types before it does.
    const rule = proxy.on({ from: 'client', message: 'Bind', sql: /pg_current_xact_id/ }, 'reset', { nth: 2 })
    await expect(database.copy.from('things', named(10).values())).rejects.toMatchObject({
      code: 'CONNECTION_LOST',
      retry: 'transaction',
    })
    expect(rule.hits).toBe(1)
    expect(await count(database)).toBe(0)
  })

  test('because a transaction runs again after its source was read says so, instead of copying nothing', async () => {
    await using database = await open(one)
    const sources = (): RowSource<{ name: string }>[] => {
      const again = named(10).values()
      const rows = named(10)
      return [named(10).values(), { [Symbol.iterator]: () => again }, Readable.from(rows), ReadableStream.from(rows)]
    }
    const writes = {
      copy: (source: RowSource<{ name: string }>) => database.copy.from('things', source),
      insert: (source: RowSource<{ name: string }>) => database.insertMany('things', source),
    }
    const wasReadBefore = {
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('was read before') as string,
    }
    for (const write of Object.values(writes)) {
      for (const source of sources()) {
        let attempts = 0
        const repeated = database.transaction(async () => {
          attempts += 1
          await write(source)
          if (attempts === 1) await database.query(sql`do $$ begin raise sqlstate '40001'; end $$`)
        })
        await expect(repeated).rejects.toMatchObject(wasReadBefore)
        expect(attempts).toBe(2)
      }
      // The reason why it was not written the first time is not forgotten.
      const source = [{ name: 'x' }, { name: 'x' }].values()
      await expect(write(source)).rejects.toMatchObject({ code: 'UNIQUE_VIOLATION' })
      await expect(write(source)).rejects.toMatchObject({ ...wasReadBefore, cause: { code: 'UNIQUE_VIOLATION' } })
    }
    expect(await count(database)).toBe(0)
  })

  test('when the reply to COMMIT is lost is found to be done', async () => {
    await using setup = await openBehindProxy()
    const { database, proxy } = setup
    proxy.on({ from: 'server', message: 'CommandComplete', tag: 'COMMIT' }, 'reset')
    const source = async function* () {
      yield* named(100)
    }
    expect(await database.copy.from('things', source())).toEqual({ count: 100 })
    expect(await count(database)).toBe(100)
  })
})

describe('out of a table or a query', () => {
  test('come all rows, the values of a query among its text', async () => {
    await using database = await open()
    await database.copy.from('things', [{ ...odd, data: { a: 1 } }])
    const found = (expression: ReturnType<typeof sql<unknown>>) =>
      textOf(database.copy.to(sql`select name from things where ${expression}`))
    const name = 'a "q", {odd} \\\\ name\n'
    expect(await found(sql`name = ${odd.name}`)).toBe(name)
    expect(await found(sql`raw = ${odd.raw}`)).toBe(name)
    expect(await found(sql`seen_at = ${odd.seen_at} and big = ${odd.big} and is_good = ${odd.is_good}`)).toBe(name)
    expect(await found(sql`tags = ${odd.tags} and data = ${{ a: 1 }}`)).toBe(name)
    expect(await found(sql`note is not distinct from ${null}`)).toBe('')
    expect(await found(sql`name = ${"'; drop table things; --"} or name = ${"\\'; drop table things; --"}`)).toBe('')
    await database.transaction(async () => {
      await database.query(sql`set local standard_conforming_strings = off`)
      expect(await found(sql`name = ${odd.name} and raw = ${odd.raw}`)).toBe(name)
    })
    expect(await textOf(database.copy.to(sql`select 1 -- one`))).toBe('1\n')
    expect(await textOf(database.copy.to(sql`select ';' ; \n;`))).toBe(';\n')
    expect(() => database.copy.to(sql`select ${'secret\0'}`)).toThrow(
      'A parameter cannot be sent: it has a NUL character',
    )
    const built = database.db.selectFrom('things').select(['name', 'note']).where('id', 'in', [1, 2]).limit(5)
    expect(await textOf(database.copy.to(built, { format: 'csv', header: true }))).toBe(
      'name,note\n"a ""q"", {odd} \\ name",null\n',
    )
  })

  test('come as many as fit into a piece, and their number is known at the end', async () => {
    await using database = await open()
    const progress: number[] = []
    const stream = database.copy.to(numbers(300_000), { onProgress: ({ bytes }) => progress.push(bytes) })
    const sizes: number[] = []
    for await (const piece of stream) sizes.push(piece.length)
    const total = sizes.reduce((sum, size) => sum + size, 0)
    expect(total).toBe(1_988_895)
    // The server itself sends 8 KB at a time.
    expect(sizes.length).toBeLessThan(500)
    expect(stream.rowCount).toBe(300_000)
    expect(progress.at(-1)).toBe(total)
    const long = database.copy.to(sql`select repeat('x', 3000000) from generate_series(1, 2)`)
    expect((await textOf(long)).length).toBe(6_000_002)
    const empty = database.copy.to(sql`select 1 where false`)
    expect(await textOf(empty)).toBe('')
    expect(empty.rowCount).toBe(0)
  })

  test('comes no more than is read: the rest stays with the server', async () => {
    await using database = await open({ pool: { max: 2 } })
    await using watching = database.copy.to(sql`select repeat('x', 1000) from generate_series(1, 30000)`)
    const { value: first } = await watching.next()
    await expect
      .poll(() =>
        database.queryValue(
          sql`select wait_event from pg_stat_activity where query like 'copy (select repeat%' and wait_event is not null`,
        ),
      )
      .toBe('ClientWrite')
    let bytes = first?.length ?? 0
    for await (const piece of watching) bytes += piece.length
    expect(bytes).toBe(30_030_000)
  })

  test('nothing more once the reader leaves, and the connection is used again', async () => {
    await using database = await open(one)
    const rows = sql`select repeat('x', 1000) from generate_series(1, 1000000)`
    for await (const _piece of database.copy.to(rows)) break
    expect(await database.queryCount(sql`select 1`)).toBe(1)
    const failed = (async () => {
      for await (const _piece of database.copy.to(rows)) throw new Error('the disk is full')
    })()
    await expect(failed).rejects.toThrow('the disk is full')
    expect(await database.queryCount(sql`select 1`)).toBe(1)
    const full = new PassThrough()
    const piping = pipeline(Readable.from(database.copy.to(rows)), full)
    full.destroy(new Error('gone'))
    await expect(piping).rejects.toThrow('gone')
    expect(await database.queryCount(sql`select 1`)).toBe(1)
    const stop = new AbortController()
    const stopped = (async () => {
      for await (const _piece of database.copy.to(rows, { signal: stop.signal })) stop.abort(new Error('enough'))
    })()
    await expect(stopped).rejects.toThrow('enough')
    expect(await database.queryCount(sql`select 1`)).toBe(1)
  })

  test('of a write that gives rows back it is done as a whole, also when its reader leaves', async () => {
    await using database = await open(one)
    const writing = sql`insert into keyed select n, repeat('x', 100), n from generate_series(1, 50000) n returning b`
    for await (const _piece of database.copy.to(writing)) break
    await expect.poll(() => count(database, 'keyed')).toBe(50_000)
  })

  test('in a transaction what it has written, also when the reader leaves, and statements wait for the end', async () => {
    await using database = await open(one)
    await database.transaction(async () => {
      await database.copy.from('things', named(3))
      expect(await textOf(database.copy.to('things', { columns: ['name'] }))).toBe('name 0\nname 1\nname 2\n')
      for await (const _piece of database.copy.to(numbers(300_000))) {
        await expect(database.query(sql`select 1`)).rejects.toMatchObject({ code: 'TRANSACTION_MISUSE' })
        break
      }
      expect(await count(database)).toBe(3)
    })
    expect(await count(database)).toBe(3)
  })

  test('tells its statement with placeholders', async () => {
    await using database = await open()
    const texts: string[] = []
    database.events.on('query', ({ sql: text }) => texts.push(text))
    const secret = sql`select 1 / (length(${'secret'}) - 6)`
    const failure = await textOf(database.copy.to(secret)).catch((error: unknown) => error)
    expect(failure).toMatchObject({ code: 'INVALID_DATA', sql: expect.stringContaining('$1') as string })
    expect(JSON.stringify([failure, texts])).not.toContain('secret')
  })

  test('fails as a stream does', async () => {
    await using setup = await openBehindProxy({ queryTimeoutMs: 500 })
    const { database, proxy } = setup
    await expect(textOf(database.copy.to(sql`select 1 / (n - 5) from generate_series(1, 9) n`))).rejects.toMatchObject({
      code: 'INVALID_DATA',
    })
    await expect(textOf(database.copy.to('nowhere' as never))).rejects.toMatchObject({ code: 'UNDEFINED_OBJECT' })
    // Nothing was read: that is repeated where the statement only reads.
    proxy.on({ from: 'server', message: 'CopyOutResponse' }, 'reset')
    expect(await textOf(database.copy.to('keyed'))).toBe('')
    proxy.on({ from: 'server', message: 'CopyData' }, 'close', { nth: 1_000 })
    await expect(textOf(database.copy.to(numbers(200_000)))).rejects.toMatchObject({ code: 'CONNECTION_LOST' })
    proxy.on({ from: 'server', message: 'CopyData' }, 'stall', { nth: 100_000 })
    await expect(textOf(database.copy.to(numbers(200_000)))).rejects.toMatchObject({ code: 'QUERY_TIMEOUT' })
    proxy.thaw()
    expect(await database.queryCount(sql`select 1`)).toBe(1)
  })
})

test('the embedded PostgreSQL copies too, and lives on after a failure', async () => {
  await using database = await createDatabase<Tables>({ postgres: { embedded: { dataDir: 'memory' } }, redis: false })
  await database.query(sql.raw(schema))
  await database.copy.from('things', [{ ...odd, data: { a: 1 } }])
  expect(await database.copy.from('things', named(2_000))).toEqual({ count: 2_000 })
  await expect(database.copy.from('things', named(1))).rejects.toMatchObject({ code: 'UNIQUE_VIOLATION' })
  await expect(database.copy.from('keyed', ['1\tx\t1\n', '2\ty\n'], { format: 'text' })).rejects.toMatchObject({
    code: 'INVALID_DATA',
  })
  const failing = function* () {
    yield* named(10, 5_000)
    throw new Error('no')
  }
  await expect(database.copy.from('things', failing())).rejects.toMatchObject({ code: 'BULK_SOURCE_FAILED' })
  expect(await count(database)).toBe(2_001)
  const text = await textOf(database.copy.to('things', { columns: ['name'], format: 'csv' }))
  expect(text.split('\n')).toHaveLength(2_002)
})

interface BehindProxy extends AsyncDisposable {
  readonly database: Database<Tables>
  readonly proxy: Proxy
}

/** A database with one connection, through a proxy. */
async function openBehindProxy(postgres: PostgresOptions = {}): Promise<BehindProxy> {
  const url = await freshDatabaseUrl('empty')
  const proxy = await startProxy({ to: url })
  const retry = { attempts: 2, baseDelayMs: 1, maxDelayMs: 5 }
  const database = await createDatabase<Tables>({
    postgres: { url: proxy.url, ...one, retry, breaker: false, ...postgres },
    redis: false,
  })
  await database.query(sql.raw(schema))
  return {
    database,
    proxy,
    async [Symbol.asyncDispose]() {
      await database.close()
      await proxy.close()
    },
  }
}
