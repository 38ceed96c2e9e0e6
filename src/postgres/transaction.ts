import { setTimeout as sleep } from 'node:timers/promises'
import type { AccessMode, CompiledQuery, IsolationLevel, RootOperationNode } from 'kysely'
import { type Limits, limitsFrom, tighter } from '../core/deadline.ts'
import { DatabaseError, type ErrorCode, isDatabaseError, TimeoutError, TransactionError } from '../core/errors.ts'
import { pause } from '../resilience/retry.ts'
import {
  type Ambient,
  type CallOptions,
  type Engine,
  type ReplicaChoice,
  type StatementTarget,
  tablesOf,
} from './engine.ts'
import type { CallSite, Session, SessionStream } from './pool.ts'
import { isConnectionGone, toDatabaseError } from './sqlstate.ts'
import { sendable, type StatementRequest, type StatementResult } from './statement.ts'
import type { StatementText } from './statement-text.ts'

/** How a transaction runs. Only `timeoutMs` has a meaning in a nested one; the rest is that of the outermost. */
export interface TransactionOptions {
  /** @default the server's, which is `read committed` */
  readonly isolationLevel?: Exclude<IsolationLevel, 'snapshot'> | undefined
  readonly accessMode?: AccessMode | undefined
  /** A serializable, read-only transaction that waits until it cannot fail or make others fail. @default false */
  readonly deferrable?: boolean | undefined
  /** How long all of it may take, attempts included; then it is rolled back. @default no limit */
  readonly timeoutMs?: number | false | undefined
  /** Attempts in all when the server asks for a repetition. 1 is none. @default the `retry` setting, at least 5 */
  readonly attempts?: number | undefined
  /** Further codes after which the whole may run again; only sensible where its effects are all in the database. */
  readonly retryOn?: readonly ErrorCode[] | undefined
  readonly signal?: AbortSignal | undefined
  /**
   * Runs it read only on a replica, or on the primary where none is fit. When its server fails it runs again, whole, on
   * another. @default false
   */
  readonly replica?: ReplicaChoice | boolean | undefined
}

/** Run when a transaction has ended; what they return is awaited. */
export type Hook = () => unknown

/**
 * When a hook runs: right before COMMIT, which its failure does not stop; after it; after a rollback; or when nobody can tell
 * which of both it was.
 */
export type HookMoment = 'before' | 'commit' | 'rollback' | 'unknown'

// Serialization failures come in storms: more attempts than for a lone statement, and they are cheap.
const transactionAttempts = 5

/** Starts transactions on one engine, and knows the one of the present async context. */
export class Transactions {
  readonly #engine: Engine
  readonly #onHookFailure: (error: unknown) => void

  constructor(engine: Engine, onHookFailure: (error: unknown) => void) {
    this.#engine = engine
    this.#onHookFailure = onHookFailure
  }

  /** The transaction that statements of this async context join. */
  get current(): Scope | undefined {
    return this.#engine.ambient.getStore()?.scope as Scope | undefined
  }

  /** Runs `work` in a transaction, or in a savepoint of the one that surrounds it. */
  run<T>(work: () => Promise<T>, options: TransactionOptions = {}, origin?: CallSite): Promise<T> {
    const { current } = this
    return current ? this.#runNested(current, work, options) : this.#runOutermost(work, options, origin)
  }

  /** A transaction on a borrowed connection, for those who end it themselves. */
  begin(session: Session, opening: string, limits: Limits): Scope {
    return new Scope(this.#engine, session, undefined, opening, limits)
  }

  /** Ends a transaction well, and runs its hooks. */
  async commit(scope: Scope): Promise<void> {
    const hooks = await this.#commit(scope)
    if (hooks.length > 0) await this.#runHooks(hooks)
  }

  /** Undoes a transaction after a failure, and runs its hooks. Never rejects. */
  async rollback(scope: Scope, reason?: unknown): Promise<void> {
    await this.#runHooks(await this.#rollback(scope, reason))
  }

  /** Gives the hooks to run now. */
  async #commit(scope: Scope): Promise<readonly Hook[]> {
    if (scope.parent !== undefined) {
      await scope.commit()
      return none
    }
    const before = scope.takeHooks('before')
    if (before.length > 0) await this.#runHooks(before)
    await scope.commit()
    return scope.takeHooks('commit')
  }

