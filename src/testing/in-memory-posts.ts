import { NotFoundError } from '../core/errors.ts'
import type {
  Author,
  Comment,
  CommentPage,
  CommentStore,
  CommentWithAuthor,
  Contributor,
  ContributorOptions,
  FeedPage,
  FeedPost,
  Like,
  LikeStore,
  NewPost,
  Post,
  PostPatch,
  PostRef,
  PostStore,
} from '../domain/post.ts'
import { compareBy, newestFirst, pageOf, rowCount, uuid, violation } from './in-memory-table.ts'
import type { InMemoryTables } from './in-memory-tables.ts'

type PublishedPost = Post & { readonly publishedAt: Date }

/** Posts in memory. */
export class InMemoryPosts implements PostStore {
  readonly #tables: InMemoryTables

  constructor(tables: InMemoryTables) {
    this.#tables = tables
  }

  async findById(id: string): Promise<Post | undefined> {
    const row = this.#tables.posts.find(id)
    return row && { ...row }
  }

  async getById(id: string): Promise<Post> {
    return { ...this.#tables.posts.get(id) }
  }

  async create(post: NewPost): Promise<Post> {
    return { ...this.#tables.posts.insert(post) }
  }

  async update(ref: PostRef, patch: PostPatch): Promise<Post> {
    return { ...this.#tables.posts.update(ref, patch) }
  }

  async delete(ref: PostRef): Promise<boolean> {
    return this.#tables.posts.remove(ref)
  }

  async restore(id: string): Promise<Post> {
    return { ...this.#tables.posts.restore(id) }
  }

  async getPaginatedPosts(page: FeedPage = {}): Promise<FeedPost[]> {
    const { limit = 20, after, authorId, viewerId, commentsPerPost = 3 } = page
    const mostComments = rowCount('posts', 'commentsPerPost', commentsPerPost)
    const wanted = authorId === undefined ? undefined : uuid(authorId)
    const viewer = viewerId === undefined ? undefined : uuid(viewerId)
    const posts = this.#tables.posts.alive
      .filter((post): post is PublishedPost => this.#tables.isVisible(post))
      .filter((post) => wanted === undefined || post.authorId === wanted)
      .filter((post) => authorOf(this.#tables, post.authorId) !== undefined)
    const last = after && { time: after.publishedAt, id: after.id }
    return pageOf(posts, (post) => post.publishedAt, last, rowCount('posts', 'limit', limit)).map((post) => {
      const comments = commentsOn(this.#tables, post.id).toSorted(newestFirst((comment) => comment.createdAt))
      const likes = [...this.#tables.likes.values()].filter((like) => like.postId === post.id)
      return {
        ...post,
        author: authorOf(this.#tables, post.authorId) as Author,
        commentCount: comments.length,
        latestComments: comments.slice(0, mostComments),
        likeCount: likes.length,
        isLiked: likes.some((like) => like.userId === viewer),
      }
    })
  }

  async getTopContributors({ since, limit = 10 }: ContributorOptions = {}): Promise<Contributor[]> {
    const { comments, likes, posts, users } = this.#tables
    const isNew = (time: Date): boolean => since === undefined || time >= since
    const visible = posts.alive.filter((post): post is PublishedPost => this.#tables.isVisible(post))
    const ids = new Set(visible.map((post) => post.id))
    const counted = visible.filter((post) => isNew(post.publishedAt))
    const said = comments.alive.filter((comment) => isNew(comment.createdAt) && ids.has(comment.postId))
    return users.alive
      .map(({ id, username, name }): Contributor => {
        const own = new Set(counted.filter((post) => post.authorId === id).map((post) => post.id))
        return {
          id,
          username,
          name,
          posts: own.size,
          comments: said.filter((comment) => comment.authorId === id).length,
          likesReceived: [...likes.values()].filter((like) => own.has(like.postId)).length,
        }
      })
      .filter((user) => user.posts + user.comments > 0)
      .toSorted(
        compareBy(
          (user) => -user.posts - user.comments,
          (user) => -user.likesReceived,
          (user) => user.id,
        ),
      )
      .slice(0, rowCount('posts', 'limit', limit))
  }
}

/** Comments in memory. */
export class InMemoryComments implements CommentStore {
  readonly #tables: InMemoryTables

  constructor(tables: InMemoryTables) {
    this.#tables = tables
  }

  async findById(id: string): Promise<Comment | undefined> {
    const row = this.#tables.comments.find(id)
    return row && { ...row }
  }

  async findByPost(postId: string, { limit = 50, after }: CommentPage = {}): Promise<CommentWithAuthor[]> {
    const oldestFirst = compareBy<Pick<Comment, 'createdAt' | 'id'>>(
      (comment) => comment.createdAt,
      (comment) => comment.id,
    )
    return commentsOn(this.#tables, uuid(postId))
      .toSorted(oldestFirst)
      .filter((comment) => after === undefined || oldestFirst(comment, after) > 0)
      .slice(0, rowCount('comments', 'limit', limit))
  }

  async addComment({ postId, authorId, body }: Pick<Comment, 'postId' | 'authorId' | 'body'>): Promise<Comment> {
    const post = this.#tables.posts.find(postId)
    if (!this.#tables.isVisible(post)) return postMissing()
    return { ...this.#tables.comments.insert({ postId: post.id, authorId, body }) }
  }

  async delete(id: string): Promise<boolean> {
    return this.#tables.comments.remove(id)
  }
}

/** Likes in memory. */
export class InMemoryLikes implements LikeStore {
  readonly #tables: InMemoryTables

  constructor(tables: InMemoryTables) {
    this.#tables = tables
  }

  async findById({ postId, userId }: Pick<Like, 'postId' | 'userId'>): Promise<Like | undefined> {
    const found = this.#tables.likes.get(keyOf(postId, userId))
    return found && { ...found }
  }

  async like(postId: string, userId: string): Promise<boolean> {
    const { likes, posts, users } = this.#tables
    const key = keyOf(postId, userId)
    const post = posts.find(postId)
    if (!this.#tables.isVisible(post)) return postMissing()
    if (likes.has(key)) return false
    if (!users.exists(userId)) throw violation('FOREIGN_KEY_VIOLATION', 'likes', 'likes_user_id_fkey')
    likes.set(key, { postId: post.id, userId: uuid(userId), createdAt: this.#tables.now() })
    return true
  }

  async unlike(postId: string, userId: string): Promise<boolean> {
    return this.#tables.likes.delete(keyOf(postId, userId))
  }

  async countByPost(postId: string): Promise<number> {
    const id = uuid(postId)
    return [...this.#tables.likes.values()].filter((like) => like.postId === id).length
  }
}

function keyOf(postId: string, userId: string): string {
  return `${uuid(postId)} ${uuid(userId)}`
}

/** What others see of a user who was not deleted. */
function authorOf({ users }: InMemoryTables, userId: string): Author | undefined {
  const user = users.find(userId)
  return user && { id: user.id, username: user.username, name: user.name }
}

function commentsOn(tables: InMemoryTables, postId: string): CommentWithAuthor[] {
  return tables.comments.alive
    .filter((comment) => comment.postId === postId)
    .flatMap((comment) => {
      const author = authorOf(tables, comment.authorId)
      return author === undefined ? [] : [{ ...comment, author }]
    })
}

function postMissing(): never {
  throw new NotFoundError('posts has no published row with this id. Check the key, or read the post again.', {
    table: 'posts',
  })
}
