import type { DatabaseOptions } from './core/config.ts'
import { DatabaseError } from './core/errors.ts'
import { createDatabase, type Database, type Health } from './database.ts'

// The schema type is given where the database is used; it is one object for all.
let current: Promise<Database<unknown>> | undefined
let ready: Database<unknown> | undefined

/**
 * Opens the process-wide database once; calls while it opens or is open give the same one, and their options are not
 * looked at. After a failure the next call tries again. Fails as {@link createDatabase} does.
 */
export function initializeDatabase<DB>(options?: DatabaseOptions): Promise<Database<DB>> {
  if (!current) {
    const opening = createDatabase<unknown>(options).then(
      (database) => {
        if (current === opening) ready = database
        return database
      },
      (error: unknown) => {
        if (current === opening) current = undefined
        throw error
      },
    )
    current = opening
  }
  return current as Promise<Database<DB>>
}

/** The process-wide database. Throws `DATABASE_CLOSED` before {@link initializeDatabase} has resolved and after shutdown. */
export function getDatabase<DB>(): Database<DB> {
  if (!ready) {
    throw new DatabaseError(
      'DATABASE_CLOSED',
      'There is no open database. Await initializeDatabase() at start-up, before this call.',
    )
  }
  return ready as Database<DB>
}

/** The health of the process-wide database; `undefined` when there is none. Never rejects. */
export function getDatabaseHealth(): Promise<Health | undefined> {
  return ready ? ready.health() : Promise.resolve(undefined)
}

/** Closes the process-wide database, one that is still opening too. Never rejects; safe to call when there is none. */
export async function shutdownDatabase(): Promise<void> {
  const closing = current
  current = undefined
  ready = undefined
  try {
    await (await closing)?.close()
  } catch {
    // It did not open, so there is nothing to close; initializeDatabase has told its caller.
  }
}
