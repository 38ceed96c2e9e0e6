import type { PreparedStatements } from './prepared-statements.ts'
import { Statement, type StatementRequest, type StatementResult } from './statement.ts'
import { type DriverConnection, type Wire, wireOf } from './wire.ts'

/** Says that a {@link Portal} was left by its reader, not by a failure. */
export const left: unique symbol = Symbol('left')

/** Who reads a {@link Portal}. */
export interface PortalReader<Row> {
  /** Rows that were asked for have come, all of them or the last. */
  onRows(rows: Row[]): void
  /** The server has answered to the end, or nothing more is to come; with what went wrong, or {@link left}. */
  onEnd(error: unknown): void
}

/**
 * A statement whose rows are given in chunks as they are asked for: bound once, executed with a limit again and again.
 * No Sync is sent before its end, so outside a transaction it is one implicit transaction, which a pooler leaves on one
 * connection of the server. It takes the connection for itself as long as it lasts.
 */
export class Portal<Row = unknown> extends Statement<Row> {
  /** Most rows of the next chunk. */
  limit: number
  /** Chunks that the server owes. */
  owed = 0
  // Plain as those of its parent, whose prototype is exchanged.
  private readonly reader: PortalReader<Row>
  private wire: Wire | undefined
  private given = 0
  protected isEnding = false

  constructor(request: StatementRequest, limit: number, reader: PortalReader<Row>) {
    super(
      request,
      (_result: StatementResult<Row>) => reader.onEnd(undefined),
      (error) => reader.onEnd(error),
    )
    this.limit = limit
    this.reader = reader
  }

  // The reader's time is in it.
  override get isTimed(): boolean {
    return false
  }

  override get awaited(): string {
    return 'rows were asked for'
  }

  /** Rows that its reader was given. */
  get rowCount(): number {
    return this.given
  }

  override get remedy(): string {
    return 'Make the query faster, ask for smaller chunks (chunkSize), or raise chunkTimeoutMs or queryTimeoutMs.'
  }

  override submit(connection: DriverConnection): Error | null {
    const { prepared } = this
    if (prepared === undefined) return new Error('a statement is sent through a channel')
    this.isSubmitted = true
    this.wire = wireOf(connection)
    // A portal is made by the extended protocol only, which refuses several commands in one text.
    this.write(prepared, this.wire)
    return null
  }

  protected override writeExecute(_prepared: PreparedStatements, wire: Wire): void {
    this.owed += 1
    wire.execute(this.limit)
    wire.flush()
  }

  protected override writeEnd(wire: Wire): void {
    this.isEnding = true
    wire.sync()
  }

  /** Asks for another chunk. */
  request(): void {
    if (this.wire !== undefined && !this.isEnding) this.writeExecute(this.prepared as PreparedStatements, this.wire)
  }

  /** Wants no more rows. The server answers what was asked for, unless it is canceled, and then ends the portal. */
  leave(): void {
    if (this.isSettled) return
    // Not sent at all, it ends here.
    if (this.wire === undefined) return this.abandon(left)
    this.failure ??= left
    this.close()
  }

  override abandon(error: unknown): void {
    super.abandon(error)
    this.close()
  }

  override handlePortalSuspended(): void {
    this.give()
  }

  override handleCommandComplete(message: { text: string }): void {
    const isOurs = this.ahead === 0
    // Executed once more than it had rows for, it completes again.
    if (!isOurs || !this.isEnding) super.handleCommandComplete(message)
    if (!isOurs) return
    this.complete(message.text)
    this.close()
  }

  override handleEmptyQuery(): void {
    super.handleEmptyQuery()
    this.close()
  }

  override handleCopyData(_message?: { chunk: Uint8Array }): void {
    this.refuseCopy()
  }

  override handleError(error: unknown): void {
    // A failure after it was left is still one of the transaction's.
    if (this.failure === left) this.failure = undefined
    if (!this.isEnding && this.wire !== undefined) this.writeEnd(this.wire)
    super.handleError(error)
  }

  /** The server has given all, with this command tag. */
  protected complete(tag: string): void {
    this.give()
    if (tag.startsWith('COPY') && /\bstdout\b/i.test(this.text.sql)) this.refuseCopy()
  }

  protected give(): void {
    this.owed -= 1
    const rows = this.found
    this.found = []
    this.given += rows.length
    if (this.failure !== undefined) this.close()
    else if (!this.isSettled) this.reader.onRows(rows)
  }

  private refuseCopy(): void {
    super.handleCopyData()
    // Its reader does not wait for all that comes to nothing.
    this.abandon(this.failure)
  }

  protected close(): void {
    if (this.isEnding || this.wire === undefined) return
    this.isEnding = true
    this.wire.closePortal()
    this.wire.sync()
  }
}
