import type { Dialect } from 'kysely'
import { type CacheRedis, type OpenCache, openCache } from '../cache/open-cache.ts'
import { type RedisTarget, resolveConfig, type ResolvedConfig } from '../core/config.ts'
import type { DatabaseOptions, Logger, PostgresOptions } from '../core/options.ts'
import { redisConnectTimeoutMs } from '../core/redis-url.ts'
import { RepeatedReads } from '../core/repeated-reads.ts'
import type { SubscriberReport } from '../core/subscriber.ts'
import type { ConnectionSource } from '../postgres/connection.ts'
import { Engine, type EngineContext, engineContext, type EngineSettings } from '../postgres/engine.ts'
import { EngineDialect, type EngineParts, type KyselyOptions } from '../postgres/executor.ts'
import { Notifications } from '../postgres/notifications.ts'
import { Replicas } from '../postgres/replicas.ts'
import { openSource, serverSource } from '../postgres/source.ts'
import { Transactions } from '../postgres/transaction.ts'
import type { RedisObserver } from '../redis/client.ts'
import { RedisMessages } from '../redis/messages.ts'
import type { Database } from './database.ts'
import { type HookLogger, OpenDatabase, warnOfHook } from './open-database.ts'

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
    import('../redis/client.ts'),
    import('../redis/subscriber.ts'),
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
