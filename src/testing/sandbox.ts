import type { ResolvedConfig } from '../core/config.ts'
import { settleWithin } from '../core/deadline.ts'
import { ConnectionError, DatabaseError } from '../core/errors.ts'
import { type DatabaseOrigin, openDatabase, originOf } from '../database/create-database.ts'
import type { Database } from '../database/database.ts'
import { type ConnectionSource, parametersOf } from '../postgres/connection.ts'
import type { Session } from '../postgres/pool.ts'
import { backendKeyOf, clientOver, takeSocket } from '../postgres/socket-access.ts'
import { EmbeddedBackend, SocketBackend } from './sandbox-backend.ts'
import { SandboxCommands, type SandboxIsolation } from './sandbox-commands.ts'
import { SandboxLink } from './sandbox-link.ts'

/** How a {@link Sandbox} is opened. */
export interface SandboxOptions {
  /**
   * That of everything in it. A transaction of the code under test that asks for more is refused, as it could not have it.
   * @default 'read committed'
   */
  readonly isolationLevel?: SandboxIsolation | undefined
}

/** A database on which nothing lasts. */
export interface Sandbox<DB> extends AsyncDisposable {
  /** For the code under test, in the place of the one that the sandbox was opened on. */
  readonly database: Database<DB>
  /** Undoes all that was done and gives the connection back. Safe to call more than once; never rejects. */
  close(): Promise<void>
}

/**
 * Runs a test on a database on which nothing lasts: {@link openSandbox}, and its end when `work` has settled. Resolves or
 * rejects as `work` does.
 *
 * @example
 * ```ts
 * import type { Database } from 'kanta'
 * import { sandbox } from 'kanta/testing'
 * import type { DB } from './generated/schema.ts'
 *
 * declare const database: Database<DB>
 * await sandbox(database, async ({ db }) => {
 *   await db.updateTable('products').set({ stock: 0 }).execute()
 * })
 * ```
 */
export async function sandbox<DB, T>(
  database: Database<DB>,
  work: (database: Database<DB>) => Promise<T>,
  options?: SandboxOptions,
): Promise<T> {
  await using box = await openSandbox(database, options)
  return await work(box.database)
}

/**
 * A database like the given one, all of which runs in one transaction that is never committed. The code under test sees no
 * difference: its transactions are savepoints and commit with their hooks, a statement that fails outside of them undoes itself
 * alone, constraints that are deferred are checked at its commits, and a cache in memory is the sandbox's own.
 *
 * It is one connection. What the code under test does at the same time waits for its turn, transactions as a whole; who waits
 * inside of a transaction for something outside of it gets `POOL_TIMEOUT`, with the place that holds the connection. Sandboxes on
 * one server do not see one another, but wait for one another's rows and unique values as transactions do; on the embedded
 * PostgreSQL there is one at a time, and the database itself waits for its end.
 *
 * What only a real commit does is refused: `listen` with `NOTIFICATIONS_UNAVAILABLE` (`notify` goes nowhere), isolation beyond its own
 * and VACUUM and its like with `TRANSACTION_MISUSE`, messages through Redis with `REDIS_UNAVAILABLE`. Reads of replicas go to the
 * same connection. `now()` stands still, `SET LOCAL` and locks last until the end of the sandbox, and sequences are not put back.
 *
 * Rejects with `INVALID_ARGUMENT` for what is no open database of kanta, else as a transaction that cannot begin.
 *
 * @example
 * ```ts
 * import type { Database } from 'kanta'
 * import { openSandbox } from 'kanta/testing'
 * import type { DB } from './generated/schema.ts'
 *
 * declare const database: Database<DB>
 * await using box = await openSandbox(database)
 * await box.database.transaction(() => box.database.db.deleteFrom('comments').execute())
 * ```
 */
export async function openSandbox<DB>(database: Database<DB>, options: SandboxOptions = {}): Promise<Sandbox<DB>> {
  const origin = originOf(database)
  if (origin === undefined) {
    throw new DatabaseError(
      'INVALID_ARGUMENT',
      'A sandbox was asked for on what is no database of createDatabase(). Give that, or one of testServer().',
    )
  }
  const place = await SandboxPlace.open(origin, options.isolationLevel ?? 'read committed')
  const source = place.source()
  try {
    const inside = await openDatabase<DB>(innerConfig(origin.config), origin.kysely, {
      source,
      listenerSource: { ...source, connect: () => Promise.reject(noNotifications()), close: () => Promise.resolve() },
      onClosed: () => place.close(),
    })
    return { database: inside, close: () => inside.close(), [Symbol.asyncDispose]: () => inside.close() }
  } catch (error) {
    await place.close()
    throw error
  }
}

