/** kanta's cache beside bentocache, in one process and on one Redis of its own, with the same values and keys. */

import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { type Cache, createDatabase, type Database } from '../../src/index.ts'
import { type OwnServer, startRedis } from '../../test/support/servers.ts'
import { spread, type Spread } from './statistics.ts'

export type CacheWork =
  | 'a miss of a row, loaded and kept, 32 at once'
  | 'a page of 20 rows in memory'
  | 'a row in Redis, 32 at once'
  | 'a row in memory'
  | 'a row in memory, at once (peek)'

/** What kanta is compared with; it has no way to read memory at once, so `peek` is compared with its usual one. */
export const cacheBaseline = 'bentocache'

/** Operations per second by round. */
export interface CacheSpeeds {
  readonly kanta: readonly number[]
  readonly bentocache: readonly number[]
}

export interface CacheResults {
  readonly speeds: ReadonlyMap<CacheWork, CacheSpeeds>
  /** Of an entry of two fields and two tags, in memory. */
  readonly bytesPerEntry: number
  /** With 100 000 tags. */
  readonly invalidationsPerSecond: number
  readonly readsAfterwardsPerSecond: number
}

const atOnce = 32
const perRound = 4_000
/** Rounds for the compiler of V8. */
const warmUp = 3
const manyTags = 100_000

const row = {
  id: 4711,
  email: 'ada@example.org',
  name: 'Ada Lovelace',
  created_at: new Date('2024-02-29T12:34:56.789Z').toISOString(),
  roles: ['admin', 'author'],
  profile: { city: 'London', bio: 'x'.repeat(300), visits: 12_345 },
}
const page = Array.from({ length: 20 }, (_, n) => ({ ...row, id: n }))

/** One cache, as both are used. */
interface Subject {
  getOrSet(key: string, load: () => Promise<unknown>): Promise<unknown>
  close(): Promise<unknown>
}

const load = (): Promise<unknown> => Promise.resolve(row)
const never = (): Promise<never> => Promise.reject(new Error('it is not there'))

export async function measureCache(rounds: number): Promise<CacheResults> {
  await using opened = new AsyncDisposableStack()
  const redis = await startRedis()
  opened.defer(() => redis.stop())
  const kanta = await openKanta(redis)
  opened.defer(() => kanta.close())
  const bento = await openBento(redis)
  opened.defer(async () => void (await bento.close()))
  // Empty memories, beside those that have filled Redis.
  const kantaReader = await openKanta(redis)
  opened.defer(() => kantaReader.close())
  const bentoReader = await openBento(redis)
  opened.defer(async () => void (await bentoReader.close()))

  const { cache } = kanta
  for (const subject of [cache, bento]) {
    await subject.getOrSet('row', load)
    await subject.getOrSet('page', () => Promise.resolve(page))
    await speedOf(perRound * (rounds + warmUp), (n) => subject.getOrSet(`shared ${n}`, load))
  }
  const misses = (subject: Pick<Subject, 'getOrSet'>, round: number): Promise<number> =>
    speedOf(perRound, (n) => subject.getOrSet(`key ${round} ${n}`, load))
  const fromRedis = (subject: Pick<Subject, 'getOrSet'>, round: number): Promise<number> =>
    speedOf(perRound, (n) => subject.getOrSet(`shared ${round * perRound + n}`, never))
  const rowOfBento = (): Promise<number> => speedOfTheirHits(20_000, bento, 'row')
  const works: readonly (readonly [
    CacheWork,
    (round: number) => Promise<number>,
    (round: number) => Promise<number>,
  ])[] = [
    ['a row in memory', () => speedOfOurHits(500_000, cache, 'row'), rowOfBento],
    ['a row in memory, at once (peek)', () => Promise.resolve(speedOfPeeks(500_000, cache, 'row')), rowOfBento],
    [
      'a page of 20 rows in memory',
      () => speedOfOurHits(500_000, cache, 'page'),
      () => speedOfTheirHits(1_000, bento, 'page'),
    ],
    ['a row in Redis, 32 at once', (n) => fromRedis(kantaReader.cache, n), (n) => fromRedis(bentoReader, n)],
    ['a miss of a row, loaded and kept, 32 at once', (n) => misses(cache, n), (n) => misses(bento, n)],
  ]
  const speeds = new Map(works.map(([work]) => [work, { kanta: [] as number[], bentocache: [] as number[] }]))
  for (let round = 0; round < rounds + warmUp; round += 1) {
    for (const [work, ours, theirs] of works) {
      const measured = { kanta: await ours(round), bentocache: await theirs(round) }
      if (round < warmUp) continue
      speeds.get(work)?.kanta.push(measured.kanta)
      speeds.get(work)?.bentocache.push(measured.bentocache)
    }
  }
  return { speeds, ...(await measureTags()) }
}

