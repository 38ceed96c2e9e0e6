import type { Invalidation } from '../cache/invalidation-log.ts'
import type { InvalidationJournal } from '../cache/open-cache.ts'
import { DatabaseError, DeliveryError } from '../core/errors.ts'
import { type Database, type DatabaseSeams, seamsOf } from '../database.ts'
import type { Scope } from '../postgres/transaction.ts'
import { createOutbox, type OutboxDatabase } from './outbox.ts'
import type { Relay } from './outbox-relay.ts'
import { OutboxStore } from './outbox-store.ts'

/** Settings of {@link keepInvalidations}. Times are milliseconds. */
export interface KeepInvalidationsOptions {
  /**
   * How long after the commit others wait for the process itself to have done it. Shorter ends what a dead process has left behind
   * sooner, and makes more work of what slow ones have not done yet. @default 1000
   */
  readonly delayMs?: number | undefined
}

interface Topics {
  readonly invalidation: Invalidation
}

const topic = 'invalidation'
/** What is more than that ends everything instead. */
const maxBytes = 100_000
const eraseEveryMs = 20
const everything: Invalidation = { keys: [], tags: [], patterns: [], all: true }

/**
 * From now on, a transaction that ends something in the cache writes that down with its data, and takes it back when it was done:
 * so what a process leaves behind that dies between its COMMIT and the invalidation is done by any other that has called this,
 * after `delayMs`. All processes that write should call it, and those that share the cache may. The relay that is given ends it.
 *
 * It costs each such transaction one more statement before its COMMIT, which fails with it (`TRANSACTION_ABORTED`), and a part of
 * one after it. What is written by single statements outside a transaction is not kept. `INVALID_ARGUMENT` without Redis: what is in
 * the memory of a process dies with it. Else as `createOutbox`.
 *
 * @example
 * ```ts
 * import { createDatabase, keepInvalidations } from 'kanta'
 *
 * await using database = await createDatabase({ redis: { url: 'redis://127.0.0.1:6379' } })
 * await using kept = await keepInvalidations(database, { delayMs: 500 })
 * await database.transaction(() => database.cache.invalidate({ tags: ['products'] }))
 * console.log(kept.stats())
 * ```
 */
export async function keepInvalidations(
  database: OutboxDatabase,
  { delayMs = 1_000 }: KeepInvalidationsOptions = {},
): Promise<Relay> {
  const seams = seamsOf(database, 'keepInvalidations')
  assertUsable(seams, delayMs)
  const name = `kanta.cache ${seams.cacheNamespace}`
  const outbox = await createOutbox<Topics>(database, { name })
  const journal = new Journal(database as Database<unknown>, seams, name, delayMs)
  const keepNoMore = seams.keepInvalidations(journal)
  const relay = outbox.relay(
    async ({ payload }) => {
      const isTold = await seams.endCached(payload)
      if (!isTold) throw new DeliveryError('Redis could not be told what is no longer valid. Check that it runs.')
    },
    { baseDelayMs: 200, maxDelayMs: 5_000, maxAttempts: 1_000_000, pollMs: Math.max(1, Math.min(1_000, delayMs)) },
  )
  const close = async (): Promise<void> => {
    keepNoMore()
    forget()
    await Promise.all([relay.close(), journal.close()])
  }
  const forget = seams.beforeClose(close)
  return { stats: () => relay.stats(), close, [Symbol.asyncDispose]: close }
}

function assertUsable({ redis }: DatabaseSeams, delayMs: number): void {
  if (redis === undefined) {
    throw new DatabaseError(
      'INVALID_ARGUMENT',
      'keepInvalidations is for a cache in Redis, and none is configured: what is in the memory of a process dies with it.',
    )
  }
  if (!Number.isInteger(delayMs) || delayMs < 0 || delayMs > 3_600_000) {
    throw new DatabaseError('INVALID_ARGUMENT', 'delayMs of keepInvalidations is not a whole number from 0 to an hour.')
  }
}

/** Writes what is to be ended, and takes back what has been. */
class Journal implements InvalidationJournal {
  readonly #database: Database<unknown>
  readonly #store: OutboxStore
  readonly #delayMs: number
  readonly #outside: <T>(work: () => T) => T
  #done: string[] = []
  #timer: NodeJS.Timeout | undefined
  #erasing: Promise<void> = Promise.resolve()

  constructor(database: Database<unknown>, seams: DatabaseSeams, name: string, delayMs: number) {
    this.#database = database
    this.#store = new OutboxStore(database, name, { retainMs: 0, idempotencyMs: 0 })
    this.#delayMs = delayMs
    this.#outside = seams.context()
  }

  /** In the scope itself: its own queries would be refused so close to its end. */
  async write(what: Invalidation, scope: Scope): Promise<string> {
    const text = JSON.stringify(what)
    const payload = Buffer.byteLength(text) > maxBytes ? JSON.stringify(everything) : text
    const event = { topic, payload, key: null, headers: null, idempotencyKey: null, delayMs: this.#delayMs }
    const query = this.#store.insert([event]).compile(this.#database.db)
    const { rows } = await scope.execute<{ readonly id: string }>(query)
    return rows[0]?.id ?? ''
  }

  erase(id: string): void {
    this.#done.push(id)
    this.#timer ??= setTimeout(() => this.#eraseSoon(), eraseEveryMs).unref()
  }

  async close(): Promise<void> {
    this.#eraseSoon()
    await this.#erasing
  }

  #eraseSoon(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    const ids = this.#done
    this.#done = []
    if (ids.length === 0) return
    const erase = this.#outside(() => this.#store.erase(ids))
    // Then it is ended once more.
    this.#erasing = Promise.all([this.#erasing, erase.catch(() => undefined)]).then(() => undefined)
  }
}
