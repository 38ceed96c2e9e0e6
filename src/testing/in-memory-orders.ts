import {
  CustomerUnavailableError,
  IdempotencyKeyReusedError,
  IllegalOrderChangeError,
  InsufficientStockError,
  MixedCurrenciesError,
  OrderTooLargeError,
  ProductUnavailableError,
} from '../domain/errors.ts'
import {
  checkedOrder,
  largestTotalMinor,
  type Order,
  type OrderItem,
  type OrderLine,
  type OrderOptions,
  type OrderPage,
  type OrderProcessing,
  type OrderRef,
  type OrderStatus,
  type OrderStore,
  type OrderWithItems,
  orderChanges,
} from '../domain/order.ts'
import type { Product } from '../domain/product.ts'
import { compareBy, pageOf, rowCount, uuid, uuidV7 } from './in-memory-table.ts'
import type { InMemoryTables } from './in-memory-tables.ts'

/** Orders in memory, to be read. */
export class InMemoryOrders implements OrderStore {
  readonly #tables: InMemoryTables

  constructor(tables: InMemoryTables) {
    this.#tables = tables
  }

  async findById(id: string): Promise<Order | undefined> {
    const row = this.#tables.orders.find(id)
    return row && { ...row }
  }

  async getById(id: string): Promise<Order> {
    return { ...this.#tables.orders.get(id) }
  }

  async findWithItems(id: string): Promise<OrderWithItems | undefined> {
    const row = this.#tables.orders.find(id)
    return row && withItems(this.#tables, row)
  }

  async findByUser(userId: string, { limit = 50, after }: OrderPage = {}): Promise<OrderWithItems[]> {
    const owner = uuid(userId)
    const orders = this.#tables.orders.alive.filter((order) => order.userId === owner)
    const last = after && { time: after.createdAt, id: after.id }
    return pageOf(orders, (order) => order.createdAt, last, rowCount('orders', 'limit', limit)).map((order) =>
      withItems(this.#tables, order),
    )
  }
}

interface Wanted {
  readonly product: Product
  readonly quantity: number
}

/** Makes and changes orders in memory, one after the other: what it does for one is done before the next begins. */
export class InMemoryOrderService implements OrderProcessing {
  readonly #tables: InMemoryTables

  constructor(tables: InMemoryTables) {
    this.#tables = tables
  }

  async createOrder(userId: string, lines: readonly OrderLine[], options: OrderOptions = {}): Promise<OrderWithItems> {
    const { productIds, quantities, key } = checkedOrder(userId, lines, options)
    const quantityOf = new Map<string, number>()
    for (const [index, id] of productIds.map(uuid).entries()) {
      quantityOf.set(id, (quantityOf.get(id) ?? 0) + (quantities[index] ?? 0))
    }
    const owner = uuid(userId)
    const known = key === null ? undefined : this.#ofKey(owner, key)
    if (known !== undefined) return this.#again(known, quantityOf)

    if (this.#tables.users.find(owner)?.isActive !== true) throw new CustomerUnavailableError(userId)
    const wanted = this.#wanted(quantityOf)
    const totalMinor = wanted.reduce((sum, { product, quantity }) => sum + product.priceMinor * quantity, 0)
    if (totalMinor > largestTotalMinor) throw new OrderTooLargeError()
    return this.#write(owner, key, totalMinor, wanted)
  }

  async payOrder(ref: OrderRef): Promise<Order> {
    return this.#change(ref, 'paid')
  }

  async shipOrder(ref: OrderRef): Promise<Order> {
    return this.#change(ref, 'shipped')
  }

  async deliverOrder(ref: OrderRef): Promise<Order> {
    return this.#change(ref, 'delivered')
  }

  async cancelOrder(ref: OrderRef): Promise<Order> {
    const { products, orders, items } = this.#tables
    const before = orders.get(typeof ref === 'object' && ref !== null ? ref.id : ref)
    if (before.status === 'cancelled') return { ...before }
    const order = this.#change(ref, 'cancelled')
    const taken = (items.get(order.id) ?? []).map((item) => ({ ...item, product: products.get(item.productId) }))
    try {
      for (const { product, quantity } of taken) products.update(product.id, { stock: product.stock + quantity })
    } catch (error) {
      for (const { product } of taken) products.replace(product)
      orders.replace(before)
      throw error
    }
    return order
  }

  #ofKey(userId: string, key: string): Order | undefined {
    return this.#tables.orders.alive.find((order) => order.userId === userId && order.idempotencyKey === key)
  }

  #again(order: Order, quantityOf: ReadonlyMap<string, number>): OrderWithItems {
    const known = withItems(this.#tables, order)
    const isSame =
      known.items.length === quantityOf.size &&
      known.items.every((item) => quantityOf.get(item.productId) === item.quantity)
    if (!isSame) throw new IdempotencyKeyReusedError()
    return known
  }

  /** What is asked for, by the ids of the products, if all of it can be sold. */
  #wanted(quantityOf: ReadonlyMap<string, number>): Wanted[] {
    const { products } = this.#tables
    const ids = [...quantityOf.keys()].toSorted()
    const unavailable = ids.filter((id) => products.find(id)?.isActive !== true)
    if (unavailable.length > 0) throw new ProductUnavailableError(unavailable)

    const wanted = ids.map((id) => ({ product: products.get(id), quantity: quantityOf.get(id) ?? 0 }))
    const currencies = [...new Set(wanted.map(({ product }) => product.currency))].toSorted()
    if (currencies.length > 1) throw new MixedCurrenciesError(currencies)

    const shortages = wanted
      .filter(({ product, quantity }) => product.stock < quantity)
      .map(({ product, quantity }) => ({ productId: product.id, requested: quantity, available: product.stock }))
    if (shortages.length > 0) throw new InsufficientStockError(shortages)
    return wanted
  }

  #write(userId: string, idempotencyKey: string | null, totalMinor: number, wanted: readonly Wanted[]): OrderWithItems {
    const { items, now, orders, products } = this.#tables
    const currency = wanted[0]?.product.currency
    const order = orders.insert({ userId, totalMinor, currency, idempotencyKey })
    const lines = wanted.map(({ product, quantity }): OrderItem => ({
      id: uuidV7(now()),
      productId: product.id,
      quantity,
      unitPriceMinor: product.priceMinor,
    }))
    items.set(order.id, lines)
    for (const { product, quantity } of wanted) products.update(product.id, { stock: product.stock - quantity })
    return withItems(this.#tables, order)
  }

  #change(ref: OrderRef, to: OrderStatus): Order {
    const { orders } = this.#tables
    const order = orders.target(ref)
    if (!orderChanges[to].includes(order.status)) throw new IllegalOrderChangeError(order.status, to)
    return { ...orders.write(order, { status: to }) }
  }
}

function withItems({ items }: InMemoryTables, order: Order): OrderWithItems {
  const lines = (items.get(order.id) ?? []).map((item) => ({ ...item }))
  return { ...order, items: lines.toSorted(compareBy((item) => item.productId)) }
}
