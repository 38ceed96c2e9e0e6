import type { DatabaseOptions } from './core/options.ts'
import { DatabaseError } from './core/errors.ts'
import { createDatabase } from './database/create-database.ts'
import type { Database, Health } from './database/database.ts'

// The schema type is given where the database is used; it is one object for all.
let current: Promise<Database<unknown>> | undefined
let ready: Database<unknown> | undefined
let closing: Promise<void> = Promise.resolve()

/**
 * Opens the process-wide database once; calls while it opens or is open give the same one, and their options are not
 * looked at. After a failure, or once it was closed, the next call opens another. Fails as {@link createDatabase} does.
 */
export function initializeDatabase<DB>(options?: DatabaseOptions): Promise<Database<DB>> {
  if (ready?.isClosed) forget()
  current ??= open(options)
  return current as Promise<Database<DB>>
}

function open(options: DatabaseOptions | undefined): Promise<Database<unknown>> {
  const opening = closing
    .then(() => createDatabase<unknown>(options))
    .then(
      (database) => {
        if (current === opening) ready = database
        return database
      },
      (error: unknown) => {
        if (current === opening) forget()
        throw error
      },
    )
  return opening
}

function forget(): void {
  current = undefined
  ready = undefined
}

/** The process-wide database. Throws `DATABASE_CLOSED` before {@link initializeDatabase} has resolved and after shutdown. */
export function getDatabase<DB>(): Database<DB> {
  if (ready === undefined || ready.isClosed) {
    throw new DatabaseError(
      'DATABASE_CLOSED',
      'There is no open database. Await initializeDatabase() at start-up, before this call.',
    )
  }
  return ready as Database<DB>
}

/** The health of the process-wide database; `undefined` when there is none. Never rejects. */
export function getDatabaseHealth(): Promise<Health | undefined> {
  return ready === undefined || ready.isClosed ? Promise.resolve(undefined) : ready.health()
}

/**
 * Closes the process-wide database, one that is still opening too, and resolves when it is closed; so do calls that
 * come meanwhile. Never rejects; safe to call when there is none.
 */
export function shutdownDatabase(): Promise<void> {
  const opened = current
  forget()
  if (opened) closing = Promise.all([closing, close(opened)]).then(() => undefined)
  return closing
}

async function close(opened: Promise<Database<unknown>>): Promise<void> {
  try {
    await (await opened).close()
  } catch {
    // It did not open, so there is nothing to close; initializeDatabase has told its caller.
  }
}
