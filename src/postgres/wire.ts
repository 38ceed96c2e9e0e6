import { createRequire } from 'node:module'

// `pg` offers its conversion of parameters by this path only.
const { prepareValue } = createRequire(import.meta.url)('pg/lib/utils') as {
  /** Undefined for an object whose toJSON returns that; `pg` sends it as null. */
  readonly prepareValue: (value: unknown) => Buffer | string | null | undefined
}

/** The messages of the extended protocol that a statement is made of. Nothing is sent before the end of the tick. */
export interface Wire {
  /** Several commands at once, by the simple protocol. */
  query(sql: string): void
  /** An empty name is the unnamed statement. */
  parse(name: string, sql: string): void
  /** Throws, and has written nothing, when a value cannot be converted. */
  bind(name: string, values: readonly unknown[]): void
  describe(): void
  /** Without a limit, all rows. */
  execute(limit?: number): void
  close(name: string): void
  /** Ends the portal, and what it holds on the server. */
  closePortal(): void
  /** Has the server answer what it was sent so far; this is written at once. */
  flush(): void
  sync(): void
  /** Begins a COPY by the simple protocol; `onOpen` may be called before the server says that it takes bytes. */
  copyFrom(sql: string, onOpen: () => void): void
  /** Bytes of a COPY, and whom to tell when the system has taken them. */
  copyData(bytes: Uint8Array, onTaken: () => void): void
  copyDone(): void
  /** The server undoes what it got of a COPY. */
  copyFail(): void
}

/** A value as the text of its parameter, with which the server can make any type of it. */
export function textOf(value: unknown): string | null {
  const sent = prepareValue(value) ?? null
  return Buffer.isBuffer(sent) ? `\\x${sent.toString('hex')}` : sent
}

/**
 * The values as they are sent. An object's own `toPostgres` or `toJSON` runs here, and may itself send statements: that
 * must not happen while a message is half written. Throws when a value cannot be converted.
 */
export function convertValues(values: readonly unknown[]): readonly unknown[] {
  for (const value of values) if (typeof value === 'object' && value !== null) return values.map(convert)
  return values
}

function convert(value: unknown): unknown {
  return prepareValue(value) ?? null
}

/** What `pg` passes to a query that is to be written; its declarations leave most of it out. */
export interface DriverConnection {
  readonly stream: DriverStream
  readonly parsedStatements: Record<string, string | undefined>
  query(sql: string): void
  parse(message: { name: string; text: string }): void
  bind(message: { statement: string; values: readonly unknown[]; valueMapper: (value: unknown) => unknown }): void
  describe(message: { type: 'P' }): void
  execute(message?: object): void
  close(message: { type: 'P' | 'S'; name: string }): void
  flush(): void
  sync(): void
  sendCopyFail(reason: string): void
  /** Only of the embedded PostgreSQL: messages as they are. */
  sendMessages?(bytes: Uint8Array): void
}

/** A socket; the embedded PostgreSQL has no more of it than its end. */
interface DriverStream {
  readonly writable?: boolean
  write?(bytes: Uint8Array, onTaken?: () => void): unknown
  cork?(): void
  uncork?(): void
  pause?(): unknown
  resume?(): unknown
}

/** The way to write on a connection of `pg`: by ourselves on a socket, by its own methods into the embedded PostgreSQL. */
export function wireOf(connection: DriverConnection): Wire {
  const known = wires.get(connection)
  if (known) return known
  const wire = connection.stream.write ? new SocketWire(connection) : new MethodWire(connection)
  wires.set(connection, wire)
  return wire
}

const wires = new WeakMap<DriverConnection, Wire>()

const initialSize = 8_192
const maxKept = 1_048_576

/**
 * Encodes all messages of a tick into one buffer and hands it to the socket as one piece. `pg` makes a buffer for each
 * message, and a `writev` of ten of them costs more than all the encoding.
 */
class SocketWire implements Wire {
  readonly #connection: DriverConnection
  #bytes = Buffer.allocUnsafe(initialSize)
  #length = 0
  #isFlushing = false

