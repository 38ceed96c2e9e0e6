import { AsyncLocalStorage } from 'node:async_hooks'
import {
  type CompiledQuery,
  type Dialect,
  type Insertable,
  type Kysely,
  type RawBuilder,
  type RootOperationNode,
  type Selectable,
  sql,
  type Updateable,
} from 'kysely'
import type { ReadonlyKysely } from 'kysely/readonly'
import type { Cache, CacheStats } from './cache/layered-cache.ts'
import type { Invalidation } from './cache/invalidation-log.ts'
import { type CacheRedis, type InvalidationJournal, openCache, type OpenCache } from './cache/open-cache.ts'
import { type CachedOptions, QueryCache } from './cache/query-cache.ts'
import { type AnyChannel, channelName, encodePayload, type PayloadOf } from './core/channel.ts'
import {
  type DatabaseOptions,
  type Logger,
  type PostgresOptions,
  type RedisTarget,
  type ResolvedConfig,
  resolveConfig,
} from './core/config.ts'
import { type CursorSecret, cursorSecretOf } from './core/cursor-secret.ts'
import { settleWithin } from './core/deadline.ts'
import { DatabaseError, type ErrorCode, isDatabaseError, TimeoutError, TransactionError } from './core/errors.ts'
import type { EventSource } from './core/events.ts'
import { RepeatedReads } from './core/repeated-reads.ts'
import { redisConnectTimeoutMs } from './core/redis-url.ts'
import type {
  ListenOptions,
  NotificationHandler,
  NotificationStream,
  SubscriberReport,
  Subscription,
} from './core/subscriber.ts'
import {
  type BulkCommand,
  type BulkOptions,
  type BulkResult,
  BulkWrite,
  type ConflictRule,
  insertCommand,
  updateCommand,
} from './postgres/bulk.ts'
import type { ConnectionSource } from './postgres/connection.ts'
import {
  type CopyBytesOptions,
  type CopyFromOptions,
  CopyReaderStream,
  type CopyResult,
  type CopyStream,
  type CopyToOptions,
  CopyWrite,
} from './postgres/copy.ts'
import { type CopyFormat, copyQueryTo, copyTableTo, withLiterals } from './postgres/copy-sql.ts'
import { CopyOut } from './postgres/copy-statement.ts'
import {
  type CallOptions,
  type DatabaseEvents,
  Engine,
  type EngineContext,
  engineContext,
  type EngineSettings,
  type EngineStats,
  type ReplicaChoice,
} from './postgres/engine.ts'
import {
  createKysely,
  EngineDialect,
  type EngineKysely,
  type EngineParts,
  type KyselyOptions,
} from './postgres/executor.ts'
import { type ListenerStats, notificationLimit, Notifications } from './postgres/notifications.ts'
import { callSiteAbove, describeHolder, type PoolStats } from './postgres/pool.ts'
import { type Parameters, type PreparedQuery, prepareQuery } from './postgres/prepared-query.ts'
import { commitToken, Replicas, type ReplicaStats } from './postgres/replicas.ts'
import { type Reading, type RowSource, SourceReader, withSource } from './postgres/row-source.ts'
import { ChunkReader, type RowStream, type StreamOptions } from './postgres/row-stream.ts'
import { openSource, serverSource } from './postgres/source.ts'
import { toDatabaseError } from './postgres/sqlstate.ts'
import { type Hook, type Scope, type TransactionOptions, Transactions } from './postgres/transaction.ts'
import type { RedisClient, RedisClientStats, RedisObserver } from './redis/client.ts'
import { encodeMessage, RedisMessages, type SubscriberStats } from './redis/messages.ts'

/** Where the rows of queries are in the cache. */
const queryNamespace = 'sql'

