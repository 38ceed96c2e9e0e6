import { type SqlBool, sql } from 'kysely'
import { jsonArrayFrom } from 'kysely/helpers/postgres'
import type { Order, OrderPage, OrderStore, OrderWithItems } from '../domain/order.ts'
import type { DB } from '../generated/schema.ts'
import type { QuerySource } from '../repository/query-source.ts'
import { Repository } from '../repository/repository.ts'

const orderColumns = {
  id: 'id',
  userId: 'user_id',
  status: 'status',
  totalMinor: 'total_minor',
  currency: 'currency',
  idempotencyKey: 'idempotency_key',
  version: 'version',
  createdAt: 'created_at',
  updatedAt: 'updated_at',
} as const

/**
 * Orders on PostgreSQL, to be read. They are made and changed by an {@link OrderService}, which keeps the stock right.
 *
 * @example
 * ```ts
 * import { createDatabase } from 'kanta'
 * import { type DB, OrderRepository } from 'kanta/domain'
 *
 * await using database = await createDatabase<DB>()
 * const orders = new OrderRepository(database)
 * const page = await orders.findByUser('0197d4c8-0000-7000-8000-000000000000', { limit: 20 })
 * ```
 */
export class OrderRepository extends Repository<DB, 'orders', Order, typeof orderColumns> implements OrderStore {
  constructor(database: QuerySource<DB>) {
    super(database, { table: 'orders', columns: orderColumns, version: 'version', updatedAt: 'updatedAt' })
  }

  /** One statement. */
  async findWithItems(id: string): Promise<OrderWithItems | undefined> {
    return await this.withItems().where(this.hasKey(id)).executeTakeFirst()
  }

  /** One statement. */
  async findByUser(userId: string, { limit = 50, after }: OrderPage = {}): Promise<OrderWithItems[]> {
    let query = this.withItems()
      .where('orders.user_id', '=', userId)
      .orderBy('orders.created_at', 'desc')
      .orderBy('orders.id', 'desc')
      .limit(this.rowCount('limit', limit))
    if (after !== undefined) {
      query = query.where(
        (order) =>
          sql<SqlBool>`${order.refTuple('orders.created_at', 'orders.id')} < (${after.createdAt}, ${after.id})`,
      )
    }
    return await query.execute()
  }

  private withItems() {
    return this.select().select((order) =>
      jsonArrayFrom(
        order
          .selectFrom('order_items as item')
          .whereRef('item.order_id', '=', 'orders.id')
          .select(['item.id', 'item.product_id as productId', 'item.quantity'])
          .select('item.unit_price_minor as unitPriceMinor')
          .orderBy('item.product_id'),
      ).as('items'),
    )
  }
}
