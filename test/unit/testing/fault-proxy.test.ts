import { once } from 'node:events'
import { connect } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { Client } from 'pg'
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from 'vitest'
import { type Proxy, startProxy } from '../../../src/testing/fault-proxy.ts'
import { type OwnServer, startPostgres } from '../../support/servers.ts'

let server: OwnServer

beforeAll(async () => {
  server = await startPostgres()
}, 60_000)

afterAll(() => server.stop())

async function proxied(): Promise<Proxy> {
  const proxy = await startProxy({ to: server.url })
  onTestFinished(() => proxy.close())
  return proxy
}

async function connected(proxy: Proxy, settings: { connectionTimeoutMillis?: number } = {}): Promise<Client> {
  const client = new Client({ connectionString: proxy.url, ...settings })
  client.on('error', () => {})
  await client.connect()
  // Its farewell is not waited for: a frozen proxy never answers it.
  onTestFinished(() => void client.end().catch(() => {}))
  return client
}

async function one(client: Client, sql: string, values?: unknown[]): Promise<unknown> {
  const { rows } = await client.query<{ value: unknown }>(sql, values)
  return rows[0]?.value
}

test('what no fault is asked for arrives unchanged, however large', async () => {
  const proxy = await proxied()
  const client = await connected(proxy)
  const text = 'ä'.repeat(3_000_000)
  expect(await one(client, 'select $1::text as value', [text])).toBe(text)
  await client.end()
  await vi.waitUntil(() => proxy.connections === 0)
  expect(proxy.accepted).toHaveLength(1)
})

test('messages are counted by kind, and statements are known by their text', async () => {
  const proxy = await proxied()
  const client = await connected(proxy)
  await client.query('select 1')
  for (const id of [1, 2, 3]) await client.query({ name: 'by id', text: 'select $1::int as value', values: [id] })
  expect([proxy.count('client', 'Startup'), proxy.count('client', 'Query')]).toEqual([1, 1])
  expect([proxy.count('client', 'Parse'), proxy.count('client', 'Execute')]).toEqual([1, 3])
  expect([proxy.count('server', 'DataRow'), proxy.count('server', 'CommandComplete')]).toEqual([4, 4])
  expect([...proxy.statements]).toEqual(['select 1', 'select $1::int as value'])
})

test('a message that comes in single bytes is struck like any other', async () => {
  const proxy = await proxied()
  const rule = proxy.on({ from: 'client', message: 'Startup' }, 'close')
  const socket = connect(proxy.port, '127.0.0.1')
  await once(socket, 'connect')
  for (const byte of [0, 0, 0, 9, 0, 3, 0, 0, 0]) {
    socket.write(Buffer.of(byte))
    await new Promise((resolve) => setImmediate(resolve))
  }
  await once(socket.resume(), 'end')
  socket.destroy()
  expect(rule.hits).toBe(1)
})

test('the reply to a COMMIT can be lost while the COMMIT itself is done', async () => {
  const proxy = await proxied()
  const client = await connected(proxy)
  await client.query('create table kept (id int)')
  proxy.on({ from: 'server', message: 'CommandComplete', tag: 'COMMIT' }, 'reset')
  await client.query('begin')
  await client.query('insert into kept values (1)')
  await expect(client.query('commit')).rejects.toMatchObject({ code: 'ECONNRESET' })
  expect(await one(await connected(proxy), 'select count(*)::int as value from kept')).toBe(1)
})

test('a statement can be cut off before it arrives, also by the name it was prepared under', async () => {
  const proxy = await proxied()
  const client = await connected(proxy)
  await client.query('create table spared (id int)')
  const insert = { name: 'insert', text: 'insert into spared values ($1)' }
  await client.query({ ...insert, values: [1] })
  const rule = proxy.on({ from: 'client', message: 'Bind', sql: /insert into spared/ }, 'close')
  await expect(client.query({ ...insert, values: [2] })).rejects.toThrow('terminated')
  expect(rule.hits).toBe(1)
  expect(await one(await connected(proxy), 'select count(*)::int as value from spared')).toBe(1)
})

test('a rule strikes from the nth occurrence on, as often as it was told, and not after off()', async () => {
  const proxy = await proxied()
  const rule = proxy.on({ from: 'client', message: 'Query' }, 'close', { nth: 2, times: 2 })
  const outcomes: string[] = []
  for (let run = 0; run < 5; run += 1) {
    const client = await connected(proxy)
    outcomes.push(
      await client.query('select 1').then(
        () => 'answer',
        () => 'cut',
      ),
    )
    if (run === 2) rule.off()
  }
  expect(outcomes).toEqual(['answer', 'cut', 'cut', 'answer', 'answer'])
  expect(rule.hits).toBe(2)
})

