/**
 * The protocol of the cache against a model of Redis, in which every request, answer, message and read of the database waits
 * until it is its turn, and the turns are what fast-check tries out, with lost requests, cut links and a Redis that
 * forgets everything. Time stands still unless a step says otherwise.
 */

import * as fc from 'fast-check'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { Codec } from '../../../src/cache/codec.ts'
import type { EntryPolicy } from '../../../src/cache/entry-policy.ts'
import { type Invalidation, nothing } from '../../../src/cache/invalidation-log.ts'
import { Invalidations } from '../../../src/cache/invalidations.ts'
import { Loader } from '../../../src/cache/loader.ts'
import { MemoryTier } from '../../../src/cache/memory-tier.ts'
import { ModelLink, ModelRedis, ModelTier, type Step } from '../../support/model-tier.ts'

const keys = ['a', 'b']
const leaseMs = 1_000
// A version is the whole value: reading an older one than there must be is seen at once.
interface Value {
  readonly version: number
}

const policy: EntryPolicy = {
  ttlMs: 3_600_000,
  staleMs: 0,
  whileRevalidate: false,
  refreshAfter: 1,
  negativeTtlMs: false,
  jitter: 0,
  softTimeoutMs: false,
  loadTimeoutMs: false,
  tags: ['all'],
  usesMemory: true,
}

/** What waits for its turn. */
class Turns {
  readonly #waiting: (() => void)[] = []

  get count(): number {
    return this.#waiting.length
  }

  async wait(): Promise<void> {
    await new Promise<void>((resolve) => this.#waiting.push(resolve))
  }

  /** Whoever came last waits until the function that this gives is called. */
  holdLast(): () => void {
    const held = this.#waiting.splice(-1)
    return () => this.#waiting.push(...held)
  }

  /** Gives one its turn, and lets all happen that follows from it. */
  async give(which: number): Promise<void> {
    this.#waiting.splice(which % Math.max(1, this.#waiting.length), 1)[0]?.()
    await settled()
  }
}

const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

/** The database: what is committed, and who holds the lock of a row. */
class Store {
  readonly versions = new Map(keys.map((key) => [key, 0]))
  /** What Redis has been told of. */
  readonly told = new Map(keys.map((key) => [key, 0]))
  readonly #locks = new Map<string, Promise<void>>()

  get(key: string): number {
    return this.versions.get(key) ?? 0
  }

  async locked<T>(key: string, work: () => Promise<T>): Promise<T> {
    const before = this.#locks.get(key) ?? Promise.resolve()
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#locks.set(key, promise)
    await before
    try {
      return await work()
    } finally {
      resolve()
    }
  }
}

class Process {
  readonly loader: Loader
  readonly invalidations: Invalidations
  readonly link: ModelLink
  readonly #store: Store
  readonly #turns: Turns
  /** What of each key it knows to be committed: it has told so itself. */
  readonly #known = new Map<string, number>()
  readonly #reading = new Set<string>()
  #loses: 'answer' | 'request' | undefined

  constructor(name: string, redis: ModelRedis, store: Store, turns: Turns, isNaive: boolean) {
    this.#store = store
    this.#turns = turns
    const step: Step = async (take) => {
      const loses = this.#loses
      this.#loses = undefined
      await turns.wait()
      if (loses === 'request') throw new Error('lost on its way')
      const answer = take()
      await turns.wait()
      if (loses === 'answer') throw new Error('its answer was lost')
      return answer
    }
    const tier = new ModelTier(redis, step, name, leaseMs, isNaive)
    const memory = new MemoryTier({ maxEntries: 100, maxBytes: 1e6, values: 'freeze' })
    const settings = { leaseMs, memoryTtlMs: 3_600_000, memoryTtlWithoutRedisMs: 0 }
    this.loader = new Loader(memory, tier, new Codec('json', Number.POSITIVE_INFINITY), settings)
    this.invalidations = new Invalidations(
      tier,
      this.loader,
      { heartbeatMs: 1_000, maxQueued: 3 },
      { onGap: () => undefined, onTrust: () => memory.clear() },
    )
    this.loader.attach(this.invalidations)
    // A message takes its turn, and is never lost but with its link.
    const delivery: Step = async (take) => {
      await turns.wait()
      return take()
    }
    this.link = new ModelLink(redis, delivery, this.invalidations)
    // Its heartbeat; nothing else listens in this way.
    this.invalidations.listen({ listen: () => () => undefined } as never)
  }

  lose(what: 'answer' | 'request'): void {
    this.#loses = what
  }

