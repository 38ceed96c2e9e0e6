import { AsyncLocalStorage } from 'node:async_hooks'
import type { CompiledQuery, QueryResult, RootOperationNode } from 'kysely'
import { type Limits, limitsFrom } from '../core/deadline.ts'
import { DatabaseError, type ErrorCode, TimeoutError } from '../core/errors.ts'
import { Emitter } from '../core/events.ts'
import type { RepeatedRead, RepeatedReads } from '../core/repeated-reads.ts'
import { type BreakerSettings, type BreakerState, CircuitBreaker } from '../resilience/circuit-breaker.ts'
import { pause, type RetrySettings } from '../resilience/retry.ts'
import type { Channel } from './channel.ts'
import { PreparationPolicy, type PreparedStatementSettings } from './prepared-statements.ts'
import { type ConnectionSource, cutClient } from './connection.ts'
import { Pipeline, type PipelineSettings, type PipelineStats } from './pipeline.ts'
import { type LeaseHolder, Pool, type PoolSettings, type PoolStats, type Session } from './pool.ts'
import { discardsConnection, toDatabaseError, verdictOf } from './sqlstate.ts'
import { sendable, Statement, type StatementRequest, type StatementResult } from './statement.ts'
import { type StatementText, StatementTexts } from './statement-text.ts'

/** Settings of an {@link Engine}, resolved. Times are milliseconds; `false` switches the part off. */
export interface EngineSettings {
  readonly pool: PoolSettings
  readonly queryTimeoutMs: number | false
  readonly pipeline: PipelineSettings | false
  readonly preparedStatements: PreparedStatementSettings
  readonly retry: RetrySettings | false
  readonly breaker: BreakerSettings | false
}

/** What a single call may ask for. */
export interface CallOptions {
  /** Rejects the call with its reason, and stops the statement on the server. */
  readonly signal?: AbortSignal | undefined
  /** How long the call may take, waiting and retries included. @default `queryTimeoutMs` */
  readonly timeoutMs?: number | false | undefined
  /** The statement may be sent again although it may have run: doing it twice is doing it once. @default false */
  readonly idempotent?: boolean | undefined
  /**
   * A read that may see an earlier state: it goes to a replica, and to the primary where none is fit. It is taken for a
   * read, so it may run more than once. Inside a transaction it stays in it. @default false
   */
  readonly replica?: ReplicaChoice | boolean | undefined
  /**
   * Tables that the statement writes beside those that its text names, such as by a function: what is cached of queries on
   * them ends with its commit.
   */
  readonly touches?: readonly string[] | undefined
}

/** Which state a read on a replica must have. */
export interface ReplicaChoice {
  /** What {@link Database.lastCommitToken} gave: all that was committed before that is seen. */
  readonly after?: string | undefined
  /** How long to wait for a replica that has it, before the primary takes the read. @default `replicaReads.waitMs` */
  readonly waitMs?: number | undefined
}

/** A statement came to its end. */
export interface QueryEvent {
  /** With placeholders. */
  readonly sql: string
  readonly durationMs: number
  readonly rowCount: number
  readonly attempts: number
  readonly inTransaction: boolean
  readonly error: ErrorCode | undefined
  /** The server that ran it, without credentials. */
  readonly target: string
}

/** What happens in an engine; see {@link EventSource.on}. */
export interface DatabaseEvents {
  query: QueryEvent
  /** A caller got a connection after waiting. */
  acquire: { readonly waitedMs: number }
  /** Many reads where one would do; only with `repeatedReads`, as in development. */
  repeatedRead: RepeatedRead
  transaction: {
    readonly outcome: 'committed' | 'rolled back' | 'unknown'
    readonly durationMs: number
    readonly attempts: number
    readonly error: ErrorCode | undefined
  }
  /** Something is about to be tried again. */
  retry: { readonly scope: 'statement' | 'transaction'; readonly failures: number; readonly error: ErrorCode }
  breaker: { readonly state: BreakerState; readonly target: string }
  /** A connection has been borrowed for longer than `leakWarningMs`. */
  leak: LeaseHolder
  /** A replica came or went, fell behind or caught up, or became a primary. */
  replica: { readonly target: string; readonly state: ReplicaState; readonly reason: string | undefined }
  /** The connection that listens for notifications. */
  listener: {
    readonly state: 'connected' | 'lost' | 'reconnected'
    /** How many are listened to. */
    readonly channels: number
    /** Why it was lost. */
    readonly error: ErrorCode | undefined
  }
  /** Whether invalidations of the cache arrive; while not, memory is not used, and `reason` says why. */
  cache: { readonly state: 'distrusted' | 'trusted'; readonly reason?: 'lost' | 'missed' | 'regressed' | undefined }
  /** A handler or `onGap` has failed, or a payload was none of its channel; `error` is what was thrown. */
  notificationFailure: {
    readonly channel: string
    readonly reason: 'gap' | 'handler' | 'payload'
    readonly error: unknown
  }
}

