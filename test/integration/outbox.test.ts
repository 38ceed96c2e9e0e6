import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { CamelCasePlugin, ParseJSONResultsPlugin, sql } from 'kysely'
import { expect, onTestFinished, test, vi } from 'vitest'
import {
  createDatabase,
  createOutbox,
  createSagas,
  type Database,
  DeliveryError,
  type EventOf,
  type Outbox,
  type OutboxOptions,
  type RelayFailure,
  saga,
} from '../../src/index.ts'
import { closeAfterTest, freshDatabaseUrl } from '../support/database.ts'

interface Topics {
  'order.paid': { readonly orderId: number }
  'user.left': { readonly name: string }
}

interface Row {
  readonly id: string
  readonly state: string
  readonly attempts: number
}

const until = (isSo: () => boolean | Promise<boolean>): Promise<unknown> => vi.waitUntil(isSo, 10_000)

const quiet = { info: () => undefined, warn: () => undefined }

async function open(
  options: OutboxOptions = {},
  url?: string,
): Promise<{ database: Database<unknown>; outbox: Outbox<Topics> }> {
  const postgres = { url: url ?? (await freshDatabaseUrl('empty')), pool: { max: 5 } }
  const database = closeAfterTest(await createDatabase({ postgres, redis: false, logger: quiet }))
  return { database, outbox: await createOutbox<Topics>(database, options) }
}

