/**
 * What a SQLSTATE or a socket error means: which error class, and whether the connection can still be used. The table
 * follows PostgreSQL's appendix A and what `pg` was seen to do (docs/errors.md).
 */
import {
  ConnectionError,
  ConstraintViolationError,
  DatabaseError,
  type DatabaseErrorInit,
  errorCatalog,
  type ErrorCode,
  isDatabaseError,
  retryScope,
  TimeoutError,
  TransactionError,
} from '../core/errors.ts'
import { isAboutOwnName } from './statement-text.ts'

/** The fields of PostgreSQL's ErrorResponse that we read; `pg` puts them on its error. */
interface ServerReport {
  readonly code: string
  readonly severity?: string
  readonly message: string
  readonly schema?: string
  readonly table?: string
  readonly column?: string
  readonly constraint?: string
  readonly routine?: string
  readonly where?: string
}

const bySqlState: Readonly<Record<string, ErrorCode>> = {
  '08000': 'CONNECTION_FAILED',
  '08001': 'CONNECTION_FAILED',
  '08003': 'CONNECTION_FAILED',
  '08004': 'CONNECTION_FAILED',
  '08006': 'CONNECTION_LOST',
  '08007': 'COMMIT_OUTCOME_UNKNOWN',
  '08P01': 'PROTOCOL_VIOLATION',
  '22P05': 'INVALID_DATA',
  '23001': 'FOREIGN_KEY_VIOLATION',
  '23502': 'NOT_NULL_VIOLATION',
  '23503': 'FOREIGN_KEY_VIOLATION',
  '23505': 'UNIQUE_VIOLATION',
  '23514': 'CHECK_VIOLATION',
  '23P01': 'EXCLUSION_VIOLATION',
  // VACUUM and its like inside a transaction, or a mode of the transaction that comes too late.
  '25001': 'TRANSACTION_MISUSE',
  '25006': 'READ_ONLY',
  '25P02': 'TRANSACTION_ABORTED',
  '25P03': 'IDLE_IN_TRANSACTION_TIMEOUT',
  '25P04': 'TRANSACTION_TIMEOUT',
  '26000': 'PREPARED_STATEMENT_LOST',
  '28000': 'AUTHENTICATION_FAILED',
  '28P01': 'AUTHENTICATION_FAILED',
  '3D000': 'DATABASE_NOT_FOUND',
  '40001': 'SERIALIZATION_FAILURE',
  '40003': 'COMMIT_OUTCOME_UNKNOWN',
  '40P01': 'DEADLOCK',
  '42501': 'INSUFFICIENT_PRIVILEGE',
  '42601': 'SYNTAX_ERROR',
  '42703': 'UNDEFINED_OBJECT',
  '42704': 'UNDEFINED_OBJECT',
  '42883': 'UNDEFINED_OBJECT',
  '42P01': 'UNDEFINED_OBJECT',
  '42P02': 'UNDEFINED_OBJECT',
  '42P05': 'PREPARED_STATEMENT_LOST',
  '3F000': 'UNDEFINED_OBJECT',
  '53100': 'DISK_FULL',
  '53200': 'OUT_OF_MEMORY',
  '53300': 'TOO_MANY_CONNECTIONS',
  '53400': 'CONFIGURATION_LIMIT',
  '55P03': 'LOCK_TIMEOUT',
  '57014': 'QUERY_CANCELED',
  '57P01': 'SERVER_SHUTDOWN',
  '57P02': 'SERVER_CRASHED',
  '57P03': 'SERVER_STARTING',
  '57P04': 'DATABASE_DROPPED',
  '57P05': 'IDLE_SESSION_TIMEOUT',
}

const bySqlStateClass: Readonly<Record<string, ErrorCode>> = {
  '08': 'CONNECTION_FAILED',
  '22': 'INVALID_DATA',
  '53': 'OUT_OF_MEMORY',
  '58': 'SYSTEM_ERROR',
  F0: 'INTERNAL_ERROR',
  XX: 'INTERNAL_ERROR',
}

/** Socket and TLS errors that can only come before anything was sent. */
const neverSent: ReadonlySet<string> = new Set([
  'ECONNREFUSED',
  'ENOTFOUND',
  'EAI_AGAIN',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOENT',
  'EACCES',
])

