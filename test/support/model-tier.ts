/**
 * A model of what the cache does with Redis: one that a test can hold up, lose and reorder at every step. It is what
 * `RedisTier` is to its callers; a test compares the two.
 */

import type {
  FreshEntry,
  Found,
  InvalidateSettings,
  Reading,
  Replay,
  SharedTier,
  Tick,
} from '../../src/cache/redis-tier.ts'
import { marker, unpackEntry } from '../../src/cache/entry.ts'
import { concernedBy, type Invalidation } from '../../src/cache/invalidation-log.ts'
import type { ChannelListener } from '../../src/redis/subscriber.ts'

/** What all processes share: entries, what was invalidated when, and who listens. Times are microseconds. */
export class ModelRedis {
  readonly entries: Map<string, { readonly bytes: Buffer | string; readonly until: number }> = new Map()
  readonly listeners: Set<(message: Buffer) => void> = new Set()
  tags: Map<string, number> = new Map()
  clock: number = 0
  floor: number = 0
  present: () => number

  constructor(present: () => number) {
    this.present = present
    this.loseAll()
  }

  /** As FLUSHALL does. Time has gone on since the last tick, if only by a microsecond: no script of Redis is faster. */
  loseAll(): void {
    this.entries.clear()
    this.tags.clear()
    this.clock = Math.max(this.clock + 1, this.present())
    this.floor = this.clock
  }

  get(key: string): Buffer | string | undefined {
    const entry = this.entries.get(key)
    return entry !== undefined && entry.until > this.present() ? entry.bytes : undefined
  }

  drop(key: string, held: string): void {
    const bytes = this.get(key)
    if (bytes === undefined || !String(bytes).startsWith('T') || bytes === held) this.entries.delete(key)
  }
}

/** When a step is taken; throws when it gets lost. */
export type Step = <T>(take: () => T) => Promise<T>

/** The connection of one process to a {@link ModelRedis}. */
export class ModelTier implements SharedTier {
  readonly channel: string = 'invalidations'
  isReady: boolean = true
  readonly #redis: ModelRedis
  readonly #step: Step
  readonly #leaseUs: number
  readonly #name: string
  /** Whether a value is put there although its lease is gone, as a cache without leases does. */
  readonly #isNaive: boolean
  #leases = 0

  constructor(redis: ModelRedis, step: Step, name: string, leaseMs: number, isNaive = false) {
    this.#redis = redis
    this.#step = step
    this.#name = name
    this.#leaseUs = leaseMs * 1_000
    this.#isNaive = isNaive
  }

  get time(): number {
    return this.#redis.present()
  }

  now(): Promise<Reading['now']> {
    return this.#step(() => this.#reading())
  }

