import { promisify } from 'node:util'
import * as zlib from 'node:zlib'
import type { Packr } from 'msgpackr'
import { DatabaseError } from '../core/errors.ts'

/** How values become bytes that plain JSON cannot hold: dates, bigints, bytes, maps and sets. */
export type CodecName = 'json' | 'msgpack'

/** A value as bytes, and how it became so. */
export interface Encoded {
  readonly bytes: Buffer
  readonly flags: number
}

/** The same behind other bytes: a buffer of its own would cost as much as a small value. */
export interface EncodedBehind extends Encoded {
  /** Where it begins. */
  readonly from: number
}

/** What {@link survey} finds of a value. */
export interface Survey {
  /** About how many bytes it takes in memory. */
  readonly size: number
  /** It has what MessagePack would change or stumble over: half characters, minus zero, a key `__proto__` or `toJSON`. */
  readonly needsJson: boolean
  /** JSON alone brings it back as it is, which V8 reads and writes faster than anything else. */
  readonly isPlain: boolean
}

const jsonFlag = 1
const zstdFlag = 2
const brotliFlag = 4
const plainFlag = 8
const knownFlags = jsonFlag | zstdFlag | brotliFlag | plainFlag

// Of Node 22.15 and later. An entry of a process that has it is a miss for one that has not.
const hasZstd = typeof (zlib as Partial<typeof zlib>).zstdCompress === 'function'
const zstd = hasZstd ? { pack: promisify(zlib.zstdCompress), unpack: promisify(zlib.zstdDecompress) } : undefined
const brotli = { pack: promisify(zlib.brotliCompress), unpack: promisify(zlib.brotliDecompress) }
// The default of 11 is for files that are compressed once.
const brotliOptions = { params: { [zlib.constants.BROTLI_PARAM_QUALITY]: 4 } }

/** Loaded when there is something to pack: without Redis there is nothing. */
let packr: Packr | undefined

async function loadPackr(): Promise<Packr> {
  const msgpackr = await import('msgpackr')
  // Each message describes its own records, so that any process can read it.
  const options = { useRecords: true, moreTypes: true, useBigIntExtension: true, int64AsType: 'bigint' } as const
  packr ??= new msgpackr.Packr(options)
  return packr
}

/** Values to bytes and back. What comes back is equal and as safe to change as a copy. */
export class Codec {
  readonly #name: CodecName
  readonly #compressAbove: number

  /** Compresses what is larger than so many bytes; infinity for never. */
  constructor(name: CodecName, compressAbove: number) {
    this.#name = name
    this.#compressAbove = compressAbove
  }

  /** Throws `CACHE_VALUE_UNSUPPORTED` for what would not come back as it is; `found` is what {@link survey} says of the value. */
  async encode(value: unknown, found: Survey = survey(value)): Promise<Encoded> {
    const isJson = this.#name === 'json' || found.needsJson || found.isPlain
    const text = isJson ? (found.isPlain ? JSON.stringify(value) : toJson(value)) : undefined
    const bytes = text === undefined ? (packr ?? (await loadPackr())).pack(value) : Buffer.from(text)
    const flags = !isJson ? 0 : found.isPlain ? jsonFlag | plainFlag : jsonFlag
    if (bytes.length <= this.#compressAbove) return { bytes, flags }
    const packed = zstd ? await zstd.pack(bytes) : await brotli.pack(bytes, brotliOptions)
    // What is compressed already does not get smaller.
    if (packed.length >= bytes.length) return { bytes, flags }
    return { bytes: packed, flags: flags | (zstd ? zstdFlag : brotliFlag) }
  }

  /** Throws for bytes that are none of a value, whatever they are. */
  decode({ bytes, from = 0, flags }: Encoded & Partial<EncodedBehind>): Promise<unknown> | unknown {
    if ((flags & ~knownFlags) !== 0) throw new Error('written by another version')
    if (flags === (jsonFlag | plainFlag)) return JSON.parse(bytes.toString('utf8', from))
    const packed = bytes.subarray(from)
    if ((flags & zstdFlag) !== 0) {
      if (zstd === undefined) throw new Error('compressed by zstd, which this Node does not have')
      return zstd.unpack(packed).then((unpacked) => parse(unpacked, flags))
    }
    if ((flags & brotliFlag) !== 0) return brotli.unpack(packed).then((unpacked) => parse(unpacked, flags))
    return parse(packed, flags)
  }
}

function parse(bytes: Buffer, flags: number): Promise<unknown> | unknown {
  if ((flags & plainFlag) !== 0) return JSON.parse(bytes.toString())
  if ((flags & jsonFlag) !== 0) return fromJson(bytes.toString())
  return packr === undefined ? loadPackr().then((loaded): unknown => loaded.unpack(bytes)) : packr.unpack(bytes)
}

/**
 * Looks through a value for what no codec can bring back: functions, symbols, instances of classes, circles. Throws
 * `CACHE_VALUE_UNSUPPORTED` with the place of it.
 */
export function survey(value: unknown): Survey {
  const surveyor = new Surveyor()
  surveyor.visit(value, 0)
  return surveyor
}

// So deep a value overflows the stack of some codec before long.
const maxDepth = 500

class Surveyor implements Survey {
  size = 0
  needsJson = false
  isPlain = true
  readonly #path: (number | string)[] = []
  readonly #around = new Set<object>()

