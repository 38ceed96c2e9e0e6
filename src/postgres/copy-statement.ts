import { Portal, type PortalReader } from './portal.ts'
import type { PreparedStatements } from './prepared-statements.ts'
import { copyDataCode, type RowTaker } from './row-reader.ts'
import { Statement, type StatementRequest } from './statement.ts'
import { type DriverConnection, type Wire, wireOf } from './wire.ts'

/** Says that a {@link CopyIn} takes no more, since it has ended. */
export const copyEnded: unique symbol = Symbol('copyEnded')

/**
 * `COPY … FROM STDIN`: takes bytes until {@link finish}, or undoes all of them with {@link fail}. The server's failure
 * comes by {@link done} at once, whatever the source is doing.
 */
export class CopyIn extends Statement {
  /** The number of rows, once the server has them all. */
  readonly done: Promise<number>
  /** The server takes bytes, or it has ended. */
  readonly opened: Promise<void>
  readonly #limit: () => number
  readonly #open: () => void
  #wire: Wire | undefined
  #hasOpened = false
  /** The server waits for bytes. */
  #isTaking = false
  #wake: (() => void) | undefined

  /** `limit` is the deadline, as `performance.now()`, of what is asked of the server now. */
  constructor(request: Omit<StatementRequest, 'deadline'>, limit: () => number) {
    const done = Promise.withResolvers<number>()
    const opened = Promise.withResolvers<void>()
    super(
      { ...request, deadline: limit() },
      ({ numAffectedRows = 0n }) => done.resolve(Number(numAffectedRows)),
      (error) => {
        opened.resolve()
        done.reject(error)
      },
    )
    this.done = done.promise
    this.opened = opened.promise
    this.#open = opened.resolve
    this.#limit = limit
  }

  // Its source's time is in it.
  override get isTimed(): boolean {
    return false
  }

  override get awaited(): string {
    return 'the last bytes were sent'
  }

  override get remedy(): string {
    return 'Nothing of it is kept. Look at what the server waits for, or raise timeoutMs or queryTimeoutMs.'
  }

  /** By the simple protocol, which needs no Sync in the midst of the data. */
  override submit(connection: DriverConnection): Error | null {
    this.isSubmitted = true
    this.#wire = wireOf(connection)
    const commands = [...this.prefix, this.text].map(({ sql }) => sql)
    this.#wire.copyFrom(commands.join('; '), () => this.handleCopyInResponse())
    return null
  }

  /** Resolves when the system has taken the bytes. Rejects with {@link copyEnded} when the copy is over. */
  async send(bytes: Uint8Array): Promise<void> {
    const wire = this.#takingWire()
    this.#await()
    await new Promise<void>((resolve) => {
      this.#wake = resolve
      wire.copyData(bytes, resolve)
    })
    this.#wake = undefined
    // From here on the time is the source's.
    this.deadline = Number.POSITIVE_INFINITY
  }

  /** All bytes are written. */
  finish(): void {
    this.#takingWire().copyDone()
    this.#isTaking = false
    this.#await()
  }

  /** Has the server undo it; {@link done} rejects with the error. Does nothing when it has ended. */
  fail(error: unknown): void {
    if (this.isSettled) return
    this.failure ??= error
    this.#stop()
  }

  /** Whether this is what it was failed with. */
  hasFailedBy(error: unknown): boolean {
    return this.failure !== undefined && this.failure === error
  }

  /** The caller gives up. */
  override abandon(error: unknown): void {
    super.abandon(error)
    this.#stop()
  }

  override handleCopyInResponse(): void {
    if (this.#hasOpened) return
    this.#hasOpened = true
    this.#isTaking = true
    if (this.isSettled || this.failure !== undefined) return this.#stop()
    this.deadline = Number.POSITIVE_INFINITY
    this.#open()
  }

  override handleError(error: unknown): void {
    this.#isTaking = false
    super.handleError(error)
    this.#wake?.()
  }

  #takingWire(): Wire {
    if (!this.#isTaking || this.#wire === undefined) throw copyEnded
    return this.#wire
  }

  #await(): void {
    this.sentAt = performance.now()
    this.deadline = this.#limit()
  }

