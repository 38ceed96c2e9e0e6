import { type Order, type OrderItem, largestTotalMinor } from '../domain/order.ts'
import type { Comment, Like, Post } from '../domain/post.ts'
import type { PlacedCategory, Product } from '../domain/product.ts'
import type { Profile, User, UserRole } from '../domain/user.ts'
import { InMemoryTable, lengthOf, violation } from './in-memory-table.ts'

export const userRoles: readonly UserRole[] = ['member', 'staff', 'admin']

export type UserRow = User & { readonly passwordHash: string }

/** All rows of the domain in memory, with the constraints that they have in PostgreSQL. */
export class InMemoryTables {
  readonly now: () => Date
  readonly users: InMemoryTable<UserRow>
  /** By the id of their user. */
  readonly profiles: Map<string, Profile> = new Map()
  readonly categories: InMemoryTable<PlacedCategory>
  readonly products: InMemoryTable<Product>
  /** The ids of the categories that show a product, by its id. */
  readonly shownIn: Map<string, Set<string>> = new Map()
  readonly orders: InMemoryTable<Order>
  /** By the id of their order, in the order of their products. */
  readonly items: Map<string, readonly OrderItem[]> = new Map()
  readonly posts: InMemoryTable<Post>
  readonly comments: InMemoryTable<Comment>
  /** By post and user. */
  readonly likes: Map<string, Like> = new Map()

  constructor(now: () => Date) {
    this.now = now
    this.users = usersTable(now)
    this.categories = categoriesTable(now, (id) => this.categories.find(id) !== undefined)
    this.products = productsTable(now)
    this.orders = ordersTable(now)
    this.posts = postsTable(now, this.users)
    this.comments = commentsTable(now, this.users)
  }

  writeProfile(userId: string, profile: Profile): Profile {
    if (profile.preferences === null) throw violation('NOT_NULL_VIOLATION', 'user_profiles', undefined)
    for (const [name, isFine] of Object.entries(profileChecks)) {
      if (!isFine(profile)) throw violation('CHECK_VIOLATION', 'user_profiles', name)
    }
    this.profiles.set(userId, structuredClone(profile))
    return profile
  }

  /** Deletes a product, if nobody ever ordered it. */
  removeProduct(ref: Parameters<InMemoryTable<Product>['remove']>[0]): boolean {
    const product = this.products.find(typeof ref === 'object' && ref !== null ? ref.id : ref)
    if (product === undefined) return false
    this.products.target(ref)
    const isOrdered = [...this.items.values()].some((items) => items.some((item) => item.productId === product.id))
    if (isOrdered) throw violation('FOREIGN_KEY_VIOLATION', 'order_items', 'order_items_product_id_fkey')
    this.shownIn.delete(product.id)
    return this.products.remove(ref)
  }

  isVisible(post: Post | undefined): post is Post & { readonly publishedAt: Date } {
    return post !== undefined && post.publishedAt !== null
  }
}

/** What `btrim` leaves. */
function trimmedLength(text: string): number {
  return lengthOf(text.replace(/^ +/, '').replace(/ +$/, ''))
}

const between = (length: number, least: number, most: number): boolean => length >= least && length <= most

function usersTable(now: () => Date): InMemoryTable<UserRow> {
  return new InMemoryTable<UserRow>(
    {
      table: 'users',
      kept: ['id', 'version', 'createdAt', 'updatedAt', 'deletedAt'],
      defaults: {
        email: undefined,
        username: undefined,
        name: undefined,
        role: 'member',
        isActive: true,
        lastLoginAt: null,
        passwordHash: undefined,
      },
      nullable: ['lastLoginAt'],
      words: { role: userRoles },
      fixed: ['passwordHash'],
      checks: {
        users_email_check: ({ email }) => /^[^\s@]+@[^\s@]+$/.test(email) && lengthOf(email) <= 254,
        users_name_check: ({ name }) => between(trimmedLength(name), 1, 200),
        users_username_check: ({ username }) => /^[A-Za-z0-9][A-Za-z0-9_.-]{1,31}$/.test(username),
      },
      unique: {
        users_email_key: ({ email }) => email.toLowerCase(),
        users_username_key: ({ username }) => username.toLowerCase(),
      },
    },
    now,
  )
}

