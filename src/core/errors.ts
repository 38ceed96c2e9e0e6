/**
 * Every error that kanta throws, its code, and what a caller may do about it.
 *
 * One table, {@link errorCatalog}, is the source for the codes, the retry advice, the tests and `docs/errors.md`.
 */

/** What may be run again after a failure without running anything twice. */
export type RetryScope =
  /** Nothing: it would fail again, or it may already have happened. */
  | 'none'
  /** The same statement, even a write: it never ran, or the server undid it. */
  | 'statement'
  /** The whole transaction from its first statement: the server has undone, or will undo, all of it. */
  | 'transaction'

/** What the catalog says of one code. */
export interface ErrorAdvice {
  /** Likely to succeed later without a change to the program or its data. */
  readonly transient: boolean
  /** A statement outside a transaction may be sent again although it writes. */
  readonly replay: boolean
  /** A transaction that met this error before its COMMIT was sent may be run again as a whole. */
  readonly wholeTransaction: boolean
  readonly meaning: string
  readonly remedy: string
}

const entry = (advice: string, meaning: string, remedy: string): ErrorAdvice => ({
  transient: advice.includes('transient'),
  replay: advice.includes('replay'),
  wholeTransaction: advice.includes('whole'),
  meaning,
  remedy,
})

/** The complete list of codes. The advice follows PostgreSQL's rules on what an error undoes (docs/errors.md). */
export const errorCatalog: Readonly<Record<ErrorCode, ErrorAdvice>> = {
  CONFIG_INVALID: entry(
    '',
    'Options or environment variables are wrong.',
    'Mend every problem that the message lists.',
  ),
  DATABASE_CLOSED: entry(
    '',
    'The database was closed, or is closing.',
    'Create a new database, or stop using this one after close().',
  ),
  EMBEDDED_UNAVAILABLE: entry(
    '',
    'The embedded PostgreSQL could not be started.',
    'Follow the message, or set DATABASE_URL.',
  ),

  CONNECTION_FAILED: entry(
    'transient replay whole',
    'No connection could be opened, or it had ended before; nothing was sent.',
    'Check that the server runs and that host and port are right.',
  ),
  CONNECTION_LOST: entry(
    'transient whole',
    'The connection broke while a statement was on its way; it may have run.',
    'Check whether the write happened before you repeat it.',
  ),
  TOO_MANY_CONNECTIONS: entry(
    'transient replay whole',
    'The server has no connection slot left.',
    'Lower pool.max times the number of processes, or raise max_connections.',
  ),
  SERVER_STARTING: entry(
    'transient replay whole',
    'The server is starting up, shutting down or recovering.',
    'Wait until it accepts connections.',
  ),
  SERVER_SHUTDOWN: entry(
    'transient whole',
    'The server or an administrator ended the connection.',
    'Check whether the write happened before you repeat it.',
  ),
  SERVER_CRASHED: entry(
    'transient whole',
    'The server ended all connections after a crash.',
    'Check whether the write happened, and the server log.',
  ),
  IDLE_SESSION_TIMEOUT: entry(
    'transient replay whole',
    'The server closed a connection that had been idle too long.',
    'Raise idle_session_timeout or lower pool.idleTimeoutMs below it.',
  ),
  DATABASE_DROPPED: entry('', 'The database of this connection was dropped.', 'Connect to a database that exists.'),
  POOLER_REJECTED: entry(
    'transient replay whole',
    'The connection pooler in front of PostgreSQL refused or gave up.',
    'Check the pooler: its log, query_wait_timeout and accepted start-up parameters.',
  ),
  AUTHENTICATION_FAILED: entry('', 'The server refused the user or password.', 'Check user, password and pg_hba.conf.'),
  DATABASE_NOT_FOUND: entry('', 'The database does not exist.', 'Create it, or correct the name in the URL.'),
  TLS_FAILED: entry(
    '',
    'The encrypted connection could not be trusted or set up.',
    'Check certificate, host name and sslmode; there is no fall-back to plain text.',
  ),
  RECOVERY_CONFLICT: entry(
    'transient replay whole',
    'A standby canceled the query because it was in the way of replication.',
    'Run it again, on another server if there is one.',
  ),
  READ_ONLY: entry(
    'transient replay whole',
    'A write reached a server or transaction that only reads.',
    'Write to the primary, outside read-only transactions.',
  ),

  CIRCUIT_OPEN: entry(
    'transient replay whole',
    'The server failed too often, so calls are refused for a while; nothing was sent.',
    'Look at the server, and try again after the time that the message names.',
  ),
  POOL_OVERLOADED: entry(
    'transient replay whole',
    'Too many callers wait already, for a connection or for their turn.',
    'Shed load, raise the limit that the message names, or shorten transactions.',
  ),
  POOL_TIMEOUT: entry(
    'transient replay whole',
    'No pooled connection became free in time, or no turn came.',
    'Look at what the message says is in the way, raise the limit that it names, or shorten transactions.',
  ),
  QUERY_TIMEOUT: entry(
    'whole',
    'No answer came within the deadline; the statement may have run.',
    'Check whether the write happened; make the query faster or the deadline longer.',
  ),
  STATEMENT_TIMEOUT: entry(
    '',
    'The server stopped the statement at statement_timeout; it did not take effect.',
    'Make the query faster, or raise statementTimeoutMs or the statement_timeout of the role or database.',
  ),
  QUERY_CANCELED: entry(
    '',
    'The statement was canceled on request; it did not take effect.',
    'Nothing, if you asked for it; else see who called pg_cancel_backend.',
  ),
  LOCK_TIMEOUT: entry(
    'transient replay whole',
    'A lock was not granted in time.',
    'See who holds it (pg_blocking_pids), and retry, or raise lock_timeout.',
  ),
  IDLE_IN_TRANSACTION_TIMEOUT: entry(
    '',
    'The server ended a transaction that sat idle.',
    'Do slow work outside the transaction, or raise idle_in_transaction_session_timeout.',
  ),
  TRANSACTION_TIMEOUT: entry(
    '',
    'The server ended a transaction that took too long.',
    'Split the transaction or raise transaction_timeout.',
  ),

  SERIALIZATION_FAILURE: entry(
    'transient replay whole',
    'Concurrent transactions could not be put in an order.',
    'Run the whole transaction again.',
  ),
  DEADLOCK: entry(
    'transient replay whole',
    'Two transactions waited for each other and this one was chosen to fail.',
    'Run the whole transaction again; lock rows in one order.',
  ),
  TRANSACTION_ABORTED: entry(
    '',
    'An earlier statement failed, so the transaction takes no more and is rolled back.',
    'Look at the first error; use a savepoint for work that may fail.',
  ),
  TRANSACTION_MISUSE: entry(
    '',
    'A transaction was used in a way that cannot be right.',
    'Correct the program as the message says.',
  ),
  COMMIT_OUTCOME_UNKNOWN: entry(
    '',
    'The connection broke after COMMIT was sent; it may or may not have happened.',
    'Look for what the transaction wrote before you repeat it.',
  ),

  UNIQUE_VIOLATION: entry(
    '',
    'A row with the same key exists already.',
    'Use another value, or update the row that exists.',
  ),
  EXCLUSION_VIOLATION: entry('', 'The row conflicts with one that exists.', 'Use a value that does not overlap.'),
  FOREIGN_KEY_VIOLATION: entry(
    '',
    'The row refers to one that does not exist, or is still referred to.',
    'Create the row it refers to first, or delete those that refer to it.',
  ),
  CHECK_VIOLATION: entry('', 'A value breaks a rule of its table.', 'Correct the value.'),
  NOT_NULL_VIOLATION: entry('', 'A value that must be given is null.', 'Give the value.'),

  INVALID_DATA: entry('', 'A value does not fit its type or operation.', 'Correct the value or its type.'),
  SYNTAX_ERROR: entry('', 'The SQL is not valid.', 'Correct the SQL.'),
  UNDEFINED_OBJECT: entry(
    '',
    'The SQL names something that does not exist.',
    'Run pending migrations, or correct the name or the search_path.',
  ),
  INSUFFICIENT_PRIVILEGE: entry('', 'The role may not do this.', 'Grant the privilege, or use another role.'),
  QUERY_FAILED: entry('', 'The server refused the statement.', "Look at sqlState and PostgreSQL's error code table."),
  PROTOCOL_VIOLATION: entry(
    '',
    'A message broke the protocol, for instance with over 65 535 parameters or a NUL in text.',
    'Send fewer parameters, for instance one array; remove NUL characters.',
  ),
  CACHED_PLAN_CHANGED: entry(
    'transient replay whole',
    'The tables of a prepared statement have changed.',
    'Send it again: it is prepared anew.',
  ),
  PREPARED_STATEMENT_LOST: entry(
    'transient replay whole',
    'The server does not know a prepared statement, or knows it already.',
    'Send it again; behind an old pooler switch prepared statements off.',
  ),

  DISK_FULL: entry(
    'transient replay whole',
    'The disk of the server is full.',
    'Free space on the server; reads go on.',
  ),
  OUT_OF_MEMORY: entry(
    'transient replay whole',
    'The server ran out of memory.',
    'Lower work_mem or the load; if it was shared memory, take fewer locks or raise max_locks_per_transaction.',
  ),
  CONFIGURATION_LIMIT: entry(
    'transient replay whole',
    'A limit in the configuration of the server was reached.',
    'Raise the limit that the message names.',
  ),
  SYSTEM_ERROR: entry(
    'transient',
    'The operating system of the server failed the statement.',
    'Look at the server log.',
  ),
  INTERNAL_ERROR: entry(
    '',
    'PostgreSQL met an internal error, possibly damaged data.',
    'Look at the server log before anything else.',
  ),

  NOT_FOUND: entry('', 'The row that had to be there is not.', 'Check the key, or use find… where absence is normal.'),
  VERSION_CONFLICT: entry(
    '',
    'The row was changed by somebody else since it was read.',
    'Read it again, and decide with what it is now.',
  ),
  VALIDATION_FAILED: entry(
    '',
    'Values are not what the schema of the repository asks for.',
    'Correct what `issues` names.',
  ),
  INVALID_ARGUMENT: entry(
    '',
    'A call was given something it cannot work with.',
    'Correct the call as the message says.',
  ),
  CURSOR_INVALID: entry(
    '',
    'The cursor of a page was changed, cut, made for another list, or signed with a secret that is no longer known.',
    'Start again at the first page, without a cursor; answer a request that sent it with 400.',
  ),
  NOTIFICATION_TOO_LARGE: entry(
    '',
    'The payload of a notification is longer than PostgreSQL takes; nothing was sent.',
    'Store what it tells in a row, and send the key of the row.',
  ),
  NOTIFICATIONS_UNAVAILABLE: entry(
    '',
    'Notifications do not arrive, as behind a pooler in transaction mode.',
    'Set postgres.directUrl (DATABASE_DIRECT_URL) to the server itself.',
  ),
  MIGRATION_INVALID: entry(
    '',
    'A migration file or folder is not as it must be.',
    'Mend the file that the message names.',
  ),
  MIGRATION_FAILED: entry(
    '',
    'A migration failed; the schema is as it was before that file.',
    'Mend the statement that the message quotes and migrate again.',
  ),
  MIGRATION_LOCKED: entry(
    'transient replay whole',
    'Another process is migrating.',
    'Wait for it, or look for the session that the message names.',
  ),
  BULK_SOURCE_FAILED: entry(
    '',
    'What gave the rows to write failed before its end.',
    'Look at its own error, in `cause`; the message says what is written.',
  ),
  CODEGEN_FAILED: entry('', 'Types could not be generated.', 'Follow the message.'),
  REDIS_UNAVAILABLE: entry(
    'transient',
    'Redis could not be reached or did not answer in time.',
    'Check that it runs; queries go on without it.',
  ),
  CACHE_VALUE_UNSUPPORTED: entry(
    '',
    'A value does not survive being cached: a function, an instance of a class, a circle.',
    'Cache plain data, and make other things of it when it is read.',
  ),
  CACHE_LOAD_TIMEOUT: entry(
    'transient',
    'What loads a value for the cache took longer than its limit.',
    'Look at what it waits for, raise loadTimeoutMs, or allow stale values.',
  ),
  CACHE_WRITE_BEHIND_FULL: entry(
    'transient',
    'As many keys wait to be written behind as may.',
    'Write this one at once, or see why writing is slow.',
  ),
  SAGA_COMPENSATED: entry(
    '',
    'A step of a saga failed for good, and what had been done was undone by its compensations.',
    'See `step` and `failure`; begin another saga, under another idempotency key, once the cause is mended.',
  ),
  SAGA_CANCELED: entry(
    '',
    'A saga was canceled, and what had been done was undone by its compensations.',
    'Nothing has to be done; begin another saga, under another idempotency key, if it is wanted after all.',
  ),
  SAGA_STUCK: entry(
    '',
    'A compensation of a saga failed for good: what its step did is not undone. The saga waits for a person.',
    'Mend what `failure` says and call sagas.retry(id), or undo it by hand and call sagas.skip(id, step).',
  ),
  SAGA_CONFLICT: entry(
    '',
    'There is a saga under this idempotency key already, with another input. Nothing was begun.',
    'Give each piece of work a key of its own.',
  ),
  SAGA_STEP_REFUSED: entry(
    '',
    'A step said that it has not happened and that trying again is of no use.',
    'Nothing; the saga is compensated.',
  ),
  SAGA_STEP_TIMEOUT: entry(
    'transient',
    'A step of a saga did not end within its time; outside a transaction it may have happened.',
    'See what it waits for and hand its signal on to that, or raise its timeoutMs.',
  ),
  SAGA_LEASE_LOST: entry(
    '',
    'This process could not renew its lease on a saga in time; what it does now for that saga is no longer recorded.',
    'Nothing: another process goes on with it. Look for what kept this one, or raise leaseMs.',
  ),
  EVENT_TOO_LARGE: entry(
    '',
    'The payload of an event for the outbox is larger than it may be; nothing was written.',
    'Store what it tells in a row and publish the key of the row, or raise maxPayloadBytes.',
  ),
  DELIVERY_FAILED: entry(
    'transient',
    'An event of the outbox could not be delivered where it was to go.',
    'Look at what the message names; the relay tries again by itself unless the error is final.',
  ),
}

