import { assert, double, option, property, tuple } from 'fast-check'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { type Limits, limitsFrom, settleWithin, tighter } from '../../../src/core/deadline.ts'

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] })
})
afterEach(() => {
  vi.useRealTimers()
})

const tooLate = (): Error => new Error('too late')

test('work that settles in time gives what it gives, and leaves no timer', async () => {
  const reason = new Error('refused')
  await expect(settleWithin(Promise.resolve('done'), 100, tooLate)).resolves.toBe('done')
  await expect(settleWithin(Promise.reject(reason), 100, tooLate)).rejects.toBe(reason)
  expect(vi.getTimerCount()).toBe(0)
})

test('work that takes longer is given up at its limit and not before', async () => {
  const work = Promise.withResolvers<string>()
  let outcome: unknown
  const settled = settleWithin(work.promise, 100, tooLate).catch((error: unknown) => {
    outcome = error
  })
  vi.advanceTimersByTime(99)
  await Promise.resolve()
  expect(outcome).toBeUndefined()
  vi.advanceTimersByTime(1)
  await settled
  expect(outcome).toEqual(new Error('too late'))
  work.resolve('late')
})

test('what was given up may still fail without anyone hearing of it', async () => {
  const unhandled = vi.fn<(reason: unknown) => void>()
  process.on('unhandledRejection', unhandled)
  try {
    const work = Promise.withResolvers<string>()
    const settled = settleWithin(work.promise, 100, tooLate)
    vi.advanceTimersByTime(100)
    await expect(settled).rejects.toThrow('too late')
    work.reject(new Error('later still'))
    // Node reports what nobody handles when the microtasks have run.
    await new Promise((resolve) => setImmediate(resolve))
    expect(unhandled).not.toHaveBeenCalled()
  } finally {
    process.off('unhandledRejection', unhandled)
  }
})

test('a budget ends at an instant; without one there is no end', () => {
  vi.advanceTimersByTime(1_234)
  const { signal } = new AbortController()
  expect(limitsFrom(500, signal)).toEqual({ deadline: performance.now() + 500, budgetMs: 500, signal })
  expect(limitsFrom(0)).toMatchObject({ deadline: performance.now(), budgetMs: 0 })
  for (const none of [false, undefined] as const) {
    expect(limitsFrom(none, signal)).toEqual({ deadline: Number.POSITIVE_INFINITY, budgetMs: 0, signal })
  }
  for (const no of [Number.NaN, '500', null]) {
    expect(() => limitsFrom(no as never)).toThrow(
      expect.objectContaining({
        code: 'INVALID_ARGUMENT',
        message: `A limit of time is ${no}. Give milliseconds, or false for none.`,
      }),
    )
  }
})

test('of two limits the earlier deadline counts, with its budget', () => {
  const limits = option(double({ min: 0, max: 1e6, noNaN: true })).map((budget) => limitsFrom(budget ?? false))
  assert(
    property(tuple(limits, limits), ([one, other]) => {
      const both = tighter(one, other)
      expect(both.deadline).toBe(Math.min(one.deadline, other.deadline))
      expect([one.budgetMs, other.budgetMs]).toContain(both.budgetMs)
    }),
  )
})

test('of two limits either signal stops the call', () => {
  const [one, other] = [new AbortController(), new AbortController()]
  const both = (): Limits => tighter(limitsFrom(5, one.signal), limitsFrom(false, other.signal))
  expect(tighter(limitsFrom(5, one.signal), limitsFrom(1)).signal).toBe(one.signal)
  expect(tighter(limitsFrom(5), limitsFrom(1, other.signal)).signal).toBe(other.signal)
  expect(tighter(limitsFrom(5), limitsFrom(1)).signal).toBeUndefined()
  expect(both().signal?.aborted).toBe(false)
  const [first, second] = [both(), both()]
  other.abort('the transaction')
  expect(second.signal?.reason).toBe('the transaction')
  one.abort('the statement')
  expect(first.signal?.aborted).toBe(true)
})
