// The database
export { createDatabase } from './database.ts'
export type { Database, DatabaseStats, Health, PostgresHealth, ServerHealth } from './database.ts'
export { getDatabase, getDatabaseHealth, initializeDatabase, shutdownDatabase } from './default.ts'
export type { PoolStats } from './postgres/pool.ts'

// Configuration
export type {
  DatabaseOptions,
  EmbeddedOptions,
  Environment,
  Logger,
  PoolOptions,
  PostgresOptions,
  RedisOptions,
  SslMode,
} from './core/config.ts'

// Errors
export {
  ConfigError,
  ConnectionError,
  ConstraintViolationError,
  DatabaseError,
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
  RepositoryDefinition,
  SameColumns,
  Where,
} from './repository/repository.ts'
