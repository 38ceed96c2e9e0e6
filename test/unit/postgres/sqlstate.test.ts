import { inspect } from 'node:util'
import { expect, test } from 'vitest'
import { DatabaseError, type ErrorCode, TimeoutError } from '../../../src/core/errors.ts'
import {
  discardsConnection,
  type ErrorContext,
  noteStop,
  type Stop,
  toDatabaseError,
  verdictOf,
} from '../../../src/postgres/sqlstate.ts'

function report(code: string, fields: object = {}): Error {
  return Object.assign(new Error('the server said so'), { code, severity: 'ERROR', ...fields })
}
function socket(code: string, message = code): Error {
  return Object.assign(new Error(message), { code })
}

function pooler(message: string): Error {
  return report('08P01', { severity: 'FATAL', message })
}

type Row = [what: string, cause: Error, code: ErrorCode, replay: boolean, whole: boolean, discard: boolean]

// The rows of the error table in docs/errors.md: may a lone write be sent again, may a whole transaction, is the connection dead.
const rows: Row[] = [
  ['connection refused', socket('ECONNREFUSED'), 'CONNECTION_FAILED', true, true, true],
  ['unknown host', socket('ENOTFOUND'), 'CONNECTION_FAILED', true, true, true],
  ['no name service', socket('EAI_AGAIN'), 'CONNECTION_FAILED', true, true, true],
  ['no route', socket('EHOSTUNREACH'), 'CONNECTION_FAILED', true, true, true],
  ['reset', socket('ECONNRESET'), 'CONNECTION_LOST', false, true, true],
  ['broken pipe', socket('EPIPE'), 'CONNECTION_LOST', false, true, true],
  ['no acknowledgement', socket('ETIMEDOUT'), 'CONNECTION_LOST', false, true, true],
  ['end without a word', new Error('Connection terminated unexpectedly'), 'CONNECTION_LOST', false, true, true],
  ['not queryable', new Error('Client was closed and is not queryable'), 'CONNECTION_FAILED', true, true, true],
  ['08004', report('08004', { severity: 'FATAL' }), 'CONNECTION_FAILED', true, true, true],
  ['08006', report('08006', { severity: 'FATAL' }), 'CONNECTION_LOST', false, true, true],
  ['08007', report('08007'), 'COMMIT_OUTCOME_UNKNOWN', false, false, true],
  ['40003', report('40003'), 'COMMIT_OUTCOME_UNKNOWN', false, false, true],
  ['a pooler with nothing free', pooler('query_wait_timeout'), 'POOLER_REJECTED', true, true, true],
  ['a pooler without a server', pooler('server login has been failing, try'), 'POOLER_REJECTED', true, true, true],
  ['a pooler that lost the server', pooler('server conn crashed?'), 'CONNECTION_LOST', false, true, true],
  ['a pooler that gave up', pooler('query timeout'), 'QUERY_TIMEOUT', false, true, true],
  ['a pooler and an idler', pooler('idle transaction timeout'), 'IDLE_IN_TRANSACTION_TIMEOUT', false, false, true],
  ['65 536 parameters', report('08P01'), 'PROTOCOL_VIOLATION', false, false, true],
  ['53300', report('53300', { severity: 'FATAL' }), 'TOO_MANY_CONNECTIONS', true, true, true],
  ['53100', report('53100'), 'DISK_FULL', true, true, false],
  ['53200', report('53200'), 'OUT_OF_MEMORY', true, true, false],
  ['53400', report('53400'), 'CONFIGURATION_LIMIT', true, true, false],
  ['57P01', report('57P01', { severity: 'FATAL' }), 'SERVER_SHUTDOWN', false, true, true],
  ['57P02', report('57P02', { severity: 'FATAL' }), 'SERVER_CRASHED', false, true, true],
  ['57P03', report('57P03', { severity: 'FATAL' }), 'SERVER_STARTING', true, true, true],
  ['57P04', report('57P04', { severity: 'FATAL' }), 'DATABASE_DROPPED', false, false, true],
  ['57P05', report('57P05', { severity: 'FATAL' }), 'IDLE_SESSION_TIMEOUT', true, true, true],
  ['57014', report('57014'), 'QUERY_CANCELED', false, false, false],
  ['55P03', report('55P03'), 'LOCK_TIMEOUT', true, true, false],
  ['40001', report('40001'), 'SERIALIZATION_FAILURE', true, true, false],
  ['40P01', report('40P01'), 'DEADLOCK', true, true, false],
  ['40001 of a standby', report('40001', { severity: 'FATAL' }), 'RECOVERY_CONFLICT', true, true, true],
  ['25006', report('25006'), 'READ_ONLY', true, true, true],
  ['25P02', report('25P02'), 'TRANSACTION_ABORTED', false, false, false],
  ['25P03', report('25P03', { severity: 'FATAL' }), 'IDLE_IN_TRANSACTION_TIMEOUT', false, false, true],
  ['25P04', report('25P04', { severity: 'FATAL' }), 'TRANSACTION_TIMEOUT', false, false, true],
  ['a changed plan', report('0A000', { routine: 'RevalidateCachedQuery' }), 'CACHED_PLAN_CHANGED', true, true, true],
  ['any other 0A000', report('0A000'), 'QUERY_FAILED', false, false, false],
  ['26000', report('26000'), 'PREPARED_STATEMENT_LOST', true, true, true],
  ['42P05', report('42P05'), 'PREPARED_STATEMENT_LOST', true, true, true],
  ['08000', report('08000', { severity: 'FATAL' }), 'CONNECTION_FAILED', true, true, true],
  ['08001', report('08001', { severity: 'FATAL' }), 'CONNECTION_FAILED', true, true, true],
  ['08003', report('08003', { severity: 'FATAL' }), 'CONNECTION_FAILED', true, true, true],
  ['23505', report('23505'), 'UNIQUE_VIOLATION', false, false, false],
  ['23P01', report('23P01'), 'EXCLUSION_VIOLATION', false, false, false],
  ['23503', report('23503'), 'FOREIGN_KEY_VIOLATION', false, false, false],
  ['23514', report('23514'), 'CHECK_VIOLATION', false, false, false],
  ['23502', report('23502'), 'NOT_NULL_VIOLATION', false, false, false],
  ['22P02', report('22P02'), 'INVALID_DATA', false, false, false],
  ['42601', report('42601'), 'SYNTAX_ERROR', false, false, false],
  ['42P01', report('42P01'), 'UNDEFINED_OBJECT', false, false, false],
  ['42703', report('42703'), 'UNDEFINED_OBJECT', false, false, false],
  ['42501', report('42501'), 'INSUFFICIENT_PRIVILEGE', false, false, false],
  ['28P01', report('28P01', { severity: 'FATAL' }), 'AUTHENTICATION_FAILED', false, false, true],
  ['28000', report('28000', { severity: 'FATAL' }), 'AUTHENTICATION_FAILED', false, false, true],
  ['3D000', report('3D000', { severity: 'FATAL' }), 'DATABASE_NOT_FOUND', false, false, true],
  ['a certificate of nobody', socket('DEPTH_ZERO_SELF_SIGNED_CERT'), 'TLS_FAILED', false, false, true],
  ['another host', socket('ERR_TLS_CERT_ALTNAME_INVALID'), 'TLS_FAILED', false, false, true],
  ['a plaintext server', new Error('The server does not support SSL connections'), 'TLS_FAILED', false, false, true],
  ['58030', report('58030'), 'SYSTEM_ERROR', false, false, true],
  ['XX001', report('XX001'), 'INTERNAL_ERROR', false, false, true],
  ['P0001', report('P0001'), 'QUERY_FAILED', false, false, false],
]