const constraintCodes: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'CHECK_VIOLATION',
  'EXCLUSION_VIOLATION',
  'FOREIGN_KEY_VIOLATION',
  'NOT_NULL_VIOLATION',
  'UNIQUE_VIOLATION',
])
const timeoutCodes: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'IDLE_IN_TRANSACTION_TIMEOUT',
  'LOCK_TIMEOUT',
  'POOL_TIMEOUT',
  'QUERY_TIMEOUT',
  'STATEMENT_TIMEOUT',
  'TRANSACTION_TIMEOUT',
])
const transactionCodes: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'COMMIT_OUTCOME_UNKNOWN',
  'DEADLOCK',
  'SERIALIZATION_FAILURE',
  'TRANSACTION_ABORTED',
  'TRANSACTION_MISUSE',
])
const connectionCodes: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'AUTHENTICATION_FAILED',
  'CONNECTION_FAILED',
  'CONNECTION_LOST',
  'DATABASE_DROPPED',
  'DATABASE_NOT_FOUND',
  'IDLE_SESSION_TIMEOUT',
  'POOLER_REJECTED',
  'SERVER_CRASHED',
  'SERVER_SHUTDOWN',
  'SERVER_STARTING',
  'TLS_FAILED',
  'TOO_MANY_CONNECTIONS',
])

/** Which server it was, as whom and in which database, matters more here than which statement. */
const placeCodes: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  ...connectionCodes,
  'COMMIT_OUTCOME_UNKNOWN',
  'CONFIGURATION_LIMIT',
  'DISK_FULL',
  'INSUFFICIENT_PRIVILEGE',
  'INTERNAL_ERROR',
  'OUT_OF_MEMORY',
  'READ_ONLY',
  'RECOVERY_CONFLICT',
  'SYSTEM_ERROR',
  'UNDEFINED_OBJECT',
])

/** After these the connection cannot be used although the server may still hold it open. */
const discardingCodes: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  ...connectionCodes,
  'CACHED_PLAN_CHANGED',
  'COMMIT_OUTCOME_UNKNOWN',
  'IDLE_IN_TRANSACTION_TIMEOUT',
  'INTERNAL_ERROR',
  'PREPARED_STATEMENT_LOST',
  'PROTOCOL_VIOLATION',
  'QUERY_TIMEOUT',
  'READ_ONLY',
  'RECOVERY_CONFLICT',
  'SYSTEM_ERROR',
  'TRANSACTION_TIMEOUT',
])

/** What an error says of the server's health; the rest says nothing, or that the server is well enough to refuse. */
const unhealthyCodes: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'AUTHENTICATION_FAILED',
  'COMMIT_OUTCOME_UNKNOWN',
  'CONFIGURATION_LIMIT',
  'CONNECTION_FAILED',
  'CONNECTION_LOST',
  'DATABASE_DROPPED',
  'DATABASE_NOT_FOUND',
  'INTERNAL_ERROR',
  'OUT_OF_MEMORY',
  'POOLER_REJECTED',
  'QUERY_TIMEOUT',
  'READ_ONLY',
  'SERVER_CRASHED',
  'SERVER_SHUTDOWN',
  'SERVER_STARTING',
  'STATEMENT_TIMEOUT',
  'SYSTEM_ERROR',
  'TLS_FAILED',
  'TOO_MANY_CONNECTIONS',
])
const neutralCodes: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'CIRCUIT_OPEN',
  'DATABASE_CLOSED',
  'POOL_OVERLOADED',
  'POOL_TIMEOUT',
  'QUERY_CANCELED',
])

/** What an error tells a circuit breaker. A full disk counts against writes alone, so it does not stop the reads. */
export function verdictOf(error: unknown): 'healthy' | 'neutral' | 'unhealthy' {
  const code = isDatabaseError(error) ? error.code : classify(error, {})
  if (unhealthyCodes.has(code)) return 'unhealthy'
  // Its time was over before it had a connection: what that lacked says more.
  if (code === 'TRANSACTION_TIMEOUT' && isDatabaseError(error) && isDatabaseError(error.cause)) {
    return verdictOf(error.cause)
  }
  const isFromServer = isDatabaseError(error) ? error.sqlState !== undefined : isServerReport(error)
  return isFromServer && !neutralCodes.has(code) ? 'healthy' : 'neutral'
}

