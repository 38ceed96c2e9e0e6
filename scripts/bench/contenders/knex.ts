import knex from 'knex'
import type { OpenContender } from '../contender.ts'
import {
  type Comment,
  commentColumns,
  exportSize,
  pageSize,
  type Payment,
  paymentColumns,
  type PostWithAuthor,
  type User,
  userColumns,
} from '../data-set.ts'

const page = [
  'posts.id',
  'posts.title',
  'posts.created_at',
  'posts.updated_at',
  'users.id as author_id',
  'users.name as author_name',
]

/** Knex on `pg`. */
export const openKnex: OpenContender = async (settings) => {
  const db = knex({
    client: 'pg',
    connection: { connectionString: settings.url, application_name: settings.applicationName },
    pool: { min: settings.connections, max: settings.connections },
  })
  return {
    async readUser(id) {
      const user: User | undefined = await db('users').select(userColumns).where('id', id).first()
      return user
    },
    readPage: async (before) =>
      db('posts')
        .join('users', 'users.id', 'posts.author_id')
        .select<PostWithAuthor[]>(page)
        .where('posts.id', '<', before)
        .orderBy('posts.id', 'desc')
        .limit(pageSize),
    readExport: async (after) =>
      db('payments').select<Payment[]>(paymentColumns).where('id', '>', after).orderBy('id').limit(exportSize),
    async addComment(comment) {
      const [row]: Comment[] = await db('comments').insert(comment).returning(commentColumns)
      if (row === undefined) throw new Error('The insert gave no row back.')
      return row
    },
    async payOrder(orderId, userId) {
      await db.transaction(async (transaction) => {
        await transaction('orders').where('id', orderId).update({ status: 'paid', updated_at: db.fn.now() })
        await transaction('users').where('id', userId).increment('order_count', 1)
      })
    },
    close: () => db.destroy(),
  }
}
