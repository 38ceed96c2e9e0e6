import * as fc from 'fast-check'
import { expect, test } from 'vitest'
import { globTest, InvalidationLog, nothing } from '../../../src/cache/invalidation-log.ts'

const some = fc.constantFrom('a', 'b', 'user:1', 'user:2', 'user:')
const what = fc.record({
  keys: fc.array(some, { maxLength: 2 }),
  tags: fc.array(some, { maxLength: 2 }),
  patterns: fc.array(fc.constantFrom('user:*', '?', '*', 'u\\*'), { maxLength: 1 }),
  all: fc.boolean(),
})

test('an entry holds when its clock is later than all that concerns it, and nothing else', () => {
  fc.assert(
    fc.property(
      fc.array(what, { maxLength: 12 }),
      fc.record({ key: some, tags: fc.array(some, { maxLength: 2 }), clock: fc.nat(14) }),
      (history, { key, tags, clock }) => {
        const log = new InvalidationLog()
        history.forEach((each, index) => log.note(each, index + 1))
        const last = history.findLastIndex(
          (each) =>
            each.all ||
            each.keys.includes(key) ||
            each.tags.some((tag) => tags.includes(tag)) ||
            each.patterns.some((pattern) => globTest(pattern)(key)),
        )
        expect(log.holds(key, clock, tags)).toBe(clock > last + 1)
      },
    ),
    { numRuns: 2_000 },
  )
})

test('what is being invalidated does not hold before it is known when that was, whatever its clock', () => {
  const log = new InvalidationLog()
  const first = { ...nothing, keys: ['a'], tags: ['t'] }
  const second = { ...nothing, keys: ['a'] }
  log.block(first)
  log.block(second)
  expect([log.holds('a', 99, []), log.holds('b', 99, ['t']), log.holds('b', 99, [])]).toEqual([false, false, true])
  log.note(second, 5)
  log.unblock(second)
  expect(log.holds('a', 99, [])).toBe(false)
  log.note(first, 6)
  log.unblock(first)
  expect([log.holds('a', 6, []), log.holds('a', 7, []), log.holds('b', 7, ['t'])]).toEqual([false, true, true])
})

test('what it forgets counts as invalid', () => {
  const log = new InvalidationLog()
  log.note({ ...nothing, keys: ['first'] }, 1)
  for (let clock = 2; clock <= 200_002; clock += 1) log.note({ ...nothing, keys: [`key ${clock}`] }, clock)
  expect(log.floor).toBeGreaterThanOrEqual(1)
  expect(log.holds('first', 1, [])).toBe(false)
  for (let clock = 0; clock < 200; clock += 1) log.note({ ...nothing, patterns: [`p${clock}:*`] }, 300_000 + clock)
  expect(log.holds('p0:x', 300_000, [])).toBe(false)
  expect(log.holds('p0:x', 300_200, [])).toBe(true)
})

test.each([
  ['user:*', 'user:1', true],
  ['user:*', 'users', false],
  ['a?c', 'abc', true],
  ['a?c', 'ac', false],
  ['a\\*c', 'a*c', true],
  ['a\\*c', 'abc', false],
  ['a.c', 'abc', false],
  ['[ab]', 'a', false],
  ['*', 'line\nbreak', true],
  ['(a|b)+$', '(a|b)+$', true],
])('the glob %j takes %j: %j', (pattern, key, takes) => {
  expect(globTest(pattern)(key)).toBe(takes)
})
