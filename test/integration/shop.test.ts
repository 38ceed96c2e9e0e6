/** What the stores of the domain do on PostgreSQL alone: how many statements, which indexes, without the extension, beside others. */

import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { type KyselyPlugin, sql } from 'kysely'
import { Client } from 'pg'
import { beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { seedDevelopment } from '../../seeds/development.ts'
import {
  CategoryRepository,
  CommentRepository,
  type DB,
  LikeRepository,
  OrderRepository,
  OrderService,
  PostRepository,
  ProductRepository,
  SalesStatistics,
  UserRepository,
} from '../../src/domain.ts'
import { createDatabase, type Database } from '../../src/index.ts'
import { createMigrator } from '../../src/migrate.ts'
import { closeAfterTest, freshDatabase, freshDatabaseUrl } from '../support/database.ts'
import { openShop } from '../support/shop.ts'

let seeded: Database<DB>
beforeAll(async () => {
  seeded = await freshDatabase()
  await seedDevelopment(seeded)
})

/** The domain on a Kysely that counts what is sent. */
function counted(database: Database<DB>) {
  let statements = 0
  const plugin: KyselyPlugin = {
    transformQuery: ({ node }) => node,
    transformResult: ({ result }) => {
      statements += 1
      return Promise.resolve(result)
    },
  }
  const source = { db: database.db.withPlugin(plugin) }
  const during = async (call: () => Promise<unknown>): Promise<number> => {
    statements = 0
    await call()
    return statements
  }
  return { source, during }
}

describe('one statement', () => {
  test('gives 50 products with their categories, the feed, users with profiles and with posts, numbers, an order', async () => {
    const { source, during } = counted(seeded)
    const users = new UserRepository(source)
    const ids = (await users.findActiveUsers({ limit: 40 })).map(({ id }) => id)
    const [first = ''] = ids
    const products = new ProductRepository(source)
    const found = await products.findWithCategories({ limit: 50 })
    expect(found).toHaveLength(50)
    expect(found.every(({ categories }) => categories.length > 0)).toBe(true)
    await products.search('kettle')
    const calls: Readonly<Record<string, () => Promise<unknown>>> = {
      findWithCategories: () => products.findWithCategories({ limit: 50 }),
      inCategory: () => products.findWithCategories({ category: 'kitchen', limit: 50 }),
      search: () => products.search('kettle'),
      subtree: () => new CategoryRepository(source).findCategorySubtree('kitchen'),
      feed: () => new PostRepository(source).getPaginatedPosts({ limit: 20, viewerId: first }),
      contributors: () => new PostRepository(source).getTopContributors(),
      profiles: () => users.findManyWithProfiles({ hasProfile: true, text: 'a' }),
      posts: () => users.loadUsersWithPosts(ids),
      stats: () => users.getUserStats(first),
      like: () => new LikeRepository(source).unlike(first, first),
      comments: () => new CommentRepository(source).findByPost(first),
      orders: () => new OrderRepository(source).findByUser(first),
    }
    for (const [name, call] of Object.entries(calls)) expect([name, await during(call)]).toEqual([name, 1])
  })

  test('makes an order, and one cancels it', async () => {
    const database = await freshDatabase()
    const { userIds, productIds } = await openShop(database, 1, [5, 5, 5])
    const { source, during } = counted(database)
    const service = new OrderService(source)
    const lines = productIds.map((productId) => ({ productId, quantity: 2 }))
    let id = ''
    const make = async (): Promise<void> => void ({ id } = await service.createOrder(userIds[0] ?? '', lines))
    expect(await during(make)).toBe(1)
    expect(await during(() => service.cancelOrder(id))).toBe(1)
  })
})

describe('search', () => {
  test('finds the words of a whole catalogue by the index, and similar names by another', async () => {
    const client = new Client({ connectionString: await urlOf(seeded) })
    await client.connect()
    try {
      // In a catalogue of this size other indexes are as good: those of active products are out of the way here.
      await client.query('begin; drop index products_price_idx, products_catalogue_idx; set local enable_seqscan = off')
      const planOf = async (condition: string): Promise<string> =>
        JSON.stringify((await client.query(`explain select id from products where ${condition}`)).rows)
      expect(await planOf("search_vector @@ websearch_to_tsquery('english', 'kettle')")).toContain(
        'products_search_idx',
      )
      expect(await planOf("is_active and 'ketle' <% name")).toContain('products_name_trigram_idx')
    } finally {
      await client.end()
    }
    const found = await new ProductRepository(seeded).search('kitchn ketle')
    expect(found.every(({ match }) => match === 'similar')).toBe(true)
  })

  test('without the extension the migrations succeed, and words are found all the same', async () => {
    const url = await freshDatabaseUrl()
    const admin = new Client({ connectionString: url })
    await admin.connect()
    const role = `clerk_${Math.random().toString(36).slice(2)}`
    try {
      // As it is for a role that may not create extensions.
      await admin.query(
        `create role ${role}; grant create on schema public to ${role}; alter table products owner to ${role}`,
      )
      await admin.query('drop index products_price_idx, products_name_trigram_idx; drop extension pg_trgm')
      const [up = ''] = readFileSync('migrations/0006_search.sql', 'utf8').split('-- Down Migration')
      await admin.query(`set role ${role}`)
      await admin.query(up)
      await admin.query('reset role')
      const { rows } = await admin.query("select indexname from pg_indexes where indexname ~ 'products_(price|name)'")
      expect(rows).toEqual([{ indexname: 'products_price_idx' }])
    } finally {
      await admin.query(
        `reset role; alter table products owner to current_user; drop owned by ${role}; drop role ${role}`,
      )
      await admin.end()
    }
    const products = new ProductRepository(
      closeAfterTest(await createDatabase<DB>({ postgres: { url }, redis: false })),
    )
    await products.create({ sku: 'K-1', name: 'Copper Kettle', priceMinor: 100 })
    expect(await products.search('kettles')).toMatchObject([{ name: 'Copper Kettle', match: 'words' }])
    expect(await products.search('ketle')).toEqual([])
  })

  test('forgives typing errors on the embedded PostgreSQL too, where orders are made as well', async () => {
    const dataDir = join(mkdtempSync(join(tmpdir(), 'kanta-shop-')), 'data')
    onTestFinished(() => rmSync(dirname(dataDir), { recursive: true }))
    const options = {
      postgres: { embedded: { dataDir } },
      redis: false,
      logger: { info: () => {}, warn: () => {} },
    } as const
    const migrator = await createMigrator(options)
    await migrator.up()
    await migrator.close()
    await using database = await createDatabase<DB>(options)
    const { userIds, productIds } = await openShop(database, 1, [5])
    await new ProductRepository(database).create({ sku: 'K-1', name: 'Copper Kettle', priceMinor: 100 })
    expect(await new ProductRepository(database).search('ketle')).toMatchObject([{ match: 'similar' }])
    const lines = [{ productId: productIds[0] ?? '', quantity: 2 }]
    const service = new OrderService(database)
    const calls = Array.from({ length: 4 }, () => service.createOrder(userIds[0] ?? '', lines))
    expect((await Promise.allSettled(calls)).filter(({ status }) => status === 'fulfilled')).toHaveLength(2)
    expect(await new SalesStatistics(database).refreshStatistics()).toMatchObject({ refreshed: true })
  })
})

async function urlOf(database: Database<DB>): Promise<string> {
  const name = await database.queryValue<string>(sql`select current_database()`)
  return Object.assign(new URL(await freshDatabaseUrl('empty')), { pathname: `/${name}` }).href
}

describe('statistics', () => {
  test('of many refreshes at once, from two processes’ worth of connections, few run and all are told the truth', async () => {
    const url = await freshDatabaseUrl()
    const open = async (): Promise<Database<DB>> =>
      closeAfterTest(await createDatabase<DB>({ postgres: { url }, redis: false }))
    const databases = [await open(), await open()]
    const asked = Date.now()
    const results = await Promise.all(
      Array.from({ length: 30 }, (_, index) =>
        new SalesStatistics(databases[index % 2] as Database<DB>).refreshStatistics(),
      ),
    )
    const refreshed = results.filter((result) => result.refreshed)
    expect(refreshed.length).toBeGreaterThanOrEqual(1)
    expect(refreshed.length).toBeLessThan(10)
    for (const { refreshedAt } of results) expect(refreshedAt.getTime()).toBeGreaterThanOrEqual(asked)
  })

  test('readers go on while a refresh is under way', async () => {
    const database = await freshDatabase()
    const { userIds, productIds } = await openShop(database, 1, [5])
    await new OrderService(database).createOrder(userIds[0] ?? '', [{ productId: productIds[0] ?? '', quantity: 2 }])
    const statistics = new SalesStatistics(database)
    const [outside] = [new SalesStatistics(closeAfterTest(await createDatabase<DB>(await sameAs(database))))]
    await database.transaction(async () => {
      await statistics.refreshStatistics()
      // Not committed yet: others still read what was there, without waiting.
      expect(await outside.getTopProducts()).toEqual([])
      expect(await outside.getStatisticsAge()).toBeUndefined()
    })
    expect(await outside.getTopProducts()).toMatchObject([{ productId: productIds[0], pieces: 2 }])
  })

  test('a refresh that fails leaves what was there', async () => {
    const database = await freshDatabase()
    const statistics = new SalesStatistics(database)
    const { refreshedAt } = await statistics.refreshStatistics()
    await sql`drop index product_sales_key`.execute(database.db)
    await expect(statistics.refreshStatistics()).rejects.toMatchObject({ sqlState: '55000' })
    expect(await statistics.getStatisticsAge()).toMatchObject({ refreshedAt })
    expect(await statistics.getTopProducts()).toEqual([])
  })
})

async function sameAs(database: Database<DB>) {
  return { postgres: { url: await urlOf(database) }, redis: false as const }
}