/** `lagging`: further behind than `maxLagMs`. `up` and `lagging` are asked again and again; `down` as well. */
export type ReplicaState = 'down' | 'lagging' | 'up'

/** A moment of an {@link Engine}. */
export interface EngineStats {
  readonly pool: PoolStats
  /** Absent where statements do not share connections. */
  readonly pipeline?: PipelineStats
  readonly breaker: BreakerState
}

/** What {@link Engine.ambient} carries: the transaction that statements of this async context join. */
export interface Ambient {
  scope: StatementTarget | undefined
}

/** Something that runs statements. */
export interface StatementTarget {
  execute<Row>(query: CompiledQuery, options?: CallOptions): Promise<StatementResult<Row>>
}

/** What the engines of one database have in common: that of the primary, and one for each replica. */
export interface EngineContext {
  readonly ambient: AsyncLocalStorage<Ambient>
  readonly events: Emitter<DatabaseEvents>
  /** Hears of what the operator should know. */
  readonly warn: (message: string) => void
}

/** What a new database begins with. */
export function engineContext(warn: (message: string) => void = () => undefined): EngineContext {
  const names = [
    'query',
    'acquire',
    'repeatedRead',
    'transaction',
    'retry',
    'breaker',
    'leak',
    'replica',
    'listener',
    'cache',
    'notificationFailure',
  ] as const
  return { ambient: new AsyncLocalStorage(), events: new Emitter<DatabaseEvents>(names), warn }
}

/** Who has to know of writes. */
export interface WriteObserver {
  /** Tables were written outside of any transaction, by this query if it is known. Must not reject. */
  onWritten(tables: readonly string[], query?: RootOperationNode): Promise<void>
  /** Tables were written in a transaction or savepoint. */
  onWrittenIn(scope: StatementTarget, tables: readonly string[], query?: RootOperationNode): void
}

/** The tables that a statement writes. */
export function tablesOf({ writes }: StatementText, options: CallOptions | undefined): readonly string[] {
  return options?.touches === undefined ? writes : [...writes, ...options.touches]
}

/** The replicas, as the engine of their primary knows them. */
export interface ReadTarget extends StatementTarget {
  /** Where to borrow a connection for reads. */
  choose(choice: ReplicaChoice | boolean): Promise<{ readonly engine: Engine }>
  /** What has failed on an engine that was chosen: it may not be there any more. */
  note(engine: Engine, error: DatabaseError): void
}

/** Errors after which nothing has happened, and which a short pause may cure. */
const repeatable: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'CACHED_PLAN_CHANGED',
  'CONNECTION_FAILED',
  'DEADLOCK',
  'IDLE_SESSION_TIMEOUT',
  'POOLER_REJECTED',
  'PREPARED_STATEMENT_LOST',
  'READ_ONLY',
  'RECOVERY_CONFLICT',
  'SERIALIZATION_FAILURE',
  'SERVER_STARTING',
  'TOO_MANY_CONNECTIONS',
])
/** Errors that leave open whether the statement ran. */
const ambiguous: ReadonlySet<ErrorCode> = new Set<ErrorCode>(['CONNECTION_LOST', 'SERVER_CRASHED', 'SERVER_SHUTDOWN'])
/** Cured by sending it again at once. */
/** Whether a statement failed for its name alone, so that it was not run, and may be sent again at once. */
export function isAboutPreparation(error: DatabaseError, failures: number): boolean {
  return preparation.has(error.code) && failures <= maxPreparations
}

const preparation: ReadonlySet<ErrorCode> = new Set<ErrorCode>(['CACHED_PLAN_CHANGED', 'PREPARED_STATEMENT_LOST'])