/** What the triggers of docs/cache.md tell the names of tables on. */
const writesChannel = 'kanta_written'

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
   * Stands for the transaction or savepoint that statements of this async context join; `undefined` outside of one. To be compared,
   * for instance by what collects reads: those of one batch must be of one transaction.
   */
  readonly currentTransaction: object | undefined

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

  /**
   * The rows of a query that may be larger than memory: fetched in chunks, the next while the loop works on this one, at
   * most two in memory. Nothing is sent before the first row is asked for. Leaving the loop stops the server and gives the
   * connection back. Joins the transaction of the async context in which it was called; there, nothing else can run inside
   * the loop (`TRANSACTION_MISUSE`). To be read once, by one reader.
   *
   * A failure before the first row is treated as that of any query; after it nothing is repeated, and the loop throws:
   * `CONNECTION_LOST`, `QUERY_TIMEOUT` (no chunk within `chunkTimeoutMs`; the reader's own time does not count), the
   * reason of the signal. `INVALID_ARGUMENT`: a wrong option, or a COPY. A write that returns rows is done as a whole
   * with its first row, also when its reader leaves.
   *
   * @example
   * ```ts
   * import { createDatabase } from 'kanta'
   * import type { DB } from './generated/schema.ts'
   *
   * await using database = await createDatabase<DB>()
   * let letters = 0
   * for await (const { title } of database.stream(database.db.selectFrom('posts').select('title'))) letters += title.length
   * ```
   */
  stream<Row>(query: Runnable<Row>, options?: StreamOptions): RowStream<Row>

  /**
   * Inserts any number of rows, in statements of thousands: each column is one array, so the limit of 65 535 parameters
   * never matters. All or none by default, in a transaction that joins the one of this async context; the source is read
   * as fast as rows are written.
   *
   * A row without a column gets the column's default. Values mean what they mean as parameters; objects for JSON columns
   * become JSON, arrays there too. `BULK_SOURCE_FAILED`: the source threw; `INVALID_ARGUMENT`: a row cannot be sent, and
   * the message says which; else as an insert. `rowsWritten` of the error says what remains with `atomic: false`.
   *
   * @example
   * ```ts
   * import { createDatabase } from 'kanta'
   * import type { DB } from './generated/schema.ts'
   *
   * await using database = await createDatabase<DB>()
   * const cups = ['red', 'green'].map((name) => ({ sku: `CUP-${name}`, name, price_minor: 900 }))
   * const { count, rows } = await database.insertMany('products', cups, { returning: ['id'] })
   * console.log(count, rows)
   * ```
   */
  insertMany<Table extends TableName<DB>, Column extends ColumnName<DB, Table> = never>(
    table: Table,
    rows: RowSource<Insertable<DB[Table]>>,
    options?: BulkOptions<Column>,
  ): Promise<BulkResult<Pick<Selectable<DB[Table]>, Column>>>
  /**
   * Inserts rows as {@link insertMany}, and updates those that are there already by the columns of `conflict`, or leaves
   * them with `update: 'none'`; those are neither counted nor given back. A key may come once only.
   */
  upsertMany<Table extends TableName<DB>, Column extends ColumnName<DB, Table> = never>(
    table: Table,
    rows: RowSource<Insertable<DB[Table]>>,
    options: BulkOptions<Column> & ConflictRule<ColumnName<DB, Table>>,
  ): Promise<BulkResult<Pick<Selectable<DB[Table]>, Column>>>
  /**
   * Updates the rows that have these keys, each with its own values, in statements of thousands. A key that is not there
   * changes nothing and is not counted; one may come once only in a statement. Else as {@link insertMany}.
   */
  updateMany<Table extends TableName<DB>, Column extends ColumnName<DB, Table> = never>(
    table: Table,
    rows: RowSource<Updateable<DB[Table]>>,
    options: BulkOptions<Column> & { readonly key: readonly ColumnName<DB, Table>[] },
  ): Promise<BulkResult<Pick<Selectable<DB[Table]>, Column>>>

  /** COPY, the fastest way for very many rows: into a table, and out of one or of a query. */
  readonly copy: Copy<DB>

  /**
   * A Kysely that reads from the replicas: from one of those that are the least behind, and from the primary where none is
   * fit or those that are fit fail. Its transactions are read only. Inside a transaction of this database it joins that.
   * Without replicas it is the primary's. With `after` it sees all that was committed before the token was taken.
   *
   * @example
   * ```ts
   * import { createDatabase } from 'kanta'
   * import type { DB } from './generated/schema.ts'
   *
   * await using database = await createDatabase<DB>()
   * const names = await database.replica().selectFrom('users').select('name').execute()
   * ```
   */
  replica(choice?: ReplicaChoice): ReadonlyKysely<DB>
  /**
   * Where the primary's log is: a read on a replica with `{ replica: { after: token } }` sees all that was committed before
   * this was called. Short and fit for a header or a cookie; whoever sends another one back at worst makes the read wait
   * and go to the primary. Costs one statement. `TRANSACTION_MISUSE` inside a transaction, whose commit would not be in it.
   */
  lastCommitToken(): Promise<string>

  /**
   * Calls `handler` with each notification on the channel, one after the other in the order of their commits; a failure of it
   * is reported and stops nothing. Without a handler the subscription is read with `for await`. Resolves once the server has
   * confirmed LISTEN: what is committed from then on arrives, as long as the connection lives. All subscribers share one
   * connection, beside the pool, which comes back by itself when it is lost. Since notifications are lost with it, and
   * since a buffer has its bounds, `onGap` tells a subscriber that some are missing.
   *
   * Rejects with a `ConnectionError` when the server cannot be reached now, `NOTIFICATIONS_UNAVAILABLE` behind a pooler in
   * transaction mode, `INVALID_ARGUMENT` for a name of no or more than 63 bytes, `DATABASE_CLOSED`, and, only on the embedded
   * PostgreSQL, `TRANSACTION_MISUSE` inside a transaction.
   *
   * @example
   * ```ts
   * import { channel, createDatabase } from 'kanta'
   *
   * const orderPaid = channel<{ orderId: string }>('order_paid')
   * const database = await createDatabase()
   * await using subscription = await database.listen(orderPaid, ({ orderId }) => console.log(orderId), {
   *   onGap: () => console.log('look at all orders again'),
   * })
   * for await (const text of await database.listen('log')) console.log(text)
   * ```
   */
  listen<Channel extends AnyChannel>(
    channel: Channel,
    handler: NotificationHandler<PayloadOf<Channel>>,
    options?: ListenOptions,
  ): Promise<Subscription>
  listen<Channel extends AnyChannel>(
    channel: Channel,
    options?: ListenOptions,
  ): Promise<NotificationStream<PayloadOf<Channel>>>

  /**
   * Sends a notification to all who listen to the channel, in any process. Inside a transaction it joins that, and is
   * delivered when it commits, and never if it does not. Nobody keeps it for those who do not listen now.
   *
   * Rejects with `NOTIFICATION_TOO_LARGE` over 7 999 bytes of UTF-8, before anything is sent; with `INVALID_ARGUMENT` for what
   * is no payload; else as a query does. It counts as a write: when the connection is lost it is not sent again unless
   * the call says `idempotent`.
   */
  notify<Channel extends AnyChannel>(
    channel: Channel,
    payload: PayloadOf<Channel>,
    options?: CallOptions,
  ): Promise<void>

  /**
   * Calls `handler` with each message that is published on the channel of Redis, one after the other; else as {@link listen}.
   * Resolves once Redis has confirmed the subscription: what is published from then on arrives, as long as the connection
   * lives. It comes back by itself, and `onGap` tells what has to be read again then. All subscribers share one
   * connection. Names are those of Redis, whatever the namespace of the cache.
   *
   * Rejects with `REDIS_UNAVAILABLE` when Redis does not answer now or none is configured, `INVALID_ARGUMENT` for a name of no or
   * more than 63 bytes, `DATABASE_CLOSED`.
   *
   * @example
   * ```ts
   * import { channel, createDatabase } from 'kanta'
   *
   * const priceChanged = channel<{ sku: string }>('price-changed')
   * const database = await createDatabase()
   * await using subscription = await database.subscribe(priceChanged, ({ sku }) => console.log(sku), {
   *   onGap: () => console.log('look at all prices again'),
   * })
   * await database.publish(priceChanged, { sku: 'K-1' })
   * ```
   */
  subscribe<Channel extends AnyChannel>(
    channel: Channel,
    handler: NotificationHandler<PayloadOf<Channel>>,
    options?: ListenOptions,
  ): Promise<Subscription>
  subscribe<Channel extends AnyChannel>(
    channel: Channel,
    options?: ListenOptions,
  ): Promise<NotificationStream<PayloadOf<Channel>>>

  /**
   * Publishes a message to all who subscribe to the channel now, once at most; nobody keeps it for others. Inside a transaction it
   * goes out after the commit, and not at all if that does not come or cannot be proven: a process that dies in between publishes
   * nothing. What must not be lost is for {@link notify} or a table.
   *
   * Rejects with `REDIS_UNAVAILABLE` or `CIRCUIT_OPEN` when Redis does not answer or none is configured (after a commit that is a
   * warning), `NOTIFICATION_TOO_LARGE` over 1 MB, `INVALID_ARGUMENT` for what is no payload.
   */
  publish<Channel extends AnyChannel>(channel: Channel, payload: PayloadOf<Channel>): Promise<void>

  /**
   * Values in memory and in Redis that are right after every commit; see {@link Cache}. Without Redis it is one of this
   * process alone.
   *
   * @example
   * ```ts
   * import { createDatabase } from 'kanta'
   * import type { DB } from './generated/schema.ts'
   *
   * await using database = await createDatabase<DB>()
   * const { cache, db } = database
   * const names = await cache.getOrSet('names', () => db.selectFrom('users').select('name').execute(), { tags: ['users'] })
   * await database.transaction(async () => {
   *   await db.updateTable('users').set({ name: 'Ada' }).where('username', '=', 'ada').execute()
   *   await cache.invalidate({ tags: ['users'] })
   * })
   * console.log(names.length)
   * ```
   */
  readonly cache: Cache

  /**
   * The rows of a query that only reads, from the cache, or else from running it, or from `load`: they end with the next committed write, through kanta, to a table that the
   * query reads, in every process that shares the cache; with cascades of foreign keys, partitions and views thought of. The rows
   * are those of {@link cache}: frozen unless configured otherwise. Inside a transaction as `cache.getOrSet`.
   *
   * What cannot be seen has to be said: `tables` that SQL written by hand, a function or a fragment reads, `touches` of a statement
   * that writes by a function, {@link touched} after writes by triggers or by other programs. Rejects with `INVALID_ARGUMENT` for
   * a query that writes, or whose tables are not known; else as the query does.
   *
   * @example
   * ```ts
   * import { createDatabase } from 'kanta'
   * import type { DB } from './generated/schema.ts'
   *
   * await using database = await createDatabase<DB>()
   * const newest = database.db.selectFrom('products').select(['sku', 'name']).orderBy('id', 'desc').limit(10)
   * console.log(await database.cached(newest, { ttlMs: 30_000 }))
   * ```
   */
  cached<Row>(query: Runnable<Row>, options?: CachedOptions<Row>, load?: () => Promise<Row[]>): Promise<Row[]>
  /**
   * Ends what {@link cached} has of these tables, as a write to them does: for writes past kanta. In a transaction with its
   * commit.
   */
  touched(...tables: string[]): Promise<void>

  /**
   * What `paginate` signs the cursors of pages with: the option `cursorSecret`, else a key derived from the password of the
   * database, else one of this process. In production, without the first two, pages fail with `CONFIG_INVALID`.
   */
  readonly cursorSecret: CursorSecret

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

