import type { Insertable, Selectable } from 'kysely'
import type { DB } from '../generated/schema.ts'
import { type Factory, factory, type FactorySource } from './factory.ts'

/** The password of every user that the factories make. */
export const testPassword = 'kanta-development'

// Of the password above: to make one takes a noticeable time.
const passwordHash = '$scrypt$ln=17,r=8,p=1$3IeUzcvX7YgQq0g5jXWEbg$27EMy0uWbSv9fETbUGczDMHxjA+b5sdE5xd6kt3HMiw'

type Row<Table extends keyof DB> = Selectable<DB[Table]>
type Values<Table extends keyof DB> = Partial<Insertable<DB[Table]>>

/** Factories for the tables of the reference domain. */
export interface DomainFactories {
  readonly users: Factory<DB, 'users'>
  readonly profiles: Factory<DB, 'user_profiles', 'user_id'>
  readonly categories: Factory<DB, 'categories'>
  readonly products: Factory<DB, 'products'>
  readonly posts: Factory<DB, 'posts', 'author_id'>
  readonly comments: Factory<DB, 'comments', 'author_id' | 'post_id'>
  readonly likes: Factory<DB, 'likes', 'post_id' | 'user_id'>
  readonly orders: Factory<DB, 'orders', 'user_id'>
  readonly orderItems: Factory<DB, 'order_items', 'order_id' | 'product_id'>
  /** A user and the profile. */
  userWithProfile(
    user?: Values<'users'>,
    profile?: Values<'user_profiles'>,
  ): Promise<{ readonly user: Row<'users'>; readonly profile: Row<'user_profiles'> }>
  /** A product in these categories, or in one of its own. */
  productInCategories(
    product?: Values<'products'>,
    categories?: readonly string[],
  ): Promise<{ readonly product: Row<'products'>; readonly categories: readonly string[] }>
  /** An order whose total is the sum of its items: as many as said, each of a product of its own, or those that are given. */
  orderWithItems(
    order?: Values<'orders'>,
    items?: number | readonly Values<'order_items'>[],
  ): Promise<{ readonly order: Row<'orders'>; readonly items: readonly Row<'order_items'>[] }>
}

/**
 * Factories for the reference domain of `kanta/domain`, over one database. Each row is valid by itself; what it refers to is made
 * unless it is given. With the same seed they give the same values in every run.
 *
 * @example
 * ```ts
 * import { memoryDatabase, factories } from 'kanta/testing'
 * import type { DB } from './generated/schema.ts'
 *
 * await using database = await memoryDatabase<DB>({ migrations: 'migrations' })
 * const make = factories(database)
 * const ada = await make.users.create({ name: 'Ada' })
 * const posts = await make.posts.createMany(3, { author_id: ada.id })
 * const { order, items } = await make.orderWithItems({ user_id: ada.id }, 2)
 * console.log(posts.length, order.total_minor, items.length)
 * ```
 */
export function factories(
  database: FactorySource<DB>,
  options: {
    /** Others for other values. @default 1 */
    readonly seed?: number | undefined
  } = {},
): DomainFactories {
  const { seed } = options
  const users = factory(
    database,
    'users',
    ({ unique, pick }) => ({
      email: `user-${unique}@example.org`,
      username: `user-${unique}`,
      name: `${pick(firstNames)} ${pick(lastNames)}`,
      password_hash: passwordHash,
    }),
    { seed },
  )
  const user_id = async (): Promise<string> => (await users.create()).id
  const profiles = factory(database, 'user_profiles', ({ n }) => ({ bio: `About user ${n}.` }), {
    seed,
    parents: { user_id },
  })
  const categories = factory(
    database,
    'categories',
    ({ n, unique }) => ({ slug: `category-${unique}`, name: `Category ${n}` }),
    { seed },
  )
  const products = factory(
    database,
    'products',
    ({ n, unique, between }) => ({
      sku: `SKU-${unique}`,
      name: `Product ${n}`,
      price_minor: between(1, 200) * 50,
      stock: between(10, 100),
    }),
    { seed },
  )
  const posts = factory(
    database,
    'posts',
    ({ n }) => ({ title: `Post ${n}`, body: `The text of post ${n}.`, published_at: new Date('2026-01-01T12:00:00Z') }),
    { seed, parents: { author_id: user_id } },
  )
  const post_id = async (): Promise<string> => (await posts.create()).id
  const comments = factory(database, 'comments', ({ n }) => ({ body: `Comment ${n}.` }), {
    seed,
    parents: { post_id, author_id: user_id },
  })
  const likes = factory(database, 'likes', () => ({}), { seed, parents: { post_id, user_id } })
  const orders = factory(database, 'orders', () => ({ total_minor: 0 }), { seed, parents: { user_id } })
  const orderItems = factory(
    database,
    'order_items',
    ({ between }) => ({ quantity: between(1, 5), unit_price_minor: between(1, 200) * 50 }),
    {
      seed,
      parents: {
        order_id: async () => (await orders.create()).id,
        product_id: async () => (await products.create()).id,
      },
    },
  )

  /** With the price that the product has. */
  async function priced(item: Values<'order_items'>): Promise<ReturnType<typeof orderItems.build>> {
    if (item.product_id !== undefined) return orderItems.build(item)
    const { id: product_id, price_minor: unit_price_minor } = await products.create()
    return orderItems.build({ unit_price_minor, ...item, product_id })
  }

  return {
    users,
    profiles,
    categories,
    products,
    posts,
    comments,
    likes,
    orders,
    orderItems,
    async userWithProfile(user, profile) {
      const created = await users.create(user)
      return { user: created, profile: await profiles.create({ ...profile, user_id: created.id }) }
    },
    async productInCategories(product, given) {
      const created = await products.create(product)
      const ids = given ?? [(await categories.create()).id]
      const links = ids.map((category_id) => ({ product_id: created.id, category_id }))
      if (links.length > 0) await database.db.insertInto('product_categories').values(links).execute()
      return { product: created, categories: ids }
    },
    async orderWithItems(order, items = 1) {
      const wanted = typeof items === 'number' ? Array.from({ length: items }, () => ({})) : items
      const built: Awaited<ReturnType<typeof priced>>[] = []
      for (const item of wanted) built.push(await priced(item))
      const total_minor = built.reduce((sum, item) => sum + item.quantity * item.unit_price_minor, 0)
      const created = await orders.create({ total_minor, ...order })
      const rows = await orderItems.createMany(built.length, (index) => ({ ...built[index], order_id: created.id }))
      return { order: created, items: rows }
    },
  }
}

const firstNames = ['Ada', 'Barbara', 'Edsger', 'Frances', 'Grace', 'Tony'] as const
const lastNames = ['Allen', 'Dijkstra', 'Hoare', 'Hopper', 'Liskov', 'Lovelace'] as const
