import Opossum from 'opossum'
import { DatabaseError } from '../core/errors.ts'

/** Settings of a {@link CircuitBreaker}. Times are milliseconds. */
export interface BreakerSettings {
  /** It opens when more than so many percent of the calls fail … */
  readonly errorThresholdPercentage: number
  /** … out of at least so many, … */
  readonly volumeThreshold: number
  /** … within this time. */
  readonly windowMs: number
  /** The longest that it stays open before one call may try; up to half of it is taken off at random. */
  readonly resetTimeoutMs: number
}

/** `half-open`: one call is trying, and all others are refused. */
export type BreakerState = 'closed' | 'half-open' | 'open'

/** What an error says of the server: it is unwell, it is well, or nothing. */
export type Verdict = 'healthy' | 'neutral' | 'unhealthy'

/**
 * Stops calling a server that fails, so that callers fail at once and the server can recover. opossum keeps the window
 * and the states; around it this class adds what it lacks:
 *
 * - Each change of state starts a new circuit, so that calls from before it say nothing about the state after it, and
 *   a closed breaker begins with an empty window.
 * - The one call of a half-open breaker cannot block it for ever: when it does not settle within the reset timeout it
 *   counts as failed.
 * - While nothing fails, calls do not pass through opossum at all: the window starts with the first failure. That saves
 *   half a microsecond and a growing list of latencies per call.
 */
export class CircuitBreaker {
  readonly #target: string
  readonly #settings: BreakerSettings
  readonly #verdictOf: (error: unknown) => Verdict
  readonly #onChange: (state: BreakerState) => void
  #circuit: Opossum<[() => Promise<unknown>]>
  #generation = 0
  #watchedUntil = 0
  #lastFailure: unknown
  #probeTimer: NodeJS.Timeout | undefined
  #retryAt = 0

  constructor(
    target: string,
    settings: BreakerSettings,
    verdictOf: (error: unknown) => Verdict,
    onChange: (state: BreakerState) => void,
  ) {
    this.#target = target
    this.#settings = settings
    this.#verdictOf = verdictOf
    this.#onChange = onChange
    this.#circuit = this.#build('closed', settings.resetTimeoutMs)
  }

  get state(): BreakerState {
    if (this.#circuit.opened) return 'open'
    return this.#circuit.halfOpen ? 'half-open' : 'closed'
  }

  /** Changes with every change of state; a call notes it at its start. */
  get generation(): number {
    return this.#generation
  }

  /** Whether nothing has failed for a whole window: a call may then run by itself and only {@link note} its failure. */
  get isCalm(): boolean {
    return this.#watchedUntil === 0 || (this.state === 'closed' && performance.now() > this.#watchedUntil)
  }

  /** The failure of a call that ran while it was calm. */
  note(error: unknown, generation: number): void {
    if (this.#verdictOf(error) === 'unhealthy') this.#count(generation, error)
  }

  /** Runs a call, or rejects at once with `CIRCUIT_OPEN`. */
  async run<T>(action: () => Promise<T>): Promise<T> {
    if (this.state === 'closed') return this.#observe(action)
    if (!this.#circuit.pendingClose) throw this.#refusal()
    this.#guardProbe()
    return (await this.#circuit.fire(action)) as T
  }

  shutdown(): void {
    clearTimeout(this.#probeTimer)
    this.#circuit.shutdown()
  }

  async #observe<T>(action: () => Promise<T>): Promise<T> {
    const generation = this.#generation
    try {
      const value = await action()
      if (generation === this.#generation) this.#circuit.fire(() => Promise.resolve()).catch(() => undefined)
      return value
    } catch (error) {
      if (this.#verdictOf(error) !== 'neutral') this.#count(generation, error)
      throw error
    }
  }

  /**
   * A failed call, at its end: opossum would count it at its start, so that a slow one leaves the window before it has
   * failed, and one that says nothing would pass for a success.
   */
  #count(generation: number, error: unknown): void {
    if (generation !== this.#generation) return
    // One connection that breaks fails all that is in flight on it, with one and the same error: that is one failure.
    if (typeof error === 'object' && error !== null && error === this.#lastFailure) return
    this.#lastFailure = error
    if (this.#verdictOf(error) === 'unhealthy') this.#watchedUntil = performance.now() + this.#settings.windowMs
    this.#circuit.fire(() => Promise.reject(error)).catch(() => undefined)
  }

  #build(state: 'closed' | 'open', openMs: number): Opossum<[() => Promise<unknown>]> {
    const { errorThresholdPercentage, volumeThreshold, windowMs } = this.#settings
    const options: Opossum.Options<[() => Promise<unknown>]> & { state: object } = {
      // Deadlines are ours: opossum's would free the slot while the work still runs.
      timeout: false,
      rollingPercentilesEnabled: false,
      enableSnapshots: false,
      errorThresholdPercentage,
      volumeThreshold,
      rollingCountTimeout: windowMs,
      resetTimeout: openMs,
      // A probe that says nothing, because its caller gave up, is no reason to close.
      errorFilter: (error: unknown): boolean => this.#verdictOf(error) === 'healthy',
      // A public option that its declarations leave out.
      state: { enabled: true, closed: state === 'closed', halfOpen: false, warmUp: false, shutdown: false },
    }
    const circuit = new Opossum((action: () => Promise<unknown>) => action(), options)
    circuit.on('open', () => this.#replace('open'))
    circuit.on('close', () => this.#replace('closed'))
    circuit.on('halfOpen', () => this.#changed())
    return circuit
  }

  #replace(state: 'closed' | 'open'): void {
    // All who were cut off by one outage would come back at one moment.
    const openMs = this.#settings.resetTimeoutMs * (1 - Math.random() / 2)
    this.#circuit.shutdown()
    this.#circuit = this.#build(state, openMs)
    if (state === 'open') this.#retryAt = performance.now() + openMs
    else this.#watchedUntil = 0
    this.#changed()
  }

  #changed(): void {
    clearTimeout(this.#probeTimer)
    this.#generation += 1
    this.#onChange(this.state)
  }

  #guardProbe(): void {
    const circuit = this.#circuit
    clearTimeout(this.#probeTimer)
    this.#probeTimer = setTimeout(() => circuit.open(), this.#settings.resetTimeoutMs)
    this.#probeTimer.unref()
  }

  #refusal(): DatabaseError {
    const waitMs = Math.max(0, Math.ceil(this.#retryAt - performance.now()))
    const when = this.state === 'open' ? `The next attempt is in ${waitMs} ms.` : 'One call is trying it now.'
    return new DatabaseError(
      'CIRCUIT_OPEN',
      `${this.#target} failed too often, so nothing was sent to it. ${when} Look at the server, and try again then.`,
    )
  }
}
