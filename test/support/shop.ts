/** A shop with customers and products, for tests of orders. */

import { sql } from 'kysely'
import type { DB, OrderLine } from '../../src/domain.ts'
import type { Database } from '../../src/index.ts'

export interface Shop {
  readonly userIds: readonly string[]
  readonly productIds: readonly string[]
}

/** As many customers, and products with these stocks, in the order of their ids. */
export async function openShop({ db }: Database<DB>, customers: number, stocks: readonly number[]): Promise<Shop> {
  const users = await db
    .insertInto('users')
    .values(
      Array.from({ length: customers }, (_, index) => ({
        email: `customer${index}@example.org`,
        username: `customer${index}`,
        name: 'Customer',
        password_hash: 'x'.repeat(20),
      })),
    )
    .returning('id')
    .execute()
  const products = await db
    .insertInto('products')
    .values(
      stocks.map((stock, index) => ({ sku: `P-${index}`, name: `Product ${index}`, price_minor: 100 + index, stock })),
    )
    .returning('id')
    .execute()
  return { userIds: users.map(({ id }) => id), productIds: products.map(({ id }) => id).toSorted() }
}

/**
 * What customers want: a few products that everybody wants, of one another's in opposite orders, and some others. The same for the same seed.
 */
export function rushOf(count: number, productIds: readonly string[], contended: number, seed = 1): OrderLine[][] {
  let state = seed
  const below = (limit: number): number => {
    state = (state * 1_103_515_245 + 12_345) % 2_147_483_648
    return Math.floor((state / 2_147_483_648) * limit)
  }
  return Array.from({ length: count }, (_, index) => {
    const wanted = new Set(Array.from({ length: 1 + below(3) }, () => below(contended)))
    wanted.add(contended + below(productIds.length - contended))
    const inOrder = [...wanted].toSorted((a, b) => (index % 2 === 0 ? a - b : b - a))
    return inOrder.map((product) => ({ productId: productIds[product] ?? '', quantity: 1 + below(3) }))
  })
}

export interface Books {
  readonly stock: number
  readonly sold: number
}

/** Stock and what valid orders hold, by product id. */
export async function booksOf({ db }: Database<DB>): Promise<Map<string, Books>> {
  const { rows } = await sql<Books & { id: string }>`
    select p.id, p.stock, coalesce(sum(i.quantity) filter (where o.status <> 'cancelled'), 0)::integer as sold
    from products p left join order_items i on i.product_id = p.id left join orders o on o.id = i.order_id
    group by p.id`.execute(db)
  return new Map(rows.map(({ id, stock, sold }) => [id, { stock, sold }]))
}

/** Orders without items, or whose total is not the sum of theirs. */
export async function wrongOrders({ db }: Database<DB>): Promise<number> {
  const { rows } = await sql<{ count: number }>`
    select count(*)::integer as count from orders o
    where total_minor is distinct from (select sum(quantity * unit_price_minor) from order_items i where i.order_id = o.id)`.execute(
    db,
  )
  return rows[0]?.count ?? -1
}