/** The stable, literal code of a {@link DatabaseError}. */
export type ErrorCode =
  | 'CONFIG_INVALID'
  | 'DATABASE_CLOSED'
  | 'EMBEDDED_UNAVAILABLE'
  | 'CONNECTION_FAILED'
  | 'CONNECTION_LOST'
  | 'TOO_MANY_CONNECTIONS'
  | 'SERVER_STARTING'
  | 'SERVER_SHUTDOWN'
  | 'SERVER_CRASHED'
  | 'IDLE_SESSION_TIMEOUT'
  | 'DATABASE_DROPPED'
  | 'POOLER_REJECTED'
  | 'AUTHENTICATION_FAILED'
  | 'DATABASE_NOT_FOUND'
  | 'TLS_FAILED'
  | 'RECOVERY_CONFLICT'
  | 'READ_ONLY'
  | 'CIRCUIT_OPEN'
  | 'POOL_OVERLOADED'
  | 'POOL_TIMEOUT'
  | 'QUERY_TIMEOUT'
  | 'STATEMENT_TIMEOUT'
  | 'QUERY_CANCELED'
  | 'LOCK_TIMEOUT'
  | 'IDLE_IN_TRANSACTION_TIMEOUT'
  | 'TRANSACTION_TIMEOUT'
  | 'SERIALIZATION_FAILURE'
  | 'DEADLOCK'
  | 'TRANSACTION_ABORTED'
  | 'TRANSACTION_MISUSE'
  | 'COMMIT_OUTCOME_UNKNOWN'
  | 'UNIQUE_VIOLATION'
  | 'EXCLUSION_VIOLATION'
  | 'FOREIGN_KEY_VIOLATION'
  | 'CHECK_VIOLATION'
  | 'NOT_NULL_VIOLATION'
  | 'INVALID_DATA'
  | 'SYNTAX_ERROR'
  | 'UNDEFINED_OBJECT'
  | 'INSUFFICIENT_PRIVILEGE'
  | 'QUERY_FAILED'
  | 'PROTOCOL_VIOLATION'
  | 'CACHED_PLAN_CHANGED'
  | 'PREPARED_STATEMENT_LOST'
  | 'DISK_FULL'
  | 'OUT_OF_MEMORY'
  | 'CONFIGURATION_LIMIT'
  | 'SYSTEM_ERROR'
  | 'INTERNAL_ERROR'
  | 'NOT_FOUND'
  | 'VERSION_CONFLICT'
  | 'VALIDATION_FAILED'
  | 'INVALID_ARGUMENT'
  | 'CURSOR_INVALID'
  | 'NOTIFICATION_TOO_LARGE'
  | 'NOTIFICATIONS_UNAVAILABLE'
  | 'MIGRATION_INVALID'
  | 'MIGRATION_FAILED'
  | 'MIGRATION_LOCKED'
  | 'BULK_SOURCE_FAILED'
  | 'CODEGEN_FAILED'
  | 'REDIS_UNAVAILABLE'
  | 'CACHE_VALUE_UNSUPPORTED'
  | 'CACHE_LOAD_TIMEOUT'
  | 'CACHE_WRITE_BEHIND_FULL'
  | 'SAGA_COMPENSATED'
  | 'SAGA_CANCELED'
  | 'SAGA_STUCK'
  | 'SAGA_CONFLICT'
  | 'SAGA_STEP_REFUSED'
  | 'SAGA_STEP_TIMEOUT'
  | 'SAGA_LEASE_LOST'
  | 'EVENT_TOO_LARGE'
  | 'DELIVERY_FAILED'

