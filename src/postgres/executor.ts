import {
  type AbortableOperationOptions,
  type AbortableQueryOptions,
  AbortedTransactionError,
  CompiledQuery,
  type ConnectionProvider,
  type DatabaseConnection,
  DefaultQueryExecutor,
  type Dialect,
  type DialectAdapter,
  type Driver,
  Kysely,
  type KyselyConfig,
  type KyselyPlugin,
  Log,
  type LogConfig,
  PostgresAdapter,
  PostgresIntrospector,
  PostgresQueryCompiler,
  type QueryCompiler,
  type QueryResult,
  type TransactionSettings,
} from 'kysely'
import { DatabaseError } from '../core/errors.ts'
import { type Ambient, type CallOptions, type Engine, isAboutPreparation } from './engine.ts'
import { type CallSite, callSiteAbove, type Session } from './pool.ts'
import { ChunkReader, ReaderStream, type RowStream, type StreamOptions, type StreamPlace } from './row-stream.ts'
import { toDatabaseError } from './sqlstate.ts'
import { sendable } from './statement.ts'
import { insideStream, type Scope, type Transactions } from './transaction.ts'

/** What a user may add to the Kysely of a database. */
export interface KyselyOptions {
  readonly plugins?: readonly KyselyPlugin[] | undefined
  readonly log?: LogConfig | undefined
}

/** How a Kysely that only reads finds its servers. */
export interface ReadRoute {
  readonly call: CallOptions
  /** For what needs a connection of its own. */
  readonly choose: () => Promise<EngineParts>
}

/** A Kysely whose statements go straight from its compiler to the engine. */
export function createKysely<DB>(parts: EngineParts, options: KyselyOptions = {}, route?: ReadRoute): EngineKysely<DB> {
  const { plugins = [], log } = options
  const open = (): Promise<EngineParts> => Promise.resolve(parts)
  const dialect = new EngineDialect(open)
  const driver = new EngineDriver(open, parts, route)
  const config: KyselyConfig = { dialect, plugins: [...plugins], ...(log && { log }) }
  const logger = log && new Log(log)
  const provider = new EngineConnections(parts.engine, driver, logger)
  const executor = new EngineExecutor(parts.engine, provider, logger, new PostgresAdapter(), plugins, route?.call)
  const db = new Kysely<DB>({ config, dialect, driver, executor })
  return {
    db,
    run: (query, call) => executor.run(query, call),
    stream: (query, call, origin) => executor.openStream(query, call, origin),
  }
}

/** A Kysely, and the way to run one of its compiled queries with options that Kysely does not know. */
export interface EngineKysely<DB> {
  readonly db: Kysely<DB>
  readonly run: <Row>(query: CompiledQuery, options: CallOptions | undefined) => Promise<QueryResult<Row>>
  readonly stream: <Row>(query: CompiledQuery, options: StreamOptions, origin: CallSite) => RowStream<Row>
}

/** An engine and what runs transactions on it. */
export interface EngineParts {
  readonly engine: Engine
  readonly transactions: Transactions
}

/** The engine as an ordinary dialect: slower than {@link createKysely} by Kysely's own executor. */
export class EngineDialect implements Dialect {
  readonly #open: () => Promise<EngineParts>

  /** `open` is called once, with the first query. */
  constructor(open: () => Promise<EngineParts>) {
    this.#open = open
  }

  createAdapter(): DialectAdapter {
    return new PostgresAdapter()
  }

  createDriver(): Driver {
    return new EngineDriver(this.#open)
  }

  createIntrospector(db: Kysely<never>): PostgresIntrospector {
    return new PostgresIntrospector(db)
  }

  createQueryCompiler(): QueryCompiler {
    return new PostgresQueryCompiler()
  }
}

/** Sends statements without a connection of their own to the engine; what needs one takes Kysely's way. */
class EngineExecutor extends DefaultQueryExecutor {
  readonly #engine: Engine
  readonly #provider: ConnectionProvider
  readonly #log: Log | undefined
  readonly #adapter: DialectAdapter
  readonly #call: CallOptions | undefined