  /** Gives the hooks to run now. */
  async #rollback(scope: Scope, reason: unknown): Promise<readonly Hook[]> {
    await scope.rollback()
    // Perhaps it was committed; then those of a rollback would be wrong.
    return scope.takeHooks(isOutcomeUnknown(reason) ? 'unknown' : 'rollback')
  }

  // Async, so that misuse is a rejection as everything else.
  async #runNested<T>(parent: Scope, work: () => Promise<T>, options: TransactionOptions): Promise<T> {
    let hooks = none
    try {
      return await this.#runToEnd(parent.nest(limitsFrom(options.timeoutMs, options.signal)), work, (given) => {
        hooks = given
      })
    } finally {
      if (hooks.length > 0) await this.#runHooks(hooks)
    }
  }

  async #runOutermost<T>(
    work: () => Promise<T>,
    options: TransactionOptions,
    origin: CallSite | undefined,
  ): Promise<T> {
    const engine = this.#engine
    const limits = limitsFrom(options.timeoutMs, options.signal)
    const retry = engine.retry === false ? undefined : engine.retry
    const attempts = options.attempts ?? Math.max(retry?.attempts ?? 1, transactionAttempts)
    const began = performance.now()
    for (let attempt = 1; ; attempt += 1) {
      const { breaker } = engine
      const generation = breaker?.isCalm === true ? breaker.generation : undefined
      const run = (): Promise<T> => this.#attempt(work, options, limits, origin)
      try {
        const result = await (breaker === undefined || generation !== undefined ? run() : breaker.run(run))
        this.#report('committed', began, attempt, undefined)
        return result
      } catch (error) {
        if (generation !== undefined) breaker?.note(error, generation)
        const reason = repeatableCause(error, options)
        if (reason && attempt < attempts && options.signal?.aborted !== true) {
          if (reason === 'READ_ONLY') engine.drain()
          if (await pause(retry ?? patience, attempt, limits.deadline)) {
            if (engine.events.hears('retry')) {
              engine.events.emit('retry', { scope: 'transaction', failures: attempt, error: reason })
            }
            continue
          }
        }
        const code = isDatabaseError(error) ? error.code : undefined
        this.#report(isOutcomeUnknown(error) ? 'unknown' : 'rolled back', began, attempt, code)
        throw error
      }
    }
  }

  async #attempt<T>(
    work: () => Promise<T>,
    options: TransactionOptions,
    limits: Limits,
    origin: CallSite | undefined,
  ): Promise<T> {
    const engine = this.#engine
    const outOfTime = (lack: DatabaseError): DatabaseError => unconnectedInTime(limits, lack)
    const lease = { purpose: 'a transaction', limits, origin, outOfTime }
    let failure: unknown
    let session: Session | undefined
    let hooks = none
    try {
      session = engine.pool.tryAcquire(lease) ?? (await engine.pool.acquire(lease))
      return await this.#runToEnd(this.begin(session, beginSql(options), limits), work, (given) => {
        hooks = given
      })
    } catch (error) {
      failure = error
      throw error
    } finally {
      if (session) engine.giveBack(session, failure)
      // The connection first: what a hook asks for may need it, where there is only one.
      if (hooks.length > 0) await this.#runHooks(hooks)
    }
  }

  /**
   * Runs the work with its statements joining the scope, within the limits, and ends the scope well or undoes it. What is to be
   * run after that is handed over.
   */
  async #runToEnd<T>(scope: Scope, work: () => Promise<T>, handOver: (hooks: readonly Hook[]) => void): Promise<T> {
    try {
      const result = await withinLimits(scope, () => this.#engine.ambient.run({ scope }, work))
      if (scope.isUnsettled) await scope.settle()
      handOver(await this.#commit(scope))
      return result
    } catch (error) {
      handOver(await this.#rollback(scope, error))
      throw error
    } finally {
      scope.end()
    }
  }

  async #runHooks(hooks: readonly Hook[]): Promise<void> {
    // The transaction is over: what a hook does is no part of it, nor can its failure undo anything.
    const outside: Ambient = { scope: undefined }
    for (const hook of hooks) {
      try {
        await this.#engine.ambient.run(outside, async () => hook())
      } catch (error) {
        this.#onHookFailure(error)
      }
    }
  }

  #report(
    outcome: 'committed' | 'rolled back' | 'unknown',
    began: number,
    attempts: number,
    error: ErrorCode | undefined,
  ): void {
    const { events } = this.#engine
    if (!events.hears('transaction')) return
    events.emit('transaction', { outcome, durationMs: performance.now() - began, attempts, error })
  }
}

