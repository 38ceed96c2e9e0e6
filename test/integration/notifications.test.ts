import { AsyncLocalStorage } from 'node:async_hooks'
import { sql } from 'kysely'
import { Client } from 'pg'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import {
  channel,
  createDatabase,
  type Database,
  type DatabaseEvents,
  type NotificationGap,
  type PostgresOptions,
} from '../../src/index.ts'
import { freshDatabaseUrl } from '../support/database.ts'
import { startPgBouncer } from '../support/pgbouncer.ts'
import { startProxy } from '../../src/testing/fault-proxy.ts'
import { type OwnServer, startPostgres } from '../support/servers.ts'

const warnings: string[] = []
const logger = { info: () => {}, warn: (message: string) => void warnings.push(message) }

function open(url: string, postgres: Omit<PostgresOptions, 'url'> = {}): Promise<Database<never>> {
  warnings.length = 0
  return createDatabase<never>({ postgres: { url, ...postgres }, redis: false, logger })
}

interface Order {
  readonly id: number
}

const orders = channel<Order>('orders')

/** The backends of a database that have confirmed LISTEN last. */
async function listeners(database: Database<never>): Promise<number[]> {
  const rows = await database.query(sql<{ pid: number }>`
    select pid from pg_stat_activity
     where datname = current_database() and query ~ '^(un)?listen' and pid <> pg_backend_pid()`)
  return rows.map(({ pid }) => pid)
}

async function killListeners(database: Database<never>): Promise<void> {
  const pids = await listeners(database)
  expect(pids).toHaveLength(1)
  await database.query(sql`select pg_terminate_backend(${pids[0]})`)
}

function listenerEvents(database: Database<never>): DatabaseEvents['listener'][] {
  const events: DatabaseEvents['listener'][] = []
  database.events.on('listener', (event) => events.push(event))
  return events
}

test('payloads arrive typed and in order, text on a plain name, and from SQL as well', async () => {
  await using database = await open(await freshDatabaseUrl('empty'))
  const ids: number[] = []
  const texts: string[] = []
  await using _typed = await database.listen(orders, ({ id }) => ids.push(id))
  await using _plain = await database.listen('Log "1"; drop', (text) => texts.push(text))
  for (let id = 1; id <= 50; id += 1) await database.notify(orders, { id })
  await database.notify('Log "1"; drop', 'déjà vu')
  await database.notify('Log "1"; drop', '')
  await database.query(sql`notify orders, '{"id":51}'`)
  await vi.waitUntil(() => ids.length === 51 && texts.length === 2)
  expect(ids).toEqual(Array.from({ length: 51 }, (_, n) => n + 1))
  expect(texts).toEqual(['déjà vu', ''])
  expect(database.stats().listener).toEqual({
    state: 'connected',
    channels: ['orders', 'Log "1"; drop'],
    subscriptions: 2,
    waiting: 0,
    dropped: 0,
  })
})

test('inside a transaction a notification is sent with the commit, and never after a rollback', async () => {
  await using database = await open(await freshDatabaseUrl('empty'))
  const received: number[] = []
  await using _subscription = await database.listen(orders, ({ id }) => received.push(id))
  const undone = database.transaction(async () => {
    await database.notify(orders, { id: 1 })
    throw new Error('changed my mind')
  })
  await expect(undone).rejects.toThrow('changed my mind')
  await database.transaction(async () => {
    await database.notify(orders, { id: 2 })
    await database.transaction(() => database.notify(orders, { id: 3 }))
    // Sent by itself and committed at once, it overtakes what waits for the commit.
    await sql`select 1`.execute(database.db)
    expect(received).toEqual([])
  })
  await database.notify(orders, { id: 4 })
  await vi.waitUntil(() => received.includes(4))
  expect(received).toEqual([2, 3, 4])
})

