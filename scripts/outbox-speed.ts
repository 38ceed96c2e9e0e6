/**
 * `node scripts/outbox-speed.ts`: how many events an outbox takes and relays on the server of DATABASE_URL, in a schema `kanta` that it
 * makes there. Prints a table as it stands in docs/outbox.md.
 */

import { sql } from 'kysely'
import { createDatabase, createOutbox, type RelayOptions } from '../src/index.ts'

const logger = { info: () => undefined, warn: console.warn }
await using database = await createDatabase({ redis: false, logger })
const outbox = await createOutbox<{ step: { order: number; text: string } }>(database, { name: 'speed' })
const payload = (order: number) => ({ order, text: 'x'.repeat(100) })

async function measure(what: string, count: number, run: () => Promise<unknown>): Promise<void> {
  const begin = performance.now()
  await run()
  const seconds = (performance.now() - begin) / 1_000
  console.log(`| ${what} | ${Math.round(count / seconds)} |`)
}

async function inParallel(callers: number, each: number, work: (n: number) => Promise<unknown>): Promise<void> {
  const calls = async (_: unknown, caller: number): Promise<void> => {
    for (let n = 0; n < each; n += 1) await work(caller * each + n)
  }
  await Promise.all(Array.from({ length: callers }, calls))
}

const empty = (): Promise<unknown> => database.query(sql`delete from kanta.outbox where outbox = 'speed'`)

async function drained(count: number, options: RelayOptions & { readonly batch?: false }): Promise<void> {
  const done = Promise.withResolvers<void>()
  let delivered = 0
  const relay = outbox.relay(() => {
    delivered += 1
    if (delivered === count) done.resolve()
  }, options)
  await done.promise
  await relay.close()
}

async function fill(count: number, keys: number): Promise<void> {
  const events = Array.from({ length: count }, (_, n) => ({
    topic: 'step' as const,
    payload: payload(n),
    ...(keys > 0 && { key: `k${n % keys}` }),
  }))
  for (let from = 0; from < count; from += 5_000) await outbox.publishMany(events.slice(from, from + 5_000))
  await database.query(sql`vacuum analyze kanta.outbox`)
}

console.log('| what | events per second |\n|---|--:|')
await empty()
const few = 4_800
await measure('`publish`, one caller', few, () => inParallel(1, few, (n) => outbox.publish('step', payload(n))))
await empty()
await measure('`publish`, 16 callers', few, () => inParallel(16, few / 16, (n) => outbox.publish('step', payload(n))))
await empty()
await measure('`publish` with a key of its own, 16 callers', few, () =>
  inParallel(16, few / 16, (n) => outbox.publish('step', payload(n), { key: `k${n}` })),
)
await empty()
const many = 20_000
await measure('`publishMany` of 1 000', many, () =>
  inParallel(1, many / 1_000, (n) =>
    outbox.publishMany(Array.from({ length: 1_000 }, (_, m) => ({ topic: 'step', payload: payload(n * 1_000 + m) }))),
  ),
)
for (const [what, keys] of [
  ['without keys', 0],
  ['1 000 keys', 1_000],
  ['one key', 1],
] as const) {
  await empty()
  await fill(many, keys)
  await measure(`one relay, ${what}, handler that does nothing`, many, () => drained(many, { batchSize: 500 }))
}
await empty()
