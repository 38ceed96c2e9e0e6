import { randomInt } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { Client } from 'pg'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { createDatabase, type Database } from '../../src/index.ts'
import { inRedis, kinds, loader, one, open, outside, type Tables, two } from '../support/caches.ts'
import { closeAfterTest, freshDatabaseUrl } from '../support/database.ts'
import { startProxy } from '../../src/testing/fault-proxy.ts'
import { startPostgres, startRedis } from '../support/servers.ts'

type Item = Tables['items']

/** One more version of an item, with which its cached row is replaced. */
const writeVersion = (database: Database<Tables>, id = 1): Promise<Item> =>
  database.cache.writeThrough(`item:${id}`, () => bump(database, id), { tags: ['items'] })

const bump = ({ db }: Database<Tables>, id = 1): Promise<Item> =>
  db
    .updateTable('items')
    .set((eb) => ({ version: eb('version', '+', 1) }))
    .where('id', '=', id)
    .returningAll()
    .executeTakeFirstOrThrow()

const stored = ({ db }: Database<Tables>, id = 1): Promise<Item> =>
  db.selectFrom('items').selectAll().where('id', '=', id).executeTakeFirstOrThrow()

describe.each(Object.entries(kinds))('writing through, with %s', (_, setting) => {
  test('keeps what was written, and nothing of what was not committed', async () => {
    const database = await one(setting)
    const { cache } = database
    expect(await writeVersion(database)).toEqual({ id: 1, version: 2 })
    expect(cache.peek('item:1')).toEqual({ id: 1, version: 2 })
    const undone = database.transaction(async () => {
      await writeVersion(database)
      throw new Error('undone')
    })
    await expect(undone).rejects.toThrow('undone')
    expect(await cache.getOrSet('item:1', () => stored(database))).toEqual({ id: 1, version: 2 })
    await database.transaction(async () => {
      await writeVersion(database)
      const inner = database.transaction(async () => {
        await writeVersion(database)
        throw new Error('only this')
      })
      await inner.catch(() => undefined)
      expect(await outside(() => cache.get('item:1'))).toEqual({ id: 1, version: 2 })
    })
    expect(cache.peek('item:1')).toEqual({ id: 1, version: 3 })
    // One that nothing was kept for is not waited for.
    const load = loader({ id: 2, version: 1 })
    await database
      .transaction(async () => {
        await cache.set('item:2', { id: 2, version: 9 })
        throw new Error('undone')
      })
      .catch(() => undefined)
    expect(await cache.getOrSet('item:2', load)).toEqual({ id: 2, version: 1 })
  })

  test('does not keep what was ended in the same transaction, or by another while it was written', async () => {
    const database = await one(setting)
    const { cache } = database
    const put = (end: () => Promise<void>): Promise<void> =>
      database.transaction(async () => {
        await cache.set('item:1', await bump(database), { tags: ['items'] })
        await end()
      })
    const ends = [
      () => cache.delete('item:1'),
      () => cache.invalidate({ tags: ['items'] }),
      () => cache.invalidate({ pattern: 'item:*' }),
      () => cache.clear(),
      () => outside(() => cache.delete('item:1')),
      () => outside(() => cache.invalidate({ tags: ['items'] })),
      () => outside(() => cache.invalidate({ pattern: 'item:*' })),
      () => outside(() => cache.clear()),
    ]
    for (const [index, end] of ends.entries()) {
      await put(end)
      const kept = await cache.get<Item>('item:1')
      // A deletion by another before the right to put it there was taken is over by then.
      const mayBeKept = index === 4 || index === 6 ? [(await stored(database)).version] : []
      expect([undefined, ...mayBeKept]).toContain(kept?.version)
    }
    await put(() => Promise.resolve())
    expect(await cache.get('item:1')).toEqual(await stored(database))
  })

  test('does not keep what was ended later in the same transaction, wherever that was', async () => {
    const database = await one(setting)
    const { cache } = database
    const ends = [
      () => cache.invalidate({ keys: ['item:1'] }),
      () => cache.invalidate({ tags: ['items'] }),
      () => database.transaction(() => cache.delete('item:1')),
    ]
    for (const end of ends) {
      await database.transaction(async () => {
        await writeVersion(database)
        await bump(database)
        await end()
      })
      expect(await cache.get('item:1')).toBeUndefined()
      await database.transaction(async () => {
        await cache.set('item:1', await bump(database), { tags: ['items'] })
        await bump(database)
        await end()
      })
      expect(await cache.get('item:1')).toBeUndefined()
    }
  })

  test('undoes what cannot be kept', async () => {
    const database = await one(setting)
    const write = database.cache.writeThrough('item:1', async () => ({ ...(await bump(database)), format: () => '' }))
    await expect(write).rejects.toMatchObject({ code: 'CACHE_VALUE_UNSUPPORTED' })
    expect(await stored(database)).toEqual({ id: 1, version: 1 })
  })

  test('is only an invalidation in strict mode', async () => {
    const database = await one({ ...setting, cache: { ...setting.cache, holdMs: 2_000 } })
    await writeVersion(database)
    expect(await database.cache.get('item:1')).toBeUndefined()
    expect(await database.cache.getOrSet('item:1', () => stored(database))).toEqual({ id: 1, version: 2 })
  })
})

