import { type Insertable, type Selectable, type Transaction, sql } from 'kysely'
import type { DB, OrderStatus } from '../src/generated/schema.ts'
import type { QuerySource } from '../src/repository/query-source.ts'
import { SalesStatistics } from '../src/repositories/sales-statistics.ts'
import { type Random, seededRandom } from './random.ts'
import {
  departments,
  descriptions,
  firstNames,
  lastNames,
  materials,
  places,
  postTitles,
  qualities,
  remarks,
  sentences,
} from './vocabulary.ts'

/** The password of every user of the development data. */
export const developmentPassword = 'kanta-development'

// One hash for all: a hash of their own for each of thousands of users would take a quarter of an hour.
const developmentPasswordHash =
  '$scrypt$ln=17,r=8,p=1$3IeUzcvX7YgQq0g5jXWEbg$27EMy0uWbSv9fETbUGczDMHxjA+b5sdE5xd6kt3HMiw'

const firstDay = new Date('2025-07-01T06:00:00Z')
const lastDay = new Date('2026-06-30T20:00:00Z')
const day = 86_400_000

/** What is computed from the others is left out. */
type Table = Exclude<keyof DB & string, 'product_sales' | 'statistics_refreshes'>
type DataSet = { readonly [T in Table]: readonly Insertable<DB[T]>[] }

/** How far a seeding has come. */
export interface SeedProgress {
  readonly table: string
  /** Rows written so far, of all tables. */
  readonly rows: number
  readonly totalRows: number
}

/** What a seeding did. */
export interface SeedResult {
  /** False when the data was there already. */
  readonly inserted: boolean
  /** The number of rows of the data set by table. */
  readonly rows: Readonly<Record<Table, number>>
}

/**
 * Fills the reference domain with a shop of some years: the same 2 000 users, 1 200 products, 5 000 orders, and their
 * posts, comments and likes at every run, on every machine. Totals of orders are the sums of their items, and the stock
 * of a product is what they left; the statistics are those of all. All users have the password {@link developmentPassword}; `ada@example.org` is the
 * administrator.
 *
 * It is one transaction: all of it is there afterwards, or none. A second run finds the data and writes nothing, also
 * when both run at once. Rows that are not of this data set are left alone; if one of them has an email, username, sku
 * or slug that the set needs, the run fails with `UNIQUE_VIOLATION`.
 *
 * @example
 * ```ts
 * import { createDatabase } from '../src/index.ts'
 * import type { DB, OrderStatus } from '../src/generated/schema.ts'
 * import { seedDevelopment } from './development.ts'
 *
 * await using database = await createDatabase<DB>()
 * const { inserted, rows } = await seedDevelopment(database)
 * console.log(inserted ? `${rows.users} users written` : 'already there')
 * ```
 */
export async function seedDevelopment(
  database: QuerySource<DB>,
  options: { readonly onProgress?: (progress: SeedProgress) => void } = {},
): Promise<SeedResult> {
  const data = developmentData()
  const tables = Object.keys(data) as Table[]
  const rows = Object.fromEntries(tables.map((table) => [table, data[table].length])) as Record<Table, number>
  const totalRows = Object.values(rows).reduce((sum, count) => sum + count, 0)

  const inserted = await database.db.transaction().execute(async (trx) => {
    // Two seedings at once would both find nothing; the second waits here for the first to end.
    await sql`select pg_advisory_xact_lock(hashtext('kanta development data'))`.execute(trx)
    const [first] = data.users
    const found = await trx
      .selectFrom('users')
      .select('id')
      .where('id', '=', first?.id ?? '')
      .executeTakeFirst()
    if (found !== undefined) return false

    let written = 0
    for (const table of tables) {
      for (let from = 0; from < data[table].length; from += rowsPerStatement) {
        const chunk = data[table].slice(from, from + rowsPerStatement)
        await insertRows(trx, table, chunk)
        written += chunk.length
        options.onProgress?.({ table, rows: written, totalRows })
      }
    }
    // The embedded PostgreSQL has no autovacuum, and on a server the first queries come before it: without statistics
    // they would get the plans of empty tables.
    await sql`analyze ${sql.join(tables.map((table) => sql.table(table)))}`.execute(trx)
    await new SalesStatistics({ db: trx }).refreshStatistics()
    return true
  })
  return { inserted, rows }
}

const rowsPerStatement = 4_000

/** All rows as one JSON parameter: the text is the same for any number of rows and far from the limit of parameters. */
async function insertRows(trx: Transaction<DB>, table: Table, rows: readonly object[]): Promise<void> {
  const columns = sql.join(Object.keys(rows[0] ?? {}).map((column) => sql.ref(column)))
  await sql`insert into ${sql.table(table)} (${columns})
    select ${columns} from json_populate_recordset(null::${sql.table(table)}, ${JSON.stringify(rows)})`.execute(trx)
}