  constructor(connection: DriverConnection) {
    this.#connection = connection
  }

  query(sql: string): void {
    const start = this.#begin(0x51)
    this.#text(sql)
    this.#finish(start)
  }

  parse(name: string, sql: string): void {
    const start = this.#begin(0x50)
    this.#text(name)
    this.#text(sql)
    // Types of parameters: none given, the server finds them.
    this.#int16(0)
    this.#finish(start)
  }

  bind(name: string, values: readonly unknown[]): void {
    const start = this.#begin(0x42)
    try {
      this.#bindBody(name, values)
    } catch (error) {
      this.#length = start - 1
      throw error
    }
    this.#finish(start)
  }

  describe(): void {
    const start = this.#begin(0x44)
    this.#bytes[this.#length++] = 0x50
    this.#bytes[this.#length++] = 0
    this.#finish(start)
  }

  execute(limit = 0): void {
    const start = this.#begin(0x45)
    this.#bytes[this.#length++] = 0
    this.#int32(limit)
    this.#finish(start)
  }

  close(name: string): void {
    const start = this.#begin(0x43)
    this.#bytes[this.#length++] = 0x53
    this.#text(name)
    this.#finish(start)
  }

  closePortal(): void {
    const start = this.#begin(0x43)
    this.#bytes[this.#length++] = 0x50
    this.#bytes[this.#length++] = 0
    this.#finish(start)
  }

  flush(): void {
    this.#finish(this.#begin(0x48))
    // A loop over rows that are there already lets no tick end, and the server would have nothing to do meanwhile.
    this.#flush()
  }

  sync(): void {
    this.#finish(this.#begin(0x53))
  }

  copyFrom(sql: string): void {
    this.query(sql)
  }

  copyData(bytes: Uint8Array, onTaken: () => void): void {
    const { stream } = this.#connection
    const header = Buffer.allocUnsafe(5)
    header[0] = 0x64
    header.writeInt32BE(bytes.length + 4, 1)
    // One call to the system for both, without copying what may be long.
    stream.cork?.()
    stream.write?.(header)
    stream.write?.(bytes, onTaken)
    stream.uncork?.()
  }

  copyDone(): void {
    this.#finish(this.#begin(0x63))
  }

  copyFail(): void {
    const start = this.#begin(0x66)
    this.#text(copyFailure)
    this.#finish(start)
  }