/** What is known of a statement that the server has stopped (57014), which says why in its own language only. */
export interface Stop {
  /** We had asked for it. */
  readonly isAsked: boolean
  readonly tookMs: number
  /** The `statement_timeout` that the connection was opened with. */
  readonly limitMs?: number | undefined
}

const stops = new WeakMap<object, Stop>()

/** Keeps what is known of a stop for {@link toDatabaseError}. */
export function noteStop(error: unknown, stop: Stop): void {
  if (isServerReport(error) && error.code === '57014') stops.set(error, stop)
}

const farewells = new WeakMap<object, ServerReport>()

/** Keeps what the server had said before its connection broke with this error. */
export function noteFarewell(error: unknown, farewell: Pick<ServerReport, 'code' | 'message'>): void {
  if (error instanceof Error && !isServerReport(error)) farewells.set(error, farewell)
}

/** What was going on when the error came. */
export interface ErrorContext {
  /** SQL text with placeholders. */
  readonly sql?: string | undefined
  readonly inTransaction?: boolean | undefined
  /** `connect`: nothing was sent yet. `commit`: a COMMIT was sent. */
  readonly phase?: 'commit' | 'connect' | 'statement' | undefined
  /** The server without credentials, for the message. */
  readonly target?: string | undefined
  /** kanta's own limit, where one was at work. */
  readonly limitMs?: number | undefined
}

/**
 * The typed error for whatever `pg` or a socket threw. A {@link DatabaseError} comes back as it is. The message keeps
 * PostgreSQL's words except where they quote values; the original stays in `cause`.
 */
export function toDatabaseError(cause: unknown, context: ErrorContext = {}): DatabaseError {
  if (isDatabaseError(cause)) return cause
  const code = classify(cause, context)
  const report = reportOf(cause)
  hideValues(cause, code)
  const init: DatabaseErrorInit = {
    cause,
    retry: retryScope(errorCatalog[code], context.inTransaction),
    sql: context.sql,
    sqlState: report?.code,
    schema: report?.schema,
    table: report?.table,
    column: report?.column,
    constraint: report?.constraint,
  }
  return withLongerStack(() => construct(code, describe(code, cause, context), init, context))
}

// Inside a transaction and Kysely's log, Node's own limit of ten frames ends before the caller's.
const framesToCaller = 30

function withLongerStack<T>(make: () => T): T {
  const limit = Error.stackTraceLimit
  // Who wants none has switched them off.
  if (limit > 0 && limit < framesToCaller) Error.stackTraceLimit = framesToCaller
  try {
    return make()
  } finally {
    Error.stackTraceLimit = limit
  }
}

/** Whether the connection on which an error came is gone or cannot be waited for, so that nothing can be undone on it. */
export function isConnectionGone(error: DatabaseError): boolean {
  const severity = severityOf(error.cause)
  return (
    connectionCodes.has(error.code) || error.code === 'QUERY_TIMEOUT' || severity === 'FATAL' || severity === 'PANIC'
  )
}

/** Whether the connection on which an error came must not be used again. */
export function discardsConnection(error: DatabaseError): boolean {
  return discardingCodes.has(error.code) || severityOf(error.cause) === 'FATAL' || severityOf(error.cause) === 'PANIC'
}

function classify(cause: unknown, context: ErrorContext): ErrorCode {
  const report = reportOf(cause)
  if (report) return classifyReport(report, context)
  const code = errorCodeOf(cause)
  if (code !== undefined && isTlsCode(code)) return 'TLS_FAILED'
  const message = cause instanceof Error ? cause.message : ''
  if (/SSL|TLS/.test(message)) return 'TLS_FAILED'
  if (code !== undefined && neverSent.has(code)) return 'CONNECTION_FAILED'
  // `pg` says these about a client whose socket has ended before the call.
  if (/not queryable|was closed/.test(message)) return 'CONNECTION_FAILED'
  if (/client password must be/.test(message)) return 'AUTHENTICATION_FAILED'
  if (context.phase === 'connect') return 'CONNECTION_FAILED'
  if (isSocketFailure(code, message) || isDamaged(message))
    return context.phase === 'commit' ? 'COMMIT_OUTCOME_UNKNOWN' : 'CONNECTION_LOST'
  return 'QUERY_FAILED'
}

