import { assert, asyncProperty, double, integer, record } from 'fast-check'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { pause } from '../../../src/resilience/retry.ts'

// Only the clock's waiting is taken out: what is asked of it is what these tests are about.
vi.mock('node:timers/promises', () => ({ setTimeout: vi.fn<() => Promise<void>>() }))

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['performance'] })
})
afterEach(() => {
  vi.useRealTimers()
  vi.restoreAllMocks()
  vi.mocked(sleep).mockClear()
})

const settings = { attempts: 3, baseDelayMs: 25, maxDelayMs: 1_000 }
const never = Number.POSITIVE_INFINITY

function lastPause(): number | undefined {
  return vi.mocked(sleep).mock.lastCall?.[0]
}

test.each([
  [1, 25],
  [2, 50],
  [3, 100],
  [6, 800],
  [7, 1_000],
  [2_000, 1_000],
])('after failure %i it pauses a random part of %i ms', async (failures, bound) => {
  for (const part of [0, 0.25, 0.999]) {
    vi.spyOn(Math, 'random').mockReturnValue(part)
    expect(await pause(settings, failures, never)).toBe(true)
    expect(lastPause()).toBeCloseTo(bound * part)
  }
})

test('those who failed together do not come back together', async () => {
  for (let caller = 0; caller < 200; caller += 1) await pause(settings, 7, never)
  const pauses = vi.mocked(sleep).mock.calls.map(([delayMs]) => delayMs ?? 0)
  // Two hundred numbers at random: each tenth of the range is met but for one time in a hundred million.
  const tenths = new Set(pauses.map((delayMs) => Math.floor(delayMs / 100)))
  expect(tenths.size).toBe(10)
  expect(Math.max(...pauses)).toBeLessThan(1_000)
})

test('a pause that would meet the deadline is not begun', async () => {
  vi.spyOn(Math, 'random').mockReturnValue(0.5)
  const now = performance.now()
  expect(await pause(settings, 3, now + 50)).toBe(false)
  expect(await pause(settings, 3, now + 49)).toBe(false)
  expect(await pause(settings, 3, now - 1)).toBe(false)
  expect(sleep).not.toHaveBeenCalled()
  expect(await pause(settings, 3, now + 50.1)).toBe(true)
  expect(lastPause()).toBe(50)
})

test('no pause is longer than its bound, none is negative, and all end before the deadline', async () => {
  const inputs = record({
    base: integer({ min: 0, max: 5_000 }),
    max: integer({ min: 0, max: 60_000 }),
    failures: integer({ min: 1, max: 100 }),
    budget: double({ min: 0, max: 100_000, noNaN: true }),
  })
  await assert(
    asyncProperty(inputs, async ({ base, max, failures, budget }) => {
      vi.mocked(sleep).mockClear()
      const deadline = performance.now() + budget
      const hasPaused = await pause({ attempts: 9, baseDelayMs: base, maxDelayMs: max }, failures, deadline)
      const delayMs = lastPause()
      expect(delayMs !== undefined).toBe(hasPaused)
      if (delayMs === undefined) return
      expect(delayMs).toBeGreaterThanOrEqual(0)
      expect(delayMs).toBeLessThanOrEqual(max)
      expect(performance.now() + delayMs).toBeLessThan(deadline)
    }),
  )
})
