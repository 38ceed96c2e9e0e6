import { coarseNow, exactNow } from '../core/coarse-clock.ts'
import { pauseFor, settleWithin } from '../core/deadline.ts'
import { DatabaseError } from '../core/errors.ts'
import { type Codec, type Survey, survey } from './codec.ts'
import { type EntryFacts, headerOf, packEntry, type StoredEntry } from './entry.ts'
import { concernedBy, type Invalidation } from './invalidation-log.ts'
import type { EntryPolicy, Post } from './entry-policy.ts'
import type { Invalidations, InvalidationTarget } from './invalidations.ts'
import type { MemoryEntry, MemoryTier } from './memory-tier.ts'
import type { SharedTier } from './redis-tier.ts'

/** What a {@link Loader} counts. */
export interface LoaderStats {
  readonly memoryHits: number
  readonly redisHits: number
  readonly misses: number
  readonly loads: number
  readonly loadFailures: number
  /** Given although they were no longer fresh. */
  readonly stale: number
  /** Values that were loaded and not kept, since something happened meanwhile. */
  readonly refusedFills: number
  /** Failures of Redis that a read has met; the value was loaded then. */
  readonly redisFailures: number
  /** Values that were loaded and not kept, since they would not survive it. */
  readonly unsupported: number
}

/** Settings of a {@link Loader}. Times are milliseconds. */
export interface LoaderSettings {
  readonly leaseMs: number
  /** The longest that a value stays in memory. */
  readonly memoryTtlMs: number
  /** The same while Redis is away, and invalidations of others are not heard. */
  readonly memoryTtlWithoutRedisMs: number
}

/** One loading, which all who ask for its key wait for. */
interface Flight {
  readonly promise: Promise<unknown>
  give(value: unknown): void
  /** What its value will be made of, as far as that is known before. */
  readonly tags: readonly string[]
  /** Its tags come with its value: any tag that is ended may be one of them. */
  readonly mayHaveAnyTag: boolean
  /** By the clock of the invalidations, since when it is loaded. */
  clock?: number
  /** What others wait for. */
  lease?: string | undefined
  /** What Redis has, for when the loading fails or takes too long. */
  stale?: Stale
  /** Something of it was invalidated since it began: its value is for those who wait already, and is not kept. */
  isDirty: boolean
}

/** A value and what entitles to keep it. */
interface Right {
  readonly clock: number
  /** What must be under the key in Redis for it to be put there: a lease, or the header of the entry that it replaces. */
  readonly expected: string | undefined
  /** It is an old entry, and a lock that others do not wait for. */
  readonly isLocked?: boolean
}

interface Stale {
  readonly value: unknown
  readonly clock: number
  readonly tags: readonly string[]
}

const noTags: readonly string[] = []
const firstPollMs = 4
const longestPollMs = 50

