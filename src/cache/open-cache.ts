import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { CacheSettings } from '../core/config.ts'
import { databaseClosed } from '../core/errors.ts'
import type { Scope, Transactions } from '../postgres/transaction.ts'
import type { RedisClient } from '../redis/client.ts'
import type { RedisSubscriber } from '../redis/subscriber.ts'
import { Codec } from './codec.ts'
import type { Post } from './entry-policy.ts'
import { concernedBy, type Invalidation, mergedOf } from './invalidation-log.ts'
import { type InvalidationObserver, Invalidations } from './invalidations.ts'
import { type Cache, LayeredCache, type SurroundingTransaction } from './layered-cache.ts'
import { Loader } from './loader.ts'
import { MemoryTier } from './memory-tier.ts'
import { RedisTier } from './redis-tier.ts'
import { type WriteBehind, type WriteBehindOptions, WriteQueue } from './write-behind.ts'

/** The Redis of a cache: where its values are, and where it hears of invalidations. */
export interface CacheRedis {
  readonly client: RedisClient
  readonly subscriber: RedisSubscriber
}

/** The transactions with which a cache changes. */
export interface CacheTransactions {
  readonly transactions: Pick<Transactions, 'current' | 'run'>
  /** Runs work later in the context of whoever asks for this, without its transaction. */
  readonly context: () => <T>(work: () => T) => T
}

/** Who is told of what happens in a cache. */
export interface CacheObserver extends InvalidationObserver {
  warn(message: string): void
}

/** Keeps what a transaction ends together with the transaction, so that another process ends it when this one dies first. */
export interface InvalidationJournal {
  /** Before the COMMIT of the scope, in it; gives what {@link erase} is called with. Its failure undoes the transaction. */
  write(what: Invalidation, scope: Scope): Promise<string>
  /** It has been done. */
  erase(entry: string): void
}

/** A cache and what its owner does with it. */
export interface OpenCache {
  readonly cache: Cache
  /** Written from now on, where there is one. */
  journal: InvalidationJournal | undefined
  /** Ends it everywhere; false when Redis could not be told now. Never rejects. */
  end(what: Invalidation): Promise<boolean>
  /** Ends what has these tags, with the commit of a transaction if it is in one. Never rejects. */
  invalidateTags(tags: readonly string[], scope?: Scope): Promise<void>
  /** Redis takes commands, for the first time or again. */
  redisIsBack(): void
  /** Writes what is to be written behind, while the database is open. */
  endWrites(limitMs: number): Promise<void>
  /** Waits so long for what goes on behind, and gives how many keys and tags could not be invalidated in Redis. */
  close(limitMs: number): Promise<number>
}

