import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { doneWithin } from '../core/deadline.ts'
import { type DatabaseError, DeliveryError, isDatabaseError } from '../core/errors.ts'
import type { Subscription } from '../core/subscriber.ts'
import type { Database } from '../database/database.ts'
import type { DatabaseSeams } from '../database/seams.ts'
import type { EventOf, OutboxEvent } from './outbox-event.ts'
import type { ClaimedEvent, OutboxStore, Return } from './outbox-store.ts'
import { Settlements } from './outbox-settlements.ts'

/** What a handler is given beside its event. */
export interface DeliveryContext {
  /**
   * Aborted when `timeoutMs` is over, when the lease was lost, or when the relay does not wait any longer at its end. What the handler
   * does after that counts for nothing, and another may get the same event.
   */
  readonly signal: AbortSignal
  /** How long it may take. */
  readonly timeoutMs: number
}

/** Called with each event, possibly more than once. Delivered when it resolves; tried again later when it rejects. */
export type OutboxHandler<Topics> = (event: EventOf<Topics>, context: DeliveryContext) => unknown

/** Which events of a batch were not delivered; those that are not named were. */
export interface BatchReport {
  readonly failed: readonly { readonly id: string; readonly error: unknown }[]
}

/**
 * Called with many events at once, at most one of each key. All are delivered when it resolves, but for those that its report
 * names; none when it rejects.
 */
export type OutboxBatchHandler<Topics> = (
  events: readonly EventOf<Topics>[],
  context: DeliveryContext,
) => Promise<BatchReport | void> | BatchReport | void

/** Where events go, many at once. */
export interface OutboxSink<Topics> {
  readonly deliver: OutboxBatchHandler<Topics>
}

/** What went wrong in a relay. */
export interface RelayFailure {
  readonly error: unknown
  /** The event that was not delivered; absent when the database failed. Without its payload and its key. */
  readonly event?: Pick<OutboxEvent, 'attempt' | 'id' | 'topic'> | undefined
  /** It is not tried again. */
  readonly isDead: boolean
}

/** How a relay works. Times are milliseconds. */
export interface RelayOptions {
  /** Handlers that run at once. @default 10, of batches 1 */
  readonly concurrency?: number | undefined
  /** Events that are claimed at once, and the most in a batch. @default 100 */
  readonly batchSize?: number | undefined
  /** Gives the handler a list of events. @default false */
  readonly batch?: boolean | undefined
  /** How long one call of the handler may take; then it has failed. @default 30000 */
  readonly timeoutMs?: number | undefined
  /**
   * After so long, events that a dead or unreachable process has claimed come back. A process that lives renews its lease.
   * At least 100. @default 30000
   */
  readonly leaseMs?: number | undefined
  /** Attempts in all; then the event is a dead letter. @default 20 */
  readonly maxAttempts?: number | undefined
  /** The pause after the first failure; it doubles with each, and a random part of up to a half is taken off. @default 1000 */
  readonly baseDelayMs?: number | undefined
  /** @default 600000 */
  readonly maxDelayMs?: number | undefined
  /** How often the table is looked at without being told of events. @default 1000 */
  readonly pollMs?: number | undefined
  /** How long {@link Relay.close} waits for handlers that run. @default 5000 */
  readonly drainTimeoutMs?: number | undefined
  /**
   * What of an error is kept with the event. @default name, code and place; the message only of a `DatabaseError`, since those of
   * others may quote the payload
   */
  readonly describeError?: ((error: unknown) => string) | undefined
  /** Told of each failure. What it throws is a warning. @default a warning to the logger for dead letters and for the database */
  readonly onFailure?: ((failure: RelayFailure) => void) | undefined
}

/** A relay that runs. */
export interface Relay extends AsyncDisposable {
  /** Since it was started. */
  stats(): RelayStats
  /**
   * Claims no more, gives back what no handler has begun, waits for handlers that run up to `drainTimeoutMs`, and records what they
   * did. Never rejects; safe to call more than once. `close()` of the database does so, too.
   */
  close(): Promise<void>
}

/** A moment of a {@link Relay}. */
export interface RelayStats {
  readonly delivered: number
  readonly failed: number
  readonly dead: number
  /** Claimed, and not settled yet. */
  readonly inHand: number
}

