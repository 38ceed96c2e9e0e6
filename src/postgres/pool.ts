import { setTimeout as sleep } from 'node:timers/promises'
import type { ResolvedConfig } from '../core/config.ts'
import type { Limits } from '../core/deadline.ts'
import { ConnectionError, databaseClosed, DatabaseError, TimeoutError } from '../core/errors.ts'
import { Channel } from './channel.ts'
import type { PreparationPolicy } from './prepared-statements.ts'
import { type ConnectionSource, cutClient, parameterOf } from './connection.ts'
import { toDatabaseError } from './sqlstate.ts'

/** Settings of a {@link Pool}, resolved. */
export type PoolSettings = ResolvedConfig['pool']

/** A moment of a {@link Pool}. */
export interface PoolStats {
  readonly max: number
  /** Open connections, idle and borrowed, and those being opened. */
  readonly total: number
  readonly idle: number
  /** Callers that wait for a connection. */
  readonly waiting: number
  /** Who has borrowed connections, the longest first. */
  readonly holders: readonly LeaseHolder[]
}

/** One borrowed connection. */
export interface LeaseHolder {
  /** What it was borrowed for. */
  readonly purpose: string
  readonly ageMs: number
  /** The last statement, with its placeholders. */
  readonly lastSql: string | undefined
  readonly transaction: 'failed' | 'none' | 'open'
  /** Where the program borrowed it, when that was recorded. */
  readonly callSite: string | undefined
}

/** What a borrower says of itself. */
export interface LeaseRequest {
  readonly purpose: string
  /** Of the whole call: all of its attempts come with the same object. */
  readonly limits?: Limits | undefined
  readonly origin?: CallSite | undefined
  /** What to reject with when the limits of the call ran out, and not those of the pool. @default what the pool lacked */
  readonly outOfTime?: ((lack: DatabaseError) => DatabaseError) | undefined
}

/** Where the program asked; put into words only when the lease is reported. */
export interface CallSite {
  readonly stack?: string
}

/** The place that called `callee`, at the cost of a microsecond; the first that is not one of `ours`. */
export function callSiteAbove(callee: (...args: never[]) => unknown, ours?: RegExp): CallSite {
  const site: CallSite = {}
  const { stackTraceLimit } = Error
  Error.stackTraceLimit = ours === undefined ? 1 : 8
  Error.captureStackTrace(site, callee)
  Error.stackTraceLimit = stackTraceLimit
  if (ours === undefined) return site
  return {
    get stack() {
      return site.stack
        ?.split('\n')
        .filter((line) => !ours.test(line))
        .join('\n')
    },
  } as CallSite
}

interface Waiter {
  readonly request: LeaseRequest
  readonly settle: (session: Session | DatabaseError | unknown) => void
}

/** What a pool reports. */
export interface PoolObserver {
  /** A borrower has held a connection longer than `leakWarningMs`. */
  onLeak(holder: LeaseHolder): void
  /** A caller got a connection after waiting. */
  onAcquire(waitedMs: number): void
}

/** A server that takes no connections is asked again after this long, and after twice as long each time, … */
const firstPauseMs = 20
/** … up to this: no storm for the server, and no long wait once it is back. */
const longestPauseMs = 250

/** What is known of a server that took no connection when it was last asked. */
interface Reluctance {
  /** How often in a row. */
  readonly times: number
  readonly cause: unknown
  /** When it may be asked again, as `performance.now()`. */
  readonly until: number
}

/**
 * The exclusive connections to one PostgreSQL. It survives backends that die (a dead idle connection is dropped, never
 * handed out), hands neither an open transaction nor a running statement to the next borrower, bounds how long and how
 * many may wait, and knows who holds what.
 */