test.each(rows)('%s', (_what, cause, code, replay, whole, discard) => {
  const alone = toDatabaseError(cause)
  expect(alone.code).toBe(code)
  expect(alone.cause).toBe(cause)
  expect(alone.retry).toBe(replay ? 'statement' : 'none')
  expect(toDatabaseError(cause, { inTransaction: true }).retry).toBe(whole ? 'transaction' : 'none')
  expect(discardsConnection(alone)).toBe(discard)
})

test.each<[ErrorContext['phase'], ErrorCode]>([
  ['connect', 'CONNECTION_FAILED'],
  ['statement', 'CONNECTION_LOST'],
  ['commit', 'COMMIT_OUTCOME_UNKNOWN'],
])('a reset during %s is %s', (phase, code) => {
  expect(toDatabaseError(socket('ECONNRESET'), { phase }).code).toBe(code)
})

test.each<[ErrorContext['phase'], ErrorCode]>([
  ['connect', 'POOLER_REJECTED'],
  ['statement', 'CONNECTION_LOST'],
  ['commit', 'COMMIT_OUTCOME_UNKNOWN'],
])('what a pooler says that nobody knows, during %s, is %s', (phase, code) => {
  expect(toDatabaseError(pooler('the sky is falling'), { phase }).code).toBe(code)
})