/** COPY with back-pressure on both sides, in constant memory. On a server; on the embedded PostgreSQL too, in its memory. */
export interface Copy<DB> {
  /**
   * Copies rows into a table, or bytes in one of COPY's formats when `format` is given: of a file, of another database. All or
   * nothing, in a transaction that joins the one of this async context. The source runs outside of it, and is read as
   * fast as the server takes. All rows have the same columns; values are sent as by {@link Database.insertMany}.
   *
   * `BULK_SOURCE_FAILED`: the source threw; `INVALID_ARGUMENT`: a row cannot be sent, and the message says which;
   * `QUERY_TIMEOUT`: the server took nothing for `timeoutMs`; else as an insert, with the number of the line. A lost connection is
   * told, and nothing repeated, except for an array of rows.
   *
   * @example
   * ```ts
   * import { createReadStream } from 'node:fs'
   * import { createDatabase } from 'kanta'
   * import type { DB } from './generated/schema.ts'
   *
   * await using database = await createDatabase<DB>()
   * const { count } = await database.copy.from('products', createReadStream('products.csv'), {
   *   format: 'csv',
   *   header: true,
   *   columns: ['sku', 'name', 'price_minor'],
   * })
   * console.log(count)
   * ```
   */
  from<Table extends TableName<DB>>(
    table: Table,
    bytes: RowSource<string | Uint8Array>,
    options: CopyBytesOptions<ColumnName<DB, Table>>,
  ): Promise<CopyResult>
  from<Table extends TableName<DB>>(
    table: Table,
    rows: RowSource<Insertable<DB[Table]>>,
    options?: CopyFromOptions<ColumnName<DB, Table>>,
  ): Promise<CopyResult>
  /**
   * The rows of a query or a table as bytes in one of COPY's formats. Nothing is sent before the first piece is asked for, and
   * what is not read stays on the server. For rows as objects use {@link Database.stream}. As there, leaving the loop
   * stops the server, except in a transaction, where the rest is fetched and thrown away; and failures are those of a
   * stream.
   *
   * @example
   * ```ts
   * import { createWriteStream } from 'node:fs'
   * import { pipeline } from 'node:stream/promises'
   * import { createDatabase } from 'kanta'
   * import type { DB } from './generated/schema.ts'
   *
   * await using database = await createDatabase<DB>()
   * const recent = database.db.selectFrom('posts').select(['id', 'title']).where('published_at', 'is not', null)
   * await pipeline(database.copy.to(recent, { format: 'csv', header: true }), createWriteStream('posts.csv'))
   * ```
   */
  to<Table extends TableName<DB>>(table: Table, options?: CopyToOptions<ColumnName<DB, Table>>): CopyStream
  to(query: Runnable<unknown>, options?: CopyToOptions<never>): CopyStream
}

