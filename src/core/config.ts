import { readFileSync } from 'node:fs'
import { z } from 'zod'
import { ConfigError, type ConfigProblem } from './errors.ts'
import { parseRedisUrl, type RedisLocation, redisUrlForms } from './redis-url.ts'

/** Where the process runs; decides defaults and whether the embedded PostgreSQL is allowed. */
export type Environment = 'development' | 'production' | 'test'

/**
 * How a connection is protected, in libpq's words: `disable` plain text, `no-verify` encrypted but open to anyone who
 * can stand in between, `verify-full` encrypted with certificate and host name checked. There is no mode that falls
 * back by itself.
 */
export type SslMode = 'disable' | 'no-verify' | 'verify-full'

/** Where kanta reports what its operator should know. A pino logger's methods fit. */
export interface Logger {
  info(message: string): void
  warn(message: string): void
}

/** PostgreSQL: where it is and how it is used. Times are milliseconds. */
export interface PostgresOptions {
  /**
   * `postgres://user:password@host:5432/database`, or `postgres:///database?host=/run/postgresql` for a socket.
   * Parameters: `sslmode`, `sslrootcert` (a file), `application_name`, `host`, `target_session_attrs`.
   *
   * Of several hosts (`postgres://app@one:5432,two:5432/shop`) the one that accepts writes is used, also after another
   * has taken over; with `target_session_attrs=any` the first that answers.
   * @default `DATABASE_URL` or the file named by `DATABASE_URL_FILE`, then `PGHOST` and its family, then the embedded one
   */
  readonly url?: string | undefined
  /**
   * The same server without a pooler in between, for migrations and for listening to notifications.
   * @default `DATABASE_DIRECT_URL`, else `url`
   */
  readonly directUrl?: string | undefined
  /**
   * Servers that follow the one of `url`, for reads that ask for one: a URL each, or one with several hosts, which are as
   * many replicas. Settings other than the place are those of the primary.
   * @default `DATABASE_REPLICA_URLS`, separated by spaces; none
   */
  readonly replicas?: readonly string[] | undefined
  /** Which replicas are fit for a read. */
  readonly replicaReads?: ReplicaReadOptions | undefined
  /**
   * Overrides the password of the URL. A function is called for each new connection, for tokens that expire.
   * @default `DATABASE_PASSWORD`, or the file named by `DATABASE_PASSWORD_FILE`
   */
  readonly password?: string | (() => string | Promise<string>) | undefined
  /** @default `DATABASE_SSL_MODE`, else `disable`; in production `verify-full` for any server that is not on this machine */
  readonly ssl?: SslMode | undefined
  /** The certificate authority to trust, as PEM text. @default the file named by `DATABASE_SSL_CA_FILE`, else Node's list */
  readonly sslCa?: string | undefined
  /** Shown in `pg_stat_activity`. @default `DATABASE_APPLICATION_NAME`, else `kanta` */
  readonly applicationName?: string | undefined
  /** How long opening one connection may take, TLS and password included. @default 5000, `DATABASE_CONNECT_TIMEOUT_MS` */
  readonly connectTimeoutMs?: number | undefined
  /**
   * How long a statement may take, waiting for a connection and retries included, before the call fails with
   * `QUERY_TIMEOUT` even if the server is frozen; `false` is no limit. @default 30000, `DATABASE_QUERY_TIMEOUT_MS`
   */
  readonly queryTimeoutMs?: number | false | undefined
  /** `statement_timeout` of each connection; 0 is no limit. @default the server's, `DATABASE_STATEMENT_TIMEOUT_MS` */
  readonly statementTimeoutMs?: number | undefined
  /**
   * How often the connection that listens for notifications is tried; one that has not answered by the next time is taken for
   * dead and opened again, so within twice this. `false` leaves it to TCP. @default 10000, `DATABASE_LISTENER_HEARTBEAT_MS`
   */
  readonly listenerHeartbeatMs?: number | false | undefined
  /**
   * After how many equal reads in a second, one after the other in one line of work, the logger and the event `repeatedRead` name the place
   * in the program: one statement could read them all. @default 10 in development, else `false`, `DATABASE_REPEATED_READS`
   */
  readonly repeatedReads?: number | false | undefined
  readonly pool?: PoolOptions | undefined
  /** How independent single statements share connections; `false`, `DATABASE_PIPELINE`, gives each one of the pool. */
  readonly pipeline?: PipelineOptions | false | undefined
  /** `false`, `DATABASE_PREPARED_STATEMENTS`, where a pooler does not know them (PgBouncer before 1.21 in transaction mode). */
  readonly preparedStatements?: PreparedStatementOptions | false | undefined
  /** `false`, `DATABASE_RETRY`, repeats nothing but statements whose preparation was lost. */
  readonly retry?: RetryOptions | false | undefined
  /** `false`, `DATABASE_BREAKER`, never refuses a call because others failed. */
  readonly breaker?: BreakerOptions | false | undefined
  /** As what bigint, numeric and date are read. `kanta codegen` takes the same, for the types to be right. */
  readonly types?: ValueTypes | undefined
  /** Use the embedded PostgreSQL although a URL may be set in the environment. Refused in production. */
  readonly embedded?: EmbeddedOptions | undefined
}

/** Which replicas are fit for a read. Times are milliseconds. */
export interface ReplicaReadOptions {
  /** One that is further behind is not read from. @default 10000, `DATABASE_REPLICA_MAX_LAG_MS` */
  readonly maxLagMs?: number | undefined
  /** How often each is asked how far it is; lag is known to this much. @default 1000, `DATABASE_REPLICA_CHECK_INTERVAL_MS` */
  readonly checkIntervalMs?: number | undefined
  /** How long a read after a commit waits for a replica to have it, before the primary takes it. @default 500, `DATABASE_REPLICA_WAIT_MS` */
  readonly waitMs?: number | undefined
}

/**
 * As what values of these types are read, alone and in arrays. What is left out is read as `pg` does it, by the parser
 * that the application has set with `pg.types.setTypeParser`, if it has.
 */
export interface ValueTypes {
  /**
   * bigint, and so `count(*)`. A `number` that would have to be rounded is refused with `INVALID_DATA`.
   * @default `string`, `DATABASE_TYPES_INT8`
   */
  readonly int8?: 'bigint' | 'number' | 'string' | undefined
  /** numeric. A `number` is rounded to what a double holds. @default `string`, `DATABASE_TYPES_NUMERIC` */
  readonly numeric?: 'number' | 'string' | undefined
  /**
   * date: as `YYYY-MM-DD`, or as midnight of the process's own time zone, which is another day elsewhere.
   * @default `Date`, `DATABASE_TYPES_DATE`
   */
  readonly date?: 'Date' | 'string' | undefined
}

/** Shared connections, on which statements do not wait for one another. */
export interface PipelineOptions {
  /** How many. They come on top of `pool.max`. @default 2, `DATABASE_PIPELINE_CONNECTIONS` */
  readonly connections?: number | undefined
  /** Most statements in flight on each; beyond that the pool takes them. @default 128, `DATABASE_PIPELINE_DEPTH` */
  readonly depth?: number | undefined
}

