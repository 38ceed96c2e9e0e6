import { sql } from 'kysely'
import { beforeAll, expect, test } from 'vitest'
import { type DB, SalesStatistics, UserRepository } from '../../src/domain.ts'
import type { Database } from '../../src/index.ts'
import { developmentData, developmentPassword, seedDevelopment } from '../../seeds/development.ts'
import { freshDatabase } from '../support/database.ts'

let seeded: Database<DB>
beforeAll(async () => {
  seeded = await freshDatabase()
  await seedDevelopment(seeded)
})

async function rowCounts(database: Database<DB>): Promise<Record<string, number>> {
  const counts: Record<string, number> = {}
  for (const table of Object.keys(developmentData()) as (keyof DB & string)[]) {
    const { rows } = await sql<{ count: string }>`select count(*) as count from ${sql.table(table)}`.execute(
      database.db,
    )
    counts[table] = Number(rows[0]?.count)
  }
  return counts
}

test('the data is the same in every run', () => {
  expect(developmentData()).toEqual(developmentData())
})

test('a second run writes nothing and says so', async () => {
  const before = await rowCounts(seeded)
  expect(await seedDevelopment(seeded)).toEqual({ inserted: false, rows: before })
  expect(await rowCounts(seeded)).toEqual(before)
})

test('two runs at once write the data once', async () => {
  const database = await freshDatabase()
  const results = await Promise.all([seedDevelopment(database), seedDevelopment(database)])
  expect(results.filter((result) => result.inserted)).toHaveLength(1)
  expect(await rowCounts(database)).toEqual(results[0].rows)
})

test('a run that meets somebody else’s row writes nothing at all', async () => {
  const database = await freshDatabase()
  const users = new UserRepository(database)
  await users.createUser({ email: 'ADA@example.org', username: 'mine', name: 'Ada', password: 'a secret of mine' })
  await expect(seedDevelopment(database)).rejects.toMatchObject({ constraint: 'users_email_key' })
  expect(await rowCounts(database)).toMatchObject({ users: 1, products: 0, likes: 0 })
})

test('a run whose statistics fail writes nothing, and the next one writes them too', async () => {
  const database = await freshDatabase()
  await sql`drop index product_sales_key`.execute(database.db)
  await expect(seedDevelopment(database)).rejects.toMatchObject({ sqlState: '55000' })
  expect(await rowCounts(database)).toMatchObject({ users: 0, orders: 0 })
  await sql`create unique index product_sales_key on product_sales (product_id, currency)`.execute(database.db)
  expect(await seedDevelopment(database)).toMatchObject({ inserted: true })
  expect(await new SalesStatistics(database).getTopProducts({ limit: 1 })).toHaveLength(1)
})

test('progress goes up to the last row', async () => {
  const database = await freshDatabase()
  const progress: number[] = []
  let total = 0
  await seedDevelopment(database, {
    onProgress: ({ rows, totalRows }) => {
      progress.push(rows)
      total = totalRows
    },
  })
  expect(progress).toEqual(progress.toSorted((a, b) => a - b))
  expect(progress.at(-1)).toBe(total)
})

test('every total is the sum of its items', async () => {
  const wrong = await seeded.db
    .selectFrom('orders')
    .leftJoin('order_items', 'order_items.order_id', 'orders.id')
    .groupBy('orders.id')
    .having(sql<boolean>`coalesce(sum(quantity * unit_price_minor), 0) <> total_minor`)
    .select('orders.id')
    .execute()
  expect(wrong).toEqual([])
})

test('nothing happens before what it depends on', async () => {
  const early = await sql<{ what: string }>`
    select 'order' as what from orders o join users u on u.id = o.user_id where o.created_at < u.created_at
    union all
    select 'item' from order_items i join orders o on o.id = i.order_id join products p on p.id = i.product_id
      where o.created_at < p.created_at
    union all
    select 'post' from posts p join users u on u.id = p.author_id where p.created_at < u.created_at
    union all
    select 'comment' from comments c join posts p on p.id = c.post_id join users u on u.id = c.author_id
      where c.created_at < p.published_at or c.created_at < u.created_at or p.published_at is null
    union all
    select 'like' from likes l join posts p on p.id = l.post_id where l.created_at < p.published_at
  `.execute(seeded.db)
  expect(early.rows).toEqual([])
})

test('a few people write most of the posts', async () => {
  const authors = await seeded.db
    .selectFrom('posts')
    .groupBy('author_id')
    .select((post) => post.fn.countAll<string>().as('posts'))
    .orderBy('posts', 'desc')
    .execute()
  const counts = authors.map((author) => Number(author.posts))
  const sum = (numbers: number[]): number => numbers.reduce((total, count) => total + count, 0)
  expect(sum(counts.slice(0, Math.ceil(counts.length / 5)))).toBeGreaterThan(sum(counts) / 2)
})

test('the documented password opens the accounts', async () => {
  const users = new UserRepository(seeded)
  const ada = await users.findByCredentials('ada@example.org', developmentPassword)
  expect(ada).toMatchObject({ role: 'admin', username: 'ada' })
})