export class Pool {
  readonly source: ConnectionSource
  readonly #settings: PoolSettings
  readonly #prepared: PreparationPolicy
  readonly #observer: PoolObserver | undefined
  readonly #max: number
  /** Last in, first out: what is rarely needed grows old and is closed. */
  readonly #idle: Session[] = []
  readonly #sessions = new Set<Session>()
  readonly #waiters = new Set<Waiter>()
  #opening = 0
  #reluctance: Reluctance | undefined
  /** It has taken a connection again: no more are opened at once than there are, so that not all come back at one moment. */
  #isRecovering = false
  /** Calls, by their limits, that have waited for an attempt which failed: their repetitions do not wait for another. */
  readonly #refused = new WeakSet<Limits>()
  #asking: NodeJS.Timeout | undefined
  readonly #connecting = new AbortController()
  /** Farewells under way. */
  readonly #ending = new Set<Promise<void>>()
  #sweeper: NodeJS.Timeout | undefined
  #closing: Promise<void> | undefined
  #onEmpty: (() => void) | undefined

  constructor(source: ConnectionSource, settings: PoolSettings, prepared: PreparationPolicy, observer?: PoolObserver) {
    this.source = source
    this.#settings = settings
    this.#prepared = prepared
    this.#observer = observer
    this.#max = Math.min(settings.max, source.maxConnections)
  }

  /** The open connections, for whoever watches what is in flight. */
  get sessions(): Iterable<Session> {
    return this.#sessions
  }

