import type { OrderProcessing, OrderStore } from '../domain/order.ts'
import type { PasswordHasher } from '../domain/password-hasher.ts'
import type { CommentStore, LikeStore, PostStore } from '../domain/post.ts'
import type { CategoryStore, ProductStore, StatisticsStore } from '../domain/product.ts'
import type { UserStore } from '../domain/user.ts'
import { InMemoryCategories, InMemoryProducts } from './in-memory-catalogue.ts'
import { InMemoryOrders, InMemoryOrderService } from './in-memory-orders.ts'
import { InMemoryComments, InMemoryLikes, InMemoryPosts } from './in-memory-posts.ts'
import { InMemoryStatistics } from './in-memory-statistics.ts'
import { InMemoryTables } from './in-memory-tables.ts'
import { InMemoryUsers, testPasswordHasher } from './in-memory-users.ts'

/** Settings of an {@link inMemoryDomain}. */
export interface InMemoryDomainOptions {
  /** Where times come from, for instance a clock that a test moves. @default the system's */
  readonly now?: () => Date
  /** @default one that costs nothing and is for tests only */
  readonly passwordHasher?: PasswordHasher
}

/** All stores of the domain, which see each other's rows. */
export interface InMemoryDomain {
  readonly users: UserStore
  readonly categories: CategoryStore
  readonly products: ProductStore
  readonly posts: PostStore
  readonly comments: CommentStore
  readonly likes: LikeStore
  readonly orders: OrderStore
  readonly orderService: OrderProcessing
  readonly statistics: StatisticsStore
}

/**
 * The stores of the domain without a database, for unit tests of the code that uses them: the same results, order, errors, constraints and rules
 * for case and deletion as on PostgreSQL, which one suite holds for both.
 *
 * What is different: there are no transactions, each call is all or nothing by itself. Texts are ordered by their code units, as in the
 * collation `C`. Search knows a few English endings instead of a dictionary.
 *
 * @example
 * ```ts
 * import assert from 'node:assert/strict'
 * import { inMemoryDomain } from 'kanta/testing'
 *
 * const { users } = inMemoryDomain()
 * const ada = await users.createUser({ email: 'ada@example.org', username: 'ada', name: 'Ada', password: 'a long enough secret' })
 * assert.deepEqual(await users.findByEmail('ADA@example.org'), ada)
 * ```
 */
export function inMemoryDomain(options: InMemoryDomainOptions = {}): InMemoryDomain {
  const tables = new InMemoryTables(options.now ?? (() => new Date()))
  return {
    users: new InMemoryUsers(tables, options.passwordHasher ?? testPasswordHasher),
    categories: new InMemoryCategories(tables),
    products: new InMemoryProducts(tables),
    posts: new InMemoryPosts(tables),
    comments: new InMemoryComments(tables),
    likes: new InMemoryLikes(tables),
    orders: new InMemoryOrders(tables),
    orderService: new InMemoryOrderService(tables),
    statistics: new InMemoryStatistics(tables),
  }
}
