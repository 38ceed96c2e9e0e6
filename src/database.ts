import { type CompiledQuery, type Dialect, type Kysely, type RawBuilder, sql } from 'kysely'
import { type DatabaseOptions, type PostgresOptions, type ResolvedConfig, resolveConfig } from './core/config.ts'
import { settleWithin } from './core/deadline.ts'
import { DatabaseError, type ErrorCode, isDatabaseError } from './core/errors.ts'
import type { EventSource } from './core/events.ts'
import { type CallOptions, type DatabaseEvents, Engine, type EngineStats } from './postgres/engine.ts'
import { createKysely, EngineDialect, type EngineKysely, type KyselyOptions } from './postgres/executor.ts'
import { callSiteAbove, describeHolder, type PoolStats } from './postgres/pool.ts'
import { type Parameters, type PreparedQuery, prepareQuery } from './postgres/prepared-query.ts'
import { openSource } from './postgres/source.ts'
import { type Hook, type TransactionOptions, Transactions } from './postgres/transaction.ts'
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
   * `retry`. Inside {@link transaction}, and inside Kysely's own `db.transaction()`, it joins that transaction.
   */
  readonly db: Kysely<DB>

  /**
   * Runs `work` in a transaction. Whatever runs inside, however deep, joins it by itself, and a call inside another is
   * a savepoint: its failure undoes only itself. Committed when `work` resolves, rolled back when it rejects.
   *
   * When the server asks for a repetition (serialization failure, deadlock, a connection lost before COMMIT) the
   * outermost transaction runs again as a whole, so `work` must not have effects outside the database: put those into
   * {@link afterCommit}. `TRANSACTION_MISUSE`: something was used after the end, two nested ones at the same time, or
   * a statement was not awaited. `COMMIT_OUTCOME_UNKNOWN`: the connection broke at COMMIT and the server could not be
   * asked what became of it.
   *
   * @example
   * ```ts
   * import { createDatabase } from 'kanta'
   * import type { DB } from './generated/schema.ts'
   *
   * await using database = await createDatabase<DB>()
   * await database.transaction(async () => {
   *   await database.db.updateTable('users').set({ is_active: false }).where('username', '=', 'ada').execute()
   *   database.afterCommit(() => console.log('gone'))
   * })
   * ```
   */
  transaction<T>(work: () => Promise<T>, options?: TransactionOptions): Promise<T>

  /**
   * Calls `hook` once the outermost transaction of this async context is committed; never if it, or the savepoint in
   * which this was called, is rolled back, and only for the attempt that succeeds. Outside a transaction: at once. What
   * it throws is logged and undoes nothing.
   */
  afterCommit(hook: Hook): void
  /** Calls `hook` when the transaction or savepoint of this async context is rolled back. Outside a transaction: never. */
  afterRollback(hook: Hook): void

  /**
   * Runs `work` in a transaction that holds the named lock, which one transaction at a time can have across all
   * processes. With `waitMs` it fails with `LOCK_TIMEOUT` when the lock is not free in time.
   */
  withLock<T>(
    name: string,
    work: () => Promise<T>,
    options?: TransactionOptions & { readonly waitMs?: number },
  ): Promise<T>

  /** The rows of a query, written with Kysely's `sql` or built. Joins the transaction of this async context. */
  query<Row>(query: Runnable<Row>, options?: CallOptions): Promise<Row[]>
  /** The first row, or `undefined`. */
  queryOne<Row>(query: Runnable<Row>, options?: CallOptions): Promise<Row | undefined>
  /** The first column of the first row, or `undefined` when there is no row. Its type is what the caller says it is. */
  queryValue<Value = unknown>(query: Runnable<unknown>, options?: CallOptions): Promise<Value | undefined>
  /** The first column of the first row as a number: `count(*)` is a string in rows. 0 when there is no row. */
  queryCount(query: Runnable<unknown>, options?: CallOptions): Promise<number>
  /** Whether the first column of the first row is true. */
  queryBoolean(query: Runnable<unknown>, options?: CallOptions): Promise<boolean>

  /**
   * Builds and compiles a query once; each call only fills in its parameters. Joins transactions like any query.
   *
   * @example
   * ```ts
   * import { createDatabase, type Parameters } from 'kanta'
   * import type { DB } from './generated/schema.ts'
   *
   * await using database = await createDatabase<DB>()
   * const byEmail = database.prepare((p: Parameters<{ email: string }>) =>
   *   database.db.selectFrom('users').select(['id', 'name']).where('email', '=', p('email')),
   * )
   * const [ada] = await byEmail({ email: 'ada@example.org' })
   * ```
   */
  prepare<Row, Values extends object = Record<string, unknown>>(
    build: (parameter: Parameters<Values>) => Compilable<Row>,
  ): PreparedQuery<Values, Row>

  /** What happens inside: queries, waiting, transactions, retries, the breaker, leaks. Costs nothing while nobody listens. */
  readonly events: EventSource<DatabaseEvents>
  /** Asks each server. Answers within two seconds and never rejects: what is wrong is in the answer. */
  health(): Promise<Health>
  /** What can be said without asking a server. */
  stats(): DatabaseStats
  /**
   * Refuses new work, waits for running statements up to `pool.drainTimeoutMs`, then cuts what is left. Safe to call
   * more than once; never rejects.
   */
  close(): Promise<void>
  /** Whether {@link close} was called. */
  readonly isClosed: boolean
}

