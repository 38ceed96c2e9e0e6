import { randomBytes } from 'node:crypto'
import { Redis } from 'ioredis'
import { afterAll, beforeAll, expect, inject, test, vi } from 'vitest'
import { channel, createDatabase, type Database, type NotificationGap } from '../../src/index.ts'
import { closeAfterTest, freshDatabaseUrl } from '../support/database.ts'
import { startProxy } from '../../src/testing/fault-proxy.ts'
import { type OwnServer, startRedis } from '../support/servers.ts'

const warnings: string[] = []
let ownRedis: OwnServer

beforeAll(async () => {
  ownRedis = await startRedis()
})
afterAll(() => ownRedis.stop())

async function open(redisUrl: string | false = inject('redisUrl')): Promise<Database<never>> {
  warnings.length = 0
  const database = await createDatabase<never>({
    postgres: { url: await freshDatabaseUrl('empty'), pipeline: false, pool: { max: 2 } },
    redis: redisUrl === false ? false : { url: redisUrl, commandTimeoutMs: 300 },
    logger: { info: () => undefined, warn: (message) => void warnings.push(message) },
  })
  closeAfterTest(database)
  if (redisUrl !== false) await vi.waitUntil(() => database.stats().redis?.isReady)
  return database
}

interface Price {
  readonly sku: string
  readonly minor: number
}

/** Tests share a Redis. */
const ownName = (): string => `prices-${randomBytes(4).toString('hex')}`

test('messages arrive typed and in order in every process, text on a plain name, and from other programs', async () => {
  const [sender, receiver] = [await open(), await open()]
  const prices = channel<Price>(ownName())
  const log = ownName()
  const received: Price[] = []
  const texts: string[] = []
  await receiver.subscribe(prices, (price) => received.push(price))
  await receiver.subscribe(log, (text) => texts.push(text))
  for (let minor = 1; minor <= 100; minor += 1) await sender.publish(prices, { sku: 'ä', minor })
  await sender.publish(log, 'déjà\0vu')
  const other = new Redis(inject('redisUrl'))
  await other.publish(prices.name, '{"sku":"b","minor":101}')
  await other.quit()
  await vi.waitUntil(() => received.length === 101 && texts.length === 1)
  expect(received.map(({ minor }) => minor)).toEqual(Array.from({ length: 101 }, (_, n) => n + 1))
  expect(texts).toEqual(['déjà\0vu'])
  expect(receiver.stats().redis).toMatchObject({ isReady: true, breaker: 'closed', subscriptions: 2, waiting: 0 })
})

test('inside a transaction a message goes out with the commit, and never after a rollback', async () => {
  const database = await open()
  const name = ownName()
  const texts: string[] = []
  await database.subscribe(name, (text) => texts.push(text))
  const undone = database.transaction(async () => {
    await database.publish(name, 'of what was undone')
    throw new Error('changed my mind')
  })
  await expect(undone).rejects.toThrow('changed my mind')
  await database.transaction(async () => {
    await database.publish(name, 'first')
    const inner = database.transaction(async () => {
      await database.publish(name, 'of a savepoint that was undone')
      throw new Error('only this')
    })
    await inner.catch(() => undefined)
    await database.publish(name, 'second')
    expect(texts).toEqual([])
  })
  await vi.waitUntil(() => texts.length === 2)
  await database.publish(name, 'last')
  await vi.waitUntil(() => texts.length === 3)
  expect(texts).toEqual(['first', 'second', 'last'])
})

test('when Redis was away, a subscriber hears again, and is told that messages are missing', async () => {
  const database = await open(ownRedis.url)
  const name = ownName()
  const heard: (NotificationGap | string)[] = []
  await database.subscribe(name, (text) => heard.push(text), { onGap: (gap) => heard.push(gap) })
  await database.publish(name, 'before')
  await vi.waitUntil(() => heard.length === 1)
  await ownRedis.kill('SIGKILL')
  await expect(database.publish(name, 'lost')).rejects.toMatchObject({ code: 'REDIS_UNAVAILABLE' })
  await ownRedis.restart()
  await vi.waitUntil(() => heard.length === 2)
  await vi.waitUntil(() => database.stats().redis?.isReady)
  await database.publish(name, 'after')
  await vi.waitUntil(() => heard.length === 3)
  expect(heard).toEqual(['before', { dropped: 0, disconnected: true }, 'after'])
})