// Once for a name that was lost; behind a pooler that mixes names up, until nothing is prepared any more.
const maxPreparations = 5
// Deadlines are checked in this step: a timer for each statement would cost more than the statement's own bookkeeping.
const watchStepMs = 20
// A backend that was asked to stop and has not after this is taken for dead.
const cancelGraceMs = 500

/**
 * Runs compiled statements on one PostgreSQL: on a shared connection where that is safe, else on one of the pool; under
 * a deadline, behind a circuit breaker, and again where that cannot do anything twice.
 */
export class Engine implements StatementTarget {
  readonly source: ConnectionSource
  readonly pool: Pool
  readonly texts: StatementTexts = new StatementTexts()
  readonly ambient: AsyncLocalStorage<Ambient>
  readonly events: Emitter<DatabaseEvents>
  /** Hears of what was written; none while nobody caches queries. */
  writes: WriteObserver | undefined
  /** Notices what is read again and again; none in production. */
  repeats: RepeatedReads | undefined
  /** Takes what may run on a replica; only the engine of a primary that has some. */
  replicas: ReadTarget | undefined
  readonly breaker: CircuitBreaker | undefined
  readonly #settings: EngineSettings
  readonly #pipeline: Pipeline | undefined
  #watcher: NodeJS.Timeout | undefined
  /** When a shared connection was last asked to stop: the statement behind may be hit. */
  #sharedCancelAt = Number.NEGATIVE_INFINITY

  constructor(source: ConnectionSource, settings: EngineSettings, context: EngineContext = engineContext()) {
    this.source = source
    this.ambient = context.ambient
    this.events = context.events
    this.#settings = settings
    const policy = new PreparationPolicy(settings.preparedStatements, () =>
      context.warn(
        `${source.description} does not keep prepared statements apart, as a pooler in transaction mode before PgBouncer 1.21; ` +
          'nothing is prepared from now on. Set preparedStatements: false to begin so',
      ),
    )
    this.pool = new Pool(source, settings.pool, policy, {
      onLeak: (holder) => this.events.emit('leak', holder),
      onAcquire: (waitedMs) => this.events.hears('acquire') && this.events.emit('acquire', { waitedMs }),
    })
    if (settings.pipeline !== false && source.maxConnections > settings.pipeline.connections) {
      const { maxLifetimeMs } = settings.pool
      this.#pipeline = new Pipeline(source, settings.pipeline, policy, maxLifetimeMs)
    }
    if (settings.breaker !== false) {
      this.breaker = new CircuitBreaker(source.description, settings.breaker, verdictOf, (state) =>
        this.events.emit('breaker', { state, target: source.description }),
      )
    }
  }

  get retry(): RetrySettings | false {
    return this.#settings.retry
  }

  stats(): EngineStats {
    const pool = this.pool.stats()
    const breaker = this.breaker?.state ?? 'closed'
    return this.#pipeline ? { pool, pipeline: this.#pipeline.stats(), breaker } : { pool, breaker }
  }

  /** The context of whoever calls this, for what is called back later: without the transaction that may be open there. */
  callersContext(): <T>(work: () => T) => T {
    return this.ambient.run({ scope: undefined }, () => AsyncLocalStorage.snapshot())
  }