  async read(key: string): Promise<number> {
    // Who hears nothing of others asks Redis, unless somebody here does already.
    const asks = !this.link.isUp && !this.#reading.has(key)
    const atLeast = Math.max(asks ? (this.#store.told.get(key) ?? 0) : 0, this.#known.get(key) ?? 0)
    const hit = this.loader.hit(key, performance.now())
    this.#reading.add(key)
    const value = (hit?.value ?? (await this.loader.load(key, () => this.#load(key), policy))) as Value
    // Its loading may still be on its way to Redis, for others to join.
    void this.loader.settle().then(() => this.#reading.delete(key))
    if (value.version < atLeast) throw new Error(`${key} is ${value.version}, and was known to be ${atLeast}`)
    return value.version
  }

  async write(key: string, what: Invalidation): Promise<void> {
    const version = await this.#store.locked(key, async () => {
      await this.#turns.wait()
      return this.#commit(key)
    })
    await this.#turns.wait()
    await this.invalidations.invalidate(what)
    this.#learn(key, version)
  }

  async writeThrough(key: string): Promise<void> {
    const since = this.invalidations.log.clock
    const { post, version } = await this.#store.locked(key, async () => {
      await this.#turns.wait()
      const written = this.#store.get(key) + 1
      const placed = this.loader.post(key, { version: written }, policy, since)
      await this.loader.reserve(placed)
      await this.#turns.wait()
      return { post: placed, version: this.#commit(key) }
    })
    await this.#turns.wait()
    await this.invalidations.invalidate({ ...nothing, keys: [key] }, { posts: [post] })
    this.#learn(key, version)
  }

  async #load(key: string): Promise<Value> {
    await this.#turns.wait()
    const version = this.#store.get(key)
    await this.#turns.wait()
    return { version }
  }

  #commit(key: string): number {
    const version = this.#store.get(key) + 1
    this.#store.versions.set(key, version)
    return version
  }

  #learn(key: string, version: number): void {
    this.#known.set(key, Math.max(version, this.#known.get(key) ?? 0))
    if (this.invalidations.stats().queued > 0) return
    this.#store.told.set(key, Math.max(version, this.#store.told.get(key) ?? 0))
  }
}

type Action =
  | 'advance'
  | 'cut'
  | 'forget'
  | 'lose answer'
  | 'lose message'
  | 'lose request'
  | 'read'
  | 'up'
  | 'write'
  | 'write through'

interface Move {
  readonly action: Action
  readonly process: number
  readonly key: number
  readonly how: number
  /** Whose turn it is then, one after the other. */
  readonly turns: readonly number[]
}

const moves = fc.array(
  fc.record<Move>({
    action: fc.oneof(
      { weight: 8, arbitrary: fc.constant('read' as const) },
      { weight: 5, arbitrary: fc.constant('write' as const) },
      { weight: 4, arbitrary: fc.constant('write through' as const) },
      {
        weight: 5,
        arbitrary: fc.constantFrom(
          'lose message' as const,
          'cut' as const,
          'up' as const,
          'cut' as const,
          'up' as const,
          'forget' as const,
          'advance' as const,
          'lose request' as const,
          'lose answer' as const,
        ),
      },
    ),
    process: fc.nat(2),
    key: fc.nat(keys.length - 1),
    how: fc.nat(7),
    turns: fc.array(fc.nat(20), { maxLength: 6 }),
  }),
  { minLength: 5, maxLength: 40 },
)

function endOf(key: string, how: number): Invalidation {
  if (how < 3) return { ...nothing, keys: [key] }
  if (how < 5) return { ...nothing, tags: ['all'] }
  if (how < 7) return { ...nothing, patterns: ['*'] }
  return { ...nothing, all: true }
}

const epochUs = 1_795_000_000_000_000

/** Plays it to its end, when all is delivered and connected; rejects when anybody reads what is too old. */
async function play(game: readonly Move[], isNaive = false): Promise<void> {
  const turns = new Turns()
  const redis = new ModelRedis(() => epochUs + Math.round(performance.now() * 1_000))
  const store = new Store()
  const processes = ['p', 'q', 'r'].map((name) => new Process(name, redis, store, turns, isNaive))
  const started: Promise<unknown>[] = []
  const start = (work: Promise<unknown>): void => {
    work.catch(() => undefined)
    started.push(work)
  }
  for (const process of processes) process.link.up()
  try {
    for (const { action, process: index, key: at, how, turns: order } of game) {
      const process = processes[index] as Process
      const key = keys[at] as string
      if (action === 'read') start(process.read(key))
      else if (action === 'write') start(process.write(key, endOf(key, how)))
      else if (action === 'write through') start(process.writeThrough(key))
      else if (action === 'cut') process.link.down()
      else if (action === 'up') process.link.up()
      else if (action === 'lose message') process.link.loseNext()
      else if (action === 'forget') redis.loseAll()
      else if (action === 'advance') await vi.advanceTimersByTimeAsync(how * 200)
      else process.lose(action === 'lose answer' ? 'answer' : 'request')
      await settled()
      for (const which of order) await turns.give(which)
    }
    for (const process of processes) process.link.up()
    await finish(turns)
    await Promise.all(started)
    for (const process of processes) {
      expect(process.invalidations.stats()).toMatchObject({ isTrusted: true, queued: 0 })
      for (const key of keys) {
        const reading = process.read(key)
        while (turns.count > 0) await turns.give(0)
        expect(await reading).toBe(store.get(key))
      }
    }
  } finally {
    // Whatever is left over ends, and what a failed run left behind does not hang.
    await finish(turns)
    await Promise.all(processes.map((process) => process.invalidations.close()))
  }
}

/** Everything has its turn, and time goes on for longer than anybody waits: heartbeats never end. */
async function finish(turns: Turns): Promise<void> {
  for (let second = 0; second < 5; second += 1) {
    while (turns.count > 0) await turns.give(0)
    await vi.advanceTimersByTimeAsync(1_000)
    await settled()
  }
  while (turns.count > 0) await turns.give(0)
}

beforeAll(() => {
  vi.useFakeTimers({ toFake: ['clearInterval', 'clearTimeout', 'performance', 'setInterval', 'setTimeout'] })
})
afterAll(() => {
  vi.useRealTimers()
})

const isFull = process.env['KANTA_FAULTS'] === 'full'

test(
  'whatever the order of things, nobody reads what he knows to be over, and in the end nothing is stale',
  async () => {
    await fc.assert(
      fc.asyncProperty(moves, (game) => play(game)),
      { numRuns: isFull ? 100_000 : 2_000 },
    )
  },
  isFull ? 300_000 : 30_000,
)

test('a Redis that has gone back to an older clock is noticed without a further message', async () => {
  const turns = new Turns()
  const redis = new ModelRedis(() => epochUs + Math.round(performance.now() * 1_000))
  const store = new Store()
  const [writer, reader] = ['p', 'q'].map((name) => new Process(name, redis, store, turns, false)) as [Process, Process]
  try {
    for (const process of [writer, reader]) process.link.up()
    await finish(turns)
    const writing = writer.write('a', endOf('a', 0))
    await finish(turns)
    await writing
    // As a replica that lagged behind, with an entry that was ended since.
    redis.clock -= 1
    const { gaps } = reader.invalidations.stats()
    await finish(turns)
    expect(reader.invalidations.stats().gaps).toBeGreaterThan(gaps)
    expect(redis.floor).toBe(redis.clock)
  } finally {
    await finish(turns)
    await Promise.all([writer, reader].map((process) => process.invalidations.close()))
  }
})

test('who hears that a value is written through does not find the old one in Redis, however long the new one takes', async () => {
  const turns = new Turns()
  const redis = new ModelRedis(() => epochUs + Math.round(performance.now() * 1_000))
  const store = new Store()
  const [writer, hearing, reconnecting] = ['p', 'q', 'r'].map(
    (name) => new Process(name, redis, store, turns, false),
  ) as [Process, Process, Process]
  const done = async <T>(work: Promise<T>): Promise<T> => {
    while (turns.count > 0) await turns.give(0)
    return work
  }
  try {
    for (const process of [writer, hearing, reconnecting]) process.link.up()
    // What is as old as Redis itself does not hold.
    await vi.advanceTimersByTimeAsync(10)
    for (const process of [writer, hearing, reconnecting]) expect(await done(process.read('a'))).toBe(0)
    expect(hearing.loader.stats()).toMatchObject({ redisHits: 1, loads: 0 })
    await vi.advanceTimersByTimeAsync(10)
    reconnecting.link.down()
    const { clock } = redis
    const writing = writer.writeThrough('a')
    await settled()
    while (redis.clock === clock) await turns.give(0)
    // The others are told, and all that they do happens before the writer knows that, and puts its value there.
    const goOn = turns.holdLast()
    reconnecting.link.up()
    while (turns.count > 0) await turns.give(0)
    expect([hearing, reconnecting].map(({ invalidations }) => invalidations.isTrusted)).toEqual([true, true])
    // Who has read up on what was missed knows of tags, and not of keys; who has heard the message would tidy up for it.
    const readings: Promise<number>[] = []
    for (const process of [reconnecting, hearing]) {
      readings.push(process.read('a'))
      await settled()
      while (turns.count > 0) await turns.give(0)
    }
    goOn()
    await finish(turns)
    await writing
    expect(await Promise.all(readings)).toEqual([1, 1])
    for (const process of [writer, hearing, reconnecting]) expect(await done(process.read('a'))).toBe(1)
  } finally {
    await finish(turns)
    await Promise.all([writer, hearing, reconnecting].map((process) => process.invalidations.close()))
  }
})

test('the same finds a cache that keeps what was loaded although it was ended meanwhile', async () => {
  const found = await fc.check(
    fc.asyncProperty(moves, (game) => play(game, true)),
    { numRuns: 2_000, seed: 4711, endOnFailure: true },
  )
  expect(found.failed).toBe(true)
})
