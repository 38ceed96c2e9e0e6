import { types } from 'pg'
import { type ColumnType, columnText, isOrdinary } from './column-values.ts'
import { mostBytes, shortText } from './wire.ts'

/**
 * The values of a column as one parameter: an array, in binary where that is known of the type and suits all of them, else as the
 * text of one. In binary, the server reads times, numbers and UUIDs in a third of the time, and nothing has to be quoted.
 */
export class ArrayParameter {
  readonly column: string
  readonly type: ColumnType
  readonly #form: BinaryForm | undefined
  readonly #values: Kept[] = []
  /** There is a value that only its text will do for. */
  #isText: boolean
  #bytes = 0
  /** How many bytes more one of them may have than it has been counted with. */
  #mostUncounted = 0

  constructor(column: string, type: ColumnType) {
    this.column = column
    this.type = type
    this.#form = forms.get(type.oid)
    this.#isText = this.#form === undefined
  }

  /**
   * Takes a further value as it is now, and gives how many bytes it has, about. Throws an Error whose message says why it cannot
   * be sent.
   */
  add(value: unknown): number {
    const kept = this.#form?.keep(value) ?? this.#textToKeep(value)
    this.#values.push(kept)
    const bytes = lengthBytes + this.#sizeOf(kept)
    this.#bytes += bytes
    return bytes
  }

