import {
  type Arbitrary,
  array,
  assert,
  bigInt,
  constant,
  constantFrom,
  double,
  float,
  integer,
  letrec,
  oneof,
  property,
  string,
  tuple,
  uint8Array,
} from 'fast-check'
import { types } from 'pg'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import {
  type Bytes,
  bytesParserOf,
  type Parser,
  parserOf,
  parsersFor,
  type ParserSource,
} from '../../../src/postgres/value-parsers.ts'

const { builtins } = types
const source: ParserSource = types
const byteaId: number = builtins.BYTEA

const digits = (value: number, width: number): string => String(value).padStart(width, '0')

const day: Arbitrary<string> = tuple(
  oneof(
    { arbitrary: integer({ min: 1900, max: 2100 }), weight: 3 },
    integer({ min: 0, max: 9_999 }),
    integer({ min: 10_000, max: 294_276 }),
  ),
  integer({ min: 0, max: 13 }),
  integer({ min: 0, max: 32 }),
).map(([year, month, dayOfMonth]) => `${digits(year, 4)}-${digits(month, 2)}-${digits(dayOfMonth, 2)}`)

const clock: Arbitrary<string> = tuple(
  integer({ min: 0, max: 24 }),
  integer({ min: 0, max: 60 }),
  integer({ min: 0, max: 61 }),
  oneof(
    constant(''),
    integer({ min: 0, max: 999_999 }).map((micros) => `.${digits(micros, 6).replace(/0+$/, '')}`),
    integer({ min: 0, max: 999_999 }).map((micros) => `.${digits(micros, 6)}`),
    string({ unit: constantFrom('0', '4', '9'), maxLength: 12 }).map((fraction) => `.${fraction}`),
  ),
).map(([hour, minute, second, fraction]) => `${digits(hour, 2)}:${digits(minute, 2)}:${digits(second, 2)}${fraction}`)

const zone = oneof(
  constantFrom('+00', '-00', '+02', '-05', '+05:30', '-03:30', '+14', '-12', '+00:19:32', '-00:01:15', 'Z', ''),
  tuple(constantFrom('+', '-'), integer({ min: 0, max: 99 }), integer({ min: 0, max: 99 })).map(
    ([sign, hours, minutes]) => `${sign}${digits(hours, 2)}:${digits(minutes, 2)}`,
  ),
)
const era = oneof({ arbitrary: constant(''), weight: 5 }, { arbitrary: constant(' BC'), weight: 1 })
const endless = constantFrom('infinity', '-infinity')
/** Clocks are put forward or back on these days somewhere, or days are left out; and leap days, some of which are none. */
const oddDays = constantFrom(
  '2026-03-08',
  '2026-03-29',
  '2026-10-25',
  '2026-11-01',
  '2011-12-30',
  '2018-11-04',
  '1972-01-07',
  '1883-11-18',
  '2024-02-29',
  '2023-02-29',
  '1900-02-29',
  '2000-02-29',
)
const anyDay = oneof({ arbitrary: day, weight: 4 }, { arbitrary: oddDays, weight: 2 })
const dates = oneof(
  { arbitrary: tuple(anyDay, era).map((parts) => parts.join('')), weight: 9 },
  { arbitrary: endless, weight: 1 },
)
const timestamps = oneof(
  { arbitrary: tuple(anyDay, constant(' '), clock, era).map((parts) => parts.join('')), weight: 9 },
  { arbitrary: endless, weight: 1 },
)
const zonedTimestamps = oneof(
  { arbitrary: tuple(anyDay, constant(' '), clock, zone, era).map((parts) => parts.join('')), weight: 9 },
  { arbitrary: endless, weight: 1 },
)
const wholeNumbers = oneof(
  integer().map(String),
  bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }).map(String),
  constantFrom('0', '-0', '-', '+1', '007', '-2147483648', '4294967295', '999999999999999', '9999999999999999', '1e3'),
)
const decimals = oneof(
  double().map(String),
  float().map(String),
  tuple(bigInt({ min: -(10n ** 17n), max: 10n ** 17n }), integer({ min: 0, max: 18 })).map(([value, places]) => {
    const text = digits(0, places) + String(value < 0n ? -value : value)
    const at = text.length - places
    return `${value < 0n ? '-' : ''}${text.slice(0, at)}${places > 0 ? '.' : ''}${text.slice(at)}`
  }),
  constantFrom(
    'NaN',
    'Infinity',
    '-Infinity',
    '-0',
    '0',
    '1e308',
    '-1e-320',
    '1e+15',
    '0.1',
    '.5',
    '5.',
    '.',
    '-',
    '1.2.3',
  ),
)
const hex = oneof(uint8Array({ maxLength: 80 }), uint8Array({ minLength: 60, maxLength: 300 })).map(
  (bytes) => `\\x${Buffer.from(bytes).toString('hex')}`,
)
const escaped = string({ unit: constantFrom('a', '\\\\', '\\000', '\\377', '\\012', '"', "'", '\\'), maxLength: 20 })
const byteStrings = oneof(hex, escaped, constantFrom('\\x', '\\xf', '\\xfg', '\\xAbCd', '\\X00', '', '\\'))
const truths = constantFrom('t', 'f', 'true', 'TRUE', 'false', 'y', 'yes', 'on', 'off', '1', '0', '', 'tt', 'T')
const words = oneof(
  string({ unit: 'grapheme' }),
  string(),
  constantFrom('', 'NULL', 'null', '\\', '"', '{', '}', ',', ' a '),
)
const documents = constantFrom('{}', '[1,null]', '"a\\"b"', '1e3', '{"__proto__":1}', 'null', '', '{', '{"a":"é🙂"}')