/** What every {@link DatabaseError} may carry; fields that do not apply are absent. */
export interface DatabaseErrorInit {
  readonly cause?: unknown
  /** Overrides the advice of the catalog, which is for a statement outside a transaction. */
  readonly retry?: RetryScope | undefined
  /** SQL text with its placeholders. Parameters never belong here. */
  readonly sql?: string | undefined
  readonly sqlState?: string | undefined
  readonly schema?: string | undefined
  readonly table?: string | undefined
  readonly column?: string | undefined
  readonly constraint?: string | undefined
  /** Of many rows, how many are written for good. */
  readonly rowsWritten?: number | undefined
}

const brand = Symbol.for('kanta.DatabaseError')

/**
 * The base of every error that kanta throws: `code` says which, `retry` what may be run again, `transient` whether
 * waiting helps. Messages and fields hold SQL text but never parameters or credentials. The driver's own error is
 * kept in `cause`; what PostgreSQL quotes of a row (`cause.detail`, `cause.where`) can be read there but is not
 * enumerable, so that loggers do not print it.
 *
 * Compare with {@link isDatabaseError} rather than `instanceof` where two copies of the package may be loaded.
 *
 * @example
 * ```ts
 * import { isDatabaseError } from 'kanta'
 *
 * export function statusOf(error: unknown): number {
 *   if (!isDatabaseError(error)) return 500
 *   if (error.code === 'UNIQUE_VIOLATION') return 409
 *   return error.transient ? 503 : 500
 * }
 * ```
 */