/** Statements that the server keeps parsed. */
export interface PreparedStatementOptions {
  /** A text is prepared when it is asked for the so-manieth time. @default 3, `DATABASE_PREPARE_THRESHOLD` */
  readonly threshold?: number | undefined
  /** Most on one connection; the least recently used goes. @default 256, `DATABASE_PREPARE_MAX` */
  readonly max?: number | undefined
}

/** Repeating what failed without effect, or reads that may have run. Times are milliseconds. */
export interface RetryOptions {
  /** Attempts in all, the first included. @default 3, `DATABASE_RETRY_ATTEMPTS` */
  readonly attempts?: number | undefined
  /** The longest pause after the first failure; it doubles with each, and the real one is random below. @default 25 */
  readonly baseDelayMs?: number | undefined
  /** @default 1000 */
  readonly maxDelayMs?: number | undefined
}

/** When calls to a failing server are refused. Times are milliseconds. */
export interface BreakerOptions {
  /** It opens when more than so many percent of the calls fail … @default 50 */
  readonly errorThresholdPercentage?: number | undefined
  /** … out of at least so many … @default 10 */
  readonly volumeThreshold?: number | undefined
  /** … within this time after the first failure. @default 10000 */
  readonly windowMs?: number | undefined
  /** How long it stays open before one call may try. @default 1000 */
  readonly resetTimeoutMs?: number | undefined
}

/** The pool of connections to one server. Times are milliseconds. */
export interface PoolOptions {
  /** Most connections open at once. The embedded PostgreSQL has one. @default 20, `DATABASE_POOL_MAX` */
  readonly max?: number | undefined
  /** Connections that are opened at the start and kept. @default 0, `DATABASE_POOL_MIN` */
  readonly min?: number | undefined
  /** Most callers that may wait for a connection; more are turned away with `POOL_OVERLOADED`. @default 1000, `DATABASE_POOL_MAX_WAITING` */
  readonly maxWaiting?: number | undefined
  /** How long a caller waits for a connection before `POOL_TIMEOUT`. @default 5000, `DATABASE_POOL_ACQUIRE_TIMEOUT_MS` */
  readonly acquireTimeoutMs?: number | undefined
  /** A connection unused for so long is closed; 0 keeps it. @default 30000, `DATABASE_POOL_IDLE_TIMEOUT_MS` */
  readonly idleTimeoutMs?: number | undefined
  /**
   * A connection older than this, less up to a tenth at random so that they do not all go at once, is closed when it is
   * free; 0 keeps it. @default 1800000, `DATABASE_POOL_MAX_LIFETIME_MS`
   */
  readonly maxLifetimeMs?: number | undefined
  /** How long `close()` waits for borrowed connections. @default 10000 in production, else 2000, `DATABASE_POOL_DRAIN_TIMEOUT_MS` */
  readonly drainTimeoutMs?: number | undefined
  /**
   * Who keeps a connection longer than this is reported by the event `leak` and the logger, with the place in the
   * program that borrowed it; 0 never. @default 60000, `DATABASE_POOL_LEAK_WARNING_MS`
   */
  readonly leakWarningMs?: number | undefined
}

/** The PostgreSQL that runs inside the process (PGlite), for development without a server. */
export interface EmbeddedOptions {
  /** A folder, or `memory` to forget everything on close. @default `.kanta/postgres`; `memory` when testing. `DATABASE_EMBEDDED_DATA_DIR` */
  readonly dataDir?: string | undefined
}

/** Redis. Times are milliseconds. */
export interface RedisOptions {
  /**
   * `redis://:password@host:6379/0`; `redis+sentinel://host:26379,host:26379/primary-name/0`, with `?sentinelPassword=…` if
   * the Sentinels ask for one; `redis+cluster://host:6379,host:6379`. With `rediss` for TLS, whose certificate is checked
   * (`NODE_EXTRA_CA_CERTS` for an authority of your own). @default `REDIS_URL` or the file named by `REDIS_URL_FILE`
   */
  readonly url?: string | undefined
  /** How long a command may take before it counts as failed. @default 500, `REDIS_COMMAND_TIMEOUT_MS` */
  readonly commandTimeoutMs?: number | undefined
}

/** The part of the cache that is in the memory of the process. Times are milliseconds. */
export interface MemoryCacheOptions {
  /** @default 10000, `CACHE_MEMORY_MAX_ENTRIES` */
  readonly maxEntries?: number | undefined
  /** Of the values, about. @default 67108864 (64 MB), `CACHE_MEMORY_MAX_BYTES` */
  readonly maxBytes?: number | undefined
  /**
   * What a caller gets of a value that others get too: `freeze` it itself, unchangeable; `clone` a copy of its own each
   * time; `shared` it itself, for programs that change nothing. @default freeze, `CACHE_MEMORY_VALUES`
   */
  readonly values?: 'clone' | 'freeze' | 'shared' | undefined
  /** The longest that a value stays there without being looked for in Redis again. @default 60000, `CACHE_MEMORY_TTL_MS` */
  readonly ttlMs?: number | undefined
  /**
   * The same while Redis is away, so that nothing is heard of what other processes invalidate. 0 keeps nothing then.
   * @default 1000, `CACHE_MEMORY_TTL_WITHOUT_REDIS_MS`
   */
  readonly ttlWithoutRedisMs?: number | undefined
}

/** The cache: in memory, and in Redis where there is one. Times are milliseconds. */
export interface CacheOptions {
  /** What shares its values; what does not, and uses the same Redis, needs another one. @default kanta, `CACHE_NAMESPACE` */
  readonly namespace?: string | undefined
  /** How long a value counts as fresh. @default 60000, `CACHE_TTL_MS` */
  readonly ttlMs?: number | undefined
  /** The longest time that any value may be given. @default 86400000 (a day), `CACHE_MAX_TTL_MS` */
  readonly maxTtlMs?: number | undefined
  /** How values become bytes for Redis that plain JSON cannot hold: dates, bigints, bytes, maps, sets. @default msgpack, `CACHE_CODEC` */
  readonly codec?: 'json' | 'msgpack' | undefined
  /** What is larger is compressed. @default 4096, `CACHE_COMPRESS_ABOVE_BYTES` */
  readonly compressAboveBytes?: number | false | undefined
  /** How long others wait for the one process that loads a value. @default 10000, `CACHE_LEASE_MS` */
  readonly leaseMs?: number | undefined
  /**
   * Strict: right before COMMIT, what the transaction invalidates is barred from the cache for this long, so that even a process
   * that dies between COMMIT and invalidation leaves nothing stale. Costs a round trip. @default false, `CACHE_HOLD_MS`
   */
  readonly holdMs?: number | false | undefined
  /** How often it is looked whether invalidations were lost without a word. @default 1000, `CACHE_HEARTBEAT_MS` */
  readonly heartbeatMs?: number | undefined
  /** Most keys and tags that wait while Redis is away; one more, and all is invalidated when it is back. @default 10000, `CACHE_MAX_QUEUED` */
  readonly maxQueued?: number | undefined
  /**
   * Whether committed writes end what `cached()` has of the tables that they touch. With Redis each write outside a transaction,
   * and each transaction that has written, then costs a round trip to it. All processes that write need the same. @default
   * true, `CACHE_QUERIES`
   */
  readonly queries?: boolean | undefined
  /**
   * Listens to the triggers of docs/cache.md, which tell what other programs write, and ends what `cached()` has of those tables. One
   * process that does so is enough for all that share Redis. @default false, `CACHE_LISTEN`
   */
  readonly listen?: boolean | undefined
  readonly memory?: MemoryCacheOptions | undefined
}