test('a handler that listens from within a transaction works outside of it, in the context of its caller', async () => {
  await using database = await open(await freshDatabaseUrl('empty'))
  await database.query(sql`create table notes (id int)`)
  const context = new AsyncLocalStorage<string>()
  const seen: unknown[] = []
  const subscription = await context.run('the caller', () =>
    database
      .transaction(async () => {
        const inner = await database.listen(orders, async ({ id }) => {
          await database.query(sql`insert into notes values (${id})`)
          seen.push(context.getStore())
        })
        await database.query(sql`insert into notes values (0)`)
        return inner
      })
      .then((kept) => kept),
  )
  await database.notify(orders, { id: 1 })
  await vi.waitUntil(() => seen.length === 1)
  expect(seen).toEqual(['the caller'])
  expect(await database.queryCount(sql`select count(*) from notes`)).toBe(2)
  await subscription.close()
})

test('for await reads what comes, and leaving the loop ends the subscription', async () => {
  await using database = await open(await freshDatabaseUrl('empty'))
  const stream = await database.listen(orders)
  const sending = Promise.all([1, 2, 3].map((id) => database.notify(orders, { id })))
  const received: number[] = []
  for await (const { id } of stream) {
    received.push(id)
    if (received.length === 3) break
  }
  await sending
  expect(new Set(received)).toEqual(new Set([1, 2, 3]))
  expect(database.stats().listener).toMatchObject({ state: 'off', subscriptions: 0 })
  expect(await listeners(database)).toEqual([])
})

test('a loop that waits ends with the subscription, and with the database', async () => {
  const database = await open(await freshDatabaseUrl('empty'))
  const one = await database.listen(orders)
  const other = await database.listen(orders)
  const read = async (stream: typeof one): Promise<number> => {
    let count = 0
    for await (const _order of stream) count += 1
    return count
  }
  const reading = [read(one), read(other)]
  await one.close()
  expect(await reading[0]).toBe(0)
  await database.close()
  expect(await reading[1]).toBe(0)
  await expect(database.listen(orders, () => {})).rejects.toMatchObject({ code: 'DATABASE_CLOSED' })
})

test('all channels share one connection, which is closed with the last subscriber', async () => {
  await using database = await open(await freshDatabaseUrl('empty'), { pool: { max: 1 } })
  const subscriptions = await Promise.all(
    Array.from({ length: 40 }, (_, n) => database.listen(`channel ${n % 20}`, () => {})),
  )
  expect(await listeners(database)).toHaveLength(1)
  expect(database.stats().listener.channels).toHaveLength(20)
  await Promise.all(subscriptions.map((subscription) => subscription.close()))
  await vi.waitUntil(async () => (await listeners(database)).length === 0)
})

test('of two subscribers of a channel one may leave, and the other goes on', async () => {
  await using database = await open(await freshDatabaseUrl('empty'))
  const received: string[] = []
  const one = await database.listen('news', (text) => received.push(`one ${text}`))
  await using _other = await database.listen('news', (text) => received.push(`other ${text}`))
  await one.close()
  await one.close()
  await database.notify('news', 'a')
  await vi.waitUntil(() => received.length > 0)
  expect(received).toEqual(['other a'])
})

test('whoever comes back to a channel while it is being left hears it', async () => {
  await using database = await open(await freshDatabaseUrl('empty'))
  await using _keeper = await database.listen('other', () => {})
  for (let round = 0; round < 50; round += 1) {
    const before = await database.listen('news', () => {})
    const leaving = before.close()
    const heard = Promise.withResolvers<string>()
    const again = await database.listen('news', heard.resolve)
    await database.notify('news', `round ${round}`)
    expect(await heard.promise).toBe(`round ${round}`)
    await Promise.all([leaving, again.close()])
  }
  expect(database.stats().listener.channels).toEqual(['other'])
})

