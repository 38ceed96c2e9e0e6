import { pauseFor } from '../core/deadline.ts'
import type { ChannelListener, RedisSubscriber } from '../redis/subscriber.ts'
import { Batch } from './batch.ts'
import { type Invalidation, InvalidationLog, mergedOf, nothing } from './invalidation-log.ts'
import type { Post } from './entry-policy.ts'
import { type InvalidateSettings, readTickMessage, type SharedTier, type Tick, type TickMessage } from './redis-tier.ts'

/** Who holds what is invalidated. */
export interface InvalidationTarget {
  /** Lets go of what it concerns and is not later; what is being loaded of it is for those who wait already. */
  drop(what: Invalidation, clock: number): void
  /** Lets go of everything: it is not known what was invalidated. */
  dropAll(): void
  /** Makes room for it. */
  claim(post: Post): Promise<void>
  /** Puts a value there that was reserved; false where it has lost that right. */
  place(post: Post, invalidatedAt: number): Promise<boolean>
}

/** How {@link Invalidations.invalidate} ends something. */
export interface Ending {
  readonly owner?: string | undefined
  readonly posts?: readonly Post[] | undefined
}

/** How invalidations travel. Times are milliseconds. */
export interface InvalidationSettings {
  /** How often Redis is asked for its clock, which shows messages that were lost without a word. */
  readonly heartbeatMs: number
  /** Most keys and tags that wait for Redis to come back; one more, and everything is invalidated then. */
  readonly maxQueued: number
}

/** What is reported of invalidations. */
export interface InvalidationObserver {
  /** Messages were missed, by a break of the connection or without one; or Redis has lost what it knew. */
  onGap(reason: 'lost' | 'missed' | 'regressed'): void
  onTrust(): void
}

/** A moment of {@link Invalidations}. */
export interface InvalidationStats {
  /** Whether all invalidations arrive, so that memory may be used. Always, where there is no Redis. */
  readonly isTrusted: boolean
  /** Keys and tags that wait for Redis. */
  readonly queued: number
  /** How often messages were missed. */
  readonly gaps: number
}

// A message that was sent before an answer of Redis is here by then.
const messageGraceMs = 250
const retryMs = 200
const batchSize = 1_000

/**
 * Tells all processes what no longer holds, and hears of it. A process that may have missed something uses its memory no
 * more until it has read up on what. Nothing that is to be invalidated gets lost: what Redis does not take waits until it
 * does, and meanwhile counts as invalid here.
 */
export class Invalidations implements ChannelListener {
  readonly log: InvalidationLog = new InvalidationLog()
  readonly #tier: SharedTier | undefined
  readonly #target: InvalidationTarget
  readonly #settings: InvalidationSettings
  readonly #observer: InvalidationObserver
  readonly #sending: Batch<Invalidation, Tick> = new Batch((all) => this.#send(all))
  #queue: readonly Invalidation[] = []
  #draining: Promise<void> | undefined
  #retryTimer: NodeJS.Timeout | undefined
  #heartbeat: NodeJS.Timeout | undefined
  #stopListening: () => void = () => undefined
  #isSubscribed = false
  #isTrusted: boolean
  /** Messages that came while it was read up on; undefined while it is not. */
  #early: TickMessage[] | undefined
  #replayedTo = 0
  #gaps = 0
  #epoch = 0
  #isClosed = false

  constructor(
    tier: SharedTier | undefined,
    target: InvalidationTarget,
    settings: InvalidationSettings,
    observer: InvalidationObserver,
  ) {
    this.#tier = tier
    this.#target = target
    this.#settings = settings
    this.#observer = observer
    this.#isTrusted = tier === undefined
  }

  /** Whether memory may be used. */
  get isTrusted(): boolean {
    return this.#isTrusted
  }

  /**
   * Changes when it is no longer certain that all invalidations are heard, and when it is again: what was read before that may have
   * been ended by one that was not.
   */
  get epoch(): number {
    return this.#epoch
  }