/** Everything that `createDatabase` takes. An option wins over its environment variable. */
export interface DatabaseOptions {
  /** @default from `NODE_ENV`: `development` when unset, itself for `test`, `production` for anything else */
  readonly environment?: Environment | undefined
  readonly postgres?: PostgresOptions | undefined
  /** `false`: no Redis even if `REDIS_URL` is set. */
  readonly redis?: RedisOptions | false | undefined
  readonly cache?: CacheOptions | undefined
  /**
   * What the cursors of `paginate` are signed with: text of at least 16 bytes, the same in all instances of a service. In a list the
   * first signs and all verify, so that a new one can be put in front of the old. @default `DATABASE_CURSOR_SECRET` (several
   * separated by spaces) or the file named by `DATABASE_CURSOR_SECRET_FILE`, then a key derived from the database's password,
   * then one of this process; in production, `CONFIG_INVALID` at the first use instead of that
   */
  readonly cursorSecret?: string | readonly string[] | undefined
  /** @default one line on stderr */
  readonly logger?: Logger | undefined
}

/** Where a server listens. */
export interface ServerAddress {
  /** A host name, an address, or the folder of a Unix socket. */
  readonly host: string
  readonly port: number
}

/** A PostgreSQL server as it will be connected to. */
export interface ServerTarget {
  readonly kind: 'server'
  /** At least one. */
  readonly hosts: readonly ServerAddress[]
  /** Whether only one that accepts writes will do. */
  readonly mustBeWritable: boolean
  readonly user: string
  readonly password: Secret<string | (() => string | Promise<string>)> | undefined
  readonly database: string
  readonly ssl: SslMode
  readonly sslCa: string | undefined
  readonly applicationName: string
  readonly connectTimeoutMs: number
  readonly statementTimeoutMs: number | undefined
  readonly types?: ValueTypes | undefined
}

/** The embedded PostgreSQL. */
export interface EmbeddedTarget {
  readonly kind: 'embedded'
  readonly dataDir: string
  readonly types?: ValueTypes | undefined
}

/** Which PostgreSQL is used. */
export type PostgresTarget = ServerTarget | EmbeddedTarget

/** Redis as it will be connected to. */
export interface RedisTarget extends Omit<RedisLocation, 'password' | 'sentinelPassword'> {
  readonly password: Secret<string> | undefined
  readonly sentinelPassword: Secret<string> | undefined
  readonly commandTimeoutMs: number
}

/** Options and environment, validated, completed and frozen. */
export interface ResolvedConfig {
  readonly environment: Environment
  readonly postgres: PostgresTarget
  /** The same database without a pooler in between. */
  readonly directPostgres: PostgresTarget
  readonly replicas: readonly ServerTarget[]
  readonly replicaReads: Complete<ReplicaReadOptions>
  readonly pool: Complete<PoolOptions>
  readonly queryTimeoutMs: number | false
  readonly listenerHeartbeatMs: number | false
  readonly repeatedReads: number | false
  /** `false` on the embedded PostgreSQL, which is one connection. */
  readonly pipeline: Complete<PipelineOptions> | false
  readonly preparedStatements: { readonly threshold: number | false; readonly max: number }
  readonly retry: Complete<RetryOptions> | false
  readonly breaker: Complete<BreakerOptions> | false
  readonly redis: RedisTarget | undefined
  readonly cache: CacheSettings
  readonly cursorSecret: Secret<readonly string[]> | undefined
  readonly logger: Logger
}

/** {@link CacheOptions}, completed. */
export interface CacheSettings extends Omit<Required<Defined<CacheOptions>>, 'memory'> {
  readonly memory: Required<Defined<MemoryCacheOptions>>
}

type Defined<Options> = { readonly [Key in keyof Options]: Exclude<Options[Key], undefined> }

type Complete<Options> = { readonly [Key in keyof Options]-?: number }

/** A value that no log, inspection or JSON shows. */
export class Secret<T> {
  readonly #value: T

  constructor(value: T) {
    this.#value = value
  }

  reveal(): T {
    return this.#value
  }

  toString(): string {
    return '[redacted]'
  }

  toJSON(): string {
    return '[redacted]'
  }
}

/** Every environment variable that sets an option. Those in {@link secretPaths} can also come from a file: `NAME_FILE`. */
const environmentVariables: Readonly<Record<string, string>> = {
  DATABASE_URL: 'postgres.url',
  DATABASE_DIRECT_URL: 'postgres.directUrl',
  DATABASE_REPLICA_URLS: 'postgres.replicas',
  DATABASE_REPLICA_MAX_LAG_MS: 'postgres.replicaReads.maxLagMs',
  DATABASE_REPLICA_CHECK_INTERVAL_MS: 'postgres.replicaReads.checkIntervalMs',
  DATABASE_REPLICA_WAIT_MS: 'postgres.replicaReads.waitMs',
  DATABASE_PASSWORD: 'postgres.password',
  DATABASE_SSL_MODE: 'postgres.ssl',
  DATABASE_APPLICATION_NAME: 'postgres.applicationName',
  DATABASE_CONNECT_TIMEOUT_MS: 'postgres.connectTimeoutMs',
  DATABASE_QUERY_TIMEOUT_MS: 'postgres.queryTimeoutMs',
  DATABASE_STATEMENT_TIMEOUT_MS: 'postgres.statementTimeoutMs',
  // Switches stand before what they switch: off is off, whatever else is set.
  DATABASE_PIPELINE: 'postgres.pipeline',
  DATABASE_PREPARED_STATEMENTS: 'postgres.preparedStatements',
  DATABASE_RETRY: 'postgres.retry',
  DATABASE_BREAKER: 'postgres.breaker',
  DATABASE_LISTENER_HEARTBEAT_MS: 'postgres.listenerHeartbeatMs',
  DATABASE_REPEATED_READS: 'postgres.repeatedReads',
  DATABASE_PIPELINE_CONNECTIONS: 'postgres.pipeline.connections',
  DATABASE_PIPELINE_DEPTH: 'postgres.pipeline.depth',
  DATABASE_PREPARE_THRESHOLD: 'postgres.preparedStatements.threshold',
  DATABASE_PREPARE_MAX: 'postgres.preparedStatements.max',
  DATABASE_RETRY_ATTEMPTS: 'postgres.retry.attempts',
  DATABASE_POOL_MAX: 'postgres.pool.max',
  DATABASE_POOL_MIN: 'postgres.pool.min',
  DATABASE_POOL_MAX_WAITING: 'postgres.pool.maxWaiting',
  DATABASE_POOL_LEAK_WARNING_MS: 'postgres.pool.leakWarningMs',
  DATABASE_POOL_ACQUIRE_TIMEOUT_MS: 'postgres.pool.acquireTimeoutMs',
  DATABASE_POOL_IDLE_TIMEOUT_MS: 'postgres.pool.idleTimeoutMs',
  DATABASE_POOL_MAX_LIFETIME_MS: 'postgres.pool.maxLifetimeMs',
  DATABASE_POOL_DRAIN_TIMEOUT_MS: 'postgres.pool.drainTimeoutMs',
  DATABASE_TYPES_INT8: 'postgres.types.int8',
  DATABASE_TYPES_NUMERIC: 'postgres.types.numeric',
  DATABASE_TYPES_DATE: 'postgres.types.date',
  DATABASE_EMBEDDED_DATA_DIR: 'postgres.embedded.dataDir',
  DATABASE_CURSOR_SECRET: 'cursorSecret',
  REDIS_URL: 'redis.url',
  REDIS_COMMAND_TIMEOUT_MS: 'redis.commandTimeoutMs',
  CACHE_NAMESPACE: 'cache.namespace',
  CACHE_TTL_MS: 'cache.ttlMs',
  CACHE_MAX_TTL_MS: 'cache.maxTtlMs',
  CACHE_CODEC: 'cache.codec',
  CACHE_COMPRESS_ABOVE_BYTES: 'cache.compressAboveBytes',
  CACHE_LEASE_MS: 'cache.leaseMs',
  CACHE_HOLD_MS: 'cache.holdMs',
  CACHE_HEARTBEAT_MS: 'cache.heartbeatMs',
  CACHE_MAX_QUEUED: 'cache.maxQueued',
  CACHE_QUERIES: 'cache.queries',
  CACHE_LISTEN: 'cache.listen',
  CACHE_MEMORY_MAX_ENTRIES: 'cache.memory.maxEntries',
  CACHE_MEMORY_MAX_BYTES: 'cache.memory.maxBytes',
  CACHE_MEMORY_VALUES: 'cache.memory.values',
  CACHE_MEMORY_TTL_MS: 'cache.memory.ttlMs',
  CACHE_MEMORY_TTL_WITHOUT_REDIS_MS: 'cache.memory.ttlWithoutRedisMs',
}