export class DatabaseError extends Error {
  readonly code: ErrorCode
  readonly retry: RetryScope
  readonly transient: boolean
  readonly sql: string | undefined
  /** The five characters that PostgreSQL gave, if it spoke. */
  readonly sqlState: string | undefined
  readonly schema: string | undefined
  readonly table: string | undefined
  readonly column: string | undefined
  readonly constraint: string | undefined
  /** Of the rows of `insertMany` and its kin with `atomic: false`, how many are written for good. */
  rowsWritten: number | undefined

  constructor(code: ErrorCode, message: string, init: DatabaseErrorInit = {}) {
    super(message, 'cause' in init ? { cause: init.cause } : undefined)
    const advice: ErrorAdvice = errorCatalog[code]
    this.code = code
    this.retry = init.retry ?? retryScope(advice)
    this.transient = advice.transient
    this.sql = init.sql
    this.sqlState = init.sqlState
    this.schema = init.schema
    this.table = init.table
    this.column = init.column
    this.constraint = init.constraint
    this.rowsWritten = init.rowsWritten
    Object.defineProperty(this, brand, { value: true })
  }

  override get name(): string {
    return this.constructor.name
  }

  /** What a log may hold: no parameters, no cause, no stack. */
  toJSON(): Record<string, unknown> {
    const { name, message, code, retry, transient, sql, sqlState, schema, table, column, constraint } = this
    return { name, message, code, retry, transient, sql, sqlState, schema, table, column, constraint }
  }
}

