import type { Database } from '../database/database.ts'
import { seamsOf } from '../database/seams.ts'
import type { Outbox, OutboxDatabase, OutboxOptions } from './outbox.ts'

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
  // Not every service that imports kanta has one.
  const { openOutbox } = await import('./open-outbox.ts')
  return openOutbox<Topics>(database as Database<unknown>, seams, options)
}
