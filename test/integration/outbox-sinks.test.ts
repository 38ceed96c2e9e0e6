import { once } from 'node:events'
import { createServer, type IncomingHttpHeaders } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Redis } from 'ioredis'
import { expect, onTestFinished, test, vi } from 'vitest'
import {
  clickhouseSink,
  createDatabase,
  createOutbox,
  type Database,
  elasticsearchSink,
  type EventOf,
  httpSink,
  type Outbox,
  type OutboxDatabase,
  redisStreamSink,
  type RelayFailure,
} from '../../src/index.ts'
import { closeAfterTest, freshDatabaseUrl, redisUrl } from '../support/database.ts'

const until = <T>(isSo: () => T | Promise<T>): Promise<Exclude<T, false>> =>
  vi.waitUntil(isSo, 10_000) as Promise<Exclude<T, false>>

interface Topics {
  'product.changed': { readonly id: string; readonly name: string }
}

interface Received {
  readonly method: string | undefined
  readonly url: URL
  readonly headers: IncomingHttpHeaders
  readonly body: string
}

interface Answer {
  readonly status: number
  readonly headers?: Record<string, string>
  readonly body?: unknown
}

/** An HTTP server that answers as it is told, and remembers what it was sent; `undefined` is no answer at all. */
async function receiver(answer: (received: Received, count: number) => Answer | undefined) {
  const received: Received[] = []
  const server = createServer((request, response) => {
    let body = ''
    request.setEncoding('utf8')
    request.on('data', (piece: string) => (body += piece))
    request.on('end', () => {
      const url = new URL(request.url ?? '', 'http://receiver')
      const what = { method: request.method, url, headers: request.headers, body }
      received.push(what)
      const given = answer(what, received.length)
      if (given === undefined) return
      response.writeHead(given.status, { 'content-type': 'application/json', ...given.headers })
      response.end(given.body === undefined ? '' : JSON.stringify(given.body))
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => {
    server.closeAllConnections()
    server.close()
  })
  return { received, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` }
}

async function open(): Promise<{ database: Database<unknown>; outbox: Outbox<Topics>; failures: RelayFailure[] }> {
  const logger = { info: () => undefined, warn: () => undefined }
  const postgres = { url: await freshDatabaseUrl('empty') }
  const database = closeAfterTest(await createDatabase({ postgres, redis: { url: redisUrl() }, logger }))
  return { database, outbox: await createOutbox<Topics>(database), failures: [] }
}

const products = (count: number) =>
  Array.from({ length: count }, (_, n) => ({
    topic: 'product.changed' as const,
    payload: { id: `p${n}`, name: `Cup ${n}` },
    key: `p${n}`,
  }))

const fast = { baseDelayMs: 5, pollMs: 50 }

test('HTTP: each event is a request with its id, and 2xx is its delivery', async () => {
  const { outbox } = await open()
  const { received, url } = await receiver(() => ({ status: 204 }))
  const id = await outbox.publish('product.changed', { id: 'p1', name: 'Cup' }, { key: 'p1', headers: { trace: 't' } })
  const credentials = url.replace('//', '//ada:s%3Acret@')
  await using _relay = outbox.relay(
    httpSink({ url: `${credentials}/events?tenant=1`, headers: { 'x-api-key': 'k' } }),
    fast,
  )
  await until(() => _relay.stats().delivered === 1)
  const [request] = received
  expect(request).toMatchObject({
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      'idempotency-key': id,
      'x-api-key': 'k',
      authorization: `Basic ${Buffer.from('ada:s:cret').toString('base64')}`,
    },
  })
  expect(request?.url.href).toBe('http://receiver/events?tenant=1')
  expect(JSON.parse(request?.body ?? '')).toMatchObject({
    id,
    topic: 'product.changed',
    key: 'p1',
    payload: { id: 'p1', name: 'Cup' },
    headers: { trace: 't' },
  })
})

test('HTTP: what may pass is tried again with the same id, and what never will is a dead letter at once', async () => {
  const { outbox } = await open()
  const statuses = [503, 429, 500, 200]
  const { received, url } = await receiver(({ body }, count) =>
    body.includes('bad') ? { status: 422, body: { quoted: 'bad' } } : { status: statuses[count - 1] ?? 200 },
  )
  const failures: RelayFailure[] = []
  const onFailure = (failure: RelayFailure): void => void failures.push(failure)
  await outbox.publish('product.changed', { id: 'p1', name: 'Cup' })
  await using relay = outbox.relay(httpSink({ url: `${url}/secret-hook?token=secret` }), { ...fast, onFailure })
  await until(() => relay.stats().delivered === 1)
  expect(received).toHaveLength(4)
  expect(new Set(received.map(({ headers }) => headers['idempotency-key'])).size).toBe(1)
  // A receiver that knows the id may refuse it with another body.
  expect(new Set(received.map(({ body }) => body)).size).toBe(1)
  await outbox.publish('product.changed', { id: 'p2', name: 'bad' })
  await until(() => relay.stats().dead === 1)
  const [letter] = await until(async () => {
    const letters = await outbox.deadLetters()
    return letters.length > 0 && letters
  })
  expect(letter).toMatchObject({ attempt: 1, error: expect.stringContaining('status 422') })
  expect(failures.map(({ isDead }) => isDead)).toEqual([false, false, false, true])
  for (const text of [letter?.error, ...failures.map(({ error }) => String(error))])
    expect(text).not.toMatch(/secret|bad/)
})

test('HTTP: a receiver that is slow, away or moved is a failure, whose message has no secret', async () => {
  const slow = await receiver(() => undefined)
  const moved = await receiver(() => ({ status: 302, headers: { location: 'http://127.0.0.1:1/elsewhere' } }))
  const busy = await receiver(() => ({ status: 503, headers: { 'retry-after': '7' } }))
  const event = {
    id: '1',
    topic: 'product.changed' as const,
    key: undefined,
    payload: { id: 'p', name: 'n' },
    headers: {},
    attempt: 1,
    publishedAt: new Date(),
  }
  const send = (url: string, timeoutMs = 10_000, signal = new AbortController().signal) =>
    Promise.resolve(httpSink({ url: `${url}/secret?secret=1`, timeoutMs })(event, { signal, timeoutMs }))
  const late = send(slow.url, 50)
  await expect(late).rejects.toMatchObject({ code: 'DELIVERY_FAILED', isFinal: false })
  await expect(late).rejects.toThrow('within 50 ms')
  await expect(send('http://127.0.0.1:1')).rejects.toThrow('http://127.0.0.1:1 could not be reached')
  await expect(send(moved.url)).rejects.toMatchObject({ isFinal: true, message: expect.stringContaining('302') })
  await expect(send(busy.url)).rejects.toMatchObject({ isFinal: false, retryAfterMs: 7_000 })
  await expect(late).rejects.not.toThrow('secret')
  await expect(send(moved.url)).rejects.not.toThrow('secret')
  await expect(send('http://secret:secret@127.0.0.1:1')).rejects.not.toThrow('secret')
  const controller = new AbortController()
  const stopped = send(slow.url, 10_000, controller.signal)
  controller.abort(new Error('the relay ends'))
  await expect(stopped).rejects.toThrow('the relay ends')
  expect(() => httpSink({ url: 'ftp://secret' })).toThrow(/^((?!secret).)*$/)
})

test('Elasticsearch: one bulk request, and each document has its own outcome', async () => {
  const { outbox } = await open()
  let isFull = true
  const { received, url } = await receiver(({ body }) => {
    const lines = body.trimEnd().split('\n')
    const ids = lines
      .filter((_, n) => n % 2 === 0)
      .map((line) => (JSON.parse(line) as { index: { _id: string } }).index._id)
    const items = ids.map((id) => {
      if (id === 'p1')
        return { index: { status: 400, error: { type: 'mapper_parsing_exception', reason: 'secret Cup 1' } } }
      if (id === 'p2' && isFull) return { index: { status: 429, error: { type: 'es_rejected_execution_exception' } } }
      return { index: { status: id === 'p3' ? 409 : 201 } }
    })
    isFull = false
    return { status: 200, body: { errors: items.some(({ index }) => index.status > 299), items } }
  })
  const ids = await outbox.publishMany(products(5))
  const sink = elasticsearchSink<EventOf<Topics>>({
    url: `${url}/es`,
    index: 'products',
    id: (event) => event.payload.id,
  })
  await using relay = outbox.relay(sink, fast)
  await until(() => relay.stats().delivered === 4 && relay.stats().dead === 1)
  expect(received[0]?.url.pathname).toBe('/es/_bulk')
  expect(received[0]?.headers['content-type']).toBe('application/x-ndjson')
  expect(
    received[0]?.body
      .split('\n')
      .slice(0, 2)
      .map((line) => JSON.parse(line) as unknown),
  ).toEqual([
    { index: { _index: 'products', _id: 'p0', version: Number(ids[0]), version_type: 'external_gte' } },
    { id: 'p0', name: 'Cup 0' },
  ])
  // Only the one that was too many is sent again.
  expect(received.slice(1).map(({ body }) => body.match(/"_id":"(\w+)"/)?.[1])).toEqual(['p2'])
  await until(async () => (await outbox.stats()).dead === 1)
  const [letter] = await outbox.deadLetters()
  expect(letter?.error).toContain('mapper_parsing_exception')
  expect(letter?.error).not.toContain('secret')
})

test('Elasticsearch: an answer that is none leaves all to be tried again', async () => {
  const { outbox } = await open()
  const { url } = await receiver((_, count) =>
    count === 1 ? { status: 200, body: 'a proxy in between' } : { status: 200, body: { errors: false } },
  )
  const id = await outbox.publish('product.changed', { id: 'p', name: 'n' })
  expect(id).toBeDefined()
  await using relay = outbox.relay(elasticsearchSink<EventOf<Topics>>({ url, index: () => 'products' }), fast)
  await until(() => relay.stats().delivered === 1)
  expect(relay.stats().failed).toBe(1)
})

test('Elasticsearch: what is too large as a whole is sent in halves', async () => {
  const { outbox } = await open()
  const { url } = await receiver(({ body }) =>
    body.split('\n').length > 12 ? { status: 413 } : { status: 200, body: { errors: false } },
  )
  await outbox.publishMany(products(20))
  await using relay = outbox.relay(elasticsearchSink<EventOf<Topics>>({ url, index: 'products' }), fast)
  await until(() => relay.stats().delivered + relay.stats().dead === 20)
  expect(relay.stats()).toMatchObject({ delivered: 20, dead: 0 })
})

test('ClickHouse: a batch is one insert with its token, and rows that are refused are found', async () => {
  const { outbox } = await open()
  const { received, url } = await receiver(({ body }) => ({ status: body.includes('"p3"') ? 400 : 200 }))
  const sink = clickhouseSink<EventOf<Topics>>({
    url,
    table: 'odd`name',
    database: 'shop',
    row: (event) => ({ event_id: event.id, ...event.payload }),
    settings: { async_insert: '0' },
  })
  const ids = await outbox.publishMany(products(8))
  await using relay = outbox.relay(sink, fast)
  await until(() => relay.stats().delivered === 7 && relay.stats().dead === 1)
  const query = received[0]?.url.searchParams
  expect(query?.get('query')).toBe('INSERT INTO `shop`.`odd\\`name` FORMAT JSONEachRow')
  expect(query?.get('async_insert')).toBe('0')
  expect(query?.get('insert_deduplication_token')).toMatch(/^[0-9a-f]{64}$/)
  const tokens = received.map(({ url: { searchParams } }) => searchParams.get('insert_deduplication_token'))
  expect(new Set(tokens).size).toBe(tokens.length)
  const rows = received
    .filter(({ body }) => !body.includes('"p3"'))
    .flatMap(({ body }) =>
      body
        .trimEnd()
        .split('\n')
        .map((line) => (JSON.parse(line) as { event_id: string }).event_id),
    )
  expect(new Set(rows)).toEqual(new Set(ids.filter((_, n) => n !== 3)))
  expect(rows).toHaveLength(7)
})

test('Redis: events are entries of a stream, by a client or by the Redis of the database', async () => {
  const { database, outbox } = await open()
  const client = new Redis(redisUrl())
  onTestFinished(() => client.disconnect())
  const stream = `outbox-${Math.random().toString(36).slice(2)}`
  const id = await outbox.publish('product.changed', { id: 'p1', name: 'Cup' }, { key: 'p1' })
  const first = outbox.relay(redisStreamSink(client, { stream, maxLength: 1_000 }), fast)
  await until(() => first.stats().delivered === 1)
  await first.close()
  await outbox.publish('product.changed', { id: 'p2', name: 'Mug' })
  await using second = outbox.relay(redisStreamSink(database, { stream: () => stream }), fast)
  await until(() => second.stats().delivered === 1)
  const entries = await client.xrange(stream, '-', '+')
  expect(entries).toHaveLength(2)
  expect(Object.fromEntries(pairs(entries[0]?.[1] ?? []))).toEqual({
    id,
    topic: 'product.changed',
    key: 'p1',
    publishedAt: expect.stringMatching(/^\d{4}-.*Z$/),
    headers: '{}',
    payload: '{"id":"p1","name":"Cup"}',
  })
  await client.set(`${stream}-text`, 'x')
  const failures: RelayFailure[] = []
  await using third = outbox.relay(redisStreamSink(client, { stream: `${stream}-text` }), {
    ...fast,
    maxAttempts: 1,
    onFailure: (failure) => void failures.push(failure),
  })
  await second.close()
  await outbox.publish('product.changed', { id: 'p3', name: 'secret' })
  await until(() => third.stats().dead === 1)
  expect(String(failures[0]?.error)).toContain('WRONGTYPE')
  expect(JSON.stringify(failures[0]?.error)).not.toContain('secret')
  await client.del(stream, `${stream}-text`)
  const nothing = { transaction: () => undefined } as unknown as OutboxDatabase
  expect(() => redisStreamSink(nothing, { stream })).toThrow('Redis')
})

function pairs(fields: readonly string[]): [string, string][] {
  return fields.flatMap((name, n) => (n % 2 === 0 ? [[name, fields[n + 1] ?? '']] : []))
}
