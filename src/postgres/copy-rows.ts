import { type ColumnType, columnText, hasColumns } from './column-values.ts'
import { Refusal } from './row-source.ts'

/** Makes the bytes of a COPY of what its source gives. */
export interface CopyFeed {
  /** Rows among what was added, where rows are added. */
  readonly rows?: number
  /** Takes an item, and gives the bytes that are ready to go. */
  add(item: unknown): Uint8Array | undefined
  /** The bytes that are left at the end. */
  rest(): Uint8Array
}

// As much as a socket takes at once.
const pieceSize = 65_536

/** Rows as COPY's text format. What it gives must have been sent before the next row comes. */
export class RowFeed implements CopyFeed {
  rows = 0
  readonly #columns: readonly string[]
  readonly #types: readonly ColumnType[]
  // Written in turn, so that millions of rows make no garbage but their own.
  #bytes = Buffer.allocUnsafeSlow(pieceSize)
  #other = Buffer.allocUnsafeSlow(pieceSize)
  #length = 0

  constructor(columns: readonly string[], types: readonly ColumnType[]) {
    this.#columns = columns
    this.#types = types
  }

  add(row: unknown): Uint8Array | undefined {
    this.rows += 1
    if (typeof row !== 'object' || row === null) throw this.#refused(`is ${row === null ? 'null' : typeof row}`)
    const columns = this.#columns
    if (!hasColumns(row, columns)) this.#compare(row)
    try {
      return this.#write(this.#lineOf(row))
    } catch (error) {
      throw error instanceof RangeError ? this.#refused('is too long to be sent', error) : error
    }
  }

  rest(): Uint8Array {
    return this.#take()
  }

  #lineOf(row: object): string {
    const columns = this.#columns
    let line = ''
    for (let index = 0; index < columns.length; index += 1) {
      const column = columns[index] as string
      const text = this.#encode(column, this.#types[index] as ColumnType, (row as Record<string, unknown>)[column])
      line += (index === 0 ? '' : '\t') + (text === null ? '\\N' : escaped(text))
    }
    return `${line}\n`
  }

  /** Gives what was there when there is no room for it as well. */
  #write(line: string): Uint8Array | undefined {
    // No character takes more than three bytes for each of its code units.
    let size = line.length * 3
    if (this.#length + size > this.#bytes.length) size = Buffer.byteLength(line)
    const full = this.#length + size > this.#bytes.length ? this.#take() : undefined
    if (size > this.#bytes.length) this.#bytes = Buffer.allocUnsafeSlow(size * 2)
    this.#length += this.#bytes.write(line, this.#length)
    return full?.length === 0 ? undefined : full
  }

  #take(): Uint8Array {
    const full = this.#bytes.subarray(0, this.#length)
    this.#bytes = this.#other
    this.#other = Buffer.from(full.buffer)
    this.#length = 0
    return full
  }

  /** In another order they are the same columns. */
  #compare(row: object): void {
    const given = Object.entries(row).filter(([, value]) => value !== undefined)
    // What every object inherits, such as `constructor`, is no value of a row.
    const missing = this.#columns.find((column) => given.every(([name]) => name !== column))
    if (missing !== undefined) {
      throw this.#refused(`has no ${missing}. All rows of a copy have the same columns; write others by insertMany`)
    }
    const [further] = given.find(([column]) => !this.#columns.includes(column)) ?? []
    if (further !== undefined) throw this.#refused(`has ${further}, which is not among the columns of this copy`)
  }

  #encode(column: string, type: ColumnType, value: unknown): string | null {
    try {
      return columnText(column, type, value)
    } catch (error) {
      const { message, cause } = error as Error
      throw this.#refused(message, cause)
    }
  }

  #refused(what: string, cause?: unknown): Refusal {
    return new Refusal('INVALID_ARGUMENT', `Row ${this.rows} ${what}.`, { cause })
  }
}

/** Bytes as they are; what comes in crumbs is gathered. */
export class ByteFeed implements CopyFeed {
  readonly #encoding: string | undefined
  #chunks = 0
  #crumbs: Uint8Array[] = []
  #size = 0
  /** The first half of a character whose other half begins the next string. */
  #half = ''

  /** `encoding` is what the server takes the bytes for. */
  constructor(encoding?: string) {
    this.#encoding = encoding
  }

  add(chunk: unknown): Uint8Array | undefined {
    this.#chunks += 1
    if (typeof chunk !== 'string' && !(chunk instanceof Uint8Array)) {
      throw new Refusal(
        'INVALID_ARGUMENT',
        `Chunk ${this.#chunks} is neither a string nor bytes. To copy rows, leave format out.`,
      )
    }
    if (typeof chunk !== 'string') this.#pushHalf()
    const bytes = typeof chunk === 'string' ? this.#encode(chunk) : chunk
    if (this.#size === 0 && this.#half === '' && bytes.length >= pieceSize) return bytes
    // A copy: its source may use the same memory for the next.
    this.#push(typeof chunk === 'string' ? bytes : Buffer.from(bytes))
    return this.#size < pieceSize ? undefined : this.#take()
  }

  rest(): Uint8Array {
    this.#pushHalf()
    return this.#take()
  }

  #encode(chunk: string): Uint8Array {
    if (this.#encoding !== undefined && !utf8.test(this.#encoding)) {
      throw new Refusal(
        'INVALID_ARGUMENT',
        `Chunk ${this.#chunks} is a string, whose bytes would not be ${this.#encoding}. Give bytes, or leave encoding out.`,
      )
    }
    const text = this.#half + chunk
    const isCut = firstHalf.test(text)
    this.#half = isCut ? text.slice(-1) : ''
    return Buffer.from(isCut ? text.slice(0, -1) : text)
  }

  #push(bytes: Uint8Array): void {
    this.#crumbs.push(bytes)
    this.#size += bytes.length
  }

  /** Its other half has not come: it is no character, and is written as such. */
  #pushHalf(): void {
    if (this.#half !== '') this.#push(Buffer.from(this.#half))
    this.#half = ''
  }

  #take(): Uint8Array {
    const bytes = Buffer.concat(this.#crumbs, this.#size)
    this.#crumbs = []
    this.#size = 0
    return bytes
  }
}

/** The names that PostgreSQL has for it. */
const utf8 = /^(?:utf[-_ ]?8|unicode)$/i
const firstHalf = /[\uD800-\uDBFF]$/

const special = /[\\\b\f\n\r\t\v]/
const allSpecial = /[\\\b\f\n\r\t\v]/g
const escapes: Readonly<Record<string, string>> = {
  '\\': '\\\\',
  '\b': '\\b',
  '\f': '\\f',
  '\n': '\\n',
  '\r': '\\r',
  '\t': '\\t',
  '\v': '\\v',
}

/** https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.2 */
function escaped(text: string): string {
  return special.test(text) ? text.replaceAll(allSpecial, (character) => escapes[character] ?? character) : text
}
