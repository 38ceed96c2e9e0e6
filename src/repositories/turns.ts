import { DatabaseError, TimeoutError } from '../core/errors.ts'

/** How many run at once, how many wait, and for how long. */
export interface TurnLimits {
  readonly maxConcurrent: number
  readonly maxWaiting: number
  readonly waitTimeoutMs: number
}

/** The turns of orders: lets so many run at once, the others in the order in which they came. */
export class Turns {
  readonly #limits: TurnLimits
  readonly #waiting = new Set<() => void>()
  #running = 0

  constructor(limits: TurnLimits) {
    this.#limits = limits
  }

  /** Does the work when its turn has come; `POOL_OVERLOADED` when too many wait already, `POOL_TIMEOUT` when it does not come in time. */
  async take<T>(work: () => Promise<T>): Promise<T> {
    if (this.#running < this.#limits.maxConcurrent) this.#running += 1
    else await this.#turn()
    try {
      return await work()
    } finally {
      // Handed on rather than given back, so that nobody who comes now gets in before those who wait.
      const [next] = this.#waiting
      if (next === undefined) this.#running -= 1
      else next()
    }
  }

  #turn(): Promise<void> {
    const { maxWaiting, waitTimeoutMs } = this.#limits
    if (this.#waiting.size >= maxWaiting) {
      throw new DatabaseError(
        'POOL_OVERLOADED',
        `${maxWaiting} orders wait for their turn already, so this one was turned away. Shed load earlier, or raise maxConcurrent or maxWaiting of the OrderService.`,
      )
    }
    return new Promise((resolve, reject) => {
      const leave = (): void => {
        this.#waiting.delete(begin)
        clearTimeout(timer)
      }
      const begin = (): void => {
        leave()
        resolve()
      }
      const timer = setTimeout(() => {
        leave()
        reject(this.#tooLate())
      }, waitTimeoutMs)
      this.#waiting.add(begin)
    })
  }

  #tooLate(): TimeoutError {
    const { maxConcurrent, waitTimeoutMs } = this.#limits
    return new TimeoutError(
      'POOL_TIMEOUT',
      `The turn did not come within ${waitTimeoutMs} ms, and nothing was sent (orders under way: ${maxConcurrent}, still waiting: ${this.#waiting.size}). ` +
        'Look what holds their rows, shed load earlier, or raise maxConcurrent or waitTimeoutMs of the OrderService.',
      { limitMs: waitTimeoutMs },
    )
  }
}
