import { Pool, type QueryResultRow } from 'pg'
import type { ContenderSettings, OpenContender, Operations } from '../contender.ts'
import {
  type Comment,
  type Payment,
  type PostWithAuthor,
  type StatementName,
  statements,
  type User,
} from '../data-set.ts'

/** The driver as most code uses it: `pool.query(text, values)`. */
export const openPg: OpenContender = (settings) => open(settings, (_name, text, values) => ({ text, values }))

/** The same with a name for each statement, which the server then prepares once per connection. */
export const openPgNamed: OpenContender = (settings) => open(settings, (name, text, values) => ({ name, text, values }))

interface Query {
  readonly name?: string
  readonly text: string
  readonly values: unknown[]
}

async function open(
  settings: ContenderSettings,
  query: (name: StatementName, text: string, values: unknown[]) => Query,
): Promise<Operations> {
  const pool = new Pool({
    connectionString: settings.url,
    application_name: settings.applicationName,
    max: settings.connections,
    idleTimeoutMillis: 0,
  })
  async function rows<Row extends QueryResultRow>(name: StatementName, values: unknown[]): Promise<Row[]> {
    return (await pool.query<Row>(query(name, statements[name], values))).rows
  }
  return {
    async readUser(id) {
      return (await rows<User>('readUser', [id]))[0]
    },
    readPage: (before) => rows<PostWithAuthor>('readPage', [before]),
    readExport: (after) => rows<Payment>('readExport', [after]),
    async addComment(comment) {
      const [row] = await rows<Comment>('addComment', [comment.post_id, comment.author_id, comment.body])
      if (row === undefined) throw new Error('The insert gave no row back.')
      return row
    },
    async payOrder(orderId, userId) {
      const client = await pool.connect()
      try {
        await client.query('begin')
        await client.query(query('payOrder', statements.payOrder, [orderId]))
        await client.query(query('countOrder', statements.countOrder, [userId]))
        await client.query('commit')
      } catch (error) {
        await client.query('rollback')
        throw error
      } finally {
        client.release()
      }
    },
    close: () => pool.end(),
  }
}