function classifyReport(report: ServerReport, context: ErrorContext): ErrorCode {
  const isFatal = report.severity === 'FATAL' || report.severity === 'PANIC'
  // A pooler speaks for itself under the code for protocol errors; PostgreSQL's own come as ERROR.
  if (report.code === '08P01' && isFatal) return classifyPooler(report.message, context)
  if (report.code === '40001' && (isFatal || report.routine === 'ProcessInterrupts')) return 'RECOVERY_CONFLICT'
  if (report.code === '57014') return classifyStop(report)
  if (report.code === '0A000' && report.routine === 'RevalidateCachedQuery') return 'CACHED_PLAN_CHANGED'
  if ((report.code === '26000' || report.code === '42P05') && !isAboutOwnName(report.message, context.sql)) {
    return report.code === '26000' ? 'UNDEFINED_OBJECT' : 'QUERY_FAILED'
  }
  return bySqlState[report.code] ?? bySqlStateClass[report.code.slice(0, 2)] ?? 'QUERY_FAILED'
}

/** What PgBouncer says to a client that it has given no connection to the server, or no transaction: nothing was done. */
const refusals =
  /^(?:client_idle_timeout|query_timeout|query_wait_timeout|server login has been failing|server shutting down|transaction blocks not allowed)/

/** PgBouncer has one code for all that it says, and only its words tell whether the server was reached. */
function classifyPooler(said: string, { phase }: ErrorContext): ErrorCode {
  if (phase === 'connect' || refusals.test(said)) return 'POOLER_REJECTED'
  if (phase === 'commit') return 'COMMIT_OUTCOME_UNKNOWN'
  if (said === 'idle transaction timeout') return 'IDLE_IN_TRANSACTION_TIMEOUT'
  if (said === 'query timeout' || said === 'transaction timeout') return 'QUERY_TIMEOUT'
  // "server conn crashed?", and whatever another pooler may say: the statement was on its way to the server.
  return 'CONNECTION_LOST'
}

function classifyStop(report: ServerReport): ErrorCode {
  const { isAsked = false, tookMs = 0, limitMs = Number.POSITIVE_INFINITY } = stops.get(report) ?? {}
  if (isAsked) return 'QUERY_CANCELED'
  // A COPY that its client ends fails with the same code, but not here.
  if (report.routine === 'ProcessInterrupts' && tookMs >= limitMs) return 'STATEMENT_TIMEOUT'
  // A limit of the role, the database or the session, which we do not know.
  return report.message.includes('statement timeout') ? 'STATEMENT_TIMEOUT' : 'QUERY_CANCELED'
}

function describe(code: ErrorCode, cause: unknown, context: ErrorContext): string {
  const { meaning, remedy } = errorCatalog[code]
  const report = reportOf(cause)
  const said = report?.message ?? (cause instanceof Error ? cause.message || errorCodeOf(cause) || '' : '')
  return `${said ? `${withoutFinalStop(said)}${limitOf(code, said, cause, context)}${placeOf(code, said, report, context)}. ` : ''}${meaning} ${remedy}`
}

function limitOf(code: ErrorCode, said: string, cause: unknown, { limitMs }: ErrorContext): string {
  // `pg` says no more than this when its connect timeout has passed.
  if (said === 'timeout expired' && limitMs !== undefined) return ` after ${limitMs} ms`
  const stop = stops.get(cause as object)
  if (code !== 'STATEMENT_TIMEOUT' || stop === undefined) return ''
  // Another limit is at work where it came much sooner: of the role, the database or the session.
  const { tookMs, limitMs: ownMs = Number.POSITIVE_INFINITY } = stop
  return tookMs >= ownMs ? ` of ${ownMs} ms` : ` after ${Math.round(tookMs)} ms`
}

function placeOf(code: ErrorCode, said: string, report: ServerReport | undefined, { target }: ErrorContext): string {
  // PostgreSQL names the table in all but two of these.
  const line = lineOf(report)
  if (constraintCodes.has(code)) {
    const table = report?.table && !said.includes(report.table) ? `table ${report.table}` : undefined
    const places = [table, line].filter(Boolean)
    return places.length > 0 ? ` (${places.join(', ')})` : ''
  }
  if (line !== undefined) return ` (${line})`
  return target && placeCodes.has(code) ? ` (${target})` : ''
}

