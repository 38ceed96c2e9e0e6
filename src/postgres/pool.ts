import type { ResolvedConfig } from '../core/config.ts'
import { DatabaseError, TimeoutError } from '../core/errors.ts'
import { type Client, type ConnectionSource, endClient } from './connection.ts'
import { discardsConnection, toDatabaseError } from './sqlstate.ts'

/** Settings of a {@link Pool}, resolved. */
export type PoolSettings = ResolvedConfig['pool']

/** A moment of a {@link Pool}. */
export interface PoolStats {
  readonly max: number
  /** Open connections, idle and borrowed. */
  readonly total: number
  readonly idle: number
  /** Callers that wait for a connection. */
  readonly waiting: number
}

interface Waiter {
  readonly resolve: (session: Session) => void
  readonly reject: (error: DatabaseError) => void
}

/**
 * The exclusive connections to one PostgreSQL. It survives backends that die (a dead idle connection is dropped, never
 * handed out), hands no open transaction to the next borrower, and lets nobody wait longer than `acquireTimeoutMs`.
 */
export class Pool {
  readonly source: ConnectionSource
  readonly #settings: PoolSettings
  readonly #max: number
  /** Last in, first out: what is rarely needed grows old and is closed. */
  readonly #idle: Session[] = []
  readonly #sessions = new Set<Session>()
  readonly #waiters = new Set<Waiter>()
  #opening = 0
  /** Farewells under way. */
  readonly #ending = new Set<Promise<void>>()
  #sweeper: NodeJS.Timeout | undefined
  #closing: Promise<void> | undefined
  #onEmpty: (() => void) | undefined

  constructor(source: ConnectionSource, settings: PoolSettings) {
    this.source = source
    this.#settings = settings
    this.#max = Math.min(settings.max, source.maxConnections)
  }

