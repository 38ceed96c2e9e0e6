import { type RawBuilder, sql } from 'kysely'
import type { StockShortage } from '../domain/errors.ts'
import { largestTotalMinor, type Order, type OrderItem, type OrderStatus, orderChanges } from '../domain/order.ts'

/** What a call of {@link OrderService.createOrder} asks for, as the statement takes it. */
export interface OrderRequest {
  readonly userId: string
  readonly productIds: readonly string[]
  readonly quantities: readonly number[]
  readonly key: string | null
}

/** What the statement found, and the order, if it has made one. */
export interface Verdict {
  readonly hasCustomer: boolean
  readonly unavailable: readonly string[]
  readonly currencies: readonly string[]
  readonly shortages: readonly StockShortage[]
  readonly isTooLarge: boolean
  readonly placed: (Omit<Order, 'createdAt' | 'updatedAt'> & { createdAt: string; updatedAt: string }) | null
  readonly items: readonly OrderItem[] | null
}

/** Lines of one product count together, whatever its id was written like. */
export function linesOf(productIds: readonly string[], quantities: readonly number[]): RawBuilder<unknown> {
  return sql`
    select product_id, sum(quantity) as quantity
    from unnest(${productIds}::uuid[], ${quantities}::bigint[]) as line (product_id, quantity)
    group by product_id`
}

/** An order as `returning` gives it. */
const orderColumns = sql`id, user_id as "userId", status, total_minor as "totalMinor", currency,
  idempotency_key as "idempotencyKey", version, created_at as "createdAt", updated_at as "updatedAt"`

/**
 * Parts of a WITH that write run in the order in which they need each other: `placed` needs the verdict, which needs all locked rows;
 * what takes stock and writes items needs `placed`. Where an order of the same key stands in the way, `placed` is empty and nothing
 * is taken.
 *
 * `taken` counts from what `locked` holds, which is the row as it is now. From `products.stock` it would first count from the row as it
 * was when the statement began, and meet its CHECK with that, before the server looks whether the row has changed since.
 */
export function placeOrder({ userId, productIds, quantities, key }: OrderRequest): RawBuilder<Verdict> {
  return sql<Verdict>`
    with wanted as (${linesOf(productIds, quantities)}),
    known as (select from orders where user_id = ${userId}::uuid and idempotency_key = ${key}::text),
    customer as (select from users where id = ${userId}::uuid and is_active and deleted_at is null),
    locked as materialized (
      select p.id, p.stock, p.version, p.price_minor, p.currency, p.is_active, w.quantity
      from products p join wanted w on w.product_id = p.id
      where exists (select from customer) and not exists (select from known)
      order by p.id for no key update of p
    ),
    verdict as materialized (
      select
        exists (select from customer) as "hasCustomer",
        array(
          select product_id from wanted left join locked on id = product_id where is_active is not true order by product_id
        ) as unavailable,
        array(select distinct currency from locked order by currency) as currencies,
        (
          select coalesce(json_agg(json_build_object('productId', id, 'requested', quantity, 'available', stock) order by id), '[]')
          from locked where stock < quantity
        ) as shortages,
        (select coalesce(sum(quantity * price_minor), 0) from locked) as total
    ),
    placed as (
      insert into orders (user_id, total_minor, currency, idempotency_key)
      select ${userId}::uuid, total::integer, currencies[1], ${key}::text from verdict
      where "hasCustomer" and unavailable = '{}' and cardinality(currencies) = 1
        and json_array_length(shortages) = 0 and total <= ${sql.lit(largestTotalMinor)}
      on conflict (user_id, idempotency_key) where idempotency_key is not null do nothing
      returning ${orderColumns}
    ),
    taken as (
      update products
      set stock = locked.stock - locked.quantity::integer, version = locked.version + 1, updated_at = now()
      from locked cross join placed where products.id = locked.id
    ),
    written as (
      insert into order_items (order_id, product_id, quantity, unit_price_minor)
      select placed.id, locked.id, locked.quantity::integer, locked.price_minor
      from locked cross join placed order by locked.id
      returning id, product_id as "productId", quantity, unit_price_minor as "unitPriceMinor"
    )
    select "hasCustomer", unavailable, currencies, shortages, total > ${sql.lit(largestTotalMinor)} as "isTooLarge",
      (select to_json(placed) from placed) as placed,
      (select json_agg(written order by "productId") from written) as items
    from verdict`
}

export function changeOrder(id: string, version: number | null, to: OrderStatus): RawBuilder<Order> {
  return sql<Order>`
    update orders set status = ${to}::order_status, version = version + 1, updated_at = now()
    where id = ${id} and status = any(${orderChanges[to]}::order_status[]) and version = coalesce(${version}::integer, version)
    returning ${orderColumns}`
}

/** The products are locked before the order, as an order that is made does it. */
export function cancelOrder(id: string, version: number | null): RawBuilder<Order> {
  return sql<Order>`
    with locked as materialized (
      select p.id, p.stock, p.version, item.quantity from products p join order_items item on item.product_id = p.id
      where item.order_id = ${id} order by p.id for no key update of p
    ),
    cancelled as (
      update orders set status = 'cancelled', version = version + 1, updated_at = now()
      where id = ${id} and status = any(${orderChanges.cancelled}::order_status[])
        and version = coalesce(${version}::integer, version) and (select count(*) from locked) >= 0
      returning ${orderColumns}
    ),
    put_back as (
      update products
      set stock = locked.stock + locked.quantity, version = locked.version + 1, updated_at = now()
      from locked cross join cancelled where products.id = locked.id
    )
    select * from cancelled`
}