test('leaving the last channel and listening again at once never loses the newcomer', async () => {
  await using database = await open(await freshDatabaseUrl('empty'))
  for (let round = 0; round < 20; round += 1) {
    const first = database.listen('news', () => {})
    if (round % 2 === 0) await first
    const leaving = first.then((subscription) => subscription.close())
    const heard = Promise.withResolvers<string>()
    const again = await database.listen('news', heard.resolve)
    await leaving
    await database.notify('news', 'hello')
    expect(await heard.promise).toBe('hello')
    await again.close()
  }
  expect(await listeners(database)).toEqual([])
})

test('handlers of a subscriber run one after the other, and one that fails stops nobody', async () => {
  await using database = await open(await freshDatabaseUrl('empty'))
  const failures: DatabaseEvents['notificationFailure'][] = []
  database.events.on('notificationFailure', (failure) => failures.push(failure))
  const steps: string[] = []
  await using _slow = await database.listen(orders, async ({ id }) => {
    steps.push(`begin ${id}`)
    await database.query(sql`select pg_sleep(0.01)`)
    steps.push(`end ${id}`)
    if (id === 1) throw new Error('no stock')
  })
  const others: number[] = []
  await using _quick = await database.listen(orders, ({ id }) => {
    if (id === 1) throw new TypeError('at once')
    others.push(id)
  })
  for (const id of [1, 2, 3]) await database.notify(orders, { id })
  await vi.waitUntil(() => steps.length === 6)
  expect(steps).toEqual([1, 2, 3].flatMap((id) => [`begin ${id}`, `end ${id}`]))
  expect(others).toEqual([2, 3])
  expect(new Set(failures.map(({ reason, error }) => `${reason}: ${String(error)}`))).toEqual(
    new Set(['handler: Error: no stock', 'handler: TypeError: at once']),
  )
  expect(warnings.filter((warning) => warning.includes('"orders"'))).toHaveLength(2)
})

test('a payload that is not of the channel reaches no handler, and is in no message', async () => {
  await using database = await open(await freshDatabaseUrl('empty'))
  const failures: DatabaseEvents['notificationFailure'][] = []
  database.events.on('notificationFailure', (failure) => failures.push(failure))
  const strict = channel('strict', (received) => {
    if (typeof received !== 'object' || received === null || !('id' in received)) throw new TypeError('no order')
    return received as Order
  })
  const received: Order[] = []
  await using _subscription = await database.listen(strict, (order) => received.push(order))
  await database.notify('strict', 'my secret')
  await database.notify('strict', '{"name":"my secret"}')
  await database.notify(strict, { id: 7 })
  await vi.waitUntil(() => received.length === 1)
  expect(received).toEqual([{ id: 7 }])
  expect(failures).toMatchObject([
    { channel: 'strict', reason: 'payload', error: { code: 'INVALID_DATA' } },
    { channel: 'strict', reason: 'payload', error: { code: 'INVALID_DATA', cause: { message: 'no order' } } },
  ])
  expect(warnings).toHaveLength(2)
  expect(warnings.join()).not.toContain('secret')
})

test('7 999 bytes are delivered, and 8 000 are refused before they are sent', async () => {
  await using database = await open(await freshDatabaseUrl('empty'))
  const heard = Promise.withResolvers<string>()
  await using _subscription = await database.listen('big', heard.resolve)
  const sent: string[] = []
  database.events.on('query', ({ sql: text }) => sent.push(text))
  const most = `${'é'.repeat(3_999)}x`
  await expect(database.notify('big', `${most}x`)).rejects.toMatchObject({
    code: 'NOTIFICATION_TOO_LARGE',
    message: expect.stringMatching(/8000 bytes.*7999.*key/) as string,
  })
  expect(sent).toEqual([])
  await database.notify('big', most)
  expect(await heard.promise).toBe(most)
  // The server's own limit is the same.
  await expect(database.query(sql`select pg_notify('big', repeat('x', 8000))`)).rejects.toThrow(
    'payload string too long',
  )
})

