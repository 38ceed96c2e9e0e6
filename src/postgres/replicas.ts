import { setTimeout as sleep } from 'node:timers/promises'
import type { CompiledQuery } from 'kysely'
import type { ReplicaReadOptions } from '../core/options.ts'
import { type Limits, limitsFrom } from '../core/deadline.ts'
import { DatabaseError, type ErrorCode, isDatabaseError } from '../core/errors.ts'
import type { CallOptions, Engine, EngineStats, ReplicaChoice, ReplicaState, ReadTarget } from './engine.ts'
import type { EngineParts } from './executor.ts'
import type { CallSite } from './pool.ts'
import type { StatementResult } from './statement.ts'
import type { TransactionOptions } from './transaction.ts'

/** A moment of one replica. */
export interface ReplicaStats extends EngineStats {
  /** Where it is, without credentials. */
  readonly target: string
  readonly state: ReplicaState
  /** `primary` once it has been promoted; `unknown` before it has answered for the first time. */
  readonly role: 'primary' | 'standby' | 'unknown'
  /** How far it is behind, to the interval of the checks; `undefined` while that is not known. */
  readonly lagMs: number | undefined
  /** Statements and transactions that it was given. */
  readonly reads: number
}

type ReplicaReadSettings = { readonly [Key in keyof ReplicaReadOptions]-?: number }

/**
 * After these a read is sent to another server: this one cannot answer, or not yet. A replica may be behind by a
 * migration, so a table that it does not know may exist.
 */
const elsewhere: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'AUTHENTICATION_FAILED',
  'CIRCUIT_OPEN',
  'CONFIGURATION_LIMIT',
  'CONNECTION_FAILED',
  'CONNECTION_LOST',
  'DATABASE_DROPPED',
  'DATABASE_NOT_FOUND',
  'IDLE_SESSION_TIMEOUT',
  'OUT_OF_MEMORY',
  'POOLER_REJECTED',
  'POOL_OVERLOADED',
  'POOL_TIMEOUT',
  'RECOVERY_CONFLICT',
  'SERIALIZATION_FAILURE',
  'SERVER_CRASHED',
  'SERVER_SHUTDOWN',
  'SERVER_STARTING',
  'SYSTEM_ERROR',
  'TLS_FAILED',
  'TOO_MANY_CONNECTIONS',
  'UNDEFINED_OBJECT',
])
/** Of these, what says that the server itself is not there: nobody else is sent to it until it has answered a check. */
const absence: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'CONNECTION_FAILED',
  'CONNECTION_LOST',
  'SERVER_CRASHED',
  'SERVER_SHUTDOWN',
  'SERVER_STARTING',
])

const writingNodes: ReadonlySet<string> = new Set([
  'DeleteQueryNode',
  'InsertQueryNode',
  'MergeQueryNode',
  'UpdateQueryNode',
])

// A server that is asked for its position and says nothing for so long is taken for frozen.
const minCheckTimeoutMs = 1_000
const askReplica = 'select pg_is_in_recovery() as standby, pg_last_wal_replay_lsn()::text as position'
const askPrimary = 'select pg_current_wal_lsn()::text as position'
const askToken = `select pg_current_wal_insert_lsn()::text as position, current_setting('wal_block_size') as page`
/** The header of a page of the log. */
const pageHeader = 24n
// Waiting reads ask this often, all of one replica together.
const positionPollMs = 10

/**
 * The replicas of a primary: which of them are there and how far behind, and so where a read may go. A read goes to one
 * of those that are the least behind, evenly; where none is fit, or those that are fit fail, to the primary.
 */
export class Replicas implements ReadTarget {
  readonly #primary: EngineParts
  readonly #replicas: readonly Replica[]
  readonly #settings: ReplicaReadSettings
  readonly #history: PositionHistory
  #turn = 0
  #timer: NodeJS.Timeout | undefined
  #checking: Promise<void> | undefined
  #isClosed = false

  constructor(primary: EngineParts, replicas: readonly EngineParts[], settings: ReplicaReadSettings) {
    this.#primary = primary
    this.#settings = settings
    this.#history = new PositionHistory(settings.maxLagMs)
    this.#replicas = replicas.map((parts) => new Replica(parts, settings, this.#history))
  }

  /** Asks all replicas for the first time, and from then on at the interval. */
  async start(): Promise<void> {
    await this.#checkAll()
  }

