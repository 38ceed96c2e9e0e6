import type { CacheEntryOptions } from '../core/cache-options.ts'
import { coarseNow } from '../core/coarse-clock.ts'
import { DatabaseError } from '../core/errors.ts'
import type { EntryPolicy, Post } from './entry-policy.ts'
import { type Invalidation, nothing } from './invalidation-log.ts'
import type { Invalidations, InvalidationStats } from './invalidations.ts'
import type { Loader, LoaderStats } from './loader.ts'
import type { WriteBehind, WriteBehindOptions } from './write-behind.ts'

/** What {@link Cache.invalidate} ends. */
export interface InvalidateOptions {
  readonly keys?: readonly string[] | undefined
  readonly tags?: readonly string[] | undefined
  /** A glob over keys: `*` any text, `?` one character, `\` before either to mean it. Looks at every key there is. */
  readonly pattern?: string | undefined
}

/** A moment of a cache. */
export interface CacheStats extends LoaderStats, InvalidationStats {
  /** In memory. */
  readonly entries: number
  /** Of the values in memory, about. */
  readonly bytes: number
  /** Hits among all reads; 0 before the first. */
  readonly hitRate: number
}

/**
 * Values kept in memory and in Redis, correct after every commit: what is invalidated here is invalidated in every process that
 * shares the namespace, and a value whose loading had begun before is not kept. When Redis fails, values are loaded; no call
 * fails for it.
 *
 * Inside a transaction nothing is kept; reads pass the cache by once the transaction has written; what is invalidated or set
 * becomes so with the commit, and not at all if that does not come.
 *
 * Keys and tags are any text of 1 to 1024 bytes; `INVALID_ARGUMENT` for others, and for times that are none.
 */
export interface Cache {
  /** The value if it is there. `undefined` is also what is given for a remembered "there is none". */
  get<T>(key: string): Promise<T | undefined>
  /** The values that are there, by key. */
  getMany<T>(keys: readonly string[]): Promise<Map<string, T>>
  /** The value if it is in the memory of this process, at once. Its type is what the caller says it is. */
  // oxlint-disable-next-line typescript/no-unnecessary-type-parameters -- as that of get
  peek<T>(key: string): T | undefined
  /**
   * The value, loaded when it is not there: once in this process for all who ask while it is loaded, and once among all processes
   * that share Redis. Rejects as `load` does, unless a stale value may be given instead; with `CACHE_LOAD_TIMEOUT` where that
   * was limited.
   */
  getOrSet<T>(key: string, load: () => Promise<T> | T, options?: CacheEntryOptions<T>): Promise<T>
  /**
   * Puts a value there that its caller knows to be the latest; inside a transaction with its commit, as {@link writeThrough} does.
   * `CACHE_VALUE_UNSUPPORTED` for one that would not survive it.
   */
  set<T>(key: string, value: T, options?: CacheEntryOptions<T>): Promise<void>
  /**
   * Runs `write` in a transaction, which joins the one around it, and puts what it gives in the place of what is cached once that is
   * committed. Of writers at the same time the last to commit wins, or nothing is kept and the next read loads it: never an
   * older value. So give what the statement returned. In strict mode (`cache.holdMs`) it is only invalidated.
   *
   * Rejects as `write` and its transaction do, and with `CACHE_VALUE_UNSUPPORTED`, which undoes the write.
   *
   * @example
   * ```ts
   * import type { Database } from 'kanta'
   * import type { DB } from './generated/schema.ts'
   *
   * export const rename = ({ cache, db }: Database<DB>, id: string, name: string) =>
   *   cache.writeThrough(`user:${id}`, () =>
   *     db.updateTable('users').set({ name }).where('id', '=', id).returningAll().executeTakeFirstOrThrow(),
   *   )
   * ```
   */
  writeThrough<T>(key: string, write: () => Promise<T> | T, options?: CacheEntryOptions<T>): Promise<T>
  /**
   * Values that are written a little later, many at once, for what changes often and may be merged: counters, the time somebody was
   * last seen. What was not written when the process dies is lost. `close()` of the database writes what waits, for
   * `pool.drainTimeoutMs` at most.
   *
   * @example
   * ```ts
   * import type { Database } from 'kanta'
   * import type { DB } from './generated/schema.ts'
   *
   * export const lastSeen = (database: Database<DB>) =>
   *   database.cache.writeBehind<Date>({
   *     idempotent: true,
   *     write: (times) =>
   *       database.updateMany('users', [...times].map(([id, last_login_at]) => ({ id, last_login_at })), { key: ['id'] }),
   *   })
   * ```
   */
  writeBehind<T>(options: WriteBehindOptions<T>): WriteBehind<T>
  delete(key: string): Promise<void>
  /** From now on nothing of it is given. Resolves when all processes that can be reached know; never rejects for want of Redis. */
  invalidate(what: InvalidateOptions): Promise<void>
  /** Invalidates everything of this namespace; of the whole cache it is done at once, of a namespace in it by its keys. */
  clear(): Promise<void>
  /** A cache in this one, whose keys and tags are its own. */
  namespace(name: string): Cache
  stats(): CacheStats
}