test('the killed connection of the listener comes back, listens again, and tells each subscriber of the gap', async () => {
  await using database = await open(await freshDatabaseUrl('empty'))
  const events = listenerEvents(database)
  const received: unknown[] = []
  const onGap = (gap: NotificationGap): unknown => received.push(gap)
  await using _orders = await database.listen(orders, ({ id }) => received.push(id), { onGap })
  await using _news = await database.listen('news', (text) => received.push(text), { onGap })
  await database.notify(orders, { id: 1 })
  await vi.waitUntil(() => received.length === 1)
  await killListeners(database)
  await vi.waitUntil(() => received.length === 3)
  await database.notify(orders, { id: 2 })
  await database.notify('news', 'again')
  await vi.waitUntil(() => received.length === 5)
  const gap = { dropped: 0, disconnected: true }
  expect(received.slice(0, 3)).toEqual([1, gap, gap])
  expect(new Set(received.slice(3))).toEqual(new Set([2, 'again']))
  expect(events).toEqual([
    { state: 'connected', channels: 1, error: undefined },
    { state: 'lost', channels: 2, error: 'SERVER_SHUTDOWN' },
    { state: 'reconnected', channels: 2, error: undefined },
  ])
})

test('a gap that nobody asked for is a warning', async () => {
  await using database = await open(await freshDatabaseUrl('empty'))
  await using _subscription = await database.listen(orders, () => {})
  await killListeners(database)
  await vi.waitUntil(() => warnings.some((warning) => /missed notifications.*onGap/.test(warning)))
})

test('a restarted server is listened to again, and who listens meanwhile is told that it is away', async () => {
  const server = await startPostgres()
  try {
    await using database = await open(server.url)
    const received: unknown[] = []
    await using _subscription = await database.listen('news', (text) => received.push(text), {
      onGap: (gap) => received.push(gap),
    })
    await server.kill('SIGQUIT')
    await vi.waitUntil(() => database.stats().listener.state === 'lost')
    await expect(database.listen('other', () => {})).rejects.toMatchObject({ code: 'CONNECTION_FAILED' })
    expect(database.stats().listener.channels).toEqual(['news'])
    await server.restart()
    await vi.waitUntil(() => received.length === 1, 10_000)
    await database.notify('news', 'back')
    await vi.waitUntil(() => received.length === 2)
    expect(received).toEqual([{ dropped: 0, disconnected: true }, 'back'])
  } finally {
    await server.stop()
  }
})

test('a first listen to a server that is away fails, and leaves nothing behind', async () => {
  const server = await startPostgres()
  await using database = await open(server.url)
  await server.stop()
  await expect(database.listen(orders, () => {})).rejects.toMatchObject({ code: 'CONNECTION_FAILED', transient: true })
  expect(database.stats().listener).toMatchObject({ state: 'off', channels: [], subscriptions: 0 })
})

test('a connection that is frozen without a word is noticed by the heartbeat, and replaced', async () => {
  const url = await freshDatabaseUrl('empty')
  const proxy = await startProxy({ to: url })
  try {
    await using database = await open(url, { directUrl: proxy.url, listenerHeartbeatMs: 100 })
    const events = listenerEvents(database)
    const received: unknown[] = []
    await using _subscription = await database.listen('news', (text) => received.push(text), {
      onGap: (gap) => received.push(gap),
    })
    // A few heartbeats are answered before.
    await vi.waitUntil(() => proxy.count('client', 'Query') >= 5)
    expect(events).toHaveLength(1)
    const frozenAt = performance.now()
    proxy.on({ from: 'client', message: 'Query' }, 'black-hole')
    await vi.waitUntil(() => events.length >= 2)
    expect(performance.now() - frozenAt).toBeLessThan(1_000)
    expect(events[1]).toMatchObject({ state: 'lost', error: 'CONNECTION_LOST' })
    await vi.waitUntil(() => received.length === 1)
    await database.notify('news', 'again')
    await vi.waitUntil(() => received.length === 2)
    expect(received).toEqual([{ dropped: 0, disconnected: true }, 'again'])
  } finally {
    await proxy.close()
  }
})

