import type { QueryResult } from 'kysely'
import { Query } from 'pg'
import { DatabaseError } from '../core/errors.ts'
import type { PreparedStatements } from './prepared-statements.ts'
import { dataRowCode, type RowTaker } from './row-reader.ts'
import type { Field, Shape } from './row-shape.ts'
import { isAboutOwnName, type StatementText } from './statement-text.ts'
import { convertValues, type DriverConnection, type Wire, wireOf } from './wire.ts'

/** A result as Kysely gives it to its callers, who may print, compare or serialize it: what else is known of it is not its own. */
export class StatementResult<Row> implements QueryResult<Row> {
  readonly rows: Row[]
  readonly numAffectedRows?: bigint
  readonly #command: string
  readonly #extra: string | null | undefined

  constructor(rows: Row[], tag: string, extra: string | null | undefined) {
    const space = tag.indexOf(' ')
    this.#command = space < 0 ? tag : tag.slice(0, space)
    this.#extra = extra
    this.rows = rows
    if (countingCommands.has(this.#command)) this.numAffectedRows = BigInt(tag.slice(tag.lastIndexOf(' ') + 1))
  }

  /** The command tag's first word, such as `SELECT` or `ROLLBACK`. */
  get command(): string {
    return this.#command
  }

  /** What the suffix of the request gave. */
  get extra(): string | null | undefined {
    return this.#extra
  }
}

const countingCommands: ReadonlySet<string> = new Set(['COPY', 'DELETE', 'INSERT', 'MERGE', 'UPDATE'])

/** What a {@link Statement} is made of. */
export interface StatementRequest {
  readonly text: StatementText
  readonly values: readonly unknown[]
  /** When the caller gives up, as `performance.now()`; whoever owns the connection watches it. */
  readonly deadline: number
  /** Sent ahead in the same breath, such as BEGIN: without parameters and rows. */
  readonly prefix?: readonly StatementText[] | undefined
  /** Sent behind in the same breath; the first value of its first row comes in {@link StatementResult.extra}. */
  readonly suffix?: StatementText | undefined
}

const nothing: readonly never[] = []

/**
 * One statement on its way through a connection, as `pg` knows queries but without what they cost: where the
 * connection has prepared the text and knows its columns only Bind, Execute and Sync are sent, rows are built by a
 * function made for their shape, and nothing is emitted. It settles its promise itself.
 */
export class Statement<Row = unknown> {
  readonly text: StatementText
  readonly values: readonly unknown[]
  deadline: number
  /** As `performance.now()`. */
  sentAt = 0
  // Fields are plain, not private: the prototype below is exchanged, and they are read on the hot path.
  protected prepared: PreparedStatements | undefined
  private onAnswer: ((statement: Statement, error?: unknown) => void) | undefined
  /** Texts whose Parse is under way under their names, in the order sent; the unnamed one is `undefined`. */
  private readonly parses: (StatementText | undefined)[] = []
  isSubmitted = false
  protected readonly prefix: readonly StatementText[]
  private suffix: StatementText | undefined
  private readonly resolve: (result: StatementResult<Row>) => void
  private readonly reject: (error: unknown) => void
  protected shape: Shape | undefined
  // Not called `rows`: `pg` takes that for a limit, and refuses it on a pipelined connection.
  protected found: Row[] = []
  protected tag = ''
  private extra: string | null | undefined
  /** Commands sent ahead that have not completed. */
  protected ahead: number
  private isBehind = false
  /** It relies on names that we gave; a name of the application's own is no business of ours. */
  private isNamed = false
  /** Of the connection's names, when it was written. */
  private epoch = 0
  protected failure: unknown
  isSettled = false
  isCancelSent = false

  constructor(
    request: StatementRequest,
    resolve: (result: StatementResult<Row>) => void,
    reject: (error: unknown) => void,
  ) {
    this.text = request.text
    this.values = request.values
    this.deadline = request.deadline
    this.prefix = request.prefix ?? nothing
    this.suffix = request.suffix
    this.ahead = this.prefix.length
    this.resolve = resolve
    this.reject = reject
  }

  /** Whether the time to its answer says how long the text takes on the server. */
  get isTimed(): boolean {
    return true
  }

  /** From when its deadline counts, in words. */
  get awaited(): string {
    return 'the statement was sent'
  }

  /** What the caller may do about a missed deadline. */
  get remedy(): string {
    return 'It may have run: check that before you repeat a write. Make the query faster, or raise timeoutMs or queryTimeoutMs.'
  }

  /** Says on which connection it goes out, and whom to tell when the server has answered it. */
  attach(prepared: PreparedStatements, onAnswer: (statement: Statement, error?: unknown) => void): void {
    this.prepared = prepared
    this.onAnswer = onAnswer
  }

  /** Rejects now, whatever the server may still say. */
  abandon(error: unknown): void {
    if (this.isSettled) return
    this.isSettled = true
    this.reject(error)
  }

  /** Called by `pg` when it is this statement's turn to be written. */
  submit(connection: DriverConnection): Error | null {
    const { prepared, text } = this
    if (prepared === undefined) return new Error('a statement is sent through a channel')
    this.isSubmitted = true
    const wire = wireOf(connection)
    // Without parameters it may be several commands, which only the simple protocol takes.
    if (this.values.length === 0 && !text.isSingle) {
      // One cannot tell whose the last rows are when there may be several results.
      this.suffix = undefined
      wire.query([...this.prefix.map((command) => command.sql), text.sql].join('; '))
      return null
    }
    this.write(prepared, wire)
    return null
  }

  /** Writes it by the extended protocol. What cannot be sent fails at its end. */
  protected write(prepared: PreparedStatements, wire: Wire): void {
    this.writePrefix(prepared, wire)
    const { text } = this
    if (prepared.has(text)) this.shape = prepared.shapeOf(text)
    try {
      wire.bind(this.#prepare(prepared, wire, text), this.values)
    } catch (error) {
      // What was written of the statement does nothing and ends here.
      this.failure = unsendable(text.sql, error)
      return this.writeEnd(wire)
    }
    if (this.shape === undefined) wire.describe()
    this.writeExecute(prepared, wire)
  }

  protected writePrefix(prepared: PreparedStatements, wire: Wire): void {
    this.epoch = prepared.epoch
    for (const command of this.prefix) this.#writeCommand(prepared, wire, command)
  }

  protected writeExecute(prepared: PreparedStatements, wire: Wire): void {
    wire.execute()
    if (this.suffix !== undefined) this.#writeCommand(prepared, wire, this.suffix)
    wire.sync()
  }

  protected writeEnd(wire: Wire): void {
    wire.sync()
  }

  /** A command of our own; everything up to the next Sync succeeds or fails as one. */
  #writeCommand(prepared: PreparedStatements, wire: Wire, command: StatementText): void {
    command.uses += 1
    wire.bind(this.#prepare(prepared, wire, command), nothing)
    wire.execute()
  }

  #prepare(prepared: PreparedStatements, wire: Wire, text: StatementText): string {
    const isKnown = prepared.has(text)
    const name = prepared.prepare(text, wire)
    if (name !== '') this.isNamed = true
    if (!isKnown) this.parses.push(name === '' ? undefined : text)
    return name
  }

  handleParseComplete(): void {
    this.parses.shift()
  }

  handleRowDescription(message: { fields: readonly Field[] }): void {
    this.shape = this.prepared?.describe(this.text, message.fields)
    this.found = []
  }

  handleDataRow(message: { fields: readonly (string | null)[] }): void {
    if (this.failure !== undefined || this.isSettled) return
    if (this.isBehind) {
      this.extra = message.fields[0]
      return
    }
    try {
      if (this.shape === undefined) throw new Error('a row came without a description of its columns')
      this.found.push(this.shape.build(message.fields) as Row)
    } catch (error) {
      this.failure = unreadable(error, this.shape?.refused(message.fields), this.text.sql)
    }
  }

  /** Itself, where its rows are to be taken from the bytes: their columns are known. */
  get rowTaker(): RowTaker | undefined {
    return this.isSubmitted && this.shape !== undefined && !this.isBehind ? this : undefined
  }

  get takes(): number {
    return dataRowCode
  }

  takeRow(bytes: Buffer, at: number, end: number): void {
    if (this.failure !== undefined || this.isSettled) return
    const shape = this.shape as Shape
    try {
      this.found.push(shape.read(bytes, at, end) as Row)
    } catch (error) {
      this.failure = unreadable(error, shape.refused(bytes.subarray(at, end)), this.text.sql)
    }
  }

  handleCommandComplete(message: { text: string }): void {
    if (mayChangeSchema.test(message.text)) this.prepared?.noteSchemaChange(changesSchema.test(message.text))
    if (this.ahead > 0) this.ahead -= 1
    else if (!this.isBehind) {
      // It gives no rows; the next time nobody needs to ask.
      if (this.shape === undefined) this.prepared?.describe(this.text, nothing)
      this.tag = message.text
      this.isBehind = this.suffix !== undefined
    }
  }

  handleEmptyQuery(): void {
    this.tag = ''
  }

  handlePortalSuspended(): void {
    // No row limit is ever set, so no portal is suspended.
  }

  handleCopyInResponse(connection: DriverConnection): void {
    this.failure ??= this.copyRefusal('COPY … FROM STDIN has no source here and was stopped; nothing was written.')
    connection.sendCopyFail('COPY FROM STDIN has no source here')
  }

  handleCopyData(_message?: { chunk: Uint8Array }): void {
    this.failure ??= this.copyRefusal('COPY … TO STDOUT gives no rows, so a query has no place for what it sends.')
  }

  protected copyRefusal(what: string): DatabaseError {
    return new DatabaseError('INVALID_ARGUMENT', `${what} Use database.copy.`, { sql: this.text.sql })
  }

  handleReadyForQuery(): void {
    this.onAnswer?.(this as Statement)
    if (this.isSettled) return
    this.isSettled = true
    this.text.isRefused = false
    if (this.failure !== undefined) this.reject(this.failure)
    else this.resolve(new StatementResult(this.found, this.tag, this.extra))
  }

  handleError(error: unknown): void {
    const { prepared, text } = this
    const sqlState = sqlStateOf(error)
    // What was to be parsed behind the failure was not, and is not known by its name.
    for (const unparsed of this.parses.splice(0)) {
      if (unparsed === undefined) continue
      prepared?.forget(unparsed)
      // Those behind that count on the name fail with it; without one, each gets the real reason.
      if (unparsed === text) text.isRefused = true
    }
    if (this.isNamed && (sqlState === '26000' || sqlState === '42P05')) this.#noteLost(error, sqlState)
    else if (isPlanChanged(error)) prepared?.notePlanChanged(text)
    this.onAnswer?.(this as Statement, error)
    if (this.isSettled) return
    this.isSettled = true
    this.reject(this.failure ?? error)
  }

  #noteLost(error: unknown, sqlState: string): void {
    const message = error instanceof Error ? error.message : ''
    if (isAboutOwnName(message, this.text.sql)) this.prepared?.noteLost(this.text, sqlState, this.epoch)
  }
}

/**
 * A query's parameters as they are sent, or `INVALID_ARGUMENT`. To be called before anything of the statement is
 * written: see {@link convertValues}.
 */
export function sendable(sql: string, values: readonly unknown[]): readonly unknown[] {
  try {
    return convertValues(values)
  } catch (error) {
    throw unsendable(sql, error)
  }
}

function unsendable(sql: string, error: unknown): DatabaseError {
  return new DatabaseError(
    'INVALID_ARGUMENT',
    `A parameter cannot be sent: ${error instanceof Error ? error.message : 'it cannot be converted'}. Pass a plain value.`,
    { cause: error, sql },
  )
}

// A pipelined client takes only instances of its own class; inheriting its constructor would cost an emitter and a
// result object for each statement.
Object.setPrototypeOf(Statement.prototype, Query.prototype)

function sqlStateOf(error: unknown): string | undefined {
  return (error as { code?: string }).code
}

/** The tags of commands after which a prepared statement may give other columns; a block and a procedure may hold them. */
const mayChangeSchema = /^(?:ALTER|CALL|CREATE|DO|DROP)\b/
// New tables are new to all, and temporary ones are made often.
const changesSchema = /^(?:ALTER|DROP|CREATE VIEW)\b/

/** The tables of a prepared statement have changed so that its result has other columns. */
function isPlanChanged(error: unknown): boolean {
  const { code, routine } = error as { code?: string; routine?: string }
  return code === '0A000' && routine === 'RevalidateCachedQuery'
}

/** A value that its parser refuses, of the column if that is known: the rest is read and the statement fails. */
function unreadable(cause: unknown, column: string | undefined, sql: string): DatabaseError {
  const where = column === undefined ? 'A value of the result' : `A value of the column ${column}`
  // One of ours says what to do; what another says may hold the value.
  const reason = cause instanceof DatabaseError ? `: ${cause.message}` : '. Look at the parser of its type.'
  return new DatabaseError('INVALID_DATA', `${where} cannot be read${reason}`, { cause, sql })
}