type TableName<DB> = keyof DB & string
type ColumnName<DB, Table extends keyof DB> = keyof Selectable<DB[Table]> & string

/** A built query of Kysely. */
export interface Compilable<Row> {
  compile(): CompiledQuery<Row>
}

/** A built query, or SQL written with Kysely's `sql`. */
export type Runnable<Row> = Compilable<Row> | RawBuilder<Row>

/** An answer of {@link Database.health}. */
export interface Health {
  /** `degraded`: PostgreSQL answers and queries work, but Redis or a replica does not. */
  readonly status: 'degraded' | 'down' | 'up'
  readonly postgres: PostgresHealth
  /** Absent where none is configured. One that is down or behind makes the status `degraded`: reads go elsewhere. */
  readonly replicas?: readonly ReplicaHealth[]
  /** Absent where none is configured. */
  readonly redis?: ServerHealth
}

/** The state of a replica, as the last check found it. */
export type ReplicaHealth = Pick<ReplicaStats, 'lagMs' | 'role' | 'state' | 'target'>

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

/** A moment of a {@link Database}. */
export interface DatabaseStats extends EngineStats {
  /** Absent where none is configured. */
  readonly replicas?: readonly ReplicaStats[]
  /** The connection that listens for notifications, and its subscribers. */
  readonly listener: ListenerStats
  readonly cache: CacheStats
  /** Absent where none is configured. */
  readonly redis?: RedisStats
}

/** A moment of what is done with Redis. */
export interface RedisStats extends RedisClientStats, SubscriberStats {}

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
  const listenerSource =
    config.directPostgres === config.postgres ? source : await openSource(config.directPostgres, config.logger)
  return openDatabase<DB>(config, kysely, { source, listenerSource })
}

/** Where a database has its connections from. */
export interface DatabaseSources {
  readonly source: ConnectionSource
  /** For the connection that listens. */
  readonly listenerSource: ConnectionSource
  /** Called once, when all else is closed. Must not reject. */
  readonly onClosed?: (() => Promise<void>) | undefined
}

/** What a database was opened with, for what opens another like it. */
export interface DatabaseOrigin {
  readonly config: ResolvedConfig
  readonly kysely: KyselyOptions
  readonly engine: Engine
}

const origins = new WeakMap<object, DatabaseOrigin>()

/** What an open database was opened with; nothing for an object that is none of ours. */
export function originOf(database: object): DatabaseOrigin | undefined {
  return origins.get(database)
}

/** Opens a database over sources that are there already, which it closes as {@link createDatabase} does its own. */
export async function openDatabase<DB>(
  config: ResolvedConfig,
  kysely: KyselyOptions,
  { source, listenerSource, onClosed }: DatabaseSources,
): Promise<Database<DB>> {
  const context = engineContext((message) => config.logger.warn(message))
  const parts = openParts(source, config, context)
  const report = subscriberReport(parts.engine, config.logger)
  const notifications = openNotifications(parts.engine, listenerSource, config, report)
  parts.engine.repeats = openRepeatedReads(parts.engine, config)
  const { redis, cache } = await openRedisAndCache(parts, config)
  const messages = redis && openMessages(redis, parts.engine, config, report)
  const replicas = openReplicas(parts, config, context)
  const close = async (): Promise<void> => {
    // Its handlers may be in the middle of queries.
    await Promise.all([notifications.close(), messages?.close()])
    await cache.endWrites(config.pool.drainTimeoutMs)
    await Promise.all([replicas?.close(), parts.engine.close()])
    // What the last transactions invalidate goes out before Redis does.
    await closeCache(cache, config)
    await Promise.all([redis?.client.close(), redis?.subscriber.close()])
    await source.close()
    await onClosed?.()
  }
  try {
    await parts.engine.pool.prewarm()
    await replicas?.start()
  } catch (error) {
    await close()
    throw error
  }
  const database = new OpenDatabase<DB>(
    config,
    { ...parts, replicas, notifications, redis, messages, cache },
    kysely,
    close,
  )
  origins.set(database, { config, kysely, engine: parts.engine })
  try {
    // Other processes may have cached what is written here.
    if (redis !== undefined && config.cache.queries) await database.watchWrites()
    if (config.cache.listen) await database.watchOthers()
  } catch (error) {
    await close()
    throw error
  }
  return database
}