test('a process that was busy for longer than the heartbeat keeps its connection', async () => {
  await using database = await open(await freshDatabaseUrl('empty'), { listenerHeartbeatMs: 100 })
  const events = listenerEvents(database)
  // The server has time enough to answer, also on a busy machine. Everything happens as it does, but once a heartbeat is sent, something else keeps the process busy until the next one is
  // due, and timers come before what there is to read.
  // oxlint-disable-next-line typescript/unbound-method -- it is given its client below
  const send = Client.prototype.query as (...args: unknown[]) => unknown
  const spin = (ms: number): void => {
    const until = performance.now() + ms
    while (performance.now() < until);
  }
  let beats = 0
  const spy = vi.spyOn(Client.prototype, 'query').mockImplementation(function (this: Client, ...args: unknown[]) {
    const answer = send.apply(this, args)
    if (args[0] !== 'select 1') return answer
    beats += 1
    setImmediate(() => spin(220))
    return answer
  })
  try {
    await using _subscription = await database.listen('news', () => {})
    await vi.waitUntil(() => beats > 6, 10_000)
  } finally {
    spy.mockRestore()
  }
  expect(events).toHaveLength(1)
})

test('a connection that ends as soon as it is there is not opened again in a storm', async () => {
  const url = await freshDatabaseUrl('empty')
  const proxy = await startProxy({ to: url })
  try {
    await using database = await open(url, { directUrl: proxy.url, listenerHeartbeatMs: 10 })
    proxy.on({ from: 'client', message: 'Query', sql: /select 1/ }, 'reset', { times: Number.POSITIVE_INFINITY })
    await using _subscription = await database.listen('news', () => {})
    const began = performance.now()
    await vi.waitUntil(() => performance.now() - began > 1_500, 5_000)
    expect(proxy.accepted.length).toBeGreaterThan(2)
    expect(proxy.accepted.length).toBeLessThan(25)
  } finally {
    await proxy.close()
  }
})

test('a handler that is too slow loses the oldest, is told how many, and gets the newest', async () => {
  await using database = await open(await freshDatabaseUrl('empty'))
  const blocked = Promise.withResolvers<void>()
  const received: unknown[] = []
  await using _subscription = await database.listen(
    orders,
    async ({ id }) => {
      received.push(id)
      if (id === 1) await blocked.promise
    },
    { bufferSize: 10, onGap: (gap) => received.push(gap) },
  )
  await database.notify(orders, { id: 1 })
  await vi.waitUntil(() => received.length === 1)
  await database.query(sql`select pg_notify('orders', json_build_object('id', n)::text) from generate_series(2, 101) n`)
  await vi.waitUntil(() => database.stats().listener.dropped === 90)
  expect(database.stats().listener.waiting).toBe(10)
  blocked.resolve()
  await vi.waitUntil(() => received.length === 12)
  expect(received).toEqual([1, { dropped: 90, disconnected: false }, ...Array.from({ length: 10 }, (_, n) => 92 + n)])
})

test('a quick handler gets 100 000 notifications that come at once, and memory stays flat', async () => {
  await using database = await open(await freshDatabaseUrl('empty'))
  let sum = 0
  let gaps = 0
  await using _subscription = await database.listen(orders, ({ id }) => void (sum += id), { onGap: () => (gaps += 1) })
  const burst = async (): Promise<void> => {
    sum = 0
    await database.query(
      sql`select pg_notify('orders', json_build_object('id', n)::text) from generate_series(1, 100000) n`,
    )
    await vi.waitUntil(() => sum === 5_000_050_000, 15_000)
  }
  await burst()
  const before = process.memoryUsage().heapUsed
  await burst()
  expect(process.memoryUsage().heapUsed - before).toBeLessThan(50_000_000)
  expect(gaps).toBe(0)
  expect(database.stats().listener).toMatchObject({ waiting: 0, dropped: 0 })
})