/** A server between that, once it is told to, passes nothing on and closes nothing. */
async function silenced(to: string) {
  const { hostname, port } = new URL(to)
  const sockets: Socket[] = []
  let isSilent = false
  const server = createServer((client) => {
    const upstream = connect(Number(port), hostname)
    sockets.push(client, upstream)
    client.on('data', (piece) => isSilent || upstream.write(piece))
    upstream.on('data', (piece) => isSilent || client.write(piece))
    for (const socket of [client, upstream]) socket.on('error', () => undefined)
    client.on('close', () => upstream.destroy())
    upstream.on('close', () => client.destroy())
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const end = (): void => {
    for (const socket of sockets) socket.destroy()
    server.close()
  }
  onTestFinished(end)
  const between = { hostname: '127.0.0.1', port: String((server.address() as AddressInfo).port) }
  return { url: Object.assign(new URL(to), between).href, silence: () => void (isSilent = true), end }
}

const rowsOf = (database: Database<unknown>): Promise<Row[]> =>
  database.query(sql<Row>`select id::text as id, state, attempts from kanta.outbox order by id`)

/** What a handler has seen, and a relay that runs until the end of the test. */
function collect(outbox: Outbox<Topics>, options?: Parameters<Outbox<Topics>['relay']>[1]) {
  const events: EventOf<Topics>[] = []
  const relay = outbox.relay((event: EventOf<Topics>) => void events.push(event), {
    pollMs: 100,
    ...options,
    batch: false,
  })
  onTestFinished(() => relay.close())
  return { events, relay }
}

test('an event is delivered if and only if its transaction commits, and not of a savepoint that is undone', async () => {
  const { database, outbox } = await open()
  const { events } = collect(outbox)
  const undone = database.transaction(async () => {
    await outbox.publish('user.left', { name: 'rolled back' })
    throw new Error('changed my mind')
  })
  await expect(undone).rejects.toThrow('changed my mind')
  await database.transaction(async () => {
    await outbox.publish('user.left', { name: 'kept' })
    const inner = database.transaction(async () => {
      await outbox.publish('user.left', { name: 'savepoint' }, { key: 'k' })
      throw new Error('inner')
    })
    await expect(inner).rejects.toThrow('inner')
    expect(events).toEqual([])
  })
  await outbox.publish('order.paid', { orderId: 7 })
  await until(() => events.length >= 2)
  expect(events.map(({ payload }) => payload)).toEqual([{ name: 'kept' }, { orderId: 7 }])
  await until(async () => (await rowsOf(database)).length === 0)
})

test('an event arrives as it was published', async () => {
  const { outbox } = await open()
  const { events } = collect(outbox)
  const payload = { zebra: 1, apple: [1e21, -0.5, null, true], text: 'é\u0000\ud800"\\', nested: { b: 1, a: 2 } }
  const plain = outbox as unknown as Outbox<Record<string, unknown>>
  const id = await plain.publish('anything', payload, { key: 'K', headers: { trace: '00-1' } })
  await until(() => events.length === 1)
  const [event] = events
  expect(event).toEqual({
    id,
    topic: 'anything',
    key: 'K',
    payload,
    headers: { trace: '00-1' },
    attempt: 1,
    publishedAt: expect.any(Date),
  })
  expect(Object.keys(event?.payload ?? {})).toEqual(['zebra', 'apple', 'text', 'nested'])
})

test('plugins that rename columns or parse JSON do not disturb it', async () => {
  const postgres = { url: await freshDatabaseUrl('empty') }
  const plugins = [new CamelCasePlugin(), new ParseJSONResultsPlugin()]
  const database = closeAfterTest(await createDatabase({ postgres, redis: false, logger: quiet, plugins }))
  const outbox = await createOutbox(database)
  const payload = { snake_case: 1, text: '{"a":1}', list: [{ in_it: 1 }] }
  const headers = { trace_id: '[1]' }
  const ids = await outbox.publishMany([
    { topic: 'odd', payload, headers },
    { topic: 'odd', payload: '[1]', idempotencyKey: 'k' },
  ])
  expect(ids).toEqual(['1', '2'])
  const seen: unknown[] = []
  const fail = (event: unknown): never => {
    seen.push(event)
    throw new Error('no')
  }
  await using _relay = outbox.relay(fail, { pollMs: 50, maxAttempts: 1 })
  await until(async () => (await outbox.stats()).dead === 2)
  const expected = [
    { id: '1', payload, headers, publishedAt: expect.any(Date) },
    { id: '2', payload: '[1]', headers: {} },
  ]
  expect(seen).toMatchObject(expected)
  expect(await outbox.deadLetters()).toMatchObject(expected.map((event) => ({ ...event, diedAt: expect.any(Date) })))
})

test('what JSON would change or cannot hold is refused before anything is written', async () => {
  const { database, outbox } = await open({ maxPayloadBytes: 100 })
  const plain = outbox as unknown as Outbox<Record<string, unknown>>
  const circle: Record<string, unknown> = {}
  circle['self'] = circle
  const wrong = [
    undefined,
    () => 1,
    Symbol('s'),
    1n,
    { deep: [1n] },
    { n: Number.NaN },
    new Map(),
    { s: new Set() },
    circle,
  ]
  for (const payload of wrong) {
    await expect(plain.publish('t', payload)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  }
  for (const options of [
    { key: '' },
    { key: 'x'.repeat(501) },
    { key: 'nul\0' },
    { idempotencyKey: '' },
    { availableAfterMs: -1 },
    { availableAfterMs: Number.NaN },
    { headers: { a: 1 } as unknown as Record<string, string> },
  ]) {
    await expect(plain.publish('t', 1, options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  }
  await expect(plain.publish('', 1)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  const secret = 'secret'.repeat(20)
  const tooLarge = plain.publish('t', secret)
  await expect(tooLarge).rejects.toMatchObject({ code: 'EVENT_TOO_LARGE' })
  await expect(tooLarge).rejects.not.toThrow('secret')
  expect(await rowsOf(database)).toEqual([])
  await expect(createOutbox({} as Database<unknown>)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  expect(() => outbox.relay(() => undefined, { concurrency: 0 })).toThrow('concurrency')
  await expect(outbox.retryDead(["1'; drop table x"])).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
})

test('an idempotency key is published once, also by two at the same time, and is remembered after its delivery', async () => {
  const { database, outbox } = await open()
  const publish = () => outbox.publish('order.paid', { orderId: 1 }, { idempotencyKey: 'pay-1' })
  const ids = await Promise.all([publish(), publish(), publish()])
  expect(ids.filter((id) => id !== undefined)).toHaveLength(1)
  const { events } = collect(outbox)
  await until(async () => (await rowsOf(database))[0]?.state === 'delivered')
  expect(await publish()).toBeUndefined()
  // One that is rolled back frees its key.
  const again = { idempotencyKey: 'pay-2' }
  const undone = database.transaction(async () => {
    await outbox.publish('order.paid', { orderId: 2 }, again)
    throw new Error('no')
  })
  await expect(undone).rejects.toThrow('no')
  const many = await outbox.publishMany([
    { topic: 'order.paid', payload: { orderId: 2 }, ...again },
    { topic: 'order.paid', payload: { orderId: 3 } },
    { topic: 'order.paid', payload: { orderId: 2 }, ...again },
    { topic: 'order.paid', payload: { orderId: 1 }, idempotencyKey: 'pay-1' },
    { topic: 'order.paid', payload: { orderId: 4 } },
  ])
  expect(many.map((id) => id !== undefined)).toEqual([true, true, false, false, true])
  await until(() => events.length === 4)
  const orders = events.map(({ payload }) => (payload as Topics['order.paid']).orderId)
  expect(orders.toSorted((one, other) => one - other)).toEqual([1, 2, 3, 4])
  // Their payload is not kept with them.
  const kept = await database.query(
    sql<{ payload: unknown }>`select payload from kanta.outbox where state = 'delivered'`,
  )
  for (const { payload } of kept) expect(payload).toBeNull()
})

test('events of a key come in the order of their commits from transactions that overlap, one after the other', async () => {
  const { database, outbox } = await open()
  const began = Promise.withResolvers<void>()
  const first = database.transaction(async () => {
    await outbox.publish('order.paid', { orderId: 1 }, { key: 'a' })
    began.resolve()
    await until(async () => waiting() > 0)
    await outbox.publish('order.paid', { orderId: 2 }, { key: 'a' })
  })
  let waits = 0
  const waiting = (): number => waits
  await began.promise
  const second = outbox.publish('order.paid', { orderId: 3 }, { key: 'a' })
  const free = outbox.publish('order.paid', { orderId: 9 }, { key: 'b' })
  // Another key does not wait.
  await free
  waits = 1
  await Promise.all([first, second])
  const { events } = collect(outbox)
  await until(() => events.length === 4)
  const ofA = events.filter(({ key }) => key === 'a').map(({ payload }) => payload)
  expect(ofA).toEqual([{ orderId: 1 }, { orderId: 2 }, { orderId: 3 }])
})

test('a failure holds up its key and no other, is tried again with the same event, and order is kept', async () => {
  const { database, outbox } = await open()
  const seen: string[] = []
  const failures: RelayFailure[] = []
  let failsLeft = 2
  for (let n = 1; n <= 5; n += 1) {
    await outbox.publish('user.left', { name: `a${n}` }, { key: 'a' })
    await outbox.publish('user.left', { name: `b${n}` }, { key: 'b' })
  }
  await using _relay = outbox.relay(
    (event) => {
      const { name } = event.payload as Topics['user.left']
      if (name === 'a2' && failsLeft > 0) {
        failsLeft -= 1
        throw new Error(`secret of ${name}`)
      }
      seen.push(name)
    },
    { baseDelayMs: 20, onFailure: (failure) => void failures.push(failure) },
  )
  await until(() => seen.length === 10)
  expect(seen.filter((name) => name.startsWith('a'))).toEqual(['a1', 'a2', 'a3', 'a4', 'a5'])
  expect(seen.filter((name) => name.startsWith('b'))).toEqual(['b1', 'b2', 'b3', 'b4', 'b5'])
  expect(seen.indexOf('b5')).toBeLessThan(seen.indexOf('a2'))
  expect(failures.map(({ event, isDead }) => [event?.attempt, isDead])).toEqual([
    [1, false],
    [2, false],
  ])
  await until(async () => (await rowsOf(database)).length === 0)
})

test('after maxAttempts, or at once when it says so, an event is a dead letter that lets its key go on', async () => {
  const { database, outbox } = await open()
  const seen: string[] = []
  let isMended = false
  for (const name of ['poison', 'next', 'refused', 'last']) await outbox.publish('user.left', { name }, { key: 'k' })
  await using _relay = outbox.relay(
    (event) => {
      const { name } = event.payload as Topics['user.left']
      if (!isMended && name === 'poison') throw new TypeError(`cannot read ${name}`)
      if (!isMended && name === 'refused') throw new DeliveryError('The receiver refuses it.', { isFinal: true })
      seen.push(name)
    },
    { maxAttempts: 3, baseDelayMs: 5, pollMs: 50 },
  )
  await until(() => seen.includes('last'))
  expect(seen).toEqual(['next', 'last'])
  await until(async () => (await rowsOf(database)).length === 2)
  const letters = await outbox.deadLetters()
  expect(letters).toMatchObject([
    {
      topic: 'user.left',
      key: 'k',
      payload: { name: 'poison' },
      attempt: 3,
      error: expect.stringMatching(/^TypeError at /),
    },
    { payload: { name: 'refused' }, attempt: 1, error: 'DeliveryError DELIVERY_FAILED: The receiver refuses it.' },
  ])
  expect(letters[0]?.error).not.toContain('poison')
  expect(await outbox.deadLetters({ after: letters[0]?.id, limit: 5 })).toHaveLength(1)
  expect(await outbox.stats()).toEqual({ waiting: 0, inFlight: 0, dead: 2, oldestMs: 0 })
  isMended = true
  // With the transaction, like all else.
  const undone = database.transaction(async () => {
    expect(await outbox.retryDead('all')).toBe(2)
    throw new Error('no')
  })
  await expect(undone).rejects.toThrow('no')
  expect(await outbox.retryDead([letters[0]?.id as string])).toBe(1)
  await until(() => seen.includes('poison'))
  expect(await outbox.discardDead('all')).toBe(1)
  await until(async () => (await rowsOf(database)).length === 0)
})

test('a pause that is no time does not keep the relay from settling anything', async () => {
  const { outbox } = await open()
  const seen: number[] = []
  const pauses = [Number.NaN, Number.POSITIVE_INFINITY]
  const relay = outbox.relay(
    (event: EventOf<Topics>) => {
      if (event.topic !== 'order.paid') return
      seen.push(event.payload.orderId)
      if (event.attempt === 1) throw new DeliveryError('busy', { retryAfterMs: pauses[event.payload.orderId] })
    },
    { pollMs: 50, baseDelayMs: 10 },
  )
  onTestFinished(() => relay.close())
  await outbox.publishMany([0, 1, 2].map((orderId) => ({ topic: 'order.paid', payload: { orderId } })))
  await until(() => relay.stats().delivered === 2)
  expect(seen.toSorted((one, other) => one - other)).toEqual([0, 0, 1, 2, 2])
  await until(async () => (await outbox.stats()).waiting === 1)
})

test('a delayed event waits for its time, by the clock of the server, and its key behind it', async () => {
  const { database, outbox } = await open()
  const { events } = collect(outbox, { pollMs: 10_000 })
  await outbox.publish('user.left', { name: 'later' }, { availableAfterMs: 300, key: 'k' })
  await outbox.publish('user.left', { name: 'behind' }, { key: 'k' })
  await outbox.publish('user.left', { name: 'now' })
  await until(() => events.length === 3)
  expect(events.map(({ payload }) => payload)).toEqual([{ name: 'now' }, { name: 'later' }, { name: 'behind' }])
  const waited = await database.queryValue<number>(
    sql`select extract(epoch from statement_timestamp() - ${events[1]?.publishedAt}::timestamptz) * 1000`,
  )
  expect(Number(waited)).toBeGreaterThanOrEqual(300)
})

test('many relays share the work: each event once, keys in order, and a key is never handled twice at a time', async () => {
  const url = await freshDatabaseUrl('empty')
  const { outbox } = await open({}, url)
  const sites = await Promise.all([open({}, url), open({}, url), open({}, url)])
  const keys = 20
  const each = 30
  await outbox.publishMany(
    Array.from({ length: keys * each }, (_, n) => ({
      topic: 'order.paid' as const,
      payload: { orderId: n },
      key: `k${n % keys}`,
    })),
  )
  const byKey = new Map<string, number[]>()
  const busy = new Set<string>()
  let overlaps = 0
  let count = 0
  for (const site of sites) {
    const relay = site.outbox.relay(
      async (event) => {
        const key = event.key as string
        if (busy.has(key)) overlaps += 1
        busy.add(key)
        await new Promise(setImmediate)
        busy.delete(key)
        byKey.set(key, [...(byKey.get(key) ?? []), (event.payload as Topics['order.paid']).orderId])
        count += 1
      },
      { batchSize: 25, concurrency: 4, pollMs: 20 },
    )
    onTestFinished(() => relay.close())
  }
  await until(() => count >= keys * each)
  expect(count).toBe(keys * each)
  expect(overlaps).toBe(0)
  for (const [key, orders] of byKey) {
    expect([key, orders]).toEqual([key, orders.toSorted((one, other) => one - other)])
  }
})

test('a long queue of one key that is slow, or slow handlers, leave the other handlers to the others', async () => {
  const slow = Array.from({ length: 100 }, (_, orderId) => ({
    topic: 'order.paid' as const,
    payload: { orderId },
    key: 'slow',
  }))
  const release = Promise.withResolvers<void>()
  for (const batchSize of [100, 1]) {
    // Of one key all are behind one handler; without keys each has its own.
    const events = batchSize === 1 ? slow.slice(0, 6).map(({ key: _key, ...event }) => event) : slow
    const { outbox } = await open()
    await outbox.publishMany(events)
    const seen: string[] = []
    await using relay = outbox.relay(
      async (event) => {
        if (event.topic === 'order.paid') await release.promise
        else seen.push(event.payload.name)
      },
      { pollMs: 50, concurrency: 10, batchSize, drainTimeoutMs: 0 },
    )
    await until(() => relay.stats().inHand === events.length)
    await outbox.publish('user.left', { name: 'other' }, { key: 'other' })
    await until(() => seen.length === 1)
  }
  release.resolve()
})

test('a long queue behind one key that fails does not hold up the others', async () => {
  const { database, outbox } = await open()
  await outbox.publishMany(
    Array.from({ length: 1_500 }, (_, orderId) => ({
      topic: 'order.paid' as const,
      payload: { orderId },
      key: 'stuck',
    })),
  )
  await outbox.publish('user.left', { name: 'free' }, { key: 'other' })
  const seen: string[] = []
  let isStuck = true
  const orders: number[] = []
  await using _relay = outbox.relay(
    (event) => {
      if (event.topic === 'user.left') seen.push(event.payload.name)
      else if (isStuck) throw new DeliveryError('not now', { retryAfterMs: 600_000 })
      else orders.push(event.payload.orderId)
    },
    { batchSize: 50, pollMs: 50 },
  )
  await until(() => seen.length === 1)
  const parked = await database.queryCount(sql`select count(*) from kanta.outbox where is_parked`)
  expect(parked).toBeGreaterThan(900)
  // When the first of them goes on, all do at once, and not when they would have been looked at again.
  isStuck = false
  await database.query(
    sql`update kanta.outbox set due_at = now() where not is_parked and key = 'stuck' and attempts > 0`,
  )
  await until(() => orders.length === 1_500)
  expect(orders).toEqual(Array.from({ length: 1_500 }, (_, n) => n))
})

test('what a relay that is gone had claimed comes back after its lease, and its late answer changes nothing', async () => {
  const url = await freshDatabaseUrl('empty')
  const frozen = await open({}, url)
  const { database, outbox } = await open({}, url)
  await outbox.publish('user.left', { name: 'twice' }, { key: 'k' })
  await outbox.publish('user.left', { name: 'behind' }, { key: 'k' })
  const answer = Promise.withResolvers<void>()
  const began = Promise.withResolvers<AbortSignal>()
  const late = frozen.outbox.relay(
    async (_event, { signal }) => {
      began.resolve(signal)
      await answer.promise
    },
    { leaseMs: 60_000, drainTimeoutMs: 50, batchSize: 1, concurrency: 1 },
  )
  const signal = await began.promise
  // As if its process had stood still for longer than its lease.
  await database.query(sql`update kanta.outbox set leased_until = now() - interval '1 second'`)
  const { events } = collect(outbox)
  await until(() => events.length === 2)
  expect(events.map(({ payload, attempt }) => [payload, attempt])).toEqual([
    [{ name: 'twice' }, 2],
    [{ name: 'behind' }, 1],
  ])
  await until(async () => (await rowsOf(database)).length === 0)
  expect(signal.aborted).toBe(false)
  answer.resolve()
  await late.close()
})

test('a handler that outlives its lease is told, and its answer does not end what another has claimed', async () => {
  const { database, outbox } = await open()
  await outbox.publish('user.left', { name: 'x' })
  const began = Promise.withResolvers<AbortSignal>()
  const answer = Promise.withResolvers<void>()
  await using _relay = outbox.relay(
    async (_event, context) => {
      began.resolve(context.signal)
      await answer.promise
    },
    { leaseMs: 300, drainTimeoutMs: 50 },
  )
  const signal = await began.promise
  await database.query(
    sql`update kanta.outbox set lease = gen_random_uuid(), leased_until = now() + interval '1 minute'`,
  )
  await until(() => signal.aborted)
  answer.resolve()
  await until(() => _relay.stats().inHand === 0)
  expect(await rowsOf(database)).toMatchObject([{ state: 'waiting', attempts: 1 }])
})

test('a lease is renewed while its handler runs', async () => {
  const { database, outbox } = await open()
  await outbox.publish('user.left', { name: 'slow' })
  const answer = Promise.withResolvers<void>()
  let calls = 0
  const relays = [1, 2].map(() =>
    outbox.relay(
      async () => {
        calls += 1
        await answer.promise
      },
      { leaseMs: 600, pollMs: 20 },
    ),
  )
  const end = await database.queryValue<Date>(sql`select now() + interval '1500 milliseconds'`)
  await until(() => database.queryBoolean(sql`select now() > ${end}::timestamptz`))
  expect(calls).toBe(1)
  answer.resolve()
  await until(async () => (await rowsOf(database)).length === 0)
  expect(calls).toBe(1)
  await Promise.all(relays.map((relay) => relay.close()))
})

test('a lease is renewed while handlers use up the pool', async () => {
  const postgres = { url: await freshDatabaseUrl('empty'), pool: { max: 1 } }
  const database = closeAfterTest(await createDatabase({ postgres, redis: false, logger: quiet }))
  const outbox = await createOutbox<Topics>(database)
  await outbox.publish('user.left', { name: 'x' })
  let calls = 0
  await using relay = outbox.relay(
    async () => {
      calls += 1
      await database.transaction(async () => {
        await database.query(sql`select 1`)
        await sleep(1_000)
      })
    },
    { leaseMs: 300 },
  )
  await until(() => relay.stats().delivered === 1)
  expect(calls).toBe(1)
})

test('a handler that does not end in time has failed, and is told', async () => {
  const { outbox } = await open()
  await outbox.publish('user.left', { name: 'slow' })
  const reasons: unknown[] = []
  await using _relay = outbox.relay(
    async (event, { signal }) => {
      if (event.attempt > 1) return
      signal.addEventListener('abort', () => reasons.push(signal.reason))
      await new Promise(() => undefined)
    },
    { timeoutMs: 50, baseDelayMs: 1 },
  )
  await until(() => _relay.stats().delivered === 1)
  expect(reasons).toMatchObject([{ code: 'DELIVERY_FAILED', message: expect.stringContaining('within 50 ms') }])
})

test('close waits for handlers that run, and gives back what none has begun without counting it', async () => {
  const { database, outbox } = await open()
  await outbox.publishMany([1, 2, 3].map((orderId) => ({ topic: 'order.paid', payload: { orderId }, key: 'k' })))
  const began = Promise.withResolvers<void>()
  const answer = Promise.withResolvers<void>()
  const relay = outbox.relay(async () => {
    began.resolve()
    await answer.promise
  })
  await began.promise
  await until(() => relay.stats().inHand === 3)
  const closed = relay.close()
  answer.resolve()
  await closed
  expect(relay.stats()).toMatchObject({ delivered: 1, failed: 0, inHand: 0 })
  expect(await rowsOf(database)).toMatchObject([
    { state: 'waiting', attempts: 0 },
    { state: 'waiting', attempts: 0 },
  ])
  expect((await outbox.stats()).inFlight).toBe(0)
})

test('close does not wait for a server that does not answer', async () => {
  const server = await silenced(await freshDatabaseUrl('empty'))
  const postgres = { url: server.url, pool: { max: 5 } }
  const database = await createDatabase({ postgres, redis: false, logger: quiet })
  const outbox = await createOutbox<Topics>(database)
  const began = Promise.withResolvers<void>()
  const simple = saga('simple').step('one', { run: () => began.promise })
  const sagas = await createSagas(database, [simple], { drainTimeoutMs: 100, logger: quiet })
  const relay = outbox.relay(() => began.promise, { drainTimeoutMs: 100, onFailure: () => undefined })
  await outbox.publish('user.left', { name: 'x' })
  await sagas.start(simple, undefined)
  await until(() => relay.stats().inHand === 1)
  server.silence()
  began.resolve()
  const since = performance.now()
  await Promise.all([relay.close(), sagas.close()])
  expect(performance.now() - since).toBeLessThan(12_000)
  server.end()
  await database.close()
}, 60_000)

test('closing the database ends its relays in order', async () => {
  const url = await freshDatabaseUrl('empty')
  const { database, outbox } = await open({}, url)
  const other = await open({}, url)
  await outbox.publish('user.left', { name: 'x' })
  const began = Promise.withResolvers<void>()
  outbox.relay(async () => {
    began.resolve()
    await new Promise(setImmediate)
  })
  await began.promise
  await database.close()
  expect(await rowsOf(other.database)).toEqual([])
})

test('a batch holds one event of each key at most, and what its report names is tried again', async () => {
  const { outbox } = await open()
  await outbox.publishMany(
    [1, 2, 3, 4, 5, 6].map((orderId) => ({
      topic: 'order.paid',
      payload: { orderId },
      key: orderId % 2 ? 'odd' : 'even',
    })),
  )
  await outbox.publishMany([7, 8].map((orderId) => ({ topic: 'order.paid', payload: { orderId } })))
  const delivered: number[] = []
  const batches: (string | undefined)[][] = []
  let hasFailed = false
  await using _relay = outbox.relay(
    (events) => {
      batches.push(events.map(({ key }) => key))
      const failed = hasFailed ? [] : events.filter(({ key }) => key === 'odd')
      hasFailed = true
      for (const event of events) {
        if (!failed.includes(event)) delivered.push((event.payload as Topics['order.paid']).orderId)
      }
      return { failed: failed.map(({ id }) => ({ id, error: new Error('odd') })) }
    },
    { batch: true, baseDelayMs: 10, pollMs: 50 },
  )
  await until(() => delivered.length === 8)
  expect(delivered.filter((n) => n % 2 === 1 && n < 7)).toEqual([1, 3, 5])
  expect(delivered.filter((n) => n % 2 === 0 && n < 7)).toEqual([2, 4, 6])
  for (const keys of batches) {
    const named = keys.filter((key) => key !== undefined)
    expect(new Set(named).size).toBe(named.length)
  }
  // A handler that throws has failed with all of them.
  await outbox.publish('user.left', { name: 'x' })
})

test('outboxes of different names do not see each other', async () => {
  const { database, outbox } = await open()
  const mail = await createOutbox<Topics>(database, { name: 'mail' })
  const { events } = collect(mail)
  await outbox.publish('user.left', { name: 'default' })
  await mail.publish('user.left', { name: 'mail' })
  await until(() => events.length === 1)
  expect(events[0]?.payload).toEqual({ name: 'mail' })
  expect(await outbox.stats()).toMatchObject({ waiting: 1, inFlight: 0, dead: 0 })
})

test('delivered events are kept for retainMs, and then pruned', async () => {
  const { database, outbox } = await open({ retainMs: 60_000 })
  await outbox.publish('user.left', { name: 'kept' })
  const first = collect(outbox)
  await until(async () => (await rowsOf(database))[0]?.state === 'delivered')
  await first.relay.close()
  await database.query(sql`update kanta.outbox set expires_at = now()`)
  collect(outbox)
  await until(async () => (await rowsOf(database)).length === 0)
})

test('a relay that is started inside a transaction works outside of it', async () => {
  const { database, outbox } = await open()
  const events: unknown[] = []
  const relay = await database.transaction(async () => {
    const started = outbox.relay((event) => void events.push(event.payload))
    await outbox.publish('user.left', { name: 'x' })
    return { started }
  })
  await until(() => events.length === 1)
  await relay.started.close()
})

test('a claim changes no index: what is claimed and given back stays on its page', async () => {
  const { database, outbox } = await open()
  await outbox.publishMany(Array.from({ length: 10 }, (_, orderId) => ({ topic: 'order.paid', payload: { orderId } })))
  const closing = Promise.withResolvers<void>()
  const relay = outbox.relay(() => closing.promise, { drainTimeoutMs: 10, concurrency: 1 })
  await until(() => relay.stats().inHand === 10)
  await relay.close()
  closing.resolve()
  await until(async () => {
    const stats = await database.queryOne(sql<{ updated: string; hot: string }>`
      select n_tup_upd as updated, n_tup_hot_upd as hot from pg_stat_user_tables where relname = 'outbox'`)
    return Number(stats?.updated) >= 20 && stats?.hot === stats?.updated
  })
})

test('publishing more keys than the lock table should hold works, beside others that publish with keys', async () => {
  const { outbox } = await open()
  const many = Array.from({ length: 3_000 }, (_, orderId) => ({
    topic: 'order.paid' as const,
    payload: { orderId },
    key: `k${orderId}`,
  }))
  const others = Array.from({ length: 20 }, (_, n) => outbox.publish('user.left', { name: 'x' }, { key: `k${n}` }))
  const [ids] = await Promise.all([outbox.publishMany(many), ...others])
  expect(ids.every((id, index) => index === 0 || BigInt(id ?? 0) > BigInt(ids[index - 1] ?? 0))).toBe(true)
  expect((await outbox.stats()).waiting).toBe(3_020)
})

test('on the embedded PostgreSQL it is the same', async () => {
  await using database = await createDatabase({ postgres: { embedded: {} }, redis: false, logger: quiet })
  const outbox = await createOutbox<Topics>(database)
  const { events, relay } = collect(outbox)
  await database.transaction(async () => {
    await outbox.publish('user.left', { name: 'a' }, { key: 'k' })
    await outbox.publish('user.left', { name: 'b' }, { key: 'k' })
  })
  await until(() => events.length === 2)
  expect(events.map(({ payload }) => payload)).toEqual([{ name: 'a' }, { name: 'b' }])
  await relay.close()
  expect(await outbox.stats()).toEqual({ waiting: 0, inFlight: 0, dead: 0, oldestMs: 0 })
})
