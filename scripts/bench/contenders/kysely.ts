import { Kysely, PostgresDialect, sql } from 'kysely'
import { Pool } from 'pg'
import type { OpenContender } from '../contender.ts'
import { type BenchSchema, commentColumns, exportSize, pageSize, paymentColumns, userColumns } from '../data-set.ts'

/** Kysely with its own PostgreSQL dialect. */
export const openKysely: OpenContender = async (settings) => {
  const pool = new Pool({
    connectionString: settings.url,
    application_name: settings.applicationName,
    max: settings.connections,
    idleTimeoutMillis: 0,
  })
  const db = new Kysely<BenchSchema>({ dialect: new PostgresDialect({ pool }) })
  return {
    readUser: (id) => db.selectFrom('users').select(userColumns).where('id', '=', id).executeTakeFirst(),
    readPage: (before) =>
      db
        .selectFrom('posts')
        .innerJoin('users', 'users.id', 'posts.author_id')
        .select(['posts.id', 'posts.title', 'posts.created_at', 'posts.updated_at'])
        .select(['users.id as author_id', 'users.name as author_name'])
        .where('posts.id', '<', before)
        .orderBy('posts.id', 'desc')
        .limit(pageSize)
        .execute(),
    readExport: (after) =>
      db
        .selectFrom('payments')
        .select(paymentColumns)
        .where('id', '>', after)
        .orderBy('id')
        .limit(exportSize)
        .execute(),
    addComment: (comment) =>
      db.insertInto('comments').values(comment).returning(commentColumns).executeTakeFirstOrThrow(),
    async payOrder(orderId, userId) {
      await db.transaction().execute(async (transaction) => {
        const paid = { status: 'paid', updated_at: sql<Date>`now()` }
        await transaction.updateTable('orders').set(paid).where('id', '=', orderId).execute()
        await transaction
          .updateTable('users')
          .set((users) => ({ order_count: users('order_count', '+', 1) }))
          .where('id', '=', userId)
          .execute()
      })
    },
    close: () => db.destroy(),
  }
}
