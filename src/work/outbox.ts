import { DatabaseError, isDatabaseError } from '../core/errors.ts'
import { type Database, type DatabaseSeams, seamsOf } from '../database.ts'
import { ensureOwnTables } from '../schema/own-tables.ts'
import { assertName, encodeEvent, type NewEvent, type PublishOptions } from './outbox-event.ts'
import {
  OpenRelay,
  type OutboxBatchHandler,
  type OutboxHandler,
  type OutboxSink,
  type Relay,
  type RelayFailure,
  type RelayOptions,
  type RelaySettings,
} from './outbox-relay.ts'
import { type DeadLetter, type OutboxStats, OutboxStore } from './outbox-store.ts'
import { outboxTables } from './outbox-tables.ts'

/** Settings of an {@link Outbox}. Times are milliseconds. */
export interface OutboxOptions {
  /** Outboxes of different names have nothing to do with each other: other relays, other keys. @default 'default' */
  readonly name?: string | undefined
  /** Most bytes of payload and headers, as JSON. @default 262144 */
  readonly maxPayloadBytes?: number | undefined
  /** How long events are kept once they were delivered; at 0 they are deleted. @default 0 */
  readonly retainMs?: number | undefined
  /** How long the `idempotencyKey` of an event is remembered once it was delivered. @default 86400000, a day */
  readonly idempotencyMs?: number | undefined
}

/** A database of `createDatabase()`, whatever its schema. */
export type OutboxDatabase = Pick<Database<unknown>, 'afterCommit' | 'listen' | 'notify' | 'query' | 'transaction'>

/** Which dead letters to list. */
export interface DeadLetterOptions {
  /** @default 100 */
  readonly limit?: number | undefined
  /** Only those with a larger id, such as the last of the page before. */
  readonly after?: string | undefined
}

/**
 * Events that are written with the data they tell of, and are delivered by relays, at least once. Safe to share between any number
 * of callers; make one for each name and process. Made by {@link createOutbox}; it holds no connection and needs no end.
 *
 * `Topics` maps each topic to the type of its payload.
 */
export interface Outbox<Topics> {
  readonly name: string
  /**
   * Writes an event, in the transaction of this async context or by itself: it is there if and only if that commits, and not if
   * its savepoint is rolled back. Gives its id, or `undefined` where an event of the same `idempotencyKey` is there already.
   *
   * `INVALID_ARGUMENT`: the payload is not JSON, or would not come back as it is (functions, bigints, `NaN`, maps); `EVENT_TOO_LARGE`;
   * else as an insert.
   *
   * @example
   * ```ts
   * import { createDatabase, createOutbox } from 'kanta'
   * import type { DB } from './generated/schema.ts'
   *
   * const database = await createDatabase<DB>()
   * const outbox = await createOutbox<{ 'order.paid': { orderId: string } }>(database)
   * await database.transaction(async () => {
   *   await database.db.updateTable('orders').set({ status: 'paid' }).where('id', '=', '42').execute()
   *   await outbox.publish('order.paid', { orderId: '42' }, { key: '42' })
   * })
   * ```
   */
  publish<Topic extends keyof Topics & string>(
    topic: Topic,
    payload: Topics[Topic],
    options?: PublishOptions,
  ): Promise<string | undefined>
  /**
   * Writes many events in their order, all or none; gives their ids as {@link publish} does. With more than 200 different keys it
   * waits for all who publish with keys, and they for it. Memory and one statement hold them: give some ten thousand at most.
   */
  publishMany(events: readonly NewEvent<Topics>[]): Promise<readonly (string | undefined)[]>
  /**
   * Starts to deliver events to a handler, or to a sink: `await` nothing, it goes on behind until {@link Relay.close}. Any number
   * of relays in any number of processes share the work. Each should be able to deliver every topic, since whichever claims an event
   * delivers it. It outlives failures and restarts of the server.
   *
   * Throws `INVALID_ARGUMENT` for options that cannot be.
   *
   * @example
   * ```ts
   * import { createDatabase, createOutbox } from 'kanta'
   *
   * const database = await createDatabase()
   * const outbox = await createOutbox<{ 'order.paid': { orderId: string }; 'user.left': { userId: string } }>(database)
   * await using relay = outbox.relay(async (event, { signal }) => {
   *   if (event.topic === 'order.paid') {
   *     const headers = { 'Idempotency-Key': event.id }
   *     const answer = await fetch('http://127.0.0.1:8080/receipts', { method: 'POST', body: event.payload.orderId, headers, signal })
   *     if (!answer.ok) throw new Error('no receipt')
   *   }
   * })
   * console.log(relay.stats())
   * ```
   */
  relay(handler: OutboxBatchHandler<Topics>, options: RelayOptions & { readonly batch: true }): Relay
  relay(handler: OutboxHandler<Topics> | OutboxSink<Topics>, options?: RelayOptions & { readonly batch?: false }): Relay
  /** What the database knows: counts of what waits, so it costs more the more that is. */
  stats(): Promise<OutboxStats>
  /** Events that are not tried any more, the oldest first. They stay until somebody decides. */
  deadLetters(options?: DeadLetterOptions): Promise<readonly DeadLetter[]>
  /** Has them tried again, from the first attempt; gives how many there were. Joins the transaction of this async context. */
  retryDead(ids: readonly string[] | 'all'): Promise<number>
  /** Deletes them; gives how many there were. Joins the transaction of this async context. */
  discardDead(ids: readonly string[] | 'all'): Promise<number>
}

