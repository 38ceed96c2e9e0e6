/** A process that dies between its COMMIT and the invalidation that belongs to it: `node cache-victim.ts <options as JSON>`. */

import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import { createDatabase, keepInvalidations } from '../../src/index.ts'

/** What it is started with, as JSON in its first argument. */
export interface VictimOptions {
  readonly postgresUrl: string
  readonly redisUrl: string
  readonly namespace: string
  readonly holdMs: number | false
  /** Writes its invalidations down with their transaction. */
  readonly isKept?: boolean
}

const { postgresUrl, redisUrl, namespace, holdMs, isKept } = JSON.parse(process.argv[2] ?? '') as VictimOptions

const database = await createDatabase({
  postgres: { url: postgresUrl },
  redis: { url: redisUrl },
  // Else the update has asked for an invalidation already.
  cache: { namespace, holdMs, queries: false },
})
// A hold needs Redis.
while (!database.cache.stats().isTrusted) await sleep(5)
if (isKept === true) await keepInvalidations(database)
await database.transaction(async () => {
  await database.query(sql`update items set version = 2 where id = 1`)
  // Hooks run in the order in which they came.
  database.afterCommit(() => process.kill(process.pid, 'SIGKILL'))
  await database.cache.invalidate({ keys: ['by key'], tags: ['items'] })
})
