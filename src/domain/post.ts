/** What a user writes. */
export interface Post {
  readonly id: string
  readonly authorId: string
  readonly title: string
  readonly body: string
  /** Null while it is a draft. */
  readonly publishedAt: Date | null
  readonly version: number
  readonly createdAt: Date
  readonly updatedAt: Date
  /** Set when it was withdrawn. */
  readonly deletedAt: Date | null
}

export interface NewPost {
  readonly authorId: string
  readonly title: string
  readonly body: string
  /** @default null, a draft */
  readonly publishedAt?: Date | null
}

/** What of a post may be changed. What is left out stays. */
export interface PostPatch {
  readonly title?: string
  readonly body?: string
  readonly publishedAt?: Date | null
}

/** A post by id, or as it was read: then only if nobody has changed it since. */
export type PostRef = string | (Pick<Post, 'id'> & Partial<Post>)

/** What others see of a user. */
export interface Author {
  readonly id: string
  readonly username: string
  readonly name: string
}

/** What a user says about a post. */
export interface Comment {
  readonly id: string
  readonly postId: string
  readonly authorId: string
  readonly body: string
  readonly createdAt: Date
  readonly updatedAt: Date
}

export interface CommentWithAuthor extends Comment {
  readonly author: Author
}

/** A post as the feed shows it. What deleted users wrote is neither shown nor counted. */
export interface FeedPost extends Post {
  readonly publishedAt: Date
  readonly author: Author
  readonly commentCount: number
  /** Newest first. */
  readonly latestComments: readonly CommentWithAuthor[]
  readonly likeCount: number
  /** Whether the viewer likes it; false without one. */
  readonly isLiked: boolean
}

/** Which posts of the feed: the newest come first. */
export interface FeedPage {
  /** @default 20 */
  readonly limit?: number
  /** The last post of the page before. */
  readonly after?: Pick<FeedPost, 'publishedAt' | 'id'> | undefined
  /** Only posts of this user. */
  readonly authorId?: string | undefined
  /** Whose likes `isLiked` tells. */
  readonly viewerId?: string | undefined
  /** @default 3 */
  readonly commentsPerPost?: number
}

/** What a user has given to the community. */
export interface Contributor extends Author {
  readonly posts: number
  readonly comments: number
  readonly likesReceived: number
}

/** Whose contributions since when. */
export interface ContributorOptions {
  /** Only what was published or said since. @default all */
  readonly since?: Date | undefined
  /** @default 10 */
  readonly limit?: number
}

/** Where posts are kept. Posts that were withdrawn are not found. */
export interface PostStore {
  findById(id: string): Promise<Post | undefined>
  getById(id: string): Promise<Post>
  create(post: NewPost): Promise<Post>
  update(ref: PostRef, patch: PostPatch): Promise<Post>
  /** Withdraws it: nobody finds it any more, its comments and likes stay with it. False when there was no such post. */
  delete(ref: PostRef): Promise<boolean>
  restore(id: string): Promise<Post>
  /** Published posts with all that a feed shows of them. */
  getPaginatedPosts(page?: FeedPage): Promise<FeedPost[]>
  /** Who wrote most posts and comments, and of equals whose posts are liked most. */
  getTopContributors(options?: ContributorOptions): Promise<Contributor[]>
}

/** Which comments of a post: the oldest come first. */
export interface CommentPage {
  /** @default 50 */
  readonly limit?: number
  /** The last comment of the page before. */
  readonly after?: Pick<Comment, 'createdAt' | 'id'> | undefined
}

/** Where comments are kept. */
export interface CommentStore {
  findById(id: string): Promise<Comment | undefined>
  /** Without those of deleted users. */
  findByPost(postId: string, page?: CommentPage): Promise<CommentWithAuthor[]>
  /** `NOT_FOUND` when there is no such post, or it is a draft or withdrawn. */
  addComment(comment: Pick<Comment, 'postId' | 'authorId' | 'body'>): Promise<Comment>
  delete(id: string): Promise<boolean>
}

/** That a user likes a post: each at most once. */
export interface Like {
  readonly postId: string
  readonly userId: string
  readonly createdAt: Date
}

/** Where likes are kept. */
export interface LikeStore {
  findById(key: Pick<Like, 'postId' | 'userId'>): Promise<Like | undefined>
  /** True when it is new. Again, or at the same time, it is no error. `NOT_FOUND` when the post cannot be seen. */
  like(postId: string, userId: string): Promise<boolean>
  /** True when it was there. */
  unlike(postId: string, userId: string): Promise<boolean>
  countByPost(postId: string): Promise<number>
}
