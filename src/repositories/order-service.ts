import { type Kysely, type RawBuilder, type Transaction, sql } from 'kysely'
import { DatabaseError } from '../core/errors.ts'
import { isWhole, largestInt32 } from '../core/whole-number.ts'
import {
  CustomerUnavailableError,
  type DomainError,
  IdempotencyKeyReusedError,
  IllegalOrderChangeError,
  InsufficientStockError,
  MixedCurrenciesError,
  OrderTooLargeError,
  ProductUnavailableError,
} from '../domain/errors.ts'
import {
  checkedOrder,
  type Order,
  type OrderLine,
  type OrderOptions,
  type OrderProcessing,
  type OrderRef,
  type OrderStatus,
  type OrderWithItems,
  orderChanges,
} from '../domain/order.ts'
import type { DB } from '../generated/schema.ts'
import type { QuerySource } from '../repository/query-source.ts'
import { OrderRepository } from './order-repository.ts'
import { cancelOrder, changeOrder, linesOf, type OrderRequest, placeOrder, type Verdict } from './order-statements.ts'
import { Turns } from './turns.ts'

/** Settings of an {@link OrderService}. */
export interface OrderServiceOptions {
  /**
   * Most orders that one instance makes or cancels at once, outside of transactions; others wait for their turn in this process. More would wait
   * for one another's rows all the same, each with a connection that others need.
   * @default 16
   */
  readonly maxConcurrent?: number
  /** Most calls that wait for their turn; further ones fail with `POOL_OVERLOADED`. @default 10000 */
  readonly maxWaiting?: number
  /** How long a call waits for its turn; then it fails with `POOL_TIMEOUT`, and nothing was sent. Milliseconds. @default 30000 */
  readonly waitTimeoutMs?: number
}

/**
 * Orders on PostgreSQL: stock is never sold twice, whatever runs at the same time in this process or others.
 *
 * `createOrder` and `cancelOrder` are one statement each, which is all or nothing by itself and joins the transaction of its caller.
 * Both lock the rows of their products first, in the order of their ids, so that no two of them can wait for each other in a circle, and
 * decide by what they find in the locked rows. Outside a transaction the locks are held for that one statement, and no round trip. Keep
 * one instance per process: it lets so many at once to the database as are of use there.
 *
 * Whoever lost the connection does not know whether the order was made: with an idempotency key the call can be repeated.
 *
 * @example
 * ```ts
 * import { createDatabase } from 'kanta'
 * import { type DB, InsufficientStockError, OrderService } from 'kanta/domain'
 *
 * await using database = await createDatabase<DB>()
 * const orders = new OrderService(database)
 * const [userId, productId] = ['0197d4c8-0000-7000-8000-000000000000', '0197d4c9-0000-7000-8000-000000000000']
 * try {
 *   const order = await orders.createOrder(userId, [{ productId, quantity: 2 }], { idempotencyKey: 'cart 4711' })
 *   await orders.payOrder(order)
 * } catch (error) {
 *   if (!(error instanceof InsufficientStockError)) throw error
 *   console.log(`only ${error.shortages[0]?.available} left`)
 * }
 * ```
 */
export class OrderService implements OrderProcessing {
  readonly #database: QuerySource<DB>
  readonly #orders: OrderRepository
  readonly #turns: Turns