/** Options or environment are wrong. `problems` has all of them; received values are redacted. Code `CONFIG_INVALID`. */
export class ConfigError extends DatabaseError {
  override readonly code = 'CONFIG_INVALID'
  readonly problems: readonly ConfigProblem[]

  constructor(problems: readonly ConfigProblem[], what = 'kanta cannot start') {
    super('CONFIG_INVALID', describeProblems(problems, what))
    this.problems = problems
  }

  override toJSON(): Record<string, unknown> {
    return { ...super.toJSON(), problems: this.problems }
  }
}

/** One wrong setting. */
export interface ConfigProblem {
  /** The option's path or the environment variable's name, whichever gave the value. */
  readonly key: string
  readonly expected: string
  /** What came instead, without credentials. */
  readonly received: string
  readonly remedy: string
}

function describeProblems(problems: readonly ConfigProblem[], what: string): string {
  const lines = problems.map((p) => `  ${p.key}: expected ${p.expected}, got ${p.received}. ${p.remedy}`)
  return `${what}, ${problems.length === 1 ? '1 setting is' : `${problems.length} settings are`} wrong:\n${lines.join('\n')}`
}

/** No usable connection: refused, lost, shut down, not trusted, not allowed. */
export class ConnectionError extends DatabaseError {
  declare readonly code: ConnectionErrorCode
}

