import { execFileSync } from 'node:child_process'
import {
  array,
  assert,
  bigInt,
  boolean,
  constant,
  constantFrom,
  date,
  double,
  integer,
  type JsonValue,
  json,
  oneof,
  option,
  property,
  string,
  tuple,
  uuid,
  type Arbitrary,
} from 'fast-check'
import { Result, types } from 'pg'
import { afterEach, expect, test } from 'vitest'
import { dataRow } from '../../support/data-row.ts'
import { type Field, type Shape, shapeOf as shapeFrom } from '../../../src/postgres/row-shape.ts'
import { parsersFor, type ParserSource } from '../../../src/postgres/value-parsers.ts'

const { builtins } = types
const nameType = 19

const shapeOf = (fields: readonly Field[]): Shape => shapeFrom(fields, types)

/** The row read from the bytes in which a server would send these texts, with others before and behind. */
function readRow(shape: Shape, texts: readonly (string | null)[]): object {
  const message = dataRow(texts)
  const bytes = Buffer.concat([Buffer.from('123+45'), message, Buffer.from('6789.0')])
  return shape.read(bytes, 6, 6 + message.length)
}

/** What `pg` makes of the same texts. */
function rowOfDriver(fields: readonly Field[], texts: readonly (string | null)[]): object {
  const result = new Result('', types) as unknown as {
    addFields(fields: readonly Field[]): void
    parseRow(texts: readonly (string | null)[]): object
  }
  result.addFields(fields)
  return result.parseRow(texts)
}

function expectSameRow(fields: readonly Field[], texts: readonly (string | null)[]): void {
  const shape = shapeOf(fields)
  const theirs = rowOfDriver(fields, texts)
  for (const row of [shape.build(texts), readRow(shape, texts)]) {
    expect(row).toStrictEqual(theirs)
    expect(Object.entries(row)).toStrictEqual(Object.entries(theirs))
    expect(Object.getPrototypeOf(row)).toBe(Object.prototype)
  }
}

const padded = (value: number, width = 2): string => String(value).padStart(width, '0')

/** A time stamp as PostgreSQL writes it in its ISO style: zeros at the end of the fraction are left out. */
const timestamptz: Arbitrary<string> = tuple(
  date({ min: new Date(Date.UTC(2000, 0, 1)), max: new Date(Date.UTC(2000, 11, 31)), noInvalidDate: true }),
  oneof(integer({ min: 1970, max: 2100 }), integer({ min: 1, max: 275_760 }), integer({ min: 1, max: 150 })),
  oneof(
    constant(0),
    integer({ min: 0, max: 999 }).map((ms) => ms * 1_000),
    integer({ min: 0, max: 999_999 }),
  ),
  oneof(
    { arbitrary: constant('+00'), weight: 3 },
    { arbitrary: constantFrom('+01', '-05', '+05:30', '-03:30', '+14', '-12', '+00:19:32', '-00:01:15'), weight: 1 },
  ),
  oneof({ arbitrary: constant(''), weight: 5 }, { arbitrary: constant(' BC'), weight: 1 }),
).map(([day, year, micros, zone, era]) => {
  const fraction = micros === 0 ? '' : `.${padded(micros, 6).replace(/0+$/, '')}`
  const clock = `${padded(day.getUTCHours())}:${padded(day.getUTCMinutes())}:${padded(day.getUTCSeconds())}`
  const dayOfYear = `${padded(day.getUTCMonth() + 1)}-${padded(day.getUTCDate())}`
  return `${padded(year, 4)}-${dayOfYear} ${clock}${fraction}${zone}${era}`
})

