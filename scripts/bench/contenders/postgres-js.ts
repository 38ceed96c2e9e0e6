import postgres from 'postgres'
import type { OpenContender } from '../contender.ts'
import { type Comment, exportSize, pageSize, type Payment, type PostWithAuthor, type User } from '../data-set.ts'

/** postgres.js with its defaults: it prepares every statement and pipelines on its connections. */
export const openPostgresJs: OpenContender = async (settings) => {
  const sql = postgres(settings.url, {
    max: settings.connections,
    connection: { application_name: settings.applicationName },
  })
  return {
    async readUser(id) {
      const [user] = await sql<User[]>`
        select id, email, name, is_active, order_count, created_at from users where id = ${id}`
      return user
    },
    readPage: async (before) => sql<PostWithAuthor[]>`
      select posts.id, posts.title, posts.created_at, posts.updated_at, users.id as author_id, users.name as author_name
      from posts inner join users on users.id = posts.author_id
      where posts.id < ${before} order by posts.id desc limit ${sql.unsafe(String(pageSize))}`,
    readExport: async (after) => sql<Payment[]>`
      select id, account_id, reference, purpose, paid_at, is_settled, amount, details
      from payments where id > ${after} order by id limit ${sql.unsafe(String(exportSize))}`,
    async addComment(comment) {
      const [row] = await sql<Comment[]>`
        insert into comments (post_id, author_id, body)
        values (${comment.post_id}, ${comment.author_id}, ${comment.body})
        returning id, post_id, author_id, body, created_at`
      if (row === undefined) throw new Error('The insert gave no row back.')
      return row
    },
    async payOrder(orderId, userId) {
      await sql.begin(async (transaction) => {
        await transaction`update orders set status = 'paid', updated_at = now() where id = ${orderId}`
        await transaction`update users set order_count = order_count + 1 where id = ${userId}`
      })
    },
    close: () => sql.end(),
  }
}
