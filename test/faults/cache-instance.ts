/**
 * One of several processes that share a cache, for row 24 and the soak of the cache: reads hot keys through it and writes
 * them in transactions until it is told to stop, and then says what it read and wrote, and when. With `naive` it does so
 * with a cache as one writes it in an afternoon, so that it is known that the test sees stale values.
 */

import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { sql } from 'kysely'
import { type CacheStats, createDatabase } from '../../src/index.ts'

/** What an instance is started with, as JSON in its first argument. */
export interface InstanceOptions {
  readonly postgresUrl: string
  readonly redisUrl: string
  readonly namespace: string
  readonly kind: 'kanta' | 'naive'
  readonly keys: number
  readonly readers: number
  readonly writesPerSecond: number
}

/** What it says at its end. Instants are microseconds of a clock that all processes of the machine share. */
export interface InstanceReport {
  /** Key, version, when the read began. */
  readonly reads: readonly (readonly [number, number, number])[]
  /** Key, version, when the commit and the invalidation were done. */
  readonly writes: readonly (readonly [number, number, number])[]
  readonly failures: readonly string[]
  readonly slowestReadMs: number
  readonly stats: CacheStats
}

/** What both kinds of cache can do. */
interface SomeCache {
  read(key: number, loadIt: () => Promise<number>): Promise<number>
  /** After the commit. */
  forget(key: number): Promise<void>
}

const options = JSON.parse(process.argv[2] ?? '') as InstanceOptions
const groups = 4
const now = (): number => Number(process.hrtime.bigint() / 1_000n)

const database = await createDatabase<{ items: { id: number; version: number } }>({
  postgres: { url: options.postgresUrl, pool: { max: 6 } },
  redis: { url: options.redisUrl, commandTimeoutMs: 200 },
  cache: { namespace: options.namespace },
  logger: { info: () => undefined, warn: () => undefined },
})

const kanta: SomeCache = {
  read: (key, loadIt) =>
    database.cache.getOrSet(`item:${key}`, loadIt, { ttlMs: 60_000, tags: [`group:${key % groups}`] }),
  forget: async () => undefined,
}

function naiveCache(): SomeCache {
  const memory = new Map<number, number>()
  const redis = new Redis(options.redisUrl)
  const subscriber = new Redis(options.redisUrl)
  for (const connection of [redis, subscriber]) connection.on('error', () => undefined)
  const name = (key: number): string => `${options.namespace}:${key}`
  void subscriber.subscribe(options.namespace).catch(() => undefined)
  subscriber.on('message', (_, key: string) => memory.delete(Number(key)))
  return {
    async read(key, loadIt) {
      const known = memory.get(key) ?? Number((await redis.get(name(key))) ?? 0)
      if (known > 0) {
        memory.set(key, known)
        return known
      }
      const version = await loadIt()
      memory.set(key, version)
      await redis.set(name(key), version, 'PX', 60_000)
      return version
    },
    async forget(key) {
      memory.delete(key)
      await redis.del(name(key))
      await redis.publish(options.namespace, String(key))
    },
  }
}

const cache = options.kind === 'kanta' ? kanta : naiveCache()
const reads: [number, number, number][] = []
const writes: [number, number, number][] = []
const failures: string[] = []
let slowestReadMs = 0
const over = new AbortController()
const randomKey = (): number => 1 + Math.floor(Math.random() * options.keys)

async function load(key: number): Promise<number> {
  const version = await database.queryValue<number>(sql`select version from items where id = ${key}`)
  // Between what it has read and what is made of it, time passes.
  await sleep(Math.random() * 10)
  return version ?? 0
}

async function readOn(): Promise<void> {
  while (!over.signal.aborted) {
    const key = randomKey()
    const began = now()
    try {
      reads.push([key, await cache.read(key, () => load(key)), began])
      slowestReadMs = Math.max(slowestReadMs, (now() - began) / 1_000)
    } catch (error) {
      failures.push(error instanceof Error ? error.message : String(error))
    }
    await sleep(Math.random() * 4)
  }
}

async function writeOn(): Promise<void> {
  while (!over.signal.aborted) {
    await sleep((1_000 / options.writesPerSecond) * 2 * Math.random())
    const key = randomKey()
    const version = await database.transaction(async () => {
      const next = await database.queryValue<number>(
        sql`update items set version = version + 1 where id = ${key} returning version`,
      )
      if (options.kind === 'kanta') {
        await database.cache.invalidate(
          Math.random() < 0.5 ? { keys: [`item:${key}`] } : { tags: [`group:${key % groups}`] },
        )
      }
      return next ?? 0
    })
    try {
      await cache.forget(key)
    } catch (error) {
      failures.push(error instanceof Error ? error.message : String(error))
    }
    writes.push([key, version, now()])
  }
}

process.once('message', () => over.abort())
process.send?.('ready')
await Promise.all([writeOn(), ...Array.from({ length: options.readers }, readOn)])
const report: InstanceReport = { reads, writes, failures, slowestReadMs, stats: database.cache.stats() }
await new Promise((resolve) => process.send?.(report, resolve))
await database.close()
process.exit()