  /** Runs a read on a replica that is fit for it, or on the primary. */
  async execute<Row>(query: CompiledQuery, options: CallOptions): Promise<StatementResult<Row>> {
    const kind = query.query.kind
    if (writingNodes.has(kind)) throw refusedWrite(query.sql)
    const { replica: choice, ...rest } = options
    const limits = this.#primary.engine.limits(options)
    return this.#goThrough(choiceOf(choice), limits, 'statement', (parts) =>
      parts.engine.execute<Row>(query, { ...rest, timeoutMs: remaining(limits) }),
    )
  }

  /** Runs a read-only transaction on a replica that is fit for it, or on the primary. */
  async transaction<T>(
    work: () => Promise<T>,
    { replica, ...options }: TransactionOptions,
    origin: CallSite | undefined,
  ): Promise<T> {
    if (options.accessMode === 'read write') {
      throw new DatabaseError(
        'INVALID_ARGUMENT',
        'A transaction that may write cannot run on a replica. Leave out replica, or accessMode.',
      )
    }
    const limits = limitsFrom(options.timeoutMs, options.signal)
    return this.#goThrough(choiceOf(replica), limits, 'transaction', (parts, isLast) => {
      const timeoutMs = remaining(limits)
      // Elsewhere is better than again; on the primary there is no elsewhere.
      const attempts = isLast ? options.attempts : 1
      return parts.transactions.run(work, { ...options, accessMode: 'read only', timeoutMs, attempts }, origin)
    })
  }

  /** Where to borrow a connection for reads. */
  async choose(choice: ReplicaChoice | boolean): Promise<EngineParts> {
    const replica = await this.#find(choiceOf(choice), new Set(), limitsFrom(false))
    if (replica !== undefined) replica.reads += 1
    return replica?.parts ?? this.#primary
  }

  note(engine: Engine, error: DatabaseError): void {
    const replica = this.#replicas.find(({ parts }) => parts.engine === engine)
    if (replica !== undefined && absence.has(error.code)) this.#suspect(replica, error.code)
  }

  stats(): readonly ReplicaStats[] {
    return this.#replicas.map((replica) => replica.stats())
  }

  async close(): Promise<void> {
    this.#isClosed = true
    clearTimeout(this.#timer)
    await Promise.all(this.#replicas.map(({ parts }) => parts.engine.close()))
  }

  async #goThrough<T>(
    choice: ReplicaChoice,
    limits: Limits,
    scope: 'statement' | 'transaction',
    run: (parts: EngineParts, isLast: boolean) => Promise<T>,
  ): Promise<T> {
    const tried = new Set<Replica>()
    for (;;) {
      const replica = this.#fittest(choice, tried) ?? (await this.#find(choice, tried, limits))
      if (replica === undefined) return run(this.#primary, true)
      replica.reads += 1
      replica.inFlight += 1
      try {
        return await run(replica.parts, false)
      } catch (error) {
        const reason = causeElsewhere(error)
        if (reason === undefined || limits.signal?.aborted === true || remaining(limits) === 0) throw error
        tried.add(replica)
        if (absence.has(reason)) this.#suspect(replica, reason)
        const { events } = this.#primary.engine
        if (events.hears('retry')) events.emit('retry', { scope, failures: tried.size, error: reason })
      } finally {
        replica.inFlight -= 1
      }
    }
  }

  /** The fittest one, perhaps after waiting for it to have what the caller has committed. */
  async #find(choice: ReplicaChoice, tried: ReadonlySet<Replica>, limits: Limits): Promise<Replica | undefined> {
    const fittest = this.#fittest(choice, tried)
    if (fittest !== undefined || choice.after === undefined) return fittest
    const position = positionFrom(choice.after)
    const candidates = this.#replicas.filter((replica) => replica.isFit && !tried.has(replica))
    const waitMs = choice.waitMs ?? this.#settings.waitMs
    const until = Math.min(performance.now() + waitMs, limits.deadline)
    if (candidates.length === 0 || waitMs === 0) return undefined
    const arrivals = candidates.map((replica) => replica.waitFor(position, until, limits.signal))
    // The first to arrive, not the first to give up.
    const first = await Promise.any(arrivals).catch(() => undefined)
    limits.signal?.throwIfAborted()
    return first
  }

  /** Of those least behind the one with the least to do, and among equals each in its turn. */
  #fittest(choice: ReplicaChoice, tried: ReadonlySet<Replica>): Replica | undefined {
    const replicas = this.#replicas
    const after = choice.after === undefined ? undefined : positionFrom(choice.after)
    const least = leastLag(replicas)
    this.#turn = (this.#turn + 1) % replicas.length
    let best: Replica | undefined
    for (let step = 0; step < replicas.length; step += 1) {
      const replica = replicas[(this.#turn + step) % replicas.length] as Replica
      if (!replica.isFit || tried.has(replica)) continue
      if (after !== undefined && !replica.has(after)) continue
      // Lag is known to the interval of the checks: within it, all are the same.
      if ((replica.lagMs ?? 0) > least + this.#settings.checkIntervalMs) continue
      if (best === undefined || replica.inFlight < best.inFlight) best = replica
    }
    return best
  }

  #suspect(replica: Replica, reason: ErrorCode): void {
    replica.lost(reason)
    // It may have been one connection only: soon it is known.
    this.#checkAfter(positionPollMs)
  }

  #checkAfter(delayMs: number): void {
    if (this.#isClosed) return
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => void this.#checkAll(), delayMs)
    this.#timer.unref()
  }

  #checkAll(): Promise<void> {
    this.#checking ??= this.#check().finally(() => {
      this.#checking = undefined
      this.#checkAfter(this.#settings.checkIntervalMs)
    })
    return this.#checking
  }

  async #check(): Promise<void> {
    await Promise.all([this.#notePrimary(), ...this.#replicas.map((replica) => replica.check())])
  }

  async #notePrimary(): Promise<void> {
    try {
      const timeoutMs = Math.max(this.#settings.checkIntervalMs, minCheckTimeoutMs)
      const [row] = await this.#primary.engine.ask<{ position: string }>(askPrimary, [], timeoutMs)
      if (row !== undefined) this.#history.note(positionFrom(row.position))
    } catch {
      // Without it, lag is measured against the last position that is known.
    }
  }
}