  /**
   * Borrows a connection, which {@link Session.release} gives back. Rejects with `POOL_TIMEOUT` when none became free
   * in time, with a `ConnectionError` when one could not be opened, with `DATABASE_CLOSED` after {@link close}.
   */
  acquire(): Promise<Session> {
    if (this.#closing) return Promise.reject(closed())
    const session = this.#idle.pop()
    if (session) return Promise.resolve(session.lend())
    return new Promise((resolve, reject) => this.#wait(resolve, reject))
  }

  stats(): PoolStats {
    return {
      max: this.#max,
      total: this.#sessions.size + this.#opening,
      idle: this.#idle.length,
      waiting: this.#waiters.size,
    }
  }

  /** Refuses new borrowers, waits up to `drainTimeoutMs` for the present ones, then cuts what is left. Never rejects. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  #wait(resolve: (session: Session) => void, reject: (error: DatabaseError) => void): void {
    const limitMs = this.#settings.acquireTimeoutMs
    const waiter: Waiter = {
      resolve: (session) => {
        clearTimeout(timer)
        resolve(session)
      },
      reject: (error) => {
        clearTimeout(timer)
        reject(error)
      },
    }
    const timer = setTimeout(() => {
      this.#waiters.delete(waiter)
      reject(new TimeoutError('POOL_TIMEOUT', this.#describeShortage(limitMs), { limitMs }))
    }, limitMs)
    this.#waiters.add(waiter)
    this.#openForWaiters()
  }

  /** Opens as many connections as there are callers without one, within the limit. */
  #openForWaiters(): void {
    while (this.#opening < this.#waiters.size && this.#sessions.size + this.#opening < this.#max) void this.#open()
  }

  async #open(): Promise<void> {
    this.#opening += 1
    try {
      const client = await this.source.connect()
      this.#opening -= 1
      this.#add(client)
    } catch (error) {
      this.#opening -= 1
      // One failed attempt answers one caller: each learns of its own failure, and an outage does not fan out.
      this.#takeWaiter()?.reject(toDatabaseError(error, { phase: 'connect', target: this.source.description }))
      this.#openForWaiters()
      this.#checkEmpty()
    }
  }

  #add(client: Client): void {
    const session = new Session(client, this.#settings.maxLifetimeMs, {
      free: (freed) => this.#offer(freed),
      drop: (dropped) => this.#drop(dropped),
    })
    this.#sessions.add(session)
    this.#offer(session)
  }

  #offer(session: Session): void {
    if (this.#closing || session.isExpired(performance.now())) return this.#drop(session)
    const waiter = this.#takeWaiter()
    if (waiter) return waiter.resolve(session.lend())
    this.#idle.push(session)
    this.#sweepLater()
  }

  #drop(session: Session): void {
    if (!this.#sessions.delete(session)) return
    const index = this.#idle.indexOf(session)
    if (index >= 0) this.#idle.splice(index, 1)
    const ended = endClient(session.client).finally(() => this.#ending.delete(ended))
    this.#ending.add(ended)
    this.#checkEmpty()
    if (!this.#closing) this.#openForWaiters()
  }

  #takeWaiter(): Waiter | undefined {
    const [waiter] = this.#waiters
    if (waiter) this.#waiters.delete(waiter)
    return waiter
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
    const { idleTimeoutMs } = this.#settings
    for (const session of [...this.#idle]) {
      const isUnused = idleTimeoutMs > 0 && now - session.since >= idleTimeoutMs
      if (isUnused || session.isExpired(now)) this.#drop(session)
    }
    if (this.#idle.length > 0) this.#sweepLater()
  }

  async #close(): Promise<void> {
    clearTimeout(this.#sweeper)
    for (const waiter of this.#waiters) waiter.reject(closed())
    this.#waiters.clear()
    for (const session of [...this.#idle]) this.#drop(session)
    await this.#drained()
    await Promise.all([...this.#ending, ...[...this.#sessions].map((session) => session.cut())])
    this.#sessions.clear()
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

  #describeShortage(limitMs: number): string {
    const now = performance.now()
    const holders = [...this.#sessions]
      .toSorted((one, other) => one.since - other.since)
      .slice(0, 3)
      .map((session) => `${Math.round(now - session.since)} ms: ${session.lastSql ?? 'no statement yet'}`)
    const held = holders.length === 0 ? '' : ` Held the longest: ${holders.join('; ')}.`
    return (
      `No connection to ${this.source.description} became free within ${limitMs} ms: ` +
      `${this.#sessions.size} of ${this.#max} are in use, ${this.#opening} are being opened, ${this.#waiters.size} more callers wait.${held} ` +
      'Raise pool.max or pool.acquireTimeoutMs, shorten transactions, or give back what is not needed.'
    )
  }
}

/** One borrowed connection and what is known of it. Not for use after {@link release}. */
export class Session {
  readonly client: Client
  /** When it was last borrowed or given back, as `performance.now()`. */
  since: number = performance.now()
  lastSql: string | undefined
  readonly #expires: number
  readonly #owner: SessionOwner
  #isBroken = false
  #isLent = false

  constructor(client: Client, maxLifetimeMs: number, owner: SessionOwner) {
    this.client = client
    this.#owner = owner
    // Up to a tenth less, so that connections opened together do not all end together.
    this.#expires =
      maxLifetimeMs === 0 ? Number.POSITIVE_INFINITY : this.since + maxLifetimeMs * (1 - Math.random() / 10)
    const onDeath = (): void => this.#die()
    client.on('error', onDeath)
    client.on('end', onDeath)
  }

  isExpired(now: number): boolean {
    return now >= this.#expires
  }

  /** Marks it as borrowed. */
  lend(): this {
    this.#isLent = true
    this.since = performance.now()
    this.lastSql = undefined
    return this
  }

  get inTransaction(): boolean {
    const status = this.client.getTransactionStatus()
    return status === 'T' || status === 'E'
  }

  /** Runs one statement. Fails with the typed error; a connection that cannot go on is not used again. */
  async query<Row>(sql: string, parameters: readonly unknown[] = []): Promise<QueryOutcome<Row>> {
    if (!this.#isLent) {
      throw new DatabaseError('INVALID_ARGUMENT', 'A connection was used after it was given back. Acquire a new one.', {
        sql,
      })
    }
    this.lastSql = sql
    const { inTransaction } = this
    try {
      return (await this.client.query(sql, parameters as unknown[])) as unknown as QueryOutcome<Row>
    } catch (cause) {
      const phase = /^\s*(commit|end)\b/i.test(sql) ? 'commit' : 'statement'
      const error = toDatabaseError(cause, { sql, inTransaction, phase })
      if (discardsConnection(error)) this.#isBroken = true
      throw error
    }
  }

  /** Gives the connection back. One with an open transaction or a failure behind it is closed instead. */
  release(discard = false): void {
    if (!this.#isLent) return
    this.#isLent = false
    this.since = performance.now()
    if (discard || this.#isBroken || this.inTransaction) this.#owner.drop(this)
    else this.#owner.free(this)
  }

  /** Ends it under its borrower, whose statement fails. */
  cut(): Promise<void> {
    this.#isBroken = true
    return endClient(this.client)
  }

  #die(): void {
    this.#isBroken = true
    // A borrower finds out by itself and gives it back.
    if (!this.#isLent) this.#owner.drop(this)
  }
}

interface SessionOwner {
  free(session: Session): void
  drop(session: Session): void
}

/** What `pg` reports of a statement. */
export interface QueryOutcome<Row> {
  readonly command: 'DELETE' | 'INSERT' | 'MERGE' | 'SELECT' | 'UPDATE'
  readonly rowCount: number
  readonly rows: Row[]
}

function closed(): DatabaseError {
  return new DatabaseError('DATABASE_CLOSED', 'The database is closed. Create a new one, or move close() to the end.')
}
