/** The model on which the protocol is played (test/unit/cache/protocol.test.ts) does what the scripts do in Redis. */

import { randomBytes } from 'node:crypto'
import * as fc from 'fast-check'
import { afterAll, beforeAll, expect, inject, test, vi } from 'vitest'
import { packEntry } from '../../src/cache/entry.ts'
import { RedisTier, type SharedTier } from '../../src/cache/redis-tier.ts'
import { resolveConfig } from '../../src/core/config.ts'
import { RedisClient } from '../../src/redis/client.ts'
import { ModelRedis, ModelTier } from '../support/model-tier.ts'

const keys = ['a', 'b', 'c*']
const tags = ['s', 't']

let client: RedisClient

beforeAll(async () => {
  const { redis } = resolveConfig({ postgres: { url: inject('postgresUrl') }, redis: { url: inject('redisUrl') } }, {})
  client = new RedisClient(redis as NonNullable<typeof redis>)
  await vi.waitUntil(() => client.isReady)
})
afterAll(() => client.close())

type Work =
  | 'acquire'
  | 'discard'
  | 'hold'
  | 'invalidate'
  | 'latestOf'
  | 'lock'
  | 'look'
  | 'reserve'
  | 'since'
  | 'swap'
  | 'unlock'

interface Call {
  readonly work: Work
  readonly key: number
  readonly other: number
  readonly how: number
}

const calls = fc.array(
  fc.record<Call>({
    work: fc.constantFrom(
      'acquire',
      'acquire',
      'look',
      'swap',
      'swap',
      'discard',
      'reserve',
      'lock',
      'unlock',
      'invalidate',
      'invalidate',
      'hold',
      'since',
      'latestOf',
    ),
    key: fc.nat(keys.length - 1),
    other: fc.nat(20),
    how: fc.nat(7),
  }),
  { minLength: 10, maxLength: 40 },
)

/** Plays calls on a tier, and tells what came of them in words that both tiers share. */
class Player {
  readonly #tier: SharedTier
  /** Leases and headers that were seen, and clocks. */
  readonly #tokens: string[] = ['V none']
  readonly #clocks: number[] = []

  constructor(tier: SharedTier) {
    this.#tier = tier
  }

  async play({ work, key: at, other, how }: Call, entry: Buffer): Promise<unknown> {
    const key = keys[at] as string
    const tag = tags[how % tags.length] as string
    const token = this.#tokens[other % this.#tokens.length] as string
    const since = this.#clocks[other % Math.max(1, this.#clocks.length)] ?? 0
    switch (work) {
      case 'acquire':
      case 'look': {
        const { found } = await this.#tier[work](key)
        if (found.kind === 'lease') this.#tokens.push(found.lease)
        if (found.kind !== 'value') return found.kind
        this.#tokens.push(found.entry.header)
        return [found.entry.header, found.entry.tags, found.leftMs > 50_000]
      }
      case 'swap':
        return this.#tier.swap(key, token, entry, 100_000)
      case 'discard':
        return this.#tier.discard(key, token)
      case 'reserve': {
        const expected = await this.#tier.reserve(key)
        if (expected !== undefined) this.#tokens.push(expected)
        return expected?.startsWith('V') ? expected : expected?.[0]
      }
      case 'lock':
        return this.#tier.lock(key, 10_000)
      case 'unlock':
        return this.#tier.unlock(key)
      case 'hold':
        return this.#tier.hold({ keys: [key], tags: [tag], patterns: [] }, `owner ${how % 2}`, 10_000)
      case 'invalidate': {
        const what = {
          keys: how % 2 === 0 ? [key] : [],
          tags: how % 3 === 0 ? [tag] : [],
          patterns: how === 5 ? ['c\\*'] : [],
          all: how === 7,
        }
        const settings = {
          owner: how === 4 ? 'owner 0' : undefined,
          kept: how === 2 ? new Set([key]) : undefined,
          checks: tags.map((name) => ({ tag: name, since })),
        }
        const tick = await this.#tier.invalidate(what, settings)
        this.#clocks.push(tick.clock)
        return [tick.changed, tick.last < tick.clock, tick.floor <= tick.clock, tick.floor === tick.clock]
      }
      case 'since': {
        const replay = await this.#tier.since(since)
        return [[...replay.tags.keys()].toSorted(), replay.floor > since]
      }
      default:
        return (await this.#tier.latestOf([tag])) > since
    }
  }
}

test('answers as Redis does, whatever is asked', async () => {
  await fc.assert(
    fc.asyncProperty(calls, async (game) => {
      const namespace = `model-${randomBytes(6).toString('hex')}`
      const redis = new RedisTier(client, namespace, { leaseMs: 10_000, maxLifeMs: 1_000_000 })
      const state = new ModelRedis(() => Math.round((performance.timeOrigin + performance.now()) * 1_000))
      const model = new ModelTier(state, (take) => Promise.resolve(take()), namespace, 10_000)
      const players = [new Player(redis), new Player(model)] as const
      await redis.now()
      for (const [index, call] of game.entries()) {
        const facts = { clock: index, expires: (Date.now() + 100_000) * 1_000, graceMs: 0, size: 1, tags: ['s'] }
        const entry = packEntry(facts, { bytes: Buffer.from('1'), flags: 1 })
        const [answer, expected] = await Promise.all(players.map((player) => player.play(call, entry)))
        expect([index, call.work, answer]).toEqual([index, call.work, expected])
      }
    }),
    { numRuns: 150 },
  )
})

test('a lease that was ended is not that of anybody who takes another', async () => {
  const namespace = `leases-${randomBytes(6).toString('hex')}`
  const open = (): RedisTier => new RedisTier(client, namespace, { leaseMs: 10_000, maxLifeMs: 1_000_000 })
  // Two databases of one process, which count from the same beginning.
  const tiers = [open(), open()] as const
  const leaseOf = async (tier: RedisTier, key: string): Promise<string> => {
    const { found } = await tier.acquire(key)
    if (found.kind !== 'lease') throw new Error(`it was ${found.kind}`)
    return found.lease
  }
  const entry = packEntry(
    { clock: 1, expires: (Date.now() + 100_000) * 1_000, graceMs: 0, size: 1, tags: [] },
    { bytes: Buffer.from('1'), flags: 9 },
  )
  const late = await leaseOf(tiers[0], 'a')
  const seen = new Set([late])
  // Enough for the number of the first to be the beginning of another's.
  for (let turn = 0; turn < 120; turn += 1) {
    await tiers[1].invalidate({ keys: ['a'], tags: [], patterns: [] })
    seen.add(await leaseOf(tiers[turn % 2 === 0 ? 1 : 0], 'a'))
    expect([turn, await tiers[0].swap('a', late, entry, 10_000)]).toEqual([turn, false])
  }
  expect(seen.size).toBe(121)
  await tiers[1].invalidate({ keys: ['a'], tags: [], patterns: [] })
  const reserved = (await tiers[0].reserve('a')) as string
  await tiers[1].invalidate({ keys: ['a'], tags: [], patterns: [] })
  expect(await tiers[1].reserve('a')).not.toBe(reserved)
  expect(await tiers[0].swap('a', reserved, entry, 10_000)).toBe(false)
})
