import { createRequire } from 'node:module'
import { type CustomTypesConfig, types } from 'pg'
import type { ValueTypes } from '../core/options.ts'
import { DatabaseError } from '../core/errors.ts'

/** Makes a value of the text in which the server sends it. */
export type Parser = (text: string) => unknown

/** Makes a value of that text while it still lies in the bytes that came. */
export type BytesParser = (bytes: Bytes, from: number, to: number) => unknown

/** Where the parser of a type is found: `pg`'s `types`, or a client of its with parsers of its own. */
export interface ParserSource {
  getTypeParser(typeId: number, format?: 'text'): Parser
}

/** A buffer with the method behind `toString('utf8', from, to)`, which takes a quarter longer to find it. */
export type Bytes = Buffer & { utf8Slice(from: number, to: number): string }

const { builtins } = types
const nameType = 19

/** The text itself. */
export const keep: Parser = (text) => text
const keepBytes: BytesParser = (bytes, from, to) => bytes.utf8Slice(from, to)

// What `pg` uses when nobody has changed it, read where it reads it: the application may have set a parser of its own
// before this file was loaded, and that one is honoured.
const stock = new Map<number, Parser>()
const textParsers = createRequire(createRequire(import.meta.url).resolve('pg'))('pg-types/lib/textParsers') as {
  init(register: (typeId: number, parser: Parser) => void): void
}
textParsers.init((typeId, parser) => stock.set(typeId, parser))
// There is no type 0: this is the parser of all that have none.
const stockOfOthers = types.getTypeParser(0 as number) as Parser

function stockOf(typeId: number): Parser {
  return stock.get(typeId) ?? stockOfOthers
}

/**
 * The parser for a type: that of the source, unless it is what `pg` brings along and there is a faster one that gives
 * the same.
 */
export function parserOf(typeId: number, source: ParserSource): Parser {
  const theirs = source.getTypeParser(typeId, 'text')
  if (theirs === stockOfOthers) return keep
  return theirs === stock.get(typeId) ? (faster.get(typeId) ?? theirs) : theirs
}

/** The same parser for a value that is still bytes. */
export function bytesParserOf(parser: Parser): BytesParser {
  return ofBytes.get(parser) ?? ((bytes, from, to) => parser(bytes.utf8Slice(from, to)))
}

/** Which parsers a connection has where the settings want others than `pg`'s; `undefined` where they do not. */
export function parsersFor(settings: ValueTypes | undefined): CustomTypesConfig | undefined {
  const chosen = new Map<number, Parser>()
  const choose = (typeId: number, arrayId: number, parser: Parser | undefined): void => {
    if (parser === undefined) return
    chosen.set(typeId, parser)
    chosen.set(arrayId, arrayOf(parser, stockArray))
  }
  choose(builtins.INT8, 1016, settings?.int8 && int8Parsers[settings.int8])
  choose(builtins.NUMERIC, 1231, settings?.numeric && numericParsers[settings.numeric])
  choose(builtins.DATE, 1182, settings?.date && dateParsers[settings.date])
  if (chosen.size === 0) return undefined
  // Binary values are none of ours; `pg` asks for them by the same method.
  const getTypeParser = (typeId: number, format: 'binary' | 'text' = 'text'): unknown =>
    (format === 'text' ? chosen.get(typeId) : undefined) ?? types.getTypeParser(typeId, format)
  return { getTypeParser: getTypeParser as CustomTypesConfig['getTypeParser'] }
}

const zero = 48
const minus = 45
const point = 46
const colon = 58
const space = 32

/** Whole numbers of up to so many digits are exact in a double. */
const maxExactDigits = 15

function isDigit(code: number | undefined): boolean {
  return code !== undefined && code >= zero && code <= 57
}

/** A parser of bytes with what to do when the text is not in the common form: as `pg` does. */
function integer(fallback: Parser): BytesParser {
  return (bytes, from, to) => {
    const isNegative = bytes[from] === minus
    const first = isNegative ? from + 1 : from
    const count = to - first
    if (count < 1 || count > maxExactDigits) return fallback(bytes.utf8Slice(from, to))
    let value = 0
    for (let at = first; at < to; at += 1) {
      const digit = (bytes[at] as number) - zero
      if (digit < 0 || digit > 9) return fallback(bytes.utf8Slice(from, to))
      value = value * 10 + digit
    }
    return isNegative ? -value : value
  }
}