/** Columns of each type, with texts that a server sends. */
const columns: readonly (readonly [what: string, typeId: number, text: Arbitrary<string>])[] = [
  ['int2', builtins.INT2, integer({ min: -32_768, max: 32_767 }).map(String)],
  ['int4', builtins.INT4, integer().map(String)],
  ['int8', builtins.INT8, bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }).map(String)],
  [
    'numeric',
    builtins.NUMERIC,
    oneof(
      tuple(bigInt(), integer({ min: 0 })).map(([whole, rest]) => `${whole}.${rest}`),
      constantFrom('NaN', 'Infinity', '-Infinity', '0', '0.00'),
    ),
  ],
  ['bool', builtins.BOOL, boolean().map((value) => (value ? 't' : 'f'))],
  ['text', builtins.TEXT, string({ unit: 'grapheme' })],
  ['varchar', builtins.VARCHAR, string()],
  ['bpchar', builtins.BPCHAR, string().map((text) => text.padEnd(12))],
  ['name', nameType, string({ maxLength: 63 })],
  ['uuid', builtins.UUID, uuid()],
  [
    'timestamptz',
    builtins.TIMESTAMPTZ,
    oneof({ arbitrary: timestamptz, weight: 9 }, { arbitrary: constantFrom('infinity', '-infinity'), weight: 1 }),
  ],
  ['timestamp', builtins.TIMESTAMP, timestamptz.map((text) => text.replace(/[+-]\d\d(:\d\d)*/, ''))],
  ['date', builtins.DATE, timestamptz.map((text) => text.replace(/ \d.*?( BC)?$/, '$1'))],
  ['float8', builtins.FLOAT8, double().map(String)],
  ['jsonb', builtins.JSONB, json()],
  ['int4[]', 1007, array(option(integer())).map((list) => `{${list.map((item) => item ?? 'NULL').join(',')}}`)],
  ['bytea', builtins.BYTEA, string().map((text) => `\\x${Buffer.from(text).toString('hex')}`)],
  ['interval', builtins.INTERVAL, constantFrom('1 day 02:03:04.5', '-1 mons', '00:00:00')],
  ['a type that nobody knows', 999_999, string()],
]

test.each(columns)('%s is read as pg reads it', (_what, typeId, text) => {
  assert(
    property(array(option(text, { freq: 8 }), { minLength: 1, maxLength: 4 }), (texts) => {
      expectSameRow(
        texts.map((_, index) => ({ name: `column_${index}`, dataTypeID: typeId })),
        texts,
      )
    }),
    { numRuns: 400 },
  )
})

test('every microsecond of a second is cut to the millisecond that pg gives', () => {
  const shape = shapeOf([{ name: 'at', dataTypeID: builtins.TIMESTAMPTZ }])
  const stock = types.getTypeParser(builtins.TIMESTAMPTZ) as (text: string) => Date
  // Steps of a prime number of microseconds meet each millisecond at many places.
  for (let micros = 0; micros < 1_000_000; micros += 37) {
    const text = `2026-11-21 09:30:00.${padded(micros, 6)}+00`
    expect((shape.build([text]) as { at: Date }).at.getTime()).toBe(stock(text).getTime())
  }
})

test.each([
  ['2026-11-21 09:30:00+00', Date.UTC(2026, 10, 21, 9, 30)],
  ['2026-11-21 09:30:00.1+00', Date.UTC(2026, 10, 21, 9, 30, 0, 100)],
  ['2026-11-21 09:30:00.123456+00', Date.UTC(2026, 10, 21, 9, 30, 0, 123)],
  ['2026-11-21 09:30:00.999999+00', Date.UTC(2026, 10, 21, 9, 30, 0, 999)],
  ['2026-11-21 09:30:00+05:30', Date.UTC(2026, 10, 21, 4, 0)],
  ['0099-12-31 23:59:59+00', new Date(0).setUTCFullYear(99, 11, 31) + 86_399_000],
  ['0001-01-01 00:00:00+00 BC', new Date(0).setUTCFullYear(0, 0, 1)],
  ['275760-09-13 00:00:00+00', 8.64e15],
])('%s is the instant it says', (text, time) => {
  const { at } = shapeOf([{ name: 'at', dataTypeID: builtins.TIMESTAMPTZ }]).build([text]) as { at: Date }
  expect(at.getTime()).toBe(time)
})

test.each(['Sat Nov 21 09:30:00 2026 UTC', '21.11.2026 09:30:00 UTC', '2026-11-21T09:30:00Z', '2026-11-21', ''])(
  'a time stamp in another style than ISO (%j) is what pg makes of it',
  (text) => expectSameRow([{ name: 'at', dataTypeID: builtins.TIMESTAMPTZ }], [text]),
)

/** Whatever may stand between the quotes of an alias; only NUL cannot. */
const hostileName: Arbitrary<string> = oneof(
  constantFrom(
    '__proto__',
    'constructor',
    'prototype',
    'toString',
    'hasOwnProperty',
    'then',
    '',
    ' ',
    '"',
    "'",
    '`',
    '\\',
    '\\"',
    '"]: process.exit(), ["',
    '": process.exit(), "',
    '${process.exit()}',
    '*/',
    '//',
    '\n',
    '\r\n',
    '\u2028',
    '\u2029',
    '\ud800',
    '$1',
    '$&',
    '0',
    '-1',
    '1e3',
    '?column?',
    'texts',
    'parsers',
    'é 🙂',
  ),
  string({ unit: 'binary', maxLength: 20 }).map((name) => name.replaceAll('\0', '')),
  string({ maxLength: 6 }),
)