const none: readonly Hook[] = []

const patience = { attempts: transactionAttempts, baseDelayMs: 10, maxDelayMs: 500 }

/** Codes whose cause passes when the whole transaction runs again. */
const wholeAgain: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'CACHED_PLAN_CHANGED',
  'CONNECTION_FAILED',
  'CONNECTION_LOST',
  'DEADLOCK',
  'IDLE_SESSION_TIMEOUT',
  'POOLER_REJECTED',
  'PREPARED_STATEMENT_LOST',
  'READ_ONLY',
  'RECOVERY_CONFLICT',
  'SERIALIZATION_FAILURE',
  'SERVER_CRASHED',
  'SERVER_SHUTDOWN',
  'SERVER_STARTING',
  'TOO_MANY_CONNECTIONS',
])

/**
 * Why a transaction may run again: its error, or the one behind it where the program wrapped it or went on after it.
 * Nothing of the transaction is in the database then.
 */
function repeatableCause(error: unknown, { retryOn = [], accessMode }: TransactionOptions): ErrorCode | undefined {
  for (let cause = error, depth = 0; cause instanceof Error && depth < 5; cause = cause.cause, depth += 1) {
    if (!isDatabaseError(cause)) continue
    if (isOutcomeUnknown(cause)) return undefined
    if (retryOn.includes(cause.code)) return cause.code
    // A write in a transaction that asked to be read only is its own mistake, not a failover.
    const isOwnMistake = cause.code === 'READ_ONLY' && accessMode === 'read only'
    if (wholeAgain.has(cause.code) && cause.retry !== 'none' && !isOwnMistake) return cause.code
  }
  return undefined
}

function isOutcomeUnknown(error: unknown): boolean {
  return isDatabaseError(error) && error.code === 'COMMIT_OUTCOME_UNKNOWN'
}

function beginSql({ isolationLevel, accessMode, deferrable }: TransactionOptions): string {
  const modes = [
    isolationLevel && `isolation level ${isolationLevel}`,
    accessMode,
    deferrable === undefined ? undefined : deferrable ? 'deferrable' : 'not deferrable',
  ].filter((mode) => mode !== undefined)
  return modes.length === 0 ? 'begin' : `begin ${modes.join(' ')}`
}

/** Its own limit ran out while it waited for a connection. */
function unconnectedInTime({ budgetMs }: Limits, lack: DatabaseError): TimeoutError {
  return new TimeoutError(
    'TRANSACTION_TIMEOUT',
    `The transaction got no connection within its ${budgetMs} ms, and nothing was sent. ${lack.message}`,
    { limitMs: budgetMs, cause: lack, retry: 'transaction' },
  )
}

function withinLimits<T>(scope: Scope, work: () => Promise<T>): Promise<T> {
  const { deadline, signal } = scope.limits
  return deadline === Number.POSITIVE_INFINITY && signal === undefined ? work() : withinSome(scope.limits, work)
}

async function withinSome<T>({ deadline, budgetMs, signal }: Limits, work: () => Promise<T>): Promise<T> {
  signal?.throwIfAborted()
  const stopped = Promise.withResolvers<never>()
  const onAbort = (): void => stopped.reject(signal?.reason)
  const onTimeout = (): void =>
    stopped.reject(
      new TimeoutError(
        'TRANSACTION_TIMEOUT',
        `The transaction did not end within ${budgetMs} ms and was rolled back. Do less in it, or raise its timeoutMs.`,
        { limitMs: budgetMs },
      ),
    )
  // It may have passed while a connection was waited for; Node warns of a negative time.
  const leftMs = Math.max(0, deadline - performance.now())
  const timer = deadline === Number.POSITIVE_INFINITY ? undefined : setTimeout(onTimeout, leftMs)
  signal?.addEventListener('abort', onAbort, { once: true })
  try {
    const working = work()
    // Once stopped, nobody waits for it any more; its later failure is that of a transaction that is over.
    working.catch(() => undefined)
    return await Promise.race([working, stopped.promise])
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', onAbort)
  }
}