// A quotient of two doubles that are both exact is the double nearest to the true value, as parseFloat gives it.
const powersOfTen = Array.from({ length: maxExactDigits + 1 }, (_, power) => 10 ** power)

function decimal(fallback: Parser): BytesParser {
  return (bytes, from, to) => {
    const isNegative = bytes[from] === minus
    const first = isNegative ? from + 1 : from
    const count = to - first
    // One more for the point.
    if (count < 1 || count > maxExactDigits + 1 || !isDigit(bytes[first]) || !isDigit(bytes[to - 1]))
      return fallback(bytes.utf8Slice(from, to))
    let value = 0
    let decimals = -1
    for (let at = first; at < to; at += 1) {
      const code = bytes[at] as number
      if (code === point && decimals < 0) decimals = to - at - 1
      else if (code < zero || code > 57) return fallback(bytes.utf8Slice(from, to))
      else value = value * 10 + code - zero
    }
    if (decimals > 0) value /= powersOfTen[decimals] as number
    else if (count > maxExactDigits) return fallback(bytes.utf8Slice(from, to))
    return isNegative ? -value : value
  }
}

function boolean(fallback: Parser): BytesParser {
  return (bytes, from, to) => {
    const code = to - from === 1 ? bytes[from] : 0
    return code === 116 ? true : code === 102 ? false : fallback(bytes.utf8Slice(from, to))
  }
}

/** Two digits; where there are not two, so far below zero that nothing added to it makes a number of a date. */
function twoDigits(bytes: Bytes, at: number): number {
  const tens = (bytes[at] as number) - zero
  const units = (bytes[at + 1] as number) - zero
  return tens < 0 || tens > 9 || units < 0 || units > 9 ? -1_000_000 : tens * 10 + units
}

/** The year at the beginning of `YYYY-MM-DD`; negative where these are not ten such characters. */
function yearOf(bytes: Bytes, from: number): number {
  if (bytes[from + 4] !== minus || bytes[from + 7] !== minus) return -1
  return twoDigits(bytes, from) * 100 + twoDigits(bytes, from + 2)
}

/** Years below 100 mean the twentieth century to Date, and longer ones have another form: both are left to `pg`. */
function isPlainDate(year: number, month: number, day: number): boolean {
  return year >= 100 && month >= 1 && month <= 12 && day >= 1 && day <= 31
}

function date(fallback: Parser): BytesParser {
  return (bytes, from, to) => {
    if (to - from !== 10) return fallback(bytes.utf8Slice(from, to))
    const year = yearOf(bytes, from)
    const month = twoDigits(bytes, from + 5)
    const day = twoDigits(bytes, from + 8)
    if (!isPlainDate(year, month, day)) return fallback(bytes.utf8Slice(from, to))
    return new Date(year, month - 1, day)
  }
}

/** Where the fraction of a second ends that may begin at `at`: there are none or one to six digits, else -1. */
function endOfFraction(bytes: Bytes, at: number, to: number): number {
  if (at >= to || bytes[at] !== point) return at
  let end = at + 1
  while (end < to && isDigit(bytes[end])) end += 1
  return end - at < 2 || end - at > 7 ? -1 : end
}

/** Milliseconds; what is finer is cut off, as Date has no place for it. */
function millisecondsOf(bytes: Bytes, at: number, end: number): number {
  let value = 0
  for (let index = at + 1; index < at + 4; index += 1)
    value = value * 10 + (index < end ? (bytes[index] as number) - zero : 0)
  return value
}

/** Days since 1970 in the calendar that both PostgreSQL and Date use; Date.UTC takes half as long again for it. */
function daysOf(year: number, month: number, day: number): number {
  // Years begin with March here, so that a leap day is the last of its year.
  const shifted = month > 2 ? year : year - 1
  const dayOfYear = Math.trunc((153 * (month > 2 ? month - 3 : month + 9) + 2) / 5) + day - 1
  return (
    shifted * 365 +
    Math.floor(shifted / 4) -
    Math.floor(shifted / 100) +
    Math.floor(shifted / 400) +
    dayOfYear -
    719_468
  )
}

