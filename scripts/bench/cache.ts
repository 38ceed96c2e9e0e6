/**
 * `node scripts/bench/cache.ts`: kanta's cache beside bentocache, in one process and on one Redis of its own: a hit in memory, a
 * hit in Redis, and a miss that is loaded and kept. Then what an entry takes in memory, and what 100 000 tags cost.
 */

import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { type Cache, createDatabase } from '../../src/index.ts'
import { startRedis } from '../../test/support/servers.ts'
import { installPeers } from './peers.ts'
import { spread } from './statistics.ts'

interface Subject {
  readonly name: 'bentocache' | 'kanta'
  getOrSet(key: string, load: () => Promise<unknown>): Promise<unknown>
}

const rounds = 9
const value = {
  id: 4711,
  email: 'ada@example.org',
  name: 'Ada Lovelace',
  created_at: new Date('2024-02-29T12:34:56.789Z').toISOString(),
  roles: ['admin', 'author'],
  profile: { city: 'London', bio: 'x'.repeat(300), visits: 12_345 },
}

await installPeers((line) => console.log(line))
const redis = await startRedis()
const database = await createDatabase({
  postgres: { embedded: { dataDir: 'memory' } },
  redis: { url: redis.url },
  cache: { namespace: 'bench', memory: { maxEntries: 200_000 } },
  logger: { info: () => undefined, warn: () => undefined },
})
while (!database.cache.stats().isTrusted) await new Promise((resolve) => setTimeout(resolve, 10))

const { BentoCache, bentostore } = (await import('bentocache')) as never as Bento
const { memoryDriver } = (await import('bentocache/drivers/memory')) as never as Record<string, (o: object) => unknown>
const { redisBusDriver, redisDriver } = (await import('bentocache/drivers/redis')) as never as Record<
  string,
  (o: object) => unknown
>
const port = { connection: { host: '127.0.0.1', port: redis.port } }
const bento = new BentoCache({
  default: 'layered',
  stores: {
    layered: bentostore()
      .useL1Layer(memoryDriver?.({ maxSize: '100mb' }))
      .useL2Layer(redisDriver?.(port))
      .useBus(redisBusDriver?.(port)),
  },
})

const subjects: readonly Subject[] = [kantaSubject(database.cache), bentoSubject()]

function kantaSubject(cache: Cache): Subject {
  return {
    name: 'kanta',
    getOrSet: (key, load) => cache.getOrSet(key, load),
  }
}

function bentoSubject(): Subject {
  return {
    name: 'bentocache',
    getOrSet: (key, load) => bento.getOrSet({ key, factory: load, ttl: '1m' }),
  }
}

interface Bento {
  readonly BentoCache: new (options: object) => {
    getOrSet(options: object): Promise<unknown>
    disconnectAll(): Promise<void>
  }
  bentostore(): {
    useL1Layer(driver: unknown): ReturnType<Bento['bentostore']>
    useL2Layer(driver: unknown): ReturnType<Bento['bentostore']>
    useBus(driver: unknown): unknown
  }
}

const load = (): Promise<unknown> => Promise.resolve(value)
const never = (): Promise<unknown> => Promise.reject(new Error('it is not there'))

/** Operations per second, by so many callers at once. */
async function speedOf(count: number, callers: number, work: (n: number) => Promise<unknown>): Promise<number> {
  const began = performance.now()
  let next = 0
  const call = async (): Promise<void> => {
    for (let n = next++; n < count; n = next++) await work(n)
  }
  await Promise.all(Array.from({ length: callers }, call))
  return (count / (performance.now() - began)) * 1_000
}

const atOnce = 32

const results = new Map<string, Map<string, number[]>>()
function note(what: string, name: string, speed: number): void {
  const of = results.get(what) ?? new Map<string, number[]>()
  results.set(what, of.set(name, [...(of.get(name) ?? []), speed]))
}