const typesOfTexts: readonly (readonly [string, number, number | undefined, Arbitrary<string>])[] = [
  ['int2', builtins.INT2, 1005, wholeNumbers],
  ['int4', builtins.INT4, 1007, wholeNumbers],
  ['oid', builtins.OID, 1028, wholeNumbers],
  ['int8', builtins.INT8, 1016, wholeNumbers],
  ['float4', builtins.FLOAT4, 1021, decimals],
  ['float8', builtins.FLOAT8, 1022, decimals],
  ['numeric', builtins.NUMERIC, undefined, decimals],
  ['bool', builtins.BOOL, 1000, truths],
  ['date', builtins.DATE, 1182, dates],
  ['timestamp', builtins.TIMESTAMP, 1115, timestamps],
  ['timestamptz', builtins.TIMESTAMPTZ, 1185, zonedTimestamps],
  ['bytea', builtins.BYTEA, 1001, byteStrings],
  ['json', builtins.JSON, 199, documents],
  ['jsonb', builtins.JSONB, 3807, documents],
  ['text', builtins.TEXT, 1009, words],
  ['varchar', builtins.VARCHAR, 1015, words],
  ['bpchar', builtins.BPCHAR, 1014, words],
  ['name', 19, undefined, words],
  ['uuid', builtins.UUID, 2951, words],
  ['a type that nobody knows', 999_999, 999_998, words],
]

/** A text with some characters changed, left out or added. */
function damaged(texts: Arbitrary<string>): Arbitrary<string> {
  const character = constantFrom(...Array.from('0123456789-+:. TZBC{}[]=",\\NULxXeE\n\0é🙂'))
  return tuple(texts, array(tuple(integer({ min: 0, max: 40 }), constantFrom(0, 1), character), { maxLength: 3 })).map(
    ([text, damages]) =>
      damages.reduce((whole, [at, removed, added]) => whole.slice(0, at) + added + whole.slice(at + removed), text),
  )
}

/** What a parser gives, or the kind of error that it throws. */
function outcome(parse: () => unknown): unknown {
  try {
    return { value: parse() }
  } catch (error) {
    return { thrown: (error as Error).constructor.name }
  }
}

