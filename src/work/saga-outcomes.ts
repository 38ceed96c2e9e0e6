import { doneWithin } from '../core/deadline.ts'
import { DatabaseError, isDatabaseError } from '../core/errors.ts'
import { Alarm } from './alarm.ts'
import type { SagaOutcome, SagaRecords } from './saga-records.ts'

const firstPauseMs = 20
const longestEndMs = 1_000

/** Those who wait for the ends of sagas, whichever process runs them: one query for all of them, at growing intervals. */
export class SagaOutcomes {
  readonly #records: SagaRecords
  readonly #pollMs: number
  readonly #waiting = new Map<string, Set<(outcome: SagaOutcome) => void>>()
  readonly #alarm: Alarm = new Alarm()
  #pauseMs = firstPauseMs
  #watching: Promise<void> | undefined
  #closed: SagaOutcome | undefined

  constructor(records: SagaRecords, pollMs: number) {
    this.#records = records
    this.#pollMs = pollMs
  }

  /** Rejects with the reason of the signal, which ends the waiting and not the saga. */
  async of(id: string, signal: AbortSignal | undefined): Promise<SagaOutcome> {
    signal?.throwIfAborted()
    if (this.#closed !== undefined) return this.#closed
    const { promise, resolve, reject } = Promise.withResolvers<SagaOutcome>()
    const onAbort = (): void => reject(signal?.reason)
    const waiters = this.#waiting.get(id) ?? new Set()
    this.#waiting.set(id, waiters.add(resolve))
    signal?.addEventListener('abort', onAbort, { once: true })
    this.#pauseMs = firstPauseMs
    this.#watching ??= this.#watch()
    this.look()
    try {
      return await promise
    } finally {
      signal?.removeEventListener('abort', onAbort)
      waiters.delete(resolve)
      if (waiters.size === 0 && this.#waiting.get(id) === waiters) this.#waiting.delete(id)
    }
  }

  /** Something may have come out. */
  look(): void {
    this.#alarm.ring()
  }

  /** Nobody is told any more how his saga came out, which goes on elsewhere. */
  async close(): Promise<void> {
    this.#tellAll(closedError())
    this.look()
    // A server that does not answer is not waited for.
    if (this.#watching !== undefined) await doneWithin(this.#watching, longestEndMs)
  }

  async #watch(): Promise<void> {
    while (this.#waiting.size > 0) {
      try {
        const outcomes = await this.#records.outcomes([...this.#waiting.keys()])
        for (const [id, outcome] of outcomes) this.#tell(id, outcome)
      } catch (error) {
        // An outage is waited for: what becomes of a saga does not depend on who asks.
        if (isDatabaseError(error) && error.code === 'DATABASE_CLOSED') this.#tellAll(error)
      }
      if (this.#waiting.size > 0) await this.#alarm.wait(this.#pauseMs)
      this.#pauseMs = Math.min(this.#pauseMs * 1.5, this.#pollMs)
    }
    this.#watching = undefined
  }

  #tell(id: string, outcome: SagaOutcome): void {
    const waiters = this.#waiting.get(id)
    this.#waiting.delete(id)
    for (const tell of waiters ?? []) tell(outcome)
  }

  #tellAll(error: Error): void {
    this.#closed = { error }
    for (const id of [...this.#waiting.keys()]) this.#tell(id, this.#closed)
  }
}

/** What those are told who use sagas that are closed. */
export function closedError(): DatabaseError {
  return new DatabaseError(
    'DATABASE_CLOSED',
    'The sagas of this process are closed. Those that were begun go on in other processes, or when createSagas() is called again.',
  )
}