/** A built query of Kysely. */
export interface Compilable<Row> {
  compile(): CompiledQuery<Row>
}

/** A built query, or SQL written with Kysely's `sql`. */
export type Runnable<Row> = Compilable<Row> | RawBuilder<Row>

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
export type DatabaseStats = EngineStats

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
export async function createDatabase<DB>(options?: DatabaseOptions & KyselyOptions): Promise<Database<DB>> {
  const { kysely, rest } = splitOptions(options)
  const config = resolveConfig(rest)
  const source = await openSource(config.postgres, config.logger)
  const engine = new Engine(source, config, (message) => config.logger.warn(message))
  const redis = config.redis && new RedisClient(config.redis)
  const close = async (): Promise<void> => {
    await Promise.all([redis?.close(), engine.close()])
    await source.close()
  }
  try {
    await engine.pool.prewarm()
  } catch (error) {
    await close()
    throw error
  }
  return new OpenDatabase<DB>(config, engine, redis, kysely, close)
}

function splitOptions(options: (DatabaseOptions & KyselyOptions) | undefined): {
  readonly kysely: KyselyOptions
  readonly rest: DatabaseOptions
} {
  // What is no object is told so as it is.
  if (typeof options !== 'object' || options === null)
    return { kysely: {}, rest: options as unknown as DatabaseOptions }
  const { plugins, log, ...rest } = options
  return { kysely: { plugins, log }, rest }
}

/**
 * The engine as an ordinary Kysely dialect, for those who want just that: pool, prepared statements, pipeline, deadlines
 * and typed errors, without ambient transactions. It connects with the first query; `db.destroy()` closes it.
 *
 * Throws `CONFIG_INVALID` at once when an option is wrong.
 *
 * @example
 * ```ts
 * import { Kysely } from 'kysely'
 * import { postgresDialect } from 'kanta'
 * import type { DB } from './generated/schema.ts'
 *
 * const db = new Kysely<DB>({ dialect: postgresDialect({ url: 'postgres://app@127.0.0.1/shop' }) })
 * ```
 */
export function postgresDialect(options?: PostgresOptions): Dialect {
  const config = resolveConfig({ ...(options && { postgres: options }), redis: false })
  return new EngineDialect(async () => {
    const source = await openSource(config.postgres, config.logger)
    const engine = new Engine(source, config, (message) => config.logger.warn(message))
    return { engine, transactions: new Transactions(engine, (error) => warnOfHook(config, error)) }
  })
}

function warnOfHook(config: ResolvedConfig, error: unknown): void {
  const what = error instanceof Error ? `${error.name}: ${error.message}` : 'something that is not an Error'
  config.logger.warn(`a hook after a transaction failed, which changes nothing about the transaction: ${what}`)
}

class OpenDatabase<DB> implements Database<DB> {
  readonly db: Kysely<DB>
  readonly events: EventSource<DatabaseEvents>
  readonly #config: ResolvedConfig
  readonly #engine: Engine
  readonly #transactions: Transactions
  readonly #run: EngineKysely<DB>['run']
  readonly #redis: RedisClient | undefined
  readonly #close: () => Promise<void>
  #closing: Promise<void> | undefined

