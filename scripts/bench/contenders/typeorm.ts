import { DataSource, EntitySchema, type EntitySchemaColumnOptions, MoreThan } from 'typeorm'
import type { OpenContender } from '../contender.ts'
import { type Comment, exportSize, type NewComment, pageSize, type Payment, type User } from '../data-set.ts'

interface Post {
  readonly id: number
  readonly title: string
  readonly created_at: Date
  readonly updated_at: Date
  readonly author: User
}

interface Order {
  readonly id: number
  readonly status: string
  readonly updated_at: Date
}

const key: EntitySchemaColumnOptions = { type: 'int', primary: true, generated: true }
const number: EntitySchemaColumnOptions = { type: 'int' }
const text: EntitySchemaColumnOptions = { type: 'text' }
const moment: EntitySchemaColumnOptions = { type: 'timestamptz', precision: 3 }

const users = new EntitySchema<User>({
  name: 'users',
  columns: {
    id: key,
    email: text,
    name: text,
    is_active: { type: 'boolean' },
    order_count: number,
    created_at: moment,
  },
})

const posts = new EntitySchema<Post>({
  name: 'posts',
  columns: { id: key, title: text, created_at: moment, updated_at: moment },
  relations: { author: { type: 'many-to-one', target: 'users', joinColumn: { name: 'author_id' } } },
})

const orders = new EntitySchema<Order>({
  name: 'orders',
  columns: { id: key, status: text, updated_at: moment },
})

const payments = new EntitySchema<Payment>({
  name: 'payments',
  columns: {
    id: { type: 'int', primary: true },
    account_id: { type: 'bigint' },
    reference: text,
    purpose: { type: 'text', nullable: true },
    paid_at: moment,
    is_settled: { type: 'boolean' },
    amount: { type: 'numeric', precision: 12, scale: 2 },
    details: { type: 'jsonb' },
  },
})

const comments = new EntitySchema<Comment>({
  name: 'comments',
  columns: {
    id: key,
    post_id: number,
    author_id: number,
    body: text,
    created_at: { ...moment, default: () => 'now()' },
  },
})

/** TypeORM's repositories and query builder, with entities as results. */
export const openTypeOrm: OpenContender = async (settings) => {
  const source = await new DataSource({
    type: 'postgres',
    url: settings.url,
    applicationName: settings.applicationName,
    poolSize: settings.connections,
    extra: { idleTimeoutMillis: 0 },
    entities: [users, posts, orders, payments, comments],
  }).initialize()
  const userRepository = source.getRepository(users)
  const postRepository = source.getRepository(posts)
  const paymentRepository = source.getRepository(payments)
  const commentRepository = source.getRepository(comments)
  return {
    readUser: (id) => userRepository.findOneBy({ id }),
    async readPage(before) {
      const found = await postRepository
        .createQueryBuilder('post')
        .innerJoin('post.author', 'author')
        .select(['post.id', 'post.title', 'post.created_at', 'post.updated_at', 'author.id', 'author.name'])
        .where('post.id < :before', { before })
        .orderBy('post.id', 'DESC')
        .limit(pageSize)
        .getMany()
      return found.map(({ author, ...post }) => ({ ...post, author_id: author.id, author_name: author.name }))
    },
    readExport: (after) =>
      paymentRepository.find({ where: { id: MoreThan(after) }, order: { id: 'ASC' }, take: exportSize }),
    async addComment(comment: NewComment) {
      // Not `save()`, which wraps the one statement in a transaction.
      const inserted = await commentRepository.insert(comment)
      return { ...comment, ...(inserted.generatedMaps[0] as Pick<Comment, 'created_at' | 'id'>) }
    },
    async payOrder(orderId, userId) {
      await source.transaction(async (manager) => {
        await manager.update(orders, { id: orderId }, { status: 'paid', updated_at: () => 'now()' })
        await manager.increment(users, { id: userId }, 'order_count', 1)
      })
    },
    close: () => source.destroy(),
  }
}
