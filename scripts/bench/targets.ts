import type { BulkContender } from './bulk.ts'
import type { CacheWork } from './cache.ts'
import type { ContenderName } from './contender.ts'
import type { WorkContender } from './work.ts'

/** A figure that kanta holds itself to: how many times faster than another it must be. */
export interface Target {
  /** A workload. */
  readonly part: string
  readonly contender: ContenderName
  readonly against: ContenderName
  readonly atLeast: number
}

export const targets: readonly Target[] = [
  { part: 'reads', contender: 'kanta', against: 'pg', atLeast: 2.5 },
  { part: 'reads', contender: 'kanta', against: 'postgres.js', atLeast: 1.5 },
  { part: 'reads', contender: 'kanta-prepared', against: 'pg', atLeast: 3 },
  { part: 'lone-read', contender: 'kanta', against: 'pg', atLeast: 1.4 },
  { part: 'lone-read', contender: 'kanta', against: 'postgres.js', atLeast: 1 },
  { part: 'page', contender: 'kanta', against: 'pg', atLeast: 1.2 },
  { part: 'rows-1000', contender: 'kanta', against: 'pg', atLeast: 1.4 },
  { part: 'insert', contender: 'kanta', against: 'pg', atLeast: 1.6 },
  { part: 'insert', contender: 'kanta-prepared', against: 'pg', atLeast: 2 },
  { part: 'transaction', contender: 'kanta', against: 'pg', atLeast: 1.1 },
  { part: 'transaction', contender: 'kanta-prepared', against: 'pg', atLeast: 1.3 },
]

/** How many times as fast as pg-query-stream kanta must stream rows. */
export const streamAtLeast = 1.2

/** How many times as fast as others many rows must be written. */
export const bulkTargets: readonly {
  readonly contender: BulkContender
  readonly against: BulkContender
  readonly atLeast: number
}[] = [
  { contender: 'insertMany', against: 'one by one', atLeast: 10 },
  { contender: 'insertMany', against: 'many values', atLeast: 2 },
  { contender: 'copy, rows', against: 'psql \\copy', atLeast: 0.7 },
  { contender: 'copy, a file', against: 'psql \\copy', atLeast: 0.7 },
]

/** How many times as fast as others a unit of work must be written. */
export const workTargets: readonly { readonly against: WorkContender; readonly atLeast: number }[] = [
  { against: 'pg, row by row', atLeast: 2 },
  { against: 'mikro-orm', atLeast: 2 },
  { against: 'typeorm', atLeast: 3 },
]

/** How many times as fast as bentocache the cache must be. */
export const cacheTargets: readonly { readonly work: CacheWork; readonly atLeast: number }[] = [
  { work: 'a row in memory', atLeast: 40 },
  { work: 'a row in memory, at once (peek)', atLeast: 40 },
  { work: 'a page of 20 rows in memory', atLeast: 40 },
  { work: 'a row in Redis, 32 at once', atLeast: 1.5 },
  { work: 'a miss of a row, loaded and kept, 32 at once', atLeast: 1.2 },
]

/** How many times as long as kysely, pg and ioredis together the import of kanta may take. */
export const importAtMost = 1.5