  /** The last value as text, to compare it by. */
  get lastText(): string | null {
    return textOfKept(this.#values.at(-1) ?? null)
  }

  /** What is to be sent. Throws a RangeError for what is longer than any text or buffer can be. */
  encode(): Buffer | string {
    const form = this.#form
    if (form === undefined || this.#isText) return this.#asText()
    return asBinary(this.type.oid, form, this.#values, this.#bytes + this.#mostUncounted)
  }

  #textToKeep(value: unknown): string | null {
    const text = columnText(this.column, this.type, value)
    if (text !== null && this.#form?.takesText !== true) this.#isText = true
    return text
  }

  #sizeOf(kept: Kept): number {
    if (kept === null) return 0
    const { size, prefix = 0 } = this.#form ?? textForm
    if (size !== undefined) return size
    const length = typeof kept === 'string' ? lengthOf(kept) : (kept as Uint8Array).length
    if (typeof kept === 'string') this.#mostUncounted = Math.max(this.#mostUncounted, mostBytes(kept) - length)
    return prefix + length
  }

  #asText(): string {
    let list = ''
    for (const kept of this.#values) {
      const element = elementOf(textOfKept(kept))
      list += list === '' ? element : `,${element}`
    }
    return `{${list}}`
  }
}

/** A value that nobody can change any more, or its text. */
type Kept = Date | Uint8Array | bigint | boolean | number | string | null

function textOfKept(kept: Kept): string | null {
  if (kept instanceof Date) return kept.toISOString()
  if (kept instanceof Uint8Array) return hexOf(kept)
  return kept === null ? null : String(kept)
}

function hexOf(bytes: Uint8Array): string {
  try {
    return `\\x${Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex')}`
  } catch (cause) {
    // Node has an error of its own for a text that is too long.
    throw new RangeError('the bytes are too long for a text', { cause })
  }
}

const needsQuotes = /["\\{},\s]|^$|^null$/i

function elementOf(text: string | null): string {
  if (text === null) return 'null'
  if (!needsQuotes.test(text)) return text
  return `"${text.includes('"') || text.includes('\\') ? text.replaceAll(/["\\]/g, '\\$&') : text}"`
}

/** About how many bytes a text has. */
function lengthOf(text: string): number {
  return text.length < shortText ? text.length : Buffer.byteLength(text)
}

/** How the values of a type are sent in binary. */
interface BinaryForm {
  /** How many bytes each has; where they differ, those of a text or of bytes. */
  readonly size?: number
  /** Bytes before those. */
  readonly prefix?: number
  /** Whatever the server would read as text may be given as text. */
  readonly takesText?: boolean
  /** The value, if this form is for it. */
  keep(value: unknown): Exclude<Kept, null> | undefined
  /** Writes it, for which there is room, and gives where it ends. */
  write(bytes: WritableBytes, at: number, kept: Kept): number
}

/** A buffer with the method behind `write(text, at, 'utf8')`, which takes half as long again to find it. */
type WritableBytes = Buffer & { utf8Write(text: string, at: number): number }

function integers(size: 2 | 4): BinaryForm {
  const limit = 2 ** (size * 8 - 1)
  return {
    size,
    keep: (value) =>
      typeof value === 'number' && Number.isInteger(value) && value >= -limit && value < limit ? value : undefined,
    write: (bytes, at, kept) =>
      size === 2 ? bytes.writeInt16BE(kept as number, at) : bytes.writeInt32BE(kept as number, at),
  }
}

const bigIntegers: BinaryForm = {
  size: 8,
  keep(value) {
    if (typeof value === 'bigint') return BigInt.asIntN(64, value) === value ? value : undefined
    return Number.isSafeInteger(value) ? (value as number) : undefined
  },
  write: (bytes, at, kept) =>
    typeof kept === 'bigint' ? bytes.writeBigInt64BE(kept, at) : writeInt64(bytes, at, kept as number),
}

const doubles: BinaryForm = {
  size: 8,
  // As in its text, a zero has no sign.
  keep: (value) => (typeof value === 'number' ? value + 0 : undefined),
  write: (bytes, at, kept) => bytes.writeDoubleBE(kept as number, at),
}

const booleans: BinaryForm = {
  size: 1,
  keep: (value) => (typeof value === 'boolean' ? value : undefined),
  write: (bytes, at, kept) => bytes.writeUInt8(kept === true ? 1 : 0, at),
}

// From there the server counts microseconds.
const epoch = Date.UTC(2000)

const instants: BinaryForm = {
  size: 8,
  keep: (value) => (value instanceof Date && isOrdinary(value) ? new Date(value) : undefined),
  write(bytes, at, kept) {
    const milliseconds = (kept as Date).getTime() - epoch
    const microseconds = milliseconds * 1_000
    if (Number.isSafeInteger(microseconds)) return writeInt64(bytes, at, microseconds)
    return bytes.writeBigInt64BE(BigInt(milliseconds) * 1_000n, at)
  },
}

const uuidText = /^[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}$/i
const hyphen = 45

const uuids: BinaryForm = {
  size: 16,
  keep: (value) => (typeof value === 'string' && uuidText.test(value) ? value : undefined),
  write(bytes, start, kept) {
    const text = kept as string
    let at = start
    for (let index = 0; index < text.length; index += 2) {
      if (text.charCodeAt(index) === hyphen) index += 1
      bytes[at++] = (digitOf(text.charCodeAt(index)) << 4) | digitOf(text.charCodeAt(index + 1))
    }
    return at
  },
}

const binaries: BinaryForm = {
  keep: (value) => (value instanceof Uint8Array ? new Uint8Array(value) : undefined),
  write(bytes, at, kept) {
    bytes.set(kept as Uint8Array, at)
    return at + (kept as Uint8Array).length
  },
}

const textForm: BinaryForm = {
  takesText: true,
  keep: () => undefined,
  write: (bytes, at, kept) => at + bytes.utf8Write(kept as string, at),
}

const jsonbVersion = 1

const jsonb: BinaryForm = {
  ...textForm,
  prefix: 1,
  write: (bytes, at, kept) => textForm.write(bytes, bytes.writeUInt8(jsonbVersion, at), kept),
}

const { builtins } = types

// Those whose form is the same on every server. Single floats are not among them: to be cut from a double is not to be read.
const forms: ReadonlyMap<number, BinaryForm> = new Map<number, BinaryForm>([
  [builtins.BOOL, booleans],
  [builtins.BYTEA, binaries],
  [builtins.FLOAT8, doubles],
  [builtins.INT2, integers(2)],
  [builtins.INT4, integers(4)],
  [builtins.INT8, bigIntegers],
  [builtins.JSON, textForm],
  [builtins.JSONB, jsonb],
  [builtins.TEXT, textForm],
  [builtins.TIMESTAMPTZ, instants],
  [builtins.UUID, uuids],
  [builtins.VARCHAR, textForm],
])

const headerBytes = 20
/** Before each element. */
const lengthBytes = 4

/** As the server's `array_recv` reads it: https://doxygen.postgresql.org/arrayfuncs_8c.html */
function asBinary(elementType: number, form: BinaryForm, values: readonly Kept[], bytesAbout: number): Buffer {
  let bytes = Buffer.allocUnsafe(headerBytes + bytesAbout) as WritableBytes
  let at = headerBytes
  let hasNulls = false
  for (const kept of values) {
    const start = at + lengthBytes
    const mostEnd = start + (kept === null ? 0 : (form.size ?? (form.prefix ?? 0) + mostBytesOf(kept)))
    if (mostEnd > bytes.length) bytes = enlarged(bytes, at, mostEnd)
    hasNulls ||= kept === null
    const end = kept === null ? start : form.write(bytes, start, kept)
    bytes.writeInt32BE(kept === null ? -1 : end - start, at)
    at = end
  }
  const dimensions = 1
  const firstIndex = 1
  bytes.writeInt32BE(dimensions, 0)
  bytes.writeInt32BE(hasNulls ? 1 : 0, 4)
  bytes.writeUInt32BE(elementType, 8)
  bytes.writeInt32BE(values.length, 12)
  bytes.writeInt32BE(firstIndex, 16)
  return bytes.subarray(0, at)
}

function enlarged(bytes: Buffer, used: number, wanted: number): WritableBytes {
  const larger = Buffer.allocUnsafe(Math.max(wanted, bytes.length * 2)) as WritableBytes
  bytes.copy(larger, 0, 0, used)
  return larger
}

function mostBytesOf(kept: Kept): number {
  return typeof kept === 'string' ? mostBytes(kept) : (kept as Uint8Array).length
}

function digitOf(code: number): number {
  // Letters of both cases have their place in the lower bits.
  return code <= 57 ? code - 48 : (code & 15) + 9
}

function writeInt64(bytes: Buffer, at: number, value: number): number {
  const high = Math.floor(value / 2 ** 32)
  return bytes.writeUInt32BE(value - high * 2 ** 32, bytes.writeInt32BE(high, at))
}
