import { setTimeout as sleep } from 'node:timers/promises'
import type { CompiledQuery } from 'kysely'
import type { Limits } from '../core/deadline.ts'
import { DatabaseError, isDatabaseError } from '../core/errors.ts'
import { isWhole, largestInt32 } from '../core/whole-number.ts'
import { bytesReadBy } from './connection.ts'
import type { Engine, ReplicaChoice } from './engine.ts'
import type { CallSite, Session, SessionStream } from './pool.ts'
import { left, Portal, type PortalReader } from './portal.ts'
import { toDatabaseError } from './sqlstate.ts'
import { sendable, type StatementRequest } from './statement.ts'
import type { StatementText } from './statement-text.ts'
import { insideStream, type Scope, type StreamBeginning } from './transaction.ts'

/** How a stream runs. Times are milliseconds. */
export interface StreamOptions {
  /**
   * Most rows that are fetched at once; up to two chunks are in memory.
   * @default by size: 100 in the first chunk, then as many as make about 256 KB, at most 10 000
   */
  readonly chunkSize?: number | undefined
  /**
   * How long the next chunk may be waited for, for the first one with the wait for a connection and repetitions. The time
   * that the reader takes does not count. @default `queryTimeoutMs`
   */
  readonly chunkTimeoutMs?: number | false | undefined
  /** Ends the stream with its reason, and stops the statement on the server. */
  readonly signal?: AbortSignal | undefined
  /** Reads from a replica, as `replica` of a query does. @default false */
  readonly replica?: ReplicaChoice | boolean | undefined
}

/**
 * The rows of one query, to be read once with `for await`. Nothing is sent and no connection borrowed before the first
 * row is asked for; whoever stops reading leaves the loop, or calls `return()`, and the server stops.
 */
export interface RowStream<Row> extends AsyncIterableIterator<Row, undefined>, AsyncDisposable {
  /** The same rows in chunks as they come, for readers that take many at once; instead of reading single rows. */
  chunks(): AsyncIterableIterator<Row[], undefined>
  return(): Promise<IteratorReturnResult<undefined>>
}

/** Where a stream runs: on a connection of its own, in a transaction, or on one that Kysely has borrowed. */
export interface StreamPlace {
  readonly scope?: Scope | undefined
  readonly session?: Session | undefined
  readonly origin?: CallSite | undefined
  /** Hears of a failure on a borrowed connection outside a transaction. */
  readonly onFailure?: ((error: DatabaseError) => void) | undefined
}

/** Opens what gives the rows, or what stands for them. */
export type PortalFactory<Row> = (request: StatementRequest, limit: number, reader: PortalReader<Row>) => Portal<Row>

// Measured on 300 000 rows of 90 bytes: against chunks of this size, those of 1 000 rows reach 0.90 of the speed, of 100
// rows 0.64, of 30 rows 0.43; 10 000 rows are as fast.
const firstChunk = 100
const largestChunk = 10_000
const chunkBytes = 262_144
// Grows slowly: the rows to come may be wider than those that were.
const growth = 4
// A chunk on its way is usually there before a cancel could arrive; what takes longer is stopped.
const leaveMs = 20
// In a transaction a chunk that was asked for has to be waited for when the reader leaves: canceled, it would undo all.
const quickMs = 50

/**
 * Reads the rows of one statement chunk by chunk: the server prepares the next one while the reader works on this one,
 * and no more than that. Its reader calls {@link read} until there is nothing, or {@link close}.
 */
export class ChunkReader<Row> implements PortalReader<Row>, SessionStream {
  /** Called when rows that were read already are not to be used any more. */
  onStop: (() => void) | undefined
  /** Called once it is over for its reader. */
  onFinish: ((failure: unknown, durationMs: number) => void) | undefined
  readonly #primary: Engine
  /** Where it runs: the primary, or a replica. */
  #engine: Engine
  readonly #query: CompiledQuery
  readonly #text: StatementText
  readonly #options: StreamOptions
  readonly #place: StreamPlace
  readonly #createPortal: PortalFactory<Row>
  #isNew = true
  #isClosed = false
  /** The server has nothing more to give. */
  #isOver = false
  #isReported = false
  #session: Session | undefined
  #portal: Portal<Row> | undefined
  /** Come, but not read. */
  readonly #chunks: Row[][] = []
  /** The reader works on a chunk. */
  #isHeld = false
  #arrival: PromiseWithResolvers<void> | undefined
  #failure: unknown
  #generation: number | undefined
  #began = 0
  #attempts = 1
  #rowCount = 0
  #chunkSize: number
  #askedAt = 0
  #tookMs = 0
  #bytesRead = 0