/** All outboxes; the payload is the name of the one that has something. */
const channel = 'kanta_outbox'
const notifyEveryMs = 20
const longestMs = 315_576_000_000

/**
 * An outbox on this database. Makes its table in the schema `kanta` where it is not there yet, with `INSUFFICIENT_PRIVILEGE` where the
 * role may not: then run `kanta install` with one that may. `INVALID_ARGUMENT` for options that cannot be.
 *
 * @example
 * ```ts
 * import { createDatabase, createOutbox } from 'kanta'
 *
 * interface Topics {
 *   'order.paid': { orderId: string }
 *   'user.left': { userId: string }
 * }
 *
 * await using database = await createDatabase()
 * const outbox = await createOutbox<Topics>(database)
 * await outbox.publish('user.left', { userId: '7' })
 * ```
 */
export async function createOutbox<Topics = Record<string, unknown>>(
  database: OutboxDatabase,
  options: OutboxOptions = {},
): Promise<Outbox<Topics>> {
  const seams = seamsOf(database, 'createOutbox')
  const settings = settingsOf(options)
  const { db } = database as Database<never>
  await ensureOwnTables(db, outboxTables)
  return new OpenOutbox<Topics>(database as Database<unknown>, seams, settings)
}

type OutboxSettings = { readonly [Key in keyof OutboxOptions]-?: NonNullable<OutboxOptions[Key]> }

function settingsOf({ name = 'default', maxPayloadBytes, retainMs, idempotencyMs }: OutboxOptions): OutboxSettings {
  assertName('The name of an outbox', name)
  return {
    name,
    maxPayloadBytes: within('maxPayloadBytes', maxPayloadBytes, 262_144, 1, 100_000_000),
    retainMs: within('retainMs', retainMs, 0, 0, longestMs),
    idempotencyMs: within('idempotencyMs', idempotencyMs, 86_400_000, 0, longestMs),
  }
}

class OpenOutbox<Topics> implements Outbox<Topics> {
  readonly name: string
  readonly #database: Database<unknown>
  readonly #seams: DatabaseSeams
  readonly #settings: OutboxSettings
  readonly #store: OutboxStore
  readonly #relays = new Set<OpenRelay>()
  readonly #outside: <T>(work: () => T) => T
  #notifiedAt = Number.NEGATIVE_INFINITY
  #notifying: NodeJS.Timeout | undefined

  constructor(database: Database<unknown>, seams: DatabaseSeams, settings: OutboxSettings) {
    this.name = settings.name
    this.#database = database
    this.#seams = seams
    this.#settings = settings
    this.#store = new OutboxStore(database, settings.name, settings)
    this.#outside = seams.context()
  }

  async publish(topic: string, payload: unknown, options: PublishOptions = {}): Promise<string | undefined> {
    const event = encodeEvent(topic, payload, options, this.#settings.maxPayloadBytes)
    const [id] = await this.#store.publish([event])
    if (id !== undefined) this.#tellWithCommit()
    return id
  }

  async publishMany(events: readonly NewEvent<Topics>[]): Promise<readonly (string | undefined)[]> {
    const { maxPayloadBytes } = this.#settings
    const encoded = events.map(({ topic, payload, ...options }) =>
      encodeEvent(topic, payload, options, maxPayloadBytes),
    )
    if (encoded.length === 0) return []
    const ids = await this.#store.publish(encoded)
    this.#tellWithCommit()
    return ids
  }

  relay(
    handler: OutboxBatchHandler<Topics> | OutboxHandler<Topics> | OutboxSink<Topics>,
    options: RelayOptions = {},
  ): Relay {
    const isSink = typeof handler === 'object' && handler !== null
    const deliver = isSink ? handler.deliver.bind(handler) : handler
    if (typeof deliver !== 'function') throw refused('A relay needs a handler or a sink, and was given something else.')
    const settings = this.#relaySettings(isSink ? { ...options, batch: true } : options)
    const parts = {
      database: this.#database,
      seams: this.#seams,
      store: this.#store,
      name: this.name,
      channel,
      onEnd: (ended: OpenRelay) => this.#relays.delete(ended),
    }
    const each: OutboxBatchHandler<Topics> = async (events, context) => {
      for (const event of events) await (deliver as OutboxHandler<Topics>)(event, context)
    }
    const batched = (settings.batch ? deliver : each) as OutboxBatchHandler<Record<string, unknown>>
    const relay = new OpenRelay(parts, batched, settings)
    this.#relays.add(relay)
    return relay
  }

  stats(): Promise<OutboxStats> {
    return this.#store.stats()
  }

  async deadLetters({ limit, after = '0' }: DeadLetterOptions = {}): Promise<readonly DeadLetter[]> {
    const [from] = checkedIds([after])
    return this.#store.deadLetters(within('limit', limit, 100, 1, 100_000), from as string)
  }

  async retryDead(ids: readonly string[] | 'all'): Promise<number> {
    const count = await this.#store.retryDead(ids === 'all' ? ids : checkedIds(ids))
    if (count > 0) this.#tellWithCommit()
    return count
  }

  async discardDead(ids: readonly string[] | 'all'): Promise<number> {
    return this.#store.discardDead(ids === 'all' ? ids : checkedIds(ids))
  }

  /**
   * After the commit and not with it: every commit with a NOTIFY in it waits for that of all others in the whole server. What is
   * not told because the process dies is found when relays look by themselves.
   */
  #tellWithCommit(): void {
    this.#database.afterCommit(() => this.#tell())
  }