/**
 * One transaction, or one savepoint in it. BEGIN and SAVEPOINT are sent together with the first statement that needs
 * them; without one, nothing is sent at all.
 */
export class Scope implements StatementTarget {
  readonly parent: Scope | undefined
  readonly limits: Limits
  readonly session: Session
  readonly #engine: Engine
  readonly #root: Scope
  readonly #opening: string
  readonly #depth: number
  /** Commands to go ahead of the next statement. */
  readonly #ahead: string[] = []
  readonly #running = new Set<{ readonly sql: string }>()
  readonly #hooks: Readonly<Record<HookMoment, Hook[]>> = { before: [], commit: [], rollback: [], unknown: [] }
  #hasBegun = false
  #hasEnded = false
  #child: Scope | undefined
  /** The first failure of a statement, after which the server takes no more until a rollback. */
  #failure: DatabaseError | undefined
  /** Of the outermost: the number by which the server knows it, once it has written. */
  #transactionId: string | undefined
  #hasOnlyRead = true

  constructor(engine: Engine, session: Session, parent: Scope | undefined, opening: string, limits: Limits) {
    this.#engine = engine
    this.session = session
    this.parent = parent
    this.#root = parent === undefined ? this : parent.#root
    this.#depth = parent === undefined ? 0 : parent.#depth + 1
    this.#opening = opening
    this.limits = parent === undefined ? limits : tighter(parent.limits, limits)
  }

  /** The one that ends with COMMIT. */
  get root(): Scope {
    return this.#root
  }

  /** Something was written, or may have been. */
  get hasWritten(): boolean {
    return !this.#root.#hasOnlyRead
  }

  /** It sees what was committed meanwhile, as each statement begins. */
  get readsCommitted(): boolean {
    return this.#root.#opening === 'begin' || /read (?:un)?committed/.test(this.#root.#opening)
  }