/** How many times as fast kanta was, round by round. */
export function cacheRatio({ kanta, bentocache }: CacheSpeeds): Spread {
  return spread(kanta.map((ours, round) => ours / (bentocache[round] ?? Number.NaN)))
}

async function measureTags(): Promise<Omit<CacheResults, 'speeds'>> {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  await using database = await openKanta()
  const { cache } = database
  collect()
  const before = process.memoryUsage().heapUsed
  for (let n = 0; n < manyTags; n += 1) {
    await cache.getOrSet(`key ${n}`, () => ({ n, name: `name ${n}` }), { tags: [`tag ${n}`, 'all'] })
  }
  collect()
  const bytesPerEntry = (process.memoryUsage().heapUsed - before) / manyTags
  const invalidationsPerSecond = await speedOf(manyTags, (n) => cache.invalidate({ tags: [`tag ${n}`] }), 1)
  const readsAfterwardsPerSecond = await speedOf(manyTags, (n) => Promise.resolve(cache.peek(`key ${n}`)), 1)
  return { bytesPerEntry, invalidationsPerSecond, readsAfterwardsPerSecond }
}

/** Operations per second, by so many callers. */
async function speedOf(
  count: number,
  work: (n: number) => Promise<unknown>,
  callers: number = atOnce,
): Promise<number> {
  const began = performance.now()
  let next = 0
  const call = async (): Promise<void> => {
    for (let n = next++; n < count; n = next++) await work(n)
  }
  await Promise.all(Array.from({ length: callers }, call))
  return (count / (performance.now() - began)) * 1_000
}

/**
 * Of so short a work, a loop with callers would be most of the time. Each cache has a loop of its own in the source: V8 compiles
 * a function once for all closures made of it, and one that has met two caches is made for neither. A service has one.
 */
async function speedOfOurHits(count: number, cache: Cache, key: string): Promise<number> {
  const began = performance.now()
  for (let n = 0; n < count; n += 1) await cache.getOrSet(key, never)
  return (count / (performance.now() - began)) * 1_000
}

/** As {@link speedOfOurHits}. */
async function speedOfTheirHits(count: number, bento: Subject, key: string): Promise<number> {
  const began = performance.now()
  for (let n = 0; n < count; n += 1) await bento.getOrSet(key, never)
  return (count / (performance.now() - began)) * 1_000
}

function speedOfPeeks(count: number, cache: Cache, key: string): number {
  const began = performance.now()
  let found = 0
  for (let n = 0; n < count; n += 1) if (cache.peek(key) !== undefined) found += 1
  if (found !== count) throw new Error('the memory of kanta has lost its value')
  return (count / (performance.now() - began)) * 1_000
}

async function openKanta(redis?: OwnServer): Promise<Database<never>> {
  const database = await createDatabase<never>({
    postgres: { embedded: { dataDir: 'memory' } },
    redis: redis === undefined ? false : { url: redis.url },
    cache: { namespace: 'bench', memory: { maxEntries: 200_000, maxBytes: 1e9 } },
    logger: { info: () => undefined, warn: () => undefined },
  })
  while (!database.cache.stats().isTrusted) await new Promise((resolve) => setTimeout(resolve, 10))
  return database
}

/** As its documentation shows it: memory, Redis and a bus. */
async function openBento({ port }: OwnServer): Promise<Subject> {
  const { BentoCache, bentostore } = (await import('bentocache')) as never as Bento
  const { memoryDriver } = (await import('bentocache/drivers/memory')) as never as Drivers<'memoryDriver'>
  const { redisBusDriver, redisDriver } = (await import('bentocache/drivers/redis')) as never as Drivers<
    'redisBusDriver' | 'redisDriver'
  >
  const connection = { connection: { host: '127.0.0.1', port } }
  const bento = new BentoCache({
    default: 'layered',
    stores: {
      layered: bentostore()
        .useL1Layer(memoryDriver({ maxSize: '1gb', maxItems: 200_000 }))
        .useL2Layer(redisDriver(connection))
        .useBus(redisBusDriver(connection)),
    },
  })
  return {
    getOrSet: (key, factory) => bento.getOrSet({ key, factory, ttl: '1m' }),
    close: () => bento.disconnectAll(),
  }
}

type Drivers<Name extends string> = Record<Name, (options: object) => unknown>

interface Bento {
  readonly BentoCache: new (options: object) => {
    getOrSet(options: object): Promise<unknown>
    disconnectAll(): Promise<void>
  }
  bentostore(): BentoStore
}

interface BentoStore {
  useL1Layer(driver: unknown): BentoStore
  useL2Layer(driver: unknown): BentoStore
  useBus(driver: unknown): unknown
}
