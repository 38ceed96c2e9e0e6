import type { Client } from './connection.ts'

/** What takes rows as the bytes of their messages. */
export interface RowTaker {
  /** The code of the messages that it takes. */
  readonly takes: number
  /** The body of such a message, from `at` to `end`. Must not throw. */
  takeRow(bytes: Buffer, at: number, end: number): void
}

/** The part of `pg`'s connection that reads; its declarations leave it out. */
interface ReadingConnection {
  attachListeners?(stream: ReadableStreamOfDriver): void
}

interface ReadableStreamOfDriver {
  on(event: string, listener: (...args: never[]) => void): unknown
  destroy(error?: Error): unknown
}

/** The code of a row of a result, whose body begins with the number of its values. */
export const dataRowCode = 0x44
/** The code of what COPY sends. */
export const copyDataCode = 0x64
const bindComplete = 0x32
const headerSize = 5

/**
 * Takes the rows out of what a server sends before `pg` makes a string of each of their values, and leaves everything
 * else, whole messages only, to `pg`. To be called before the client connects.
 */
export function readRows(client: Client): void {
  const { connection } = client as unknown as { readonly connection: ReadingConnection & object }
  const attach = connection.attachListeners?.bind(connection)
  if (attach === undefined) return
  const reader = new RowReader()
  readers.set(client, reader)
  connection.attachListeners = (stream) =>
    attach({
      on(event, listener) {
        if (event === 'data') reader.attach(stream, listener as unknown as (bytes: Buffer) => void)
        else stream.on(event, listener)
        return this
      },
      destroy: (error) => stream.destroy(error),
    })
}

/** Says who takes the next row, asked anew after each other message; `undefined` leaves it to `pg`. */
export function takeRowsBy(client: Client, taker: () => RowTaker | undefined): void {
  const reader = readers.get(client)
  if (reader !== undefined) reader.taker = taker
}

const readers = new WeakMap<Client, RowReader>()

class RowReader {
  taker: () => RowTaker | undefined = () => undefined
  #toDriver: (bytes: Buffer) => void = () => undefined
  /** A message of which a part has come; its length is known as soon as the header is whole. */
  #part: Buffer | undefined
  #partLength = 0
  #isBroken = false

  attach(stream: ReadableStreamOfDriver, toDriver: (bytes: Buffer) => void): void {
    this.#toDriver = toDriver
    stream.on('data', (chunk: Buffer) => {
      if (this.#isBroken) return
      try {
        this.#read(chunk)
      } catch (error) {
        // What is no message makes `pg` throw, which here would end the process. Nothing that follows can be trusted.
        this.#isBroken = true
        this.#part = undefined
        stream.destroy(damaged(error))
      }
    })
  }

  #read(chunk: Buffer): void {
    let at = 0
    while (this.#part !== undefined) {
      at = this.#complete(this.#part, chunk, at)
      if (at < 0) return
    }
    at = this.#messages(chunk, at)
    if (at < chunk.length) this.#keep(chunk, at)
  }

  /** Handles the whole messages from `at` on and returns where the first one begins that is not whole. */
  #messages(bytes: Buffer, start: number): number {
    let at = start
    // From here on nothing has been handed on.
    let kept = start
    // Null is nobody, undefined is not asked since the last message that was no row.
    let taker: RowTaker | null | undefined
    while (at + headerSize <= bytes.length) {
      const end = at + 1 + lengthOf(bytes, at)
      if (end > bytes.length) break
      const code = bytes[at]
      if (code === dataRowCode || code === copyDataCode) {
        if (taker === undefined) {
          // What came before may be the description of this row.
          if (kept < at) this.#toDriver(bytes.subarray(kept, at))
          kept = at
          taker = this.taker() ?? null
        }
        if (taker !== null && taker.takes === code) {
          taker.takeRow(bytes, at + headerSize, end)
          kept = end
        }
      } else {
        taker = undefined
        // It stands before each result, and a statement whose columns are known does not wait for it.
        if (code === bindComplete && kept === at && this.taker() !== undefined) kept = end
      }
      at = end
    }
    if (kept < at) this.#toDriver(bytes.subarray(kept, at))
    return at
  }

  /** Makes room for a message once, so that a long one is copied once, however many pieces it comes in. */
  #keep(chunk: Buffer, at: number): void {
    const size = chunk.length - at
    const part = Buffer.allocUnsafe(size < headerSize ? headerSize : 1 + lengthOf(chunk, at))
    chunk.copy(part, 0, at)
    this.#part = part
    this.#partLength = size
  }

  /** Adds to the message that has begun and returns where in the chunk it is over; -1 when the chunk is over before. */
  #complete(part: Buffer, chunk: Buffer, at: number): number {
    const copied = chunk.copy(part, this.#partLength, at)
    this.#partLength += copied
    if (this.#partLength < part.length) return -1
    this.#part = undefined
    // It was only a header, or a message without a body.
    if (this.#messages(part, 0) === 0) {
      const whole = Buffer.allocUnsafe(1 + lengthOf(part, 0))
      part.copy(whole, 0)
      this.#part = whole
      this.#partLength = part.length
    }
    return at + copied
  }
}

/** As the failure of a socket, which it is for everybody who reads from there. */
function damaged(cause: unknown): Error {
  const reason = cause instanceof Error ? cause.message : String(cause)
  return Object.assign(new Error(`what the server sent cannot be read: ${reason}`, { cause }), {
    code: 'ERR_STREAM_DAMAGED',
  })
}

/** The length that a message says it has, its code not counted. */
function lengthOf(bytes: Buffer, at: number): number {
  const length = bytes.readInt32BE(at + 1)
  if (length >= 4) return length
  throw new Error(`a message has the impossible length ${length}`)
}