/** Reads through both tiers: a value in memory, else in Redis, else loaded once for all who want it. */
export class Loader implements InvalidationTarget {
  readonly memory: MemoryTier
  readonly #tier: SharedTier | undefined
  readonly #codec: Codec
  readonly #settings: LoaderSettings
  readonly #flights = new Map<string, Flight>()
  /** How much goes on although nobody waits for it, and who waits until it is none. */
  #behind = 0
  #settled: PromiseWithResolvers<void> | undefined
  readonly #counts = {
    memoryHits: 0,
    redisHits: 0,
    misses: 0,
    loads: 0,
    loadFailures: 0,
    stale: 0,
    refusedFills: 0,
    redisFailures: 0,
    unsupported: 0,
  }
  #invalidations!: Invalidations

  constructor(memory: MemoryTier, tier: SharedTier | undefined, codec: Codec, settings: LoaderSettings) {
    this.memory = memory
    this.#tier = tier
    this.#codec = codec
    this.#settings = settings
  }

  /** Each needs the other. */
  attach(invalidations: Invalidations): void {
    this.#invalidations = invalidations
  }

  stats(): LoaderStats {
    return { ...this.#counts }
  }

  /** The entry in memory, if it holds; it may be stale. */
  inMemory(key: string): MemoryEntry | undefined {
    const entry = this.memory.get(key)
    if (entry === undefined) return undefined
    const { log } = this.#invalidations
    if (entry.checkedAt === log.version) return entry
    if (log.holds(key, entry.clock, entry.tags)) {
      entry.checkedAt = log.version
      return entry
    }
    this.memory.delete(key)
    return undefined
  }

  /** A fresh value in memory, or `undefined`; counts as a hit. */
  hit(key: string, now: number): MemoryEntry | undefined {
    const entry = this.inMemory(key)
    if (entry === undefined || entry.freshUntil <= now) return undefined
    this.#counts.memoryHits += 1
    return entry
  }

  /** A value that is there, in memory or Redis, and nothing is loaded. */
  async find(key: string, policy: EntryPolicy): Promise<{ readonly value: unknown } | undefined> {
    const entry = policy.usesMemory ? this.hit(key, coarseNow()) : undefined
    if (entry) return { value: this.memory.give(entry.value) }
    const tier = this.#tier
    if (tier?.isReady !== true || this.#invalidations.log.isBlocked(key, [])) return this.#missed()
    const { epoch } = this.#invalidations
    try {
      const found = await this.#freshIn(tier, key)
      if (found === undefined) return this.#missed()
      return { value: this.memory.give(await this.#take(key, found.entry, policy, found.leftMs, epoch)) }
    } catch {
      this.#counts.redisFailures += 1
      return this.#missed()
    }
  }

  /** The value, loaded if need be, once for all who ask while it is. */
  load<T>(key: string, load: () => Promise<T> | T, policy: EntryPolicy<T>): Promise<T> {
    const any = policy as EntryPolicy
    const flight = this.#flights.get(key) ?? this.#takeOff(key, load, any)
    const { softTimeoutMs, loadTimeoutMs, whileRevalidate } = policy
    const isPatient = softTimeoutMs === false && loadTimeoutMs === false && !whileRevalidate
    const value = isPatient ? flight.promise : this.#waitFor(flight, key, any)
    return (this.memory.givesItself ? value : value.then((kept) => this.memory.give(kept))) as Promise<T>
  }

  /** Loads a value anew behind those who read it. */
  refresh<T>(key: string, load: () => Promise<T> | T, policy: EntryPolicy<T>): void {
    if (this.#flights.has(key)) return
    void this.#refresh(key, load, policy as EntryPolicy)
  }

  /**
   * A value to be put in the place of what is cached, made of nothing older than what was invalidated by `since`. Throws
   * `CACHE_VALUE_UNSUPPORTED` for one that cannot be kept.
   */
  post(key: string, value: unknown, policy: EntryPolicy, since: number): Post {
    const found = survey(value)
    const tags = typeof policy.tags === 'function' ? policy.tags(value) : policy.tags
    return { key, value: this.memory.keep(value), found, policy, tags, since, epoch: 0, expected: undefined }
  }

  /** To be called before the commit of what the value was made of: whoever loads or ends it from now on has seen that, or not. */
  async reserve(post: Post): Promise<void> {
    post.epoch = this.#invalidations.epoch
    try {
      post.expected = await this.#tier?.reserve(post.key)
    } catch {
      this.#counts.redisFailures += 1
    }
  }

  /**
   * After the commit, and before it is told: the entry that was there makes room for a lease, so that nobody who hears of it finds what
   * was before.
   */
  async claim(post: Post): Promise<void> {
    const { key, expected } = post
    if (this.#tier === undefined || expected?.startsWith('V') !== true) return
    try {
      post.expected = await this.#tier.claim(key, expected)
    } catch {
      post.expected = undefined
      this.#counts.redisFailures += 1
    }
  }

  /** Gives up what was reserved. */
  async release({ key, expected }: Post): Promise<void> {
    // An entry that is there goes on to hold.
    if (expected?.startsWith('L')) await this.#quietly(this.#tier?.discard(key, expected))
  }

  /** Puts it there, by the clock of its own invalidation. False where something has happened to it since it was reserved. */
  async place(post: Post, invalidatedAt: number): Promise<boolean> {
    const { key, value, found, policy, tags, expected, epoch } = post
    const tier = this.#tier
    // Later than its own invalidation, and not later than one that comes behind.
    const clock = tier === undefined ? this.#invalidations.next() : invalidatedAt + 1
    const facts = factsOf(value, clock, { ...policy, tags }, found.size, tier)
    if (facts === undefined) return false
    const leftMs = facts.freshMs + facts.graceMs
    let header: string | undefined
    if (tier !== undefined) {
      if (expected === undefined) return this.#refuse()
      const entry = packEntry(facts, await this.#codec.encode(value, found))
      header = headerOf(entry)
      if (!(await tier.swap(key, expected, entry, leftMs))) return this.#refuse()
    }
    this.#remember(key, value, { ...facts, header }, policy, leftMs, epoch)
    return true
  }

  drop(what: Invalidation, clock: number): void {
    const concerns = concernedBy(what)
    if (what.all === true || what.patterns.length > 0) {
      this.memory.deleteWhere((key, entry) => entry.clock <= clock && concerns(key))
    } else for (const key of what.keys) this.memory.deleteUntil(key, clock)
    if (!this.#invalidations.isTrusted) this.#dropTagged(what.tags)
    for (const [key, flight] of this.#flights) {
      // What is not loaded yet will be what it is now.
      if (flight.clock === undefined || flight.clock > clock) continue
      if (concerns(key) || what.tags.some((tag) => flight.tags.includes(tag))) this.#detach(key, flight)
      // Whether it is kept is seen when its tags are known; who asks from now on does not join it.
      else if (flight.mayHaveAnyTag && what.tags.length > 0) this.#leave(key, flight)
    }
  }

  /** What is kept while Redis is away has no clock by which it could be told. */
  #dropTagged(tags: readonly string[]): void {
    if (tags.length > 0) this.memory.deleteWhere((_, entry) => entry.tags.some((tag) => tags.includes(tag)))
  }

  dropAll(): void {
    this.memory.clear()
    for (const [key, flight] of this.#flights) this.#detach(key, flight)
  }

  /** Waits for what goes on behind. */
  async settle(): Promise<void> {
    if (this.#behind === 0) return
    this.#settled ??= Promise.withResolvers<void>()
    await this.#settled.promise
  }

  #detach(key: string, flight: Flight): void {
    flight.isDirty = true
    this.#leave(key, flight)
    // Whoever loads it anew need not wait for one that is of no use.
    const { lease } = flight
    flight.lease = undefined
    if (lease !== undefined) void this.#quietly(this.#tier?.discard(key, lease))
  }

  /** From now on, whoever asks for it has it loaded. */
  #leave(key: string, flight: Flight): void {
    if (this.#flights.get(key) === flight) this.#flights.delete(key)
  }

  #missed(): undefined {
    this.#counts.misses += 1
    return undefined
  }

  #takeOff(key: string, load: () => unknown, policy: EntryPolicy): Flight {
    const { promise, resolve, reject } = Promise.withResolvers<unknown>()
    const flight: Flight = {
      promise,
      give: resolve,
      tags: typeof policy.tags === 'function' ? noTags : policy.tags,
      mayHaveAnyTag: typeof policy.tags === 'function',
      isDirty: false,
    }
    this.#flights.set(key, flight)
    void this.#fly(key, load, policy, flight, reject)
    return flight
  }

  /** Gives the value as soon as it is known, and goes on until it is kept. */
  async #fly(
    key: string,
    load: () => unknown,
    policy: EntryPolicy,
    flight: Flight,
    fail: (error: unknown) => void,
  ): Promise<void> {
    this.#behind += 1
    try {
      const { epoch } = this.#invalidations
      const right = await this.#acquire(key, policy, flight, epoch)
      if (right !== undefined) await this.#loadAndFill(key, load, policy, flight, epoch, right)
    } catch (error) {
      const stale = this.#staleOf(key, flight)
      if (stale === undefined) fail(error)
      else flight.give(this.#countStale(stale))
    } finally {
      this.#leave(key, flight)
      this.#done()
    }
  }

  async #loadAndFill(
    key: string,
    load: () => unknown,
    policy: EntryPolicy,
    flight: Flight,
    epoch: number,
    { clock, expected, isLocked = false }: Right,
  ): Promise<void> {
    this.#counts.misses += 1
    flight.clock = clock
    flight.lease = isLocked ? undefined : expected
    try {
      const value = await this.#loadNow(load)
      const found = this.#surveyOf(value)
      const facts = found && factsOf(value, clock, policy, found.size, this.#tier)
      if (found === undefined || facts === undefined) {
        this.#leave(key, flight)
        return flight.give(value)
      }
      const kept = this.memory.keep(value)
      // Without Redis it is kept at once.
      if (this.#tier === undefined) this.#leave(key, flight)
      flight.give(kept)
      if (await this.#fill(key, kept, facts, found, { policy, flight, epoch, expected })) flight.lease = undefined
    } finally {
      // Others wait for as long as it is there.
      if (flight.lease !== undefined) void this.#quietly(this.#tier?.discard(key, flight.lease))
      if (isLocked) void this.#quietly(this.#tier?.unlock(key))
    }
  }

  /** Nothing for a value that cannot be cached: whoever asked for it gets it all the same. */
  #surveyOf(value: unknown): Survey | undefined {
    try {
      return survey(value)
    } catch {
      this.#counts.unsupported += 1
      return undefined
    }
  }

  /** Gives a value that Redis has; else says with what right one may be loaded and kept. */
  async #acquire(key: string, policy: EntryPolicy, flight: Flight, epoch: number): Promise<Right | undefined> {
    const { log } = this.#invalidations
    const tier = this.#tier
    if (tier === undefined) return { clock: this.#invalidations.next(), expected: undefined }
    const until = performance.now() + this.#settings.leaseMs
    try {
      const isKnown = tier.isReady && this.#invalidations.isTrusted && !log.isBlocked(key, flight.tags)
      const asked = isKnown ? tier.getFresh(key) : undefined
      const fresh = asked && (await asked)
      // What was ended meanwhile is looked at once more.
      if (fresh && !flight.isDirty && log.holds(key, fresh.entry.clock, fresh.entry.tags)) {
        const value = this.#take(key, fresh.entry, policy, fresh.leftMs, epoch)
        // What cannot be unpacked is loaded.
        flight.give(value instanceof Promise ? await value : value)
        return undefined
      }
      for (let pauseMs = firstPollMs; tier.isReady && !log.isBlocked(key, flight.tags); pauseMs *= 2) {
        const { found, now } = await tier.acquire(key)
        log.raiseFloor(now.floor)
        if (found.kind === 'lease') return { clock: now.present, expected: found.lease }
        if (found.kind === 'value') {
          const { entry, leftMs } = found
          const holds = this.#holds(key, entry)
          if (!(typeof holds === 'boolean' ? holds : await holds)) {
            // Exactly this one: meanwhile there may be the hold of a transaction.
            await tier.discard(key, entry.header)
            continue
          }
          if (leftMs > entry.graceMs) {
            const value = this.#take(key, entry, policy, leftMs, epoch)
            flight.give(value instanceof Promise ? await value : value)
            return undefined
          }
          const { clock, tags } = entry
          flight.stale = { value: this.memory.keep(await this.#codec.decode(entry.encoded)), clock, tags }
          const isFirst = await tier.lock(key, this.#settings.leaseMs)
          if (policy.whileRevalidate || !isFirst) {
            flight.give(this.#countStale(flight.stale))
          }
          return isFirst ? { clock: now.present, expected: entry.header, isLocked: true } : undefined
        }
        if (found.kind === 'gone') continue
        if (found.kind !== 'leased' || performance.now() >= until) break
        await pauseFor(Math.min(pauseMs, longestPollMs) * (0.5 + Math.random() / 2))
      }
    } catch {
      this.#counts.redisFailures += 1
    }
    return { clock: 0, expected: undefined }
  }

  /** A fresh entry that holds. */
  async #freshIn(
    tier: SharedTier,
    key: string,
  ): Promise<{ readonly entry: StoredEntry; readonly leftMs: number } | undefined> {
    const { found, now } = await tier.look(key)
    this.#invalidations.log.raiseFloor(now.floor)
    if (found.kind !== 'value' || found.leftMs <= found.entry.graceMs) return undefined
    return (await this.#holds(key, found.entry)) ? found : undefined
  }

  /** The value of an entry of Redis, which is kept in memory as long as it holds. */
  #take(key: string, entry: StoredEntry, policy: EntryPolicy, leftMs: number, epoch: number): unknown {
    const decoded = this.#codec.decode(entry.encoded)
    if (decoded instanceof Promise) {
      return decoded.then((value: unknown) => this.#keep(key, value, entry, policy, leftMs, epoch))
    }
    return this.#keep(key, decoded, entry, policy, leftMs, epoch)
  }

  #keep(key: string, value: unknown, entry: StoredEntry, policy: EntryPolicy, leftMs: number, epoch: number): unknown {
    const kept = this.memory.keep(value)
    this.#counts.redisHits += 1
    this.#remember(key, kept, entry, policy, leftMs, epoch)
    return kept
  }

  async #loadNow(load: () => unknown): Promise<unknown> {
    this.#counts.loads += 1
    try {
      return await load()
    } catch (error) {
      this.#counts.loadFailures += 1
      throw error
    }
  }

  /** Keeps what was loaded, in Redis and then in memory, unless something happened meanwhile. */
  async #fill(
    key: string,
    value: unknown,
    facts: NewEntry,
    found: Survey,
    { policy, flight, epoch, expected }: Filling,
  ): Promise<boolean> {
    const tier = this.#tier
    if (flight.isDirty) return this.#refuse()
    const leftMs = facts.freshMs + facts.graceMs
    let header: string | undefined
    if (tier !== undefined) {
      if (expected === undefined) return this.#rememberWithout(key, value, facts, policy, flight)
      try {
        const entry = packEntry(facts, await this.#codec.encode(value, found))
        header = headerOf(entry)
        if (!(await tier.swap(key, expected, entry, leftMs))) return this.#refuse()
      } catch {
        this.#counts.redisFailures += 1
        return false
      }
      if (flight.isDirty) return this.#refuse()
    }
    this.#remember(key, value, { ...facts, header }, policy, leftMs, epoch)
    return true
  }

  #refuse(): false {
    this.#counts.refusedFills += 1
    return false
  }

  /** Redis is away: a value is kept for as long as the others' invalidations may go unheard. */
  #rememberWithout(
    key: string,
    value: unknown,
    facts: NewEntry,
    policy: EntryPolicy,
    { isDirty }: Pick<Flight, 'isDirty'>,
  ): boolean {
    const { memoryTtlWithoutRedisMs } = this.#settings
    const { log, isTrusted } = this.#invalidations
    if (isTrusted || this.#tier?.isReady === true || memoryTtlWithoutRedisMs === 0) return false
    if (!policy.usesMemory || isDirty || log.isBlocked(key, facts.tags)) return false
    const now = exactNow()
    const until = now + Math.min(memoryTtlWithoutRedisMs, facts.freshMs)
    this.memory.set(key, {
      value,
      clock: Number.POSITIVE_INFINITY,
      tags: facts.tags,
      freshUntil: until,
      refreshAt: until,
      staleUntil: until,
      size: facts.size,
      header: undefined,
      checkedAt: -1,
    })
    return true
  }

  #remember(
    key: string,
    value: unknown,
    entry: EntryFacts & { readonly header: string | undefined },
    policy: EntryPolicy,
    leftMs: number,
    epoch: number,
  ): void {
    if (!policy.usesMemory) return
    const { log, isTrusted } = this.#invalidations
    // What was missed meanwhile may have been about this.
    if (!isTrusted || epoch !== this.#invalidations.epoch || !log.holds(key, entry.clock, entry.tags)) return
    const now = coarseNow()
    const mostMs = this.#settings.memoryTtlMs * (1 - Math.random() / 10)
    const freshMs = Math.min(leftMs - entry.graceMs, mostMs)
    if (freshMs <= 0) return
    this.memory.set(key, {
      value,
      clock: entry.clock,
      tags: entry.tags,
      freshUntil: now + freshMs,
      refreshAt: now + freshMs * policy.refreshAfter,
      staleUntil: now + Math.min(leftMs, mostMs + entry.graceMs),
      size: entry.size,
      header: entry.header,
      checkedAt: log.version,
    })
  }

  /** Whether an entry of Redis holds; who does not hear of invalidations has to ask. */
  #holds(key: string, { clock, tags }: StoredEntry): Promise<boolean> | boolean {
    const { log, isTrusted } = this.#invalidations
    if (!log.holds(key, clock, tags)) return false
    if (isTrusted || tags.length === 0) return true
    // Meanwhile something may have been ended here.
    return (this.#tier as SharedTier).latestOf(tags).then((latest) => latest < clock && log.holds(key, clock, tags))
  }

  async #waitFor(flight: Flight, key: string, policy: EntryPolicy): Promise<unknown> {
    const { promise } = flight
    const { softTimeoutMs, loadTimeoutMs, whileRevalidate } = policy
    // Perhaps nobody waits for it to the end.
    promise.catch(() => undefined)
    const isSoft = whileRevalidate || (softTimeoutMs !== false && (await isLate(promise, softTimeoutMs)))
    const soft = isSoft ? this.#staleOf(key, flight) : undefined
    if (soft !== undefined) return this.#countStale(soft)
    try {
      return loadTimeoutMs === false
        ? await promise
        : await settleWithin(promise, loadTimeoutMs, () => tooLate(loadTimeoutMs))
    } catch (error) {
      const stale = this.#staleOf(key, flight)
      if (stale === undefined) throw error
      return this.#countStale(stale)
    }
  }

  /** What may be given instead of a fresh value: of what was invalidated, nothing is left. */
  #staleOf(key: string, flight: Flight): Stale | undefined {
    if (flight.isDirty) return undefined
    const entry = this.inMemory(key)
    if (entry !== undefined && entry.staleUntil > exactNow()) return entry
    const { stale } = flight
    return stale && this.#invalidations.log.holds(key, stale.clock, stale.tags) ? stale : undefined
  }

  #countStale({ value }: Stale): unknown {
    this.#counts.stale += 1
    return value
  }

  /** It may fail: whoever reads the value when it is no longer fresh has it loaded. */
  async #refresh(key: string, load: () => unknown, policy: EntryPolicy): Promise<void> {
    this.#behind += 1
    try {
      await this.#loadAnew(key, load, policy)
    } catch {
      // Counted where it happened.
    } finally {
      this.#done()
    }
  }

  async #loadAnew(key: string, load: () => unknown, policy: EntryPolicy): Promise<void> {
    const tier = this.#tier
    const entry = this.inMemory(key)
    const header = entry?.header
    if (tier !== undefined && (header === undefined || !(await tier.lock(key, this.#settings.leaseMs)))) return
    const flight = { isDirty: false }
    try {
      const { epoch } = this.#invalidations
      const clock = tier === undefined ? this.#invalidations.next() : (await tier.now()).present
      const value = await this.#loadNow(load)
      const found = this.#surveyOf(value)
      const facts = found && factsOf(value, clock, policy, found.size, tier)
      if (found === undefined || facts === undefined) return
      await this.#fill(key, this.memory.keep(value), facts, found, { policy, flight, epoch, expected: header })
    } finally {
      if (tier !== undefined) await this.#quietly(tier.unlock(key))
    }
  }

  #done(): void {
    this.#behind -= 1
    if (this.#behind > 0) return
    this.#settled?.resolve()
    this.#settled = undefined
  }

  async #quietly(work: Promise<unknown> | undefined): Promise<void> {
    try {
      await work
    } catch {
      this.#counts.redisFailures += 1
    }
  }
}

/** An entry to be. */
interface NewEntry extends EntryFacts {
  readonly freshMs: number
}

/** What else has to be known to keep what was loaded. */
interface Filling {
  readonly policy: EntryPolicy
  readonly flight: Pick<Flight, 'isDirty'>
  /** When its reading began. */
  readonly epoch: number
  readonly expected: string | undefined
}

/** What is kept of a value; nothing where it is not to be kept. */
function factsOf(
  value: unknown,
  clock: number,
  policy: EntryPolicy,
  size: number,
  tier: SharedTier | undefined,
): NewEntry | undefined {
  const isNegative = value === undefined || value === null
  const ttlMs = isNegative ? policy.negativeTtlMs : policy.ttlMs
  if (ttlMs === false || ttlMs <= 0) return undefined
  const freshMs = ttlMs * (1 - Math.random() * policy.jitter)
  const tags = typeof policy.tags === 'function' ? policy.tags(value) : policy.tags
  const graceMs = isNegative ? 0 : policy.staleMs
  const expires = (tier?.time ?? clock) + (freshMs + graceMs) * 1_000
  return { clock, freshMs, graceMs, expires, size, tags }
}

/** Whether it has not settled after so long. */
async function isLate(work: Promise<unknown>, limitMs: number): Promise<boolean> {
  const late = new Error('late')
  return settleWithin(work, limitMs, () => late).then(
    () => false,
    (error: unknown) => {
      if (error !== late) throw error
      return true
    },
  )
}

function tooLate(limitMs: number): DatabaseError {
  return new DatabaseError(
    'CACHE_LOAD_TIMEOUT',
    `A value for the cache was not loaded within ${limitMs} ms; the loading goes on. Look at what it waits for, raise the limit, or allow stale values.`,
  )
}
