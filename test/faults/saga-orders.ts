/** The saga that is killed, for the processes that die and for the one that goes on after them. */

import { type Database, type Saga, saga, StepRefusedError } from '../../src/index.ts'
import type { Witness } from './witness.ts'

/** What steps did. Without a unique key: one would hide that something happened twice. */
export interface OrderTables {
  effects: { saga: string; what: string; key: string; pid: number }
}

/** What an order is begun with. */
export interface Order {
  /** Whether its fourth step fails for good, so that all is undone. */
  readonly isRefused: boolean
}

/** Where the steps act, and who is told when they have begun and when they have acted. */
export interface OrderPlace {
  readonly database: Database<OrderTables>
  /** A connection that knows nothing of kanta, for effects outside. */
  readonly outside: Pick<Witness, 'rows'>
  readonly boundary: (saga: string) => Promise<void>
  /** Of each step; those that another process has cut short are counted. @default 4 */
  readonly attempts?: number
}

/** The same connection for many at once, who wait for their turns. */
export function inTurn(connection: Witness): Pick<Witness, 'rows'> {
  let last: Promise<unknown> = Promise.resolve()
  return {
    rows<Row extends object>(sql: string, values?: readonly unknown[]) {
      const next = last.then(() => connection.rows<Row>(sql, values))
      last = next.catch(() => undefined)
      return next
    },
  }
}

/** Two steps in transactions, and between and after them two with outside effects; the last is in a transaction again. */
export function orderSaga(version: number, { database, outside, boundary, attempts = 4 }: OrderPlace): Saga<Order> {
  const retry = { attempts, minDelayMs: 1, maxDelayMs: 5 }
  type Context = { readonly sagaId: string; readonly idempotencyKey: string }
  const inside =
    (what: string) =>
    async ({ sagaId, idempotencyKey }: Context): Promise<void> => {
      await boundary(sagaId)
      const effect = { saga: sagaId, what, key: idempotencyKey, pid: process.pid }
      await database.db.insertInto('effects').values(effect).execute()
      await boundary(sagaId)
    }
  const elsewhere =
    (what: string) =>
    async ({ sagaId, idempotencyKey }: Context): Promise<void> => {
      await boundary(sagaId)
      const insert = 'insert into effects (saga, what, key, pid) values ($1, $2, $3, $4)'
      await outside.rows(insert, [sagaId, what, idempotencyKey, process.pid])
      await boundary(sagaId)
    }
  return saga<Order>('order', { version })
    .step('reserve', { transaction: true, retry, run: inside('reserve'), compensate: inside('reserve undone') })
    .step('charge', { retry, run: elsewhere('charge'), compensate: elsewhere('charge undone') })
    .step('book', { transaction: true, retry, run: inside('book'), compensate: inside('book undone') })
    .step('ship', {
      retry,
      run: async (context) => {
        await elsewhere('ship')(context)
        // The first answer is lost, so that nobody knows; then it is refused.
        if (!context.input.isRefused) return
        if (context.attempt === 1) throw new Error('no answer')
        throw new StepRefusedError('There is no carrier to that place.')
      },
      compensate: elsewhere('ship undone'),
    })
    .step('close', { transaction: true, retry, run: inside('close') })
}

/** The last step of a saga that has a lock that others wait for; it goes on when it is let. */
export function stockSaga(
  database: Database<OrderTables>,
  inStep: (attempt: number) => Promise<void>,
): Saga<undefined> {
  return saga<undefined>('stock').step('take', {
    transaction: true,
    timeoutMs: 1_000,
    retry: { attempts: 10, minDelayMs: 100, maxDelayMs: 200 },
    run: async ({ sagaId, idempotencyKey, attempt }) => {
      await database.db.updateTable('effects').set({ what: 'counted' }).where('saga', '=', 'the stock').execute()
      const effect = { saga: sagaId, what: 'take', key: idempotencyKey, pid: process.pid }
      await database.db.insertInto('effects').values(effect).execute()
      await inStep(attempt)
    },
  })
}