/** The transaction that surrounds a call, as far as the cache is concerned. */
export interface SurroundingTransaction {
  /** What it reads may be what only it sees. */
  readonly bypassesCache: boolean
  /** To be done with its commit, or when nobody can tell whether it was committed. */
  invalidate(what: Invalidation): void
  /** To be put there with its commit. */
  post(post: Post): void
}

/** What a {@link LayeredCache} is made of. */
export interface CacheParts {
  readonly loader: Loader
  readonly invalidations: Invalidations
  readonly defaults: { readonly ttlMs: number; readonly maxTtlMs: number }
  /** The transaction of the present async context. */
  transaction(): SurroundingTransaction | undefined
  /** Runs work in a transaction, or in the present one. */
  transact<T>(work: () => Promise<T>): Promise<T>
  writeBehind<T>(options: WriteBehindOptions<T>): WriteBehind<T>
}

const maxNameBytes = 1_024
const longestNegativeMs = 10_000

/** {@link Cache} over its parts. */
export class LayeredCache implements Cache {
  readonly #parts: CacheParts
  readonly #prefix: string
  /** Of calls without options. */
  #usual: EntryPolicy | undefined

  constructor(parts: CacheParts, prefix = '') {
    this.#parts = parts
    this.#prefix = prefix
  }

  async get<T>(key: string): Promise<T | undefined> {
    const found = await this.#find(this.#nameOf(key))
    return found?.value as T | undefined
  }

