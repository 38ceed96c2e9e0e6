/**
 * One of several processes that sell the same products: `node order-rush.ts <database url> <seed> <count>`. Says when it is ready, sells when it is
 * told to, and prints how many orders it made.
 */

import { once } from 'node:events'
import { createDatabase } from '../../src/database/create-database.ts'
import type { DB } from '../../src/generated/schema.ts'
import { InsufficientStockError, OrderService } from '../../src/domain.ts'
import { rushOf } from './shop.ts'

const [, , url = '', seed = '', count = ''] = process.argv
await using database = await createDatabase<DB>({ postgres: { url }, redis: false })
const service = new OrderService(database)
const users = await database.db.selectFrom('users').select('id').orderBy('id').execute()
const products = await database.db.selectFrom('products').select('id').orderBy('id').execute()
const rush = rushOf(
  Number(count),
  products.map(({ id }) => id),
  4,
  Number(seed),
)
// All processes begin together, whoever was ready first.
console.log('ready')
await once(process.stdin, 'data')
const results = await Promise.allSettled(
  rush.map((lines, index) => service.createOrder(users[index % users.length]?.id ?? '', lines)),
)
for (const result of results) {
  if (result.status === 'rejected' && !(result.reason instanceof InsufficientStockError)) throw result.reason
}
console.log(results.filter(({ status }) => status === 'fulfilled').length)
process.stdin.destroy()