/** What is an object or `false`; from the environment it can only be switched off, or left on by `true`. */
const switchPaths: ReadonlySet<string> = new Set([
  'postgres.pipeline',
  'postgres.preparedStatements',
  'postgres.retry',
  'postgres.breaker',
])

const secretPaths: ReadonlySet<string> = new Set([
  'postgres.url',
  'postgres.directUrl',
  'postgres.replicas',
  'postgres.password',
  'redis.url',
  'cursorSecret',
])

/** From the environment, separated by spaces. */
const listPaths: ReadonlySet<string> = new Set(['postgres.replicas', 'cursorSecret'])

/** Settings that say which database; given in code, they replace all of these from the environment. */
const placePaths: ReadonlySet<string> = new Set([
  'postgres.url',
  'postgres.directUrl',
  'postgres.replicas',
  'postgres.password',
  'postgres.embedded.dataDir',
])

const wholeNumber = (min: number, max: number, what: string) => {
  const expected = `${what} from ${min} to ${max}`
  return z.int(expected).min(min, expected).max(max, expected).optional()
}
// Timers in Node take at most 2^31 - 1 ms.
const milliseconds = (min: number) => wholeNumber(min, 2_147_483_647, 'a whole number of milliseconds')
const text = (expected: string) => z.string(expected).min(1, expected).optional()

/** A setting that `false` switches off. */
const orOff = <Schema extends z.ZodType>(schema: Schema) => z.union([z.literal(false), schema]).optional()

const sslModes = ['disable', 'no-verify', 'verify-full'] as const
const sslModeExpected = `one of ${sslModes.join(', ')}`

const postgresShape = {
  url: text('a postgres:// URL'),
  directUrl: text('a postgres:// URL'),
  replicas: z.array(z.string('a postgres:// URL').min(1, 'a postgres:// URL'), 'a list of postgres:// URLs').optional(),
  replicaReads: z
    .strictObject(
      { maxLagMs: milliseconds(0), checkIntervalMs: milliseconds(10), waitMs: milliseconds(0) },
      'an object',
    )
    .optional(),
  password: z
    .custom<string | (() => string | Promise<string>)>(
      (value) => typeof value === 'string' || typeof value === 'function',
      'a string or a function that returns one',
    )
    .optional(),
  ssl: z.enum(sslModes, sslModeExpected).optional(),
  sslCa: text('a certificate as PEM text'),
  applicationName: z.string('text of 1 to 63 bytes').min(1).max(63).optional(),
  connectTimeoutMs: milliseconds(1),
  queryTimeoutMs: orOff(milliseconds(1)),
  statementTimeoutMs: milliseconds(0),
  listenerHeartbeatMs: orOff(milliseconds(1)),
  repeatedReads: orOff(wholeNumber(2, 1_000_000, 'a whole number of reads')),
  pipeline: orOff(
    z.strictObject(
      { connections: wholeNumber(1, 64, 'a whole number'), depth: wholeNumber(1, 10_000, 'a whole number') },
      'an object or false',
    ),
  ),
  preparedStatements: orOff(
    z.strictObject(
      { threshold: wholeNumber(1, 1_000_000, 'a whole number'), max: wholeNumber(1, 100_000, 'a whole number') },
      'an object or false',
    ),
  ),
  retry: orOff(
    z.strictObject(
      {
        attempts: wholeNumber(1, 100, 'a whole number'),
        baseDelayMs: milliseconds(0),
        maxDelayMs: milliseconds(0),
      },
      'an object or false',
    ),
  ),
  breaker: orOff(
    z.strictObject(
      {
        errorThresholdPercentage: wholeNumber(1, 100, 'a whole number'),
        volumeThreshold: wholeNumber(1, 1_000_000, 'a whole number'),
        windowMs: milliseconds(1),
        resetTimeoutMs: milliseconds(1),
      },
      'an object or false',
    ),
  ),
  pool: z
    .strictObject(
      {
        max: wholeNumber(1, 10_000, 'a whole number'),
        min: wholeNumber(0, 10_000, 'a whole number'),
        maxWaiting: wholeNumber(0, 10_000_000, 'a whole number'),
        acquireTimeoutMs: milliseconds(1),
        idleTimeoutMs: milliseconds(0),
        maxLifetimeMs: milliseconds(0),
        drainTimeoutMs: milliseconds(0),
        leakWarningMs: milliseconds(0),
      },
      'an object',
    )
    .optional(),
  types: z
    .strictObject(
      {
        int8: z.enum(['bigint', 'number', 'string'], 'bigint, number or string').optional(),
        numeric: z.enum(['number', 'string'], 'number or string').optional(),
        date: z.enum(['Date', 'string'], 'Date or string').optional(),
      },
      'an object',
    )
    .optional(),
  embedded: z.strictObject({ dataDir: text('a folder, or memory') }, 'an object').optional(),
}

const namespaceExpected = '1 to 100 letters, digits, dots, colons, hyphens or underscores'
const aDayOrMore = 366 * 86_400_000

