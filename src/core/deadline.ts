import { DatabaseError } from './errors.ts'

/**
 * Settles as `work` does, or rejects with what `onTimeout` makes once `limitMs` have passed. The work itself goes on;
 * its late rejection is not an unhandled one.
 */
export function settleWithin<T>(work: Promise<T>, limitMs: number, onTimeout: () => Error): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    const timer = setTimeout(() => reject(onTimeout()), limitMs)
    work.then(resolve, reject).finally(() => clearTimeout(timer))
  })
}

/** Waits so long. Unlike that of `node:timers/promises`, a test may hold this clock. `ref: false` keeps no process alive. */
export function pauseFor(ms: number, { ref = true }: { readonly ref?: boolean } = {}): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms)
    if (!ref) timer.unref()
  })
}

/** Waits for work, but not longer; gives whether it has ended. Never rejects. */
export async function doneWithin(work: Promise<unknown>, limitMs: number): Promise<boolean> {
  const late = Promise.withResolvers<boolean>()
  const timer = setTimeout(() => late.resolve(false), limitMs)
  const done = work.then(
    () => true,
    () => true,
  )
  const isDone = await Promise.race([done, late.promise])
  clearTimeout(timer)
  return isDone
}

/** How long a call may take and who may stop it. Handed down, so that every wait inside takes what remains. */
export interface Limits {
  /** The instant by which the call must have settled, as `performance.now()`; infinity for none. */
  readonly deadline: number
  /** The whole budget, for messages. */
  readonly budgetMs: number
  readonly signal?: AbortSignal | undefined
}

/** The limits of a call that begins now. `false` or nothing is no limit of time; what is no time is `INVALID_ARGUMENT`. */
export function limitsFrom(budgetMs: number | false | undefined, signal?: AbortSignal): Limits {
  if (budgetMs === undefined || budgetMs === false) return { deadline: Number.POSITIVE_INFINITY, budgetMs: 0, signal }
  // Of no number at all, no comparison with it would ever be true, and the call would have no limit.
  if (typeof budgetMs !== 'number' || Number.isNaN(budgetMs)) {
    throw new DatabaseError(
      'INVALID_ARGUMENT',
      `A limit of time is ${String(budgetMs)}. Give milliseconds, or false for none.`,
    )
  }
  return { deadline: performance.now() + budgetMs, budgetMs, signal }
}

/** The earlier of two limits. */
export function tighter(one: Limits, other: Limits): Limits {
  const first = one.deadline <= other.deadline ? one : other
  if (one.signal === other.signal) return first
  const signals = [one.signal, other.signal].filter((signal) => signal !== undefined)
  return { ...first, signal: signals.length > 1 ? AbortSignal.any(signals) : signals[0] }
}