test('no name of a column is anything but a name', () => {
  const column = tuple(hostileName, constantFrom(builtins.TEXT, builtins.INT4, builtins.JSONB), option(constant('1')))
  assert(
    property(array(column, { maxLength: 8 }), (row) => {
      expectSameRow(
        row.map(([name, dataTypeID]) => ({ name, dataTypeID })),
        row.map(([, , text]) => text),
      )
    }),
    { numRuns: 2_000 },
  )
  expect(Object.keys(Object.prototype)).toEqual([])
})

test('a column called __proto__ is an ordinary property', () => {
  const row = shapeOf([{ name: '__proto__', dataTypeID: builtins.JSON }]).build(['{"isAdmin":true}'])
  expect(Object.getOwnPropertyNames(row)).toEqual(['__proto__'])
  expect(Object.getPrototypeOf(row)).toBe(Object.prototype)
  expect((row as { isAdmin?: boolean }).isAdmin).toBeUndefined()
})

test('of two columns with one name the last one counts', () => {
  const fields = ['id', 'name', 'id'].map((name) => ({ name, dataTypeID: builtins.INT4 }))
  expect(shapeOf(fields).build(['1', '2', '3'])).toStrictEqual({ id: 3, name: 2 })
  expectSameRow(fields, ['1', '2', null])
})

test('the same columns have the same shape, others another', () => {
  const id = { name: 'id', dataTypeID: builtins.INT4 }
  expect(shapeOf([id])).toBe(shapeOf([{ ...id }]))
  expect(shapeOf([id])).not.toBe(shapeOf([id, id]))
  expect(shapeOf([id])).not.toBe(shapeOf([{ ...id, dataTypeID: builtins.INT8 }]))
  expect(shapeOf([]).build([])).toStrictEqual({})
})

test('a shape holds nothing of the message it was made from', () => {
  const message = Buffer.alloc(16)
  const shape = shapeOf([Object.assign({ name: 'held', dataTypeID: builtins.INT4 }, { message })])
  expect(shape.fields).toStrictEqual([{ name: 'held', dataTypeID: builtins.INT4 }])
})

test('the same columns with the parsers of another connection have another shape, and neither displaces the other', () => {
  const id = [{ name: 'id', dataTypeID: builtins.INT8 }]
  const asBigint = parsersFor({ int8: 'bigint' }) as ParserSource
  expect(shapeFrom(id, asBigint)).not.toBe(shapeOf(id))
  expect(shapeFrom(id, asBigint)).toBe(shapeFrom(id, parsersFor({ int8: 'bigint' }) as ParserSource))
  expect([shapeOf(id), shapeFrom(id, asBigint)].map((shape) => readRow(shape, ['7']))).toEqual([
    { id: '7' },
    { id: 7n },
  ])
})

test('a shape in use is kept while thousands of others come and go', () => {
  const hot = [{ name: 'hot', dataTypeID: builtins.INT4 }]
  const shape = shapeOf(hot)
  for (let index = 0; index < 6_000; index += 1) {
    shapeOf([{ name: `other ${index}`, dataTypeID: builtins.INT4 }])
    expect(shapeOf(hot)).toBe(shape)
  }
})

test('a message that is not a row of these columns is refused, and nothing beyond it is read', () => {
  const shape = shapeOf(['a', 'b'].map((name) => ({ name, dataTypeID: builtins.TEXT })))
  const row = dataRow(['one', 'two'])
  const secret = Buffer.concat([row, Buffer.from('the next message')])
  expect(shape.read(secret, 0, row.length)).toEqual({ a: 'one', b: 'two' })
  const lengthOfTwo = 2 + 4 + 3
  for (const length of [4, 100, 2 ** 31 - 1, -2, -(2 ** 31)]) {
    const wrong = Buffer.from(secret)
    wrong.writeInt32BE(length, lengthOfTwo)
    expect(() => shape.read(wrong, 0, row.length)).toThrow('a row of the columns')
  }
  expect(() => shape.read(dataRow(['one']), 0, 9)).toThrow('a row of the columns')
  expect(() => shape.read(dataRow(['1', '2', '3']), 0, 17)).toThrow('a row of the columns')
})

test('more kinds of rows than are kept are still built rightly', () => {
  for (let index = 0; index < 2_100; index += 1) {
    const fields = [{ name: `c${index}`, dataTypeID: builtins.INT4 }]
    expect(shapeOf(fields).build([String(index)])).toStrictEqual({ [`c${index}`]: index })
  }
})

