/**
 * `node scripts/cache-session.ts`: two processes read the same value through the cache all the time and change it in turn, while
 * Redis is killed and started again. What they see is in docs/cache.md.
 */

import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { Client } from 'pg'
import { createDatabase } from '../src/index.ts'
import { startPostgres, startRedis } from '../test/support/servers.ts'

interface Order {
  /** The new price; without one, the end. */
  readonly price?: number
}

const began = Number(process.env['SESSION_BEGAN'] ?? Date.now())

function say(who: string, text: string): void {
  console.log(`${((Date.now() - began) / 1_000).toFixed(1).padStart(4)} s  ${who}: ${text}`)
}

/** One of the two: says what it reads whenever that has changed, and does as it is told. */
async function takePart(name: string, postgres: string, redis: string): Promise<void> {
  const logger = { info: () => undefined, warn: () => undefined }
  const database = await createDatabase<never>({
    postgres: { url: postgres, pool: { max: 2 } },
    redis: { url: redis },
    cache: { namespace: 'session', ttlMs: 600_000 },
    logger,
  })
  const { cache } = database
  database.events.on('cache', ({ state }) =>
    say(name, state === 'trusted' ? 'hears of all that is ended' : 'may have missed something, and empties its memory'),
  )
  process.on('message', ({ price }: Order) => void (price === undefined ? end() : write(price)))

  async function write(price: number): Promise<void> {
    await database.transaction(async () => {
      await database.query(sql`update shop set price = ${price}`)
      await cache.invalidate({ tags: ['shop'] })
    })
    say(name, `has committed ${price}${cache.stats().queued > 0 ? '; Redis is to be told later' : ''}`)
  }

  async function end(): Promise<void> {
    const { memoryHits, redisHits, loads } = cache.stats()
    say(name, `${memoryHits} reads from memory, ${redisHits} from Redis, ${loads} from PostgreSQL`)
    await database.close()
    process.disconnect()
  }

  process.send?.('ready')
  const load = (): Promise<number | undefined> => database.queryValue<number>(sql`select price from shop`)
  for (let last: unknown; !database.isClosed; await sleep(2)) {
    const now = await cache.getOrSet('price', load, { tags: ['shop'] })
    if (now !== last) say(name, `reads ${now}`)
    last = now
  }
}

async function direct(): Promise<void> {
  const postgres = await startPostgres({ inMemory: true })
  const redis = await startRedis()
  const client = new Client(postgres.url)
  await client.connect()
  await client.query('create table shop (price int); insert into shop values (100)')
  await client.end()
  const open = async (name: string): Promise<ChildProcess> => {
    const env = { ...process.env, SESSION_BEGAN: String(began) }
    const child = fork(import.meta.filename, [name, postgres.url, redis.url], { env })
    await once(child, 'message')
    return child
  }
  const [one, two] = [await open('one'), await open('two')]
  await sleep(500)
  one.send({ price: 101 })
  await sleep(500)
  two.send({ price: 102 })
  await sleep(500)
  say('---', 'Redis is killed')
  await redis.kill('SIGKILL')
  await sleep(700)
  one.send({ price: 103 })
  await sleep(1_500)
  two.send({ price: 104 })
  await sleep(1_500)
  say('---', 'Redis is started again, empty')
  await redis.restart()
  await sleep(2_000)
  one.send({ price: 105 })
  await sleep(500)
  for (const child of [one, two]) {
    child.send({})
    await once(child, 'exit')
  }
  await Promise.all([postgres.stop(), redis.stop()])
}

const [name, postgres, redis] = process.argv.slice(2)
await (name === undefined ? direct() : takePart(name, postgres ?? '', redis ?? ''))