async function openRedisAndCache(
  { engine, transactions }: EngineParts,
  config: ResolvedConfig,
): Promise<{ readonly redis: CacheRedis | undefined; readonly cache: OpenCache }> {
  const { events } = engine
  let cache: OpenCache | undefined
  const redis =
    config.redis &&
    (await openRedis(config.redis, config.breaker, {
      onReady: () => cache?.redisIsBack(),
      onBreaker: (state) => events.emit('breaker', { state, target: config.redis?.description ?? '' }),
    }))
  const surroundings = { transactions, context: () => engine.callersContext() }
  cache = openCache(config.cache, redis, surroundings, {
    warn: (message) => config.logger.warn(message),
    onTrust: () => events.emit('cache', { state: 'trusted' }),
    onGap: (reason) => events.emit('cache', { state: 'distrusted', reason }),
  })
  return { redis, cache }
}

/** The driver is loaded only where there is a Redis. */
async function openRedis(
  target: RedisTarget,
  breaker: ResolvedConfig['breaker'],
  observer: RedisObserver,
): Promise<CacheRedis> {
  const [{ RedisClient: Client }, { RedisSubscriber }] = await Promise.all([
    import('./redis/client.ts'),
    import('./redis/subscriber.ts'),
  ])
  return { client: new Client(target, breaker, observer), subscriber: new RedisSubscriber(target) }
}

async function closeCache(cache: OpenCache, { logger, pool, cache: { maxTtlMs } }: ResolvedConfig): Promise<void> {
  const lost = await cache.close(pool.drainTimeoutMs)
  if (lost === 0) return
  logger.warn(
    `${lost} keys and tags could not be invalidated in Redis before the end: until they are written again, other processes may read what is older, for ${maxTtlMs} ms at most`,
  )
}

function openParts(source: ConnectionSource, config: EngineSettings & HookLogger, context: EngineContext): EngineParts {
  const engine = new Engine(source, config, context)
  return { engine, transactions: new Transactions(engine, (error) => warnOfHook(config, error)) }
}

function openReplicas(primary: EngineParts, config: ResolvedConfig, context: EngineContext): Replicas | undefined {
  const { replicas: targets, replicaReads } = config
  if (targets.length === 0) return undefined
  // What fails on a replica goes to another server instead of being repeated.
  const settings = { ...config, retry: false } as const
  const parts = targets.map((target) => openParts(serverSource(target), settings, context))
  const replicas = new Replicas(primary, parts, replicaReads)
  primary.engine.replicas = replicas
  return replicas
}

function openRepeatedReads({ events }: Engine, { repeatedReads, logger }: ResolvedConfig): RepeatedReads | undefined {
  if (repeatedReads === false) return undefined
  return new RepeatedReads(repeatedReads, (found) => {
    events.emit('repeatedRead', found)
    logger.warn(
      `the same read ${found.times} times within a second, one after the other, at ${found.callSites.join(', called at ')}. ` +
        `Read all at once, or start the reads together: ${found.read}`,
    )
  })
}

function openMessages(
  { client, subscriber }: CacheRedis,
  engine: Engine,
  { redis, pool: { drainTimeoutMs } }: ResolvedConfig,
  report: SubscriberReport,
): RedisMessages {
  const answerTimeoutMs = redisConnectTimeoutMs + (redis === undefined ? 0 : redis.commandTimeoutMs)
  const settings = { answerTimeoutMs, drainTimeoutMs, context: () => engine.callersContext() }
  return new RedisMessages(client, subscriber, settings, report)
}

function subscriberReport({ events }: Engine, logger: Logger): SubscriberReport {
  return {
    warn: (message) => logger.warn(message),
    failed(channel, reason, error) {
      events.emit('notificationFailure', { channel, reason, error })
      const what = error instanceof Error ? `${error.name}: ${error.message}` : 'something that is not an Error'
      const who = { gap: `onGap of`, handler: `a handler of`, payload: `a payload on` }[reason]
      logger.warn(`${who} the channel "${channel}" failed: ${what}`)
    },
  }
}

function openNotifications(
  engine: Engine,
  source: ConnectionSource,
  config: ResolvedConfig,
  report: SubscriberReport,
): Notifications {
  const { directPostgres, listenerHeartbeatMs: heartbeatMs, pool, logger } = config
  const answerTimeoutMs = directPostgres.kind === 'server' ? directPostgres.connectTimeoutMs : pool.acquireTimeoutMs
  const settings = { heartbeatMs, answerTimeoutMs, drainTimeoutMs: pool.drainTimeoutMs }
  return new Notifications(engine, source, settings, logger, report)
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
    return openParts(
      source,
      config,
      engineContext((message) => config.logger.warn(message)),
    )
  })
}

type HookLogger = Pick<ResolvedConfig, 'logger'>