  constructor(
    engine: Engine,
    query: CompiledQuery,
    options: StreamOptions,
    place: StreamPlace,
    createPortal: PortalFactory<Row> = (request, limit, reader) => new Portal(request, limit, reader),
  ) {
    const { chunkSize } = options
    if (chunkSize !== undefined && !isWhole(chunkSize, 1, largestInt32)) {
      throw new DatabaseError(
        'INVALID_ARGUMENT',
        `A stream was given a chunkSize of ${String(chunkSize)}. Give a whole number of rows from 1, or leave it out.`,
        { sql: query.sql },
      )
    }
    this.#primary = engine
    this.#engine = engine
    this.#query = query
    this.#text = engine.texts.get(query.sql, query.query)
    this.#options = options
    this.#place = place
    this.#createPortal = createPortal
    this.#chunkSize = chunkSize ?? firstChunk
  }

  get sql(): string {
    return this.#query.sql
  }

  /** Rows that have come. */
  get rowCount(): number {
    return this.#rowCount
  }

  /** The next rows, at least one; undefined at the end. Rejects once, and is at the end then. */
  async read(): Promise<Row[] | undefined> {
    this.#isHeld = false
    try {
      if (this.#isNew) await this.#start()
      else await this.#wait()
    } catch (error) {
      this.#finish(error)
      throw error
    }
    const rows = this.#chunks.shift()
    if (rows !== undefined) {
      this.#isHeld = true
      this.#ask()
      return rows
    }
    const failure = this.#failure
    this.#failure = undefined
    this.#finish(failure)
    if (failure !== undefined) throw failure
    return undefined
  }

  /** The reader wants no more. Resolves when the connection is free again, or will be without its help. */
  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    this.#isNew = false
    this.#isHeld = false
    this.#chunks.length = 0
    this.#failure = undefined
    const portal = this.#portal
    this.#finish(undefined)
    if (portal === undefined) return
    this.#setDeadline(portal)
    portal.leave()
    // Where others go on using the connection, their next statement waits for its turn.
    if (this.#isGuest) return
    await Promise.race([this.#arrives(), sleep(leaveMs, undefined, { ref: false })])
    // A write is not undone because its reader has seen enough.
    if (!this.#isOver && onlyReads(this.#text)) this.#takeSession()?.release('cancel')
  }

  stop(): void {
    this.#fail(
      new DatabaseError(
        'QUERY_CANCELED',
        'The stream was stopped: its transaction, or the connection that it was on, ended before its last row was read. ' +
          'Read it to its end, or leave its loop, before that.',
        { sql: this.sql },
      ),
    )
  }

  onRows(rows: Row[]): void {
    if (rows.length > 0) this.#chunks.push(rows)
    const portal = this.#portal
    if (portal !== undefined) {
      this.#rowCount = portal.rowCount
      portal.deadline = Number.POSITIVE_INFINITY
      this.#adapt(portal, rows.length)
    }
    this.#session?.noteUse()
    this.#hasArrived()
  }

  onEnd(cause: unknown): void {
    const { signal } = this.#options
    this.#isOver = true
    this.#portal = undefined
    signal?.removeEventListener('abort', this.#onAbort)
    const isAborted = signal?.aborted === true && cause === signal.reason
    const error = cause === undefined || cause === left ? undefined : isAborted ? givenUp(this.sql) : this.#typed(cause)
    if (!this.#isClosed && error !== undefined) this.#failure = isAborted ? cause : error
    if (this.#isGuest) this.#leaveHost(error, isAborted)
    else {
      const session = this.#takeSession()
      if (session !== undefined) this.#engine.giveBack(session, error)
    }
    this.#hasArrived()
  }

  get #isGuest(): boolean {
    return this.#host !== undefined
  }

  /** The connection that is somebody else's to give back. */
  get #host(): Session | undefined {
    return this.#place.scope?.session ?? this.#place.session
  }

  async #start(): Promise<void> {
    this.#isNew = false
    this.#began = performance.now()
    this.#text.uses += 1
    const { scope, session } = this.#place
    const { signal } = this.#options
    const limits = this.#engine.limits({ timeoutMs: this.#options.chunkTimeoutMs, signal })
    signal?.throwIfAborted()
    if (scope !== undefined) this.#open(scope.session, scope.beginStream(this, this.#query), limits.deadline)
    else if (session !== undefined) {
      if (session.stream) throw insideStream('A stream', this.sql)
      const values = sendable(this.sql, this.#query.parameters)
      session.stream = this
      this.#open(session, { text: this.#text, values }, limits.deadline)
    } else return this.#startOnOwn(limits)
    await this.#arrived()
  }

  async #startOnOwn(limits: Limits): Promise<void> {
    const values = sendable(this.sql, this.#query.parameters)
    let reason: DatabaseError | undefined
    for (; ; this.#attempts += 1) {
      this.#engine = await this.#chooseEngine()
      const { breaker } = this.#engine
      this.#generation = breaker?.isCalm === true ? breaker.generation : undefined
      const attempt = (): Promise<void> => this.#attempt(values, limits)
      try {
        await (breaker === undefined || this.#generation !== undefined ? attempt() : breaker.run(attempt))
        // What fails from here on is noted by itself.
        this.#generation ??= breaker?.generation
        return
      } catch (cause) {
        if (limits.signal?.aborted === true && cause === limits.signal.reason) throw cause
        const error = this.#typed(cause)
        if (this.#generation !== undefined) breaker?.note(error, this.#generation)
        if (error.code === 'CIRCUIT_OPEN' && reason !== undefined) throw reason
        this.#primary.replicas?.note(this.#engine, error)
        if (!(await this.#primary.mayRepeat(error, this.#text, undefined, this.#attempts, limits)) || this.#isClosed)
          throw error
        reason = error
      }
    }
  }

  async #chooseEngine(): Promise<Engine> {
    const { replica } = this.#options
    const { replicas } = this.#primary
    return replica && replicas ? (await replicas.choose(replica)).engine : this.#primary
  }

  /** Until the first rows have come, or the end; rejects with a failure before them. */
  async #attempt(values: readonly unknown[], limits: Limits): Promise<void> {
    const lease = { purpose: 'a stream', limits, origin: this.#place.origin }
    const { pool } = this.#engine
    const session = pool.tryAcquire(lease) ?? (await pool.acquire(lease))
    if (this.#isClosed) return session.release()
    this.#isOver = false
    this.#session = session
    this.#open(session, { text: this.#text, values }, limits.deadline)
    await this.#arrived()
    const failure = this.#failure
    if (failure === undefined || this.#chunks.length > 0) return
    this.#failure = undefined
    throw failure
  }

  #open(session: Session, request: StreamBeginning, deadline: number): void {
    this.#portal = this.#createPortal({ ...request, deadline }, this.#chunkSize, this)
    this.#askedAt = performance.now()
    this.#bytesRead = bytesReadBy(session.channel.client)
    this.#options.signal?.addEventListener('abort', this.#onAbort, { once: true })
    this.#engine.submit(session, this.#portal as Portal)
  }

  readonly #onAbort = (): void => this.#fail(this.#options.signal?.reason)

  /** Ends it with an error for its reader, now. */
  #fail(reason: unknown): void {
    if (this.#isClosed || this.#isReported) return
    this.#chunks.length = 0
    this.onStop?.()
    // First: whoever stops what runs on the connection would give it a reason of its own.
    this.#freeHost()
    if (this.#portal === undefined) this.#failure = reason
    else this.#portal.abandon(reason)
  }

  async #wait(): Promise<void> {
    const portal = this.#portal
    if (this.#chunks.length > 0 || portal === undefined) return
    this.#ask()
    this.#setDeadline(portal)
    await this.#arrived()
  }

  /** Rows have come, or the end. */
  async #arrived(): Promise<void> {
    while (this.#chunks.length === 0 && !this.#isOver && !this.#isClosed) await this.#arrives()
  }

  #arrives(): Promise<void> {
    this.#arrival ??= Promise.withResolvers<void>()
    return this.#arrival.promise
  }

  #hasArrived(): void {
    this.#arrival?.resolve()
    this.#arrival = undefined
  }

  /** Asks for as many chunks as may be on their way beside those in memory. */
  #ask(): void {
    const portal = this.#portal
    if (portal === undefined) return
    const isSlow = this.#isGuest && this.#tookMs > quickMs
    const chunks = this.#chunks.length + portal.owed + (this.#isHeld ? 1 : 0)
    if (chunks < (isSlow ? 1 : 2)) this.#askedAt = performance.now()
    for (let n = chunks; n < (isSlow ? 1 : 2); n += 1) portal.request()
  }

  #adapt(portal: Portal<Row>, rowCount: number): void {
    this.#tookMs = performance.now() - this.#askedAt
    const session = this.#session ?? this.#host
    if (this.#options.chunkSize !== undefined || rowCount === 0 || session === undefined) return
    const bytesRead = bytesReadBy(session.channel.client)
    const perRow = (bytesRead - this.#bytesRead) / rowCount
    this.#bytesRead = bytesRead
    if (!(perRow > 0)) return
    const wanted = Math.min(chunkBytes / perRow, this.#chunkSize * growth, largestChunk)
    this.#chunkSize = Math.max(1, Math.floor(wanted))
    portal.limit = this.#chunkSize
  }

  #setDeadline(portal: Portal<Row>): void {
    portal.sentAt = performance.now()
    portal.deadline = this.#engine.limits({ timeoutMs: this.#options.chunkTimeoutMs }).deadline
  }

  #leaveHost(error: DatabaseError | undefined, isAborted: boolean): void {
    const { scope, onFailure } = this.#place
    if (scope !== undefined) scope.noteOutcome(error)
    else if (error !== undefined) onFailure?.(error)
    // A statement that was given up goes on until the server is told.
    if (isAborted) void this.#host?.interrupt()
  }

  #takeSession(): Session | undefined {
    const session = this.#session
    this.#session = undefined
    return session
  }

  #freeHost(): void {
    const host = this.#host
    if (host?.stream === this) host.stream = undefined
  }

  #typed(cause: unknown): DatabaseError {
    const inTransaction = this.#place.scope !== undefined || (this.#host?.transactionStatus ?? 'none') !== 'none'
    return toDatabaseError(cause, { sql: this.sql, inTransaction, target: this.#engine.source.description })
  }

  /** It is over for its reader. */
  #finish(failure: unknown): void {
    this.#freeHost()
    if (this.#isReported) return
    this.#isReported = true
    const { breaker, events } = this.#engine
    if (this.#began === 0) return
    if (failure !== undefined && this.#rowCount > 0 && this.#generation !== undefined)
      breaker?.note(failure, this.#generation)
    const durationMs = performance.now() - this.#began
    this.onFinish?.(failure, durationMs)
    if (this.#place.scope === undefined && this.#engine.writes !== undefined) void this.#engine.noteWritten(this.#text)
    if (!events.hears('query')) return
    events.emit('query', {
      sql: this.sql,
      durationMs,
      rowCount: this.#rowCount,
      attempts: this.#attempts,
      inTransaction: this.#place.scope !== undefined,
      error: failure === undefined ? undefined : isDatabaseError(failure) ? failure.code : 'QUERY_CANCELED',
      target: this.#engine.source.description,
    })
  }
}

/** The rows of a {@link ChunkReader} one by one. */
export class ReaderStream<Row> implements RowStream<Row> {
  readonly #reader: ChunkReader<Row>
  readonly #transform: ((rows: Row[]) => Promise<Row[]>) | undefined
  #rows: Row[] = []
  #index = 0
  #advancing: Promise<unknown> | undefined

  /** `transform` is applied to the rows of each chunk. */
  constructor(reader: ChunkReader<Row>, transform?: (rows: Row[]) => Promise<Row[]>) {
    this.#reader = reader
    this.#transform = transform
    reader.onStop = () => (this.#rows = [])
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  next(): Promise<IteratorResult<Row, undefined>> {
    // One million of these for one million rows: no async function, whose promise costs another.
    if (this.#index < this.#rows.length) {
      return Promise.resolve({ value: this.#rows[this.#index++] as Row, done: false })
    }
    // Asked again before the answer: the rows come in the order of the questions.
    if (this.#advancing) return this.#advancing.then(() => this.next())
    const advance = this.#advance()
    this.#advancing = advance.then(noop, noop).finally(() => (this.#advancing = undefined))
    return advance
  }

  async return(): Promise<IteratorReturnResult<undefined>> {
    this.#rows = []
    await this.#reader.close()
    return { value: undefined, done: true }
  }

  async *chunks(): AsyncGenerator<Row[], undefined> {
    try {
      if (this.#index < this.#rows.length) {
        const rest = this.#rows.slice(this.#index)
        this.#rows = []
        yield rest
      }
      for (;;) {
        const rows = await this.#read()
        if (rows === undefined) return undefined
        yield rows
      }
    } finally {
      await this.return()
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.return()
  }

  async #advance(): Promise<IteratorResult<Row, undefined>> {
    // Let go of them while the next are waited for.
    this.#rows = []
    const rows = await this.#read()
    if (rows === undefined) return { value: undefined, done: true }
    this.#rows = rows
    this.#index = 1
    return { value: rows[0] as Row, done: false }
  }

  /** The next rows, at least one. */
  async #read(): Promise<Row[] | undefined> {
    for (;;) {
      const rows = await this.#reader.read()
      if (rows === undefined || this.#transform === undefined) return rows
      try {
        const transformed = await this.#transform(rows)
        if (transformed.length > 0) return transformed
      } catch (error) {
        await this.#reader.close()
        throw error
      }
    }
  }
}

const noop = (): void => undefined

function givenUp(sql: string): DatabaseError {
  return new DatabaseError('QUERY_CANCELED', 'The stream was given up by its reader.', { sql })
}

/** As far as its nodes tell, or its first word where it was written by hand. */
function onlyReads(text: StatementText): boolean {
  return text.isRead || /^\s*(?:copy (?:\(\s*(?:select|table|values)\b|")|(?:select|table|values)\b)/i.test(text.sql)
}
