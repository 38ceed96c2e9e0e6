import { describe, expect, test } from 'vitest'
import { DatabaseError, isDatabaseError } from '../../../src/core/errors.ts'
import { decodeJson, describeFailure, encodeJson } from '../../../src/work/saga-values.ts'
import { saga, shapeOf } from '../../../src/work/saga.ts'

function codeOf(work: () => unknown): string | undefined {
  try {
    work()
    return undefined
  } catch (error) {
    return isDatabaseError(error) ? error.code : String(error)
  }
}

describe('a definition', () => {
  const one = { run: () => undefined }

  test.each([
    ['a step twice', () => saga('x').step('one', one).step('one', one)],
    ['a step without a name', () => saga('x').step('', one)],
    ['a step with a long name', () => saga('x').step('x'.repeat(101), one)],
    ['a long name', () => saga('x'.repeat(101))],
    ['a NUL in its name', () => saga('x\0')],
    ['version 0', () => saga('x', { version: 0 })],
    ['no attempts', () => saga('x').step('one', { ...one, retry: { attempts: 0 } })],
    ['half an attempt', () => saga('x').step('one', { ...one, compensateRetry: { attempts: 1.5 } })],
    [
      'a longest pause below its shortest',
      () => saga('x').step('one', { ...one, retry: { minDelayMs: 9, maxDelayMs: 1 } }),
    ],
    ['no time', () => saga('x').step('one', { ...one, timeoutMs: 0 })],
    ['more time than a timer takes', () => saga('x').step('one', { ...one, timeoutMs: 2 ** 31 })],
    ['no run', () => saga('x').step('one', {} as never)],
    ['a compensation that is none', () => saga('x').step('one', { ...one, compensate: 'no' as never })],
  ])('with %s is refused', (_what, make) => {
    expect(codeOf(make)).toBe('INVALID_ARGUMENT')
  })

  test('may be the beginning of several, which do not know each other', () => {
    const begun = saga('x').step('one', one)
    expect(shapeOf(begun.step('two', one))).toBe('["one","two"]')
    expect(shapeOf(begun.step('three', { ...one, transaction: true }))).toBe('["one",["three"]]')
    expect(shapeOf(begun)).toBe('["one"]')
  })

  test('keeps a shortest pause above the usual longest', () => {
    const [step] = saga('x').step('one', { ...one, retry: { minDelayMs: 90_000 } }).steps
    expect(step?.retry).toEqual({ attempts: 5, minDelayMs: 90_000, maxDelayMs: 90_000 })
  })
})

describe('a value', () => {
  const circle: Record<string, unknown> = {}
  circle['self'] = circle

  test.each([
    ['a bigint', { n: 1n }, 'x.n is of type bigint'],
    ['a date in a list', { at: [new Date()] }, 'x.at[0] is an instance of a class'],
    ['not a number', { n: Number.NaN }, 'x.n is not a finite number'],
    ['infinity', [[Number.POSITIVE_INFINITY]], 'x[0][0] is not a finite number'],
    ['a map', new Map(), 'x is an instance of a class'],
    ['a function', { n: () => 1 }, 'x.n is of type function'],
    ['its own toJSON', { toJSON: () => 1 }, 'x.toJSON is of type function'],
    ['a symbol', Symbol('s'), 'x is of type symbol'],
    ['a hole', [undefined], 'x[0] is of type undefined'],
    ['a circle', circle, 'a circle'],
    ['too many bytes', 'ü'.repeat(500), 'x has 1002 bytes, more than the 1000'],
  ])('that is or has %s is refused by its place', (_what, value, problem) => {
    expect(codeOf(() => encodeJson(value, 'x', 1_000))).toBe('INVALID_ARGUMENT')
    expect(() => encodeJson(value, 'x', 1_000)).toThrow(problem)
  })

  test('comes back as it was, frozen in all its depth', () => {
    const value = { text: 'a "q" \0 \ud800 ü 雪', list: [null, -1.5e300, true, [{ deep: 1 }]], empty: {} }
    const back = decodeJson(encodeJson(value, 'x', 1_000)) as typeof value
    expect(back).toEqual(value)
    expect([back, back.list, back.list[3], back.empty].every((part) => Object.isFrozen(part))).toBe(true)
    expect(decodeJson(encodeJson(undefined, 'x', 1))).toBeUndefined()
    expect(decodeJson(encodeJson(null, 'x', 4))).toBeNull()
  })
})

test.each([
  [
    'an error of the database',
    new DatabaseError('DEADLOCK', 'two at once'),
    { code: 'DEADLOCK', message: 'two at once' },
  ],
  [
    'an error with a code',
    Object.assign(new Error('reset'), { code: 'ECONNRESET' }),
    { code: 'ECONNRESET', message: 'reset' },
  ],
  [
    'an error with a strange code',
    Object.assign(new TypeError('no'), { code: 'a b' }),
    { code: 'TypeError', message: 'no' },
  ],
  [
    'a long message',
    new Error(`${'x'.repeat(499)}\ud83d\ude00`),
    { code: 'Error', message: `${'x'.repeat(499)}\ufffd` },
  ],
  ['a NUL', new Error('a\0b'), { code: 'Error', message: 'ab' }],
  ['no error', 'text', { code: 'UNKNOWN', message: 'Something was thrown that is not an Error.' }],
])('the log keeps of %s its code and message', (_what, error, kept) => {
  expect(describeFailure(error)).toEqual(kept)
})
