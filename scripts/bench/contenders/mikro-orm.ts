import { defineEntity, MikroORM, p, raw } from '@mikro-orm/postgresql'
import type { OpenContender } from '../contender.ts'
import { exportSize, pageSize, type PaymentDetails } from '../data-set.ts'

const users = defineEntity({
  name: 'users',
  properties: {
    id: p.integer().primary().autoincrement(),
    email: p.text(),
    name: p.text(),
    is_active: p.boolean(),
    order_count: p.integer(),
    created_at: p.datetime(3),
  },
})

const posts = defineEntity({
  name: 'posts',
  properties: {
    id: p.integer().primary().autoincrement(),
    title: p.text(),
    created_at: p.datetime(3),
    updated_at: p.datetime(3),
    author: () => p.manyToOne(users).joinColumn('author_id'),
  },
})

const orders = defineEntity({
  name: 'orders',
  properties: {
    id: p.integer().primary().autoincrement(),
    status: p.text(),
    updated_at: p.datetime(3),
  },
})

const payments = defineEntity({
  name: 'payments',
  properties: {
    id: p.integer().primary(),
    account_id: p.bigint('string'),
    reference: p.text(),
    purpose: p.text().nullable(),
    paid_at: p.datetime(3),
    is_settled: p.boolean(),
    amount: p.decimal('string'),
    details: p.json<PaymentDetails>(),
  },
})

const comments = defineEntity({
  name: 'comments',
  properties: {
    id: p.integer().primary().autoincrement(),
    post_id: p.integer(),
    author_id: p.integer(),
    body: p.text(),
    created_at: p.datetime(3).defaultRaw('now()'),
  },
})

/** MikroORM with a fork of the entity manager for each call, as for each request, and entities as results. */
export const openMikroOrm: OpenContender = async (settings) => {
  const orm = await MikroORM.init({
    clientUrl: settings.url,
    driverOptions: { application_name: settings.applicationName },
    pool: { min: settings.connections, max: settings.connections, idleTimeoutMillis: 0 },
    entities: [users, posts, orders, payments, comments],
    // Else a flush of one insert takes three round trips.
    implicitTransactions: false,
  })
  return {
    readUser: (id) => orm.em.fork().findOne(users, { id }),
    async readPage(before) {
      const found = await orm.em.fork().find(
        posts,
        { id: { $lt: before } },
        {
          fields: ['id', 'title', 'created_at', 'updated_at', 'author.id', 'author.name'],
          populate: ['author'],
          strategy: 'joined',
          orderBy: { id: 'desc' },
          limit: pageSize,
        },
      )
      return found.map(({ id, title, created_at, updated_at, author }) => ({
        id,
        title,
        created_at,
        updated_at,
        author_id: author.id,
        author_name: author.name,
      }))
    },
    async readExport(after) {
      const found = await orm.em
        .fork()
        .find(payments, { id: { $gt: after } }, { orderBy: { id: 'asc' }, limit: exportSize })
      return found.map((payment) => ({ ...payment, purpose: payment.purpose ?? null }))
    },
    async addComment(comment) {
      const manager = orm.em.fork()
      const row = manager.create(comments, comment)
      await manager.flush()
      return row
    },
    async payOrder(orderId, userId) {
      await orm.em.fork().transactional(async (manager) => {
        await manager.nativeUpdate(orders, { id: orderId }, { status: 'paid', updated_at: raw<Date>('now()') })
        await manager.nativeUpdate(users, { id: userId }, { order_count: raw<number>('order_count + 1') })
      })
    },
    close: () => orm.close(),
  }
}
