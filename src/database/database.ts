import type { CompiledQuery, Insertable, Kysely, RawBuilder, Selectable, Updateable } from 'kysely'
import type { ReadonlyKysely } from 'kysely/readonly'
import type { Cache, CacheStats } from '../cache/layered-cache.ts'
import type { CachedOptions } from '../cache/query-cache.ts'
import type { AnyChannel, PayloadOf } from '../core/channel.ts'
import type { CursorSecret } from '../core/cursor-secret.ts'
import type { ErrorCode } from '../core/errors.ts'
import type { EventSource } from '../core/events.ts'
import type { ListenOptions, NotificationHandler, NotificationStream, Subscription } from '../core/subscriber.ts'
import type { BulkOptions, BulkResult, ConflictRule } from '../postgres/bulk.ts'
import type { CopyBytesOptions, CopyFromOptions, CopyResult, CopyStream, CopyToOptions } from '../postgres/copy.ts'
import type { CallOptions, DatabaseEvents, EngineStats, ReplicaChoice } from '../postgres/engine.ts'
import type { ListenerStats } from '../postgres/notifications.ts'
import type { PoolStats } from '../postgres/pool.ts'
import type { Parameters, PreparedQuery } from '../postgres/prepared-query.ts'
import type { ReplicaStats } from '../postgres/replicas.ts'
import type { RowSource } from '../postgres/row-source.ts'
import type { RowStream, StreamOptions } from '../postgres/row-stream.ts'
import type { Hook, TransactionOptions } from '../postgres/transaction.ts'
import type { RedisClientStats } from '../redis/client.ts'
import type { SubscriberStats } from '../redis/messages.ts'

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

export type TableName<DB> = keyof DB & string
export type ColumnName<DB, Table extends keyof DB> = keyof Selectable<DB[Table]> & string

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
