import { InvalidOrderError } from './errors.ts'
import type { User } from './user.ts'

export type OrderStatus = 'pending' | 'paid' | 'shipped' | 'delivered' | 'cancelled'

/** What a user has ordered. */
export interface Order {
  readonly id: string
  readonly userId: string
  readonly status: OrderStatus
  /** The sum of the items in the smallest unit of the currency. */
  readonly totalMinor: number
  /** ISO 4217, for instance EUR. */
  readonly currency: string
  /** What the client calls it, if it gave it a name. */
  readonly idempotencyKey: string | null
  readonly version: number
  readonly createdAt: Date
  readonly updatedAt: Date
}

/** One line of an order: each product once. */
export interface OrderItem {
  readonly id: string
  readonly productId: string
  readonly quantity: number
  /** The price of one piece when it was ordered. */
  readonly unitPriceMinor: number
}

export interface OrderWithItems extends Order {
  /** By the ids of their products. */
  readonly items: readonly OrderItem[]
}

/** What somebody wants to buy. */
export interface OrderLine {
  readonly productId: string
  /** A whole number from 1. */
  readonly quantity: number
}

export interface OrderOptions {
  /**
   * A name for this order, 1 to 200 characters, of which the client makes one for each order: a repeated call with it gives the same
   * order and takes nothing again. @default every call is an order
   */
  readonly idempotencyKey?: string | undefined
}

/** An order by id, or as it was read: then only if nobody has changed it since. */
export type OrderRef = string | (Pick<Order, 'id'> & Partial<Order>)

/** Which orders of a user: the newest come first. */
export interface OrderPage {
  /** @default 50 */
  readonly limit?: number
  /** The last order of the page before. */
  readonly after?: Pick<Order, 'createdAt' | 'id'> | undefined
}

/** Where orders are found. */
export interface OrderStore {
  findById(id: string): Promise<Order | undefined>
  getById(id: string): Promise<Order>
  findWithItems(id: string): Promise<OrderWithItems | undefined>
  findByUser(userId: User['id'], page?: OrderPage): Promise<OrderWithItems[]>
}

/** How orders come about and go on. */
export interface OrderProcessing {
  /**
   * Takes the stock and writes the order with its items, all or nothing. Lines of one product count together; prices are those of this
   * moment. Of several reasons to refuse, the error is the first of `INVALID_ORDER`, `IDEMPOTENCY_KEY_REUSED`, `CUSTOMER_UNAVAILABLE`,
   * `PRODUCT_UNAVAILABLE`, `MIXED_CURRENCIES`, `INSUFFICIENT_STOCK`, `ORDER_TOO_LARGE`.
   */
  createOrder(userId: User['id'], lines: readonly OrderLine[], options?: OrderOptions): Promise<OrderWithItems>
  /** From pending. `ILLEGAL_ORDER_CHANGE` from anything else. */
  payOrder(ref: OrderRef): Promise<Order>
  /** From paid. `ILLEGAL_ORDER_CHANGE` from anything else. */
  shipOrder(ref: OrderRef): Promise<Order>
  /** From shipped. `ILLEGAL_ORDER_CHANGE` from anything else. */
  deliverOrder(ref: OrderRef): Promise<Order>
  /**
   * From pending or paid: puts back what it has taken, exactly once however often and from wherever it is called. Of an order that is
   * cancelled already it changes nothing and gives it back, so that it can be repeated. `ILLEGAL_ORDER_CHANGE` once it was shipped.
   */
  cancelOrder(ref: OrderRef): Promise<Order>
}

/** From which states an order gets to each. */
export const orderChanges: Readonly<Record<OrderStatus, readonly OrderStatus[]>> = {
  pending: [],
  paid: ['pending'],
  shipped: ['paid'],
  delivered: ['shipped'],
  cancelled: ['pending', 'paid'],
}

/** The most that an order can be worth, in the smallest unit: what its column holds. */
export const largestTotalMinor = 2_147_483_647

/** Lines and options as they may come out of a request, told apart and checked: `INVALID_ORDER`, with all that is wrong. */
export function checkedOrder(
  userId: string,
  lines: readonly OrderLine[],
  { idempotencyKey }: OrderOptions,
): { readonly productIds: string[]; readonly quantities: number[]; readonly key: string | null } {
  const problems = typeof userId === 'string' ? problemsOf(lines) : ['userId must be an id', ...problemsOf(lines)]
  const key = idempotencyKey ?? null
  if (key !== null && (typeof key !== 'string' || key.length < 1 || key.length > 200 || key.includes('\0'))) {
    problems.push('idempotencyKey must be text of 1 to 200 characters')
  }
  if (problems.length > 0) throw new InvalidOrderError(problems)
  return { productIds: lines.map((line) => line.productId), quantities: lines.map((line) => line.quantity), key }
}

function problemsOf(lines: unknown): string[] {
  if (!Array.isArray(lines) || lines.length === 0) return ['there must be at least one line']
  return Array.from(lines as unknown[], (line, index) => {
    const { productId, quantity } = (line ?? {}) as { productId?: unknown; quantity?: unknown }
    const isWhole = Number.isSafeInteger(quantity) && Number(quantity) >= 1
    return [
      ...(typeof productId === 'string' ? [] : [`lines[${index}].productId must be an id`]),
      ...(isWhole ? [] : [`lines[${index}].quantity must be a whole number from 1`]),
    ]
  }).flat()
}
