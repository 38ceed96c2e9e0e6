import { type SqlBool, sql } from 'kysely'
import { NotFoundError } from '../core/errors.ts'
import type { Comment, CommentPage, CommentStore, CommentWithAuthor } from '../domain/post.ts'
import type { DB } from '../generated/schema.ts'
import type { QuerySource } from '../repository/query-source.ts'
import { Repository } from '../repository/repository.ts'
import { authorOf } from './post-repository.ts'

const commentColumns = {
  id: 'id',
  postId: 'post_id',
  authorId: 'author_id',
  body: 'body',
  createdAt: 'created_at',
  updatedAt: 'updated_at',
} as const

/**
 * Comments on PostgreSQL.
 *
 * @example
 * ```ts
 * import { createDatabase } from 'kanta'
 * import { CommentRepository, type DB } from 'kanta/domain'
 *
 * await using database = await createDatabase<DB>()
 * const comments = new CommentRepository(database)
 * const page = await comments.findByPost('0197d4c8-0000-7000-8000-000000000000', { limit: 20 })
 * ```
 */
export class CommentRepository
  extends Repository<DB, 'comments', Comment, typeof commentColumns>
  implements CommentStore
{
  constructor(database: QuerySource<DB>) {
    super(database, { table: 'comments', columns: commentColumns, updatedAt: 'updatedAt' })
  }

  async findByPost(postId: string, { limit = 50, after }: CommentPage = {}): Promise<CommentWithAuthor[]> {
    let query = this.select()
      .innerJoin('users as author', 'author.id', 'comments.author_id')
      .select(authorOf('author').as('author'))
      .where('comments.post_id', '=', postId)
      .where('author.deleted_at', 'is', null)
      .orderBy('comments.created_at')
      .orderBy('comments.id')
      .limit(this.rowCount('limit', limit))
    if (after !== undefined) {
      query = query.where(
        (comment) =>
          sql<SqlBool>`${comment.refTuple('comments.created_at', 'comments.id')} > (${after.createdAt}, ${after.id})`,
      )
    }
    return await query.execute()
  }

  async addComment({ postId, authorId, body }: Pick<Comment, 'postId' | 'authorId' | 'body'>): Promise<Comment> {
    const added = await this.db
      .insertInto('comments')
      .columns(['post_id', 'author_id', 'body'])
      .expression((comment) =>
        comment
          .selectFrom('posts')
          .where('posts.id', '=', postId)
          .where('posts.published_at', 'is not', null)
          .where('posts.deleted_at', 'is', null)
          .select(['posts.id', sql<string>`${authorId}::uuid`.as('author_id'), sql<string>`${body}::text`.as('body')]),
      )
      .returning(this.selection)
      .executeTakeFirst()
    return added ?? postMissing()
  }
}

/** What whoever wants to say or like something about a post is told when nobody can see it. */
export function postMissing(): never {
  throw new NotFoundError('posts has no published row with this id. Check the key, or read the post again.', {
    table: 'posts',
  })
}