test('a link that is dead without a word is noticed, and a warning says what to do', async () => {
  const proxy = await startProxy({ to: ownRedis.url, protocol: 'raw' })
  try {
    const database = await open(proxy.url)
    const name = ownName()
    const texts: string[] = []
    await database.subscribe(name, (text) => texts.push(text))
    proxy.freeze()
    const sender = new Redis(ownRedis.url)
    await sender.publish(name, 'unheard')
    await vi.waitUntil(() => !database.stats().cache.isTrusted, 5_000)
    proxy.thaw()
    await vi.waitUntil(() => warnings.some((warning) => warning.includes('has missed notifications')), 5_000)
    await sender.publish(name, 'heard')
    await vi.waitUntil(() => texts.includes('heard'))
    await sender.quit()
    await database.close()
  } finally {
    await proxy.close()
  }
})

test('a loop reads what comes, and ends with the subscription or the database', async () => {
  const database = await open()
  const name = ownName()
  const stream = await database.subscribe(name)
  await database.publish(name, 'a')
  await database.publish(name, 'b')
  const texts: string[] = []
  for await (const text of stream) {
    texts.push(text)
    if (texts.length === 2) break
  }
  expect(texts).toEqual(['a', 'b'])
  expect(database.stats().redis?.subscriptions).toBe(0)
  const endless = await database.subscribe(name)
  const reading = (async () => {
    for await (const text of endless) texts.push(text)
  })()
  await database.close()
  await reading
  await expect(database.subscribe(name, () => undefined)).rejects.toMatchObject({ code: 'DATABASE_CLOSED' })
})

test('a handler that is slow loses the oldest and is told how many, one that fails stops nothing', async () => {
  const database = await open()
  const name = ownName()
  const gate = Promise.withResolvers<void>()
  const heard: (number | string)[] = []
  const failing = await database.subscribe(name, () => {
    throw new Error('of the handler')
  })
  await database.subscribe(
    name,
    async (text) => {
      heard.push(text)
      await gate.promise
    },
    { bufferSize: 2, onGap: ({ dropped }) => heard.push(dropped) },
  )
  await database.publish(name, '0')
  await vi.waitUntil(() => heard.length === 1)
  for (let n = 1; n <= 5; n += 1) await database.publish(name, String(n))
  await vi.waitUntil(() => database.stats().redis?.dropped === 3)
  await failing.close()
  gate.resolve()
  await vi.waitUntil(() => heard.length === 4)
  expect(heard).toEqual(['0', 3, '4', '5'])
  expect(warnings.some((warning) => warning.includes('of the handler'))).toBe(true)
})

test('what is no payload of the channel is reported and reaches no handler', async () => {
  const database = await open()
  const prices = channel(ownName(), (value): Price => {
    if (typeof value !== 'object' || value === null || !('sku' in value)) throw new Error('no price')
    return value as Price
  })
  const failures: unknown[] = []
  database.events.on('notificationFailure', ({ reason }) => failures.push(reason))
  const received: Price[] = []
  await database.subscribe(prices, (price) => received.push(price))
  await database.publish(prices.name, 'secret, no JSON')
  await database.publish(prices.name, '{"none":1}')
  await database.publish(prices, { sku: 'a', minor: 1 })
  await vi.waitUntil(() => received.length === 1)
  expect(failures).toEqual(['payload', 'payload'])
  expect(warnings.join()).not.toContain('secret')
})

test('bad input and a Redis that is not there are refused at once', async () => {
  const database = await open()
  const large = 'x'.repeat(1_048_577)
  await expect(database.publish('c', large)).rejects.toMatchObject({ code: 'NOTIFICATION_TOO_LARGE' })
  await expect(database.publish(channel('c'), 1n)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  await expect(database.publish('', '')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  await expect(database.subscribe('', () => undefined)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  await expect(database.subscribe('c', () => undefined, { bufferSize: 0 })).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
  })
  const without = await open(false)
  await expect(without.publish('c', '')).rejects.toMatchObject({ code: 'REDIS_UNAVAILABLE' })
  await expect(without.subscribe('c', () => undefined)).rejects.toMatchObject({ code: 'REDIS_UNAVAILABLE' })
  expect(without.stats().redis).toBeUndefined()
})

test('to subscribe while Redis is away fails in time, and leaves nothing behind', async () => {
  const database = await open(ownRedis.url)
  await ownRedis.kill('SIGKILL')
  try {
    const began = performance.now()
    await expect(database.subscribe('c', () => undefined)).rejects.toMatchObject({ code: 'REDIS_UNAVAILABLE' })
    expect(performance.now() - began).toBeLessThan(3_000)
    expect(database.stats().redis).toMatchObject({ subscriptions: 0, isReady: false })
  } finally {
    await ownRedis.restart()
  }
})