/** The codes of a {@link ConnectionError}. */
export type ConnectionErrorCode =
  | 'AUTHENTICATION_FAILED'
  | 'CONNECTION_FAILED'
  | 'CONNECTION_LOST'
  | 'DATABASE_DROPPED'
  | 'DATABASE_NOT_FOUND'
  | 'EMBEDDED_UNAVAILABLE'
  | 'IDLE_SESSION_TIMEOUT'
  | 'POOLER_REJECTED'
  | 'SERVER_CRASHED'
  | 'SERVER_SHUTDOWN'
  | 'SERVER_STARTING'
  | 'TLS_FAILED'
  | 'TOO_MANY_CONNECTIONS'

/** Something took longer than its limit. `limitMs` is that limit where kanta set it. */
export class TimeoutError extends DatabaseError {
  declare readonly code:
    | 'IDLE_IN_TRANSACTION_TIMEOUT'
    | 'LOCK_TIMEOUT'
    | 'POOL_TIMEOUT'
    | 'QUERY_TIMEOUT'
    | 'STATEMENT_TIMEOUT'
    | 'TRANSACTION_TIMEOUT'
  readonly limitMs: number | undefined

  constructor(code: TimeoutError['code'], message: string, init: DatabaseErrorInit & { limitMs?: number } = {}) {
    super(code, message, init)
    this.limitMs = init.limitMs
  }
}

/** A transaction could not go on or its end is not known. */
export class TransactionError extends DatabaseError {
  declare readonly code:
    | 'COMMIT_OUTCOME_UNKNOWN'
    | 'DEADLOCK'
    | 'SERIALIZATION_FAILURE'
    | 'TRANSACTION_ABORTED'
    | 'TRANSACTION_MISUSE'
}