  /** Borrows a connection that is idle now, if there is one. */
  tryAcquire(request: LeaseRequest): Session | undefined {
    if (this.#closing) return undefined
    const session = this.#idle.pop()
    return session?.lend(request)
  }

  /**
   * Borrows a connection, which {@link Session.release} gives back. Rejects with `POOL_TIMEOUT` when none became free
   * in time, `POOL_OVERLOADED` when too many wait already, a `ConnectionError` when none could be opened: of a server that
   * has refused one, the next attempt is waited for, once for each call. `DATABASE_CLOSED` after {@link close}, and with the signal's reason when it is aborted.
   */
  acquire(request: LeaseRequest): Promise<Session> {
    if (this.#closing) return Promise.reject(databaseClosed())
    const session = this.tryAcquire(request)
    if (session) return Promise.resolve(session)
    const { maxWaiting } = this.#settings
    const isFull = this.#waiters.size >= maxWaiting
    if (this.#isRefused && (isFull || (this.#opening === 0 && this.#comesTooEarly(request)))) {
      return Promise.reject(this.#unconnected(this.#reluctance?.cause))
    }
    if (isFull) return Promise.reject(this.#overloaded(maxWaiting))
    return new Promise((resolve, reject) => this.#wait(request, resolve, reject))
  }

  /** Opens connections until `min` are open. Resolves when one is, rejects when none could be opened. */
  async prewarm(): Promise<void> {
    const wanted = Math.min(Math.max(this.#settings.min, 1), this.#max)
    const opened = await Promise.allSettled(
      Array.from({ length: wanted }, () => this.acquire({ purpose: 'prewarming' })),
    )
    for (const attempt of opened) if (attempt.status === 'fulfilled') attempt.value.release()
    const [first] = opened
    if (first?.status === 'rejected' && opened.every((attempt) => attempt.status === 'rejected')) throw first.reason
  }

  stats(): PoolStats {
    const now = performance.now()
    const borrowed = [...this.#sessions].filter((session) => session.isLent)
    return {
      max: this.#max,
      total: this.#sessions.size + this.#opening,
      idle: this.#idle.length,
      waiting: this.#waiters.size,
      holders: borrowed.toSorted((one, other) => one.since - other.since).map((session) => session.holder(now)),
    }
  }

  /** Closes all idle connections and those in use when they come back: the server is not what it was. */
  drain(): void {
    for (const session of this.#sessions) session.retire()
    for (const session of [...this.#idle]) this.#drop(session)
  }

  /** The server has stopped answering: fails what is in flight, and who waits for a connection. */
  cut(): void {
    for (const { channel } of this.#sessions) if (channel.inFlight.length > 0) cutClient(channel.client)
    for (const waiter of [...this.#waiters]) {
      waiter.settle(
        new ConnectionError(
          'CONNECTION_FAILED',
          `${this.source.description} stopped answering while a connection to it was awaited; nothing was sent. ` +
            'Try again, and check that the server runs.',
        ),
      )
    }
  }

  /** Refuses new borrowers, waits up to `drainTimeoutMs` for the present ones, then cuts what is left. Never rejects. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  #wait(request: LeaseRequest, resolve: (session: Session) => void, reject: (reason: unknown) => void): void {
    const began = performance.now()
    const { signal } = request.limits ?? {}
    const limitMs = this.#limitMs(request)
    const onAbort = (): void => settle(signal?.reason)
    const settle = (outcome: unknown): void => {
      this.#waiters.delete(waiter)
      clearTimeout(timer)
      signal?.removeEventListener('abort', onAbort)
      if (!(outcome instanceof Session)) return reject(outcome)
      this.#observer?.onAcquire(performance.now() - began)
      resolve(outcome)
    }
    const waiter: Waiter = { request, settle }
    const onTimeout = (): void => {
      const lack = this.#waitedInVain(Math.round(limitMs))
      settle(limitMs < this.#settings.acquireTimeoutMs ? (request.outOfTime?.(lack) ?? lack) : lack)
    }
    const timer = setTimeout(onTimeout, limitMs)
    signal?.addEventListener('abort', onAbort, { once: true })
    this.#waiters.add(waiter)
    this.#openForWaiters()
  }

  /** How long a caller waits, from now. */
  #limitMs({ limits }: LeaseRequest): number {
    const { deadline = Number.POSITIVE_INFINITY } = limits ?? {}
    return Math.max(0, Math.min(this.#settings.acquireTimeoutMs, deadline - performance.now()))
  }

  /** The next attempt is not this caller's: it has waited for one, or has no time to. */
  #comesTooEarly(request: LeaseRequest): boolean {
    const pauseMs = this.#pauseMs()
    if (pauseMs <= 0) return false
    return pauseMs >= this.#limitMs(request) || (request.limits !== undefined && this.#refused.has(request.limits))
  }

  /** Opens as many connections as there are callers without one, within the limit; fewer where the last could not be. */
  #openForWaiters(): void {
    const most = Math.min(this.#waiters.size, this.#mostAtOnce)
    if (this.#opening >= most) return
    const pauseMs = this.#pauseMs()
    if (pauseMs > 0) return this.#openLater(pauseMs)
    while (this.#opening < most && this.#sessions.size + this.#opening < this.#max) void this.#open()
  }

  get #mostAtOnce(): number {
    if (this.#reluctance !== undefined) return 1
    return this.#isRecovering ? Math.max(1, this.#sessions.size) : Number.POSITIVE_INFINITY
  }

  /** A waiter may have been promised a connection that somebody gives back, or else the next attempt. */
  #openLater(pauseMs: number): void {
    this.#asking ??= setTimeout(() => {
      this.#asking = undefined
      this.#openForWaiters()
    }, pauseMs).unref()
  }

  /** How long the server is left alone yet. */
  #pauseMs(): number {
    return this.#reluctance === undefined ? 0 : this.#reluctance.until - performance.now()
  }

  /** Nothing can come back, and that the server took no connection was no accident. */
  get #isRefused(): boolean {
    return this.#sessions.size === 0 && (this.#reluctance?.times ?? 0) > 1
  }

  async #open(): Promise<void> {
    this.#opening += 1
    try {
      const client = await this.source.connect({ signal: this.#connecting.signal })
      this.#opening -= 1
      this.#isRecovering ||= this.#reluctance !== undefined
      this.#reluctance = undefined
      const channel = new Channel(client, this.#prepared, () => session.died())
      const session = new Session(channel, this.#settings, this.source, this.#observer, {
        free: (freed) => this.#offer(freed),
        drop: (dropped) => this.#drop(dropped),
      })
      this.#sessions.add(session)
      this.#offer(session)
      // Others have waited for this one attempt, or for one of those that came of it.
      if (this.#isRecovering) this.#openForWaiters()
      this.#isRecovering &&= this.#opening > 0
    } catch (error) {
      this.#opening -= 1
      this.#isRecovering = false
      this.#noteReluctance(error)
      // One failed attempt answers one caller, so that an accident does not fan out.
      const [waiter] = this.#waiters
      if (waiter) this.#refuse(waiter, error)
      if (this.#isRefused && this.#opening === 0) for (const other of [...this.#waiters]) this.#refuse(other, error)
      this.#openForWaiters()
      this.#checkEmpty()
    }
  }

  #noteReluctance(cause: unknown): void {
    const now = performance.now()
    const { times = 0, until = 0 } = this.#reluctance ?? {}
    // Attempts that ran side by side are one.
    if (now < until) return
    const pauseMs = Math.min(firstPauseMs * 2 ** times, longestPauseMs)
    this.#reluctance = { times: times + 1, cause, until: now + pauseMs * (0.5 + Math.random() / 2) }
  }

  #refuse(waiter: Waiter, cause: unknown): void {
    const { limits } = waiter.request
    if (limits !== undefined) this.#refused.add(limits)
    waiter.settle(this.#unconnected(cause))
  }

  /** For each caller one of its own. */
  #unconnected(cause: unknown): DatabaseError {
    return toDatabaseError(cause, { phase: 'connect', target: this.source.description })
  }

  #offer(session: Session): void {
    if (this.#closing || session.isExpired(performance.now())) return this.#drop(session)
    const [waiter] = this.#waiters
    if (waiter) return waiter.settle(session.lend(waiter.request))
    this.#idle.push(session)
    this.#sweepLater()
  }

  #drop(session: Session): void {
    if (!this.#sessions.delete(session)) return
    const index = this.#idle.indexOf(session)
    if (index >= 0) this.#idle.splice(index, 1)
    const ended = session.channel.end().finally(() => this.#ending.delete(ended))
    this.#ending.add(ended)
    this.#checkEmpty()
    if (this.#closing) return
    this.#openForWaiters()
    // One for one: an outage does not become a storm of attempts.
    if (this.#sessions.size + this.#opening < this.#settings.min && this.#pauseMs() <= 0) void this.#open()
  }

  /** One timer for all idle connections, none while there are none. */
  #sweepLater(): void {
    const { idleTimeoutMs, maxLifetimeMs } = this.#settings
    const limits = [idleTimeoutMs, maxLifetimeMs].filter((limit) => limit > 0)
    if (this.#sweeper || limits.length === 0) return
    this.#sweeper = setTimeout(() => this.#sweep(), Math.max(Math.min(...limits) / 4, 10))
    this.#sweeper.unref()
  }

  #sweep(): void {
    this.#sweeper = undefined
    const now = performance.now()
    const { idleTimeoutMs, min } = this.#settings
    for (const session of [...this.#idle]) {
      const isUnused = idleTimeoutMs > 0 && now - session.since >= idleTimeoutMs && this.#sessions.size > min
      if (isUnused || session.isExpired(now)) this.#drop(session)
    }
    if (this.#idle.length > 0) this.#sweepLater()
  }

  async #close(): Promise<void> {
    clearTimeout(this.#sweeper)
    clearTimeout(this.#asking)
    for (const waiter of [...this.#waiters]) waiter.settle(databaseClosed())
    for (const session of [...this.#idle]) this.#drop(session)
    this.#connecting.abort()
    await this.#drained()
    // A server that is asked to stop what it runs does not go on alone after the connection is gone.
    for (const { channel } of this.#sessions) if (channel.inFlight.length > 0) channel.abort(this.source)
    for (const session of [...this.#sessions]) this.#drop(session)
    await Promise.all(this.#ending)
  }

  #drained(): Promise<void> {
    if (this.#isEmpty()) return Promise.resolve()
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, this.#settings.drainTimeoutMs)
      this.#onEmpty = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  }

  #checkEmpty(): void {
    if (this.#isEmpty()) this.#onEmpty?.()
  }

  #isEmpty(): boolean {
    return this.#sessions.size === 0 && this.#opening === 0
  }

  #overloaded(maxWaiting: number): DatabaseError {
    return new DatabaseError(
      'POOL_OVERLOADED',
      `${maxWaiting} callers wait for a connection to ${this.source.description} already, so this one was turned away.` +
        `${this.#describeHolders()} Shed load earlier, raise pool.max or pool.maxWaiting, or shorten transactions.`,
    )
  }

  /** Either all connections were in use, or the server did not open another: that is a failure of the server. */
  #waitedInVain(limitMs: number): DatabaseError {
    if (this.#reluctance && this.#sessions.size === 0) return this.#unconnected(this.#reluctance.cause)
    if (this.#opening === 0 || this.#sessions.size >= this.#max) return this.#shortage(limitMs)
    return new ConnectionError(
      'CONNECTION_FAILED',
      `${this.source.description} did not open a connection within ${limitMs} ms; nothing was sent. ` +
        'Check that the server runs and answers, or raise the time limit.',
    )
  }

  #shortage(limitMs: number): TimeoutError {
    return new TimeoutError(
      'POOL_TIMEOUT',
      `No connection to ${this.source.description} became free within ${limitMs} ms: ${this.#sessions.size} of ${this.#max} are ` +
        `in use, ${this.#opening} are being opened, ${this.#waiters.size} more callers wait.${this.#describeHolders()}` +
        `${this.#reluctance ? ` The server takes no more now (${this.#unconnected(this.#reluctance.cause).code}).` : ''} ` +
        'Raise pool.max or pool.acquireTimeoutMs, shorten transactions, or give back what is not needed.',
      { limitMs, cause: this.#reluctance?.cause },
    )
  }

  #describeHolders(): string {
    const longest = this.stats().holders.slice(0, 3).map(describeHolder)
    return longest.length === 0 ? '' : ` Held the longest: ${longest.join('; ')}.`
  }
}

/** A lease in words. */
export function describeHolder(holder: LeaseHolder): string {
  const transaction = holder.transaction === 'none' ? '' : `, transaction ${holder.transaction}`
  const place = holder.callSite ? ` at ${holder.callSite}` : ''
  return `${Math.round(holder.ageMs)} ms by ${holder.purpose}${place}${transaction}, last ${holder.lastSql ?? 'nothing'}`
}

// A backend that was asked to stop says so within milliseconds; one that does not is given up.
const settleMs = 1_000
const cancelAgainMs = 50

/** One borrowed connection and what is known of it. Not for use after {@link release}. */
export class Session {
  readonly channel: Channel
  /** When it was last borrowed or given back, as `performance.now()`. */
  since: number = performance.now()
  lastSql: string | undefined
  /** Changes with a crash of the server; asked for once. */
  crashMark: string | undefined
  /** The server is PostgreSQL 14 or later, by what only that reports. */
  readonly knowsOutcomes: boolean
  isLent = false
  /** The stream that has the connection to itself. */
  stream: SessionStream | undefined
  readonly #expires: number
  readonly #leakWarningMs: number
  readonly #source: ConnectionSource
  readonly #observer: PoolObserver | undefined
  readonly #owner: SessionOwner
  #request: LeaseRequest | undefined
  #isBroken = false
  #leakTimer: NodeJS.Timeout | undefined
  #interruption: Promise<boolean> | undefined

  constructor(
    channel: Channel,
    settings: PoolSettings,
    source: ConnectionSource,
    observer: PoolObserver | undefined,
    owner: SessionOwner,
  ) {
    const { maxLifetimeMs, leakWarningMs } = settings
    this.channel = channel
    this.knowsOutcomes = parameterOf(channel.client, 'in_hot_standby') !== undefined
    this.#source = source
    this.#observer = observer
    this.#owner = owner
    this.#leakWarningMs = leakWarningMs
    // Up to a tenth less, so that connections opened together do not all end together.
    this.#expires =
      maxLifetimeMs === 0 ? Number.POSITIVE_INFINITY : this.since + maxLifetimeMs * (1 - Math.random() / 10)
  }

  isExpired(now: number): boolean {
    return now >= this.#expires || this.#isBroken
  }

  /** Marks it as borrowed. */
  lend(request: LeaseRequest): this {
    this.#request = request
    this.isLent = true
    this.since = performance.now()
    this.lastSql = undefined
    if (this.#leakWarningMs > 0) {
      this.#leakTimer = setTimeout(() => this.#observer?.onLeak(this.holder(performance.now())), this.#leakWarningMs)
      this.#leakTimer.unref()
    }
    return this
  }

  /** The borrower is alive: the leak warning counts from now. */
  noteUse(): void {
    this.#leakTimer?.refresh()
  }

  get transactionStatus(): LeaseHolder['transaction'] {
    const status = this.channel.client.getTransactionStatus()
    if (status === 'T') return 'open'
    return status === 'E' ? 'failed' : 'none'
  }

  holder(now: number): LeaseHolder {
    const { purpose = 'nobody', origin } = this.#request ?? {}
    return {
      purpose,
      ageMs: now - this.since,
      lastSql: this.lastSql,
      transaction: this.transactionStatus,
      callSite: origin && describeSite(origin),
    }
  }

  /** It is closed when it comes back. */
  retire(): void {
    this.#isBroken = true
  }

  /**
   * Gives the connection back. One with an open transaction or a failure behind it is closed. One that still runs a
   * statement is not handed on before the server has answered it; the statement is canceled, unless it is to be
   * waited for.
   */
  release(unfinished: 'cancel' | 'wait' = 'cancel'): void {
    if (!this.isLent) return
    this.stream?.stop()
    const isBusy = this.channel.inFlight.length > 0 || this.#interruption !== undefined
    if (isBusy && this.channel.isOpen && !this.#isBroken) {
      void this.#settle(unfinished)
      return
    }
    this.#giveBack()
  }

  /** Closes it under whoever still uses it, and asks the server to stop what it runs. */
  discard(): void {
    this.#isBroken = true
    if (this.channel.inFlight.length > 0) this.channel.abort(this.#source)
    this.#giveBack()
  }

  /** The connection has ended by itself. */
  died(): void {
    this.#isBroken = true
    // A borrower finds out by itself and gives it back.
    if (!this.isLent) this.#owner.drop(this)
  }

  /**
   * Stops what is in flight on the connection now, and nothing that is sent later. Resolves when the server has answered it and nothing
   * more can be stopped; to false when it does not, or the connection is gone.
   */
  interrupt(): Promise<boolean> {
    // Two at once could cancel what is sent after the first of them has succeeded.
    this.#interruption ??= this.#interrupt().finally(() => (this.#interruption = undefined))
    return this.#interruption
  }

  async #interrupt(): Promise<boolean> {
    const { channel } = this
    this.stream?.stop()
    const until = performance.now() + settleMs
    for (const statement of [...channel.inFlight]) {
      while (channel.inFlight.includes(statement)) {
        if (!channel.isOpen || performance.now() >= until) return false
        // One that comes before the statement has begun stops nothing, so it is sent again.
        await channel.cancelOnly(this.#source)
        await Promise.race([channel.whenAnswered(statement), sleep(cancelAgainMs, undefined, { ref: false })])
      }
    }
    return channel.isOpen
  }

  async #settle(unfinished: 'cancel' | 'wait'): Promise<void> {
    await this.#interruption
    if (unfinished === 'wait') await this.channel.whenIdle()
    else if (!(await this.interrupt())) this.#isBroken = true
    this.#giveBack()
  }

  #giveBack(): void {
    clearTimeout(this.#leakTimer)
    this.isLent = false
    this.stream = undefined
    this.#request = undefined
    this.since = performance.now()
    if (this.#isBroken || !this.channel.isOpen || this.transactionStatus !== 'none') this.#owner.drop(this)
    else this.#owner.free(this)
  }
}

/** A stream on a borrowed connection, for whoever must end it. */
export interface SessionStream {
  readonly sql: string
  /** Ends it for its reader with an error, and on the server. */
  stop(): void
}

interface SessionOwner {
  free(session: Session): void
  drop(session: Session): void
}

function describeSite({ stack = '' }: CallSite): string | undefined {
  return stack.split('\n')[1]?.trim().replace(/^at /, '')
}
