import { inspect } from 'node:util'
import { expect, test } from 'vitest'
import {
  ConstraintViolationError,
  DatabaseError,
  errorCatalog,
  type ErrorCode,
  isDatabaseError,
  isViolation,
  retryScope,
} from '../../../src/core/errors.ts'

const codes = Object.keys(errorCatalog) as ErrorCode[]

test.each(codes)('%s says what it means and what to do next', (code) => {
  const { meaning, remedy } = errorCatalog[code]
  expect(meaning).toMatch(/^[A-Z].*\.$/)
  expect(remedy).toMatch(/^[A-Z].*\.$/)
})

test.each(codes)('%s allows the repetition of a statement only if a whole transaction may be repeated, too', (code) => {
  const { replay, wholeTransaction } = errorCatalog[code]
  expect(replay && !wholeTransaction).toBe(false)
})

test('what may have happened is never to be repeated as a statement', () => {
  const ambiguous = ['CONNECTION_LOST', 'SERVER_SHUTDOWN', 'SERVER_CRASHED', 'QUERY_TIMEOUT'] as const
  for (const code of ambiguous) {
    expect(retryScope(errorCatalog[code])).toBe('none')
    expect(retryScope(errorCatalog[code], true)).toBe('transaction')
  }
  expect(retryScope(errorCatalog.COMMIT_OUTCOME_UNKNOWN, true)).toBe('none')
})

test('an error of another copy of the package is recognised, anything else is not', () => {
  const foreign = Object.assign(new Error('x'), { [Symbol.for('kanta.DatabaseError')]: true })
  expect(isDatabaseError(foreign)).toBe(true)
  for (const other of [new Error('x'), null, undefined, 'x', {}]) expect(isDatabaseError(other)).toBe(false)
})

test('isViolation matches the constraint by name', () => {
  const error = new ConstraintViolationError('UNIQUE_VIOLATION', 'x', { constraint: 'users_email_key' })
  expect(isViolation(error, 'users_email_key')).toBe(true)
  expect(isViolation(error, 'users_username_key')).toBe(false)
  expect(isViolation(new DatabaseError('SYNTAX_ERROR', 'x'), 'users_email_key')).toBe(false)
})

test('JSON of an error has its fields but neither cause nor stack', () => {
  const error = new DatabaseError('SYNTAX_ERROR', 'wrong', { sql: 'selec', cause: new Error('inner') })
  expect(JSON.parse(JSON.stringify(error))).toEqual({
    name: 'DatabaseError',
    message: 'wrong',
    code: 'SYNTAX_ERROR',
    retry: 'none',
    transient: false,
    sql: 'selec',
  })
  expect(inspect(error)).toContain('DatabaseError: wrong')
})
