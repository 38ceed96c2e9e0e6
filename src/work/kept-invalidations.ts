import { DatabaseError, DeliveryError } from '../core/errors.ts'
import { isWhole } from '../core/whole-number.ts'
import type { Database } from '../database/database.ts'
import { type DatabaseSeams, seamsOf } from '../database/seams.ts'
import { createOutbox } from './create-outbox.ts'
import type { JournalTopics } from './invalidation-journal.ts'
import type { OutboxDatabase } from './outbox.ts'
import type { Relay } from './outbox-relay.ts'

/** Settings of {@link keepInvalidations}. Times are milliseconds. */
export interface KeepInvalidationsOptions {
  /**
   * How long after the commit others wait for the process itself to have done it. Shorter ends what a dead process has left behind
   * sooner, and makes more work of what slow ones have not done yet. @default 1000
   */
  readonly delayMs?: number | undefined
}

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
  const outbox = await createOutbox<JournalTopics>(database, { name })
  const { OutboxJournal } = await import('./invalidation-journal.ts')
  const journal = new OutboxJournal(database as Database<unknown>, seams, name, delayMs)
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
  if (!isWhole(delayMs, 0, 3_600_000)) {
    throw new DatabaseError('INVALID_ARGUMENT', 'delayMs of keepInvalidations is not a whole number from 0 to an hour.')
  }
}