/** Of what was copied. PostgreSQL quotes the line itself behind its number. */
function lineOf(report: ServerReport | undefined): string | undefined {
  const [, line, column] = /^COPY .+?, \S+ (\d+)(?:, \S+ ([^:]+))?/.exec(report?.where ?? '') ?? []
  if (line === undefined) return undefined
  return column === undefined ? `line ${line}` : `line ${line}, column ${column}`
}

function construct(code: ErrorCode, message: string, init: DatabaseErrorInit, context: ErrorContext): DatabaseError {
  if (constraintCodes.has(code)) return new ConstraintViolationError(code, message, init)
  if (connectionCodes.has(code)) return new ConnectionError(code, message, init)
  if (transactionCodes.has(code)) return new TransactionError(code, message, init)
  if (timeoutCodes.has(code)) {
    const limitMs =
      context.limitMs ?? (code === 'STATEMENT_TIMEOUT' ? stops.get(init.cause as object)?.limitMs : undefined)
    const limit = limitMs === undefined ? {} : { limitMs }
    return new TimeoutError(code as TimeoutError['code'], message, { ...init, ...limit })
  }
  return new DatabaseError(code, message, init)
}

/** Fields in which PostgreSQL quotes rows, parameters or the text of functions. */
const quotingFields = ['detail', 'hint', 'where', 'internalQuery', 'dataType'] as const

/** Keeps values of rows out of logs: fields that quote them can be read on the cause but not enumerated. */
function hideValues(cause: unknown, code: ErrorCode): void {
  if (!(cause instanceof Error)) return
  for (const field of quotingFields) {
    const descriptor = Object.getOwnPropertyDescriptor(cause, field)
    if (descriptor?.configurable) Object.defineProperty(cause, field, { ...descriptor, enumerable: false })
  }
  // «invalid input syntax for type integer: "4711x"» is the value that the caller sent.
  if (code !== 'INVALID_DATA') return
  // From the first quote to the last: a value may hold quotes itself.
  const shown = cause.message.replace(/"[^]*"/, '"…"')
  if (cause.stack) cause.stack = cause.stack.replace(cause.message, () => shown)
  cause.message = shown
}

function isServerReport(cause: unknown): cause is Error & ServerReport {
  if (!(cause instanceof Error)) return false
  const { code, severity } = cause as Partial<ServerReport>
  return typeof code === 'string' && /^[0-9A-Z]{5}$/.test(code) && typeof severity === 'string'
}

function reportOf(cause: unknown): ServerReport | undefined {
  return isServerReport(cause) ? cause : farewells.get(cause as object)
}

function severityOf(cause: unknown): string | undefined {
  return isServerReport(cause) ? cause.severity : undefined
}

function errorCodeOf(cause: unknown): string | undefined {
  // Several addresses were tried and all failed: any of them tells why.
  if (cause instanceof AggregateError) return errorCodeOf(cause.errors[0])
  if (!(cause instanceof Error)) return undefined
  const { code } = cause as NodeJS.ErrnoException
  return typeof code === 'string' ? code : undefined
}

function isTlsCode(code: string): boolean {
  return /^(ERR_TLS|ERR_SSL|CERT_|UNABLE_TO_|DEPTH_ZERO|SELF_SIGNED|ERR_OSSL|HOSTNAME_MISMATCH)/.test(code)
}

function isSocketFailure(code: string | undefined, message: string): boolean {
  return (
    /^(ECONNRESET|EPIPE|ETIMEDOUT|ECONNABORTED|EBADF|ERR_STREAM|ERR_SOCKET)/.test(code ?? '') ||
    /^Connection terminated|^timeout expired/.test(message)
  )
}

/** What `pg` says of a message that is not as it must be. */
function isDamaged(message: string): boolean {
  return /^(received invalid response|Received unexpected|Unknown authenticationOk)/.test(message)
}

function withoutFinalStop(text: string): string {
  return text.replace(/\.\s*$/, '')
}
