import { randomBytes } from 'node:crypto'
import { Redis } from 'ioredis'
import { sql } from 'kysely'
import { describe, expect, inject, onTestFinished, test, vi } from 'vitest'
import { packEntry } from '../../src/cache/entry.ts'
import { resolveConfig } from '../../src/core/config.ts'
import { createDatabase, type Database } from '../../src/index.ts'
import { RedisClient } from '../../src/redis/client.ts'
import { inRedis, kinds, loader, one, open, outside, type Tables, two, waitingLoader } from '../support/caches.ts'
import { closeAfterTest, freshDatabaseUrl } from '../support/database.ts'
import { startProxy } from '../../src/testing/fault-proxy.ts'
import { type OwnServer, startRedis, startSentinel } from '../support/servers.ts'

describe.each(Object.entries(kinds))('%s', (_, setting) => {
  test('a value is loaded once, kept, and given as it was', async () => {
    const { cache } = await one(setting)
    const value = {
      at: new Date('2024-02-29T12:34:56.789Z'),
      big: 2n ** 70n,
      bytes: Buffer.from([0, 255]),
      map: new Map([[1, { a: [undefined, null] }]]),
      set: new Set(['x']),
      text: 'ü 雪 😀',
    }
    const load = loader(value)
    const all = await Promise.all(Array.from({ length: 50 }, () => cache.getOrSet('k', load)))
    expect(all).toEqual(all.map(() => value))
    await vi.waitUntil(() => cache.peek('k') !== undefined)
    expect(cache.peek('k')).toEqual(value)
    expect(await cache.get('k')).toEqual(value)
    expect(load.calls).toBe(1)
  })

  test('what is invalidated by key, tag, pattern or as a whole is loaded again, and nothing else is', async () => {
    const { cache } = await one(setting)
    const keys = ['user:1', 'user:2', 'user:[x]', 'post:1']
    const kept = async (): Promise<string[]> => {
      const found = await cache.getMany(keys)
      return [...found.keys()]
    }
    const fill = async (): Promise<void> => {
      await Promise.all(keys.map((key) => cache.set(key, key, { tags: [key.split(':', 1)[0] as string, 'all'] })))
    }
    const ends = [
      [() => cache.delete('user:1'), ['user:2', 'user:[x]', 'post:1']],
      [() => cache.invalidate({ keys: ['user:1', 'post:1', 'nothing'] }), ['user:2', 'user:[x]']],
      [() => cache.invalidate({ tags: ['user', 'nothing'] }), ['post:1']],
      [() => cache.invalidate({ pattern: 'user:?' }), ['user:[x]', 'post:1']],
      [() => cache.invalidate({ pattern: 'user:[x]' }), ['user:1', 'user:2', 'post:1']],
      [() => cache.invalidate({ pattern: '*:1' }), ['user:2', 'user:[x]']],
      [() => cache.invalidate({}), keys],
      [() => cache.clear(), []],
    ] as const
    for (const [end, expected] of ends) {
      await fill()
      expect(await kept()).toEqual(keys)
      await end()
      expect(await kept()).toEqual(expected)
    }
  })

  test('a namespace has keys and tags of its own, and is cleared by itself', async () => {
    const { cache } = await one(setting)
    const inner = cache.namespace('shop*').namespace('a')
    await cache.set('k', 'outer', { tags: ['t'] })
    await inner.set('k', 'inner', { tags: ['t'] })
    expect([await cache.get('k'), await inner.get('k')]).toEqual(['outer', 'inner'])
    await cache.invalidate({ tags: ['t'] })
    expect([await cache.get('k'), await inner.get('k')]).toEqual([undefined, 'inner'])
    await cache.set('k', 'outer')
    await cache.namespace('shop*').clear()
    expect([await cache.get('k'), await inner.get('k')]).toEqual(['outer', undefined])
  })

  test.each([
    ['its key', { keys: ['k'] }],
    ['a tag', { tags: ['t'] }],
    ['a pattern', { pattern: 'k*' }],
    ['everything', undefined],
  ])(
    'a value whose loading began before %s was invalidated is for those who wait, and not kept',
    async (_name, what) => {
      const { cache } = await one(setting)
      const slow = waitingLoader<string>()
      const waiting = cache.getOrSet('k', slow.load, { tags: ['t'] })
      await slow.began
      await (what ? cache.invalidate(what) : cache.clear())
      // Whoever comes now must not get it.
      const after = cache.getOrSet('k', loader('new'), { tags: ['t'] })
      expect(await after).toBe('new')
      slow.give('old')
      expect(await waiting).toBe('old')
      expect(await cache.getOrSet('k', loader('other'), { tags: ['t'] })).toBe('new')
      expect(cache.stats().refusedFills).toBe(1)
    },
  )

  test('"there is none" is remembered for its own time, or not at all', async () => {
    const { cache } = await one(setting)
    const none = loader(undefined)
    await cache.getOrSet('none', none)
    await vi.waitUntil(() => cache.stats().entries === 1)
    expect(await cache.getOrSet('none', none)).toBeUndefined()
    expect(none.calls).toBe(1)
    const never = loader<string | null>(null, 'now')
    for (const expected of [null, 'now']) {
      expect(await cache.getOrSet('never', never, { negativeTtlMs: false })).toBe(expected)
    }
    await cache.set('short', null, { negativeTtlMs: 30, ttlMs: 60_000 })
    expect(await cache.getOrSet('short', loader('loaded'))).toBeNull()
    await vi.waitUntil(() => cache.peek('short') === undefined)
    await vi.waitUntil(async () => (await cache.getOrSet<string | null>('short', loader('loaded'))) === 'loaded')
  })

  test('a stale value is given when the loading fails, but not one that was invalidated', async () => {
    const { cache } = await one(setting)
    const options = { ttlMs: 30, staleMs: 60_000, jitter: 0 }
    const failing = (): Promise<string> => Promise.reject(new Error('down'))
    await expect(cache.getOrSet('k', failing, options)).rejects.toThrow('down')
    await cache.set('k', 'old', options)
    await vi.waitUntil(() => cache.peek('k') === undefined)
    await vi.waitUntil(async () => (await cache.get('k')) === undefined)
    expect(await cache.getOrSet('k', failing, options)).toBe('old')
    expect(cache.stats().stale).toBeGreaterThan(0)
    await cache.delete('k')
    await expect(cache.getOrSet('k', failing, options)).rejects.toThrow('down')
    // The failed one leaves nothing that others would wait for.
    expect(await cache.getOrSet('k', loader('new'), options)).toBe('new')
  })

  test('a stale value is given at once, or when the loading takes too long, and the new one is kept', async () => {
    const { cache } = await one(setting)
    for (const how of [{ whileRevalidate: true }, { softTimeoutMs: 20 }]) {
      const options = { ttlMs: 30, staleMs: 60_000, jitter: 0, ...how }
      await cache.set('k', 'old', options)
      await vi.waitUntil(async () => (await cache.get('k')) === undefined)
      const slow = waitingLoader<string>()
      expect(await cache.getOrSet('k', slow.load, { ...options, ttlMs: 60_000 })).toBe('old')
      await slow.began
      slow.give('new')
      await vi.waitUntil(() => cache.peek('k') === 'new')
    }
  })

  test('a loading that takes too long fails for those who wait, and its value is kept all the same', async () => {
    const { cache } = await one(setting)
    const slow = waitingLoader<string>()
    await expect(cache.getOrSet('k', slow.load, { loadTimeoutMs: 20 })).rejects.toMatchObject({
      code: 'CACHE_LOAD_TIMEOUT',
    })
    slow.give('late')
    await vi.waitUntil(() => cache.peek('k') === 'late')
  })

  test('a value that is about to end is loaded anew behind those who read it', async () => {
    const { cache } = await one(setting)
    const load = loader('first', 'second')
    const options = { ttlMs: 60_000, refreshAfter: 0 }
    expect(await cache.getOrSet('k', load, options)).toBe('first')
    await vi.waitUntil(() => cache.peek('k') === 'first')
    expect(await cache.getOrSet('k', load, options)).toBe('first')
    await vi.waitUntil(() => cache.peek('k') === 'second')
    expect(load.calls).toBe(2)
  })

  test('tags may come from the value', async () => {
    const { cache } = await one(setting)
    const options = { tags: (rows: readonly number[]) => rows.map((row) => `row:${row}`) }
    await cache.getOrSet('k', loader([1, 2]), options)
    await vi.waitUntil(() => cache.peek('k') !== undefined)
    await cache.invalidate({ tags: ['row:3'] })
    expect(await cache.get('k')).toEqual([1, 2])
    await cache.invalidate({ tags: ['row:2'] })
    expect(await cache.get('k')).toBeUndefined()
  })

  test('what cannot be cached is refused where it is set, and given where it is loaded', async () => {
    const { cache } = await one(setting)
    const value = { now: () => 1 }
    await expect(cache.set('k', value)).rejects.toMatchObject({ code: 'CACHE_VALUE_UNSUPPORTED' })
    const load = loader(value)
    expect((await cache.getOrSet('k', load)).now()).toBe(1)
    expect(await cache.getOrSet('k', load)).toBe(value)
    expect(load.calls).toBe(2)
    expect(Object.isFrozen(value)).toBe(false)
    expect(cache.stats().unsupported).toBe(2)
  })

  test('keys, tags and times that are none are refused, those of any text are taken', async () => {
    const { cache } = await one(setting)
    const wrongNames = ['', 'x'.repeat(1_025), 'ü'.repeat(513), 'half \uD83D', 5, null]
    for (const name of wrongNames) {
      for (const call of [
        () => cache.get(name as string),
        () => cache.getOrSet(name as string, loader(1)),
        () => cache.set(name as string, 1),
        () => cache.set('k', 1, { tags: [name as string] }),
        () => cache.invalidate({ tags: [name as string] }),
        () => cache.invalidate({ pattern: name as string }),
      ]) {
        await expect(call()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
      }
    }
    for (const options of [
      { ttlMs: -1 },
      { ttlMs: Number.NaN },
      { staleMs: 1e12 },
      { jitter: 2 },
      { refreshAfter: -1 },
      { loadTimeoutMs: -5 },
    ]) {
      await expect(cache.set('k', 1, options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    }
    for (const name of ['x'.repeat(1_024), '\0', ' ', '*', '__clock', 't:', '__proto__', '\n\r', '"\'`;--', '{a}b']) {
      await cache.set(name, name, { tags: [name] })
      expect(await cache.get(name)).toBe(name)
      await cache.invalidate({ tags: [name] })
      expect(await cache.get(name)).toBeUndefined()
    }
  })

  describe('in a transaction', () => {
    const versionOf =
      (database: Database<Tables>, id = 1) =>
      () =>
        database.queryValue<number>(sql`select version from items where id = ${id}`)
    const raise = (database: Database<Tables>) =>
      database.query(sql`update items set version = version + 1 where id = 1`)

    test('what is invalidated is so with the commit, and not before or without it', async () => {
      const database = await one(setting)
      const { cache } = database
      const read = () => cache.getOrSet('k', versionOf(database), { tags: ['items'] })
      expect(await read()).toBe(1)
      await vi.waitUntil(() => cache.peek('k') === 1)
      const undone = database.transaction(async () => {
        await raise(database)
        await cache.invalidate({ tags: ['items'] })
        expect(await outside(() => read())).toBe(1)
        throw new Error('no')
      })
      await expect(undone).rejects.toThrow('no')
      expect(cache.peek('k')).toBe(1)
      await database.transaction(async () => {
        await raise(database)
        await cache.delete('k')
        expect(await outside(() => read())).toBe(1)
      })
      expect(await read()).toBe(2)
    })

    test('what a savepoint invalidates goes with it', async () => {
      const database = await one(setting)
      const { cache } = database
      for (const key of ['kept', 'undone', 'released']) await cache.set(key, 1)
      await database.transaction(async () => {
        await expect(
          database.transaction(async () => {
            await raise(database)
            await cache.delete('undone')
            throw new Error('no')
          }),
        ).rejects.toThrow('no')
        await database.transaction(async () => {
          await raise(database)
          await cache.delete('released')
        })
      })
      expect([...(await cache.getMany(['kept', 'undone', 'released'])).keys()]).toEqual(['kept', 'undone'])
    })

    test('reads pass the cache by once something was written, and what is loaded is kept by nobody', async () => {
      const database = await one(setting)
      const { cache } = database
      const read = () => cache.getOrSet('k', versionOf(database))
      await database.transaction(async () => {
        expect(await read()).toBe(1)
        expect(cache.peek('k')).toBeUndefined()
      })
      await cache.set('k', 1)
      await database.transaction(async () => {
        expect(await read()).toBe(1)
        await raise(database)
        expect(await read()).toBe(2)
        expect([cache.peek('k'), await cache.get('k')]).toEqual([undefined, undefined])
      })
      expect(cache.peek('k')).toBe(1)
      // A snapshot may be older than what is cached.
      await database.transaction(async () => expect(await read()).toBe(2), { isolationLevel: 'repeatable read' })
    })

    test('what is set is there with the commit, and what was there before is not given meanwhile', async () => {
      const database = await one(setting)
      const { cache } = database
      await cache.set('k', 'old')
      await database.transaction(async () => {
        await cache.set('k', 'new')
        expect(await cache.get('k')).toBeUndefined()
        await expect(cache.set('k', () => 1)).rejects.toMatchObject({ code: 'CACHE_VALUE_UNSUPPORTED' })
        expect(await outside(() => cache.get('k'))).toBe('old')
      })
      expect(await cache.get('k')).toBe('new')
      await expect(
        database.transaction(async () => {
          await cache.set('k', 'never')
          throw new Error('no')
        }),
      ).rejects.toThrow('no')
      expect(await cache.get('k')).toBe('new')
    })

    test('what is invalidated is so when nobody can tell whether it was committed', async () => {
      const url = await freshDatabaseUrl('empty')
      const proxy = await startProxy({ to: url })
      onTestFinished(() => proxy.close())
      const [database] = (await open(setting, 1, proxy.url)) as [Database<Tables>]
      const { cache } = database
      await cache.set('k', 1)
      proxy.on({ from: 'server', message: 'CommandComplete', tag: 'COMMIT' }, 'reset')
      proxy.on({ from: 'client', message: 'Parse', sql: /pg_xact_status/ }, 'reset', { times: Infinity })
      const unknown = database.transaction(async () => {
        await raise(database)
        await cache.delete('k')
      })
      await expect(unknown).rejects.toMatchObject({ code: 'COMMIT_OUTCOME_UNKNOWN' })
      expect(await cache.get('k')).toBeUndefined()
    })
  })
})

describe('several processes', () => {
  test('share what one of them has loaded, and load it once for all', async () => {
    const [a, b] = await two(inRedis)
    const slow = waitingLoader<string>()
    const first = a.cache.getOrSet('k', slow.load)
    await slow.began
    const load = loader('other')
    const second = b.cache.getOrSet('k', load)
    slow.give('value')
    expect(await Promise.all([first, second])).toEqual(['value', 'value'])
    expect(load.calls).toBe(0)
    expect(b.cache.stats()).toMatchObject({ redisHits: 1, loads: 0 })
  })

  test('hear of what one of them invalidates, at once', async () => {
    const [a, b] = await two(inRedis)
    const ends = [{ keys: ['k'] }, { tags: ['t'] }, { pattern: 'k*' }, undefined]
    for (const what of ends) {
      await a.cache.set('k', 'old', { tags: ['t'] })
      await vi.waitUntil(async () => (await b.cache.get('k')) === 'old')
      expect(b.cache.peek('k')).toBe('old')
      await (what ? a.cache.invalidate(what) : a.cache.clear())
      await vi.waitUntil(() => b.cache.peek('k') === undefined)
      expect(await b.cache.get('k')).toBeUndefined()
    }
    expect(b.cache.stats().gaps).toBe(0)
  })

  test('do not keep what one of them began to load before another invalidated it', async () => {
    const [a, b] = await two(inRedis)
    for (const what of [{ keys: ['k'] }, { tags: ['t'] }]) {
      const slow = waitingLoader<string>()
      const waiting = a.cache.getOrSet('k', slow.load, { tags: ['t'] })
      await slow.began
      await b.cache.invalidate(what)
      const after = loader('new')
      slow.give('old')
      expect(await waiting).toBe('old')
      await vi.waitUntil(async () => (await b.cache.getOrSet('k', after, { tags: ['t'] })) === 'new')
      await vi.waitUntil(async () => (await a.cache.getOrSet('k', after, { tags: ['t'] })) === 'new')
      await a.cache.clear()
    }
  })

  test('that set a value at once agree on one, or on none', async () => {
    const databases = await open(inRedis, 3)
    for (let round = 0; round < 50; round += 1) {
      await Promise.all(databases.map(({ cache }, index) => cache.set('k', `${round} ${index}`)))
      await Promise.all(databases.map(({ cache }) => cache.invalidate({ keys: ['settled'] })))
      await vi.waitUntil(async () => {
        const found = await Promise.all(databases.map(({ cache }) => cache.get<string>('k')))
        return new Set(found.filter((value) => value !== undefined)).size <= 1
      })
    }
  })

  test('in strict mode keep nothing of what a transaction is about to commit', async () => {
    const url = await freshDatabaseUrl('empty')
    const [a, b] = (await open({ ...inRedis, cache: { holdMs: 400 } }, 2, url)) as [Database<Tables>, Database<Tables>]
    const hand = new Redis(inject('redisUrl'))
    onTestFinished(() => hand.disconnect())
    await a.cache.set('k', 1, { tags: ['t'] })
    await a.cache.set('tagged', 1, { tags: ['t'] })
    expect(await b.cache.get('k')).toBe(1)
    const commit = Promise.withResolvers<void>()
    const proxyHook = Promise.withResolvers<void>()
    const running = a.transaction(async () => {
      await a.query(sql`update items set version = 2 where id = 1`)
      await a.cache.invalidate({ keys: ['k'], tags: ['t'] })
      // A deferred trigger holds COMMIT up.
      await a.query(sql`create temp table slow (id int) on commit drop`)
      await a.query(
        sql`create or replace function wait_a_little() returns trigger language plpgsql as $$ begin perform pg_sleep(0.3); return null; end $$`,
      )
      await a.query(
        sql`create constraint trigger later after insert on slow deferrable initially deferred for each row execute function wait_a_little()`,
      )
      await a.query(sql`insert into slow values (1)`)
      proxyHook.resolve()
      await commit.promise
    })
    await proxyHook.promise
    commit.resolve()
    // COMMIT is under way: nothing is given, and nothing is kept.
    await vi.waitUntil(() => b.cache.peek('k') === undefined)
    const load = loader('before')
    await vi.waitUntil(async () => {
      expect(await b.cache.getOrSet('k', load)).toBe('before')
      return load.calls === 3
    })
    await running
    expect(await b.cache.getOrSet('k', loader('after'))).toBe('after')
    await vi.waitUntil(() => b.cache.peek('k') === 'after')
    // What has a tag that was held is kept again when that time is over.
    const again = loader('tagged')
    await vi.waitUntil(async () => {
      await b.cache.getOrSet('tagged', again, { tags: ['t'] })
      return b.cache.peek('tagged') === 'tagged'
    })
  })
})

describe('what else is in Redis', () => {
  test('under the same keys is not touched, and not read', async () => {
    const database = await one(inRedis)
    const { cache } = database
    const hand = new Redis(inject('redisUrl'))
    onTestFinished(() => hand.disconnect())
    const namespace = await namespaceOf(database, hand)
    await hand.set(`${namespace}:e:text`, 'Value of another program')
    await hand.lpush(`${namespace}:e:list`, 'x')
    for (const key of ['text', 'list']) {
      const load = loader('mine')
      expect(await cache.getOrSet(key, load)).toBe('mine')
      expect(await cache.get(key)).toBeUndefined()
      await cache.set(key, 'mine')
      await cache.delete(key)
    }
    await cache.invalidate({ pattern: '*' })
    expect(await hand.get(`${namespace}:e:text`)).toBe('Value of another program')
    expect(await hand.llen(`${namespace}:e:list`)).toBe(1)
    expect(cache.stats().redisFailures).toBe(0)
  })

  test('of damaged or newer entries is loaded again and replaced', async () => {
    const [a, b] = await two(inRedis)
    const hand = new Redis(inject('redisUrl'))
    onTestFinished(() => hand.disconnect())
    const namespace = await namespaceOf(a, hand)
    const name = `${namespace}:e:k`
    for (const damage of [
      (entry: Buffer) => entry.subarray(0, entry.length - 1),
      (entry: Buffer) => Buffer.concat([entry, Buffer.from('x')]),
      (entry: Buffer) => entry.fill(9, 3, 4),
    ]) {
      await a.cache.set('k', 'good')
      await hand.set(name, damage((await hand.getBuffer(name)) as Buffer))
      await vi.waitUntil(() => b.cache.peek('k') === undefined)
      expect(await b.cache.get('k')).toBeUndefined()
      expect(await b.cache.getOrSet('k', loader('loaded'))).toBe('loaded')
      await vi.waitUntil(async () => (await hand.getBuffer(name))?.includes('loaded') === true)
      await b.cache.delete('k')
    }
  })

  test('of an entry that cannot be unpacked is loaded', async () => {
    const database = await one(inRedis)
    const hand = new Redis(inject('redisUrl'))
    onTestFinished(() => hand.disconnect())
    const namespace = await namespaceOf(database, hand)
    for (const flags of [1, 2 | 1, 4 | 1, 0]) {
      const facts = { clock: 9e15, expires: 9e18, graceMs: 0, size: 1, tags: [] }
      const entry = packEntry(facts, { bytes: Buffer.from([0xc1, 1, 2]), flags })
      await hand.set(`${namespace}:e:${flags}`, entry)
      expect(await database.cache.getOrSet(String(flags), loader('loaded'))).toBe('loaded')
      expect(await database.cache.get(String(flags))).toBeUndefined()
    }
  })
})

/** The namespace of a cache, from the keys that it makes. */
async function namespaceOf({ cache }: Database<Tables>, hand: Redis): Promise<string> {
  const mark = randomBytes(6).toString('hex')
  await cache.set(mark, 1)
  const [key] = await hand.keys(`*:e:${mark}`)
  return (key as string).split(':e:', 1)[0] as string
}

describe('values in memory', () => {
  test('are frozen, are copies, or are the same, as was asked for', async () => {
    const fresh = () => ({ list: [{ n: 1 }], at: new Date(0) })
    const frozen = (await one({ redis: false, cache: {} })).cache
    const value = await frozen.getOrSet('k', loader(fresh()))
    expect(() => value.list.push({ n: 2 })).toThrow(TypeError)
    expect(frozen.peek('k')).toBe(value)

    const cloned = (await one({ redis: false, cache: { memory: { values: 'clone' } } })).cache
    const own = await cloned.getOrSet('k', loader(fresh()))
    own.list.push({ n: 2 })
    expect(cloned.peek('k')).toEqual(fresh())
    expect(cloned.peek('k')).not.toBe(cloned.peek('k'))

    const shared = (await one({ redis: false, cache: { memory: { values: 'shared' } } })).cache
    const same = await shared.getOrSet('k', loader(fresh()))
    same.list.push({ n: 2 })
    expect(shared.peek('k')).toBe(same)
  })

  test('are bound by their number and by their size', async () => {
    const few = (await one({ redis: false, cache: { memory: { maxEntries: 10 } } })).cache
    for (let n = 0; n < 50; n += 1) await few.set(`k${n}`, n)
    expect(few.stats().entries).toBe(10)
    expect(few.peek('k49')).toBe(49)
    const small = (await one({ redis: false, cache: { memory: { maxBytes: 10_000 } } })).cache
    for (let n = 0; n < 50; n += 1) await small.set(`k${n}`, 'x'.repeat(1_000))
    expect(small.stats().bytes).toBeLessThanOrEqual(10_000)
    expect(small.stats().entries).toBeGreaterThan(3)
    await small.set('huge', 'x'.repeat(20_000))
    expect(small.peek('huge')).toBeUndefined()
  })

  test('can be left out', async () => {
    const [a, b] = await two(inRedis)
    await a.cache.set('k', 1, { memory: false })
    expect(a.cache.peek('k')).toBeUndefined()
    expect(await b.cache.getOrSet('k', loader(2), { memory: false })).toBe(1)
    expect(b.cache.peek('k')).toBeUndefined()
  })
})

describe('when Redis fails', () => {
  async function ownRedis(): Promise<OwnServer> {
    const redis = await startRedis()
    onTestFinished(() => redis.stop())
    return redis
  }

  test('from the beginning, values are loaded and kept for a moment', async () => {
    const redis = await ownRedis()
    await redis.kill('SIGKILL')
    const url = await freshDatabaseUrl('empty')
    const database = await createDatabase<Tables>({
      postgres: { url, pipeline: false },
      redis: { url: redis.url },
      cache: { memory: { ttlWithoutRedisMs: 60_000 } },
      logger: { info: () => undefined, warn: () => undefined },
    })
    closeAfterTest(database)
    const { cache } = database
    const load = loader('first', 'second')
    const options = { tags: ['t'] }
    expect(await cache.getOrSet('k', load, options)).toBe('first')
    await vi.waitUntil(() => cache.peek('k') === 'first')
    await cache.invalidate({ tags: ['t'] })
    expect(await cache.getOrSet('k', load, options)).toBe('second')
    expect(cache.stats()).toMatchObject({ isTrusted: false, queued: 1 })
    expect((await database.health()).status).toBe('degraded')
    // What waited for Redis is told as soon as it is there.
    await redis.restart()
    await vi.waitUntil(() => cache.stats().isTrusted && cache.stats().queued === 0)
  })

  test('and comes back, what was invalidated meanwhile is not given by anybody', async () => {
    const redis = await ownRedis()
    const [a, b] = await two({ redis: redis.url, cache: {} })
    await a.cache.set('k', 'old', { tags: ['t'] })
    expect(await b.cache.get('k')).toBe('old')
    // Frozen, it keeps its data, and nobody hears of anything.
    await redis.kill('SIGSTOP')
    await a.cache.invalidate({ tags: ['t'] })
    expect(a.cache.stats().queued).toBe(1)
    expect(await a.cache.getOrSet('k', loader('new'), { tags: ['t'] })).toBe('new')
    await vi.waitUntil(() => !b.cache.stats().isTrusted, { timeout: 5_000 })
    expect(b.cache.peek('k')).toBeUndefined()
    await redis.kill('SIGCONT')
    await vi.waitUntil(() => a.cache.stats().queued === 0 && b.cache.stats().isTrusted, { timeout: 5_000 })
    expect(await b.cache.getOrSet('k', loader('new'), { tags: ['t'] })).toBe('new')
  })

  test('frozen, a read waits no longer than a command may take, and those after it not at all', async () => {
    const redis = await ownRedis()
    const database = await one({ redis: redis.url, cache: {} })
    await redis.kill('SIGSTOP')
    onTestFinished(() => redis.kill('SIGCONT'))
    const began = performance.now()
    expect(await database.cache.getOrSet('a', loader(1))).toBe(1)
    expect(performance.now() - began).toBeLessThan(1_000)
    await Promise.all(Array.from({ length: 50 }, (_, n) => database.cache.getOrSet(`k${n}`, loader(n))))
    await vi.waitUntil(() => !database.cache.stats().isTrusted, { timeout: 5_000 })
    const after = performance.now()
    expect(await database.cache.getOrSet('b', loader(2))).toBe(2)
    expect(performance.now() - after).toBeLessThan(400)
  })

  test('by becoming a replica, values are loaded, invalidations wait, and no query fails', async () => {
    const redis = await ownRedis()
    const primary = await ownRedis()
    const database = await one({ redis: redis.url, cache: {} })
    const hand = new Redis(redis.url)
    onTestFinished(() => hand.disconnect())
    await database.cache.set('k', 1)
    await hand.replicaof('127.0.0.1', primary.port)
    await vi.waitUntil(async () => {
      await database.cache.delete('k')
      return database.cache.stats().queued > 0
    })
    expect(await database.cache.getOrSet('k', loader(2))).toBe(2)
    await hand.replicaof('NO', 'ONE')
    await vi.waitUntil(() => database.cache.stats().queued === 0, { timeout: 5_000 })
    expect(await database.cache.getOrSet('k', loader(3))).toBe(3)
  })

  test('more is invalidated than can wait, everything is when it is back', async () => {
    const redis = await ownRedis()
    const [a, b] = await two({ redis: redis.url, cache: { maxQueued: 10 } })
    await a.cache.set('other', 'old')
    expect(await b.cache.get('other')).toBe('old')
    await redis.kill('SIGSTOP')
    await Promise.all(Array.from({ length: 20 }, (_, n) => a.cache.delete(`k${n}`)))
    expect(a.cache.peek('other')).toBeUndefined()
    await redis.kill('SIGCONT')
    await vi.waitUntil(async () => (await b.cache.get('other')) === undefined, { timeout: 5_000 })
  })
})

describe('a cluster', () => {
  /** Nodes that share the slots among them. */
  async function startCluster(): Promise<readonly OwnServer[]> {
    const nodes = await Promise.all(
      Array.from({ length: 3 }, () =>
        startRedis((port) => {
          // By default it is too high for the ports that one gets.
          const busPort = port > 50_000 ? port - 10_000 : port + 10_000
          return ['--cluster-enabled', 'yes', '--cluster-port', String(busPort), '--cluster-node-timeout', '2000']
        }),
      ),
    )
    for (const node of nodes) onTestFinished(() => node.stop())
    const hands = nodes.map(({ url }) => new Redis(url))
    for (const hand of hands) onTestFinished(() => hand.disconnect())
    await Promise.all(
      hands.map((hand, index) =>
        hand.call(
          'cluster',
          'addslotsrange',
          Math.ceil((index * 16_384) / 3),
          Math.ceil(((index + 1) * 16_384) / 3) - 1,
        ),
      ),
    )
    const busPorts = nodes.map(({ port }) => (port > 50_000 ? port - 10_000 : port + 10_000))
    for (const [index, { port }] of nodes.entries()) {
      await hands[0]?.call('cluster', 'meet', '127.0.0.1', port, busPorts[index] as number)
    }
    await vi.waitUntil(
      async () =>
        (await Promise.all(hands.map((hand) => hand.cluster('INFO')))).every((info) => /cluster_state:ok/.test(info)),
      { timeout: 15_000 },
    )
    return nodes
  }

  test('does what one server does, and loses no more than the keys of a node that is lost', async () => {
    const nodes = await startCluster()
    const url = `redis+cluster://${nodes.map(({ port }) => `127.0.0.1:${port}`).join(',')}`
    const [a, b] = await two({ redis: url, cache: {} })
    const keys = Array.from({ length: 60 }, (_, n) => `key ${n}`)
    await Promise.all(
      keys.map((key) => a.cache.getOrSet(key, loader(key), { tags: [`parity ${Number(key.slice(4)) % 2}`] })),
    )
    const never = (): Promise<string> => Promise.reject(new Error('it is there'))
    await vi.waitUntil(() => a.cache.stats().entries === keys.length)
    expect(await Promise.all(keys.map((key) => b.cache.getOrSet(key, never)))).toEqual(keys)
    await a.cache.invalidate({ tags: ['parity 0'], keys: ['key 1'] })
    await vi.waitUntil(() => b.cache.peek('key 0') === undefined && b.cache.peek('key 1') === undefined)
    expect((await b.cache.getMany(keys)).size).toBe(29)
    await b.cache.invalidate({ pattern: 'key ?' })
    await vi.waitUntil(() => a.cache.peek('key 3') === undefined)
    expect((await a.cache.getMany(keys)).size).toBe(25)
    expect(a.cache.stats()).toMatchObject({ redisFailures: 0, queued: 0, gaps: 0 })

    await nodes[2]?.kill('SIGKILL')
    const values = await Promise.all(keys.map((key) => a.cache.getOrSet(`after ${key}`, loader(key))))
    expect(values).toEqual(keys)
  }, 40_000)
})

test('behind Sentinel the cache goes on with the new primary, and nothing that was ended meanwhile is given', async () => {
  const primary = await startRedis()
  onTestFinished(() => primary.stop())
  const replica = await startRedis(() => ['--replicaof', '127.0.0.1', String(primary.port)])
  onTestFinished(() => replica.stop())
  const hand = new Redis(replica.url)
  onTestFinished(() => hand.disconnect())
  await vi.waitUntil(async () => (await hand.info('replication')).includes('master_link_status:up'), {
    timeout: 10_000,
  })
  const sentinel = await startSentinel('shop', primary.port)
  onTestFinished(() => sentinel.stop())
  const [a, b] = await two({ redis: `redis+sentinel://127.0.0.1:${sentinel.port}/shop`, cache: {} })
  await a.cache.set('k', 'old', { tags: ['t'] })
  await a.cache.set('other', 'kept')
  expect(await b.cache.get('k')).toBe('old')
  const learned = new Redis(sentinel.url)
  onTestFinished(() => learned.disconnect())
  await vi.waitUntil(async () => (await learned.info('sentinel')).includes('slaves=1'), { timeout: 15_000 })
  await primary.kill('SIGKILL')
  await a.cache.invalidate({ tags: ['t'] })
  expect(a.cache.stats().queued).toBe(1)
  expect(await a.cache.getOrSet('k', loader('new'))).toBe('new')
  await vi.waitUntil(() => [a, b].every(({ cache }) => cache.stats().isTrusted && cache.stats().queued === 0), {
    timeout: 20_000,
  })
  expect(await hand.info('replication')).toContain('role:master')
  expect(await b.cache.getOrSet('k', loader('new'))).toBe('new')
  await a.cache.set('after', 1)
  expect(await b.cache.get('after')).toBe(1)
}, 40_000)

test('a command whose answer is lost is told as lost, and never sent again', async () => {
  const redis = await startRedis()
  onTestFinished(() => redis.stop())
  const proxy = await startProxy({ to: redis.url, protocol: 'raw' })
  onTestFinished(() => proxy.close())
  const { redis: target } = resolveConfig(
    { postgres: { url: await freshDatabaseUrl('empty') }, redis: { url: proxy.url, commandTimeoutMs: 300 } },
    {},
  )
  const client = new RedisClient(target as NonNullable<typeof target>)
  onTestFinished(() => client.close())
  const hand = new Redis(redis.url)
  onTestFinished(() => hand.disconnect())
  for (let run = 0; run < 12; run += 1) {
    await vi.waitUntil(() => client.isReady, { timeout: 5_000 })
    const counter = `counter ${run}`
    const fault = run % 4 < 2 ? 'reset' : 'black-hole'
    const rule = proxy.on({ from: 'server', message: 'Bytes' }, fault)
    // Alone, or many in one write.
    const calls = Array.from({ length: run % 2 === 0 ? 1 : 10 }, () => client.call('incr', counter))
    const settled = await Promise.allSettled(calls)
    for (const { status, ...rest } of settled) {
      expect([status, rest]).toEqual([
        'rejected',
        { reason: expect.objectContaining({ code: 'REDIS_UNAVAILABLE' }) as object },
      ])
    }
    rule.off()
    // A link that is dead without a word is cut a little later.
    const answers = (): Promise<boolean> =>
      client.call('ping').then(
        () => true,
        () => false,
      )
    await vi.waitUntil(answers, { timeout: 5_000 })
    expect([counter, await hand.get(counter)]).toEqual([counter, String(calls.length)])
  }
})