function warnOfHook(config: HookLogger, error: unknown): void {
  const what = error instanceof Error ? `${error.name}: ${error.message}` : 'something that is not an Error'
  config.logger.warn(`a hook after a transaction failed, which changes nothing about the transaction: ${what}`)
}

interface DatabaseParts extends EngineParts {
  readonly replicas: Replicas | undefined
  readonly notifications: Notifications
  readonly redis: CacheRedis | undefined
  readonly messages: RedisMessages | undefined
  readonly cache: OpenCache
}

class OpenDatabase<DB> implements Database<DB> {
  /** For repositories, whose reads are sent later than they are asked for; none where nobody notices them. */
  readonly noteRead: ((read: string, isShared: boolean) => void) | undefined
  readonly db: Kysely<DB>
  readonly cache: Cache
  readonly cursorSecret: CursorSecret
  readonly events: EventSource<DatabaseEvents>
  readonly copy: Copy<DB> = {
    from: (table: string, source: RowSource<unknown>, options?: CopyFromOptions & Partial<CopyFormat>) =>
      this.#copyFrom(table, source, options ?? {}),
    to: (source: Runnable<unknown> | string, options: CopyToOptions = {}) => this.#copyTo(source, options),
  }
  readonly #config: ResolvedConfig
  readonly #engine: Engine
  readonly #transactions: Transactions
  readonly #replicas: Replicas | undefined
  readonly #kysely: KyselyOptions
  readonly #run: EngineKysely<DB>['run']
  readonly #stream: EngineKysely<DB>['stream']
  readonly #redis: RedisClient | undefined
  readonly #messages: RedisMessages | undefined
  readonly #close: () => Promise<void>
  readonly #openCache: OpenCache
  readonly #queries: QueryCache
  readonly #notifications: Notifications
  readonly #sendNotification: PreparedQuery<{ channel: string; payload: string }, unknown>
  readonly #endings = new Set<() => Promise<void>>()
  #closing: Promise<void> | undefined

