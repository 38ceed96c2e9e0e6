// The database
export { createDatabase, postgresDialect } from './database/create-database.ts'
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
} from './database/database.ts'
export { getDatabase, getDatabaseHealth, initializeDatabase, shutdownDatabase } from './default.ts'
export type { EventSource, Listener } from './core/events.ts'
export type { RepeatedRead } from './core/repeated-reads.ts'
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
} from './core/options.ts'

// Errors
export {
  ConfigError,
  ConflictError,
  ConnectionError,
  ConstraintViolationError,
  DatabaseError,
  DeliveryError,
  errorCatalog,
  isDatabaseError,
  isViolation,
  MigrationError,
  NotFoundError,
  SagaError,
  StepRefusedError,
  TimeoutError,
  TransactionError,
  ValidationError,
} from './core/errors.ts'
export type {
  ConfigProblem,
  ConnectionErrorCode,
  ErrorAdvice,
  ErrorCode,
  RetryScope,
  SagaErrorInit,
  SagaFailure,
  ValidationIssue,
} from './core/errors.ts'

// Repositories
export {
  type Comparison,
  op,
  type Comparable,
  type Conditions,
  type Operators,
  type OrderDirection,
  type Where,
} from './repository/conditions.ts'
export type { ColumnMap, PropertyColumns, PropertyMapping, SameColumns } from './repository/row-map.ts'
export type { QuerySource, RepositoryCacheOptions } from './repository/query-source.ts'
export { Repository } from './repository/repository.ts'
export type {
  FindOptions,
  FindPageOptions,
  FindPartOptions,
  IdOf,
  LoadOptions,
  RefOf,
  RepositoryDefinition,
  UpsertOptions,
} from './repository/repository-options.ts'
export type { StandardSchema } from './repository/validation.ts'

// Pages
export { paginate, paginateByOffset } from './repository/pagination.ts'
export type { KeysetPage, OffsetOptions, OffsetPage, PageRequest, PaginateOptions } from './repository/pagination.ts'
export type { Nulls, NullsRule, OrderColumn, OrderTerm } from './repository/keyset-order.ts'
export type { CursorSecret } from './core/cursor-secret.ts'

// What a query gives
export { count, exists, first, groupBy, keyBy, pluck, value } from './repository/query-helpers.ts'
export type { GivesRows, OnlyColumn, RowKey, Selects } from './repository/query-helpers.ts'

// Sagas
export { createSagas } from './work/create-sagas.ts'
export type { SagaEvents, SagaHandle, Sagas, SagasOptions, StartOptions } from './work/sagas.ts'
export { saga } from './work/saga.ts'
export type {
  CompensationContext,
  Saga,
  SagaDefinition,
  SagaOptions,
  SagaRetry,
  SagaStep,
  StepContext,
  StepOptions,
  StepTransaction,
} from './work/saga.ts'
export type { Jsonable } from './work/saga-values.ts'
export type { SagaState } from './work/saga-log.ts'
export type { SagaFilter, SagaRecord, SagaStepRecord } from './work/saga-records.ts'
export type { SagaEnd, SagaStepFailure } from './work/saga-run.ts'
export type { TableMapping } from './core/table-mapping.ts'

// Units of work
export { UnitOfWork } from './work/unit-of-work.ts'
export type { CreatingRepository, DeletingRepository, FlushResult, UpdatingRepository } from './work/unit-of-work.ts'
export type { WorkDatabase } from './work/table-facts.ts'
export type { NewItem, Reference, Referring, WorkItem } from './work/work-item.ts'
export type { WorkStep } from './work/work-step.ts'

// Work
export { keepInvalidations } from './work/kept-invalidations.ts'
export type { KeepInvalidationsOptions } from './work/kept-invalidations.ts'
export { createOutbox } from './work/create-outbox.ts'
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
