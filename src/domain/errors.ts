const brand = Symbol.for('kanta.DomainError')

/** The stable, literal code of a {@link DomainError}. */
export type DomainErrorCode =
  | 'CUSTOMER_UNAVAILABLE'
  | 'IDEMPOTENCY_KEY_REUSED'
  | 'ILLEGAL_ORDER_CHANGE'
  | 'INSUFFICIENT_STOCK'
  | 'INVALID_ORDER'
  | 'MIXED_CURRENCIES'
  | 'ORDER_TOO_LARGE'
  | 'PRODUCT_UNAVAILABLE'

/**
 * A rule of the shop says no. Nothing of the database has failed, so it is no `DatabaseError`; `code`, `retry` and `transient` are there
 * as on one, and a transaction that it leaves is rolled back and not repeated. Fields hold keys and numbers of the shop, the message none.
 *
 * @example
 * ```ts
 * import { isDatabaseError } from 'kanta'
 * import { isDomainError } from 'kanta/domain'
 *
 * export function statusOf(error: unknown): number {
 *   if (isDomainError(error)) return error.code === 'INVALID_ORDER' ? 400 : 409
 *   return isDatabaseError(error) && error.transient ? 503 : 500
 * }
 * ```
 */
export class DomainError extends Error {
  readonly code: DomainErrorCode
  /** The same call would be refused again. */
  readonly retry = 'none'
  readonly transient = false

  constructor(code: DomainErrorCode, message: string) {
    super(message)
    this.code = code
    Object.defineProperty(this, brand, { value: true })
  }

  override get name(): string {
    return this.constructor.name
  }
}

/** Whether an error is a {@link DomainError}, of this copy of the package or another. */
export function isDomainError(error: unknown): error is DomainError {
  return typeof error === 'object' && error !== null && brand in error
}

/** A product of which there is less than was asked for. */
export interface StockShortage {
  readonly productId: string
  readonly requested: number
  readonly available: number
}

/** There is too little of at least one product; nothing was taken of any. `shortages` has all of them by product id. */
export class InsufficientStockError extends DomainError {
  override readonly code = 'INSUFFICIENT_STOCK'
  readonly shortages: readonly StockShortage[]

  constructor(shortages: readonly StockShortage[]) {
    const what = shortages.length === 1 ? '1 product' : `${shortages.length} products`
    super(
      'INSUFFICIENT_STOCK',
      `There is too little of ${what}; nothing was taken. Ask for what \`shortages\` says is left.`,
    )
    this.shortages = shortages
  }
}

/** Products that do not exist or are not for sale. `productIds` has all of them. */
export class ProductUnavailableError extends DomainError {
  override readonly code = 'PRODUCT_UNAVAILABLE'
  readonly productIds: readonly string[]

  constructor(productIds: readonly string[]) {
    super(
      'PRODUCT_UNAVAILABLE',
      'Products do not exist or are not for sale. Take those of `productIds` out of the order.',
    )
    this.productIds = productIds
  }
}

/** The products of an order have prices in more than one currency. */
export class MixedCurrenciesError extends DomainError {
  override readonly code = 'MIXED_CURRENCIES'
  /** In alphabetical order. */
  readonly currencies: readonly string[]

  constructor(currencies: readonly string[]) {
    super(
      'MIXED_CURRENCIES',
      'The products of an order have prices in several currencies. Make an order for each of `currencies`.',
    )
    this.currencies = currencies
  }
}

/** Who orders does not exist, is locked, or was deleted. */
export class CustomerUnavailableError extends DomainError {
  override readonly code = 'CUSTOMER_UNAVAILABLE'
  readonly userId: string

  constructor(userId: string) {
    super('CUSTOMER_UNAVAILABLE', 'The user of an order does not exist, is locked, or was deleted.')
    this.userId = userId
  }
}

/** An order is in a state from which the change does not lead. */
export class IllegalOrderChangeError extends DomainError {
  override readonly code = 'ILLEGAL_ORDER_CHANGE'
  readonly from: string
  readonly to: string

  constructor(from: string, to: string) {
    super(
      'ILLEGAL_ORDER_CHANGE',
      `An order that is ${from} cannot become ${to}. Read it again, and decide with what it is now.`,
    )
    this.from = from
    this.to = to
  }
}

/** The key of an order was used before, for an order of other lines. */
export class IdempotencyKeyReusedError extends DomainError {
  override readonly code = 'IDEMPOTENCY_KEY_REUSED'

  constructor() {
    super(
      'IDEMPOTENCY_KEY_REUSED',
      'The idempotency key belongs to an order of other lines. Use a new key for each order, and the same only to repeat a call.',
    )
  }
}

/** What was ordered makes no order: no lines, or quantities that are not whole numbers from 1. `problems` names each. */
export class InvalidOrderError extends DomainError {
  override readonly code = 'INVALID_ORDER'
  readonly problems: readonly string[]

  constructor(problems: readonly string[]) {
    super('INVALID_ORDER', `This makes no order: ${problems.join('; ')}.`)
    this.problems = problems
  }
}

/** An order is worth more than its total can say. */
export class OrderTooLargeError extends DomainError {
  override readonly code = 'ORDER_TOO_LARGE'

  constructor() {
    super('ORDER_TOO_LARGE', 'An order can be worth 2 147 483 647 of the smallest unit. Split it.')
  }
}