  visit(value: unknown, depth: number): void {
    switch (typeof value) {
      case 'string':
        this.size += 16 + value.length
        if (!value.isWellFormed()) this.needsJson = true
        return
      case 'number':
        this.size += 8
        if (Object.is(value, -0)) this.needsJson = true
        if (!Number.isFinite(value) || Object.is(value, -0)) this.isPlain = false
        return
      case 'boolean':
        this.size += 8
        return
      case 'undefined':
        this.size += 8
        this.isPlain = false
        return
      case 'bigint':
        this.size += 24
        this.isPlain = false
        return
      case 'object':
        if (value === null) this.size += 8
        else this.#visitObject(value, depth)
        return
      default:
        throw this.#refused(`a ${typeof value}`)
    }
  }

  #visitObject(value: object, depth: number): void {
    if (value instanceof Date) {
      this.size += 48
      this.isPlain = false
      return
    }
    if (value instanceof Uint8Array) {
      this.size += 96 + value.byteLength
      this.isPlain = false
      // Another view would come back as bytes.
      if (!isBytes(value)) throw this.#refused(`a ${value.constructor.name}`)
      return
    }
    if (this.#around.has(value)) throw this.#refused('itself, in a circle')
    if (depth > maxDepth) throw this.#refused(`more than ${maxDepth} levels`)
    this.#around.add(value)
    this.size += 32
    if (Array.isArray(value))
      for (let index = 0; index < value.length; index += 1) this.#inside(index, value[index], depth)
    else if (value instanceof Map) this.#visitMap(value, depth)
    else if (value instanceof Set) this.#visitSet(value, depth)
    else this.#visitRecord(value, depth)
    this.#around.delete(value)
  }

  #visitSet(set: ReadonlySet<unknown>, depth: number): void {
    this.isPlain = false
    for (const item of set) this.#inside('(set)', item, depth)
  }