/** The whole data set, in the order in which its tables can be filled. */
export function developmentData(): DataSet {
  const random = seededRandom(20_260_630)
  const users = makeUsers(random, 2_000)
  const shop = makeShop(random, 1_200)
  const sales = makeOrders(random, users, shop.products, 5_000)
  return {
    users,
    user_profiles: makeProfiles(random, users),
    categories: shop.categories,
    products: shop.products,
    product_categories: shop.shown,
    ...sales,
    ...makePosts(random, users, 3_000),
  }
}

type User = Omit<Selectable<DB['users']>, 'version'>

function makeUsers(random: Random, count: number): User[] {
  const taken = new Set<string>()
  return Array.from({ length: count }, (_, index): User => {
    const name = index === 0 ? 'Ada' : `${random.pick(firstNames)} ${random.pick(lastNames)}`
    const base = ascii(name).replaceAll(' ', '.')
    let username = base
    for (let suffix = 2; taken.has(username); suffix++) username = `${base}${suffix}`
    taken.add(username)
    // The shop grows: the first thousand came in the years before, the others ever faster.
    const created_at =
      index < count / 2
        ? random.date(new Date(firstDay.getTime() - 700 * day), firstDay)
        : new Date(lastDay.getTime() - random.next() ** 2 * 365 * day)
    const deleted_at = index > 50 && random.chance(0.02) ? random.date(created_at, lastDay) : null
    const last_login_at = random.chance(0.9) ? random.date(created_at, deleted_at ?? lastDay) : null
    return {
      id: random.uuid(created_at),
      email: `${username}@example.${random.pick(['org', 'com', 'net'])}`.replace(/^ada@.*/, 'ada@example.org'),
      username,
      name,
      password_hash: developmentPasswordHash,
      role: index === 0 ? 'admin' : index <= 12 ? 'staff' : 'member',
      is_active: index <= 50 || random.chance(0.96),
      last_login_at,
      created_at,
      updated_at: deleted_at ?? created_at,
      deleted_at,
    }
  })
}

function makeProfiles(random: Random, users: readonly User[]): Insertable<DB['user_profiles']>[] {
  return users
    .filter(() => random.chance(0.7))
    .map((user) => ({
      user_id: user.id,
      bio: random.chance(0.6) ? text(random, sentences, 2) : null,
      location: random.chance(0.8) ? random.pick(places) : null,
      website: random.chance(0.2) ? `https://${user.username}.example.org` : null,
      preferences: { theme: random.pick(['light', 'dark', 'system']), newsletter: random.chance(0.3) },
      created_at: user.created_at,
      updated_at: user.created_at,
    }))
}

type Product = Omit<Selectable<DB['products']>, 'search_vector' | 'version'>

function makeShop(random: Random, count: number) {
  const opened = new Date(firstDay.getTime() - 710 * day)
  const categories: Required<Insertable<DB['categories']>>[] = []
  const addCategory = (name: string, parent_id: string | null, position: number): string => {
    const id = random.uuid(opened)
    const slug = ascii(name).replaceAll(' ', '-')
    categories.push({ id, parent_id, slug, name, position, created_at: opened, updated_at: opened })
    return id
  }
  const shelves = Object.entries(departments).flatMap(([department, below], position) => {
    const parent = addCategory(department, null, position)
    return below.map((shelf, place) => ({ ...shelf, department, id: addCategory(shelf.name, parent, place) }))
  })
  const special = ['New', 'Gifts', 'Last Pieces'].map((name, position) => addCategory(name, null, 100 + position))

  const products: Product[] = []
  const shown: Insertable<DB['product_categories']>[] = []
  for (let index = 0; index < count; index++) {
    const shelf = random.pick(shelves)
    const [low, high] = shelf.priceMinor
    const created_at = random.date(opened, new Date(lastDay.getTime() - 20 * day))
    const name = `${random.pick(qualities)} ${random.pick(materials[shelf.department] ?? [])} ${random.pick(shelf.things)}`
    const product: Product = {
      id: random.uuid(created_at),
      sku: `${letters(shelf.department)}-${letters(shelf.name)}-${String(index + 1).padStart(4, '0')}`,
      name,
      description: text(random, descriptions, 2),
      // Shops like prices that end in 90, and cheap things far more than dear ones.
      price_minor: Math.max(low, Math.round((low + (high - low) * random.next() ** 2) / 100) * 100 - 10),
      currency: 'EUR',
      is_active: random.chance(0.95),
      created_at,
      updated_at: created_at,
      stock: random.chance(0.06) ? 0 : random.between(1, 240),
    }
    products.push(product)
    const shownIn = [shelf.id, ...special.filter(() => random.chance(0.08))]
    shown.push(...shownIn.map((category_id) => ({ product_id: product.id, category_id, created_at })))
  }
  return { categories, products, shown }
}