/** The offset that ends a time stamp, such as `+00`, `-03:30`, in minutes; NaN where it is in another form. */
function zoneOf(bytes: Bytes, at: number, to: number): number {
  const sign = bytes[at] === 43 ? 1 : bytes[at] === minus ? -1 : Number.NaN
  const size = to - at
  if (size === 3) return sign * 60 * pair(bytes, at + 1)
  if (size === 6 && bytes[at + 3] === colon) return sign * (60 * pair(bytes, at + 1) + pair(bytes, at + 4))
  return Number.NaN
}

function pair(bytes: Bytes, at: number): number {
  const value = twoDigits(bytes, at)
  return value < 0 ? Number.NaN : value
}

/** `2026-11-21 09:30:00.123+00`, and without the zone where the column has none. */
function timestamp(fallback: Parser, hasZone: boolean): BytesParser {
  return (bytes, from, to) => {
    if (to - from < 19 || bytes[from + 10] !== space || bytes[from + 13] !== colon || bytes[from + 16] !== colon)
      return fallback(bytes.utf8Slice(from, to))
    const year = yearOf(bytes, from)
    const month = twoDigits(bytes, from + 5)
    const day = twoDigits(bytes, from + 8)
    const hour = twoDigits(bytes, from + 11)
    const minute = twoDigits(bytes, from + 14)
    const second = twoDigits(bytes, from + 17)
    const end = endOfFraction(bytes, from + 19, to)
    if (!isPlainDate(year, month, day) || hour < 0 || minute < 0 || second < 0 || end < 0)
      return fallback(bytes.utf8Slice(from, to))
    const ms = end > from + 19 ? millisecondsOf(bytes, from + 19, end) : 0
    if (!hasZone) {
      if (end !== to) return fallback(bytes.utf8Slice(from, to))
      return new Date(year, month - 1, day, hour, minute, second, ms)
    }
    const zone = zoneOf(bytes, end, to)
    if (Number.isNaN(zone)) return fallback(bytes.utf8Slice(from, to))
    const minutes = (daysOf(year, month, day) * 24 + hour) * 60 + minute - zone
    return new Date(minutes * 60_000 + second * 1_000 + ms)
  }
}

/** What each byte means as a digit of a hexadecimal number; above 15 where it is none. */
const hexDigits = Uint8Array.from({ length: 256 }, (_, code) => {
  const digit = Number.parseInt(String.fromCharCode(code), 16)
  return Number.isNaN(digit) ? 255 : digit
})

// Below this a loop is faster than the two calls that leave JavaScript, above it half as fast.
const longHex = 128
// Longer values are read in pieces, so that there is no string of twice their size in between.
const hexPiece = 65_536

/** `\x0aff` */
function bytea(fallback: Parser): BytesParser {
  return (bytes, from, to) => {
    const size = (to - from - 2) / 2
    if (size < 0 || !Number.isInteger(size) || bytes[from] !== 92 || bytes[from + 1] !== 120)
      return fallback(bytes.utf8Slice(from, to))
    const value = Buffer.allocUnsafe(size)
    const isRead = to - from > longHex ? readLongHex(bytes, from + 2, to, value) : readHex(bytes, from + 2, value)
    return isRead ? value : fallback(bytes.utf8Slice(from, to))
  }
}

/** Whether all of it was hexadecimal. */
function readHex(bytes: Bytes, from: number, value: Buffer): boolean {
  for (let index = 0, at = from; index < value.length; index += 1, at += 2) {
    const high = hexDigits[bytes[at] as number] as number
    const low = hexDigits[bytes[at + 1] as number] as number
    if ((high | low) > 15) return false
    value[index] = (high << 4) | low
  }
  return true
}

function readLongHex(bytes: Bytes, from: number, to: number, value: Buffer): boolean {
  for (let at = from, written = 0; at < to; at += hexPiece) {
    const end = Math.min(at + hexPiece, to)
    const count = value.write(bytes.toString('latin1', at, end), written, 'hex')
    // It stops where something else stands.
    if (count !== (end - at) / 2) return false
    written += count
  }
  return true
}