const cacheShape = {
  namespace: z
    .string(namespaceExpected)
    .regex(/^[\w.:-]{1,100}$/, namespaceExpected)
    .optional(),
  ttlMs: wholeNumber(0, aDayOrMore, 'a whole number of milliseconds'),
  maxTtlMs: wholeNumber(1, aDayOrMore, 'a whole number of milliseconds'),
  codec: z.enum(['json', 'msgpack'], 'json or msgpack').optional(),
  compressAboveBytes: orOff(wholeNumber(0, 2_147_483_647, 'a whole number of bytes')),
  leaseMs: milliseconds(10),
  holdMs: orOff(milliseconds(1)),
  heartbeatMs: milliseconds(10),
  maxQueued: wholeNumber(1, 10_000_000, 'a whole number'),
  queries: z.boolean('true or false').optional(),
  listen: z.boolean('true or false').optional(),
  memory: z
    .strictObject(
      {
        maxEntries: wholeNumber(1, 100_000_000, 'a whole number'),
        maxBytes: wholeNumber(1, Number.MAX_SAFE_INTEGER, 'a whole number of bytes'),
        values: z.enum(['clone', 'freeze', 'shared'], 'clone, freeze or shared').optional(),
        ttlMs: milliseconds(1),
        ttlWithoutRedisMs: milliseconds(0),
      },
      'an object',
    )
    .optional(),
}

/** The fewest bytes that a secret for cursors may have. */
export const minCursorSecretBytes = 16

/** Secrets for cursors as a list; `undefined` when what was given is not what they must be. */
export function cursorSecretsIn(given: unknown): readonly string[] | undefined {
  const secrets: readonly unknown[] = Array.isArray(given) ? given : [given]
  return secrets.length > 0 && secrets.every(isLongEnough) ? secrets : undefined
}

function isLongEnough(given: unknown): given is string {
  return typeof given === 'string' && Buffer.byteLength(given) >= minCursorSecretBytes
}

const optionsSchema = z.strictObject(
  {
    environment: z.enum(['development', 'production', 'test'], 'development, production or test').optional(),
    postgres: z.strictObject(postgresShape, 'an object').optional(),
    redis: z
      .strictObject({ url: text('a redis:// URL'), commandTimeoutMs: milliseconds(1) }, 'an object or false')
      .optional(),
    cache: z.strictObject(cacheShape, 'an object').optional(),
    cursorSecret: z
      .custom<string | readonly string[]>(
        (value) => cursorSecretsIn(value) !== undefined,
        `text of at least ${minCursorSecretBytes} bytes, or a list of such`,
      )
      .optional(),
    logger: z
      .custom<Logger>(
        (value) =>
          typeof value === 'object' &&
          value !== null &&
          ['info', 'warn'].every((name) => typeof (value as Record<string, unknown>)[name] === 'function'),
        'an object with the functions info and warn',
      )
      .optional(),
  },
  'an object',
)

/** Names for the message about one that does not exist. */
function optionNames(path: string): readonly string[] {
  return Object.keys(objectIn(schemaAt(path))?.shape ?? {})
}

function schemaAt(path: string): z.core.$ZodType | undefined {
  const keys = path === '' ? [] : path.split('.')
  return keys.reduce<z.core.$ZodType | undefined>((outer, key) => objectIn(outer)?.shape[key], optionsSchema)
}

/** Whether `false` is a value of the option. */
function takesFalse(path: string): boolean {
  const schema = schemaAt(path)
  return schema !== undefined && z.safeParse(schema, false).success
}

/** The object behind "optional" and "or false". */
function objectIn(schema: z.core.$ZodType | undefined): z.ZodObject | undefined {
  if (schema instanceof z.ZodOptional) return objectIn(schema.unwrap())
  if (schema instanceof z.ZodUnion) return schema.options.map(objectIn).find((option) => option !== undefined)
  return schema instanceof z.ZodObject ? schema : undefined
}

type ParsedOptions = z.infer<typeof optionsSchema>
type ParsedPostgres = NonNullable<ParsedOptions['postgres']>

/**
 * Options and environment in, one validated, completed and frozen configuration out. Reports every problem at once as
 * a {@link ConfigError}; nothing that it says holds a credential.
 */
export function resolveConfig(options: DatabaseOptions = {}, env: NodeJS.ProcessEnv = process.env): ResolvedConfig {
  const problems: ConfigProblem[] = []
  const input = readInput(options, env, problems)
  const parsed = optionsSchema.safeParse(input.values)
  if (!parsed.success) problems.push(...parsed.error.issues.flatMap((issue) => describeIssue(issue, input)))

  const environment = environmentOf(options, env)
  // Targets are looked at even when another setting is wrong, so that their problems are reported in the same breath.
  const valid: ParsedOptions = parsed.success ? parsed.data : validPart(optionsSchema, input.values)
  const postgres = valid.postgres ?? {}
  const target = resolveTarget(postgres, { environment, env, input, problems })
  const direct = resolveDirectTarget(postgres, target, { environment, env, input, problems })
  const replicas = resolveReplicas(postgres, target, { environment, env, input, problems })
  const redis = resolveRedis(valid.redis, input, problems)
  if (!parsed.success || !target || !direct || problems.length > 0) throw new ConfigError(problems)

  return deepFreeze({
    environment,
    postgres: target,
    directPostgres: direct,
    replicas,
    replicaReads: {
      maxLagMs: postgres.replicaReads?.maxLagMs ?? 10_000,
      checkIntervalMs: postgres.replicaReads?.checkIntervalMs ?? 1_000,
      waitMs: postgres.replicaReads?.waitMs ?? 500,
    },
    pool: resolvePool(postgres.pool, environment, target.kind),
    listenerHeartbeatMs: postgres.listenerHeartbeatMs ?? 10_000,
    repeatedReads: postgres.repeatedReads ?? (environment === 'development' ? 10 : false),
    ...resolveEngine(postgres, target.kind),
    redis,
    cache: resolveCache(valid.cache),
    cursorSecret: resolveCursorSecret(valid.cursorSecret),
    logger: valid.logger ?? stderrLogger,
  })
}

/** What came in: the options laid over the environment, and where each value is from. */
interface Input {
  readonly values: Record<string, unknown>
  /** The name by which the user knows a setting: its variable if that gave the value, else its path. */
  keyOf(path: string): string
}

function readInput(options: DatabaseOptions, env: NodeJS.ProcessEnv, problems: ConfigProblem[]): Input {
  const values = copyObjects(options) as Record<string, unknown>
  // It has a state of its own, and is called as its owner made it.
  if (isRecord(values) && 'logger' in values) values['logger'] = options.logger
  const origins = new Map<string, string>()
  const keyOf = (path: string): string => origins.get(path) ?? path
  if (!isRecord(values)) return { values, keyOf }

  const { postgres } = options
  const placeIsGiven = postgres?.url !== undefined || postgres?.embedded !== undefined
  const redisIsOff = options.redis === false
  if (redisIsOff) delete values['redis']

  for (const [name, path] of Object.entries(environmentVariables)) {
    if (placeIsGiven && placePaths.has(path)) continue
    if (redisIsOff && path.startsWith('redis.')) continue
    const value = secretPaths.has(path) ? readSecret(name, env, problems) : env[name]
    if (value === undefined || value === '') continue
    if (switchPaths.has(path) && value !== 'false') {
      if (value !== 'true') problems.push(notASwitch(name, value))
      continue
    }
    if (assignAbsent(values, path.split('.'), typedValue(path, value))) origins.set(path, name)
  }
  return { values, keyOf }
}

