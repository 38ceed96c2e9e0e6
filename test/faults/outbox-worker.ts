/**
 * A process that publishes or relays until it is killed: `node outbox-worker.ts <options as JSON>`. What it did it writes into tables, in
 * the transaction of each event or before it answers for one, so that nothing depends on its own word.
 */

import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { createDatabase, createOutbox } from '../../src/index.ts'

/** What it is started with, as JSON in its first argument. */
export interface WorkerOptions {
  readonly kind: 'publish' | 'relay'
  readonly postgresUrl: string
  /** Apart from those of others. */
  readonly name: string
  readonly keys: number
}

interface Topics {
  readonly step: { readonly name: string; readonly number: number; readonly isUndone: boolean }
}

const { kind, postgresUrl, name, keys } = JSON.parse(process.argv[2] ?? '') as WorkerOptions
const logger = { info: () => undefined, warn: () => undefined }
const database = await createDatabase({ postgres: { url: postgresUrl, pool: { max: 6 } }, redis: false, logger })
const outbox = await createOutbox<Topics>(database)
process.send?.('ready')

if (kind === 'relay') {
  outbox.relay(
    async ({ id, key, payload }) => {
      // In a transaction of its own, as another service would record it: it may well be there before the relay hears of it.
      await database.query(
        sql`insert into seen (event, key, name, number, is_undone)
            values (${id}::bigint, ${key ?? null}, ${payload.name}, ${payload.number}, ${payload.isUndone})`,
      )
    },
    {
      leaseMs: 500,
      baseDelayMs: 20,
      maxDelayMs: 200,
      maxAttempts: 1_000_000,
      pollMs: 50,
      batchSize: 20,
      concurrency: 4,
    },
  )
} else {
  for (let number = 0; ; number += 1) {
    await Promise.all([0, 1, 2].map((lane) => publish(number * 3 + lane)))
    await sleep(5)
  }
}

async function publish(number: number): Promise<void> {
  const isUndone = number % 5 === 0
  const key = `k${number % keys}`
  try {
    await database.transaction(async () => {
      await outbox.publish('step', { name, number, isUndone }, number % 4 === 3 ? {} : { key })
      if (number % 7 === 0)
        await database.transaction(() => outbox.publish('step', { name, number: -number, isUndone }))
      await database.query(sql`insert into made (name, number) values (${name}, ${number})`)
      if (isUndone) throw new Error('undone')
    })
  } catch {
    // The server is away, or it was meant to be: what counts is what is in the tables.
  }
}
