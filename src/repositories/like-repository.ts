import { sql } from 'kysely'
import type { Like, LikeStore } from '../domain/post.ts'
import type { DB } from '../generated/schema.ts'
import type { QuerySource } from '../repository/query-source.ts'
import { Repository } from '../repository/repository.ts'
import { postMissing } from './comment-repository.ts'

const likeColumns = { postId: 'post_id', userId: 'user_id', createdAt: 'created_at' } as const

/**
 * Likes on PostgreSQL: their key is the pair of post and user.
 *
 * @example
 * ```ts
 * import { createDatabase } from 'kanta'
 * import { type DB, LikeRepository } from 'kanta/domain'
 *
 * await using database = await createDatabase<DB>()
 * const likes = new LikeRepository(database)
 * const [postId, userId] = ['0197d4c8-0000-7000-8000-000000000000', '0197d4c9-0000-7000-8000-000000000000']
 * if (await likes.like(postId, userId)) console.log('for the first time')
 * await likes.findById({ postId, userId })
 * ```
 */
export class LikeRepository
  extends Repository<DB, 'likes', Like, typeof likeColumns, 'postId' | 'userId'>
  implements LikeStore
{
  constructor(database: QuerySource<DB>) {
    super(database, { table: 'likes', columns: likeColumns, key: ['postId', 'userId'] })
  }

  async like(postId: string, userId: string): Promise<boolean> {
    const answer = await this.db
      .with('visible', (db) =>
        db
          .selectFrom('posts')
          .where('id', '=', postId)
          .where('published_at', 'is not', null)
          .where('deleted_at', 'is', null)
          .select(['id as post_id', sql<string>`${userId}::uuid`.as('user_id')]),
      )
      .with('added', (db) =>
        db
          .insertInto('likes')
          .columns(['post_id', 'user_id'])
          .expression((like) => like.selectFrom('visible').select(['post_id', 'user_id']))
          .onConflict((like) => like.columns(['post_id', 'user_id']).doNothing())
          .returning('post_id'),
      )
      .selectFrom('visible')
      .select((row) => row.exists(row.selectFrom('added').select('added.post_id')).as('isNew'))
      .executeTakeFirst()
    return answer === undefined ? postMissing() : Boolean(answer.isNew)
  }

  unlike(postId: string, userId: string): Promise<boolean> {
    return this.delete({ postId, userId })
  }

  countByPost(postId: string): Promise<number> {
    return this.count({ postId })
  }
}
