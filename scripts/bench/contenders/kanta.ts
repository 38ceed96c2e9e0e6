import { type Expression, type Kysely, sql } from 'kysely'
import { createDatabase, type Database, type Parameters } from '../../../src/index.ts'
import type { ContenderSettings, OpenContender } from '../contender.ts'
import {
  type BenchSchema,
  commentColumns,
  exportSize,
  type NewComment,
  pageSize,
  paymentColumns,
  userColumns,
} from '../data-set.ts'

/** kanta as an application uses it: every protection on, each query built and compiled where it is called. */
export const openKanta: OpenContender = async (settings) => {
  const database = await open(settings)
  const { db } = database
  return {
    readUser: (id) => db.selectFrom('users').select(userColumns).where('id', '=', id).executeTakeFirst(),
    readPage: (before) => page(db, before).execute(),
    readExport: (after) => payments(db, after).execute(),
    addComment: (comment) =>
      db.insertInto('comments').values(comment).returning(commentColumns).executeTakeFirstOrThrow(),
    payOrder: (orderId, userId) =>
      database.transaction(async () => {
        await paid(db, orderId).execute()
        await counted(db, userId).execute()
      }),
    close: () => database.close(),
  }
}

/** The same with queries that are built and compiled once. */
export const openKantaPrepared: OpenContender = async (settings) => {
  const database = await open(settings)
  const { db } = database
  const readUser = database.prepare((p: Parameters<{ id: number }>) =>
    db.selectFrom('users').select(userColumns).where('id', '=', p('id')),
  )
  const readPage = database.prepare((p: Parameters<{ before: number }>) => page(db, p('before')))
  const readExport = database.prepare((p: Parameters<{ after: number }>) => payments(db, p('after')))
  const addComment = database.prepare((p: Parameters<NewComment>) =>
    db
      .insertInto('comments')
      .values({ post_id: p('post_id'), author_id: p('author_id'), body: p('body') })
      .returning(commentColumns),
  )
  const payOrder = database.prepare((p: Parameters<{ id: number }>) => paid(db, p('id')))
  const countOrder = database.prepare((p: Parameters<{ id: number }>) => counted(db, p('id')))
  return {
    readUser: (id) => readUser.first({ id }),
    readPage: (before) => readPage({ before }),
    readExport: (after) => readExport({ after }),
    async addComment(comment) {
      const row = await addComment.first(comment)
      if (row === undefined) throw new Error('The insert gave no row back.')
      return row
    },
    payOrder: (orderId, userId) =>
      database.transaction(async () => {
        await payOrder({ id: orderId })
        await countOrder({ id: userId })
      }),
    close: () => database.close(),
  }
}

/** Connections that single statements share. They come on top of the pool, which is smaller by as many. */
const shared = 2

function open(settings: ContenderSettings): Promise<Database<BenchSchema>> {
  return createDatabase<BenchSchema>({
    postgres: {
      url: settings.url,
      applicationName: settings.applicationName,
      pool: { max: settings.connections - shared, idleTimeoutMs: 0 },
      pipeline: { connections: shared },
    },
    redis: false,
  })
}

type Key = Expression<number> | number

const page = (db: Kysely<BenchSchema>, before: Key) =>
  db
    .selectFrom('posts')
    .innerJoin('users', 'users.id', 'posts.author_id')
    .select(['posts.id', 'posts.title', 'posts.created_at', 'posts.updated_at'])
    .select(['users.id as author_id', 'users.name as author_name'])
    .where('posts.id', '<', before)
    .orderBy('posts.id', 'desc')
    .limit(pageSize)

const payments = (db: Kysely<BenchSchema>, after: Key) =>
  db.selectFrom('payments').select(paymentColumns).where('id', '>', after).orderBy('id').limit(exportSize)

const paid = (db: Kysely<BenchSchema>, orderId: Key) =>
  db
    .updateTable('orders')
    .set({ status: 'paid', updated_at: sql<Date>`now()` })
    .where('id', '=', orderId)

const counted = (db: Kysely<BenchSchema>, userId: Key) =>
  db
    .updateTable('users')
    .set((users) => ({ order_count: users('order_count', '+', 1) }))
    .where('id', '=', userId)
