import { AsyncResource } from 'node:async_hooks'
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { sql } from 'kysely'
import { describe, expect, test } from 'vitest'
import {
  InsufficientStockError,
  OrderRepository,
  OrderService,
  type OrderWithItems,
  ProductRepository,
} from '../../src/domain.ts'
import { createDatabase, type Database } from '../../src/index.ts'
import type { DB } from '../../src/generated/schema.ts'
import { closeAfterTest, freshDatabase, freshDatabaseUrl } from '../support/database.ts'
import { booksOf, openShop, rushOf, type Shop, wrongOrders } from '../support/shop.ts'

/** Runs a call as another request would make it, outside the transaction that surrounds it. */
const outside = AsyncResource.bind((work: () => Promise<unknown>) => work())

interface Outcome {
  readonly orders: OrderWithItems[]
  readonly refusals: unknown[]
}

async function settle(calls: readonly Promise<OrderWithItems>[]): Promise<Outcome> {
  const results = await Promise.allSettled(calls)
  return {
    orders: results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : [])),
    refusals: results.flatMap((result) => (result.status === 'rejected' ? [result.reason as unknown] : [])),
  }
}

function soldBy(orders: readonly OrderWithItems[]): Map<string, number> {
  const sold = new Map<string, number>()
  for (const { productId, quantity } of orders.flatMap((order) => order.items)) {
    sold.set(productId, (sold.get(productId) ?? 0) + quantity)
  }
  return sold
}

/** Four that everybody wants and of which there is too little, and sixteen others. */
const rushStocks = [300, 500, 700, 5_000, ...Array.from({ length: 16 }, () => 400)]

/** What is gone from the stock is what valid orders hold, and no order is without its items. */
async function expectTrueBooks(database: Database<DB>, before: Awaited<ReturnType<typeof booksOf>>): Promise<void> {
  for (const [id, { stock, sold }] of await booksOf(database)) {
    expect(stock).toBeGreaterThanOrEqual(0)
    expect(stock + sold).toBe(before.get(id)?.stock)
  }
  expect(await wrongOrders(database)).toBe(0)
}

describe('orders at once', () => {
  test('two thousand sell what there is and no piece more, and no deadlock reaches a caller', async () => {
    const database = await freshDatabase()
    const { userIds, productIds } = await openShop(database, 20, rushStocks)
    const before = await booksOf(database)
    const service = new OrderService(database)
    const repeated: unknown[] = []
    database.events.on('query', (event) => {
      if (event.attempts > 1 || event.error !== undefined) repeated.push(event)
    })
    const rush = rushOf(2_000, productIds, 4)
    const { orders, refusals } = await settle(
      rush.map((lines, index) => service.createOrder(userIds[index % userIds.length] ?? '', lines)),
    )
    for (const refusal of refusals) expect(refusal).toBeInstanceOf(InsufficientStockError)
    // Not one statement met a deadlock or a constraint, not even one that was repeated without anybody noticing.
    expect(repeated).toEqual([])
    expect(orders.length + refusals.length).toBe(2_000)
    // Some were refused and many were not, or nothing was contended.
    expect(refusals.length).toBeGreaterThan(200)
    expect(orders.length).toBeGreaterThan(400)

    await expectTrueBooks(database, before)
    const sold = soldBy(orders)
    for (const [id, books] of await booksOf(database)) expect(books.sold).toBe(sold.get(id) ?? 0)
    expect(await new OrderRepository(database).count()).toBe(orders.length)
  })

  test('two processes sell no piece twice', async () => {
    const url = await freshDatabaseUrl()
    const database = closeAfterTest(await createDatabase<DB>({ postgres: { url }, redis: false }))
    await openShop(database, 20, [100, 150, 200, 2_000, ...Array.from({ length: 16 }, () => 400)])
    const before = await booksOf(database)
    const sellers = [1, 2].map((seed) =>
      spawn(process.execPath, ['test/support/order-rush.ts', url, String(seed), '400'], {
        stdio: ['pipe', 'pipe', 'inherit'],
      }),
    )
    const outputs = sellers.map((seller) => createInterface(seller.stdout)[Symbol.asyncIterator]())
    await Promise.all(outputs.map((lines) => lines.next()))
    for (const seller of sellers) seller.stdin.write('sell\n')
    const counts = (await Promise.all(outputs.map((lines) => lines.next()))).map(({ value }) => Number(value))
    expect(Math.min(...counts)).toBeGreaterThan(0)
    expect(await new OrderRepository(database).count()).toBe((counts[0] ?? 0) + (counts[1] ?? 0))
    await expectTrueBooks(database, before)
  })

  test('orders, cancellations and payments in any mix keep the books', async () => {
    const database = await freshDatabase()
    const { userIds, productIds } = await openShop(database, 5, [200, 250, 300, 350, 900, 900])
    const before = await booksOf(database)
    const service = new OrderService(database)
    const lives = rushOf(300, productIds, 4).map(async (lines, index) => {
      const order = await service.createOrder(userIds[index % 5] ?? '', lines)
      const changes = [service.payOrder(order.id), service.cancelOrder(order.id), service.cancelOrder(order.id)]
      if (index % 3 === 0) await Promise.allSettled(changes.slice(0, 1 + (index % 2)))
      else await Promise.allSettled(changes)
      return order
    })
    const { orders, refusals } = await settle(lives)
    for (const refusal of refusals) expect(refusal).toBeInstanceOf(InsufficientStockError)
    expect(orders.length).toBeGreaterThan(100)
    await expectTrueBooks(database, before)
  })

  test('a shelf that empties and fills all the time refuses for no other reason than that it is empty', async () => {
    const database = await freshDatabase()
    const { userIds, productIds } = await openShop(database, 1, [4])
    const before = await booksOf(database)
    const service = new OrderService(database)
    const lines = [{ productId: productIds[0] ?? '', quantity: 2 }]
    const lives = Array.from({ length: 16 }, async () => {
      const outcomes: unknown[] = []
      for (let round = 0; round < 12; round++) {
        const order = service.createOrder(userIds[0] ?? '', lines)
        outcomes.push(await order.then(({ id }) => service.cancelOrder(id)).catch((error: unknown) => error))
      }
      return outcomes
    })
    const outcomes = (await Promise.all(lives)).flat()
    const errors = outcomes.filter((outcome) => outcome instanceof Error)
    for (const error of errors) expect(error).toBeInstanceOf(InsufficientStockError)
    expect(errors.length).toBeLessThan(outcomes.length)
    expect([...(await booksOf(database)).values()]).toEqual([{ stock: 4, sold: 0 }])
    await expectTrueBooks(database, before)
  })
})