  #tell(): void {
    for (const relay of this.#relays) relay.stir()
    if (this.#notifying !== undefined) return
    const waitMs = this.#notifiedAt + notifyEveryMs - performance.now()
    this.#notifying = setTimeout(() => this.#outside(() => void this.#notify()), Math.max(0, waitMs)).unref()
  }

  async #notify(): Promise<void> {
    this.#notifying = undefined
    this.#notifiedAt = performance.now()
    // A hint, no more.
    await this.#database.notify(channel, this.name).catch(() => undefined)
  }

  #relaySettings(options: RelayOptions): RelaySettings {
    const batch = options.batch ?? false
    const { logger } = this.#seams
    return {
      batch,
      concurrency: within('concurrency', options.concurrency, batch ? 1 : 10, 1, 10_000),
      batchSize: within('batchSize', options.batchSize, 100, 1, 10_000),
      timeoutMs: within('timeoutMs', options.timeoutMs, 30_000, 1, maxTimerMs),
      leaseMs: within('leaseMs', options.leaseMs, 30_000, 100, maxTimerMs),
      maxAttempts: within('maxAttempts', options.maxAttempts, 20, 1, 1_000_000),
      baseDelayMs: within('baseDelayMs', options.baseDelayMs, 1_000, 0, longestMs),
      maxDelayMs: within('maxDelayMs', options.maxDelayMs, 600_000, 0, longestMs),
      pollMs: within('pollMs', options.pollMs, 1_000, 1, maxTimerMs),
      drainTimeoutMs: within('drainTimeoutMs', options.drainTimeoutMs, 5_000, 0, maxTimerMs),
      describeError: options.describeError ?? describeError,
      onFailure: options.onFailure ?? ((failure) => warnOf(failure, this.name, (text) => logger.warn(text))),
    }
  }
}

/** What `setTimeout` takes. */
const maxTimerMs = 2_147_483_647

function within(name: string, value: number | undefined, preset: number, least: number, most: number): number {
  if (value === undefined) return preset
  if (Number.isInteger(value) && value >= least && value <= most) return value
  throw refused(`${name} of an outbox is ${String(value)}. Give a whole number from ${least} to ${most}.`)
}

function checkedIds(ids: readonly string[]): readonly string[] {
  const areRight = Array.isArray(ids) && ids.every((id) => typeof id === 'string' && /^\d{1,18}$/.test(id))
  if (areRight) return ids
  throw refused("Ids of events are whole numbers as text. Give those that deadLetters() gave, or 'all'.")
}

function refused(message: string): DatabaseError {
  return new DatabaseError('INVALID_ARGUMENT', message)
}

/** Who may quote the payload is only named. */
function describeError(error: unknown): string {
  if (isDatabaseError(error)) return `${error.name} ${error.code}: ${error.message}`
  if (!(error instanceof Error)) return 'something that is not an Error'
  const { code } = error as { readonly code?: unknown }
  const place = error.stack?.split('\n').find((line) => /^\s+at /.test(line))
  return [error.name, typeof code === 'string' ? code : undefined, place?.trim()].filter(Boolean).join(' ')
}

function warnOf({ error, event, isDead }: RelayFailure, outbox: string, warn: (message: string) => void): void {
  const what = describeError(error)
  if (event === undefined) warn(`a relay of the outbox "${outbox}" cannot work, and goes on trying: ${what}`)
  else if (isDead) {
    warn(
      `event ${event.id} (${event.topic}) of the outbox "${outbox}" is a dead letter after ${event.attempt} attempts: ${what}`,
    )
  }
}