/** The settings of the code under test, for one connection. */
function innerConfig(config: ResolvedConfig): ResolvedConfig {
  return {
    ...config,
    directPostgres: config.postgres,
    replicas: [],
    redis: undefined,
    pipeline: false,
    pool: { ...config.pool, max: 1, min: 0, idleTimeoutMs: 0, maxLifetimeMs: 0 },
    cache: { ...config.cache, listen: false },
  }
}

// What was given up by the code under test is stopped by then, or it never will be.
const freeLimitMs = 5_000

const askDeferred = 'select exists (select from pg_constraint where condeferred) as "hasDeferred"'

/** The connection of a sandbox, borrowed from the pool of the database that it is opened on. */
class SandboxPlace {
  readonly #origin: DatabaseOrigin
  readonly #session: Session
  readonly #link: SandboxLink
  readonly #giveBack: () => void
  #closing: Promise<void> | undefined

  private constructor(origin: DatabaseOrigin, session: Session, link: SandboxLink, giveBack: () => void) {
    this.#origin = origin
    this.#session = session
    this.#link = link
    this.#giveBack = giveBack
  }

  static async open(origin: DatabaseOrigin, isolation: SandboxIsolation): Promise<SandboxPlace> {
    const { engine } = origin
    const [row] = await engine.ask<{ hasDeferred: boolean }>(askDeferred, [], freeLimitMs)
    const session = await engine.pool.acquire({ purpose: 'a sandbox' })
    const { client } = session.channel
    const taken = takeSocket(client)
    const backend =
      taken === undefined ? new EmbeddedBackend(exchangeOf(engine.source)) : new SocketBackend(taken.stream)
    const link = new SandboxLink(backend, {
      commands: new SandboxCommands(isolation),
      parameters: parametersOf(client),
      ...backendKeyOf(client),
      hasDeferredConstraints: row?.hasDeferred === true,
    })
    const giveBack = (): void => {
      if (backend instanceof SocketBackend) backend.detach()
      taken?.giveBack()
    }
    const place = new SandboxPlace(origin, session, link, giveBack)
    try {
      await link.command(`begin isolation level ${isolation}`, 'set local idle_in_transaction_session_timeout = 0')
    } catch (error) {
      await place.close()
      throw error
    }
    return place
  }

  /** The sandbox for an engine, as a server that takes one connection at a time. */
  source(): ConnectionSource {
    const { config, engine } = this.#origin
    const { source } = engine
    const description = `a sandbox on ${source.description}`
    const { client: real } = this.#session.channel
    return {
      description,
      maxConnections: 1,
      connect: async () => {
        await settleWithin(this.#link.whenFree(), freeLimitMs, () => notFree(description))
        return clientOver(this.#link.open(), 'sandbox', config.postgres.types)
      },
      cancel: () => source.cancel(real),
      close: () => Promise.resolve(),
    }
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    const end = async (): Promise<void> => {
      await this.#link.whenFree()
      await this.#link.command('rollback', 'select pg_advisory_unlock_all()')
      await this.#link.forgetStatements()
    }
    try {
      await settleWithin(end(), freeLimitMs, () => notFree('the sandbox'))
      this.#giveBack()
      this.#session.release()
    } catch {
      // The server undoes it when the connection ends.
      this.#session.discard()
    }
  }
}

function exchangeOf({ exchange, description }: ConnectionSource): NonNullable<ConnectionSource['exchange']> {
  if (exchange !== undefined) return exchange
  throw new DatabaseError('INVALID_ARGUMENT', `No sandbox can be opened on ${description}.`)
}

function notFree(what: string): ConnectionError {
  return new ConnectionError(
    'CONNECTION_FAILED',
    `${what} did not come to rest within ${freeLimitMs} ms after what ran there was given up. Open another sandbox.`,
  )
}

function noNotifications(): DatabaseError {
  return new DatabaseError(
    'NOTIFICATIONS_UNAVAILABLE',
    'Nothing that is sent in a sandbox is ever committed, so no notification arrives in it. Use a database of testServer() to listen.',
  )
}
