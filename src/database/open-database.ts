import { AsyncLocalStorage } from 'node:async_hooks'
import { type CompiledQuery, type Kysely, type RawBuilder, type RootOperationNode, sql } from 'kysely'
import type { ReadonlyKysely } from 'kysely/readonly'
import type { Cache } from '../cache/layered-cache.ts'
import type { CacheRedis, InvalidationJournal, OpenCache } from '../cache/open-cache.ts'
import { type CachedOptions, QueryCache } from '../cache/query-cache.ts'
import { type AnyChannel, channelName, encodePayload, type PayloadOf } from '../core/channel.ts'
import type { ResolvedConfig } from '../core/config.ts'
import { type CursorSecret, cursorSecretOf } from '../core/cursor-secret.ts'
import { DatabaseError, isDatabaseError, TimeoutError, TransactionError } from '../core/errors.ts'
import type { EventSource } from '../core/events.ts'
import type { ListenOptions, NotificationHandler, NotificationStream } from '../core/subscriber.ts'
import {
  type BulkCommand,
  type BulkOptions,
  type BulkResult,
  BulkWrite,
  type ConflictRule,
  insertCommand,
  updateCommand,
} from '../postgres/bulk.ts'
import { type CopyFormat, copyQueryTo, copyTableTo, withLiterals } from '../postgres/copy-sql.ts'
import { CopyOut } from '../postgres/copy-statement.ts'
import {
  type CopyFromOptions,
  CopyReaderStream,
  type CopyResult,
  type CopyStream,
  type CopyToOptions,
  CopyWrite,
} from '../postgres/copy.ts'
import type { Engine } from '../postgres/engine.ts'
import { type CallOptions, type DatabaseEvents, type ReplicaChoice } from '../postgres/engine.ts'
import { createKysely, type EngineKysely, type EngineParts, type KyselyOptions } from '../postgres/executor.ts'
import type { Notifications } from '../postgres/notifications.ts'
import { notificationLimit } from '../postgres/notifications.ts'
import { callSiteAbove, describeHolder } from '../postgres/pool.ts'
import { type Parameters, type PreparedQuery, prepareQuery } from '../postgres/prepared-query.ts'
import type { Replicas } from '../postgres/replicas.ts'
import { commitToken } from '../postgres/replicas.ts'
import { type Reading, type RowSource, SourceReader, withSource } from '../postgres/row-source.ts'
import { ChunkReader, type RowStream, type StreamOptions } from '../postgres/row-stream.ts'
import type { Transactions } from '../postgres/transaction.ts'
import { type Hook, type Scope, type TransactionOptions } from '../postgres/transaction.ts'
import type { RedisClient } from '../redis/client.ts'
import type { RedisMessages } from '../redis/messages.ts'
import { encodeMessage } from '../redis/messages.ts'
import type { Compilable, Copy, Database, DatabaseStats, Health, Runnable } from './database.ts'
import { HealthCheck, healthTimeoutMs } from './health.ts'
import { type DatabaseSeams, registerSeams } from './seams.ts'

/** Where the rows of queries are in the cache. */
const queryNamespace = 'sql'

/** What the triggers of docs/cache.md tell the names of tables on. */
const writesChannel = 'kanta_written'

/** What it is put together of. */
export interface DatabaseParts extends EngineParts {
  readonly replicas: Replicas | undefined
  readonly notifications: Notifications
  readonly redis: CacheRedis | undefined
  readonly messages: RedisMessages | undefined
  readonly cache: OpenCache
}

/** What {@link createDatabase} gives. */
export class OpenDatabase<DB> implements Database<DB> {
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
  readonly #health: HealthCheck
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
    this.#health = new HealthCheck({ engine, replicas, redis: redis?.client, db, config })
    this.#sendNotification = this.prepare((p: Parameters<{ channel: string; payload: string }>) =>
      db.selectNoFrom((eb) => eb.fn('pg_notify', [p('channel'), p('payload')]).as('sent')),
    )
    this.events = engine.events
    engine.events.on('leak', (holder) =>
      config.logger.warn(`a connection has been borrowed for ${describeHolder(holder)}`),
    )
    registerSeams(this, this.#seams())
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
      compile: <Row>(query: RawBuilder<Row>) => query.compile(this.db),
      run: (query: CompiledQuery<Record<string, unknown>>, call: CallOptions) =>
        this.#run<Record<string, unknown>>(query, call),
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

  health(): Promise<Health> {
    return this.#health.check()
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

  #compile<Row>(query: Runnable<Row>): CompiledQuery<Row> {
    return (query as RawBuilder<Row>).compile(this.db)
  }
}

/** Who hears of it. */
export type HookLogger = Pick<ResolvedConfig, 'logger'>

/** Its failure changes nothing, and nobody else would hear of it. */
export function warnOfHook(config: HookLogger, error: unknown): void {
  const what = error instanceof Error ? `${error.name}: ${error.message}` : 'something that is not an Error'
  config.logger.warn(`a hook after a transaction failed, which changes nothing about the transaction: ${what}`)
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
