import type { ContenderName } from './contender.ts'

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

/** How many times as fast as inserts one by one, and as those of many values, `insertMany` must be. */
export const bulkAtLeast = { 'one by one': 10, 'many values': 2 } as const

/** How many times as long as kysely, pg and ioredis together the import of kanta may take. */
export const importAtMost = 1.5