  /** A savepoint. One at a time: two at once on one connection would be in one another. */
  nest(limits: Limits): Scope {
    this.#assertUsable('A nested transaction')
    const name = `kanta_${this.#depth + 1}`
    const child = new Scope(this.#engine, this.session, this, `savepoint ${name}`, limits)
    this.#child = child
    return child
  }

  async execute<Row>(query: CompiledQuery, options?: CallOptions): Promise<StatementResult<Row>> {
    this.#assertUsable('A statement', query.sql)
    const engine = this.#engine
    const text = engine.texts.get(query.sql, query.query)
    text.uses += 1
    const own = engine.limits(options)
    const { signal } = tighter(own, this.limits)
    const root = this.#root
    const writes = !text.isRead
    if (writes) root.#hasOnlyRead = false
    const began = engine.events.hears('query') ? performance.now() : 0
    const running = { sql: query.sql }
    this.#running.add(running)
    try {
      const result = await engine.sendOn<Row>(
        this.session,
        {
          text,
          // First of all: an object's own conversion may send statements.
          values: sendable(query.sql, query.parameters),
          // That of the transaction has a timer of its own, and an error of its own.
          deadline: own.deadline,
          prefix: this.#commandsAhead(),
          suffix: writes && root.#transactionId === undefined ? root.#askTransactionId() : undefined,
        },
        signal,
      )
      // The server takes statements again: a rollback to a savepoint has undone its failure.
      if (this.#failure?.sqlState !== undefined) this.#failure = undefined
      if (typeof result.extra === 'string') root.#noteTransactionId(result.extra)
      if (engine.writes !== undefined) this.#noteWritten(text, query.query, options)
      if (began > 0) engine.report(query.sql, began, 1, true, result)
      return result
    } catch (cause) {
      if (signal?.aborted === true && cause === signal.reason) {
        this.#fail(interrupted(query.sql))
        throw cause
      }
      const error = toDatabaseError(cause, { sql: query.sql, inTransaction: true, target: engine.source.description })
      if (began > 0) engine.report(query.sql, began, 1, true, undefined, error)
      this.#fail(error)
      throw error
    } finally {
      this.#running.delete(running)
    }
  }

  /** Makes the connection that of a stream until {@link Session.stream} is cleared: its portal lets no statement through. */
  beginStream(stream: SessionStream, query: CompiledQuery): StreamBeginning {
    this.#assertUsable('A stream', query.sql)
    const engine = this.#engine
    const text = engine.texts.get(query.sql, query.query)
    if (!text.isRead) this.#root.#hasOnlyRead = false
    if (engine.writes !== undefined) this.#noteWritten(text, query.query)
    const request = { text, values: sendable(query.sql, query.parameters), prefix: this.#commandsAhead() }
    this.session.stream = stream
    return request
  }

  /** The connection is free again for statements. */
  endStream(stream: SessionStream, failure: unknown): void {
    if (this.session.stream === stream) this.session.stream = undefined
    const { sql } = stream
    this.noteOutcome(failure === undefined || isDatabaseError(failure) ? failure : interrupted(sql))
  }

  /** Something was written without {@link execute}: asks for the number by which the outcome of a lost COMMIT is found. */
  async noteWrite(): Promise<void> {
    const root = this.#root
    const text = root.#transactionId === undefined ? root.#askTransactionId() : undefined
    if (text === undefined) return
    try {
      text.uses += 1
      const { deadline } = this.#engine.limits(undefined)
      const { rows } = await this.#engine.sendOn<object>(this.session, { text, values: [], deadline }, undefined)
      const [answer] = Object.values(rows[0] ?? {}) as (string | null)[]
      if (typeof answer === 'string') root.#noteTransactionId(answer)
    } catch (cause) {
      const target = this.#engine.source.description
      const error = toDatabaseError(cause, { sql: text.sql, inTransaction: true, target })
      this.#fail(error)
      throw error
    }
  }

  #noteWritten(text: StatementText, query: RootOperationNode, options?: CallOptions): void {
    const tables = tablesOf(text, options)
    if (tables.length > 0) this.#engine.writes?.onWrittenIn(this, tables, query)
  }

  /** What became of a statement that was not sent by {@link execute}. */
  noteOutcome(error: DatabaseError | undefined): void {
    if (error !== undefined) this.#fail(error)
    else if (this.#failure?.sqlState !== undefined) this.#failure = undefined
  }

  addHook(moment: HookMoment, hook: Hook): void {
    // It sends nothing, so it may come inside the loop of a stream.
    this.#assertOpen(moment === 'rollback' ? 'afterRollback' : 'afterCommit')
    this.#hooks[moment].push(hook)
  }

  /** The hooks to run now. What waits for the outermost commit goes to the parent when a savepoint ends well. */
  takeHooks(moment: HookMoment): readonly Hook[] {
    const hooks = this.#hooks[moment].splice(0)
    if (moment !== 'before') for (const others of Object.values(this.#hooks)) others.length = 0
    return hooks
  }

  /** Something that was started in it has not come to its end. */
  get isUnsettled(): boolean {
    const hasOpenChild = this.#child !== undefined && !this.#child.#hasEnded
    return this.#running.size > 0 || hasOpenChild || this.session.stream !== undefined
  }

  /** Waits for what nobody awaited, and fails: its outcome was left to chance. */
  async settle(): Promise<never> {
    const [forgotten] = this.#running
    const { stream } = this.session
    stream?.stop()
    await this.session.channel.whenIdle()
    const sql = forgotten?.sql ?? stream?.sql
    const what = stream && !forgotten ? 'this stream had been read or left' : 'this statement had ended'
    throw new TransactionError(
      'TRANSACTION_MISUSE',
      `The transaction's function returned before ${sql === undefined ? 'a nested transaction had ended' : `${what}: ${sql}`}. ` +
        'The transaction was rolled back. Await everything that you start in it.',
      { sql },
    )
  }

  /** Ended, or part of one that has ended: the connection is somebody else's. */
  get #isOver(): boolean {
    return this.#hasEnded || (this.parent !== undefined && this.parent.#isOver)
  }

  async commit(): Promise<void> {
    if (this.#isOver) this.#assertOpen('The end of a nested transaction')
    if (this.session.stream) this.#assertUsable('The end of a transaction')
    if (this.#failure) {
      throw new TransactionError(
        'TRANSACTION_ABORTED',
        `A statement of the transaction had failed (${this.#failure.code}), so it was rolled back instead of committed. ` +
          'Let the error pass, or put what may fail into a nested transaction.',
        { cause: this.#failure, sql: this.#failure.sql },
      )
    }
    if (this.parent === undefined) await this.#commitOutermost()
    else {
      if (this.#hasBegun) this.parent.#ahead.push(`release ${this.#opening}`)
      for (const moment of Object.keys(this.#hooks) as HookMoment[]) {
        this.parent.#hooks[moment].push(...this.#hooks[moment].splice(0))
      }
    }
    this.end()
  }

  /** Undoes it. Never rejects: a connection on which that fails is closed, and the server undoes it then. */
  async rollback(): Promise<void> {
    if (this.#hasEnded) return
    this.#hasEnded = true
    if (!this.#hasBegun || (this.parent !== undefined && this.parent.#isOver)) return
    const isGone = this.#failure !== undefined && isConnectionGone(this.#failure)
    if (isGone || !(await this.session.interrupt())) return this.session.discard()
    const commands =
      this.parent === undefined ? ['rollback'] : [`rollback to ${this.#opening}`, `release ${this.#opening}`]
    try {
      for (const command of commands) await this.#command(command)
    } catch {
      this.session.discard()
    }
  }

  /** Calls when its connection is gone, for who waits for something else; gives what takes that back. */
  onLost(listener: (error: DatabaseError) => void): () => void {
    const target = this.#engine.source.description
    return this.session.channel.onEnd((cause) => listener(toDatabaseError(cause, { inTransaction: true, target })))
  }

  /** Nothing can be done in it any more. */
  end(): void {
    this.#hasEnded = true
    if (this.parent !== undefined && this.parent.#child === this) this.parent.#child = undefined
  }

  /** With the first write: its number and, once for each connection, the mark that a crash of the server changes. */
  #askTransactionId(): StatementText | undefined {
    const { session } = this
    // Others that speak the protocol may not have the functions.
    if (!session.knowsOutcomes) return undefined
    return this.#engine.texts.command(session.crashMark === undefined ? askNumberAndMark : askNumber)
  }

  #noteTransactionId(answer: string): void {
    const [id, mark] = answer.split(' ', 2)
    this.#transactionId = id
    if (mark !== undefined) this.session.crashMark = mark
  }

  #commandsAhead(): readonly StatementText[] | undefined {
    if (this.#hasBegun && this.#ahead.length === 0) return undefined
    const commands: string[] = []
    this.#collectAhead(commands)
    return commands.map((sql) => this.#engine.texts.command(sql))
  }

  #collectAhead(commands: string[]): void {
    if (this.parent !== undefined) this.parent.#collectAhead(commands)
    if (!this.#hasBegun) {
      this.#hasBegun = true
      commands.push(this.#opening)
    }
    commands.push(...this.#ahead.splice(0))
  }

  async #command(sql: string, prefix?: readonly StatementText[]): Promise<StatementResult<unknown>> {
    const text = this.#engine.texts.command(sql)
    text.uses += 1
    const { deadline } = this.#engine.limits(undefined)
    return this.#engine.sendOn(this.session, { text, values: [], deadline, prefix }, undefined)
  }

  async #commitOutermost(): Promise<void> {
    if (!this.#hasBegun) return
    try {
      const { command } = await this.#command('commit', this.#commandsAhead())
      if (command !== 'ROLLBACK') return
    } catch (cause) {
      const error = toDatabaseError(cause, { sql: 'commit', phase: 'commit', inTransaction: true })
      if (error.code !== 'QUERY_TIMEOUT' && error.code !== 'COMMIT_OUTCOME_UNKNOWN' && !isLostWith(error)) throw error
      this.#hasEnded = true
      this.session.discard()
      return this.#resolveOutcome(error)
    }
    this.#hasEnded = true
    throw new TransactionError(
      'TRANSACTION_ABORTED',
      'The server rolled the transaction back instead of committing it, because an earlier statement had failed. ' +
        'Look at its error; let it pass, or put what may fail into a nested transaction.',
    )
  }

  /** The answer to COMMIT was lost. Asks the server, on another connection, what became of the transaction. */
  async #resolveOutcome(cause: DatabaseError): Promise<void> {
    if (this.#hasOnlyRead) return
    const id = this.#transactionId
    const outcome = id === undefined ? undefined : await this.#askOutcome(id)
    if (outcome === 'committed') return
    if (outcome === 'aborted') {
      throw new DatabaseError(
        'CONNECTION_LOST',
        'The connection broke at COMMIT, and the server says that the transaction was rolled back. Run it again as a whole.',
        { cause, retry: 'transaction' },
      )
    }
    throw new TransactionError(
      'COMMIT_OUTCOME_UNKNOWN',
      `The connection to ${this.#engine.source.description} broke after COMMIT was sent, and the server could not be asked what ` +
        'became of the transaction. Look for what it wrote before you repeat it.',
      { cause },
    )
  }

  async #askOutcome(id: string): Promise<'aborted' | 'committed' | undefined> {
    const until = performance.now() + outcomeLimitMs
    const limits = { deadline: until, budgetMs: outcomeLimitMs }
    const text = this.#engine.texts.command(askStatus)
    while (performance.now() < until) {
      try {
        const session = await this.#engine.pool.acquire({ purpose: 'asking for the outcome of a transaction', limits })
        let failure: unknown
        try {
          const request = { text, values: [id], deadline: until }
          const { rows } = await this.#engine.sendOn<OutcomeRow>(session, request, undefined)
          const [row] = rows
          if (row?.status === 'aborted') return 'aborted'
          // After a crash the number may be that of another transaction, which took it because ours never reached the disk.
          if (row?.status === 'committed') return row.mark === this.session.crashMark ? 'committed' : undefined
          if (row?.status === null) return undefined
        } catch (error) {
          failure = toDatabaseError(error)
        } finally {
          this.#engine.giveBack(session, failure)
        }
      } catch {
        // Not reachable yet.
      }
      // Still in progress: the server has not noticed that the connection is gone.
      await sleep(outcomePollMs)
    }
    return undefined
  }

  /** A rollback to a savepoint of the caller's has undone what failed. */
  heal(): void {
    this.#failure = undefined
  }

  #fail(error: DatabaseError): void {
    this.#failure ??= error
    // A connection that is gone takes the transactions around this one with it.
    if (!this.session.channel.isOpen)
      for (let scope = this.parent; scope; scope = scope.parent) scope.#failure ??= error
  }

  #assertUsable(what: string, sql?: string): void {
    this.#assertOpen(what, sql)
    if (this.session.stream) throw insideStream(what, sql)
  }

  #assertOpen(what: string, sql?: string): void {
    if (this.#isOver) {
      throw new TransactionError(
        'TRANSACTION_MISUSE',
        `${what} came after its transaction had ended. Await everything inside the transaction's function.`,
        { sql },
      )
    }
    if (this.#child) {
      throw new TransactionError(
        'TRANSACTION_MISUSE',
        `${what} came while a nested transaction is open on the same connection, and would be undone with it. ` +
          'Run one after the other, or in transactions of their own.',
        { sql },
      )
    }
  }
}

/** What a stream in a transaction sends first. */
export type StreamBeginning = Pick<StatementRequest, 'prefix' | 'text' | 'values'>

/** The error for what would wait for ever behind the portal of a stream. */
export function insideStream(what: string, sql: string | undefined): TransactionError {
  return new TransactionError(
    'TRANSACTION_MISUSE',
    `${what} came inside the loop of a stream on the same connection, which that holds until its end: it would wait for ever. ` +
      'Collect the rows first, or stream outside the transaction.',
    { sql },
  )
}

interface OutcomeRow {
  readonly status: string | null
  readonly mark: string
}

// The statistics of a server that crashed begin anew; after an orderly restart they go on.
const crashMark = `(select coalesce(extract(epoch from stats_reset), 0)::text from pg_stat_bgwriter)`
const askNumber = 'select pg_current_xact_id_if_assigned()::text'
const askNumberAndMark = `select pg_current_xact_id_if_assigned()::text || ' ' || ${crashMark}`
const askStatus = `select pg_xact_status($1::text::xid8) as status, ${crashMark} as mark`
const outcomeLimitMs = 5_000
const outcomePollMs = 50

function isLostWith(error: DatabaseError): boolean {
  return error.code === 'CONNECTION_LOST' || error.code === 'SERVER_SHUTDOWN' || error.code === 'SERVER_CRASHED'
}

function interrupted(sql: string): DatabaseError {
  return new DatabaseError('QUERY_CANCELED', 'The statement was given up by its caller.', { sql })
}