test('a typed error passes through', () => {
  const error = new DatabaseError('NOT_FOUND', 'x')
  expect(toDatabaseError(error)).toBe(error)
})

test('a transaction that had no connection in its time tells a breaker what that lacked', () => {
  const late = (cause?: unknown): Error => new TimeoutError('TRANSACTION_TIMEOUT', 'late', { cause })
  expect(verdictOf(late(new DatabaseError('CONNECTION_FAILED', 'no connection was opened')))).toBe('unhealthy')
  expect(verdictOf(late(new TimeoutError('POOL_TIMEOUT', 'all are in use')))).toBe('neutral')
  expect(verdictOf(late())).toBe('neutral')
})

test('several addresses that all refused are one refusal', () => {
  expect(toDatabaseError(new AggregateError([socket('ECONNREFUSED'), socket('ECONNREFUSED')])).code).toBe(
    'CONNECTION_FAILED',
  )
})

test('neither message nor inspection shows a value that PostgreSQL quotes, and the cause still has it', () => {
  const cause = report('23505', { detail: 'Key (email)=(ada@example.org) already exists.', where: 'portal "x"' })
  const error = toDatabaseError(cause, { sql: 'insert into users (email) values ($1)' })
  expect(inspect(error, { depth: null })).not.toContain('ada@example.org')
  expect((error.cause as { detail: string }).detail).toContain('ada@example.org')

  const invalid = Object.assign(new Error('invalid input syntax for type integer: "hunter2"'), {
    code: '22P02',
    severity: 'ERROR',
  })
  expect(inspect(toDatabaseError(invalid), { depth: null })).not.toContain('hunter2')
})

test('a value with quotes of its own is hidden from its first to its last', () => {
  const cause = Object.assign(new Error('invalid input syntax for type integer: "{"password":"hunter2"}"'), {
    code: '22P02',
    severity: 'ERROR',
  })
  expect(inspect(toDatabaseError(cause), { depth: null })).not.toMatch(/hunter2|password/)
})

const stopped = (message: string): Error =>
  Object.assign(new Error(message), { code: '57014', severity: 'ERROR', routine: 'ProcessInterrupts' })

test.each<[what: string, cause: Error, limitMs: number | undefined, stop: Omit<Stop, 'limitMs'>, code: ErrorCode]>([
  [
    'asked for by us, whatever the server says',
    stopped('canceling statement due to statement timeout'),
    100,
    { isAsked: true, tookMs: 100 },
    'QUERY_CANCELED',
  ],
  [
    'by its own limit, in another language',
    stopped('storniere Anfrage wegen Zeitüberschreitung der Anfrage'),
    100,
    { isAsked: false, tookMs: 101 },
    'STATEMENT_TIMEOUT',
  ],
  [
    'before its limit, in another language',
    stopped('storniere Anfrage wegen Benutzeraufforderung'),
    100,
    { isAsked: false, tookMs: 50 },
    'QUERY_CANCELED',
  ],
  [
    'by a limit that only the server knows',
    stopped('canceling statement due to statement timeout'),
    undefined,
    { isAsked: false, tookMs: 50 },
    'STATEMENT_TIMEOUT',
  ],
  [
    'by an administrator',
    stopped('canceling statement due to user request'),
    undefined,
    { isAsked: false, tookMs: 50 },
    'QUERY_CANCELED',
  ],
  [
    'a COPY that its client ended',
    report('57014', { routine: 'CopyGetData' }),
    undefined,
    { isAsked: false, tookMs: 50 },
    'QUERY_CANCELED',
  ],
])('57014 %s', (_what, cause, limitMs, stop, code) => {
  noteStop(cause, { ...stop, limitMs })
  expect(toDatabaseError(cause).code).toBe(code)
})