/**
 * The older form of bytea, in which a byte that cannot be shown is three octal digits after a backslash. `pg`'s own parser
 * never returns from a backslash that stands for nothing.
 */
function unescaped(text: string): Buffer {
  const plain = text.replaceAll(/\\(\\|[0-7]{3})?/g, (_, escaped: string | undefined) => {
    if (escaped === undefined) throw new Error('not a bytea')
    return escaped === '\\' ? escaped : String.fromCharCode(Number.parseInt(escaped, 8))
  })
  return Buffer.from(plain, 'latin1')
}

const ofBytes = new Map<Parser, BytesParser>([[keep, keepBytes]])
const scratch = Buffer.alloc(64) as Bytes

/** A parser of text that does as one of bytes does; nothing that these take is longer than the scratch pad. */
function textual(parser: BytesParser, fallback: Parser): Parser {
  const ofText: Parser = (text) => {
    const { length } = text
    if (length > scratch.length) return fallback(text)
    for (let at = 0; at < length; at += 1) {
      const code = text.charCodeAt(at)
      if (code > 127) return fallback(text)
      scratch[at] = code
    }
    return parser(scratch, 0, length)
  }
  ofBytes.set(ofText, parser)
  return ofText
}

/** The numbers of `pg` from `kind`, for both texts and bytes. */
function quick(kind: (fallback: Parser) => BytesParser, fallback: Parser): Parser {
  return textual(kind(fallback), fallback)
}

/**
 * A parser of arrays: of one dimension without quotes by splitting, of any other in the server's form by reading on.
 * What is not in that form goes to `fallback`.
 */
function arrayOf(element: Parser, fallback: (text: string, element: Parser) => unknown): Parser {
  return (text) => {
    const end = text.length - 1
    if (text.charCodeAt(0) !== 123 || text.charCodeAt(end) !== 125) return fallback(text, element)
    if (end === 1) return []
    if (text.includes('"') || text.includes('\\') || text.indexOf('{', 1) > 0)
      return new ArrayText(text, element).read() ?? fallback(text, element)
    if (text.indexOf('}') < end) return fallback(text, element)
    const items: unknown[] = text.slice(1, end).split(',')
    for (let index = 0; index < items.length; index += 1) {
      const item = items[index] as string
      if (item === '') return fallback(text, element)
      items[index] = item === 'NULL' ? null : element(item)
    }
    return items
  }
}

/** An array with quotes or more than one dimension. */
class ArrayText {
  readonly #text: string
  readonly #element: Parser
  #at = 0

  constructor(text: string, element: Parser) {
    this.#text = text
    this.#element = element
  }

  /** Undefined where the text is not what a server writes. */
  read(): unknown[] | undefined {
    const items = this.#array()
    return this.#at === this.#text.length ? items : undefined
  }