  #bindBody(name: string, values: readonly unknown[]): void {
    const count = values.length
    this.#bytes[this.#length++] = 0
    this.#text(name)
    this.#reserve(2 * count + 8)
    this.#int16(count)
    let formats = this.#length
    this.#length += 2 * count
    this.#int16(count)
    for (const value of values) {
      const converted = typeof value === 'string' ? value : prepareValue(value)
      // Another buffer may have taken the place of the one before.
      let format = 0
      if (converted === null || converted === undefined) {
        this.#reserve(4)
        this.#int32(-1)
      } else if (typeof converted === 'string') this.#value(converted)
      else {
        format = 1
        this.#reserve(converted.length + 4)
        this.#int32(converted.length)
        this.#bytes.set(converted, this.#length)
        this.#length += converted.length
      }
      this.#bytes[formats++] = 0
      this.#bytes[formats++] = format
    }
    this.#reserve(8)
    // All results as text.
    this.#int16(1)
    this.#int16(0)
  }

  /** Opens a message and returns where its length belongs. */
  #begin(code: number): number {
    this.#reserve(32)
    this.#bytes[this.#length++] = code
    const start = this.#length
    this.#length += 4
    return start
  }

  #finish(start: number): void {
    this.#bytes.writeInt32BE(this.#length - start, start)
    if (this.#isFlushing) return
    this.#isFlushing = true
    process.nextTick(() => this.#flush())
  }

  #flush(): void {
    this.#isFlushing = false
    const bytes = this.#bytes
    const length = this.#length
    this.#length = 0
    const { stream } = this.#connection
    if (length === 0 || !stream.writable) return
    if (bytes.length > maxKept || length * 4 > bytes.length) {
      // The socket keeps this one until it is written; small ones are copied out.
      this.#bytes = Buffer.allocUnsafe(initialSize)
      stream.write?.(bytes.subarray(0, length))
      return
    }
    stream.write?.(Buffer.from(bytes.subarray(0, length)))
  }

  #text(text: string): void {
    this.#reserve(mostBytes(text) + 8)
    this.#length += this.#bytes.write(text, this.#length, 'utf8')
    this.#bytes[this.#length++] = 0
  }

  #value(text: string): void {
    this.#reserve(mostBytes(text) + 8)
    const length = this.#bytes.write(text, this.#length + 4, 'utf8')
    this.#int32(length)
    this.#length += length
  }

  #int16(value: number): void {
    this.#bytes[this.#length++] = value >>> 8
    this.#bytes[this.#length++] = value & 0xff
  }

  #int32(value: number): void {
    this.#length = this.#bytes.writeInt32BE(value, this.#length)
  }

  #reserve(count: number): void {
    const wanted = this.#length + count
    if (wanted <= this.#bytes.length) return
    // With room for what follows a long value, which would otherwise be copied into twice its size for some bytes.
    const larger = Buffer.allocUnsafe(Math.max(wanted + initialSize, this.#bytes.length * 2))
    this.#bytes.copy(larger, 0, 0, this.#length)
    this.#bytes = larger
  }
}

/** For the log of the server, where the client's reason is none of anybody's business. */
const copyFailure = 'given up by the client'

/** Below so many code units it costs less to have room for three bytes each than to count them. */
export const shortText = 4_096

/** How many bytes a text takes at most. */
export function mostBytes(text: string): number {
  return text.length < shortText ? text.length * 3 : Buffer.byteLength(text)
}

class MethodWire implements Wire {
  readonly #connection: DriverConnection
  #copied: Buffer[] = []

  constructor(connection: DriverConnection) {
    this.#connection = connection
  }

  query(sql: string): void {
    this.#connection.query(sql)
  }

  parse(name: string, sql: string): void {
    this.#connection.parse({ name, text: sql })
  }

  bind(name: string, values: readonly unknown[]): void {
    // Converted first: half a message cannot be taken back.
    const converted = values.map(prepareValue)
    this.#connection.bind({ statement: name, values: converted, valueMapper: (value) => value })
  }

  describe(): void {
    this.#connection.describe({ type: 'P' })
  }

  execute(limit = 0): void {
    this.#connection.execute({ rows: limit })
  }

  close(name: string): void {
    this.#connection.close({ type: 'S', name })
  }

  closePortal(): void {
    this.#connection.close({ type: 'P', name: '' })
  }

  flush(): void {
    this.#connection.flush()
  }

  sync(): void {
    this.#connection.sync()
  }

  /** The embedded PostgreSQL takes a COPY only with all its bytes. */
  copyFrom(sql: string, onOpen: () => void): void {
    this.#copied = [message(0x51, Buffer.from(`${sql}\0`))]
    process.nextTick(onOpen)
  }

  copyData(bytes: Uint8Array, onTaken: () => void): void {
    this.#copied.push(message(0x64, bytes))
    process.nextTick(onTaken)
  }

  copyDone(): void {
    this.#endCopy(message(0x63, Buffer.alloc(0)))
  }

  copyFail(): void {
    this.#endCopy(message(0x66, Buffer.from(`${copyFailure}\0`)))
  }

  #endCopy(last: Buffer): void {
    const bytes = Buffer.concat([...this.#copied, last])
    this.#copied = []
    this.#connection.sendMessages?.(bytes)
  }
}

function message(code: number, body: Uint8Array): Buffer {
  const bytes = Buffer.allocUnsafe(body.length + 5)
  bytes[0] = code
  bytes.writeInt32BE(body.length + 4, 1)
  bytes.set(body, 5)
  return bytes
}