/**
 * A position in the log of the primary that has everything which was committed before the question, with
 * `synchronous_commit` off, too.
 */
export async function commitToken(engine: Engine, timeoutMs: number): Promise<string> {
  const [row] = await engine.ask<{ position: string; page: string }>(askToken, [], timeoutMs)
  const position = positionFrom(row?.position ?? '')
  // At the end of a page the server names the place behind the header of the next one, which nobody reaches until
  // something is written there.
  return textOf(position % BigInt(row?.page ?? 0) === pageHeader ? position - pageHeader : position)
}

class Replica {
  readonly parts: EngineParts
  inFlight = 0
  reads = 0
  readonly #settings: ReplicaReadSettings
  readonly #history: PositionHistory
  #state: ReplicaState = 'down'
  #role: ReplicaStats['role'] = 'unknown'
  #position: bigint | undefined
  #lagMs: number | undefined
  #isPolling = false
  readonly #waiting = new Set<Arrival>()

  constructor(parts: EngineParts, settings: ReplicaReadSettings, history: PositionHistory) {
    this.parts = parts
    this.#settings = settings
    this.#history = history
  }

  /** Whether reads may be sent to it, as far as is known. */
  get isFit(): boolean {
    return this.#state === 'up' && this.parts.engine.breaker?.state !== 'open'
  }

  /** As of the last time it was asked: between two checks nobody knows. */
  get lagMs(): number | undefined {
    return this.#lagMs
  }

  has(position: bigint): boolean {
    return this.#role !== 'primary' && this.#position !== undefined && this.#position >= position
  }

  stats(): ReplicaStats {
    const { engine } = this.parts
    const { description: target } = engine.source
    return {
      target,
      state: this.#state,
      role: this.#role,
      lagMs: this.#state === 'down' ? undefined : this.#lagMs,
      reads: this.reads,
      ...engine.stats(),
    }
  }

  /** A read did not find it. */
  lost(reason: ErrorCode): void {
    this.#become('down', reason)
  }