  #array(): unknown[] | undefined {
    const items: unknown[] = []
    // Past the opening brace.
    this.#at += 1
    if (this.#take('}')) return items
    do {
      const next = this.#text[this.#at]
      if (next === '{') {
        const inner = this.#array()
        if (inner === undefined) return undefined
        items.push(inner)
      } else if (next === '"') {
        const item = this.#quoted()
        if (item === undefined) return undefined
        items.push(this.#element(item))
      } else {
        const item = this.#plain()
        if (item === '') return undefined
        items.push(item === 'NULL' ? null : this.#element(item))
      }
    } while (this.#take(','))
    return this.#take('}') ? items : undefined
  }

  #take(character: string): boolean {
    if (this.#text[this.#at] !== character) return false
    this.#at += 1
    return true
  }

  #plain(): string {
    const from = this.#at
    for (; this.#at < this.#text.length; this.#at += 1) {
      const code = this.#text.charCodeAt(this.#at)
      if (code === 44 || code === 125) break
      // A brace, a quote or a backslash has no place in here.
      if (code === 123 || code === 34 || code === 92) return ''
    }
    return this.#text.slice(from, this.#at)
  }

  #quoted(): string | undefined {
    const text = this.#text
    let item = ''
    let from = this.#at + 1
    for (let at = from; at < text.length; at += 1) {
      const code = text.charCodeAt(at)
      if (code === 34) {
        this.#at = at + 1
        return item + text.slice(from, at)
      }
      if (code !== 92) continue
      item += text.slice(from, at)
      // What follows a backslash is itself, whatever it is.
      at += 1
      from = at
    }
    return undefined
  }
}

const stockArrayOf = (typeId: number) => (text: string) => stockOf(typeId)(text)

// Its declarations have a function here, and it is an object.
const arrayTexts = types.arrayParser as unknown as {
  create(text: string, element: (item: string | null) => unknown): { parse(): unknown }
}

/** `pg`'s own reading of arrays with elements that are not its own. */
const stockArray = (text: string, element: Parser): unknown =>
  text === '' ? null : arrayTexts.create(text, (item) => (item === null ? null : element(item))).parse()

const wholeNumber = (typeId: number): Parser => quick(integer, stockOf(typeId))
const float = quick(decimal, stockOf(builtins.FLOAT8))
const plainDate = quick(date, stockOf(builtins.DATE))
const plainTimestamp = quick((fallback) => timestamp(fallback, false), stockOf(builtins.TIMESTAMP))
const zonedTimestamp = quick((fallback) => timestamp(fallback, true), stockOf(builtins.TIMESTAMPTZ))
const truth = quick(boolean, stockOf(builtins.BOOL))
const binary: Parser = (text) => (text.startsWith('\\x') ? stockOf(builtins.BYTEA)(text) : unescaped(text))
ofBytes.set(binary, bytea(binary))

const smallInteger = wholeNumber(builtins.INT2)
const integer4 = wholeNumber(builtins.INT4)
const oid = wholeNumber(builtins.OID)

/** By type; that of an array follows that of its elements. */
const faster: ReadonlyMap<number, Parser> = new Map<number, Parser>([
  [builtins.TEXT, keep],
  [builtins.VARCHAR, keep],
  [builtins.BPCHAR, keep],
  [nameType, keep],
  [builtins.UUID, keep],
  [builtins.INT8, keep],
  [builtins.NUMERIC, keep],
  [builtins.INT2, smallInteger],
  [builtins.INT4, integer4],
  [builtins.OID, oid],
  [builtins.FLOAT4, float],
  [builtins.FLOAT8, float],
  [builtins.BOOL, truth],
  [builtins.DATE, plainDate],
  [builtins.TIMESTAMP, plainTimestamp],
  [builtins.TIMESTAMPTZ, zonedTimestamp],
  [builtins.BYTEA, binary],
  ...(
    [
      [1009, keep],
      [1015, keep],
      [1014, keep],
      [2951, keep],
      [1016, (text: string) => text.trim()],
      [1005, smallInteger],
      [1007, integer4],
      [1028, oid],
      [1021, float],
      [1022, float],
      [1000, truth],
      [1182, plainDate],
      [1115, plainTimestamp],
      [1185, zonedTimestamp],
      [199, JSON.parse],
      [3807, JSON.parse],
    ] as const
  ).map(([arrayId, element]) => [arrayId, arrayOf(element as Parser, stockArrayOf(arrayId))] as const),
  [1001, arrayOf(binary, stockArray)],
  // `pg` makes doubles of these although it leaves a numeric alone, and so loses digits.
  [1231, arrayOf(keep, stockArray)],
])

/** Thrown by a parser, and passed on as it is: it says what to do. */
function unsafeInteger(): DatabaseError {
  return new DatabaseError(
    'INVALID_DATA',
    'it is beyond Number.MAX_SAFE_INTEGER, and postgres.types.int8 is number, which would round it. ' +
      'Set that to bigint or string, or cast the column to text.',
  )
}

const safeInteger: Parser = (text) => {
  const value = Number(text)
  if (Number.isSafeInteger(value)) return value
  if (/^-?\d+$/.test(text)) throw unsafeInteger()
  throw new TypeError('not a bigint')
}

const int8Parsers: Readonly<Record<NonNullable<ValueTypes['int8']>, Parser>> = {
  string: keep,
  number: quick(integer, safeInteger),
  bigint: (text) => BigInt(text),
}
const numericParsers: Readonly<Record<NonNullable<ValueTypes['numeric']>, Parser>> = {
  string: keep,
  number: float,
}
const dateParsers: Readonly<Record<NonNullable<ValueTypes['date']>, Parser>> = {
  string: keep,
  Date: plainDate,
}