const profileChecks: Readonly<Record<string, (profile: Profile) => boolean>> = {
  user_profiles_bio_check: ({ bio }) => bio === null || lengthOf(bio) <= 2_000,
  user_profiles_location_check: ({ location }) => location === null || lengthOf(location) <= 200,
  user_profiles_preferences_check: ({ preferences }) => typeof preferences === 'object' && !Array.isArray(preferences),
  user_profiles_website_check: ({ website }) =>
    website === null || (/^https?:\/\//.test(website) && lengthOf(website) <= 2_000),
}

function categoriesTable(now: () => Date, exists: (id: string) => boolean): InMemoryTable<PlacedCategory> {
  return new InMemoryTable<PlacedCategory>(
    {
      table: 'categories',
      kept: ['id', 'updatedAt'],
      defaults: { parentId: null, slug: undefined, name: undefined, position: 0 },
      nullable: ['parentId'],
      integers: ['position'],
      references: { parentId: { constraint: 'categories_parent_id_fkey', exists } },
      checks: {
        categories_name_check: ({ name }) => between(trimmedLength(name), 1, 200),
        categories_parent_check: ({ id, parentId }) => parentId !== id,
        categories_slug_check: ({ slug }) => /^[a-z0-9]+(-[a-z0-9]+)*$/.test(slug) && lengthOf(slug) <= 100,
      },
      unique: { categories_slug_key: ({ slug }) => slug },
    },
    now,
  )
}

function productsTable(now: () => Date): InMemoryTable<Product> {
  return new InMemoryTable<Product>(
    {
      table: 'products',
      kept: ['id', 'version', 'createdAt', 'updatedAt'],
      defaults: {
        sku: undefined,
        name: undefined,
        description: '',
        priceMinor: undefined,
        currency: 'EUR',
        stock: 0,
        isActive: true,
      },
      integers: ['priceMinor', 'stock'],
      checks: {
        products_currency_check: ({ currency }) => /^[A-Z]{3}$/.test(currency),
        products_description_check: ({ description }) => lengthOf(description) <= 20_000,
        products_name_check: ({ name }) => between(trimmedLength(name), 1, 200),
        products_price_minor_check: ({ priceMinor }) => priceMinor >= 0,
        products_sku_check: ({ sku }) => /^[A-Z0-9]+(-[A-Z0-9]+)*$/.test(sku) && lengthOf(sku) <= 40,
        products_stock_check: ({ stock }) => stock >= 0,
      },
      unique: { products_sku_key: ({ sku }) => sku },
    },
    now,
  )
}

function ordersTable(now: () => Date): InMemoryTable<Order> {
  return new InMemoryTable<Order>(
    {
      table: 'orders',
      kept: ['id', 'version', 'createdAt', 'updatedAt'],
      defaults: {
        userId: undefined,
        status: 'pending',
        totalMinor: undefined,
        currency: 'EUR',
        idempotencyKey: null,
      },
      nullable: ['idempotencyKey'],
      checks: { orders_total_minor_check: ({ totalMinor }) => between(totalMinor, 0, largestTotalMinor) },
    },
    now,
  )
}

function postsTable(now: () => Date, users: InMemoryTable<UserRow>): InMemoryTable<Post> {
  return new InMemoryTable<Post>(
    {
      table: 'posts',
      kept: ['id', 'version', 'createdAt', 'updatedAt', 'deletedAt'],
      defaults: { authorId: undefined, title: undefined, body: undefined, publishedAt: null },
      nullable: ['publishedAt'],
      references: { authorId: { constraint: 'posts_author_id_fkey', exists: (id) => users.exists(id) } },
      checks: {
        posts_body_check: ({ body }) => lengthOf(body) <= 100_000,
        posts_title_check: ({ title }) => between(trimmedLength(title), 1, 300),
      },
    },
    now,
  )
}

function commentsTable(now: () => Date, users: InMemoryTable<UserRow>): InMemoryTable<Comment> {
  return new InMemoryTable<Comment>(
    {
      table: 'comments',
      kept: ['id', 'createdAt', 'updatedAt'],
      defaults: { postId: undefined, authorId: undefined, body: undefined },
      references: { authorId: { constraint: 'comments_author_id_fkey', exists: (id) => users.exists(id) } },
      checks: { comments_body_check: ({ body }) => between(trimmedLength(body), 1, 10_000) },
    },
    now,
  )
}
