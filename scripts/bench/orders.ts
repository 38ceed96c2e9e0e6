/** Orders of a shop: the order service of the reference domain beside the same rules written by hand on bare `pg`. */

import { randomBytes } from 'node:crypto'
import { Pool, type PoolClient } from 'pg'
import { type DB, OrderService } from '../../src/domain.ts'
import { createDatabase, type Database } from '../../src/index.ts'
import { createMigrator } from '../../src/migrate.ts'
import { factories } from '../../src/testing.ts'
import { type DuelResult, hold } from './duel.ts'
import { seededRandom } from './statistics.ts'

const productCount = 500
const customerCount = 100
const linesOfOrder = 3
const ordersOfRound = 600
const callers = 16

interface Line {
  readonly productId: string
  readonly quantity: number
}

interface Wanted {
  readonly userId: string
  readonly lines: readonly Line[]
}

type Placing = (order: Wanted) => Promise<unknown>

/** The rules are the same, and so is what is written; most of the time is the server's. */
export async function measureOrders(url: string, connections: number, rounds: number): Promise<DuelResult> {
  await using opened = new AsyncDisposableStack()
  const shopUrl = await newShop(opened, url)
  const postgres = { url: shopUrl, pool: { max: connections } }
  const database = opened.use(await createDatabase<DB>({ postgres, redis: false }))
  const pool = new Pool({ connectionString: shopUrl, max: connections })
  opened.defer(() => pool.end())
  const wanted = await stocked(database)
  const service = new OrderService(database)
  const prepare = (): Promise<unknown> =>
    pool.query('truncate order_items, orders; update products set stock = 1000000')
  const check = async (): Promise<void> => {
    const { rows } = await pool.query<{ count: number; sold: number }>(
      'select count(distinct order_id)::int as count, sum(quantity)::int as sold from order_items',
    )
    const { rows: left } = await pool.query<{ sold: number }>('select sum(1000000 - stock)::int as sold from products')
    if (rows[0]?.count !== ordersOfRound || rows[0].sold !== left[0]?.sold) throw new Error('Orders are missing.')
  }
  const placedBy = (place: Placing) => ({ prepare, check, run: () => placeAll(wanted, place) })
  const ways = [
    { name: 'kanta', ...placedBy(({ userId, lines }) => service.createOrder(userId, lines)) },
    { name: 'pg, by hand', target: 1, ...placedBy((order) => placeByHand(pool, order)) },
  ]
  return await hold({ work: `orders of ${linesOfOrder} lines, ${callers} at once`, unit: 'orders', ways }, rounds)
}

async function newShop(opened: AsyncDisposableStack, url: string): Promise<string> {
  const admin = new Pool({ connectionString: url, max: 1 })
  opened.defer(() => admin.end())
  const name = `kanta_bench_shop_${randomBytes(4).toString('hex')}`
  await admin.query(`create database ${name}`)
  opened.defer(async () => void (await admin.query(`drop database ${name} with (force)`)))
  const shop = new URL(url)
  shop.pathname = name
  await using migrator = await createMigrator({
    directory: 'migrations',
    postgres: { url: shop.href },
    logger: { info: () => undefined, warn: () => undefined },
  })
  await migrator.up()
  return shop.href
}

/** What is ordered in each round: the same by all. */
async function stocked(database: Database<DB>): Promise<readonly Wanted[]> {
  const make = factories(database)
  const products = await make.products.createMany(productCount)
  const users = await make.users.createMany(customerCount)
  const random = seededRandom(7)
  return Array.from({ length: ordersOfRound }, () => {
    const picked = new Set<string>()
    while (picked.size < linesOfOrder) picked.add(products[random(productCount) - 1]?.id ?? '')
    const lines = [...picked].map((productId) => ({ productId, quantity: random(3) }))
    return { userId: users[random(customerCount) - 1]?.id ?? '', lines }
  })
}

async function placeAll(wanted: readonly Wanted[], place: Placing): Promise<number> {
  let next = 0
  const call = async (): Promise<void> => {
    for (let order = wanted[next++]; order !== undefined; order = wanted[next++]) await place(order)
  }
  await Promise.all(Array.from({ length: callers }, call))
  return wanted.length
}

/** As it is usually written: a transaction that locks the products in the order of their ids, looks, and writes. */
async function placeByHand(pool: Pool, { userId, lines }: Wanted): Promise<void> {
  const client = await pool.connect()
  try {
    await client.query('begin')
    await writeByHand(client, userId, lines)
    await client.query('commit')
  } catch (error) {
    await client.query('rollback')
    throw error
  } finally {
    client.release()
  }
}

async function writeByHand(client: PoolClient, userId: string, lines: readonly Line[]): Promise<void> {
  const ids = lines.map(({ productId }) => productId)
  const quantities = lines.map(({ quantity }) => quantity)
  const customer = await client.query('select 1 from users where id = $1 and is_active and deleted_at is null', [
    userId,
  ])
  if (customer.rowCount === 0) throw new Error('There is no such customer.')
  const { rows } = await client.query<{ id: string; stock: number; price_minor: number; currency: string }>(
    'select id, stock, price_minor, currency from products where id = any($1) and is_active order by id for no key update',
    [ids],
  )
  const found = new Map(rows.map((product) => [product.id, product]))
  const items = lines.map(({ productId, quantity }) => ({ product: found.get(productId), quantity }))
  const total = items.reduce((sum, { product, quantity }) => sum + (product?.price_minor ?? Number.NaN) * quantity, 0)
  const isOneCurrency = new Set(rows.map(({ currency }) => currency)).size === 1
  const isInStock = items.every(({ product, quantity }) => product !== undefined && product.stock >= quantity)
  if (!isOneCurrency || !isInStock) throw new Error('It cannot be sold.')
  await client.query(
    `update products set stock = stock - quantity, version = version + 1, updated_at = now()
     from unnest($1::uuid[], $2::int[]) as line (product_id, quantity) where id = product_id`,
    [ids, quantities],
  )
  const { rows: placed } = await client.query<{ id: string }>(
    'insert into orders (user_id, total_minor, currency) values ($1, $2, $3) returning *',
    [userId, total, rows[0]?.currency],
  )
  await client.query(
    `insert into order_items (order_id, product_id, quantity, unit_price_minor)
     select $1, * from unnest($2::uuid[], $3::int[], $4::int[]) returning *`,
    [placed[0]?.id, ids, quantities, items.map(({ product }) => product?.price_minor)],
  )
}