  async getMany<T>(keys: readonly string[]): Promise<Map<string, T>> {
    const names = keys.map((key) => this.#nameOf(key))
    const found = await Promise.all(names.map((name) => this.#find(name)))
    const values = keys.flatMap((key, index) => {
      const value = found[index]?.value
      return value === undefined ? [] : [[key, value as T] as const]
    })
    return new Map(values)
  }

  // oxlint-disable-next-line typescript/no-unnecessary-type-parameters -- as in Cache
  peek<T>(key: string): T | undefined {
    const name = this.#nameOf(key)
    if (this.#parts.transaction()?.bypassesCache) return undefined
    const { loader } = this.#parts
    const entry = loader.hit(name, coarseNow())
    return entry && (loader.memory.give(entry.value) as T)
  }

  getOrSet<T>(key: string, load: () => Promise<T> | T, options?: CacheEntryOptions<T>): Promise<T> {
    // Refused as everywhere.
    if (typeof key !== 'string') return this.get<T>(key) as Promise<never>
    const name = this.#prefix + key
    const transaction = this.#parts.transaction()
    if (transaction !== undefined) return this.#readInside(key, load, transaction)
    const { loader } = this.#parts
    const now = coarseNow()
    const entry = loader.hit(name, now)
    if (entry !== undefined) {
      if (entry.refreshAt <= now) loader.refresh(name, load, this.#policyOf(options))
      return loader.memory.promise(entry) as Promise<T>
    }
    try {
      return loader.load(this.#nameOf(key), load, this.#policyOf(options))
    } catch (error) {
      return Promise.reject(error)
    }
  }

  async set<T>(key: string, value: T, options?: CacheEntryOptions<T>): Promise<void> {
    await this.#put(key, value, options, this.#parts.invalidations.log.clock)
  }

  async writeThrough<T>(key: string, write: () => Promise<T> | T, options?: CacheEntryOptions<T>): Promise<T> {
    this.#nameOf(key)
    const since = this.#parts.invalidations.log.clock
    return this.#parts.transact(async () => {
      const value = await write()
      await this.#put(key, value, options, since)
      return value
    })
  }

  async #put<T>(key: string, value: T, options: CacheEntryOptions<T> | undefined, since: number): Promise<void> {
    const { loader, invalidations } = this.#parts
    const post = loader.post(this.#nameOf(key), value, this.#policyOf(options) as EntryPolicy, since)
    const transaction = this.#parts.transaction()
    if (transaction !== undefined) return transaction.post(post)
    await loader.reserve(post)
    await invalidations.invalidate({ ...nothing, keys: [post.key] }, { posts: [post] })
  }

  writeBehind<T>(options: WriteBehindOptions<T>): WriteBehind<T> {
    return this.#parts.writeBehind(options)
  }

  delete(key: string): Promise<void> {
    return this.invalidate({ keys: [key] })
  }

  async invalidate({ keys = [], tags = [], pattern }: InvalidateOptions): Promise<void> {
    const what: Invalidation = {
      keys: keys.map((key) => this.#nameOf(key)),
      tags: tags.map((tag) => this.#nameOf(tag)),
      patterns:
        pattern === undefined
          ? []
          : [escapeGlob(this.#prefix) + checked(pattern, 'A pattern').replaceAll(/[[\]]/g, '\\$&')],
    }
    await this.#end(what)
  }

  async clear(): Promise<void> {
    if (this.#prefix === '') await this.#end({ keys: [], tags: [], patterns: [], all: true })
    else await this.#end({ keys: [], tags: [], patterns: [`${escapeGlob(this.#prefix)}*`] })
  }

  namespace(name: string): Cache {
    return new LayeredCache(this.#parts, `${this.#prefix}${checked(name, 'A namespace')}:`)
  }

  stats(): CacheStats {
    const { loader, invalidations } = this.#parts
    const counts = loader.stats()
    const hits = counts.memoryHits + counts.redisHits
    const reads = hits + counts.misses
    const { count: entries, bytes } = loader.memory
    return { ...counts, ...invalidations.stats(), entries, bytes, hitRate: reads === 0 ? 0 : hits / reads }
  }

  /** What is loaded in a transaction is for nobody else. */
  async #readInside<T>(key: string, load: () => Promise<T> | T, transaction: SurroundingTransaction): Promise<T> {
    const name = this.#nameOf(key)
    const found = transaction.bypassesCache ? undefined : await this.#find(name)
    return found === undefined ? load() : (found.value as T)
  }

  async #find(name: string): Promise<{ readonly value: unknown } | undefined> {
    if (this.#parts.transaction()?.bypassesCache) return undefined
    return this.#parts.loader.find(name, this.#policyOf(undefined))
  }

  async #end(what: Invalidation): Promise<void> {
    const transaction = this.#parts.transaction()
    if (transaction === undefined) await this.#parts.invalidations.invalidate(what)
    else transaction.invalidate(what)
  }

  #policyOf<T>(options: CacheEntryOptions<T> | undefined): EntryPolicy<T> {
    return options ? this.#policyFor(options) : (this.#usual ??= this.#policyFor({}))
  }

  #policyFor<T>(options: CacheEntryOptions<T>): EntryPolicy<T> {
    const { ttlMs: defaultMs, maxTtlMs } = this.#parts.defaults
    const ttlMs = time(options.ttlMs, 'ttlMs', maxTtlMs) ?? defaultMs
    const tags = options.tags ?? []
    return {
      ttlMs,
      staleMs: time(options.staleMs, 'staleMs', maxTtlMs) ?? 0,
      whileRevalidate: options.whileRevalidate ?? false,
      refreshAfter: share(options.refreshAfter, 'refreshAfter') ?? 1,
      negativeTtlMs: limit(options.negativeTtlMs, 'negativeTtlMs', maxTtlMs) ?? Math.min(ttlMs, longestNegativeMs),
      jitter: share(options.jitter, 'jitter') ?? 0.1,
      softTimeoutMs: limit(options.softTimeoutMs, 'softTimeoutMs', maxTtlMs) ?? false,
      loadTimeoutMs: limit(options.loadTimeoutMs, 'loadTimeoutMs', maxTtlMs) ?? false,
      tags:
        typeof tags === 'function'
          ? (value) => listed(tags(value)).map((tag) => this.#nameOf(tag))
          : listed(tags).map((tag) => this.#nameOf(tag)),
      usesMemory: options.memory ?? true,
    }
  }

  #nameOf(name: string): string {
    return this.#prefix + checked(name, 'A key or tag')
  }
}

/** Two texts with half a character would be the same bytes. */
function checked(name: unknown, what: string): string {
  const problem =
    typeof name !== 'string'
      ? `is of type ${typeof name}`
      : name === ''
        ? 'is empty'
        : name.length * 3 > maxNameBytes && Buffer.byteLength(name) > maxNameBytes
          ? `has ${Buffer.byteLength(name)} bytes`
          : name.isWellFormed()
            ? undefined
            : 'has half a character in it'
  if (problem === undefined) return name as string
  throw new DatabaseError(
    'INVALID_ARGUMENT',
    `${what} of the cache ${problem}. Give text of 1 to ${maxNameBytes} bytes; of a longer one its hash.`,
  )
}

function listed(tags: readonly string[]): readonly string[] {
  if (Array.isArray(tags)) return tags
  throw new DatabaseError('INVALID_ARGUMENT', `tags of the cache are of type ${typeof tags}. Give a list of texts.`)
}

function time(value: number | undefined, name: string, mostMs: number): number | undefined {
  if (value === undefined || (typeof value === 'number' && value >= 0 && value <= mostMs)) return value
  throw new DatabaseError(
    'INVALID_ARGUMENT',
    `${name} of the cache is ${String(value)}. Give milliseconds from 0 to ${mostMs} (cache.maxTtlMs).`,
  )
}

function limit(value: number | false | undefined, name: string, mostMs: number): number | false | undefined {
  return value === false ? false : time(value, name, mostMs)
}

function share(value: number | undefined, name: string): number | undefined {
  if (value === undefined || (typeof value === 'number' && value >= 0 && value <= 1)) return value
  throw new DatabaseError('INVALID_ARGUMENT', `${name} of the cache is ${String(value)}. Give a part from 0 to 1.`)
}

function escapeGlob(text: string): string {
  return text.replaceAll(/[\\*?[\]]/g, '\\$&')
}
