import type { Invalidation } from '../cache/invalidation-log.ts'
import type { InvalidationJournal } from '../cache/open-cache.ts'
import { DatabaseError } from '../core/errors.ts'
import type { Logger } from '../core/options.ts'
import type { RedisClient } from '../redis/client.ts'

/** What those who build on a database need of it beyond its face. */
export interface DatabaseSeams {
  readonly logger: Logger
  /** Runs what goes on behind in the context of whoever asks for this, without the transaction that is open there. */
  readonly context: () => <T>(work: () => T) => T
  /** Ends something before the database refuses queries; gives what takes that back. */
  beforeClose(end: () => Promise<void>): () => void
  /** Its Redis, where one is configured. */
  readonly redis: Pick<RedisClient, 'call'> | undefined
  /** Of what it keeps in Redis. */
  readonly cacheNamespace: string
  /** Has what transactions end in the cache written down with them, by the latest journal; gives what takes that back. */
  keepInvalidations(journal: InvalidationJournal): () => void
  /** Ends what is cached; false when Redis could not be told now. */
  endCached(what: Invalidation): Promise<boolean>
}

const seams = new WeakMap<object, DatabaseSeams>()

/** The seams of a database that `createDatabase()` has made; of anything else there are none. */
export function findSeams(database: object): DatabaseSeams | undefined {
  return seams.get(database)
}

/** As {@link findSeams}; `INVALID_ARGUMENT` where there are none. */
export function seamsOf(database: object, caller: string): DatabaseSeams {
  const found = findSeams(database)
  if (found !== undefined) return found
  throw new DatabaseError('INVALID_ARGUMENT', `${caller} needs a database that createDatabase() has made.`)
}

/** Says what they are, once it is open. */
export function registerSeams(database: object, its: DatabaseSeams): void {
  seams.set(database, its)
}