const restorers: (() => void)[] = []
afterEach(() => {
  for (const restore of restorers.splice(0)) restore()
})

/** Sets a parser as an application would, until the test has ended. */
function setParser(typeId: number, parser: (text: string) => unknown): void {
  const before = types.getTypeParser(typeId) as (text: string) => unknown
  restorers.push(() => types.setTypeParser(typeId, before))
  types.setTypeParser(typeId, parser)
}

test('what a parser throws is what building the row throws, and the next row is built', () => {
  const refusal = new Error('not today')
  setParser(builtins.INT4, (text) => {
    if (text === '13') throw refusal
    return Number(text)
  })
  const shape = shapeOf([{ name: 'n', dataTypeID: builtins.INT4 }])
  expect(() => shape.build(['13'])).toThrow(refusal)
  expect(shape.build(['14'])).toStrictEqual({ n: 14 })
  expect(() => shapeOf([{ name: 'j', dataTypeID: builtins.JSON }]).build(['{'])).toThrow(SyntaxError)
})

const replaceable: readonly (readonly [string, number, string])[] = [
  ['int8', builtins.INT8, '12'],
  ['int4', builtins.INT4, '12'],
  ['bool', builtins.BOOL, 't'],
  ['text', builtins.TEXT, 'a'],
  ['timestamptz', builtins.TIMESTAMPTZ, '2026-11-21 09:30:00+00'],
  ['jsonb', builtins.JSONB, '{}'],
]

test.each(replaceable)("the application's own parser for %s is used from when it is set", (_what, typeId, text) => {
  const fields = [{ name: 'value', dataTypeID: typeId }]
  expectSameRow(fields, [text])
  setParser(typeId, (received) => `own ${received}`)
  expect(shapeOf(fields).build([text])).toStrictEqual({ value: `own ${text}` })
  expect(shapeOf(fields).build([null])).toStrictEqual({ value: null })
  restorers.pop()?.()
  expectSameRow(fields, [text])
})

/** Runs a program in a process of its own and returns the JSON that it prints. */
function outputOf(program: string, ...flags: string[]): JsonValue {
  const output = execFileSync(process.execPath, [...flags, '--input-type=module', '--eval', program], {
    cwd: import.meta.dirname,
    encoding: 'utf8',
  })
  return JSON.parse(output) as JsonValue
}

test("the application's own parser is used even when it was set before kanta was loaded", () => {
  const program = `
    import { types } from 'pg'
    const ids = ${JSON.stringify(replaceable.map(([, id]) => id))}
    for (const id of ids) types.setTypeParser(id, (text) => 'own ' + text)
    const { shapeOf: from } = await import('../../../src/postgres/row-shape.ts')
    const shapeOf = (fields) => from(fields, types)
    const rows = ids.map((id) => shapeOf([{ name: 'value', dataTypeID: id }]).build(['1']).value)
    console.log(JSON.stringify(rows))`
  expect(outputOf(program)).toEqual(replaceable.map(() => 'own 1'))
})

test('rows are the same where Node may not generate code', () => {
  const names = ['id', '__proto__', 'a"b', 'line\nend', 'é', 'id', '']
  const program = `
    import { types } from 'pg'
    import { dataRow } from '../../support/data-row.ts'
    import { shapeOf } from '../../../src/postgres/row-shape.ts'
    const names = ${JSON.stringify(names)}
    const fields = names.map((name) => ({ name, dataTypeID: 23 }))
    const shape = shapeOf([...fields, { name: 'at', dataTypeID: 1184 }, { name: 'none', dataTypeID: 25 }], types)
    const texts = [...names.map((_, index) => String(index)), '2026-11-21 09:30:00.5+00', null]
    const row = shape.build(texts)
    const bytes = dataRow(texts)
    const read = shape.read(bytes, 0, bytes.length)
    let isCodeAllowed = true
    try { new Function('') } catch { isCodeAllowed = false }
    const isPlain = Object.getPrototypeOf(row) === Object.prototype
    console.log(JSON.stringify({ isCodeAllowed, isPlain, isDate: row.at instanceof Date, entries: Object.entries(row), read: Object.entries(read) }))`
  const generated = outputOf(program)
  expect(generated).toMatchObject({ isCodeAllowed: true, isPlain: true, isDate: true })
  expect(outputOf(program, '--disallow-code-generation-from-strings')).toEqual({
    ...(generated as Record<string, JsonValue>),
    isCodeAllowed: false,
  })
})
