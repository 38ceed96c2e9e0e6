// The database
export { createDatabase, postgresDialect } from './database.ts'
export type {
  Compilable,
  Database,
  DatabaseStats,
  Health,
  PostgresHealth,
  RedisStats,
  ReplicaHealth,
  Runnable,
  ServerHealth,
} from './database.ts'
export { getDatabase, getDatabaseHealth, initializeDatabase, shutdownDatabase } from './default.ts'
export type { EventSource, Listener } from './core/events.ts'
export type {
  CallOptions,
  DatabaseEvents,
  EngineStats,
  QueryEvent,
  ReplicaChoice,
  ReplicaState,
} from './postgres/engine.ts'
export type { KyselyOptions } from './postgres/executor.ts'
export type { PipelineStats } from './postgres/pipeline.ts'
export type { LeaseHolder, PoolStats } from './postgres/pool.ts'
export type { NotificationGap } from './core/notification-buffer.ts'
export { channel } from './core/channel.ts'
export type { AnyChannel, NotificationChannel, PayloadOf } from './core/channel.ts'
export type { ListenOptions, NotificationHandler, NotificationStream, Subscription } from './core/subscriber.ts'
export type { ListenerStats } from './postgres/notifications.ts'
export type { Parameters, PreparedQuery } from './postgres/prepared-query.ts'
export type { BulkOptions, BulkProgress, BulkResult, ConflictRule } from './postgres/bulk.ts'
export type {
  CopyBytesOptions,
  CopyFormat,
  CopyFromOptions,
  CopyProgress,
  CopyResult,
  CopyStream,
  CopyToOptions,
} from './postgres/copy.ts'
export type { RowSource } from './postgres/row-source.ts'
export type { ReplicaStats } from './postgres/replicas.ts'
export type { RowStream, StreamOptions } from './postgres/row-stream.ts'
export type { Hook, TransactionOptions } from './postgres/transaction.ts'
export type { RedisClientStats } from './redis/client.ts'
export type { SubscriberStats } from './redis/messages.ts'
export type { BreakerState } from './resilience/circuit-breaker.ts'

// Cache
export type { Cache, CacheStats, InvalidateOptions } from './cache/layered-cache.ts'
export type { CacheEntryOptions } from './core/cache-options.ts'
export type { CachedOptions } from './cache/query-cache.ts'
export type { InvalidationStats } from './cache/invalidations.ts'
export type { WriteBehind, WriteBehindOptions } from './cache/write-behind.ts'
export type { LoaderStats } from './cache/loader.ts'

// Configuration
export type {
  BreakerOptions,
  CacheOptions,
  DatabaseOptions,
  EmbeddedOptions,
  Environment,
  Logger,
  MemoryCacheOptions,
  PipelineOptions,
  PoolOptions,
  PostgresOptions,
  PreparedStatementOptions,
  RedisOptions,
  ReplicaReadOptions,
  RetryOptions,
  SslMode,
  ValueTypes,
} from './core/config.ts'

// Errors
export {
  ConfigError,
  ConnectionError,
  ConstraintViolationError,
  DatabaseError,
  DeliveryError,
  errorCatalog,
  isDatabaseError,
  isViolation,
  MigrationError,
  NotFoundError,
  TimeoutError,
  TransactionError,
} from './core/errors.ts'
export type { ConfigProblem, ConnectionErrorCode, ErrorAdvice, ErrorCode, RetryScope } from './core/errors.ts'

// Repositories
export { Repository } from './repository/repository.ts'
export type {
  ColumnMap,
  FindOptions,
  QuerySource,
  RepositoryCacheOptions,
  RepositoryDefinition,
  SameColumns,
  Where,
} from './repository/repository.ts'

// Work
export { keepInvalidations } from './work/kept-invalidations.ts'
export type { KeepInvalidationsOptions } from './work/kept-invalidations.ts'
export { createOutbox } from './work/outbox.ts'
export type { DeadLetterOptions, Outbox, OutboxDatabase, OutboxOptions } from './work/outbox.ts'
export type { EventOf, NewEvent, OutboxEvent, PublishOptions } from './work/outbox-event.ts'
export type {
  BatchReport,
  DeliveryContext,
  OutboxBatchHandler,
  OutboxHandler,
  OutboxSink,
  Relay,
  RelayFailure,
  RelayOptions,
  RelayStats,
} from './work/outbox-relay.ts'
export type { DeadLetter, OutboxStats } from './work/outbox-store.ts'
export { httpSink } from './work/outbox-http.ts'
export type { HttpSinkOptions, HttpTarget, SinkHandler } from './work/outbox-http.ts'
export { clickhouseSink, elasticsearchSink, redisStreamSink } from './work/outbox-sinks.ts'
export type {
  BatchSink,
  ClickhouseOptions,
  ElasticsearchOptions,
  RedisCommands,
  RedisStreamOptions,
} from './work/outbox-sinks.ts'
