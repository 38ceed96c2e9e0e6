import type { Database } from '../database/database.ts'
import type { SagaDatabase } from './saga-log.ts'
import type { SagaDefinition } from './saga.ts'
import type { Sagas, SagasOptions } from './sagas.ts'

/**
 * Makes the tables of sagas where they are not there, and runs sagas of these definitions from now on, also those that other
 * processes began and left. Sagas of definitions that are not among them, or that have other steps, are left alone.
 *
 * Rejects with `INVALID_ARGUMENT` for two definitions of one name and version, one without steps, and settings that are none;
 * `INSUFFICIENT_PRIVILEGE` when the tables are not there and the role may not make them.
 *
 * @example
 * ```ts
 * import { createDatabase, createSagas, saga } from 'kanta'
 * import type { DB } from './generated/schema.ts'
 *
 * const database = await createDatabase<DB>()
 * const placeOrder = saga<{ sku: string; quantity: number }>('place-order').step('take stock', {
 *   transaction: true,
 *   run: async ({ input }) => {
 *     const { db } = database
 *     const taken = db.updateTable('products').set((row) => ({ stock: row('stock', '-', input.quantity) }))
 *     await taken.where('sku', '=', input.sku).execute()
 *   },
 * })
 *
 * await using sagas = await createSagas(database, [placeOrder])
 * await sagas.run(placeOrder, { sku: 'CUP-1', quantity: 2 }, { idempotencyKey: 'order 4711' })
 * ```
 */
export async function createSagas<DB>(
  database: Database<DB>,
  definitions: readonly SagaDefinition[],
  options: SagasOptions = {},
): Promise<Sagas> {
  // Not every service that imports kanta runs some.
  const { openSagas } = await import('./open-sagas.ts')
  return openSagas(database as unknown as SagaDatabase, definitions, options)
}
