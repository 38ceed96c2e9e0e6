import { moveClock } from '../core/coarse-clock.ts'
import { DatabaseError } from '../core/errors.ts'

/** A clock that is put forward; see {@link cacheClock}. */
export interface CacheClock extends Disposable {
  /** How far it has been put forward, in milliseconds. */
  readonly aheadMs: number
  /** Puts it forward. What is in memory and has expired by then is loaded anew from its next read on. `INVALID_ARGUMENT` for no number. */
  advance(byMs: number): void
  /** Puts it back to where it was. */
  reset(): void
}

/**
 * Puts forward the clock by which values in the memory of a cache expire, go stale and are refreshed ahead, for all databases of
 * this process, so that a test needs not wait for `ttlMs`. Back with `using` or `reset()`.
 *
 * It is the only clock of kanta that can be moved. Values in Redis expire by the clock of Redis, `now()` is that of
 * PostgreSQL, and deadlines, retries and the breaker measure real time, as what they wait for does.
 *
 * @example
 * ```ts
 * import type { Database } from 'kanta'
 * import { cacheClock } from 'kanta/testing'
 *
 * declare const database: Database<unknown>
 * using clock = cacheClock()
 * await database.cache.getOrSet('rate', () => 1.1, { ttlMs: 60_000 })
 * clock.advance(60_001)
 * console.log(database.cache.peek('rate')) // undefined
 * ```
 */
export function cacheClock(): CacheClock {
  let aheadMs = 0
  const reset = (): void => {
    moveClock(-aheadMs)
    aheadMs = 0
  }
  return {
    get aheadMs() {
      return aheadMs
    },
    advance(byMs) {
      if (!Number.isFinite(byMs)) {
        throw new DatabaseError('INVALID_ARGUMENT', 'A clock was put forward by what is no number of milliseconds.')
      }
      aheadMs += byMs
      moveClock(byMs)
    },
    reset,
    [Symbol.dispose]: reset,
  }
}