  getFresh(key: string): Promise<FreshEntry | undefined> {
    return this.#step(() => {
      const found = this.#find(key)
      return found.kind === 'value' && found.leftMs > found.entry.graceMs ? found : undefined
    })
  }

  /** As many digits for each, as in Redis, where it is compared by its beginning. */
  #nextLease(): string {
    this.#leases += 1
    return marker('L', `${this.#name} ${String(this.#leases).padStart(6, '0')}`)
  }

  acquire(key: string): Promise<Reading> {
    const lease = this.#nextLease()
    return this.#step(() => {
      const found = this.#find(key)
      if (found.kind !== 'none') return { found, now: this.#reading() }
      this.#put(key, lease, this.#leaseUs)
      return { found: { kind: 'lease', lease }, now: this.#reading() }
    })
  }

  look(key: string): Promise<Reading> {
    return this.#step(() => ({ found: this.#find(key), now: this.#reading() }))
  }

  swap(key: string, expected: string, entry: Buffer, lifeMs: number): Promise<boolean> {
    return this.#step(() => {
      const isThere = String(this.#redis.get(key)).startsWith(expected)
      if (!isThere && !this.#isNaive) return false
      this.#put(key, entry, lifeMs * 1_000)
      return true
    })
  }

  discard(key: string, expected: string): Promise<void> {
    return this.#step(() => {
      if (String(this.#redis.get(key)).startsWith(expected)) this.#redis.entries.delete(key)
    })
  }

  reserve(key: string): Promise<string | undefined> {
    const lease = this.#nextLease()
    return this.#step(() => {
      const bytes = this.#redis.get(key)
      if (Buffer.isBuffer(bytes)) return (unpackEntry(bytes) as { readonly header: string }).header
      if (bytes?.startsWith('T')) return undefined
      this.#put(key, lease, this.#leaseUs)
      return lease
    })
  }

  claim(key: string, header: string): Promise<string | undefined> {
    const lease = this.#nextLease()
    return this.#step(() => {
      if (!String(this.#redis.get(key)).startsWith(header)) return undefined
      this.#put(key, lease, this.#leaseUs)
      return lease
    })
  }

  lock(key: string, holdMs: number): Promise<boolean> {
    return this.#step(() => {
      if (this.#redis.get(`lock ${key}`) !== undefined) return false
      this.#put(`lock ${key}`, 'lock', holdMs * 1_000)
      return true
    })
  }

  unlock(key: string): Promise<void> {
    return this.#step(() => void this.#redis.entries.delete(`lock ${key}`))
  }

  async invalidate(what: Invalidation, { owner, kept, checks = [] }: InvalidateSettings = {}): Promise<Tick> {
    const held = owner === undefined ? '' : marker('T', owner)
    const tick = await this.#step(() => {
      for (const key of what.keys) if (!kept?.has(key)) this.#redis.drop(key, held)
      const changed = checks.map(({ tag, since }) => (this.#redis.tags.get(tag) ?? 0) > since)
      return { ...this.#tick(what, 0), changed }
    })
    if (what.patterns.length === 0) return tick
    const concerns = concernedBy({ ...what, keys: [], all: false })
    // A little at a time, as SCAN does.
    for (const key of [...this.#redis.entries.keys()].filter(concerns)) {
      await this.#step(() => this.#redis.drop(key, ''))
    }
    return { ...(await this.#step(() => this.#tick({ ...what, keys: [], tags: [] }, 0))), changed: tick.changed }
  }

  hold(what: Invalidation, owner: string, holdMs: number): Promise<void> {
    return this.#step(() => {
      this.#tick(what, holdMs * 1_000)
      for (const key of what.keys) this.#put(key, marker('T', owner), holdMs * 1_000)
    })
  }

  since(clock: number): Promise<Replay> {
    return this.#step(() => {
      const tags = new Map([...this.#redis.tags].filter(([, at]) => at > clock))
      return { clock: this.#redis.clock, floor: this.#redis.floor, tags }
    })
  }

  latestOf(tags: readonly string[]): Promise<number> {
    return this.#step(() => Math.max(0, ...tags.map((tag) => this.#redis.tags.get(tag) ?? 0)))
  }

  #find(key: string): Found {
    const bytes = this.#redis.get(key)
    if (bytes === undefined) return { kind: 'none' }
    if (typeof bytes === 'string') return { kind: bytes.startsWith('T') ? 'held' : 'leased' }
    const entry = unpackEntry(bytes)
    if (typeof entry === 'string') return { kind: 'none' }
    return { kind: 'value', entry, leftMs: (entry.expires - this.#redis.present()) / 1_000 }
  }

  #put(key: string, bytes: Buffer | string, lifeUs: number): void {
    this.#redis.entries.set(key, { bytes, until: this.#redis.present() + lifeUs })
  }

  #reading(): Reading['now'] {
    const { clock, floor } = this.#redis
    return { clock, floor, present: Math.max(this.#redis.present(), clock) }
  }

  #tick(what: Invalidation, holdUs: number): Tick {
    const redis = this.#redis
    const last = redis.clock
    redis.clock = Math.max(last + 1, redis.present())
    const tagClock = redis.clock + holdUs
    if (what.all === true) redis.floor = redis.clock
    for (const tag of what.tags) redis.tags.set(tag, Math.max(tagClock, redis.tags.get(tag) ?? 0))
    const message = Buffer.from(`${last} ${redis.clock} ${tagClock} ${redis.floor} ${JSON.stringify(what)}`)
    for (const tell of redis.listeners) tell(message)
    return { last, clock: redis.clock, floor: redis.floor, tagClock, changed: [] }
  }
}

/** Hears of invalidations in their order, each at some step; nothing while it is cut off. */
export class ModelLink {
  readonly #redis: ModelRedis
  readonly #step: Step
  readonly #listener: ChannelListener
  #messages: Buffer[] = []
  #losesNext = false
  #tell: ((message: Buffer) => void) | undefined

  constructor(redis: ModelRedis, step: Step, listener: ChannelListener) {
    this.#redis = redis
    this.#step = step
    this.#listener = listener
  }

  get isUp(): boolean {
    return this.#tell !== undefined
  }

  /** The next message is lost, and nobody says so. */
  loseNext(): void {
    this.#losesNext = true
  }

  up(): void {
    if (this.isUp) return
    this.#losesNext = false
    this.#messages = []
    const messages = this.#messages
    this.#tell = (message) => {
      messages.push(message)
      void this.#step(() => {
        const next = messages.shift()
        if (this.#losesNext) this.#losesNext = false
        // Of a link that was cut, nothing comes any more.
        else if (next !== undefined && messages === this.#messages) this.#listener.onMessage(next)
      }).catch(() => undefined)
    }
    this.#redis.listeners.add(this.#tell)
    this.#listener.onSubscribed()
  }

  down(): void {
    if (this.#tell === undefined) return
    this.#redis.listeners.delete(this.#tell)
    this.#tell = undefined
    this.#messages = []
    this.#listener.onLost()
  }
}