test('writers that race in writing through never leave an older value, and mostly leave the last', async () => {
  const databases = await open(inRedis, 3)
  const [reader] = databases.slice(-1) as [Database<Tables>]
  let kept = 0
  const rounds = 60
  for (let round = 0; round < rounds; round += 1) {
    const over = new AbortController()
    // Whoever reads meanwhile may have an older value, but not keep it.
    const reading = (async () => {
      while (!over.signal.aborted) {
        await reader.cache.getOrSet('item:1', () => stored(reader), { tags: ['items'] })
        await sleep(1)
      }
    })()
    const writers = databases.slice(0, 2).map(async (database) => {
      await sleep(randomInt(4))
      // Also a change of the same row that only says what it ends.
      if (randomInt(4) === 0) {
        await database.transaction(async () => {
          await bump(database)
          await database.cache.invalidate(randomInt(2) === 0 ? { keys: ['item:1'] } : { tags: ['items'] })
        })
      } else await writeVersion(database)
    })
    await Promise.all(writers)
    over.abort()
    await reading
    const { version } = await stored(reader)
    const found = async (): Promise<(number | undefined)[]> => {
      const items = await Promise.all(databases.map(({ cache }) => cache.get<Item>('item:1')))
      return items.map((item) => item?.version)
    }
    // Others hear of it a moment later.
    const isRight = async (): Promise<boolean> =>
      (await found()).every((seen) => seen === undefined || seen === version)
    await vi.waitUntil(isRight, { interval: 5 })
    if ((await found()).includes(version)) kept += 1
  }
  expect(kept).toBeGreaterThan(rounds / 4)
})

test('what is written through is there for other processes, and waits for nobody when Redis is away', async () => {
  const redis = await startRedis()
  onTestFinished(() => redis.stop())
  const [a, b] = await two({ redis: redis.url, cache: {} })
  await writeVersion(a)
  expect(await b.cache.getOrSet('item:1', () => Promise.reject(new Error('it is there')))).toEqual({
    id: 1,
    version: 2,
  })
  await redis.kill('SIGKILL')
  expect(await writeVersion(a)).toEqual({ id: 1, version: 3 })
  expect(await a.cache.getOrSet('item:1', () => stored(a))).toEqual({ id: 1, version: 3 })
  await redis.restart()
  await vi.waitUntil(() => [a, b].every(({ cache }) => cache.stats().isTrusted && cache.stats().queued === 0), 5_000)
  expect(await b.cache.getOrSet('item:1', () => stored(b))).toEqual({ id: 1, version: 3 })
})