  stats(): InvalidationStats {
    return { isTrusted: this.#isTrusted, queued: this.#queued, gaps: this.#gaps }
  }

  listen(subscriber: RedisSubscriber): void {
    if (this.#tier === undefined) return
    this.#stopListening = subscriber.listen(this.#tier.channel, this)
    this.#heartbeat = setInterval(() => void this.#compareClocks(), this.#settings.heartbeatMs)
    this.#heartbeat.unref()
  }

  /** The clock of a loading that begins now, where there is no Redis. */
  next(): number {
    this.log.clock += 1
    return this.log.clock
  }

  /**
   * From now on nothing of it holds here; once this resolves, nowhere that can be reached, or it waits for Redis to come back.
   * Never rejects; false means that it waits, and would be lost with this process. `owner` may have held it. What was reserved
   * takes the place of what it ends, where nobody else has ended it meanwhile.
   */
  async invalidate(what: Invalidation, { owner, posts = [] }: Ending = {}): Promise<boolean> {
    this.#target.drop(what, Number.POSITIVE_INFINITY)
    if (this.#tier === undefined) {
      await this.#endHere(what, posts)
      return true
    }
    this.log.block(what)
    if (posts.length > 0) await Promise.all(posts.map((post) => this.#target.claim(post)))
    let tick: Tick
    try {
      const isPlain = owner === undefined && posts.length === 0
      // What many transactions end at the same time is told at once.
      tick = await (isPlain ? this.#sending.add(what) : this.#tier.invalidate(what, settingsOf(owner, posts)))
      this.log.note(what, tick.clock)
      this.log.unblock(what)
    } catch {
      this.#enqueue(what)
      return false
    }
    return posts.length === 0 || this.#place(this.#tier, posts, tick)
  }

  async #endHere(what: Invalidation, posts: readonly Post[]): Promise<void> {
    // What was invalidated just then was so before.
    const untouched = posts.filter(({ key, since, tags }) => this.log.holds(key, since + 0.5, tags))
    const clock = this.next()
    this.log.note(what, clock)
    this.log.unblock(what)
    await Promise.all(untouched.map((post) => this.#target.place(post, clock)))
  }

  async #place(tier: SharedTier, posts: readonly Post[], { clock, floor, changed }: Tick): Promise<boolean> {
    let check = 0
    const failed: string[] = []
    await Promise.all(
      posts.map(async (post) => {
        const first = check
        check += post.tags.length
        const isUntouched = floor <= post.since && !changed.slice(first, check).includes(true)
        const isPlaced = isUntouched && (await this.#target.place(post, clock).catch(() => false))
        if (!isPlaced) failed.push(post.key)
      }),
    )
    if (failed.length === 0) return true
    // What is there instead may be older than the commit.
    const what = { ...nothing, keys: failed }
    try {
      await tier.invalidate(what)
      return true
    } catch {
      this.log.block(what)
      this.#enqueue(what)
      return false
    }
  }

  /**
   * Before a commit: for so long nothing of it is kept anywhere, so that a process that dies between its commit and its
   * invalidation leaves nothing stale behind. To be followed by {@link invalidate} with the same invalidation and owner.
   */
  async hold(what: Invalidation, owner: string, holdMs: number): Promise<void> {
    this.#target.drop(what, Number.POSITIVE_INFINITY)
    this.log.block(what)
    try {
      await this.#tier?.hold(what, owner, holdMs)
    } catch {
      // Then the invalidation after the commit is all there is.
    }
  }

  /** Redis takes commands again. */
  drainSoon(): void {
    if (this.#queue.length > 0) this.#draining ??= this.#drain()
    if (this.#isSubscribed && !this.#isTrusted) void this.#replay()
  }

  /** Tries once more to deliver what waits, and gives what could not be. */
  async close(): Promise<number> {
    clearInterval(this.#heartbeat)
    this.#stopListening()
    await (this.#draining ?? (this.#queue.length > 0 ? this.#drain() : undefined))
    this.#isClosed = true
    clearTimeout(this.#retryTimer)
    return this.#queued
  }

  onSubscribed(): void {
    this.#isSubscribed = true
    void this.#replay()
  }

  onLost(): void {
    this.#isSubscribed = false
    if (this.#isTrusted) this.#distrust('lost')
  }

  onMessage(message: Buffer): void {
    const tick = readTickMessage(message)
    if (tick === undefined) return
    this.#target.drop(tick.what, tick.clock)
    this.log.note(tick.what, tick.clock, tick.tagClock)
    this.log.raiseFloor(tick.floor)
    if (this.#isTrusted) this.#advance(tick)
    else this.#early?.push(tick)
  }

  #advance({ last, clock }: TickMessage): void {
    if (clock <= this.#replayedTo) return
    if (last === this.log.clock) {
      this.log.clock = clock
      return
    }
    this.#catchUp(clock <= this.log.clock || last < this.log.clock ? 'regressed' : 'missed')
  }

  #catchUp(reason: 'missed' | 'regressed'): void {
    this.#distrust(reason)
    // A replica that lagged behind has become the primary: it has entries that were invalidated.
    if (reason === 'regressed') void this.invalidate({ ...nothing, all: true })
    void this.#replay()
  }

  #distrust(reason: 'lost' | 'missed' | 'regressed'): void {
    this.#isTrusted = false
    this.#epoch += 1
    this.#gaps += 1
    // Of a clock that has gone back, what is known of it says nothing.
    if (reason === 'regressed') this.log.clock = 0
    this.#target.dropAll()
    this.#observer.onGap(reason)
  }

  /** Reads up on what was invalidated since the last message that is known to follow its predecessor. */
  async #replay(): Promise<void> {
    const tier = this.#tier
    if (tier === undefined || this.#early !== undefined || this.#isClosed) return
    const epoch = this.#epoch
    this.#early = []
    try {
      const { clock, floor, tags } = await tier.since(this.log.clock)
      // Lost once more meanwhile: whoever subscribes again asks again.
      if (epoch !== this.#epoch || !this.#isSubscribed) return
      for (const [tag, tagClock] of tags) this.log.note({ ...nothing, tags: [tag] }, tagClock)
      this.log.raiseFloor(floor)
      this.log.clock = clock
      this.#replayedTo = clock
      this.#isTrusted = true
      this.#epoch += 1
      this.#observer.onTrust()
    } catch {
      this.#retryLater()
    } finally {
      const early = this.#early ?? []
      this.#early = undefined
      for (const tick of early) if (this.#isTrusted) this.#advance(tick)
    }
    if (!this.#isTrusted && this.#isSubscribed) this.#retryLater()
  }

  /** A message that does not come leaves no trace but the clock; so does a Redis that has gone back, until somebody writes. */
  async #compareClocks(): Promise<void> {
    const tier = this.#tier
    if (tier === undefined || !this.#isTrusted || !tier.isReady) return
    try {
      const epoch = this.#epoch
      const known = this.log.clock
      const { clock, floor } = await tier.now()
      this.log.raiseFloor(floor)
      const isBack = clock < known
      if (clock === this.log.clock) return
      if (!isBack) await pauseFor(messageGraceMs, { ref: false })
      if (epoch !== this.#epoch || !this.#isTrusted || (!isBack && this.log.clock >= clock)) return
      this.#catchUp(isBack ? 'regressed' : 'missed')
    } catch {
      // Whether Redis is there is for others to say.
    }
  }

  async #send(all: readonly Invalidation[]): Promise<readonly Tick[]> {
    const tick = await (this.#tier as SharedTier).invalidate(mergedOf(all))
    return all.map(() => tick)
  }

  #enqueue(what: Invalidation): void {
    this.#queue = [...this.#queue, what]
    if (this.#queued > this.#settings.maxQueued) this.#collapse()
    this.#retryLater()
  }

  /** Rather all too much than one too few. */
  #collapse(): void {
    const everything: Invalidation = { ...nothing, all: true }
    this.log.block(everything)
    this.#target.dropAll()
    for (const what of this.#queue) this.log.unblock(what)
    this.#queue = [everything]
  }

  get #queued(): number {
    return this.#queue.reduce((sum, what) => sum + sizeOf(what), 0)
  }

  #retryLater(): void {
    if (this.#isClosed) return
    this.#retryTimer ??= setTimeout(() => {
      this.#retryTimer = undefined
      this.drainSoon()
    }, retryMs).unref()
  }

  async #drain(): Promise<void> {
    try {
      while (this.#queue.length > 0) {
        const batch = this.#queue.slice(0, batchSize)
        const merged = mergedOf(batch)
        const tick = await this.#tier?.invalidate(merged)
        this.log.note(merged, tick?.clock ?? this.next())
        this.#queue = this.#queue.filter((what) => !batch.includes(what))
        for (const what of batch) this.log.unblock(what)
      }
    } catch {
      this.#retryLater()
    } finally {
      this.#draining = undefined
    }
  }
}

function settingsOf(owner: string | undefined, posts: readonly Post[]): InvalidateSettings {
  const kept = new Set(posts.filter(({ expected }) => expected !== undefined).map(({ key }) => key))
  const checks = posts.flatMap(({ tags, since }) => tags.map((tag) => ({ tag, since })))
  return { owner, kept, checks }
}

function sizeOf({ keys, tags, patterns, all = false }: Invalidation): number {
  return keys.length + tags.length + patterns.length + (all ? 1 : 0)
}