  constructor(database: QuerySource<DB>, options: OrderServiceOptions = {}) {
    const { maxConcurrent = 16, maxWaiting = 10_000, waitTimeoutMs = 30_000 } = options
    this.#database = database
    this.#orders = new OrderRepository(database)
    this.#turns = new Turns({
      maxConcurrent: wholeNumber('maxConcurrent', maxConcurrent, 1),
      maxWaiting: wholeNumber('maxWaiting', maxWaiting, 0),
      waitTimeoutMs: wholeNumber('waitTimeoutMs', waitTimeoutMs, 1, largestInt32),
    })
  }

  /** This service on a transaction that is passed by hand. */
  withTransaction(transaction: Transaction<DB>): OrderService {
    return new OrderService({ db: transaction })
  }

  async createOrder(userId: string, lines: readonly OrderLine[], options: OrderOptions = {}): Promise<OrderWithItems> {
    const { productIds, quantities, key } = checkedOrder(userId, lines, options)
    const request = { userId, productIds, quantities, key }
    for (let attempt = 1; ; attempt++) {
      const verdict = await this.#place(request)
      if (verdict.placed !== null) return orderOf(verdict)
      // Also when there is a reason to refuse: the order that was made before may be what has taken the stock.
      const existing = key === null ? undefined : await this.#findByKey(request)
      if (existing !== undefined) return existing
      const refusal = refusalOf(userId, verdict)
      if (refusal !== undefined) throw refusal
      // With a key, the order of it that was in the way may be gone by now.
      if (key === null || attempt >= mostAttempts) throw notWritten('insert')
    }
  }

  payOrder(ref: OrderRef): Promise<Order> {
    return this.#change(ref, 'paid')
  }

  shipOrder(ref: OrderRef): Promise<Order> {
    return this.#change(ref, 'shipped')
  }

  deliverOrder(ref: OrderRef): Promise<Order> {
    return this.#change(ref, 'delivered')
  }

  cancelOrder(ref: OrderRef): Promise<Order> {
    return this.#change(ref, 'cancelled')
  }

  get #db(): Kysely<DB> {
    return this.#database.db
  }

  async #place(request: OrderRequest): Promise<Verdict> {
    const [verdict] = await this.#inTurn(placeOrder(request))
    return verdict as Verdict
  }

  /** A statement that takes locks, when there is room for one more. */
  async #inTurn<Row>(statement: RawBuilder<Row>): Promise<readonly Row[]> {
    const run = async (): Promise<readonly Row[]> => (await statement.execute(this.#db)).rows
    // A transaction has its connection, and may have the locks that those before it wait for.
    const isInside = this.#database.currentTransaction !== undefined || this.#db.isTransaction
    return isInside ? run() : this.#turns.take(run)
  }

  async #findByKey({ userId, key, productIds, quantities }: OrderRequest): Promise<OrderWithItems | undefined> {
    const { rows } = await sql<{ id: string; isSame: boolean }>`
      select o.id,
        not exists (
          select from (${linesOf(productIds, quantities)}) as w
          full join (select product_id, quantity from order_items where order_id = o.id) as i using (product_id)
          where w.quantity is distinct from i.quantity
        ) as "isSame"
      from orders o where o.user_id = ${userId} and o.idempotency_key = ${key}`.execute(this.#db)
    const [found] = rows
    if (found === undefined) return undefined
    if (!found.isSame) throw new IdempotencyKeyReusedError()
    return this.#orders.findWithItems(found.id)
  }

  async #change(ref: OrderRef, to: OrderStatus): Promise<Order> {
    const { id, version = null } = typeof ref === 'object' && ref !== null ? ref : { id: ref }
    for (let attempt = 1; ; attempt++) {
      // What takes no stock waits for nobody who does.
      const [changed] =
        to === 'cancelled'
          ? await this.#inTurn(cancelOrder(id, version))
          : (await changeOrder(id, version, to).execute(this.#db)).rows
      if (changed !== undefined) return changed
      if (to === 'cancelled') {
        const order = await this.#orders.getById(id)
        if (order.status === to) return order
      }
      // Says so when there is no such order, or not of this version.
      const { status } = await this.#orders.update(ref, {})
      if (!orderChanges[to].includes(status)) throw new IllegalOrderChangeError(status, to)
      // It has come to a state from which the change leads in between; not every time.
      if (attempt >= mostAttempts) throw notWritten('update')
    }
  }
}

/** An order goes through fewer states than that while one looks. */
const mostAttempts = 8

function notWritten(statement: 'insert' | 'update'): DatabaseError {
  return new DatabaseError(
    'QUERY_FAILED',
    `orders: the ${statement} gave no row back. Look for a trigger, rule or policy of the table that suppresses it.`,
    { table: 'orders' },
  )
}

/** JSON has times as text. */
function orderOf({ placed, items }: Verdict): OrderWithItems {
  const { createdAt, updatedAt, ...order } = placed as NonNullable<Verdict['placed']>
  return { ...order, createdAt: new Date(createdAt), updatedAt: new Date(updatedAt), items: items ?? [] }
}

function refusalOf(userId: string, verdict: Verdict): DomainError | undefined {
  const { hasCustomer, unavailable, currencies, shortages, isTooLarge } = verdict
  if (!hasCustomer) return new CustomerUnavailableError(userId)
  if (unavailable.length > 0) return new ProductUnavailableError(unavailable)
  if (currencies.length > 1) return new MixedCurrenciesError(currencies)
  if (shortages.length > 0) return new InsufficientStockError(shortages)
  return isTooLarge ? new OrderTooLargeError() : undefined
}

function wholeNumber(name: string, value: unknown, least: number, most?: number): number {
  if (isWhole(value, least, most)) return value
  const bounds = `from ${least}${most === undefined ? '' : ` to ${most}`}`
  throw new DatabaseError('INVALID_ARGUMENT', `OrderService: ${name} must be a whole number ${bounds}.`)
}
