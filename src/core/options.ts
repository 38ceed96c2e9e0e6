/** What the caller of `createDatabase` may set: types alone. */

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
  /**
   * The longest that it stays open before one call may try. Up to half of it is taken off at random, so that not all processes that
   * an outage has cut off come back at one moment. @default 1000
   */
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
