import {
  type Dialect,
  type PostgresClient,
  type PostgresClientConstructor,
  type PostgresCursor,
  PostgresDialect,
  type PostgresPool,
  type PostgresPoolClient,
  type PostgresQueryResult,
} from 'kysely'
import Cursor from 'pg-cursor'
import { type Client, type ConnectionSource, endClient } from './connection.ts'
import { Pool, type Session } from './pool.ts'
import { toDatabaseError } from './sqlstate.ts'

/** Kysely's PostgreSQL dialect on our pool: everything that Kysely documents works, and every error is typed. */
export function poolDialect(pool: Pool): Dialect {
  const face: PostgresPool = {
    options: {},
    connect: async () => pooledClient(await pool.acquire()),
    end: () => pool.close(),
    // The embedded PostgreSQL has no second session from which a statement could be canceled.
    ...(pool.source.maxConnections > 1 ? { Client: controlClient(pool.source) } : {}),
  }
  return new PostgresDialect({ pool: face, cursor: Cursor })
}

/** A dialect with one connection at a time, for short work such as reading the catalog. */
export function sourceDialect(source: ConnectionSource): Dialect {
  return poolDialect(
    new Pool(source, { max: 1, acquireTimeoutMs: 30_000, idleTimeoutMs: 0, maxLifetimeMs: 0, drainTimeoutMs: 1_000 }),
  )
}

/** What Kysely keeps of a connection while it holds one; it recognises a connection by this object's identity. */
const faces = new WeakMap<Session, PostgresPoolClient>()

function pooledClient(session: Session): PostgresPoolClient {
  const known = faces.get(session)
  if (known) return known
  const face: PostgresPoolClient = {
    processID: (session.client as Client & { processID: number }).processID,
    release: (discard) => session.release(discard),
    query: ((statement: string | Submittable, parameters?: readonly unknown[]) =>
      typeof statement === 'string'
        ? session.query(statement, parameters)
        : typedCursor(session.client.query(statement as never))) as PostgresPoolClient['query'],
  }
  faces.set(session, face)
  return face
}

type Submittable = PostgresCursor<unknown>

function typedCursor<Row>(cursor: PostgresCursor<Row>): PostgresCursor<Row> {
  return {
    async read(count) {
      try {
        return await cursor.read(count)
      } catch (error) {
        throw toDatabaseError(error)
      }
    },
    close: () => cursor.close(),
  }
}

/** Kysely cancels a running statement from a connection outside the pool, so that a full pool does not delay it. */
function controlClient(source: ConnectionSource): PostgresClientConstructor {
  return class ControlClient implements PostgresClient {
    #client: Client | undefined

    async connect(): Promise<this> {
      this.#client = await source.connect()
      return this
    }

    query<Row>(sql: string, parameters: readonly unknown[]): Promise<PostgresQueryResult<Row>>
    query<Row>(cursor: PostgresCursor<Row>): PostgresCursor<Row>
    query(sql: unknown, parameters?: readonly unknown[]): never {
      return this.#client?.query(sql as string, parameters as unknown[]) as never
    }

    end(): void {
      if (this.#client) void endClient(this.#client)
    }
  }
}