describe('writing behind', () => {
  const quick = { intervalMs: 20 }

  /** Adds to the versions of items. */
  const adding =
    ({ db }: Database<Tables>) =>
    async (values: ReadonlyMap<string, number>): Promise<void> => {
      for (const [id, count] of values) {
        await db
          .updateTable('items')
          .set((eb) => ({ version: eb('version', '+', count) }))
          .where('id', '=', Number(id))
          .execute()
      }
    }
  const sum = (older: number, newer: number): number => older + newer

  test('merges what comes together, and writes it once', async () => {
    const database = await one(kinds['memory alone'])
    const batches: ReadonlyMap<string, number>[] = []
    const counter = database.cache.writeBehind<number>({
      ...quick,
      merge: sum,
      async write(values) {
        batches.push(values)
        await adding(database)(values)
      },
    })
    for (let n = 0; n < 100; n += 1) counter.add(String(1 + (n % 2)), 1)
    expect([counter.pending('1'), counter.pending('2'), counter.pending('3'), counter.size]).toEqual([
      50,
      50,
      undefined,
      2,
    ])
    await vi.waitUntil(() => counter.size === 0)
    expect(batches).toEqual([
      new Map([
        ['1', 50],
        ['2', 50],
      ]),
    ])
    expect((await stored(database)).version).toBe(51)
    expect(counter.pending('1')).toBeUndefined()
  })

  test('in a transaction waits for the commit', async () => {
    const database = await one(kinds['memory alone'])
    const counter = database.cache.writeBehind<number>({ merge: sum, write: adding(database) })
    const undone = database.transaction(async () => {
      counter.add('1', 100)
      await Promise.resolve()
      throw new Error('undone')
    })
    await undone.catch(() => undefined)
    await database.transaction(async () => {
      counter.add('1', 1)
      expect(counter.pending('1')).toBeUndefined()
      await Promise.resolve()
    })
    expect(counter.pending('1')).toBe(1)
    await counter.flush()
    expect((await stored(database)).version).toBe(2)
  })

  test('keeps what could not be written, with what came since, and has it written with the end of the database', async () => {
    const database = await one(kinds['memory alone'])
    let isDown = true
    const written: ReadonlyMap<string, number>[] = []
    const counter = database.cache.writeBehind<number>({
      intervalMs: 60_000,
      merge: sum,
      async write(values) {
        // Of another request: one of this transaction would go with it.
        if (written.length === 0) outside(() => counter.add('1', 10))
        if (isDown) throw new Error('down')
        written.push(values)
        await adding(database)(values)
      },
    })
    counter.add('1', 1)
    await expect(counter.flush()).rejects.toThrow('down')
    isDown = false
    expect(counter.pending('1')).toBe(11)
    // What is added while it is written waits for the next time, which is the last.
    await counter.flush()
    expect((await stored(database)).version).toBe(12)
    expect(counter.pending('1')).toBe(10)
    await database.close()
    expect(written.map((values) => values.get('1'))).toEqual([11, 10])
    expect(() => counter.add('1', 1)).toThrow(expect.objectContaining({ code: 'DATABASE_CLOSED' }))
  })

  test('gives up the one value that the server refuses, and writes all others', async () => {
    const database = await one(kinds['memory alone'])
    const lost: [ReadonlyMap<string, number>, unknown][] = []
    await database.query(sql`alter table items add check (version < 1000)`)
    const ids = Array.from({ length: 20 }, (_, n) => n + 1)
    await database.query(sql`insert into items select n, 0 from generate_series(3, 20) n`)
    const counter = database.cache.writeBehind<number>({
      merge: sum,
      batchSize: 7,
      write: adding(database),
      onLost: (values, error) => lost.push([values, error]),
    })
    for (const id of ids) counter.add(String(id), id === 13 ? 5_000 : 1)
    await counter.flush()
    expect(lost).toEqual([[new Map([['13', 5_000]]), expect.objectContaining({ code: 'CHECK_VIOLATION' })]])
    const total = sql<{ sum: string }>`select sum(version) from items`
    expect(await database.queryCount(total)).toBe(2 + 19)
  })

  test('closed twice at once is written once and to its end', async () => {
    const database = await one(kinds['memory alone'])
    const written: string[] = []
    const lost: string[] = []
    const queue = database.cache.writeBehind<number>({
      batchSize: 1,
      onLost: (values) => lost.push(...values.keys()),
      async write(values) {
        await database.query(sql`select pg_sleep(0.05)`)
        written.push(...values.keys())
      },
    })
    for (const key of ['a', 'b', 'c']) queue.add(key, 1)
    await Promise.all([queue.close(), database.close()])
    expect([written, lost]).toEqual([['a', 'b', 'c'], []])
    expect(() => database.cache.writeBehind({ write: () => Promise.resolve() })).toThrow(
      expect.objectContaining({ code: 'DATABASE_CLOSED' }),
    )
  })

  test('what nobody can tell of is written again only where that does no harm', async () => {
    const database = await one(kinds['memory alone'])
    const unknown = Object.assign(new Error('unknown'), { code: 'COMMIT_OUTCOME_UNKNOWN' })
    Object.defineProperty(unknown, Symbol.for('kanta.DatabaseError'), { value: true })
    for (const idempotent of [false, true]) {
      let calls = 0
      const lost: number[] = []
      const queue = database.cache.writeBehind<number>({
        idempotent,
        intervalMs: 60_000,
        onLost: (values) => lost.push(values.size),
        async write() {
          calls += 1
          await Promise.resolve()
          if (calls === 1) throw unknown
        },
      })
      queue.add('1', 1)
      await queue.flush().catch(() => undefined)
      await queue.flush()
      expect([calls, lost]).toEqual(idempotent ? [2, []] : [1, [1]])
    }
  })

  /** A database that waits so long for its end, and a queue that writes one key at a time; what that is told and calls. */
  async function closing(
    drainTimeoutMs: number,
    write: (database: Database<Tables>, id: number) => Promise<unknown>,
    keys: readonly string[] = ['1', '2', '3'],
  ) {
    const url = await freshDatabaseUrl('empty')
    const warnings: unknown[] = []
    const database = closeAfterTest(
      await createDatabase<Tables>({
        postgres: { url, pool: { max: 2, drainTimeoutMs } },
        redis: false,
        logger: { info: () => undefined, warn: (...said: readonly unknown[]) => void warnings.push(said) },
      }),
    )
    await database.query(sql`create table items (id int primary key, version int not null)`)
    const lost: { readonly keys: readonly string[]; readonly code: unknown }[] = []
    const calls: (readonly string[])[] = []
    const queue = database.cache.writeBehind<number>({
      batchSize: 1,
      intervalMs: 60_000,
      onLost: (values, error) => lost.push({ keys: [...values.keys()], code: (error as { code?: string }).code }),
      async write(values) {
        calls.push([...values.keys()])
        await write(database, Number([...values.keys()][0]))
      },
    })
    for (const key of keys) queue.add(key, 1)
    const written = async (): Promise<readonly string[]> => {
      const client = new Client(url)
      await client.connect()
      const { rows } = await client.query<{ id: number }>('select id from items order by id')
      await client.end()
      return rows.map(({ id }) => String(id))
    }
    return { database, lost, calls, written, warnings }
  }

  test('what is still being written when the time of closing is over is told as lost only when it is', async () => {
    const { database, lost, calls, written, warnings } = await closing(300, async ({ db }, id) => {
      await db.insertInto('items').values({ id, version: 1 }).execute()
      // The others are told as lost meanwhile.
      await vi.waitUntil(() => lost.length > 0)
    })
    const outcomes: unknown[] = []
    database.events.on('transaction', ({ outcome }) => outcomes.push(outcome))
    await database.close()
    expect(outcomes).toEqual(['committed'])
    expect(await written()).toEqual(['1'])
    expect(lost).toEqual([{ keys: ['2', '3'], code: 'DATABASE_CLOSED' }])
    expect([calls, warnings]).toEqual([[['1']], []])
  })

  test('nothing is told where all that is left is being written, and is', async () => {
    const { database, lost, written, warnings } = await closing(
      200,
      async ({ db }, id) => {
        await db.insertInto('items').values({ id, version: 1 }).execute()
        await sql`select pg_sleep(0.3)`.execute(db)
      },
      ['1'],
    )
    await database.close()
    expect([await written(), lost, warnings]).toEqual([['1'], [], []])
  })

  test('what is cut off at the end of the database is told as lost, and each value once', async () => {
    const { database, lost, calls, written, warnings } = await closing(50, async ({ db }, id) => {
      await db.insertInto('items').values({ id, version: 1 }).execute()
      await sql`select pg_sleep(60)`.execute(db)
    })
    await database.close()
    await vi.waitUntil(() => lost.length === 2)
    expect(await written()).toEqual([])
    expect(lost.map(({ keys }) => keys)).toEqual([['2', '3'], ['1']])
    expect([calls, warnings]).toEqual([[['1']], []])
  })

  test('of a transaction of which nobody can tell whether it was committed is told as lost, or written where that does no harm', async () => {
    const server = await startPostgres()
    onTestFinished(() => server.stop())
    const proxy = await startProxy({ to: server.url })
    onTestFinished(() => proxy.close())
    const [database] = (await open(kinds['memory alone'], 1, proxy.url)) as [Database<Tables>]
    const lost: [ReadonlyMap<string, number>, unknown][] = []
    const onLost = (values: ReadonlyMap<string, number>, error: unknown): unknown => lost.push([values, error])
    const options = { merge: sum, write: adding(database), onLost, intervalMs: 60_000 }
    const once = database.cache.writeBehind<number>(options)
    const often = database.cache.writeBehind<number>({ ...options, idempotent: true })
    const admin = new Client(server.url)
    await admin.connect()
    proxy.on({ from: 'server', message: 'CommandComplete', tag: 'COMMIT' }, 'reset')
    const unknown = database.transaction(async () => {
      await bump(database)
      once.add('1', 1)
      often.add('1', 10)
      // As after a crash: what the server says of the transaction may be about another one.
      await admin.query(`select pg_stat_reset_shared('bgwriter')`)
    })
    await expect(unknown).rejects.toMatchObject({ code: 'COMMIT_OUTCOME_UNKNOWN' })
    await admin.end()
    expect(lost).toEqual([[new Map([['1', 1]]), expect.objectContaining({ code: 'COMMIT_OUTCOME_UNKNOWN' })]])
    expect([once.pending('1'), often.pending('1')]).toEqual([undefined, 10])
    const { version } = await stored(database)
    await Promise.all([once.flush(), often.flush()])
    expect((await stored(database)).version).toBe(version + 10)
  })

  test('refuses what is no key or no value, and nothing of that waits', async () => {
    const database = await one(kinds['memory alone'])
    const write = vi.fn<() => Promise<void>>(() => Promise.resolve())
    const queue = database.cache.writeBehind<number>({ write })
    const wrong = [
      [1, 1],
      [null, 1],
      ['', 1],
      ['a', undefined],
    ] as const
    const addAll = (): void => {
      for (const [key, value] of wrong) {
        expect(() => queue.add(key as never, value as never)).toThrow(
          expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
        )
      }
    }
    addAll()
    await database.transaction(async () => addAll())
    expect(queue.size).toBe(0)
    await queue.flush()
    expect(write).not.toHaveBeenCalled()
    queue.add('a', null as never)
    expect(queue.size).toBe(1)
  })

  test('what cannot be merged is told: to who adds it, or as lost where that is over', async () => {
    const database = await one(kinds['memory alone'])
    const lost: ReadonlyMap<string, number>[] = []
    const queue = database.cache.writeBehind<number>({
      intervalMs: 60_000,
      merge: () => {
        throw new Error('they do not go together')
      },
      onLost: (values) => lost.push(values),
      async write() {
        // While it is written, it is no longer merged with; when it is put back, it is.
        outside(() => queue.add('a', 4))
        await Promise.reject(new Error('down'))
      },
    })
    queue.add('a', 1)
    expect(() => queue.add('a', 2)).toThrow('they do not go together')
    await database.transaction(async () => queue.add('a', 3))
    expect([lost, queue.pending('a')]).toEqual([[new Map([['a', 3]])], 1])
    await expect(queue.flush()).rejects.toThrow('down')
    expect([lost.slice(1), queue.pending('a')]).toEqual([[new Map([['a', 1]])], 4])
  })

  test('gives up the one value that kanta cannot send, and writes all others', async () => {
    const database = await one(kinds['memory alone'])
    const lost: [ReadonlyMap<string, unknown>, unknown][] = []
    const queue = database.cache.writeBehind<unknown>({
      write: (values) => adding(database)(values as ReadonlyMap<string, number>),
      onLost: (values, error) => lost.push([values, error]),
    })
    const circle: { self?: object } = {}
    circle.self = circle
    queue.add('1', circle)
    queue.add('2', 1)
    await queue.flush()
    expect(lost).toEqual([[new Map([['1', circle]]), expect.objectContaining({ code: 'INVALID_ARGUMENT' })]])
    expect((await stored(database, 2)).version).toBe(2)
    expect(queue.size).toBe(0)
  })

  test('is bound, and refuses what is no bound', async () => {
    const { cache } = await one(kinds['memory alone'])
    const write = (): Promise<void> => Promise.resolve()
    const queue = cache.writeBehind<number>({ write, maxKeys: 2 })
    queue.add('a', 1)
    queue.add('b', 1)
    queue.add('a', 2)
    expect(() => queue.add('c', 1)).toThrow(expect.objectContaining({ code: 'CACHE_WRITE_BEHIND_FULL' }))
    await queue.close()
    const wrong = [
      { maxKeys: 0 },
      { intervalMs: 0 },
      { intervalMs: 2 ** 31 },
      { batchSize: 1.5 },
      { write: 1 as never },
    ]
    for (const options of wrong) {
      expect(() => cache.writeBehind({ write, ...options })).toThrow(
        expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
      )
    }
  })
})