  constructor(
    config: ResolvedConfig,
    { engine, transactions, replicas, notifications, redis, messages, cache }: DatabaseParts,
    kysely: KyselyOptions,
    close: () => Promise<void>,
  ) {
    this.#config = config
    this.cursorSecret = cursorSecretOf(config)
    this.#engine = engine
    const { repeats } = engine
    this.noteRead = repeats && ((read, isShared) => (isShared ? repeats.unsee(read) : repeats.see(read)))
    this.#redis = redis?.client
    this.#messages = messages
    this.cache = cache.cache
    this.#openCache = cache
    this.#queries = new QueryCache(cache.cache.namespace(queryNamespace), (text) =>
      this.query(sql<Record<string, unknown>>`${sql.raw(text)}`),
    )
    this.#close = close
    this.#transactions = transactions
    this.#replicas = replicas
    this.#kysely = kysely
    const { db, run, stream } = createKysely<DB>({ engine, transactions }, kysely)
    this.db = db
    this.#run = run
    this.#stream = stream
    this.#notifications = notifications
    this.#sendNotification = this.prepare((p: Parameters<{ channel: string; payload: string }>) =>
      db.selectNoFrom((eb) => eb.fn('pg_notify', [p('channel'), p('payload')]).as('sent')),
    )
    this.events = engine.events
    engine.events.on('leak', (holder) =>
      config.logger.warn(`a connection has been borrowed for ${describeHolder(holder)}`),
    )
    seams.set(this, this.#seams())
  }

  #seams(): DatabaseSeams {
    const endings = this.#endings
    const journals = new Set<InvalidationJournal>()
    return {
      logger: this.#config.logger,
      redis: this.#redis,
      cacheNamespace: this.#config.cache.namespace,
      context: () => this.#engine.callersContext(),
      beforeClose(end) {
        endings.add(end)
        return () => void endings.delete(end)
      },
      keepInvalidations: (journal) => {
        journals.add(journal)
        this.#openCache.journal = journal
        return () => {
          journals.delete(journal)
          this.#openCache.journal = [...journals].at(-1)
        }
      },
      endCached: (what) => this.#openCache.end(what),
    }
  }

  get currentTransaction(): object | undefined {
    return this.#transactions.current
  }

  transaction<T>(work: () => Promise<T>, options?: TransactionOptions): Promise<T> {
    // oxlint-disable-next-line typescript/unbound-method -- it is only compared with frames of the stack
    const origin = callSiteAbove(this.transaction)
    if (!options?.replica || this.#transactions.current) return this.#transactions.run(work, options, origin)
    if (this.#replicas) return this.#replicas.transaction(work, options, origin)
    return this.#transactions.run(work, { accessMode: 'read only', ...options }, origin)
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
      const taking = this.query(sql`select pg_advisory_xact_lock(hashtextextended(${`kanta:${name}`}, 0))`)
      await taking.catch((error: unknown) => {
        throw waitMs !== undefined && isDatabaseError(error) && error.code === 'LOCK_TIMEOUT'
          ? lockTimeout(name, waitMs, error)
          : error
      })
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

  stream<Row>(query: Runnable<Row>, options: StreamOptions = {}): RowStream<Row> {
    // oxlint-disable-next-line typescript/unbound-method -- it is only compared with frames of the stack
    return this.#stream<Row>(this.#compile(query), options, callSiteAbove(this.stream))
  }

  insertMany(table: string, rows: RowSource<object>, options: BulkOptions<string> = {}): Promise<BulkResult<never>> {
    return this.#writeMany(insertCommand(table, options.returning ?? []), rows, options)
  }

  upsertMany(
    table: string,
    rows: RowSource<object>,
    { conflict, update, ...options }: BulkOptions<string> & ConflictRule<string>,
  ): Promise<BulkResult<never>> {
    return this.#writeMany(insertCommand(table, options.returning ?? [], { conflict, update }), rows, options)
  }

  updateMany(
    table: string,
    rows: RowSource<object>,
    { key, ...options }: BulkOptions<string> & { readonly key: readonly string[] },
  ): Promise<BulkResult<never>> {
    return this.#writeMany(updateCommand(table, options.returning ?? [], key), rows, options)
  }

  async #writeMany(
    command: BulkCommand,
    rows: RowSource<object>,
    options: BulkOptions<string>,
  ): Promise<BulkResult<never>> {
    const runner = {
      run: (query: RawBuilder<Record<string, unknown>>, call: CallOptions) =>
        this.#run<Record<string, unknown>>(query.compile(this.db), call),
      nameOf: (identifier: RawBuilder<unknown>) => identifier.compile(this.db).sql,
      transaction: <T>(work: () => Promise<T>, repeatable: boolean) =>
        this.transaction(work, repeatable ? {} : { attempts: 1 }),
      reading: (signal: AbortSignal | undefined) => this.#reading(signal),
    }
    return (await withSource(rows, () => new BulkWrite(runner, command, options).write(rows))) as BulkResult<never>
  }

  #copyFrom(
    table: string,
    source: RowSource<unknown>,
    options: CopyFromOptions & Partial<CopyFormat>,
  ): Promise<CopyResult> {
    // The queries of a source must not wait for the transaction that waits for the source.
    const inCallersContext = AsyncLocalStorage.snapshot()
    const work = (): Promise<CopyResult> => {
      const runner = {
        engine: this.#engine,
        scope: this.#transactions.current as Scope,
        run: (query: RawBuilder<Record<string, unknown>>, call: CallOptions) =>
          this.#run<Record<string, unknown>>(query.compile(this.db), call),
        compile: (query: RawBuilder<unknown>) => query.compile(this.db),
      }
      const noun = options.format === undefined ? 'row' : 'chunk'
      const reading = { ...this.#reading(options.signal), noun, run: inCallersContext }
      return new CopyWrite(runner, table, options).write(new SourceReader(source, reading))
    }
    const once = !Array.isArray(source) && { attempts: 1 }
    return withSource(source, () => this.transaction(work, { signal: options.signal, ...once }))
  }

  /** What is read for a transaction is no longer wanted when that has lost its connection. */
  #reading(signal: AbortSignal | undefined): Reading {
    const scope = this.#transactions.current
    return { signal, onLost: scope && ((listener) => scope.onLost(listener)) }
  }

  #copyTo(source: Runnable<unknown> | string, { columns, onProgress, ...options }: CopyToOptions): CopyStream {
    const format = { ...options, format: options.format ?? 'text' } as const
    const isTable = typeof source === 'string'
    const read = this.#compile(isTable ? this.db.selectFrom(source as never).selectAll() : source)
    const copyOf = (text: string): string =>
      (isTable ? copyTableTo(source, columns, format) : copyQueryTo(text, format)).compile(this.db).sql
    // Repeated as what it reads, and told with its placeholders.
    const query = { ...read, sql: copyOf(read.sql), parameters: [] }
    const sent = copyOf(withLiterals(read))
    // oxlint-disable-next-line typescript/unbound-method -- it is only compared with frames of the stack
    const place = { scope: this.#transactions.current, origin: callSiteAbove(this.copy.to) }
    const reader = new ChunkReader<Buffer>(
      this.#engine,
      query,
      options,
      place,
      (request, _limit, pieces) => new CopyOut(request, pieces, sent),
    )
    return new CopyReaderStream(reader, onProgress)
  }

  async cached<Row>(query: Runnable<Row>, options?: CachedOptions<Row>, load?: () => Promise<Row[]>): Promise<Row[]> {
    if (!this.#config.cache.queries) {
      throw new DatabaseError(
        'INVALID_ARGUMENT',
        'cached() needs to hear of writes, and cache.queries is off. Leave that out, or use cache.getOrSet with tags.',
      )
    }
    if (this.#engine.writes === undefined) await this.watchWrites()
    const compiled = this.#compile(query)
    const run = load ?? (async () => (await this.#run<Row>(compiled, undefined)).rows)
    return this.#queries.read(compiled, run, options)
  }

  async touched(...tables: string[]): Promise<void> {
    await this.#queries.prepare()
    await this.#openCache.invalidateTags(this.#tagsOfWrite(tables), this.#transactions.current)
  }

  /** From now on, committed writes end what is cached of their tables. */
  async watchWrites(): Promise<void> {
    await this.#queries.prepare()
    const outside = this.#engine.callersContext()
    // A process that only writes has to learn of new tables as well.
    const learn = (): void => outside(() => void this.#queries.prepare().catch(() => undefined))
    this.#engine.writes = {
      onWritten: (tables, query) => {
        learn()
        return this.#openCache.invalidateTags(this.#tagsOfWrite(tables, query))
      },
      onWrittenIn: (scope, tables, query) => {
        learn()
        void this.#openCache.invalidateTags(this.#tagsOfWrite(tables, query), scope as Scope)
      },
    }
  }

  /** From now on, what triggers tell of the writes of other programs does so as well. */
  async watchOthers(): Promise<void> {
    // What they wrote meanwhile is not known.
    const onGap = (): Promise<void> => this.cache.namespace(queryNamespace).clear()
    await this.#notifications.listen(writesChannel, (table) => this.touched(table), { onGap })
    await onGap()
  }

  #tagsOfWrite(tables: readonly string[], query?: RootOperationNode): string[] {
    return this.#queries.tagsOfWrite(tables, query).map((tag) => `${queryNamespace}:${tag}`)
  }

  replica(choice?: ReplicaChoice): ReadonlyKysely<DB> {
    const parts = { engine: this.#engine, transactions: this.#transactions }
    const replica = choice ?? true
    const choose = async (): Promise<EngineParts> => (await this.#replicas?.choose(replica)) ?? parts
    return createKysely<DB>(parts, this.#kysely, { call: { replica }, choose }).db as unknown as ReadonlyKysely<DB>
  }

  async lastCommitToken(): Promise<string> {
    if (this.#transactions.current) {
      throw new TransactionError(
        'TRANSACTION_MISUSE',
        'lastCommitToken() was called inside a transaction, whose commit would not be in it. Call it afterwards, or in afterCommit.',
      )
    }
    return commitToken(this.#engine, healthTimeoutMs)
  }

  listen<Channel extends AnyChannel>(
    channel: Channel,
    first?: ListenOptions | NotificationHandler<PayloadOf<Channel>>,
    second?: ListenOptions,
  ): Promise<NotificationStream<PayloadOf<Channel>>> {
    return typeof first === 'function'
      ? this.#notifications.listen(channel, first, second)
      : this.#notifications.listen(channel, undefined, first)
  }

  async notify<Channel extends AnyChannel>(
    channel: Channel,
    payload: PayloadOf<Channel>,
    options?: CallOptions,
  ): Promise<void> {
    const values = { channel: channelName(channel), payload: encodePayload(channel, payload, notificationLimit) }
    await this.#sendNotification(values, options)
  }

  async subscribe<Channel extends AnyChannel>(
    channel: Channel,
    first?: ListenOptions | NotificationHandler<PayloadOf<Channel>>,
    second?: ListenOptions,
  ): Promise<NotificationStream<PayloadOf<Channel>>> {
    const messages = this.#messages ?? noRedis()
    return typeof first === 'function'
      ? messages.subscribe(channel, first, second)
      : messages.subscribe(channel, undefined, first)
  }

  async publish<Channel extends AnyChannel>(to: Channel, payload: PayloadOf<Channel>): Promise<void> {
    const { channel, text } = encodeMessage(to, payload)
    const messages = this.#messages ?? noRedis()
    const { current } = this.#transactions
    if (current === undefined) await messages.publish(channel, text)
    else current.addHook('commit', () => messages.publish(channel, text))
  }

  async health(): Promise<Health> {
    const [postgres, redis] = await Promise.all([this.#postgresHealth(), this.#redisHealth()])
    const replicas = this.#replicas?.stats().map(({ target, state, role, lagMs }) => ({ target, state, role, lagMs }))
    const isDegraded = redis?.status === 'down' || replicas?.some(({ state }) => state !== 'up') === true
    const status = postgres.status === 'down' ? 'down' : isDegraded ? 'degraded' : 'up'
    return { status, postgres, ...(replicas && { replicas }), ...(redis && { redis }) }
  }

  stats(): DatabaseStats {
    const replicas = this.#replicas?.stats()
    const listener = this.#notifications.stats()
    const redis = this.#redis && this.#messages && { ...this.#redis.stats(), ...this.#messages.stats() }
    const cache = this.cache.stats()
    return { ...this.#engine.stats(), ...(replicas && { replicas }), listener, cache, ...(redis && { redis }) }
  }

  get isClosed(): boolean {
    return this.#closing !== undefined
  }

  close(): Promise<void> {
    this.#closing ??= this.#end()
    return this.#closing
  }

  async #end(): Promise<void> {
    // What goes on behind has something to write when it ends.
    if (this.#endings.size > 0) await Promise.all([...this.#endings].map((end) => end()))
    await this.#close()
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
    let failure: unknown
    try {
      const start = performance.now()
      const { sql: text, query } = askHealth.compile(this.db)
      const request = { text: this.#engine.texts.get(text, query), values: [], deadline: start + healthTimeoutMs }
      const { rows } = await this.#engine.sendOn<{ version: string; read_only: string }>(session, request, undefined)
      const latencyMs = performance.now() - start
      const [row] = rows
      return { latencyMs, ...(row && { version: row.version, readOnly: row.read_only === 'on' }) }
    } catch (cause) {
      failure = toDatabaseError(cause, { target: this.#engine.source.description })
      throw failure
    } finally {
      this.#engine.giveBack(session, failure)
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

function noRedis(): never {
  throw new DatabaseError(
    'REDIS_UNAVAILABLE',
    'Messages go through Redis, and none is configured. Set REDIS_URL or the option redis, or use listen and notify of PostgreSQL.',
  )
}

function lockTimeout(name: string, waitMs: number, cause: DatabaseError): TimeoutError {
  return new TimeoutError(
    'LOCK_TIMEOUT',
    `The lock ${JSON.stringify(name)} was not free within ${waitMs} ms. See who holds it (pg_locks, locktype advisory), ` +
      'raise waitMs, or try again later.',
    { cause, limitMs: waitMs, retry: cause.retry, sql: cause.sql, sqlState: cause.sqlState },
  )
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