function makeOrders(random: Random, users: readonly User[], products: readonly Product[], count: number) {
  const orders: Insertable<DB['orders']>[] = []
  const order_items: Insertable<DB['order_items']>[] = []
  while (orders.length < count) {
    const user = random.pickSkewed(users)
    const created_at = random.date(firstDay, lastDay)
    const until = user.deleted_at ?? lastDay
    const onSale = (product: Product): boolean => product.created_at < created_at
    if (created_at < user.created_at || created_at > until) continue
    const basket = new Set(
      Array.from({ length: random.between(1, 5) }, () => random.pickSkewed(products)).filter(onSale),
    )
    if (basket.size === 0) continue

    const id = random.uuid(created_at)
    let total_minor = 0
    for (const product of basket) {
      const quantity = random.chance(0.7) ? 1 : random.between(2, 4)
      // Some things were cheaper when they were ordered.
      const unit_price_minor = random.chance(0.1) ? Math.round(product.price_minor * 0.9) : product.price_minor
      total_minor += quantity * unit_price_minor
      order_items.push({
        id: random.uuid(created_at),
        order_id: id,
        product_id: product.id,
        quantity,
        unit_price_minor,
      })
    }
    const { status, changedAfter } = progress(random, (lastDay.getTime() - created_at.getTime()) / day)
    const updated_at = new Date(Math.min(created_at.getTime() + changedAfter * day, lastDay.getTime()))
    orders.push({ id, user_id: user.id, status, total_minor, currency: 'EUR', created_at, updated_at })
  }
  return { orders, order_items }
}

function progress(random: Random, age: number): { status: OrderStatus; changedAfter: number } {
  if (random.chance(0.04)) return { status: 'cancelled', changedAfter: 1 }
  if (age > 9) return { status: 'delivered', changedAfter: random.between(3, 9) }
  if (age > 4) return { status: 'shipped', changedAfter: random.between(1, 4) }
  return random.chance(0.7) ? { status: 'paid', changedAfter: 0.01 } : { status: 'pending', changedAfter: 0 }
}

function makePosts(random: Random, users: readonly User[], count: number) {
  const things = Object.values(departments).flatMap((shelves) => shelves.flatMap((shelf) => shelf.things))
  const writers = users.filter((user) => user.deleted_at === null)
  const present = (since: Date): User | undefined => {
    const user = random.pickSkewed(writers)
    return user.created_at < since ? user : undefined
  }
  const posts: Insertable<DB['posts']>[] = []
  const comments: Insertable<DB['comments']>[] = []
  const likes: Insertable<DB['likes']>[] = []
  while (posts.length < count) {
    const created_at = random.date(firstDay, lastDay)
    const author = present(created_at)
    if (author === undefined) continue
    const id = random.uuid(created_at)
    const draft = random.chance(0.05)
    const title = random.pick(postTitles).replace('{thing}', random.pick(things).toLowerCase())
    const body = text(random, sentences, random.between(3, 6))
    const published_at = draft ? null : created_at
    posts.push({ id, author_id: author.id, title, body, published_at, created_at, updated_at: created_at })
    if (draft) continue

    // Most posts are read by a few, some by everybody.
    const readers = Math.floor(40 * random.next() ** 4)
    for (let reader = 0; reader < readers; reader++) {
      const written = new Date(Math.min(created_at.getTime() + random.next() ** 3 * 30 * day, lastDay.getTime()))
      const user = present(created_at)
      if (user === undefined || !random.chance(0.4)) continue
      const comment = { id: random.uuid(written), post_id: id, author_id: user.id, body: random.pick(remarks) }
      comments.push({ ...comment, created_at: written, updated_at: written })
    }
    const fans = new Set(Array.from({ length: readers }, () => present(created_at)))
    for (const user of fans) {
      if (user !== undefined)
        likes.push({ post_id: id, user_id: user.id, created_at: random.date(created_at, lastDay) })
    }
  }
  return { posts, comments, likes }
}

/** Lower-case letters, digits and spaces only: ä becomes a, signs go. */
function ascii(name: string): string {
  return name
    .toLowerCase()
    .replaceAll('ı', 'i')
    .normalize('NFD')
    .replace(/[^a-z0-9 ]/g, '')
}

function letters(name: string): string {
  return name
    .replace(/[^A-Za-z]/g, '')
    .slice(0, 3)
    .toUpperCase()
}

function text(random: Random, from: readonly string[], count: number): string {
  return Array.from(new Set(Array.from({ length: count }, () => random.pick(from)))).join(' ')
}