/** {@link RelayOptions} with all defaults. */
export type RelaySettings = {
  readonly [Key in Exclude<keyof RelayOptions, 'describeError' | 'onFailure'>]-?: NonNullable<RelayOptions[Key]>
} & {
  readonly describeError: (error: unknown) => string
  readonly onFailure: (failure: RelayFailure) => void
}

/** What a relay works with. */
export interface RelayParts {
  readonly database: Database<unknown>
  readonly seams: DatabaseSeams
  readonly store: OutboxStore
  readonly name: string
  readonly channel: string
  readonly onEnd: (relay: OpenRelay) => void
}

/** An event in hand. */
interface Hold {
  readonly event: ClaimedEvent
  /** As `performance.now()`: surely ours until then, since it was taken from before the server was asked. */
  goodUntil: number
  isLost: boolean
  stop: ((reason: DatabaseError) => void) | undefined
}

type Outcome = { readonly error: unknown } | undefined

const pruneEveryMs = 30_000
const firstPauseMs = 50
const longestPauseMs = 5_000
const listenAgainMs = 5_000
const leastSettlingMs = 1_000
/** Ten years. */
const longestAskedMs = 315_576_000_000

/** {@link Relay} over its store. */
export class OpenRelay implements Relay {
  readonly #parts: RelayParts
  readonly #deliver: OutboxBatchHandler<Record<string, unknown>>
  readonly #settings: RelaySettings
  readonly #capacity: number
  readonly #inHand = new Map<string, Hold>()
  /** Claimed, in the order of their keys; each list is worked on by one handler at a time. */
  readonly #lanes: Hold[][] = []
  readonly #working = new Set<Promise<void>>()
  readonly #settlements: Settlements
  readonly #over = new AbortController()
  readonly #running: Promise<unknown>
  readonly #renewing: NodeJS.Timeout
  readonly #forget: () => void
  #wake: PromiseWithResolvers<void> = Promise.withResolvers()
  /** Where it goes on among the keys with parked events. */
  #lastKey = ''
  #isStirred = false
  #isListening = false
  #hasGivenUp = false
  #closing: Promise<void> | undefined
  readonly #counts = { delivered: 0, failed: 0, dead: 0 }