  /** Asks it where it is. Never rejects. */
  async check(): Promise<void> {
    const { engine } = this.parts
    try {
      await this.#askPosition(Math.max(this.#settings.checkIntervalMs, minCheckTimeoutMs))
      const isBehind = (this.#lagMs ?? 0) > this.#settings.maxLagMs
      this.#become(isBehind ? 'lagging' : 'up', isBehind ? `more than ${this.#settings.maxLagMs} ms behind` : undefined)
    } catch (error) {
      const code = isDatabaseError(error) ? error.code : 'QUERY_FAILED'
      // No connection was free: that says nothing of the server.
      if (code === 'POOL_TIMEOUT' || code === 'POOL_OVERLOADED' || code === 'DATABASE_CLOSED') return
      this.#become('down', code)
      // Frozen: who waits for an answer is better off elsewhere.
      if (code === 'QUERY_TIMEOUT') engine.cut()
    }
  }

  /** Resolves to this when it has the position; rejects when it has not until then. */
  waitFor(position: bigint, until: number, signal: AbortSignal | undefined): Promise<Replica> {
    return new Promise((resolve, reject) => {
      const arrival: Arrival = { position, until, signal, arrived: () => resolve(this), missed: reject }
      this.#waiting.add(arrival)
      if (!this.#isPolling) void this.#poll()
    })
  }

  /** One question for all who wait, as long as somebody does. */
  async #poll(): Promise<void> {
    this.#isPolling = true
    while (this.#waiting.size > 0) {
      await this.#askPosition(minCheckTimeoutMs).catch(() => undefined)
      const now = performance.now()
      for (const arrival of [...this.#waiting]) {
        const hasArrived = this.has(arrival.position)
        const isOver = now >= arrival.until || arrival.signal?.aborted === true || !this.isFit
        if (!hasArrived && !isOver) continue
        this.#waiting.delete(arrival)
        if (hasArrived) arrival.arrived()
        else arrival.missed()
      }
      if (this.#waiting.size > 0) await sleep(positionPollMs, undefined, { ref: false })
    }
    this.#isPolling = false
  }

  async #askPosition(timeoutMs: number): Promise<void> {
    const [row] = await this.parts.engine.ask<{ standby: boolean; position: string | null }>(askReplica, [], timeoutMs)
    this.#role = row?.standby === true ? 'standby' : 'primary'
    this.#position = row?.position ? positionFrom(row.position) : undefined
    // A promoted one is ahead of everybody.
    if (this.#role === 'primary') this.#lagMs = 0
    else this.#lagMs = this.#position === undefined ? undefined : this.#history.lagOf(this.#position)
  }

  #become(state: ReplicaState, reason: string | undefined): void {
    if (state === this.#state) return
    this.#state = state
    const { events, source } = this.parts.engine
    if (events.hears('replica')) events.emit('replica', { target: source.description, state, reason })
  }
}

interface Arrival {
  readonly position: bigint
  readonly until: number
  readonly signal: AbortSignal | undefined
  readonly arrived: () => void
  readonly missed: () => void
}

/** Where the primary was when, so that a position tells how long ago it was the newest. No clock but ours is read. */
class PositionHistory {
  readonly #spanMs: number
  readonly #samples: { readonly at: number; readonly position: bigint }[] = []

  constructor(spanMs: number) {
    this.#spanMs = spanMs
  }

  note(position: bigint): void {
    const now = performance.now()
    const samples = this.#samples
    // After a failover positions may begin further back; the old ones say nothing of the new primary.
    if (samples.some((sample) => sample.position > position)) samples.length = 0
    // While nothing is written, the first moment of a position is the one that counts.
    if (samples.at(-1)?.position !== position) samples.push({ at: now, position })
    while (samples.length > 1 && now - (samples[1]?.at ?? now) > 2 * this.#spanMs) samples.shift()
  }

  /** Since when it lacks something; to the interval of the notes. */
  lagOf(position: bigint): number {
    const missing = this.#samples.find((sample) => sample.position > position)
    return missing === undefined ? 0 : performance.now() - missing.at
  }
}

function leastLag(replicas: readonly Replica[]): number {
  let least = Number.POSITIVE_INFINITY
  for (const replica of replicas) if (replica.isFit) least = Math.min(least, replica.lagMs ?? 0)
  return least
}

function choiceOf(choice: ReplicaChoice | boolean | undefined): ReplicaChoice {
  return typeof choice === 'object' ? choice : anywhere
}

const anywhere: ReplicaChoice = {}

/** PostgreSQL writes a position as two hexadecimal halves. It may come from a header, so anything may be in it. */
function positionFrom(text: string): bigint {
  const halves = /^([0-9A-F]{1,8})\/([0-9A-F]{1,8})$/i.exec(text)
  if (halves === null) {
    throw new DatabaseError(
      'INVALID_ARGUMENT',
      'The token of a commit is not one that lastCommitToken() gave, such as 0/3000148. Pass it on as it is.',
    )
  }
  return (BigInt(`0x${halves[1]}`) << 32n) | BigInt(`0x${halves[2]}`)
}

function textOf(position: bigint): string {
  return `${(position >> 32n).toString(16)}/${(position & 0xffffffffn).toString(16)}`.toUpperCase()
}

/** What is left of the limit, for the next attempt. */
function remaining({ deadline }: Limits): number | false {
  return deadline === Number.POSITIVE_INFINITY ? false : Math.max(0, deadline - performance.now())
}

/** Why another server may do better: the error, or the one behind it where the program wrapped it. */
function causeElsewhere(error: unknown): ErrorCode | undefined {
  for (let cause = error, depth = 0; cause instanceof Error && depth < 5; cause = cause.cause, depth += 1) {
    if (isDatabaseError(cause) && elsewhere.has(cause.code)) return cause.code
  }
  return undefined
}

function refusedWrite(sql: string): DatabaseError {
  return new DatabaseError(
    'INVALID_ARGUMENT',
    'A statement that writes was asked to run on a replica. Leave out replica: writes go to the primary.',
    { sql },
  )
}
