import { desc, eq, gt, lt, sql } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/node-postgres'
import { boolean, customType, integer, jsonb, numeric, pgTable, text, timestamp } from 'drizzle-orm/pg-core'
import { Pool } from 'pg'
import type { OpenContender } from '../contender.ts'
import { exportSize, pageSize, type PaymentDetails } from '../data-set.ts'

const moment = (name: string) => timestamp(name, { withTimezone: true, precision: 3 })

const users = pgTable('users', {
  id: integer('id').primaryKey().generatedByDefaultAsIdentity(),
  email: text('email').notNull(),
  name: text('name').notNull(),
  is_active: boolean('is_active').notNull(),
  order_count: integer('order_count').notNull(),
  created_at: moment('created_at').notNull(),
})

const posts = pgTable('posts', {
  id: integer('id').primaryKey().generatedByDefaultAsIdentity(),
  author_id: integer('author_id').notNull(),
  title: text('title').notNull(),
  created_at: moment('created_at').notNull(),
  updated_at: moment('updated_at').notNull(),
})

const orders = pgTable('orders', {
  id: integer('id').primaryKey().generatedByDefaultAsIdentity(),
  status: text('status').notNull(),
  updated_at: moment('updated_at').notNull(),
})

// Its own bigint is a number or a bigint, which would be other work than that of the others.
const bigintText = customType<{ data: string }>({ dataType: () => 'bigint' })

const payments = pgTable('payments', {
  id: integer('id').primaryKey(),
  account_id: bigintText('account_id').notNull(),
  reference: text('reference').notNull(),
  purpose: text('purpose'),
  paid_at: moment('paid_at').notNull(),
  is_settled: boolean('is_settled').notNull(),
  amount: numeric('amount', { precision: 12, scale: 2 }).notNull(),
  details: jsonb('details').$type<PaymentDetails>().notNull(),
})

const comments = pgTable('comments', {
  id: integer('id').primaryKey().generatedByDefaultAsIdentity(),
  post_id: integer('post_id').notNull(),
  author_id: integer('author_id').notNull(),
  body: text('body').notNull(),
  created_at: moment('created_at').notNull().defaultNow(),
})

const postWithAuthor = {
  id: posts.id,
  title: posts.title,
  created_at: posts.created_at,
  updated_at: posts.updated_at,
  author_id: users.id,
  author_name: users.name,
}

/** Drizzle on `pg`, with its query builder. */
export const openDrizzle: OpenContender = async (settings) => {
  const pool = new Pool({
    connectionString: settings.url,
    application_name: settings.applicationName,
    max: settings.connections,
    idleTimeoutMillis: 0,
  })
  const db = drizzle(pool)
  return {
    async readUser(id) {
      const [user] = await db.select().from(users).where(eq(users.id, id))
      return user
    },
    readPage: async (before) =>
      db
        .select(postWithAuthor)
        .from(posts)
        .innerJoin(users, eq(users.id, posts.author_id))
        .where(lt(posts.id, before))
        .orderBy(desc(posts.id))
        .limit(pageSize),
    readExport: async (after) =>
      db.select().from(payments).where(gt(payments.id, after)).orderBy(payments.id).limit(exportSize),
    async addComment(comment) {
      const [row] = await db.insert(comments).values(comment).returning()
      if (row === undefined) throw new Error('The insert gave no row back.')
      return row
    },
    async payOrder(orderId, userId) {
      await db.transaction(async (transaction) => {
        const paid = { status: 'paid', updated_at: sql`now()` }
        await transaction.update(orders).set(paid).where(eq(orders.id, orderId))
        await transaction
          .update(users)
          .set({ order_count: sql`${users.order_count} + 1` })
          .where(eq(users.id, userId))
      })
    },
    close: () => pool.end(),
  }
}