function typedValue(path: string, value: string): unknown {
  if (listPaths.has(path)) return value.trim().split(/\s+/)
  if (secretPaths.has(path)) return value
  if (value === 'false' && takesFalse(path)) return false
  return /^-?\d+$/.test(value) ? Number(value) : value
}

function notASwitch(name: string, value: string): ConfigProblem {
  return { key: name, expected: 'true or false', received: describeValue(value), remedy: `Correct or unset ${name}.` }
}

function readSecret(name: string, env: NodeJS.ProcessEnv, problems: ConfigProblem[]): string | undefined {
  const fileKey = `${name}_FILE`
  const file = env[fileKey]
  if (!file) return env[name]
  if (env[name]) {
    problems.push({
      key: fileKey,
      expected: `either ${name} or ${fileKey}`,
      received: 'both',
      remedy: 'Unset one of them.',
    })
    return undefined
  }
  try {
    return readFileSync(file, 'utf8').replace(/\r?\n$/, '')
  } catch (error) {
    const reason = (error as NodeJS.ErrnoException).code ?? 'unreadable'
    problems.push({
      key: fileKey,
      expected: 'a file that can be read',
      received: `${JSON.stringify(file)} (${reason})`,
      remedy: 'Put the secret at that path, or correct the path.',
    })
    return undefined
  }
}

function environmentOf(options: DatabaseOptions, env: NodeJS.ProcessEnv): Environment {
  const name = options?.environment ?? env['NODE_ENV'] ?? ''
  if (name === '' || name === 'development') return 'development'
  // Staging and whatever else a team calls its servers get the careful defaults.
  return name === 'test' ? 'test' : 'production'
}

function describeIssue(issue: z.core.$ZodIssue, input: Input): ConfigProblem[] {
  if (issue.code === 'invalid_union') {
    // "False or this": what is wrong with it as "this" is what there is to say.
    return (issue.errors.at(-1) ?? []).flatMap((inner) =>
      describeIssue({ ...inner, path: [...issue.path, ...inner.path] }, input),
    )
  }
  const path = issue.path.join('.')
  if (issue.code === 'unrecognized_keys') return issue.keys.map((key) => unknownOption(path, key))
  const received = secretPaths.has(path.replace(/\.\d+$/, ''))
    ? 'a value that is not shown'
    : describeValue(valueAt(input.values, issue.path))
  return [{ key: input.keyOf(path) || 'options', expected: issue.message, received, remedy: remedyFor(path, input) }]
}

function remedyFor(path: string, input: Input): string {
  const variable = Object.keys(environmentVariables).find((name) => environmentVariables[name] === path)
  const key = input.keyOf(path)
  if (variable === undefined) return 'Correct it in the call.'
  return key === variable
    ? `Correct or unset ${variable}.`
    : `Correct it in the call, or leave it out and set ${variable}.`
}

function unknownOption(path: string, key: string): ConfigProblem {
  const known = optionNames(path)
  const near = known.find(
    (name) => name.toLowerCase() === key.toLowerCase() || name.startsWith(key) || key.startsWith(name),
  )
  return {
    key: path ? `${path}.${key}` : key,
    expected: `one of ${known.join(', ')}`,
    received: 'an option that does not exist',
    remedy: near ? `Did you mean ${near}?` : 'Remove it.',
  }
}

interface TargetContext {
  readonly environment: Environment
  readonly env: NodeJS.ProcessEnv
  readonly input: Input
  readonly problems: ConfigProblem[]
}

function resolveTarget(options: ParsedPostgres, context: TargetContext): PostgresTarget | undefined {
  const { environment, env, problems } = context
  if (
    options.url !== undefined &&
    options.embedded !== undefined &&
    context.input.keyOf('postgres.url') === 'postgres.url'
  ) {
    problems.push({
      key: 'postgres',
      expected: 'either url or embedded',
      received: 'both',
      remedy: 'Leave one of them out.',
    })
    return undefined
  }
  if (options.url !== undefined) return resolveUrl('postgres.url', options.url, options, context)
  if (
    options.embedded === undefined ||
    context.input.keyOf('postgres.embedded.dataDir') === 'DATABASE_EMBEDDED_DATA_DIR'
  ) {
    if (env['PGHOST']) return resolveLibpq(options, context)
  }
  if (environment === 'production') {
    problems.push({
      key: 'DATABASE_URL',
      expected: 'a postgres:// URL',
      received: options.embedded ? 'the embedded PostgreSQL' : 'nothing',
      remedy:
        'Set DATABASE_URL. The embedded PostgreSQL is for development only, and NODE_ENV is not development or test.',
    })
    return undefined
  }
  return {
    kind: 'embedded',
    dataDir: options.embedded?.dataDir ?? (environment === 'test' ? 'memory' : '.kanta/postgres'),
    ...(options.types && { types: options.types }),
  }
}

function resolveDirectTarget(
  options: ParsedPostgres,
  target: PostgresTarget | undefined,
  context: TargetContext,
): PostgresTarget | undefined {
  if (options.directUrl === undefined) return target
  return resolveUrl('postgres.directUrl', options.directUrl, options, context)
}

/** Each host is a replica of its own, whatever its role is now: roles change. */
function resolveReplicas(
  options: ParsedPostgres,
  target: PostgresTarget | undefined,
  context: TargetContext,
): readonly ServerTarget[] {
  const { replicas = [] } = options
  if (replicas.length > 0 && target?.kind === 'embedded') {
    context.problems.push({
      key: context.input.keyOf('postgres.replicas'),
      expected: 'no replicas beside the embedded PostgreSQL',
      received: `${replicas.length}`,
      remedy: 'Set the URL of the primary as well, or remove the replicas.',
    })
    return []
  }
  return replicas.flatMap((url) => {
    const replica = resolveUrl('postgres.replicas', url, options, context)
    return (replica?.hosts ?? []).map((host) => ({
      ...(replica as ServerTarget),
      hosts: [host],
      mustBeWritable: false,
    }))
  })
}

const urlParameters = ['sslmode', 'sslrootcert', 'application_name', 'host', 'target_session_attrs']
const sessionAttributes = ['any', 'read-write']

