import { Kysely } from 'kysely'
import { type DatabaseOptions, type ResolvedConfig, resolveConfig } from './core/config.ts'
import { settleWithin } from './core/deadline.ts'
import { DatabaseError, type ErrorCode, isDatabaseError } from './core/errors.ts'
import { poolDialect } from './postgres/dialect.ts'
import { Pool, type PoolStats } from './postgres/pool.ts'
import { openSource } from './postgres/source.ts'
import { RedisClient } from './redis/client.ts'

/** How long {@link Database.health} waits for each server. */
const healthTimeoutMs = 2_000

/**
 * The one object that a service holds: typed SQL on PostgreSQL, its connections and their state. Safe to share between
 * any number of concurrent callers. Made by {@link createDatabase}, ended by {@link Database.close}.
 *
 * `DB` is the schema that `kanta codegen` wrote.
 */
export interface Database<DB> extends AsyncDisposable {
  /**
   * Kysely, with everything that its documentation says. Every query rejects with a `DatabaseError`; see its `code` and
   * `retry`. On the embedded PostgreSQL there is one connection, so inside a transaction use the transaction's own handle.
   */
  readonly db: Kysely<DB>
  /** Asks each server. Answers within two seconds and never rejects: what is wrong is in the answer. */
  health(): Promise<Health>
  /** What can be said without asking a server. */
  stats(): DatabaseStats
  /**
   * Refuses new work, waits for running statements up to `pool.drainTimeoutMs`, then cuts what is left. Safe to call
   * more than once; never rejects.
   */
  close(): Promise<void>
}

/** An answer of {@link Database.health}. */
export interface Health {
  /** `degraded`: PostgreSQL answers, Redis does not, and queries work. */
  readonly status: 'degraded' | 'down' | 'up'
  readonly postgres: PostgresHealth
  /** Absent where none is configured. */
  readonly redis?: ServerHealth
}

/** The state of one server. */
export interface ServerHealth {
  readonly status: 'down' | 'up'
  /** Where it is, without credentials. */
  readonly target: string
  /** Time of one round trip; absent when down. */
  readonly latencyMs?: number
  readonly version?: string
  readonly error?: { readonly code: ErrorCode; readonly message: string }
}

/** The state of PostgreSQL. */
export interface PostgresHealth extends ServerHealth {
  readonly embedded: boolean
  /** A standby, or a primary set to read only. */
  readonly readOnly?: boolean
  readonly pool: PoolStats
}

/** A moment of a {@link Database}. */
export interface DatabaseStats {
  readonly pool: PoolStats
}

/**
 * Opens a database. Options left out come from the environment; with no URL at all it starts the embedded PostgreSQL,
 * says so, and refuses to under `NODE_ENV=production`. Resolves once PostgreSQL has answered; a missing Redis does not
 * stop it.
 *
 * Fails with `CONFIG_INVALID` (all problems at once), `EMBEDDED_UNAVAILABLE`, or a `ConnectionError` within
 * `connectTimeoutMs`; then nothing is left open.
 *
 * @example
 * ```ts
 * import { createDatabase } from 'kanta'
 * import type { DB } from './generated/schema.ts'
 *
 * await using database = await createDatabase<DB>()
 * const users = await database.db.selectFrom('users').select(['id', 'email']).where('is_active', '=', true).execute()
 * ```
 */
export async function createDatabase<DB>(options?: DatabaseOptions): Promise<Database<DB>> {
  const config = resolveConfig(options)
  await using opened = new AsyncDisposableStack()

  const source = await openSource(config.postgres, config.logger)
  opened.defer(() => source.close())
  const pool = new Pool(source, config.pool)
  opened.defer(() => pool.close())
  const redis = config.redis && new RedisClient(config.redis)
  if (redis) opened.defer(() => redis.close())

  const first = await pool.acquire()
  first.release()
  return new OpenDatabase<DB>(config, pool, redis, opened.move())
}

class OpenDatabase<DB> implements Database<DB> {
  readonly db: Kysely<DB>
  readonly #config: ResolvedConfig
  readonly #pool: Pool
  readonly #redis: RedisClient | undefined
  readonly #opened: AsyncDisposableStack
  #closing: Promise<void> | undefined

  constructor(config: ResolvedConfig, pool: Pool, redis: RedisClient | undefined, opened: AsyncDisposableStack) {
    this.#config = config
    this.#pool = pool
    this.#redis = redis
    this.#opened = opened
    this.db = new Kysely<DB>({ dialect: poolDialect(pool) })
  }

  async health(): Promise<Health> {
    const [postgres, redis] = await Promise.all([this.#postgresHealth(), this.#redisHealth()])
    const status = postgres.status === 'down' ? 'down' : redis?.status === 'down' ? 'degraded' : 'up'
    return { status, postgres, ...(redis && { redis }) }
  }

  stats(): DatabaseStats {
    return { pool: this.#pool.stats() }
  }

  close(): Promise<void> {
    this.#closing ??= this.#opened.disposeAsync()
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #postgresHealth(): Promise<PostgresHealth> {
    const target = this.#pool.source.description
    const embedded = this.#config.postgres.kind === 'embedded'
    const answer = await probe(target, () => this.#askPostgres())
    return { embedded, ...answer, pool: this.#pool.stats() }
  }

  async #askPostgres(): Promise<Pick<PostgresHealth, 'latencyMs' | 'readOnly' | 'version'>> {
    const session = await this.#pool.acquire()
    try {
      const start = performance.now()
      const { rows } = await session.query<{ version: string; read_only: string }>(
        `select current_setting('server_version') as version, current_setting('transaction_read_only') as read_only`,
      )
      const latencyMs = performance.now() - start
      const row = rows[0]
      return { latencyMs, ...(row && { version: row.version, readOnly: row.read_only === 'on' }) }
    } finally {
      session.release()
    }
  }

  async #redisHealth(): Promise<ServerHealth | undefined> {
    const redis = this.#redis
    if (!redis) return undefined
    return probe(redis.description, async () => {
      const { latencyMs, version } = await redis.ping()
      return { latencyMs, ...(version !== undefined && { version }) }
    })
  }
}

async function probe<Answer extends object>(
  target: string,
  ask: () => Promise<Answer>,
): Promise<Answer & ServerHealth> {
  const tooSlow = (): DatabaseError =>
    new DatabaseError('QUERY_TIMEOUT', `${target} did not answer a health check within ${healthTimeoutMs} ms.`)
  try {
    return { status: 'up', target, ...(await settleWithin(ask(), healthTimeoutMs, tooSlow)) }
  } catch (error) {
    if (!isDatabaseError(error)) throw error
    return { status: 'down', target, error: { code: error.code, message: error.message } } as Answer & ServerHealth
  }
}