  constructor(
    engine: Engine,
    provider: ConnectionProvider,
    log: Log | undefined,
    adapter: DialectAdapter,
    plugins: readonly KyselyPlugin[],
    call: CallOptions | undefined,
  ) {
    super(new PostgresQueryCompiler(), adapter, provider, [...plugins])
    this.#engine = engine
    this.#provider = provider
    this.#log = log
    this.#adapter = adapter
    this.#call = call
  }

  override executeQuery<Row>(query: CompiledQuery, options?: AbortableQueryOptions): Promise<QueryResult<Row>> {
    const { signal, inflightQueryAbortStrategy = 'ignore query' } = options ?? {}
    if (signal === undefined) return this.run(query, this.#call)
    // Kysely's word for "let it run" is its own executor's business; the other two mean the same to us.
    return inflightQueryAbortStrategy === 'ignore query'
      ? super.executeQuery(query, options)
      : this.run(query, { ...this.#call, signal })
  }

  /** Runs a compiled query as {@link executeQuery} does, with the options of a call. */
  run<Row>(query: CompiledQuery, options: CallOptions | undefined): Promise<QueryResult<Row>> {
    if (this.#log === undefined && this.plugins.length === 0) return this.#engine.execute(query, options)
    return this.#observed(query, options)
  }

  override async *stream<Row>(
    query: CompiledQuery,
    chunkSize: number,
    options?: AbortableOperationOptions,
  ): AsyncIterableIterator<QueryResult<Row>> {
    // oxlint-disable-next-line typescript/unbound-method -- it is only compared with frames of the stack
    const origin = callSiteAbove(this.stream, kyselyFrame)
    const rows = this.openStream<Row>(
      query,
      { chunkSize, signal: options?.signal, replica: this.#call?.replica },
      origin,
    )
    for await (const chunk of rows.chunks()) yield { rows: chunk }
  }

  /** The rows of a compiled query, in the transaction of the present async context if there is one. */
  openStream<Row>(query: CompiledQuery, options: StreamOptions, origin: CallSite): RowStream<Row> {
    const scope = this.#engine.ambient.getStore()?.scope as Scope | undefined
    const reader = new ChunkReader<Row>(this.#engine, query, options, { scope, origin })
    const { signal } = options
    const { queryId } = query
    const transform = async (rows: Row[]): Promise<Row[]> => {
      let result: QueryResult<Row> = { rows }
      for (const plugin of this.plugins) {
        const transformed = await plugin.transformResult({
          queryId,
          result: result as never,
          ...(signal && { signal }),
        })
        result = transformed as QueryResult<Row>
      }
      return result.rows
    }
    const log = this.#log
    if (log) reader.onFinish = (error, durationMs) => void logStream(log, query, error, durationMs)
    return new ReaderStream<Row>(reader, this.plugins.length > 0 ? transform : undefined)
  }

  override withPlugins(plugins: readonly KyselyPlugin[]): EngineExecutor {
    return this.#with([...this.plugins, ...plugins])
  }

  override withPlugin(plugin: KyselyPlugin): EngineExecutor {
    return this.#with([...this.plugins, plugin])
  }

  override withPluginAtFront(plugin: KyselyPlugin): EngineExecutor {
    return this.#with([plugin, ...this.plugins])
  }

  override withoutPlugins(): EngineExecutor {
    return this.#with([])
  }

  override withConnectionProvider(provider: ConnectionProvider): DefaultQueryExecutor {
    return new DefaultQueryExecutor(new PostgresQueryCompiler(), this.#adapter, new StreamGuard(provider), [
      ...this.plugins,
    ])
  }

  #with(plugins: readonly KyselyPlugin[]): EngineExecutor {
    return new EngineExecutor(this.#engine, this.#provider, this.#log, this.#adapter, plugins, this.#call)
  }

  async #observed<Row>(query: CompiledQuery, options: CallOptions | undefined): Promise<QueryResult<Row>> {
    const log = this.#log
    const began = performance.now()
    let result: QueryResult<Row>
    try {
      result = await this.#engine.execute(query, options)
    } catch (error) {
      await log?.error(() => ({ level: 'error', error, query, queryDurationMillis: performance.now() - began }))
      throw error
    }
    await log?.query(() => ({ level: 'query', isStream: false, query, queryDurationMillis: performance.now() - began }))
    const { queryId } = query
    const signal = options?.signal
    for (const plugin of this.plugins) {
      result = (await plugin.transformResult({
        queryId,
        result: result as never,
        ...(signal && { signal }),
      })) as QueryResult<Row>
      signal?.throwIfAborted()
    }
    return result
  }
}

/** In a stack, what stands between a stream of Kysely's and whoever reads it. */
const kyselyFrame = /[\\/]kysely[\\/]|\(<anonymous>\)/

/** Kysely lets each user of a connection wait for the one before, and inside the loop of a stream that is for ever. */
class StreamGuard implements ConnectionProvider {
  readonly #provider: ConnectionProvider
  #connection: EngineConnection | undefined

  constructor(provider: ConnectionProvider) {
    this.#provider = provider
  }

  async provideConnection<T>(
    consumer: (connection: DatabaseConnection) => Promise<T>,
    options?: AbortableOperationOptions,
  ): Promise<T> {
    if (this.#connection?.session.stream) throw insideStream('A statement, or the end of the transaction,', undefined)
    return this.#provider.provideConnection((connection) => {
      this.#connection = connection as EngineConnection
      return consumer(connection)
    }, options)
  }
}

/** Gives connections to what Kysely runs on one of its own, and makes a transaction on it the ambient one. */
class EngineConnections implements ConnectionProvider {
  readonly #engine: Engine
  readonly #driver: EngineDriver
  readonly #log: Log | undefined

  constructor(engine: Engine, driver: EngineDriver, log: Log | undefined) {
    this.#engine = engine
    this.#driver = driver
    this.#log = log
  }

  async provideConnection<T>(
    consumer: (connection: DatabaseConnection) => Promise<T>,
    options?: AbortableOperationOptions,
  ): Promise<T> {
    const connection = await this.#driver.acquireConnection(options)
    if (this.#log) logStatements(connection, this.#log)
    try {
      return await this.#engine.ambient.run(connection.ambient, () => consumer(connection))
    } finally {
      await this.#driver.releaseConnection(connection)
    }
  }
}

class EngineDriver implements Driver {
  readonly #open: () => Promise<EngineParts>
  readonly #route: ReadRoute | undefined
  #parts: EngineParts | undefined

  constructor(open: () => Promise<EngineParts>, parts?: EngineParts, route?: ReadRoute) {
    this.#open = open
    this.#parts = parts
    this.#route = route
  }

  async init(): Promise<void> {
    this.#parts ??= await this.#open()
  }

  get #opened(): EngineParts {
    if (this.#parts) return this.#parts
    throw new DatabaseError('DATABASE_CLOSED', 'The dialect has not been opened. Run a query through its Kysely first.')
  }

  /** Inside a transaction that is its connection; otherwise one of the pool. */
  async acquireConnection(options?: AbortableOperationOptions): Promise<EngineConnection> {
    const signal = options?.signal
    signal?.throwIfAborted()
    const { current } = this.#opened.transactions
    if (current) return new EngineConnection(this.#opened, current.session, current)
    const parts = this.#route ? await this.#route.choose() : this.#opened
    const session = await parts.engine.pool.acquire({
      purpose: "Kysely's transaction, connection or stream",
      limits: parts.engine.limits({ timeoutMs: false, signal }),
    })
    return new EngineConnection(parts, session, undefined)
  }

  async beginTransaction(connection: DatabaseConnection, settings: TransactionSettings): Promise<void> {
    const own = connection as EngineConnection
    const { isolationLevel, accessMode = this.#route && 'read only' } = settings
    const modes = [isolationLevel && ` isolation level ${isolationLevel}`, accessMode && ` ${accessMode}`]
      .filter(Boolean)
      .join('')
    const opening = modes === '' ? 'begin' : `start transaction${modes}`
    const { engine, transactions } = own.parts
    const limits = engine.limits({ timeoutMs: false })
    // By the way of a statement, which is what Kysely logs.
    await own.control(opening, async () => {
      own.enter(own.outer ? own.outer.nest(limits) : transactions.begin(own.session, opening, limits))
    })
  }

  async commitTransaction(connection: DatabaseConnection): Promise<void> {
    const own = connection as EngineConnection
    const scope = own.leave()
    try {
      await own.control('commit', () => own.parts.transactions.commit(scope))
    } catch (error) {
      await own.parts.transactions.rollback(scope, error)
      if (error instanceof DatabaseError && error.code === 'TRANSACTION_ABORTED') throw asKyselyKnowsIt(error)
      throw error
    } finally {
      scope.end()
    }
  }

  async rollbackTransaction(connection: DatabaseConnection): Promise<void> {
    const own = connection as EngineConnection
    if (own.scope === own.outer) return
    const scope = own.leave()
    await own.control('rollback', () => own.parts.transactions.rollback(scope))
    scope.end()
  }

  async savepoint(connection: DatabaseConnection, name: string): Promise<void> {
    await (connection as EngineConnection).command(`savepoint ${quoted(name)}`)
  }

  async rollbackToSavepoint(connection: DatabaseConnection, name: string): Promise<void> {
    const own = connection as EngineConnection
    await own.command(`rollback to ${quoted(name)}`)
    own.scope?.heal()
  }

  async releaseSavepoint(connection: DatabaseConnection, name: string): Promise<void> {
    await (connection as EngineConnection).command(`release ${quoted(name)}`)
  }

  async releaseConnection(connection: DatabaseConnection): Promise<void> {
    const own = connection as EngineConnection
    if (own.outer === undefined) own.parts.engine.giveBack(own.session, own.failure, 'wait')
  }

  async destroy(): Promise<void> {
    await this.#parts?.engine.close()
  }
}

/** A borrowed connection as Kysely sees it. */
class EngineConnection implements DatabaseConnection {
  readonly parts: EngineParts
  readonly session: Session
  /** The transaction that this connection was in when Kysely got it. */
  readonly outer: Scope | undefined
  readonly ambient: Ambient
  /** The last failure outside a transaction; it decides whether the connection is used again. */
  failure: unknown
  readonly #controls = new WeakMap<CompiledQuery, () => Promise<void>>()

  constructor(parts: EngineParts, session: Session, outer: Scope | undefined) {
    this.parts = parts
    this.session = session
    this.outer = outer
    this.ambient = { scope: outer }
  }

  get scope(): Scope | undefined {
    return this.ambient.scope as Scope | undefined
  }

  enter(scope: Scope): void {
    this.ambient.scope = scope
  }

  leave(): Scope {
    const { scope } = this
    if (scope === undefined || scope === this.outer) {
      throw new DatabaseError('TRANSACTION_MISUSE', 'The transaction has ended already. Begin a new one.')
    }
    this.ambient.scope = this.outer
    return scope
  }

  async executeQuery<Row>(query: CompiledQuery): Promise<QueryResult<Row>> {
    const control = this.#controls.get(query)
    if (control) {
      await control()
      return { rows: [] }
    }
    const { scope } = this
    if (scope !== undefined) return scope.execute(query)
    const { engine } = this.parts
    if (this.session.stream) throw insideStream('A statement', query.sql)
    const text = engine.texts.get(query.sql, query.query)
    text.uses += 1
    const { deadline } = engine.limits(undefined)
    for (let failures = 1; ; failures += 1) {
      try {
        const request = { text, values: sendable(query.sql, query.parameters), deadline }
        const result = await engine.sendOn<Row>(this.session, request, undefined)
        if (engine.writes !== undefined) await engine.noteWritten(text, query.query)
        return result
      } catch (cause) {
        const inTransaction = this.session.transactionStatus !== 'none'
        const error = toDatabaseError(cause, { sql: query.sql, inTransaction, target: engine.source.description })
        // A transaction by hand was ended by its failure.
        if (!inTransaction && isAboutPreparation(error, failures)) continue
        this.failure = error
        throw error
      }
    }
  }

  /** Runs work that stands for a command, in the place of the command. */
  async control(sql: string, work: () => Promise<void>): Promise<void> {
    const query = CompiledQuery.raw(sql)
    this.#controls.set(query, work)
    await this.executeQuery(query)
  }

  async command(sql: string): Promise<void> {
    await this.executeQuery(CompiledQuery.raw(sql))
  }

  async *streamQuery<Row>(
    query: CompiledQuery,
    chunkSize: number,
    options?: AbortableOperationOptions,
  ): AsyncIterableIterator<QueryResult<Row>> {
    const { scope, session } = this
    const onFailure = (error: DatabaseError): void => void (this.failure = error)
    const place: StreamPlace = { scope, session, onFailure }
    const reader = new ChunkReader<Row>(this.parts.engine, query, { chunkSize, signal: options?.signal }, place)
    for await (const rows of new ReaderStream(reader).chunks()) yield { rows }
  }

  async collectSessionInfo(): Promise<void> {}

  async cancelQuery(): Promise<void> {
    await this.session.interrupt()
  }

  async killSession(): Promise<void> {
    this.session.discard()
  }
}

/** Kysely looks for its own class to know that nothing is left to roll back; callers look for our fields. */
function asKyselyKnowsIt(error: DatabaseError): Error {
  const { code, retry, transient, sql, cause, message } = error
  const known = Object.assign(new AbortedTransactionError(), { code, retry, transient, sql, cause, message })
  return Object.defineProperty(known, Symbol.for('kanta.DatabaseError'), { value: true })
}

async function logStream(log: Log, query: CompiledQuery, error: unknown, durationMs: number): Promise<void> {
  const event = { query, queryDurationMillis: durationMs }
  if (error === undefined) await log.query(() => ({ level: 'query', isStream: true, ...event }))
  else await log.error(() => ({ level: 'error', error, ...event }))
}

function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}

/** Does for one connection what Kysely's own driver does: it logs around what runs. */
function logStatements(connection: EngineConnection, log: Log): void {
  const executeQuery = connection.executeQuery.bind(connection)
  const streamQuery = connection.streamQuery.bind(connection)
  const failed = (query: CompiledQuery, began: number, error: unknown): Promise<void> =>
    log.error(() => ({ level: 'error', error, query, queryDurationMillis: performance.now() - began }))
  const ended = (query: CompiledQuery, began: number, isStream: boolean): Promise<void> =>
    log.query(() => ({ level: 'query', isStream, query, queryDurationMillis: performance.now() - began }))
  connection.executeQuery = async <Row>(query: CompiledQuery): Promise<QueryResult<Row>> => {
    const began = performance.now()
    let result: QueryResult<Row>
    try {
      result = await executeQuery<Row>(query)
    } catch (error) {
      await failed(query, began, error)
      throw error
    }
    await ended(query, began, false)
    return result
  }
  connection.streamQuery = async function* <Row>(
    query: CompiledQuery,
    chunkSize: number,
    options?: AbortableOperationOptions,
  ) {
    const began = performance.now()
    let hasFailed = false
    try {
      yield* streamQuery<Row>(query, chunkSize, options)
    } catch (error) {
      hasFailed = true
      await failed(query, began, error)
      throw error
    } finally {
      if (!hasFailed) await ended(query, began, true)
    }
  }
}