describe('an order', () => {
  async function open(): Promise<{ database: Database<DB>; service: OrderService; shop: Shop; userId: string }> {
    const database = await freshDatabase()
    const shop = await openShop(database, 1, [10, 10])
    return { database, service: new OrderService(database), shop, userId: shop.userIds[0] ?? '' }
  }

  test('joins the transaction of its caller and is undone with it, around it or passed by hand', async () => {
    const { database, service, shop, userId } = await open()
    const lines = shop.productIds.map((productId) => ({ productId, quantity: 3 }))
    const around = database.transaction(async () => {
      await service.createOrder(userId, lines)
      throw new Error('changed my mind')
    })
    await expect(around).rejects.toThrow('changed my mind')
    const byHand = database.db.transaction().execute(async (trx) => {
      const order = await service.withTransaction(trx).createOrder(userId, lines)
      await service.withTransaction(trx).cancelOrder(order)
      await service.withTransaction(trx).createOrder(userId, lines)
      throw new Error('changed my mind')
    })
    await expect(byHand).rejects.toThrow('changed my mind')
    expect([...(await booksOf(database)).values()]).toEqual([
      { stock: 10, sold: 0 },
      { stock: 10, sold: 0 },
    ])
  })

  test('that is refused leaves the transaction of its caller usable', async () => {
    const { database, service, shop, userId } = await open()
    const [first = '', second = ''] = shop.productIds
    await database.transaction(async () => {
      const tooMuch = service.createOrder(userId, [{ productId: first, quantity: 11 }])
      await expect(tooMuch).rejects.toBeInstanceOf(InsufficientStockError)
      await service.createOrder(userId, [{ productId: second, quantity: 1 }])
    })
    expect(await new OrderRepository(database).count()).toBe(1)
  })

  test('ends what is cached of its products', async () => {
    const { database, service, shop, userId } = await open()
    const [productId = ''] = shop.productIds
    const stock = async (): Promise<number | undefined> => {
      const query = database.db.selectFrom('products').select('stock').where('id', '=', productId)
      return (await database.cached(query, { ttlMs: 60_000 }))[0]?.stock
    }
    expect(await stock()).toBe(10)
    const order = await service.createOrder(userId, [{ productId, quantity: 4 }])
    expect(await stock()).toBe(6)
    await service.cancelOrder(order)
    expect(await stock()).toBe(10)
  })

  test('does not overwrite what somebody has changed meanwhile, and is noticed by them', async () => {
    const { database, service, shop, userId } = await open()
    const products = new ProductRepository(database)
    const [productId = ''] = shop.productIds
    const read = await products.getById(productId)
    await service.createOrder(userId, [{ productId, quantity: 4 }])
    await expect(products.update(read, { stock: read.stock + 5 })).rejects.toMatchObject({ code: 'VERSION_CONFLICT' })
    expect(await products.getById(productId)).toMatchObject({ stock: 6, version: 2 })
  })

  test('waits for its turn where many come at once, and is turned away where too many wait', async () => {
    const { database, shop, userId } = await open()
    const narrow = new OrderService(database, { maxConcurrent: 1, maxWaiting: 2 })
    const lines = [{ productId: shop.productIds[0] ?? '', quantity: 1 }]
    const { orders, refusals } = await settle(Array.from({ length: 5 }, () => narrow.createOrder(userId, lines)))
    expect(orders).toHaveLength(3)
    expect(refusals).toMatchObject([{ code: 'POOL_OVERLOADED' }, { code: 'POOL_OVERLOADED' }])
    expect(await narrow.createOrder(userId, lines)).toMatchObject({ status: 'pending' })
    expect(() => new OrderService(database, { maxConcurrent: 0 })).toThrow('maxConcurrent')
  })

  test('waits for its turn only so long, and leaves the turn to those behind', async () => {
    const { database, shop, userId } = await open()
    const [productId = ''] = shop.productIds
    const narrow = new OrderService(database, { maxConcurrent: 1, waitTimeoutMs: 100 })
    const lines = [{ productId, quantity: 1 }]
    const order = () => narrow.createOrder(userId, lines)
    let atWork: Promise<unknown> = Promise.resolve()
    await database.transaction(async () => {
      await sql`select from products where id = ${productId} for update`.execute(database.db)
      atWork = outside(order)
      await expect(outside(order)).rejects.toMatchObject({
        code: 'POOL_TIMEOUT',
        limitMs: 100,
        message: expect.stringContaining('nothing was sent (orders under way: 1, still waiting: 0)') as string,
      })
    })
    expect(await atWork).toMatchObject({ status: 'pending' })
    expect(await Promise.all([order(), order()])).toHaveLength(2)
    expect(() => new OrderService(database, { waitTimeoutMs: 0 })).toThrow('waitTimeoutMs')
  })

  test('says so when the server writes nothing without an error, and does not ask for ever', async () => {
    const { database, service, shop, userId } = await open()
    const [productId = ''] = shop.productIds
    const products = new ProductRepository(database)
    const lines = [{ productId, quantity: 1 }]
    const order = await service.createOrder(userId, lines)
    await sql`create function nothing() returns trigger language plpgsql as 'begin return null; end'`.execute(
      database.db,
    )
    for (const table of ['orders', 'products']) {
      await sql`create trigger nothing before insert or update on ${sql.table(table)} for each row execute function nothing()`.execute(
        database.db,
      )
    }
    for (const call of [
      () => service.createOrder(userId, lines),
      () => service.createOrder(userId, lines, { idempotencyKey: 'cart 1' }),
      () => service.payOrder(order),
      () => service.cancelOrder(order.id),
      () => products.takeStock(productId, 1),
    ]) {
      await expect(call()).rejects.toMatchObject({ code: 'QUERY_FAILED' })
    }
  })

  test('is no error without a code when it is none', async () => {
    const { service } = await open()
    for (const ref of [null, undefined, {}]) {
      await expect(service.payOrder(ref as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
      await expect(service.cancelOrder(ref as never)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    }
  })

  test('is paid while others wait for stock', async () => {
    const { database, service, shop, userId } = await open()
    const [productId = ''] = shop.productIds
    const narrow = new OrderService(database, { maxConcurrent: 1 })
    const order = await narrow.createOrder(userId, [{ productId, quantity: 1 }])
    let waiting: Promise<unknown> | undefined
    await database.transaction(async () => {
      await service.createOrder(userId, [{ productId, quantity: 1 }])
      waiting = outside(() => narrow.createOrder(userId, [{ productId, quantity: 1 }]))
      expect(await outside(() => narrow.payOrder(order))).toMatchObject({ status: 'paid' })
    })
    await waiting
  })

  test('inside a transaction waits for nobody’s turn, who may wait for its locks', async () => {
    const { database, shop, userId } = await open()
    const service = new OrderService(database, { maxConcurrent: 1 })
    const lines = [{ productId: shop.productIds[0] ?? '', quantity: 1 }]
    let waiting: Promise<unknown> | undefined
    await database.transaction(async () => {
      await service.createOrder(userId, lines)
      waiting = outside(() => service.createOrder(userId, lines))
      await service.createOrder(userId, lines)
    })
    await waiting
    expect(await new OrderRepository(database).count()).toBe(3)
  })
})