/**
 * A row was refused by a constraint. `constraint`, `table` and `column` name it; the values are not in it.
 *
 * @see {@link isViolation}
 */
export class ConstraintViolationError extends DatabaseError {
  declare readonly code:
    | 'CHECK_VIOLATION'
    | 'EXCLUSION_VIOLATION'
    | 'FOREIGN_KEY_VIOLATION'
    | 'NOT_NULL_VIOLATION'
    | 'UNIQUE_VIOLATION'
}

/** The row that had to exist does not. `table` says where it was sought. */
export class NotFoundError extends DatabaseError {
  override readonly code = 'NOT_FOUND'

  constructor(message: string, init: DatabaseErrorInit = {}) {
    super('NOT_FOUND', message, init)
  }
}

/** The row has another version than it had when it was read: somebody else has changed it. */
export class ConflictError extends DatabaseError {
  override readonly code = 'VERSION_CONFLICT'
  /** The one that was read. */
  readonly expectedVersion: number
  /** The one that the row has now. */
  readonly actualVersion: number

  constructor(message: string, init: DatabaseErrorInit & { expectedVersion: number; actualVersion: number }) {
    super('VERSION_CONFLICT', message, init)
    this.expectedVersion = init.expectedVersion
    this.actualVersion = init.actualVersion
  }

  override toJSON(): Record<string, unknown> {
    const { expectedVersion, actualVersion } = this
    return { ...super.toJSON(), expectedVersion, actualVersion }
  }
}

/** One thing that is wrong with given values, as the schema tells it. */
export interface ValidationIssue {
  /** Which property, for instance `address.city`; empty for the whole. */
  readonly path: string
  /** In the words of the schema, which may quote a value: it is not part of the error's message. */
  readonly message: string
}

/** Values that a schema refuses. `issues` has everything that is wrong. */
export class ValidationError extends DatabaseError {
  override readonly code = 'VALIDATION_FAILED'
  readonly issues: readonly ValidationIssue[]

  constructor(message: string, init: DatabaseErrorInit & { issues: readonly ValidationIssue[] }) {
    super('VALIDATION_FAILED', message, init)
    this.issues = init.issues
  }
}

/**
 * An event of the outbox could not be delivered. A handler throws it to say more than that: `isFinal` makes the event a dead letter
 * at once, `retryAfterMs` is the least time until the next attempt. Its message is kept with the event, so it must not quote the
 * payload. Code `DELIVERY_FAILED`.
 *
 * @example
 * ```ts
 * import { DeliveryError } from 'kanta'
 *
 * export function assertAccepted(status: number): void {
 *   if (status === 422) throw new DeliveryError('The mail service refuses the address.', { isFinal: true })
 *   if (status === 429) throw new DeliveryError('The mail service wants a pause.', { retryAfterMs: 60_000 })
 * }
 * ```
 */
export class DeliveryError extends DatabaseError {
  override readonly code = 'DELIVERY_FAILED'
  readonly isFinal: boolean
  readonly retryAfterMs: number | undefined

  constructor(
    message: string,
    init: DatabaseErrorInit & { readonly isFinal?: boolean; readonly retryAfterMs?: number | undefined } = {},
  ) {
    super('DELIVERY_FAILED', message, init)
    this.isFinal = init.isFinal ?? false
    this.retryAfterMs = init.retryAfterMs
  }
}

/** A migration cannot be read, run or locked. `file` names it; `line` and `statement` where it stopped. */
export class MigrationError extends DatabaseError {
  declare readonly code: 'MIGRATION_FAILED' | 'MIGRATION_INVALID' | 'MIGRATION_LOCKED'
  readonly file: string | undefined
  /** Line in the file, from 1. */
  readonly line: number | undefined
  /** The SQL that failed. */
  readonly statement: string | undefined

  constructor(
    code: MigrationError['code'],
    message: string,
    init: DatabaseErrorInit & { file?: string; line?: number | undefined; statement?: string | undefined } = {},
  ) {
    super(code, message, init)
    this.file = init.file
    this.line = init.line
    this.statement = init.statement
  }