function fromBytes(parser: Parser, text: string): unknown {
  const before = Buffer.from('1-2')
  const value = Buffer.from(text)
  const bytes = Buffer.concat([before, value, Buffer.from('34:5+06}')]) as Bytes
  return bytesParserOf(parser)(bytes, before.length, before.length + value.length)
}

function expectAsDriver(typeId: number, text: string): void {
  const expected = outcome(() => stockParser(typeId)(text))
  const parser = parserOf(typeId, source)
  expect(outcome(() => parser(text))).toStrictEqual(expected)
  expect(outcome(() => fromBytes(parser, text))).toStrictEqual(expected)
}

/** Where `pg` never comes back: a backslash that neither escapes another nor has three digits behind it. */
const isEndless = (text: string): boolean => !text.startsWith('\\x') && !/^(?:[^\\]|\\\\|\\[0-7]{3})*$/.test(text)

/** `pg`'s own parser, except that it refuses what would be endless. */
function stockParser(typeId: number): Parser {
  const parser = types.getTypeParser(typeId) as Parser
  const finite: Parser = (text) => {
    if (isEndless(text)) throw new Error('endless')
    return (types.getTypeParser(builtins.BYTEA) as Parser)(text)
  }
  if (typeId === byteaId) return finite
  return typeId === 1001 ? (text) => (text === '' ? null : readArray(text, finite)) : parser
}

function readArray(text: string, element: Parser): unknown {
  const parser = types.arrayParser as unknown as {
    create(text: string, element: (item: string | null) => unknown): { parse(): unknown }
  }
  return parser.create(text, (item) => (item === null ? null : element(item))).parse()
}

/** Lone surrogates do not survive as bytes; no server sends them. */
const wellFormed = (text: string): string => text.toWellFormed()

const zones = [
  'UTC',
  'Europe/Helsinki',
  'America/New_York',
  'America/St_Johns',
  'America/Sao_Paulo',
  'Africa/Monrovia',
  'Pacific/Apia',
  'Asia/Kathmandu',
]

describe.each(zones)('with TZ=%s', (tz) => {
  const before = process.env['TZ']
  beforeEach(() => {
    process.env['TZ'] = tz
  })
  afterEach(() => {
    if (before === undefined) delete process.env['TZ']
    else process.env['TZ'] = before
  })

  test.each([
    ['date', builtins.DATE, dates],
    ['timestamp', builtins.TIMESTAMP, timestamps],
    ['timestamptz', builtins.TIMESTAMPTZ, zonedTimestamps],
  ] as const)('%s is what pg makes of it', (_name, typeId, texts) => {
    assert(
      property(oneof(texts, damaged(texts)), (text) => expectAsDriver(typeId, wellFormed(text))),
      { numRuns: 500 },
    )
  })
})

test.each(typesOfTexts)('%s, sound or damaged, is what pg makes of it', (_name, typeId, _arrayId, texts) => {
  assert(
    property(oneof(texts, damaged(texts)), (text) => expectAsDriver(typeId, wellFormed(text))),
    { numRuns: 1_000 },
  )
})

