import type { Kysely } from 'kysely'
import { DatabaseError, isDatabaseError } from '../core/errors.ts'
import { isWhole, largestInt32 } from '../core/whole-number.ts'
import type { Database } from '../database/database.ts'
import type { DatabaseSeams } from '../database/seams.ts'
import { ensureOwnTables } from '../schema/own-tables.ts'
import type { DeadLetterOptions, Outbox, OutboxOptions } from './outbox.ts'
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

/** All outboxes; the payload is the name of the one that has something. */
const channel = 'kanta_outbox'
const notifyEveryMs = 20
const longestMs = 315_576_000_000

/** What {@link createOutbox} gives, its tables made where they are not there yet. */
export async function openOutbox<Topics>(
  database: Database<unknown>,
  seams: DatabaseSeams,
  options: OutboxOptions,
): Promise<Outbox<Topics>> {
  const settings = settingsOf(options)
  await ensureOwnTables(database.db as unknown as Kysely<never>, outboxTables)
  return new OpenOutbox<Topics>(database, seams, settings)
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
      timeoutMs: within('timeoutMs', options.timeoutMs, 30_000, 1, largestInt32),
      leaseMs: within('leaseMs', options.leaseMs, 30_000, 100, largestInt32),
      maxAttempts: within('maxAttempts', options.maxAttempts, 20, 1, 1_000_000),
      baseDelayMs: within('baseDelayMs', options.baseDelayMs, 1_000, 0, longestMs),
      maxDelayMs: within('maxDelayMs', options.maxDelayMs, 600_000, 0, longestMs),
      pollMs: within('pollMs', options.pollMs, 1_000, 1, largestInt32),
      drainTimeoutMs: within('drainTimeoutMs', options.drainTimeoutMs, 5_000, 0, largestInt32),
      describeError: options.describeError ?? describeError,
      onFailure: options.onFailure ?? ((failure) => warnOf(failure, this.name, (text) => logger.warn(text))),
    }
  }
}

function within(name: string, value: number | undefined, preset: number, least: number, most: number): number {
  if (value === undefined) return preset
  if (isWhole(value, least, most)) return value
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