  #visitMap(map: ReadonlyMap<unknown, unknown>, depth: number): void {
    this.isPlain = false
    for (const [key, item] of map) {
      this.#inside('(key)', key, depth)
      this.#inside('(map)', item, depth)
    }
  }

  #visitRecord(value: object, depth: number): void {
    const prototype: unknown = Object.getPrototypeOf(value)
    if (prototype !== Object.prototype && prototype !== null) {
      throw this.#refused(`an instance of ${(value.constructor as { name?: string } | undefined)?.name ?? 'a class'}`)
    }
    // Neither codec keeps it, and both would keep the rest.
    if (Object.getOwnPropertySymbols(value).length > 0) throw this.#refused('a property with a symbol as its name')
    for (const key of Object.keys(value)) {
      if (key === '__proto__' || key === 'toJSON' || !key.isWellFormed()) this.needsJson = true
      if (key === '__proto__' || key === 'toJSON') this.isPlain = false
      this.size += 8
      this.#inside(key, (value as Record<string, unknown>)[key], depth)
    }
  }

  #inside(place: number | string, value: unknown, depth: number): void {
    this.#path.push(place)
    this.visit(value, depth + 1)
    this.#path.pop()
  }

  #refused(what: string): DatabaseError {
    const place = this.#path.length === 0 ? 'The value' : `The value has, at ${this.#path.slice(0, 10).join('.')},`
    return new DatabaseError(
      'CACHE_VALUE_UNSUPPORTED',
      `${place}${this.#path.length === 0 ? ' is' : ''} ${what}, which does not survive being cached. ` +
        'Cache plain objects, lists, maps, sets, dates, bytes and simple values; make others of them when they are read.',
    )
  }
}

function isBytes(value: Uint8Array): boolean {
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === Uint8Array.prototype || prototype === Buffer.prototype
}

/** The one key of an object that stands for what JSON has not. */
const mark = '$'

/** JSON in which `{"$":["d",…]}` stands for a date, and so on; an object that has the key itself becomes `{"$":["o",…]}`. */
function toJson(value: unknown): string {
  return JSON.stringify(marked(value))
}

function marked(value: unknown): unknown {
  switch (typeof value) {
    case 'bigint':
      return { [mark]: ['n', String(value)] }
    case 'undefined':
      return { [mark]: ['u'] }
    case 'number':
      return Number.isFinite(value) && !Object.is(value, -0)
        ? value
        : { [mark]: ['f', Object.is(value, -0) ? '-0' : String(value)] }
    case 'object':
      return value === null ? null : markedObject(value)
    default:
      return value
  }
}

function markedObject(value: object): unknown {
  if (value instanceof Date) return { [mark]: ['d', value.getTime()] }
  if (value instanceof Uint8Array) {
    const kind = Buffer.isBuffer(value) ? 'b' : 'a'
    return { [mark]: [kind, Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('base64')] }
  }
  if (Array.isArray(value)) return Array.from(value, marked)
  if (value instanceof Map) return { [mark]: ['m', [...value].map(([key, item]) => [marked(key), marked(item)])] }
  if (value instanceof Set) return { [mark]: ['s', [...value].map(marked)] }
  const record = recordOf(Object.entries(value).map(([key, item]) => [key, marked(item)]))
  return Object.hasOwn(value, mark) ? { [mark]: ['o', record] } : record
}

function fromJson(text: string): unknown {
  return unmarked(JSON.parse(text))
}

function unmarked(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value
  if (Array.isArray(value)) return value.map(unmarked)
  if (!Object.hasOwn(value, mark)) return unmarkedRecord(value)
  const [kind, content] = (value as Record<string, [string, unknown]>)[mark] ?? []
  switch (kind) {
    case 'n':
      return BigInt(content as string)
    case 'u':
      return undefined
    case 'f':
      return Number(content)
    case 'd':
      return new Date((content as number | null) ?? Number.NaN)
    case 'b':
      return Buffer.from(content as string, 'base64')
    case 'a':
      return new Uint8Array(Buffer.from(content as string, 'base64'))
    case 'm':
      return new Map((content as [unknown, unknown][]).map(([key, item]) => [unmarked(key), unmarked(item)]))
    case 's':
      return new Set((content as unknown[]).map(unmarked))
    case 'o':
      return unmarkedRecord(content as object)
    default:
      throw new Error('written by another version')
  }
}

function unmarkedRecord(record: object): object {
  return recordOf(Object.entries(record).map(([key, item]) => [key, unmarked(item)]))
}

/** Unlike assignment, this makes a property of `__proto__`, too. */
function recordOf(entries: readonly (readonly [string, unknown])[]): object {
  return Object.fromEntries(entries)
}
