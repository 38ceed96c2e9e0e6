import { type ExpressionBuilder, type RawBuilder, type SqlBool, sql } from 'kysely'
import { jsonArrayFrom } from 'kysely/helpers/postgres'
import type { Author, Contributor, ContributorOptions, FeedPage, FeedPost, Post, PostStore } from '../domain/post.ts'
import type { DB } from '../generated/schema.ts'
import type { QuerySource } from '../repository/query-source.ts'
import { Repository } from '../repository/repository.ts'

const postColumns = {
  id: 'id',
  authorId: 'author_id',
  title: 'title',
  body: 'body',
  publishedAt: 'published_at',
  version: 'version',
  createdAt: 'created_at',
  updatedAt: 'updated_at',
  deletedAt: 'deleted_at',
} as const

/**
 * Posts on PostgreSQL. A post that is deleted is withdrawn: nothing finds it but `withDeleted()`, until `restore`.
 *
 * @example
 * ```ts
 * import { createDatabase } from 'kanta'
 * import { type DB, PostRepository } from 'kanta/domain'
 *
 * await using database = await createDatabase<DB>()
 * const posts = new PostRepository(database)
 * const page = await posts.getPaginatedPosts({ limit: 20, viewerId: '0197d4c8-0000-7000-8000-000000000000' })
 * const next = await posts.getPaginatedPosts({ limit: 20, after: page.at(-1) })
 * ```
 */
export class PostRepository extends Repository<DB, 'posts', Post, typeof postColumns> implements PostStore {
  constructor(database: QuerySource<DB>) {
    super(database, {
      table: 'posts',
      columns: postColumns,
      version: 'version',
      updatedAt: 'updatedAt',
      deletedAt: 'deletedAt',
    })
  }

  /** One statement, whatever the page holds. */
  async getPaginatedPosts(page: FeedPage = {}): Promise<FeedPost[]> {
    const { limit = 20, after, authorId, viewerId, commentsPerPost = 3 } = page
    let query = this.select()
      .innerJoin('users as author', 'author.id', 'posts.author_id')
      .select((post) => [
        authorOf('author').as('author'),
        saidAbout(post)
          .select((comment) => comment.cast<number>(comment.fn.countAll(), 'integer').as('count'))
          .as('commentCount'),
        jsonArrayFrom(
          saidAbout(post)
            .select(['c.id', 'c.post_id as postId', 'c.author_id as authorId', 'c.body'])
            .select(['c.created_at as createdAt', 'c.updated_at as updatedAt'])
            .select(authorOf('commentator').as('author'))
            .orderBy('c.created_at', 'desc')
            .orderBy('c.id', 'desc')
            .limit(this.rowCount('commentsPerPost', commentsPerPost)),
        ).as('latestComments'),
        post
          .selectFrom('likes')
          .whereRef('likes.post_id', '=', 'posts.id')
          .select((like) => like.cast<number>(like.fn.countAll(), 'integer').as('count'))
          .as('likeCount'),
        post
          .exists(
            post
              .selectFrom('likes')
              .whereRef('likes.post_id', '=', 'posts.id')
              .where('likes.user_id', '=', viewerId ?? null)
              .select('likes.user_id'),
          )
          .as('isLiked'),
      ])
      .where('posts.published_at', 'is not', null)
      .where('author.deleted_at', 'is', null)
      .orderBy('posts.published_at', 'desc')
      .orderBy('posts.id', 'desc')
      .limit(this.rowCount('limit', limit))
    if (authorId !== undefined) query = query.where('posts.author_id', '=', authorId)
    if (after !== undefined) {
      query = query.where(
        (post) =>
          sql<SqlBool>`${post.refTuple('posts.published_at', 'posts.id')} < (${after.publishedAt}, ${after.id})`,
      )
    }
    const rows = await query.execute()
    return rows.map((row) => ({ ...row, latestComments: row.latestComments.map(withDates) }) as FeedPost)
  }

  async getTopContributors({ since, limit = 10 }: ContributorOptions = {}): Promise<Contributor[]> {
    const from = since ?? sql<Date>`'-infinity'::timestamptz`
    return await this.db
      .with('counted', (db) =>
        db
          .selectFrom('posts')
          .where('published_at', '>=', from)
          .where('deleted_at', 'is', null)
          .select(['id', 'author_id']),
      )
      .with('written', (db) =>
        db
          .selectFrom('counted')
          .groupBy('author_id')
          .select((post) => ['author_id', post.cast<number>(post.fn.countAll(), 'integer').as('count')]),
      )
      .with('said', (db) =>
        db
          .selectFrom('comments')
          .innerJoin('posts', 'posts.id', 'comments.post_id')
          .where('comments.created_at', '>=', from)
          .where('posts.published_at', 'is not', null)
          .where('posts.deleted_at', 'is', null)
          .groupBy('comments.author_id')
          .select((row) => ['comments.author_id', row.cast<number>(row.fn.countAll(), 'integer').as('count')]),
      )
      .with('liked', (db) =>
        db
          .selectFrom('likes')
          .innerJoin('counted', 'counted.id', 'likes.post_id')
          .groupBy('counted.author_id')
          .select((row) => ['counted.author_id', row.cast<number>(row.fn.countAll(), 'integer').as('count')]),
      )
      .selectFrom('users')
      .leftJoin('written', 'written.author_id', 'users.id')
      .leftJoin('said', 'said.author_id', 'users.id')
      .leftJoin('liked', 'liked.author_id', 'users.id')
      .where('users.deleted_at', 'is', null)
      .where((user) => user.or([user('written.count', 'is not', null), user('said.count', 'is not', null)]))
      .select((user) => [
        'users.id',
        'users.username',
        'users.name',
        user.fn.coalesce('written.count', user.lit(0)).as('posts'),
        user.fn.coalesce('said.count', user.lit(0)).as('comments'),
        user.fn.coalesce('liked.count', user.lit(0)).as('likesReceived'),
      ])
      .orderBy(sql`coalesce(written.count, 0) + coalesce(said.count, 0)`, 'desc')
      .orderBy('likesReceived', 'desc')
      .orderBy('users.id')
      .limit(this.rowCount('limit', limit))
      .execute()
  }
}

/** What others see of the user of this alias, as JSON. */
export function authorOf(alias: string): RawBuilder<Author> {
  const { id, username, name } = { id: `${alias}.id`, username: `${alias}.username`, name: `${alias}.name` }
  return sql<Author>`json_build_object('id', ${sql.ref(id)}, 'username', ${sql.ref(username)}, 'name', ${sql.ref(name)})`
}

function saidAbout(post: ExpressionBuilder<DB, 'posts'>) {
  return post
    .selectFrom('comments as c')
    .innerJoin('users as commentator', 'commentator.id', 'c.author_id')
    .whereRef('c.post_id', '=', 'posts.id')
    .where('commentator.deleted_at', 'is', null)
}

interface Times {
  readonly createdAt: string
  readonly updatedAt: string
}

/** JSON has times as text. */
export function withDates<Row extends Times>(row: Row): Omit<Row, keyof Times> & { createdAt: Date; updatedAt: Date } {
  return { ...row, createdAt: new Date(row.createdAt), updatedAt: new Date(row.updatedAt) }
}
