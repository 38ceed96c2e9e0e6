import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { CacheSettings } from '../core/config.ts'
import type { Scope } from '../postgres/transaction.ts'
import type { RedisClient } from '../redis/client.ts'
import type { RedisSubscriber } from '../redis/subscriber.ts'
import { Codec } from './codec.ts'
import type { Invalidation } from './invalidation-log.ts'
import { type InvalidationObserver, Invalidations } from './invalidations.ts'
import { type Cache, LayeredCache, type SurroundingTransaction } from './layered-cache.ts'
import { Loader } from './loader.ts'
import { MemoryTier } from './memory-tier.ts'
import { RedisTier } from './redis-tier.ts'

/** The Redis of a cache: where its values are, and where it hears of invalidations. */
export interface CacheRedis {
  readonly client: RedisClient
  readonly subscriber: RedisSubscriber
}

/** A cache and what its owner does with it. */
export interface OpenCache {
  readonly cache: Cache
  /** Ends what has these tags, with the commit of a transaction if it is in one. Never rejects. */
  invalidateTags(tags: readonly string[], scope?: Scope): Promise<void>
  /** Redis takes commands, for the first time or again. */
  redisIsBack(): void
  /** Waits so long for what goes on behind, and gives how many keys and tags could not be invalidated in Redis. */
  close(limitMs: number): Promise<number>
}

/** Opens a cache. Without Redis it is one of this process alone. `current` is the transaction of the present async context. */
export function openCache(
  settings: CacheSettings,
  redis: CacheRedis | undefined,
  current: () => Scope | undefined,
  observer: InvalidationObserver,
): OpenCache {
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
  const buffers = new WeakMap<Scope, TransactionBuffer>()
  const bufferOf = (scope: Scope): TransactionBuffer => {
    const known = buffers.get(scope) ?? new TransactionBuffer(scope, invalidations, settings.holdMs)
    buffers.set(scope, known)
    return known
  }
  const transaction = (): SurroundingTransaction | undefined => {
    const scope = current()
    return scope && bufferOf(scope)
  }
  const defaults = { ttlMs: settings.ttlMs, maxTtlMs }
  return {
    cache: new LayeredCache({ loader, invalidations, defaults, transaction }),
    redisIsBack: () => invalidations.drainSoon(),
    async invalidateTags(tags, scope) {
      const what = { keys: [], tags, patterns: [] }
      if (scope === undefined) await invalidations.invalidate(what)
      else bufferOf(scope).invalidate(what)
    },
    async close(limitMs) {
      // What loads a value may hang.
      await Promise.race([loader.settle(), sleep(limitMs, undefined, { ref: false })])
      return invalidations.close()
    },
  }
}

/** Outermost transactions in which something was invalidated: what they read is for them alone. */
const changed = new WeakSet<Scope>()

/** What a transaction or savepoint invalidates, which goes with it. */
class TransactionBuffer implements SurroundingTransaction {
  readonly #scope: Scope
  readonly #invalidations: Invalidations
  readonly #holdMs: number | false
  readonly #keys = new Set<string>()
  readonly #tags = new Set<string>()
  readonly #patterns = new Set<string>()
  #all = false
  #isArmed = false

  constructor(scope: Scope, invalidations: Invalidations, holdMs: number | false) {
    this.#scope = scope
    this.#invalidations = invalidations
    this.#holdMs = holdMs
  }

  get bypassesCache(): boolean {
    const { hasWritten, readsCommitted, root } = this.#scope
    // A snapshot knows nothing of what others have committed since.
    return hasWritten || !readsCommitted || changed.has(root)
  }

  invalidate({ keys, tags, patterns, all = false }: Invalidation): void {
    for (const key of keys) this.#keys.add(key)
    for (const tag of tags) this.#tags.add(tag)
    for (const pattern of patterns) this.#patterns.add(pattern)
    this.#all ||= all
    changed.add(this.#scope.root)
    if (this.#isArmed) return
    this.#isArmed = true
    this.#arm()
  }

  afterCommit(work: () => Promise<void>): void {
    this.#scope.addHook('commit', work)
  }

  #arm(): void {
    const scope = this.#scope
    let held: { readonly what: Invalidation; readonly owner: string } | undefined
    const end = (): Promise<unknown> =>
      held ? this.#invalidations.invalidate(held.what, held.owner) : this.#invalidations.invalidate(this.#collected())
    scope.addHook('commit', end)
    scope.addHook('unknown', end)
    if (this.#holdMs === false) return
    const holdMs = this.#holdMs
    scope.addHook('before', async () => {
      held = { what: this.#collected(), owner: randomUUID() }
      await this.#invalidations.hold(held.what, held.owner, holdMs)
    })
    // Nothing has changed, but nothing can be kept either before the holds are gone.
    scope.addHook('rollback', () => held && end())
  }

  #collected(): Invalidation {
    return { keys: [...this.#keys], tags: [...this.#tags], patterns: [...this.#patterns], all: this.#all }
  }
}