test('a subscriber that takes nothing holds no more than its buffer', async () => {
  await using database = await open(await freshDatabaseUrl('empty'))
  await using _stream = await database.listen(orders, { bufferSize: 100 })
  await database.query(
    sql`select pg_notify('orders', json_build_object('id', n)::text) from generate_series(1, 50000) n`,
  )
  await vi.waitUntil(() => database.stats().listener.dropped === 49_900)
  expect(database.stats().listener.waiting).toBe(100)
})

test('closing the database while the listener connects again ends at once', async () => {
  const server = await startPostgres()
  const database = await open(server.url)
  try {
    await database.listen('news', () => {})
    await server.kill('SIGQUIT')
    await vi.waitUntil(() => database.stats().listener.state === 'lost')
  } finally {
    await server.stop()
  }
  const began = performance.now()
  await database.close()
  expect(performance.now() - began).toBeLessThan(1_500)
  expect(database.stats().listener.state).toBe('off')
})

test('closing the database while the server keeps the listener waiting does not wait for it', async () => {
  const url = await freshDatabaseUrl('empty')
  const proxy = await startProxy({ to: url })
  try {
    const database = await open(url, { directUrl: proxy.url })
    proxy.freeze()
    const listening = database.listen('news', () => {}).catch((error: unknown) => error)
    await vi.waitUntil(() => proxy.connections === 1)
    const began = performance.now()
    await database.close()
    expect(performance.now() - began).toBeLessThan(1_500)
    expect(await listening).toMatchObject({ code: 'DATABASE_CLOSED' })
  } finally {
    await proxy.close()
  }
})

test('close waits for a handler that works, and calls none after', async () => {
  const url = await freshDatabaseUrl('empty')
  const database = await open(url)
  await database.query(sql`create table notes (id int)`)
  const begun = Promise.withResolvers<void>()
  let calls = 0
  await database.listen(orders, async ({ id }) => {
    calls += 1
    begun.resolve()
    await database.query(sql`select pg_sleep(0.1)`)
    await database.query(sql`insert into notes values (${id})`)
  })
  for (const id of [1, 2, 3]) await database.notify(orders, { id })
  await begun.promise
  await database.close()
  expect(calls).toBe(1)
  await using other = await open(url)
  expect(await other.query(sql`select id from notes`)).toEqual([{ id: 1 }])
})

test('a subscription may be closed by its own handler', async () => {
  await using database = await open(await freshDatabaseUrl('empty'))
  const received: number[] = []
  const subscription = await database.listen(orders, async ({ id }) => {
    received.push(id)
    await subscription.close()
  })
  await database.query(sql`select pg_notify('orders', json_build_object('id', n)::text) from generate_series(1, 5) n`)
  await vi.waitUntil(() => database.stats().listener.state === 'off')
  expect(received).toEqual([1])
})