  override toJSON(): Record<string, unknown> {
    const { file, line, statement } = this
    return { ...super.toJSON(), file, line, statement }
  }
}

/** Why a step failed, as it stands in the log of its saga. */
export interface SagaFailure {
  /** The code of the error that the step threw, or its name where it had none. */
  readonly code: string
  /** Its message, cut to 500 characters. Of errors of the database it holds no parameter. */
  readonly message: string
}

/** What a {@link SagaError} tells beside its message. */
export interface SagaErrorInit {
  readonly sagaId: string
  readonly saga: string
  readonly step?: string | undefined
  readonly failure?: SagaFailure | undefined
}

/** A saga did not complete, or could not be begun. `step` and `failure` say why, as any process can tell it from the log. */
export class SagaError extends DatabaseError {
  declare readonly code: 'SAGA_CANCELED' | 'SAGA_COMPENSATED' | 'SAGA_CONFLICT' | 'SAGA_STUCK'
  readonly sagaId: string
  /** The name of its definition. */
  readonly saga: string
  /** The step that failed; of `SAGA_STUCK` the one that is not undone. */
  readonly step: string | undefined
  readonly failure: SagaFailure | undefined

  constructor(code: SagaError['code'], message: string, { sagaId, saga, step, failure }: SagaErrorInit) {
    super(code, message)
    this.sagaId = sagaId
    this.saga = saga
    this.step = step
    this.failure = failure
  }

  override toJSON(): Record<string, unknown> {
    const { sagaId, saga, step, failure } = this
    return { ...super.toJSON(), sagaId, saga, step, failure }
  }
}

/**
 * Thrown by a step to say that it has not happened, and that trying again is of no use: a card that was declined, an order that is
 * gone. The saga turns back at once, and the step itself is not compensated, unless an earlier attempt of it may have happened.
 * Thrown by a compensation, the saga is stuck at once.
 *
 * @example
 * ```ts
 * import { StepRefusedError } from 'kanta'
 *
 * export function assertAccepted(answer: { status: number }): void {
 *   if (answer.status === 402) throw new StepRefusedError('The card was declined.')
 * }
 * ```
 */
export class StepRefusedError extends DatabaseError {
  override readonly code = 'SAGA_STEP_REFUSED'

  constructor(message: string, init: DatabaseErrorInit = {}) {
    super('SAGA_STEP_REFUSED', message, init)
  }
}

/** Whether an error came from kanta, from this copy of the package or another. */
export function isDatabaseError(error: unknown): error is DatabaseError {
  return typeof error === 'object' && error !== null && brand in error
}

/** What every call is told once the database was closed. */
export function databaseClosed(): DatabaseError {
  return new DatabaseError('DATABASE_CLOSED', 'The database is closed. Create a new one, or move close() to the end.')
}

/**
 * Whether an error is the violation of the named constraint. Give the generated `ConstraintName` as type argument
 * and a renamed constraint stops compiling where it is handled.
 *
 * @example
 * ```ts
 * import { isViolation } from 'kanta'
 * import type { ConstraintName } from './generated/schema.ts'
 *
 * export const emailTaken = (error: unknown): boolean => isViolation<ConstraintName>(error, 'users_email_key')
 * ```
 */
export function isViolation<Constraint extends string = string>(
  error: unknown,
  constraint: NoInfer<Constraint>,
): error is ConstraintViolationError & { readonly constraint: Constraint } {
  return isDatabaseError(error) && error.code.endsWith('_VIOLATION') && error.constraint === constraint
}

/**
 * The advice for an error code: outside a transaction by default, or for the transaction as a whole, inside which
 * a single statement can never be repeated.
 */
export function retryScope(
  advice: Pick<ErrorAdvice, 'replay' | 'wholeTransaction'>,
  inTransaction = false,
): RetryScope {
  if (inTransaction) return advice.wholeTransaction ? 'transaction' : 'none'
  return advice.replay ? 'statement' : 'none'
}