  constructor(parts: RelayParts, deliver: OutboxBatchHandler<Record<string, unknown>>, settings: RelaySettings) {
    this.#parts = parts
    this.#deliver = deliver
    this.#settings = settings
    const { batch, batchSize, concurrency } = settings
    this.#capacity = batch ? batchSize * concurrency : Math.max(batchSize, concurrency)
    this.#settlements = new Settlements(parts.store, {
      onSettled: (events) => this.#letGo(events),
      onFailure: (error) => this.#report({ error, isDead: false }),
    })
    this.#forget = parts.seams.beforeClose(() => this.close())
    const run = parts.seams.context()
    this.#renewing = setInterval(() => run(() => void this.#renew()), settings.leaseMs / 3)
    this.#running = run(() => Promise.all([this.#run(), this.#listen(), this.#prune()]))
  }

  stats(): RelayStats {
    return { ...this.#counts, inHand: this.#inHand.size }
  }

  /** There may be something to do. */
  stir(): void {
    this.#isStirred = true
    this.#wake.resolve()
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #close(): Promise<void> {
    this.#over.abort()
    this.stir()
    this.#forget()
    this.#parts.onEnd(this)
    const { drainTimeoutMs } = this.#settings
    const drained = Promise.all([this.#running, this.#whenIdle()])
    const isDrained = await doneWithin(drained, drainTimeoutMs)
    if (!isDrained) {
      this.#hasGivenUp = true
      for (const hold of this.#inHand.values())
        hold.stop?.(
          new DeliveryError('The relay was closed before the handler had ended: what it does may be done again.'),
        )
      await doneWithin(this.#whenIdle(), firstPauseMs)
      // What does not even hear of that goes back as it is; its late answer finds another lease.
      this.#release([...this.#inHand.values()])
    }
    await this.#settlements.end(Math.max(drainTimeoutMs, leastSettlingMs))
    clearInterval(this.#renewing)
  }

  async #whenIdle(): Promise<void> {
    while (this.#working.size > 0) await Promise.all(this.#working)
  }

  get #isOver(): boolean {
    return this.#over.signal.aborted
  }

  // Claiming

  async #run(): Promise<void> {
    let failures = 0
    let idle = 0
    while (!this.#isOver) {
      this.#isStirred = false
      const { wanted, withFollowers } = this.#room()
      if (wanted === 0) {
        await this.#pause(longestPauseMs)
        continue
      }
      try {
        const count = await this.#claim(wanted, withFollowers)
        failures = 0
        idle = count > 0 ? 0 : idle + 1
        if (count === 0) await this.#pause(await this.#restMs(idle))
      } catch (error) {
        if (this.#mustEnd(error)) return
        failures += 1
        if (failures === 1) this.#report({ error, isDead: false })
        // Whoever tells of events tells nothing about the database.
        await rest(backoff(firstPauseMs, longestPauseMs, failures), this.#over.signal)
      }
    }
  }

  /** How many events to claim now. */
  #room(): { readonly wanted: number; readonly withFollowers: boolean } {
    const { batch, batchSize, concurrency } = this.#settings
    const room = this.#capacity - this.#inHand.size
    const leastRoom = batch ? batchSize : Math.ceil(this.#capacity / 2)
    if (room >= leastRoom) return { wanted: batch ? batchSize : room, withFollowers: !batch }
    // There will be room in a moment, for more at once.
    if (batch || room + this.#settlements.size >= leastRoom) return { wanted: 0, withFollowers: false }
    // What is in hand are slow ones and what waits behind them: other keys have nothing to do with those.
    return { wanted: concurrency - this.#working.size, withFollowers: false }
  }

  /** A database that is closed does not come back. */
  #mustEnd(error: unknown): boolean {
    const isClosed = isDatabaseError(error) && error.code === 'DATABASE_CLOSED'
    if (isClosed) void this.close()
    return isClosed || this.#isOver
  }

  async #claim(wanted: number, withFollowers: boolean): Promise<number> {
    const { store } = this.#parts
    const { leaseMs } = this.#settings
    const lease = randomUUID()
    const goodUntil = performance.now() + leaseMs
    const { events: heads, isClogged, lastKey, hasMoreKeys } = await store.claim(lease, leaseMs, wanted, this.#lastKey)
    this.#lastKey = lastKey
    // What was claimed is taken up whatever becomes of the rest.
    if (hasMoreKeys || (isClogged && (await store.park().catch(() => 0)) > 0)) this.#isStirred = true
    const keyed = heads.filter(({ key }) => key !== undefined)
    const each = keyed.length === 0 || !withFollowers ? 0 : Math.floor((wanted - heads.length) / keyed.length)
    const followers = each > 0 ? await store.claimFollowers(keyed, lease, leaseMs, each).catch(() => []) : []
    const holds = [...heads, ...followers].map((event): Hold => ({ event, goodUntil, isLost: false, stop: undefined }))
    for (const hold of holds) {
      // This process itself stood still for longer than its lease.
      const former = this.#inHand.get(hold.event.id)
      if (former !== undefined) this.#lose(former)
      this.#inHand.set(hold.event.id, hold)
    }
    if (this.#isOver) this.#release(holds)
    else this.#take(holds)
    return holds.length
  }

  #take(holds: readonly Hold[]): void {
    const { batch, maxAttempts } = this.#settings
    const fit: Hold[] = []
    for (const hold of holds) {
      // Each time the process has died, or its lease was lost.
      if (hold.event.attempt > maxAttempts) this.#fail(hold, neverEnded(maxAttempts))
      else fit.push(hold)
    }
    if (batch && fit.length > 0) this.#lanes.push(fit)
    else this.#lanes.push(...Object.values(Object.groupBy(fit, laneOf)).map((lane) => lane ?? []))
    this.#start()
  }

  /** How long to wait for something to do. */
  async #restMs(idle: number): Promise<number> {
    const { pollMs } = this.#settings
    const restMs = this.#isListening ? pollMs : Math.min(pollMs, firstPauseMs * 2 ** Math.min(idle - 1, 20))
    const dueInMs = await this.#parts.store.dueInMs()
    return Math.min(restMs, dueInMs === undefined ? restMs : Math.ceil(dueInMs) + 1)
  }

  /** Until there may be something to do, or the time is over. */
  async #pause(limitMs: number): Promise<void> {
    if (this.#isStirred || this.#isOver) return
    this.#wake = Promise.withResolvers()
    const timer = setTimeout(this.#wake.resolve, limitMs)
    await this.#wake.promise
    clearTimeout(timer)
  }

  // Delivering

  #start(): void {
    while (this.#working.size < this.#settings.concurrency) {
      const lane = this.#lanes.shift()
      if (lane === undefined) return
      const working = this.#work(lane).finally(() => {
        this.#working.delete(working)
        this.#start()
      })
      this.#working.add(working)
    }
  }

  async #work(lane: readonly Hold[]): Promise<void> {
    if (this.#settings.batch) return this.#workBatch(lane)
    for (const [index, hold] of lane.entries()) {
      if (this.#isOver || !isHeld(hold)) return this.#release(lane.slice(index))
      const [outcome] = await this.#attempt([hold])
      if (outcome === undefined) {
        this.#succeed(hold)
        continue
      }
      this.#fail(hold, outcome.error)
      // They come after it.
      return this.#release(lane.slice(index + 1))
    }
  }

  async #workBatch(lane: readonly Hold[]): Promise<void> {
    if (this.#isOver) return this.#release(lane)
    const held = lane.filter(isHeld)
    this.#release(lane.filter((hold) => !held.includes(hold)))
    if (held.length === 0) return
    const outcomes = await this.#attempt(held)
    for (const [index, hold] of held.entries()) {
      const outcome = outcomes[index]
      if (outcome === undefined) this.#succeed(hold)
      else this.#fail(hold, outcome.error)
    }
  }

  /** Calls the handler, and gives what became of each event. Never rejects. */
  async #attempt(holds: readonly Hold[]): Promise<readonly Outcome[]> {
    const { timeoutMs } = this.#settings
    const controller = new AbortController()
    const given = Promise.withResolvers<never>()
    const stop = (reason: DatabaseError): void => {
      controller.abort(reason)
      given.reject(reason)
    }
    for (const hold of holds) hold.stop = stop
    const timer = setTimeout(() => stop(tooSlow(timeoutMs)), timeoutMs)
    try {
      const events = holds.map(({ event }) => publicEvent(event))
      const working = (async () => this.#deliver(events, { signal: controller.signal, timeoutMs }))()
      // Nobody waits for it any more once it was stopped.
      working.catch(() => undefined)
      return outcomesOf(holds, await Promise.race([working, given.promise]))
    } catch (error) {
      return holds.map(() => ({ error }))
    } finally {
      clearTimeout(timer)
      for (const hold of holds) hold.stop = undefined
    }
  }

  // Settling

  #succeed({ event }: Hold): void {
    this.#counts.delivered += 1
    this.#settlements.finish(event)
  }

  #fail(hold: Hold, error: unknown): void {
    if (hold.isLost || this.#hasGivenUp) return this.#release([hold])
    const { baseDelayMs, maxDelayMs, maxAttempts, describeError } = this.#settings
    const { id, lease, topic, attempt } = hold.event
    const advice = isDatabaseError(error) && error.code === 'DELIVERY_FAILED' ? (error as DeliveryError) : undefined
    const isDead = attempt >= maxAttempts || advice?.isFinal === true
    const delayMs = isDead ? undefined : Math.max(backoff(baseDelayMs, maxDelayMs, attempt), pauseOf(advice))
    const text = kept(describeError, error)
    this.#settlements.giveBack({ id, lease, state: isDead ? 'dead' : 'waiting', delayMs, isCounted: true, error: text })
    this.#counts.failed += 1
    if (isDead) this.#counts.dead += 1
    this.#report({ error, event: { id, topic, attempt }, isDead })
  }

  /** Gives back what was not tried. */
  #release(holds: readonly Hold[]): void {
    for (const { event, isLost } of holds) {
      if (isLost) this.#letGo([event])
      else this.#settlements.giveBack(untried(event))
    }
  }

  #letGo(events: readonly Pick<ClaimedEvent, 'id' | 'lease'>[]): void {
    for (const { id, lease } of events) {
      // It may have been given back and claimed again before the answer came.
      if (this.#inHand.get(id)?.event.lease === lease) this.#inHand.delete(id)
    }
    this.stir()
  }

  #report(failure: RelayFailure): void {
    try {
      this.#settings.onFailure(failure)
    } catch (error) {
      const what = error instanceof Error ? error.name : 'something that is not an Error'
      this.#parts.seams.logger.warn(`onFailure of a relay of the outbox "${this.#parts.name}" threw: ${what}`)
    }
  }

  // What goes on beside that

  /** Keeps what is in hand, as long as the server can be told so. */
  async #renew(): Promise<void> {
    const { leaseMs } = this.#settings
    // Two statements on the same rows could wait for each other.
    const holds = [...this.#inHand.values()].filter(({ event }) => !this.#settlements.has(event))
    if (holds.length === 0) return
    const goodUntil = performance.now() + leaseMs
    const events = holds.map(({ event }) => event)
    const renewed = await this.#parts.store.renew(events, leaseMs).catch(() => undefined)
    for (const hold of holds) {
      if (renewed?.has(hold.event.id) === true) hold.goodUntil = goodUntil
      else if (renewed !== undefined || !isHeld(hold)) this.#lose(hold)
    }
  }

  #lose(hold: Hold): void {
    // Settled meanwhile.
    if (this.#inHand.get(hold.event.id) !== hold || this.#settlements.has(hold.event)) return
    hold.isLost = true
    hold.stop?.(
      new DeliveryError(
        'The lease was lost, so that another process may have the event: what the handler does counts for nothing.',
      ),
    )
  }

  async #listen(): Promise<void> {
    const { database, channel, name } = this.#parts
    let subscription: Subscription | undefined
    const onGap = (): void => this.stir()
    while (!this.#isOver && subscription === undefined) {
      try {
        subscription = await database.listen(channel, (outbox) => outbox === name && this.stir(), { onGap })
        this.#isListening = true
        // What was published before nobody has told.
        this.stir()
      } catch (error) {
        if (isDatabaseError(error) && (error.code === 'NOTIFICATIONS_UNAVAILABLE' || this.#mustEnd(error))) return
        await rest(listenAgainMs, this.#over.signal)
      }
    }
    await whenAborted(this.#over.signal)
    await subscription?.close()
  }

  async #prune(): Promise<void> {
    while (!this.#isOver) {
      // It is tried again the next time.
      while (!this.#isOver && (await this.#parts.store.prune().catch(() => false)));
      await rest(pruneEveryMs, this.#over.signal)
    }
  }
}

function isHeld({ isLost, goodUntil }: Hold): boolean {
  return !isLost && performance.now() < goodUntil
}

/** Those of one key belong together; those of none do not. */
function laneOf({ event }: Hold): string {
  return event.key === undefined ? `id ${event.id}` : `key ${event.key}`
}

function publicEvent({ lease: _lease, ...event }: ClaimedEvent): OutboxEvent {
  return event
}

function untried({ id, lease }: ClaimedEvent): Return {
  return { id, lease, state: 'waiting', delayMs: undefined, isCounted: false, error: undefined }
}

function outcomesOf(holds: readonly Hold[], report: BatchReport | undefined | void): readonly Outcome[] {
  const failed = new Map((report?.failed ?? []).map(({ id, error }) => [id, { error }]))
  return holds.map(({ event }) => failed.get(event.id))
}

function backoff(baseMs: number, longestMs: number, failures: number): number {
  return Math.min(baseMs * 2 ** Math.min(failures - 1, 40), longestMs) * (0.5 + Math.random() / 2)
}

/** What the server takes as a pause, whatever the handler asks for: that it could not add to a time, it would refuse for ever. */
function pauseOf(advice: DeliveryError | undefined): number {
  const askedMs = advice?.retryAfterMs ?? 0
  return Number.isNaN(askedMs) ? 0 : Math.min(askedMs, longestAskedMs)
}

function tooSlow(timeoutMs: number): DeliveryError {
  return new DeliveryError(
    `The handler did not end within ${timeoutMs} ms, so the attempt has failed. Make it quicker, or raise timeoutMs.`,
  )
}

function neverEnded(attempts: number): DeliveryError {
  return new DeliveryError(
    `None of ${attempts} attempts came to an end: their processes died, or stood still. See what this event does to them.`,
  )
}

const longestText = 2_000

/** What the server takes as text, whatever the function gives. */
function kept(describe: (error: unknown) => string, error: unknown): string {
  try {
    return describe(error).replaceAll('\0', '').slice(0, longestText).toWellFormed()
  } catch {
    return 'describeError threw, or gave no text'
  }
}

function whenAborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve()
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }))
}

async function rest(ms: number, signal: AbortSignal): Promise<void> {
  await sleep(ms, undefined, { signal }).catch(() => undefined)
}