  #stop(): void {
    this.#wake?.()
    if (!this.#isTaking) return
    this.#isTaking = false
    this.#wire?.copyFail()
    this.#await()
  }
}

const pieceSize = 262_144

/** `COPY … TO STDOUT`: gives its bytes in large pieces, and leaves the rest in the socket while nobody wants more. */
export class CopyOut extends Portal<Buffer> {
  private readonly sent: string
  private stream: DriverConnection['stream'] | undefined
  private piece = Buffer.alloc(0)
  private filled = 0
  private taken = 0
  private isFlushing = false

  /** `sent` is the statement with its values, which are nobody else's to see. */
  constructor(request: StatementRequest, reader: PortalReader<Buffer>, sent: string) {
    super(request, 0, reader)
    this.sent = sent
  }

  override get remedy(): string {
    return 'Make the query faster, or raise chunkTimeoutMs or queryTimeoutMs.'
  }

  override get rowCount(): number {
    return this.taken
  }

  override get rowTaker(): RowTaker | undefined {
    return this.isSubmitted ? this : undefined
  }

  override get takes(): number {
    return copyDataCode
  }

  override submit(connection: DriverConnection): Error | null {
    this.stream = connection.stream
    return super.submit(connection)
  }

  /** Lets the socket flow again; the server was asked for everything at the beginning. */
  override request(): void {
    if (this.isEnding) return
    this.owed += 1
    this.stream?.resume?.()
    if (this.found.length > 0) this.giveFound()
    else if (this.filled > 0) this.flushSoon()
  }

  protected override write(prepared: PreparedStatements, wire: Wire): void {
    this.writePrefix(prepared, wire)
    wire.parse('', this.sent)
    wire.bind('', [])
    this.writeExecute(prepared, wire)
  }

  override takeRow(bytes: Buffer, at: number, end: number): void {
    // One message is one row, or the line of names above them.
    this.taken += 1
    if (this.failure !== undefined || this.isSettled) return
    const size = end - at
    if (this.filled + size > this.piece.length) {
      this.cut()
      // Not from the pool of small buffers: the reader may keep it as long as it likes.
      this.piece = Buffer.allocUnsafeSlow(Math.max(pieceSize, size))
    }
    bytes.copy(this.piece, this.filled, at, end)
    this.filled += size
    this.flushSoon()
  }

  /** Where rows are not taken from a socket. */
  override handleCopyData(message: { chunk: Uint8Array }): void {
    this.takeRow(Buffer.from(message.chunk), 0, message.chunk.length)
  }

  override handleError(error: unknown): void {
    this.stream?.resume?.()
    super.handleError(error)
  }

  protected override complete(tag: string): void {
    this.taken = Number(tag.slice(tag.lastIndexOf(' ') + 1))
    this.cut()
    this.give()
  }

  protected override close(): void {
    this.stream?.resume?.()
    super.close()
  }

  /** What came with it is given together: rows of one tick, not one by one. */
  private flushSoon(): void {
    if (this.isFlushing) return
    this.isFlushing = true
    setImmediate(() => {
      this.isFlushing = false
      if (this.owed === 0 || this.isEnding) return
      this.cut()
      this.giveFound()
    })
  }

  private cut(): void {
    if (this.filled === 0) return
    this.found.push(this.piece.subarray(0, this.filled))
    // What was not used is for the next.
    this.piece = this.piece.subarray(this.filled)
    this.filled = 0
    if (this.owed > 0) this.giveFound()
  }

  private giveFound(): void {
    if (this.found.length === 0) return
    this.give()
    if (this.owed === 0) this.stream?.pause?.()
  }
}