  constructor(
    config: ResolvedConfig,
    engine: Engine,
    redis: RedisClient | undefined,
    kysely: KyselyOptions,
    close: () => Promise<void>,
  ) {
    this.#config = config
    this.#engine = engine
    this.#redis = redis
    this.#close = close
    this.#transactions = new Transactions(engine, (error) => warnOfHook(config, error))
    const { db, run } = createKysely<DB>({ engine, transactions: this.#transactions }, kysely)
    this.db = db
    this.#run = run
    this.events = engine.events
    engine.events.on('leak', (holder) =>
      config.logger.warn(`a connection has been borrowed for ${describeHolder(holder)}`),
    )
  }

  transaction<T>(work: () => Promise<T>, options?: TransactionOptions): Promise<T> {
    // oxlint-disable-next-line typescript/unbound-method -- it is only compared with frames of the stack
    return this.#transactions.run(work, options, callSiteAbove(this.transaction))
  }

  afterCommit(hook: Hook): void {
    const { current } = this.#transactions
    if (current) current.addHook('commit', hook)
    else
      void Promise.resolve()
        .then(hook)
        .catch((error: unknown) => warnOfHook(this.#config, error))
  }

  afterRollback(hook: Hook): void {
    this.#transactions.current?.addHook('rollback', hook)
  }

  withLock<T>(
    name: string,
    work: () => Promise<T>,
    options: TransactionOptions & { readonly waitMs?: number } = {},
  ): Promise<T> {
    const { waitMs, ...transactionOptions } = options
    return this.transaction(async () => {
      if (waitMs !== undefined) await this.query(sql`select set_config('lock_timeout', ${String(waitMs)}, true)`)
      // 64 bits of the name's hash; the two-key form keeps clear of locks that the application takes by number.
      await this.query(sql`select pg_advisory_xact_lock(hashtextextended(${`kanta:${name}`}, 0))`)
      if (waitMs !== undefined) await this.query(sql`select set_config('lock_timeout', '0', true)`)
      return work()
    }, transactionOptions)
  }

  async query<Row>(query: Runnable<Row>, options?: CallOptions): Promise<Row[]> {
    const { rows } = await this.#run<Row>(this.#compile(query), options)
    return rows
  }

  async queryOne<Row>(query: Runnable<Row>, options?: CallOptions): Promise<Row | undefined> {
    const [row] = await this.query(query, options)
    return row
  }

  async queryValue<Value = unknown>(query: Runnable<unknown>, options?: CallOptions): Promise<Value | undefined> {
    const row = await this.queryOne(query, options)
    return row === undefined ? undefined : (Object.values(row as object)[0] as Value)
  }

  async queryCount(query: Runnable<unknown>, options?: CallOptions): Promise<number> {
    const value = await this.queryValue(query, options)
    const count = Number(value ?? 0)
    if (Number.isFinite(count)) return count
    throw new DatabaseError(
      'INVALID_ARGUMENT',
      'queryCount got a first column that is not a number. Select a count there.',
    )
  }

  async queryBoolean(query: Runnable<unknown>, options?: CallOptions): Promise<boolean> {
    return (await this.queryValue(query, options)) === true
  }

  prepare<Row, Values extends object = Record<string, unknown>>(
    build: (parameter: Parameters<Values>) => Compilable<Row>,
  ): PreparedQuery<Values, Row> {
    return prepareQuery((parameter: Parameters<Values>) => build(parameter).compile(), this.#run)
  }

  async health(): Promise<Health> {
    const [postgres, redis] = await Promise.all([this.#postgresHealth(), this.#redisHealth()])
    const status = postgres.status === 'down' ? 'down' : redis?.status === 'down' ? 'degraded' : 'up'
    return { status, postgres, ...(redis && { redis }) }
  }

  stats(): DatabaseStats {
    return this.#engine.stats()
  }

  get isClosed(): boolean {
    return this.#closing !== undefined
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #postgresHealth(): Promise<PostgresHealth> {
    const target = this.#engine.source.description
    const embedded = this.#config.postgres.kind === 'embedded'
    const answer = await probe(target, () => this.#askPostgres())
    return { embedded, ...answer, pool: this.#engine.pool.stats() }
  }

  async #askPostgres(): Promise<Pick<PostgresHealth, 'latencyMs' | 'readOnly' | 'version'>> {
    const session = await this.#engine.pool.acquire({ purpose: 'a health check' })
    try {
      const start = performance.now()
      const { sql: text, query } = askHealth.compile(this.db)
      const request = { text: this.#engine.texts.get(text, query), values: [], deadline: start + healthTimeoutMs }
      const { rows } = await this.#engine.sendOn<{ version: string; read_only: string }>(session, request, undefined)
      const latencyMs = performance.now() - start
      const [row] = rows
      return { latencyMs, ...(row && { version: row.version, readOnly: row.read_only === 'on' }) }
    } finally {
      session.release()
    }
  }

  #compile<Row>(query: Runnable<Row>): CompiledQuery<Row> {
    return (query as RawBuilder<Row>).compile(this.db)
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

const askHealth = sql`select current_setting('server_version') as version, current_setting('transaction_read_only') as read_only`

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