test('a black hole answers nothing, not even a farewell', async () => {
  const proxy = await proxied()
  const client = await connected(proxy)
  const rule = proxy.on({ from: 'server', message: 'DataRow' }, 'black-hole', { nth: 3 })
  let rows = 0
  const query = client.query('select generate_series(1, 10) as value')
  query.catch(() => {})
  ;(client as unknown as { connection: { on(event: string, listener: () => void): void } }).connection.on(
    'dataRow',
    () => {
      rows += 1
    },
  )
  await rule.struck
  await vi.waitUntil(() => rows === 2)
  proxy.cut()
  await expect(query).rejects.toMatchObject({ code: 'ECONNRESET' })
})

test('what stalls or is frozen goes on after thaw, and nothing is lost', async () => {
  const proxy = await proxied()
  const client = await connected(proxy)
  const rule = proxy.on({ from: 'server', message: 'CommandComplete' }, 'stall')
  const stalled = one(client, 'select 7 as value')
  await rule.struck
  proxy.thaw()
  expect(await stalled).toBe(7)

  proxy.freeze()
  const frozen = one(client, 'select 8 as value')
  const another = connected(proxy)
  await expect(connected(proxy, { connectionTimeoutMillis: 50 })).rejects.toThrow('timeout')
  proxy.thaw()
  expect(await frozen).toBe(8)
  expect(await one(await another, 'select 9 as value')).toBe(9)
})

test('half a message, a wrong byte and a wrong length reach the client as such', async () => {
  const proxy = await proxied()
  const pattern = { from: 'server', message: 'RowDescription' } as const
  for (const fault of ['halve', { corruptByte: 0 }, { length: () => 5 }] as const) {
    const client = await connected(proxy)
    proxy.on(pattern, fault)
    const failure = client.query('select 1 as value, 2 as other').then(
      () => 'an answer',
      () => 'an error',
    )
    // A length that lies leaves `pg` waiting for ever.
    expect(await Promise.race([failure, delay(200, 'nothing')])).not.toBe('an answer')
  }
})

test('delays and throttles slow down each direction', async () => {
  const proxy = await proxied()
  const client = await connected(proxy)
  const timed = async (sql: string): Promise<number> => {
    const start = performance.now()
    await client.query(sql)
    return performance.now() - start
  }
  proxy.delay(30)
  expect(await timed('select 1')).toBeGreaterThanOrEqual(59)
  proxy.delay(0)
  proxy.on({ from: 'server', message: 'ReadyForQuery' }, { delayMs: 50 })
  expect(await timed('select 1')).toBeGreaterThanOrEqual(49)
  proxy.throttle(100_000)
  expect(await timed(`select repeat('x', 20000)`)).toBeGreaterThanOrEqual(150)
  proxy.throttle(0)
  proxy.on({ from: 'server', message: 'CommandComplete', tag: 'SELECT' }, { trickleMs: 5 })
  // 14 bytes of CommandComplete and 6 of ReadyForQuery.
  expect(await timed('select 1')).toBeGreaterThanOrEqual(95)
})

test('cancel requests are connections of their own, and can be held back', async () => {
  const proxy = await proxied()
  const client = await connected(proxy)
  const rule = proxy.on({ from: 'client', message: 'CancelRequest' }, { delayMs: 40 })
  const start = performance.now()
  const sleeping = client.query('select pg_sleep(60)')
  const { processID, secretKey } = client as unknown as { processID: number; secretKey: number }
  const request = Buffer.alloc(16)
  request.writeInt32BE(16, 0)
  request.writeInt32BE(80_877_102, 4)
  request.writeInt32BE(processID, 8)
  request.writeInt32BE(secretKey, 12)
  connect(proxy.port, '127.0.0.1')
    .on('error', () => {})
    .end(request)
    .resume()
  await expect(sleeping).rejects.toMatchObject({ code: '57014' })
  expect(performance.now() - start).toBeGreaterThanOrEqual(39)
  expect([rule.hits, proxy.count('client', 'CancelRequest'), proxy.accepted.length]).toEqual([1, 1, 2])
})

test('a server that is not there looks like a reset connection', async () => {
  const proxy = await startProxy({ to: 'postgres://postgres@127.0.0.1:1/postgres' })
  onTestFinished(() => proxy.close())
  await expect(connected(proxy)).rejects.toMatchObject({ code: 'ECONNRESET' })
})

test('in raw mode each packet is a message of its own', async () => {
  const proxy = await startProxy({ to: server.url, protocol: 'raw' })
  onTestFinished(() => proxy.close())
  const client = await connected(proxy)
  const rule = proxy.on({ from: 'server', message: 'Bytes' }, 'reset')
  await expect(client.query('select 1')).rejects.toMatchObject({ code: 'ECONNRESET' })
  expect(rule.hits).toBe(1)
})