/** Opens a cache. Without Redis it is one of this process alone. */
export function openCache(
  settings: CacheSettings,
  redis: CacheRedis | undefined,
  surroundings: CacheTransactions,
  observer: CacheObserver,
): OpenCache {
  const { transactions } = surroundings
  const { leaseMs, maxTtlMs, memory, codec, compressAboveBytes } = settings
  // A value is kept for its time, and for as long as it may be given stale; its lease began before.
  const maxLifeMs = 2 * maxTtlMs + leaseMs
  const tier = redis && new RedisTier(redis.client, settings.namespace, { leaseMs, maxLifeMs })
  const loader = new Loader(
    new MemoryTier(memory),
    tier,
    new Codec(codec, compressAboveBytes === false ? Number.POSITIVE_INFINITY : compressAboveBytes),
    { leaseMs, memoryTtlMs: memory.ttlMs, memoryTtlWithoutRedisMs: memory.ttlWithoutRedisMs },
  )
  const invalidations = new Invalidations(tier, loader, settings, {
    onGap: (reason) => observer.onGap(reason),
    onTrust() {
      // What was kept without hearing of invalidations.
      loader.memory.clear()
      observer.onTrust()
    },
  })
  loader.attach(invalidations)
  if (redis) invalidations.listen(redis.subscriber)
  const groups = new WeakMap<Scope, CommitGroup>()
  const buffers = new WeakMap<Scope, TransactionBuffer>()
  const bufferOf = (scope: Scope): TransactionBuffer => {
    const group = groups.get(scope.root) ?? new CommitGroup(loader, invalidations, settings.holdMs)
    groups.set(scope.root, group)
    const known = buffers.get(scope) ?? new TransactionBuffer(scope, group, open.journal)
    buffers.set(scope, known)
    return known
  }
  const transaction = (): SurroundingTransaction | undefined => {
    const { current } = transactions
    return current && bufferOf(current)
  }
  const transact = <T>(work: () => Promise<T>): Promise<T> => transactions.run(work)
  const queues = new Set<Pick<WriteQueue<unknown>, 'end'>>()
  let hasEnded = false
  const writeBehind = <T>(options: WriteBehindOptions<T>): WriteBehind<T> => {
    if (hasEnded) throw databaseClosed()
    const outside = surroundings.context()
    const queue = new WriteQueue(options, {
      transact: (work) => outside(() => transactions.run(work)),
      afterCommit(work, ifUnknown) {
        const { current } = transactions
        if (current === undefined) return work()
        current.addHook('commit', work)
        current.addHook('unknown', ifUnknown)
      },
      warn: (message) => observer.warn(message),
      onClose: () => queues.delete(queue),
    })
    queues.add(queue)
    return queue
  }
  const defaults = { ttlMs: settings.ttlMs, maxTtlMs }
  const open: OpenCache = {
    journal: undefined,
    end: (what) => invalidations.invalidate(what),
    cache: new LayeredCache({ loader, invalidations, defaults, transaction, transact, writeBehind }),
    redisIsBack: () => invalidations.drainSoon(),
    async invalidateTags(tags, scope) {
      const what = { keys: [], tags, patterns: [] }
      if (scope === undefined) await invalidations.invalidate(what)
      else bufferOf(scope).invalidate(what)
    },
    async endWrites(limitMs) {
      hasEnded = true
      await Promise.all([...queues].map((queue) => queue.end(limitMs)))
    },
    async close(limitMs) {
      // What loads a value may hang.
      await Promise.race([loader.settle(), sleep(limitMs, undefined, { ref: false })])
      return invalidations.close()
    },
  }
  return open
}

/** Outermost transactions in which something was invalidated: what they read is for them alone. */
const changed = new WeakSet<Scope>()

/** What a transaction or savepoint changes in the cache, which goes with it. */
class TransactionBuffer implements SurroundingTransaction {
  readonly #scope: Scope
  readonly #group: CommitGroup
  readonly #journal: InvalidationJournal | undefined
  readonly #keys = new Set<string>()
  readonly #tags = new Set<string>()
  readonly #patterns = new Set<string>()
  readonly #posts = new Map<string, Post>()
  #all = false
  #isArmed = false

  constructor(scope: Scope, group: CommitGroup, journal: InvalidationJournal | undefined) {
    this.#scope = scope
    this.#group = group
    this.#journal = journal
  }

  get bypassesCache(): boolean {
    const { hasWritten, readsCommitted, root } = this.#scope
    // A snapshot knows nothing of what others have committed since.
    return hasWritten || !readsCommitted || changed.has(root)
  }

