import { setTimeout as sleep } from 'node:timers/promises'

/** How often and how patiently something is tried again. Times are milliseconds. */
export interface RetrySettings {
  /** Attempts in all, the first included. */
  readonly attempts: number
  /** The longest pause after the first failure; it doubles with each. */
  readonly baseDelayMs: number
  readonly maxDelayMs: number
}

/**
 * A pause of random length up to the exponential bound, so that those who failed together do not come back together
 * ("full jitter"). Returns false without waiting if the deadline would pass meanwhile.
 */
export async function pause(settings: RetrySettings, failures: number, deadline: number): Promise<boolean> {
  const bound = Math.min(settings.baseDelayMs * 2 ** (failures - 1), settings.maxDelayMs)
  const delayMs = bound * Math.random()
  if (performance.now() + delayMs >= deadline) return false
  await sleep(delayMs)
  return true
}