function resolveUrl(
  path: string,
  value: string,
  options: ParsedPostgres,
  context: TargetContext,
): ServerTarget | undefined {
  const { input, problems } = context
  const before = problems.length
  const wrong = (expected: string, received: string, remedy: string): void => {
    problems.push({ key: input.keyOf(path), expected, received, remedy })
  }
  const { first, others } = splitHosts(value)
  // libpq allows no host between @ and /, WHATWG does not.
  const url = URL.parse(first.replace(/^(postgres(?:ql)?:\/\/[^/?#]*@)(?=\/)/, '$1-'))
  if (!url || !/^postgres(ql)?:$/.test(url.protocol)) {
    const received = url && !url.password && !url.username ? `a ${url.protocol}// URL` : 'a value that is not shown'
    wrong(
      'postgres://user:password@host:5432/database',
      received,
      'Percent-encode special characters in user and password.',
    )
    return undefined
  }
  for (const name of url.searchParams.keys()) {
    if (!urlParameters.includes(name)) {
      wrong(
        `only the parameters ${urlParameters.join(', ')}`,
        name,
        'Remove it; most settings are options of createDatabase.',
      )
    }
  }
  const database = decode(url.pathname.slice(1))
  const host = url.searchParams.get('host') ?? hostOf(url)
  const further = others.map((authority) => URL.parse(`postgres://${authority}/`))
  if (further.some((other) => other === null || other.hostname === '' || other.username !== '')) {
    wrong('hosts as one:5432,two:5432', 'a list in which one is none', 'Separate hosts by commas, each with its port.')
  }
  const attributes = url.searchParams.get('target_session_attrs')
  if (attributes !== null && !sessionAttributes.includes(attributes)) {
    wrong(`target_session_attrs as ${sessionAttributes.join(' or ')}`, describeValue(attributes), 'Correct it.')
  }
  if (!host) wrong('a host', 'none', 'Write postgres://host/database, or ?host=/folder for a socket.')
  if (!database) wrong('a database', 'none', 'Write its name after the host: postgres://host/database.')
  const ca = url.searchParams.get('sslrootcert')
  const hosts = [{ host, port: portOf(url) }].concat(
    further.filter((other) => other !== null).map((other) => ({ host: hostOf(other), port: portOf(other) })),
  )
  const target = completeTarget(options, context, {
    hosts,
    mustBeWritable: hosts.length > 1 && attributes !== 'any',
    user: decode(url.username) || systemUser(context.env),
    password: url.password === '' ? undefined : decode(url.password),
    database,
    sslMode: url.searchParams.get('sslmode'),
    sslModeKey: `${input.keyOf(path)} (sslmode)`,
    caFile: ca,
    applicationName: url.searchParams.get('application_name'),
  })
  return problems.length > before ? undefined : target
}

/** libpq's list of hosts, which is no URL: one with the first, and the rest. */
function splitHosts(value: string): { readonly first: string; readonly others: readonly string[] } {
  const parts = /^(postgres(?:ql)?:\/\/(?:[^/?#]*@)?)([^/?#]*,[^/?#]*)(.*)$/s.exec(value)
  if (parts === null) return { first: value, others: [] }
  const [, scheme = '', list = '', rest = ''] = parts
  const [host = '', ...others] = list.split(',')
  return { first: `${scheme}${host}${rest}`, others }
}

function hostOf(url: URL): string {
  return decode(url.hostname).replace(/^\[(.*)\]$|^-$/, '$1')
}

function portOf(url: URL): number {
  return url.port === '' ? 5432 : Number(url.port)
}

/** The variables that psql and its kin read. */
function resolveLibpq(options: ParsedPostgres, context: TargetContext): ServerTarget | undefined {
  const { env, problems } = context
  const before = problems.length
  const port = env['PGPORT'] ? Number(env['PGPORT']) : 5432
  if (!Number.isInteger(port) || port < 1 || port > 65_535) {
    const received = describeValue(env['PGPORT'])
    problems.push({ key: 'PGPORT', expected: 'a port from 1 to 65535', received, remedy: 'Correct or unset PGPORT.' })
  }
  const user = env['PGUSER'] || systemUser(env)
  const target = completeTarget(options, context, {
    hosts: [{ host: env['PGHOST'] ?? 'localhost', port }],
    mustBeWritable: false,
    user,
    password: env['PGPASSWORD'],
    database: env['PGDATABASE'] || user,
    sslMode: env['PGSSLMODE'] ?? null,
    sslModeKey: 'PGSSLMODE',
    caFile: env['PGSSLROOTCERT'] ?? null,
    applicationName: env['PGAPPNAME'] ?? null,
  })
  return problems.length > before ? undefined : target
}

interface Place {
  readonly hosts: readonly ServerAddress[]
  readonly mustBeWritable: boolean
  readonly user: string
  readonly password: string | undefined
  readonly database: string
  readonly sslMode: string | null
  readonly sslModeKey: string
  readonly caFile: string | null
  readonly applicationName: string | null
}

function completeTarget(options: ParsedPostgres, context: TargetContext, place: Place): ServerTarget {
  const { environment, env, input, problems } = context
  const mode = preferred('postgres.ssl', options.ssl, place.sslMode, input) ?? defaultSslMode(place.hosts, environment)
  const isKnown = (sslModes as readonly string[]).includes(mode)
  if (!isKnown) {
    problems.push({
      key: place.sslModeKey,
      expected: sslModeExpected,
      received: describeValue(mode),
      remedy:
        'Modes such as require and prefer mean different things to different drivers; say verify-full for safety.',
    })
  }
  const caFiles = [env['DATABASE_SSL_CA_FILE'], place.caFile]
  const caFile = (isFromCode('postgres.url', options.url, input) ? caFiles.toReversed() : caFiles).find(Boolean)
  const password = options.password ?? place.password
  return {
    kind: 'server',
    hosts: place.hosts,
    mustBeWritable: place.mustBeWritable,
    user: place.user,
    password: password === undefined ? undefined : new Secret(password),
    database: place.database,
    ssl: isKnown ? (mode as SslMode) : 'verify-full',
    sslCa: options.sslCa ?? (caFile ? readCertificate(caFile, problems) : undefined),
    applicationName:
      preferred('postgres.applicationName', options.applicationName, place.applicationName, input) ?? 'kanta',
    connectTimeoutMs: options.connectTimeoutMs ?? 5_000,
    statementTimeoutMs: options.statementTimeoutMs,
    ...(options.types && { types: options.types }),
  }
}

/** A parameter of a URL in code counts for more than the environment, and less than an option of its own. */
function preferred(
  path: string,
  option: string | undefined,
  parameter: string | null,
  input: Input,
): string | undefined {
  if (isFromCode(path, option, input)) return option
  const isUrlFromCode = input.keyOf('postgres.url') === 'postgres.url'
  return isUrlFromCode ? (parameter ?? option) : (option ?? parameter ?? undefined)
}

function isFromCode(path: string, value: unknown, input: Input): boolean {
  return value !== undefined && input.keyOf(path) === path
}

function readCertificate(file: string, problems: ConfigProblem[]): string | undefined {
  try {
    return readFileSync(file, 'utf8')
  } catch (error) {
    const reason = (error as NodeJS.ErrnoException).code ?? 'unreadable'
    problems.push({
      key: 'DATABASE_SSL_CA_FILE',
      expected: 'a PEM file that can be read',
      received: `${JSON.stringify(file)} (${reason})`,
      remedy: 'Correct the path (DATABASE_SSL_CA_FILE, sslrootcert or PGSSLROOTCERT).',
    })
    return undefined
  }
}

function defaultSslMode(hosts: readonly ServerAddress[], environment: Environment): SslMode {
  const isLocal = hosts.every(({ host }) => host.startsWith('/') || /^(localhost|127\..*|::1)$/.test(host))
  return environment === 'production' && !isLocal ? 'verify-full' : 'disable'
}

function resolvePool(
  options: ParsedPostgres['pool'],
  environment: Environment,
  kind: PostgresTarget['kind'],
): ResolvedConfig['pool'] {
  return {
    // The embedded PostgreSQL is a single session.
    max: kind === 'embedded' ? 1 : (options?.max ?? 20),
    min: options?.min ?? 0,
    maxWaiting: options?.maxWaiting ?? 1_000,
    acquireTimeoutMs: options?.acquireTimeoutMs ?? 5_000,
    idleTimeoutMs: options?.idleTimeoutMs ?? 30_000,
    maxLifetimeMs: options?.maxLifetimeMs ?? 1_800_000,
    drainTimeoutMs: options?.drainTimeoutMs ?? (environment === 'production' ? 10_000 : 2_000),
    leakWarningMs: options?.leakWarningMs ?? 60_000,
  }
}

type EngineParts = Pick<ResolvedConfig, 'breaker' | 'pipeline' | 'preparedStatements' | 'queryTimeoutMs' | 'retry'>

function resolveEngine(options: ParsedPostgres, kind: PostgresTarget['kind']): EngineParts {
  const { pipeline, preparedStatements, retry, breaker } = options
  return {
    queryTimeoutMs: options.queryTimeoutMs ?? 30_000,
    pipeline:
      pipeline === false || kind === 'embedded'
        ? false
        : { connections: pipeline?.connections ?? 2, depth: pipeline?.depth ?? 128 },
    preparedStatements:
      preparedStatements === false
        ? { threshold: false, max: 0 }
        : { threshold: preparedStatements?.threshold ?? 3, max: preparedStatements?.max ?? 256 },
    retry: retry !== false && {
      attempts: retry?.attempts ?? 3,
      baseDelayMs: retry?.baseDelayMs ?? 25,
      maxDelayMs: retry?.maxDelayMs ?? 1_000,
    },
    breaker: breaker !== false && {
      errorThresholdPercentage: breaker?.errorThresholdPercentage ?? 50,
      volumeThreshold: breaker?.volumeThreshold ?? 10,
      windowMs: breaker?.windowMs ?? 10_000,
      resetTimeoutMs: breaker?.resetTimeoutMs ?? 1_000,
    },
  }
}

function resolveCache(options: ParsedOptions['cache'] = {}): CacheSettings {
  const { memory = {} } = options
  const maxTtlMs = options.maxTtlMs ?? 86_400_000
  return {
    namespace: options.namespace ?? 'kanta',
    ttlMs: Math.min(options.ttlMs ?? 60_000, maxTtlMs),
    maxTtlMs,
    codec: options.codec ?? 'msgpack',
    compressAboveBytes: options.compressAboveBytes ?? 4_096,
    leaseMs: options.leaseMs ?? 10_000,
    holdMs: options.holdMs ?? false,
    heartbeatMs: options.heartbeatMs ?? 1_000,
    maxQueued: options.maxQueued ?? 10_000,
    queries: options.queries ?? true,
    listen: options.listen ?? false,
    memory: {
      maxEntries: memory.maxEntries ?? 10_000,
      maxBytes: memory.maxBytes ?? 67_108_864,
      values: memory.values ?? 'freeze',
      ttlMs: memory.ttlMs ?? 60_000,
      ttlWithoutRedisMs: memory.ttlWithoutRedisMs ?? 1_000,
    },
  }
}

function resolveRedis(
  options: ParsedOptions['redis'],
  input: Input,
  problems: ConfigProblem[],
): RedisTarget | undefined {
  if (options?.url === undefined) return undefined
  const location = parseRedisUrl(options.url)
  if (location === undefined) {
    problems.push({
      key: input.keyOf('redis.url'),
      expected: redisUrlForms,
      received: 'a value that is not shown',
      remedy: remedyFor('redis.url', input),
    })
    return undefined
  }
  return {
    ...location,
    password: secret(location.password),
    sentinelPassword: secret(location.sentinelPassword),
    commandTimeoutMs: options.commandTimeoutMs ?? 500,
  }
}

function resolveCursorSecret(given: ParsedOptions['cursorSecret']): ResolvedConfig['cursorSecret'] {
  const secrets = given === undefined ? undefined : cursorSecretsIn(given)
  return secrets && new Secret(secrets)
}

function secret(value: string | undefined): Secret<string> | undefined {
  return value === undefined ? undefined : new Secret(value)
}

/** The target without credentials, as messages show it. */
export function describeTarget(target: PostgresTarget): string {
  if (target.kind === 'embedded') {
    return target.dataDir === 'memory' ? 'embedded PostgreSQL in memory' : `embedded PostgreSQL in ${target.dataDir}`
  }
  const { hosts, user, database } = target
  const [first] = hosts
  if (first?.host.startsWith('/')) return `postgres://${user}@/${database}?host=${first.host}&port=${first.port}`
  return `postgres://${user}@${hosts.map(describeAddress).join(',')}/${database}`
}

function describeAddress({ host, port }: ServerAddress): string {
  return `${host.includes(':') ? `[${host}]` : host}:${port}`
}

const stderrLogger: Logger = {
  info: (message) => void process.stderr.write(`kanta: ${message}\n`),
  warn: (message) => void process.stderr.write(`kanta: warning: ${message}\n`),
}

function describeValue(value: unknown): string {
  if (value === undefined) return 'nothing'
  if (typeof value === 'function') return 'a function'
  if (typeof value === 'object' && value !== null) return Array.isArray(value) ? 'a list' : 'an object'
  // A URL where an object belongs holds what a URL holds.
  if (typeof value === 'string' && value.includes('://')) return 'a URL, which is not shown'
  const shown = JSON.stringify(value) ?? typeof value
  return shown.length > 60 ? `${shown.slice(0, 57)}…` : shown
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && Object.getPrototypeOf(value) === Object.prototype
}

/** A copy of the plain objects, so that laying the environment below them changes nothing of the caller's. */
function copyObjects(value: unknown): unknown {
  if (!isRecord(value)) return value
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, copyObjects(inner)]))
}

function valueAt(root: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>((value, key) => (isRecord(value) ? value[String(key)] : undefined), root)
}

function assignAbsent(root: Record<string, unknown>, path: readonly string[], value: unknown): boolean {
  const [key, ...rest] = path
  if (key === undefined) return false
  if (rest.length === 0) {
    if (root[key] !== undefined) return false
    root[key] = value
    return true
  }
  root[key] ??= {}
  const inner = root[key]
  return isRecord(inner) && assignAbsent(inner, rest, value)
}

/** What is right of a configuration that is wrong elsewhere. */
function validPart(schema: z.ZodObject, value: unknown): Record<string, unknown> {
  if (!isRecord(value)) return {}
  return Object.fromEntries(
    Object.entries(schema.shape).flatMap(([key, field]) => {
      const result = z.safeParse(field, value[key])
      if (result.success) return result.data === undefined ? [] : [[key, result.data]]
      const inner = objectIn(field)
      return inner ? [[key, validPart(inner, value[key])]] : []
    }),
  )
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part)
  } catch {
    return part
  }
}

function systemUser(env: NodeJS.ProcessEnv): string {
  return env['PGUSER'] || env['USER'] || env['USERNAME'] || 'postgres'
}

function deepFreeze<T extends object>(value: T): T {
  for (const [key, inner] of Object.entries(value))
    if ((isRecord(inner) || Array.isArray(inner)) && key !== 'logger') deepFreeze(inner)
  return Object.freeze(value)
}