/** A list as PostgreSQL writes it: quotes around what would not be read back as it is. */
function arrayText(elements: Arbitrary<string>): Arbitrary<string> {
  const element = oneof({ arbitrary: elements, weight: 5 }, { arbitrary: constant(null), weight: 1 }).map((item) => {
    if (item === null) return 'NULL'
    const isPlain = item !== '' && !/^null$/i.test(item) && !/[\s{}",\\]/.test(item)
    return isPlain ? item : `"${item.replaceAll(/["\\]/g, '\\$&')}"`
  })
  const list = (items: Arbitrary<string>, minLength: number): Arbitrary<string> =>
    array(items, { minLength, maxLength: 5 }).map((texts) => `{${texts.join(',')}}`)
  const { nested } = letrec<{ nested: string }>(() => ({
    nested: oneof(
      { arbitrary: list(element, 0), weight: 4 },
      { arbitrary: list(list(element, 1), 1), weight: 1 },
      { arbitrary: list(list(list(element, 1), 1), 1), weight: 1 },
    ),
  }))
  return oneof(
    { arbitrary: nested, weight: 6 },
    { arbitrary: nested.map((text) => `[0:1]=${text}`), weight: 1 },
    { arbitrary: nested.map((text) => `[-2:-1][3:4]=${text}`), weight: 1 },
    {
      arbitrary: constantFrom(
        '',
        '{',
        '}',
        '{{1,2}',
        '{1,2}}',
        '{,}',
        '{1,}',
        '{"a}',
        '{"a"b}',
        '{a"b"}',
        '{{1},2}',
        '{NULL}',
        '{null}',
      ),
      weight: 1,
    },
  )
}

test.each(typesOfTexts.filter(([, , arrayId]) => arrayId !== undefined))(
  'arrays of %s, sound or damaged, are what pg makes of them',
  (_name, _typeId, arrayId, texts) => {
    const arrays = arrayText(texts)
    assert(
      property(oneof(arrays, damaged(arrays)), (text) => expectAsDriver(arrayId as number, wellFormed(text))),
      { numRuns: 1_000 },
    )
  },
)

test.each(['\\', 'a\\', '\\12', '\\\\\\', '\\9'])('a bytea %j, of which pg never comes back, is refused', (text) => {
  const parser = parserOf(builtins.BYTEA, source)
  expect(() => parser(text)).toThrow('not a bytea')
  expect(() => fromBytes(parser, text)).toThrow('not a bytea')
  expect(() => parserOf(1001, source)(`{"${text.replaceAll('\\', '\\\\')}"}`)).toThrow('not a bytea')
})

test('an array of numeric has the elements that a numeric has by itself, where pg rounds them to doubles', () => {
  const parser = parserOf(1231, source)
  const text = '{0.1000000000000000055511151231257827,NULL,NaN,{1,2}}'
  expect(parser('{12345678901234567890.12,NULL,NaN}')).toEqual(['12345678901234567890.12', null, 'NaN'])
  expect(parser('[2:3]={1.10,2}')).toEqual(['1.10', '2'])
  expect(parser('{{1.0},{2.0}}')).toEqual([['1.0'], ['2.0']])
  expect(parser(text)).toEqual(['0.1000000000000000055511151231257827', null, 'NaN', ['1', '2']])
  expect(parser('')).toBeNull()
})

test('the fraction of every microsecond is cut to the millisecond that pg gives', () => {
  // What pg does: a double of the fraction, times 1000, of which Date takes the whole part.
  let different = 0
  for (let micros = 0; micros < 1_000_000; micros += 1) {
    const whole = Math.trunc(1_000 * Number.parseFloat(`.${digits(micros, 6)}`))
    if (whole !== Math.floor(micros / 1_000)) different += 1
  }
  expect(different).toBe(0)
})

test('values longer than a piece are read whole, and one wrong digit among them is seen', () => {
  const size = 40_000
  for (const [typeId, text] of [
    [builtins.TEXT, 'é'.repeat(size)],
    [builtins.BYTEA, `\\x${'0aff'.repeat(size)}`],
    [builtins.BYTEA, `\\x${'0aff'.repeat(size)}0g${'00'.repeat(size)}`],
    [builtins.BYTEA, '\\\\\\001a'.repeat(size)],
    [builtins.INT4, '9'.repeat(1_000)],
    [builtins.JSONB, `["${'x'.repeat(size)}"]`],
    [1007, `{${'1,'.repeat(50_000)}2}`],
    [1009, `{${'"a\\"b",'.repeat(20_000)}NULL}`],
  ] as const)
    expectAsDriver(typeId, text)
})

describe('a connection with settings of its own', () => {
  const limit = Number.MAX_SAFE_INTEGER
  const valueOf = (settings: Parameters<typeof parsersFor>[0], typeId: number, text: string): unknown => {
    const own = parsersFor(settings) as ParserSource
    const parser = parserOf(typeId, own)
    const value = parser(text)
    expect(fromBytes(parser, text)).toStrictEqual(value)
    return value
  }

  test('has none where nothing is set', () => {
    expect(parsersFor(undefined)).toBeUndefined()
    expect(parsersFor({})).toBeUndefined()
    expect(parsersFor({ int8: undefined })).toBeUndefined()
  })

  test('reads int8 as bigint, whatever its size, and arrays of it', () => {
    assert(
      property(bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }), (value) => {
        expect(valueOf({ int8: 'bigint' }, builtins.INT8, String(value))).toBe(value)
        expect(valueOf({ int8: 'bigint' }, 1016, `{${value},NULL}`)).toEqual([value, null])
      }),
    )
  })

  test('reads int8 as number up to where numbers are exact, and refuses what is beyond', () => {
    assert(
      property(integer({ min: -limit, max: limit }), (value) => {
        expect(valueOf({ int8: 'number' }, builtins.INT8, String(value))).toBe(value)
        expect(valueOf({ int8: 'number' }, 1016, `{${value},NULL}`)).toEqual([value, null])
      }),
    )
    for (const beyond of [2n ** 53n, -(2n ** 53n), 2n ** 63n - 1n, -(2n ** 63n)]) {
      const parser = parserOf(builtins.INT8, parsersFor({ int8: 'number' }) as ParserSource)
      expect(() => parser(String(beyond))).toThrow(expect.objectContaining({ code: 'INVALID_DATA' }))
      expect(() => fromBytes(parser, String(beyond))).toThrow('MAX_SAFE_INTEGER')
    }
  })

  test('reads numeric as the nearest number, and date as its text, alone and in arrays', () => {
    expect(valueOf({ numeric: 'number' }, builtins.NUMERIC, '12.50')).toBe(12.5)
    expect(valueOf({ numeric: 'number' }, builtins.NUMERIC, 'NaN')).toBeNaN()
    expect(valueOf({ numeric: 'number' }, 1231, '{0.1,NULL,12345678901234567890.5}')).toEqual([
      0.1,
      null,
      12_345_678_901_234_567_000,
    ])
    expect(valueOf({ date: 'string' }, builtins.DATE, '2026-11-21')).toBe('2026-11-21')
    expect(valueOf({ date: 'string' }, 1182, '{2026-11-21,infinity}')).toEqual(['2026-11-21', 'infinity'])
    expect(valueOf({ date: 'string' }, builtins.TIMESTAMPTZ, '2026-11-21 00:00:00+00')).toEqual(
      new Date(Date.UTC(2026, 10, 21)),
    )
  })

  test('leaves the parsers of the process and of other connections alone', () => {
    const before = types.getTypeParser(builtins.INT8)
    valueOf({ int8: 'bigint' }, builtins.INT8, '1')
    expect(types.getTypeParser(builtins.INT8)).toBe(before)
    expect(valueOf({ int8: 'number' }, builtins.INT8, '1')).toBe(1)
    expect(valueOf({ int8: 'string' }, builtins.INT8, '1')).toBe('1')
  })

  test('what is set wins over a parser of the whole application, what is not leaves it in force', () => {
    const before = types.getTypeParser(builtins.INT8)
    types.setTypeParser(builtins.INT8, (text) => `own ${text}`)
    try {
      expect(valueOf({ int8: 'string' }, builtins.INT8, '1')).toBe('1')
      expect(valueOf({ date: 'string' }, builtins.INT8, '1')).toBe('own 1')
    } finally {
      types.setTypeParser(builtins.INT8, before as Parser)
    }
  })
})