test('a channel without a usable name is refused at once', async () => {
  await using database = await open(await freshDatabaseUrl('empty'))
  const tooLong = 'ä'.repeat(32)
  for (const name of ['', tooLong, 'a\0b']) {
    expect(() => channel(name)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
    await expect(database.listen(name, () => {})).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await expect(database.notify(name, '')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  }
  const longest = 'ä'.repeat(31)
  const heard = Promise.withResolvers<string>()
  await using _subscription = await database.listen(longest, heard.resolve)
  await database.notify(longest, 'x')
  expect(await heard.promise).toBe('x')
})

test('a notification whose connection is lost is not sent twice by itself', async () => {
  const url = await freshDatabaseUrl('empty')
  const proxy = await startProxy({ to: url })
  try {
    await using database = await open(proxy.url, { directUrl: url })
    const received: string[] = []
    await using _subscription = await database.listen('news', (text) => received.push(text))
    proxy.on({ from: 'server', message: 'CommandComplete', tag: 'SELECT' }, 'reset')
    await expect(database.notify('news', 'once')).rejects.toMatchObject({ code: 'CONNECTION_LOST', retry: 'none' })
    proxy.on({ from: 'server', message: 'CommandComplete', tag: 'SELECT' }, 'reset')
    await database.notify('news', 'at least once', { idempotent: true })
    await vi.waitUntil(() => received.length === 3)
    expect(received).toEqual(['once', 'at least once', 'at least once'])
  } finally {
    await proxy.close()
  }
})

test('the embedded PostgreSQL notifies as a server does, also after its session was renewed', async () => {
  warnings.length = 0
  const postgres = { embedded: { dataDir: 'memory' }, pool: { idleTimeoutMs: 50 } }
  await using database = await createDatabase<never>({ postgres, redis: false, logger })
  const received: unknown[] = []
  const subscription = await database.listen(orders, ({ id }) => received.push(id))
  await database.transaction(() => database.notify(orders, { id: 1 }))
  await vi.waitUntil(() => database.stats().pool.total === 0)
  await database.notify(orders, { id: 2 })
  await vi.waitUntil(() => received.length === 2)
  await subscription.close()
  await database.notify(orders, { id: 3 })
  await using _again = await database.listen('news', (text) => received.push(text))
  await database.notify('news', 'four')
  await vi.waitUntil(() => received.length === 3)
  expect(received).toEqual([1, 2, 'four'])
})

test('inside a transaction, which has the one session of the embedded PostgreSQL, listen is refused at once', async () => {
  const postgres = { embedded: { dataDir: 'memory' } }
  await using database = await createDatabase<never>({ postgres, redis: false, logger })
  await expect(database.transaction(() => database.listen('news', () => {}))).rejects.toMatchObject({
    code: 'TRANSACTION_MISUSE',
  })
  await using _subscription = await database.listen('news', () => {})
})

test('health speaks of the server, whatever becomes of the listener', async () => {
  const url = await freshDatabaseUrl('empty')
  const proxy = await startProxy({ to: url })
  try {
    await using database = await open(url, { directUrl: proxy.url })
    await using _subscription = await database.listen('news', () => {})
    await proxy.close()
    await vi.waitUntil(() => database.stats().listener.state === 'lost')
    expect(await database.health()).toMatchObject({ status: 'up' })
  } finally {
    await proxy.close().catch(() => undefined)
  }
})

let server: OwnServer
let bouncer: OwnServer

beforeAll(async () => {
  server = await startPostgres()
  bouncer = await startPgBouncer(server.url)
}, 120_000)

afterAll(async () => {
  await bouncer.stop()
  await server.stop()
})

test('behind a pooler in transaction mode listen is refused, and the message names the remedy', async () => {
  await using database = await open(bouncer.url, { connectTimeoutMs: 1_000 })
  await expect(database.listen('news', () => {})).rejects.toMatchObject({
    code: 'NOTIFICATIONS_UNAVAILABLE',
    message: expect.stringContaining('DATABASE_DIRECT_URL') as string,
  })
  expect(database.stats().listener).toMatchObject({ state: 'off', channels: [] })
})

test('with directUrl, what is sent through the pooler arrives', async () => {
  await using database = await open(bouncer.url, { directUrl: server.url })
  const heard = Promise.withResolvers<Order>()
  await using _subscription = await database.listen(orders, heard.resolve)
  await database.notify(orders, { id: 1 })
  expect(await heard.promise).toEqual({ id: 1 })
})

test('a directUrl that leads to another database is noticed', async () => {
  await using database = await open(await freshDatabaseUrl('empty'), {
    directUrl: server.url,
    connectTimeoutMs: 1_000,
  })
  await expect(database.listen(orders, () => {})).rejects.toMatchObject({
    code: 'NOTIFICATIONS_UNAVAILABLE',
    message: expect.stringContaining('two databases') as string,
  })
})
