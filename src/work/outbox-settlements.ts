import { setTimeout as sleep } from 'node:timers/promises'
import { doneWithin } from '../core/deadline.ts'
import { isDatabaseError } from '../core/errors.ts'
import type { ClaimedEvent, OutboxStore, Return } from './outbox-store.ts'

/** What belongs to one claim of one event. */
export type Held = Pick<ClaimedEvent, 'id' | 'lease'>

/** Who is told of what {@link Settlements} do. */
export interface SettlementObserver {
  onSettled(events: readonly Held[]): void
  /** The database does not take them; they are sent again until it does. */
  onFailure(error: unknown): void
}

const mostAtOnce = 1_000
const firstPauseMs = 50
const longestPauseMs = 2_000

/**
 * Tells the database what became of events: while one statement is on its way, what comes is gathered for the next. What the
 * database does not take is sent again until it does: it holds only as long as its lease does, so that late is not wrong.
 */
export class Settlements {
  readonly #store: OutboxStore
  readonly #observer: SettlementObserver
  readonly #known = new Map<string, string>()
  readonly #finished: Held[] = []
  readonly #returned: Return[] = []
  #sending: Promise<void> | undefined
  #hasEnded = false

  constructor(store: OutboxStore, observer: SettlementObserver) {
    this.#store = store
    this.#observer = observer
  }

  /** How many are being settled. */
  get size(): number {
    return this.#known.size
  }

  /** Whether it is being settled. */
  has({ id, lease }: Held): boolean {
    return this.#known.get(id) === lease
  }

  finish(event: Held): void {
    if (this.has(event)) return
    this.#known.set(event.id, event.lease)
    this.#finished.push(event)
    this.#sending ??= this.#send()
  }

  giveBack(event: Return): void {
    if (this.has(event)) return
    this.#known.set(event.id, event.lease)
    this.#returned.push(event)
    this.#sending ??= this.#send()
  }

  /** Waits until all is told, but not longer. */
  async end(limitMs: number): Promise<void> {
    // A statement that gets no answer ends by its own limit, which may be long.
    if (this.#sending !== undefined) await doneWithin(this.#sending, limitMs)
    this.#hasEnded = true
  }

  async #send(): Promise<void> {
    // What comes in the same moment goes along.
    await Promise.resolve()
    while (this.#finished.length > 0 || this.#returned.length > 0) {
      const finished = this.#finished.splice(0, mostAtOnce)
      const returned = this.#returned.splice(0, mostAtOnce)
      await Promise.all([
        finished.length > 0 && this.#insist(() => this.#store.finish(finished)),
        returned.length > 0 && this.#insist(() => this.#store.giveBack(returned)),
      ])
      const all = [...finished, ...returned]
      for (const event of all) if (this.has(event)) this.#known.delete(event.id)
      this.#observer.onSettled(all)
    }
    this.#sending = undefined
  }

  async #insist(tell: () => Promise<void>): Promise<void> {
    for (let pauseMs = firstPauseMs; !this.#hasEnded; pauseMs = Math.min(2 * pauseMs, longestPauseMs)) {
      try {
        return await tell()
      } catch (error) {
        if (isDatabaseError(error) && error.code === 'DATABASE_CLOSED') return
        if (pauseMs === firstPauseMs) this.#observer.onFailure(error)
      }
      await sleep(pauseMs * (0.5 + Math.random() / 2))
    }
  }
}