  /** The limits of a call that begins now. */
  limits(options: CallOptions | undefined): Limits {
    return limitsFrom(options?.timeoutMs ?? this.#settings.queryTimeoutMs, options?.signal)
  }

  /**
   * Runs a statement in the transaction of the present async context, if there is one, else by itself. Rejects with a
   * {@link DatabaseError}, or with the reason of the signal.
   */
  async execute<Row>(query: CompiledQuery, options?: CallOptions): Promise<StatementResult<Row>> {
    if (this.repeats !== undefined && query.query.kind === 'SelectQueryNode') this.repeats.see(query.sql)
    const scope = this.ambient.getStore()?.scope
    if (scope !== undefined) return scope.execute(query, options)
    if (options?.replica && this.replicas !== undefined) return this.replicas.execute(query, options)

    const text = this.texts.get(query.sql, query.query)
    const values = sendable(query.sql, query.parameters)
    const limits = this.limits(options)
    const began = this.events.hears('query') ? performance.now() : 0
    let reason: DatabaseError | undefined
    for (let attempts = 1; ; attempts += 1) {
      const { breaker } = this
      const generation = breaker === undefined || breaker.isCalm ? (breaker?.generation ?? 0) : undefined
      text.uses += 1
      try {
        const result =
          generation === undefined
            ? await (breaker as CircuitBreaker).run(() => this.#send<Row>(text, values, limits))
            : await this.#send<Row>(text, values, limits)
        if (began > 0) this.report(query.sql, began, attempts, false, result)
        if (this.writes !== undefined) await this.noteWritten(text, query.query, options)
        return result
      } catch (cause) {
        if (generation !== undefined) breaker?.note(cause, generation)
        if (cause === limits.signal?.reason && limits.signal?.aborted === true) throw cause
        let error = toDatabaseError(cause, { sql: text.sql, target: this.source.description })
        // Refused at a repetition: what went wrong before tells the caller more.
        if (error.code === 'CIRCUIT_OPEN' && reason !== undefined) error = reason
        else if (await this.mayRepeat(error, text, options, attempts, limits)) {
          reason = error
          continue
        }
        if (began > 0) this.report(query.sql, began, attempts, false, undefined, error)
        // It may have been done.
        if (this.writes !== undefined && ambiguous.has(error.code)) await this.noteWritten(text, query.query, options)
        throw error
      }
    }
  }

  /** A statement outside of transactions was done, or may have been. */
  async noteWritten(text: StatementText, query?: RootOperationNode, options?: CallOptions): Promise<void> {
    const tables = tablesOf(text, options)
    if (tables.length > 0) await this.writes?.onWritten(tables, query)
  }

  /** One of kanta's own questions, outside any transaction, once: neither repeated nor counted by the breaker. */
  async ask<Row>(sql: string, values: readonly unknown[], timeoutMs: number): Promise<readonly Row[]> {
    const text = this.texts.command(sql)
    text.uses += 1
    try {
      return (await this.#send<Row>(text, values, limitsFrom(timeoutMs))).rows
    } catch (cause) {
      throw toDatabaseError(cause, { sql, target: this.source.description })
    }
  }

  /** Sends a statement on a connection that the caller has borrowed, and settles within the limits. */
  sendOn<Row>(
    session: Session,
    request: StatementRequest,
    signal: AbortSignal | undefined,
  ): Promise<StatementResult<Row>> {
    session.lastSql = request.text.sql
    this.#watch()
    return new Promise((resolve, reject) => {
      if (signal === undefined) {
        session.channel.send(new Statement<Row>(request, resolve, reject) as Statement)
        return
      }
      if (signal.aborted) return reject(signal.reason)
      const statement = new Statement<Row>(
        request,
        (result) => {
          signal.removeEventListener('abort', onAbort)
          resolve(result)
        },
        (error) => {
          signal.removeEventListener('abort', onAbort)
          reject(error)
        },
      )
      const onAbort = (): void => statement.abandon(signal.reason)
      signal.addEventListener('abort', onAbort, { once: true })
      session.channel.send(statement as Statement)
    })
  }

  /** Sends what the caller keeps in its hands, and watches its deadline. */
  submit(session: Session, statement: Statement): void {
    session.lastSql = statement.text.sql
    this.#watch()
    session.channel.send(statement)
  }

  /** What came of a connection's last statement decides how it is given back. */
  giveBack(session: Session, error?: unknown, unfinished: 'cancel' | 'wait' = 'cancel'): void {
    if (error instanceof TimeoutError && error.code === 'QUERY_TIMEOUT') return session.discard()
    if (error instanceof DatabaseError && discardsConnection(error)) session.retire()
    session.release(unfinished)
  }

  /** The server turned out to be a standby, or another one: connections to it are of no use. */
  drain(): void {
    this.pool.drain()
    this.#pipeline?.drain()
  }

  /** The server has stopped answering: what is in flight fails now, and not at its deadline. */
  cut(): void {
    for (const { client, inFlight } of this.#pipeline?.channels ?? []) if (inFlight.length > 0) cutClient(client)
    this.pool.cut()
  }

  report(
    sql: string,
    began: number,
    attempts: number,
    inTransaction: boolean,
    result: QueryResult<unknown> | undefined,
    error?: DatabaseError,
  ): void {
    const rowCount = result === undefined ? 0 : Number(result.numAffectedRows ?? result.rows.length)
    const durationMs = performance.now() - began
    this.events.emit('query', {
      sql,
      durationMs,
      rowCount,
      attempts,
      inTransaction,
      error: error?.code,
      target: this.source.description,
    })
  }

  async close(): Promise<void> {
    await Promise.all([this.pool.close(), this.#pipeline?.close(this.#settings.pool.drainTimeoutMs)])
    clearInterval(this.#watcher)
    this.breaker?.shutdown()
  }

  #send<Row>(text: StatementText, values: readonly unknown[], limits: Limits): Promise<StatementResult<Row>> {
    if (limits.signal === undefined) {
      const channel = this.#pipeline?.pick(text)
      if (channel !== undefined) {
        this.#watch()
        return new Promise((resolve, reject) => {
          channel.send(new Statement<Row>({ text, values, deadline: limits.deadline }, resolve, reject) as Statement)
        })
      }
    }
    return this.#sendOnSession(text, values, limits)
  }

  async #sendOnSession<Row>(
    text: StatementText,
    values: readonly unknown[],
    limits: Limits,
  ): Promise<StatementResult<Row>> {
    limits.signal?.throwIfAborted()
    const lease = { purpose: 'a statement', limits }
    const session = this.pool.tryAcquire(lease) ?? (await this.pool.acquire(lease))
    let failure: unknown
    try {
      return await this.sendOn<Row>(session, { text, values, deadline: limits.deadline }, limits.signal)
    } catch (cause) {
      const isAborted = limits.signal?.aborted === true && cause === limits.signal.reason
      failure = isAborted ? cause : toDatabaseError(cause, { sql: text.sql, target: this.source.description })
      throw failure
    } finally {
      this.giveBack(session, failure)
    }
  }

  /** Whether a failed statement may be sent again; waits as long as it should before that. */
  async mayRepeat(
    error: DatabaseError,
    text: StatementText,
    options: CallOptions | undefined,
    failures: number,
    limits: Limits,
  ): Promise<boolean> {
    const retry = this.#settings.retry
    if (error.code === 'READ_ONLY') this.drain()
    if (isAboutPreparation(error, failures)) return true
    if (error.code === 'QUERY_CANCELED') {
      // Not asked for: it stood behind one that was. The server has undone it.
      return failures === 1 && performance.now() - this.#sharedCancelAt < 2 * cancelGraceMs
    }
    if (retry === false || failures >= retry.attempts) return false
    const isSafe = ambiguous.has(error.code) ? text.isRead || options?.idempotent === true : repeatable.has(error.code)
    if (!isSafe || !(await pause(retry, failures, limits.deadline))) return false
    if (this.events.hears('retry')) this.events.emit('retry', { scope: 'statement', failures, error: error.code })
    return limits.signal?.aborted !== true
  }

  #watch(): void {
    if (this.#watcher !== undefined) return
    this.#watcher = setInterval(() => this.#checkDeadlines(), watchStepMs)
    this.#watcher.unref()
  }

  #checkDeadlines(): void {
    const now = performance.now()
    let inFlight = 0
    for (const channel of this.#pipeline?.channels ?? []) {
      inFlight += channel.inFlight.length
      for (const statement of channel.inFlight) if (statement.deadline <= now) this.#expireShared(channel, statement)
    }
    for (const { channel } of this.pool.sessions) {
      inFlight += channel.inFlight.length
      for (const statement of channel.inFlight) if (statement.deadline <= now) this.#expire(statement)
    }
    if (inFlight > 0) return
    clearInterval(this.#watcher)
    this.#watcher = undefined
  }

  #expire(statement: Statement): void {
    if (statement.isSettled) return
    const tookMs = Math.round(performance.now() - statement.sentAt)
    statement.abandon(
      new TimeoutError(
        'QUERY_TIMEOUT',
        `${this.source.description} gave no answer within the deadline (${tookMs} ms after ${statement.awaited}). ${statement.remedy}`,
        { sql: statement.text.sql },
      ),
    )
  }

  #expireShared(channel: Channel, statement: Statement): void {
    this.#expire(statement)
    // One that waits behind others is left alone until it is its turn: a cancel would hit the wrong one.
    if (channel.inFlight[0] !== statement || statement.isCancelSent) return
    statement.isCancelSent = true
    this.#sharedCancelAt = performance.now()
    void channel.cancel(this.source)
    setTimeout(() => channel.inFlight[0] === statement && cutClient(channel.client), cancelGraceMs).unref()
  }
}