let run = 0
for (let round = 0; round <= rounds; round += 1) {
  for (const { name, getOrSet } of subjects) {
    await getOrSet('hot', load)
    const hits = await speedOf(name === 'kanta' ? 300_000 : 20_000, 1, () => getOrSet('hot', never))
    const base = (run += 5_000)
    const misses = await speedOf(4_000, atOnce, (n) => getOrSet(`key ${base + n}`, load))
    if (round === 0) continue
    note('hit in memory', name, hits)
    note('miss, loaded and kept', name, misses)
  }
}

// A second instance of each has an empty memory and reads from Redis what the first has put there.
const readers: Record<string, () => Promise<{ read(key: string): Promise<unknown>; close(): Promise<void> }>> = {
  async kanta() {
    const other = await createDatabase({
      postgres: { embedded: { dataDir: 'memory' } },
      redis: { url: redis.url },
      cache: { namespace: 'bench' },
      logger: { info: () => undefined, warn: () => undefined },
    })
    while (!other.cache.stats().isTrusted) await new Promise((resolve) => setTimeout(resolve, 10))
    return { read: (key) => other.cache.getOrSet(key, never), close: () => other.close() }
  },
  async bentocache() {
    const other = new BentoCache({
      default: 'layered',
      stores: {
        layered: bentostore()
          .useL1Layer(memoryDriver?.({}))
          .useL2Layer(redisDriver?.(port))
          .useBus(redisBusDriver?.(port)),
      },
    })
    await Promise.resolve()
    return { read: (key) => other.getOrSet({ key, factory: never, ttl: '1m' }), close: () => other.disconnectAll() }
  },
}
for (const { name, getOrSet } of subjects) {
  const keys = Array.from({ length: 1_000 * (rounds + 1) }, (_, n) => `shared ${name} ${n}`)
  for (const key of keys) await getOrSet(key, load)
}
const opened = new Map<string, { read(key: string): Promise<unknown>; close(): Promise<void> }>()
for (const { name } of subjects) opened.set(name, await (readers[name] as (typeof readers)['kanta'])())
for (let round = 0; round <= rounds; round += 1) {
  for (const { name } of subjects) {
    const reader = opened.get(name)
    const speed = await speedOf(1_000, atOnce, async (n) => reader?.read(`shared ${name} ${round * 1_000 + n}`))
    if (round > 0) note('hit in Redis', name, speed)
  }
}

for (const [what, of] of results) {
  const theirs = of.get('bentocache') ?? []
  const ratio = spread((of.get('kanta') ?? []).map((ours, index) => ours / (theirs[index] ?? Number.NaN)))
  const median = (name: string): string => Math.round(spread(of.get(name) ?? []).median).toLocaleString('en')
  console.log(
    `${what}: kanta ${median('kanta')}/s, bentocache ${median('bentocache')}/s; × ${ratio.median.toFixed(2)} (${ratio.min.toFixed(2)}–${ratio.max.toFixed(2)})`,
  )
}

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc') as () => void
const fresh = await createDatabase({
  postgres: { embedded: { dataDir: 'memory' } },
  redis: false,
  cache: { memory: { maxEntries: 200_000, maxBytes: 1e10 } },
  logger: { info: () => undefined, warn: () => undefined },
})
const { cache } = fresh
collect()
const before = process.memoryUsage().heapUsed
const entries = 100_000
for (let n = 0; n < entries; n += 1)
  await cache.getOrSet(`key ${n}`, () => ({ n, name: `name ${n}` }), { tags: [`tag ${n}`, 'all'] })
collect()
console.log(
  `memory: ${Math.round((process.memoryUsage().heapUsed - before) / entries)} bytes per entry of two fields and two tags`,
)
const tagging = await speedOf(entries, 1, (n) => cache.invalidate({ tags: [`tag ${n}`] }))
const hits = await speedOf(100_000, 1, (n) => Promise.resolve(cache.peek(`key ${n}`)))
console.log(
  `100 000 tags: ${Math.round(tagging).toLocaleString('en')} invalidations/s, then ${Math.round(hits).toLocaleString('en')} reads/s`,
)

await Promise.all([...opened.values()].map((reader) => reader.close()))
await bento.disconnectAll()
await fresh.close()
await database.close()
await redis.stop()