  get posts(): readonly Post[] {
    return [...this.#posts.values()]
  }

  get what(): Invalidation {
    return { keys: [...this.#keys], tags: [...this.#tags], patterns: [...this.#patterns], all: this.#all }
  }

  invalidate(what: Invalidation): void {
    const { keys, tags, patterns, all = false } = what
    for (const key of keys) this.#keys.add(key)
    for (const tag of tags) this.#tags.add(tag)
    for (const pattern of patterns) this.#patterns.add(pattern)
    this.#all ||= all
    const concerns = concernedBy(what)
    for (const post of this.posts) {
      if (concerns(post.key) || post.tags.some((tag) => tags.includes(tag))) this.#posts.delete(post.key)
    }
    this.#arm()
  }

  post(post: Post): void {
    this.#keys.add(post.key)
    this.#posts.set(post.key, post)
    this.#arm()
  }

  #arm(): void {
    changed.add(this.#scope.root)
    if (this.#isArmed) return
    this.#isArmed = true
    const group = this.#group
    // Of a savepoint that is undone, none of this is ever called.
    if (this.#journal !== undefined) this.#keep(this.#journal)
    this.#scope.addHook('before', () => group.join(this))
    this.#scope.addHook('commit', () => group.end(true))
    this.#scope.addHook('unknown', () => group.end(false))
    this.#scope.addHook('rollback', () => group.giveUp())
  }

  #keep(journal: InvalidationJournal): void {
    const { root } = this.#scope
    let entry: string | undefined
    this.#scope.addHook('before', async () => {
      entry = await journal.write(this.what, root)
    })
    this.#scope.addHook('commit', async () => {
      const isTold = await this.#group.end(true)
      if (isTold && entry !== undefined) journal.erase(entry)
    })
  }
}

/** What an outermost transaction changes in the cache, of all its savepoints: told at once. */
class CommitGroup {
  readonly #loader: Loader
  readonly #invalidations: Invalidations
  readonly #holdMs: number | false
  readonly #buffers: TransactionBuffer[] = []
  readonly #holds: { readonly what: Invalidation; readonly owner: string }[] = []
  #posts: readonly Post[] = []
  #ending: Promise<boolean> | undefined

  constructor(loader: Loader, invalidations: Invalidations, holdMs: number | false) {
    this.#loader = loader
    this.#invalidations = invalidations
    this.#holdMs = holdMs
  }

  /** Before the commit. */
  join(buffer: TransactionBuffer): Promise<unknown> | undefined {
    this.#buffers.push(buffer)
    if (this.#holdMs !== false) {
      const hold = { what: buffer.what, owner: randomUUID() }
      this.#holds.push(hold)
      // What is held can be nobody's, and so not be put there either.
      return this.#invalidations.hold(hold.what, hold.owner, this.#holdMs)
    }
    const { posts } = buffer
    if (posts.length === 0) return undefined
    this.#posts = [...this.#posts, ...posts]
    return Promise.all(posts.map((post) => this.#loader.reserve(post)))
  }

  /** Gives whether all processes that can be reached have been told. */
  end(isCommitted: boolean): Promise<boolean> {
    this.#ending ??= this.#end(isCommitted)
    return this.#ending
  }

  /** Nothing has changed, but nothing can be kept either before the holds are gone. */
  giveUp(): Promise<unknown> | undefined {
    // A savepoint that is undone is not the end.
    if (this.#buffers.length === 0) return undefined
    this.#ending ??= this.#release()
    return this.#ending
  }

  async #release(): Promise<boolean> {
    const released = this.#posts.map((post) => this.#loader.release(post))
    const [areEnded] = await Promise.all([this.#endHolds(), ...released])
    return areEnded
  }

  async #end(isCommitted: boolean): Promise<boolean> {
    if (this.#holds.length > 0) return this.#endHolds()
    const posts = isCommitted ? this.#buffers.flatMap((buffer) => this.#untouched(buffer)) : []
    return this.#invalidations.invalidate(mergedOf(this.#buffers.map(({ what }) => what)), { posts })
  }

  /** Which of the values nothing else in the transaction has ended: which came first is not known of two savepoints. */
  #untouched(buffer: TransactionBuffer): readonly Post[] {
    const others = this.#buffers.filter((other) => other !== buffer).map(({ what }) => what)
    const isEnded = (post: Post): boolean =>
      others.some((what) => concernedBy(what)(post.key) || post.tags.some((tag) => what.tags.includes(tag)))
    return buffer.posts.filter((post) => !isEnded(post))
  }

  async #endHolds(): Promise<boolean> {
    const told = await Promise.all(
      this.#holds.map(({ what, owner }) => this.#invalidations.invalidate(what, { owner })),
    )
    return told.every(Boolean)
  }
}
