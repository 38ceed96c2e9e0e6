import { DatabaseError, isDatabaseError } from '../core/errors.ts'
import type { SagaDatabase, ClaimedSaga, Lease, SagaLog, StepRecord } from './saga-log.ts'
import { leaseLost } from './saga-log.ts'
import type { SagaDefinition, SagaRetry, SagaStep } from './saga.ts'
import { decodeJson, describeFailure, encodeJson } from './saga-values.ts'

/** What a run tells of itself. */
export interface RunReport {
  stepFailed(event: SagaStepFailure): void
  ended(event: SagaEnd): void
}

/** An attempt of a step, or of its compensation, failed. */
export interface SagaStepFailure {
  readonly id: string
  /** The name of the saga's definition. */
  readonly saga: string
  readonly step: string
  readonly of: 'compensation' | 'run'
  readonly attempt: number
  /** No further attempt: the saga turns back, or, for a compensation, it is stuck. */
  readonly isFinal: boolean
  /** What was thrown. */
  readonly error: unknown
}

/** A saga came to an end in this process, or is stuck. */
export interface SagaEnd {
  readonly id: string
  /** The name of the saga's definition. */
  readonly saga: string
  readonly state: 'compensated' | 'completed' | 'stuck'
}

/** What a {@link SagaRun} works with. */
export interface RunParts {
  readonly database: SagaDatabase
  readonly log: SagaLog
  readonly report: RunReport
  readonly maxValueBytes: number
  /** Until when the lease is good for certain, as `performance.now()`. */
  readonly leaseUntil: () => number
}

interface StepState extends StepRecord {
  readonly step: SagaStep
}

const canceled = { code: 'SAGA_CANCELED', message: 'The saga was canceled.' }
const firstPauseMs = 50
const longestPauseMs = 1_000

/**
 * Runs one saga from where its log is, step by step, until it ends, waits for its next attempt, or has to be let go: the lease is
 * lost, the worker closes, the log cannot be written. Whoever takes it next goes on from the log.
 */
export class SagaRun {
  readonly lease: Lease
  readonly #saga: ClaimedSaga
  readonly #definition: SagaDefinition
  readonly #parts: RunParts
  readonly #states: StepState[]
  #isCompensating: boolean
  #isCanceled = false
  #isClosing = false
  /** Why nothing more may be done, once that is so. */
  #end: Error | undefined
  #attempt: Attempt | undefined

  constructor(saga: ClaimedSaga, definition: SagaDefinition, parts: RunParts) {
    this.lease = { id: saga.id, fence: saga.fence }
    this.#saga = saga
    this.#definition = definition
    this.#parts = parts
    this.#isCompensating = saga.state === 'compensating'
    this.#states = saga.steps.map((record) => ({ ...record, step: definition.steps[record.position] as SagaStep }))
  }

  /** Rejects with what kept it from writing the log, except for the loss of the lease. */
  async drive(): Promise<void> {
    try {
      while (!this.#isClosing && (await (this.#isCompensating ? this.#goBack() : this.#goOn())));
    } catch (error) {
      if (this.#end !== undefined || hasCode(error, 'SAGA_LEASE_LOST')) return
      throw error
    }
  }

  /** Another process may have it: what runs is told to stop, and nothing is written any more. */
  lose(): void {
    this.#stop(leaseLost(this.lease.id))
  }

  /** What runs is told to stop; what it did all the same counts. */
  cancel(): void {
    if (this.#isCanceled || this.#isCompensating) return
    this.#isCanceled = true
    const attempt = this.#attempt
    const reason = new DatabaseError('SAGA_CANCELED', `The saga ${this.lease.id} was canceled.`)
    if (attempt?.isUndoneWhenStopped === true) attempt.stop(reason)
    else attempt?.controller.abort(reason)
  }

  /** No further step begins. */
  close(): void {
    this.#isClosing = true
  }

  /** And what runs is not waited for. */
  abandon(): void {
    this.#stop(
      new DatabaseError('DATABASE_CLOSED', 'The sagas of this process are closed; another one goes on with this.'),
    )
  }

  #stop(reason: Error): void {
    this.#end ??= reason
    this.#attempt?.stop(reason)
  }

  /** The next step, and whether there may be another. */
  async #goOn(): Promise<boolean> {
    const { log } = this.#parts
    const last = this.#states.at(-1)
    const position = last === undefined ? 0 : last.state === 'done' ? last.position + 1 : last.position
    const step = this.#definition.steps[position]
    if (step === undefined) return this.#turnBackCanceled()
    // The attempts that ended with their process were the last ones.
    if (last?.position === position && last.attempts >= step.retry.attempts) {
      return this.#turnBack({ ...last, state: 'failed' }, new Interruption())
    }
    const begun = await log.begin(this.lease, position, step)
    if (begun.attempt === undefined) return this.#turnBackCanceled()
    const state: StepState = { ...newState(position, step), attempts: begun.attempt }
    this.#setState(state)
    try {
      const done = await this.#run(state)
      this.#setState({ ...state, state: 'done', result: done.result })
      if (done.canceled) return await this.#turnBackCanceled()
    } catch (error) {
      return this.#afterFailure(state, 'run', error)
    }
    if (position < this.#definition.steps.length - 1) return true
    this.#tellEnd('completed')
    return false
  }

  /** The next compensation, and whether there may be another. */
  async #goBack(): Promise<boolean> {
    const { log } = this.#parts
    const state = this.#states.findLast(needsCompensation)
    if (state === undefined) {
      await log.ended(this.lease)
      this.#tellEnd('compensated')
      return false
    }
    if (state.compensationAttempts >= state.step.compensateRetry.attempts) {
      return this.#getStuck(state, new Interruption())
    }
    const compensationAttempts = await log.beginCompensation(this.lease, state.position)
    const begun: StepState = { ...state, compensation: 'running', compensationAttempts }
    this.#setState(begun)
    try {
      await this.#compensate(begun)
      this.#setState({ ...begun, compensation: 'done' })
      return true
    } catch (error) {
      return this.#afterFailure(begun, 'compensation', error)
    }
  }

  async #run({
    step,
    position,
    attempts,
  }: StepState): Promise<{ readonly canceled: boolean; readonly result: unknown }> {
    const { log, maxValueBytes } = this.#parts
    const isLast = position === this.#definition.steps.length - 1
    let text: string | null = null
    const encode = (value: unknown): string | null =>
      encodeJson(value, `The result of the step ${JSON.stringify(step.name)}`, maxValueBytes)
    const { canceled: isCanceled } = await this.#perform(
      step,
      `${this.lease.id}:${step.name}`,
      attempts,
      async (context) => {
        text = encode(await step.run(context))
      },
      () => log.done(this.lease, position, text, isLast),
    )
    return { canceled: isCanceled, result: decodeJson(text) }
  }

  async #compensate({ step, position, result, compensationAttempts }: StepState): Promise<void> {
    const stepKey = `${this.lease.id}:${step.name}`
    await this.#perform(
      step,
      `${stepKey}:compensate`,
      compensationAttempts,
      async (context) => void (await step.compensate?.({ ...context, result, stepKey })),
      () => this.#parts.log.compensated(this.lease, position),
    )
  }

  /** Does the work and writes that it is done: in one transaction, or one after the other. */
  async #perform<Written>(
    step: SagaStep,
    idempotencyKey: string,
    number: number,
    work: (context: Parameters<SagaStep['run']>[0]) => Promise<void>,
    write: () => Promise<Written>,
  ): Promise<Written> {
    if (this.#end !== undefined) throw this.#end
    const { database, log, leaseUntil } = this.#parts
    // It was kept from working for so long that another process may do this by now.
    if (performance.now() >= leaseUntil()) throw leaseLost(this.lease.id)
    const attempt = new Attempt(step)
    this.#attempt = attempt
    const { signal } = attempt.controller
    const earlier = this.#states.filter((state) => state.step !== step && state.state === 'done')
    const results = Object.freeze(Object.fromEntries(earlier.map((state) => [state.step.name, state.result])))
    const context = { sagaId: this.lease.id, input: this.#saga.input, results, idempotencyKey, attempt: number, signal }
    try {
      if (step.transaction === false) {
        await Promise.race([work(context), attempt.stopped])
        attempt.settle()
        return await this.#persist(write)
      }
      return await database.transaction(
        async () => {
          await log.enter(this.lease, step.timeoutMs)
          await work(context)
          return write()
        },
        { ...step.transaction, signal },
      )
    } finally {
      attempt.settle()
      this.#attempt = undefined
    }
  }

  /** A write that may be repeated, as long as the lease is good: what was done outside should not be done again for an outage. */
  async #persist<Written>(write: () => Promise<Written>): Promise<Written> {
    for (let pauseMs = firstPauseMs; ; pauseMs = Math.min(pauseMs * 2, longestPauseMs)) {
      try {
        return await write()
      } catch (error) {
        const isWorthIt = isDatabaseError(error) && (error.transient || error.code === 'QUERY_TIMEOUT')
        if (!isWorthIt || this.#end !== undefined || performance.now() + pauseMs >= this.#parts.leaseUntil())
          throw new LogFailure(error)
        await new Promise((resolve) => void setTimeout(resolve, pauseMs))
      }
    }
  }

  /** Writes what becomes of the saga after an attempt failed; whether there is something to do at once. */
  async #afterFailure(state: StepState, of: 'compensation' | 'run', error: unknown): Promise<boolean> {
    if (this.#end !== undefined) throw this.#end
    if (error instanceof LogFailure) throw error.cause
    const { step, position } = state
    const isTransactional = step.transaction !== false
    // The server may have committed it, or may do so yet: whoever takes the saga anew waits for that, and sees it.
    if (isTransactional && (hasCode(error, 'COMMIT_OUTCOME_UNKNOWN') || hasCode(error, 'SAGA_LEASE_LOST'))) throw error
    const attempt = of === 'run' ? state.attempts : state.compensationAttempts
    const rule = of === 'run' ? step.retry : step.compensateRetry
    const isHopeless = hasCode(error, 'SAGA_STEP_REFUSED') || hasCode(error, 'INVALID_ARGUMENT')
    const isFinal = isHopeless || attempt >= rule.attempts || (of === 'run' && this.#isCanceled)
    this.#parts.report.stepFailed({ ...this.#named(), step: step.name, of, attempt, isFinal, error })
    if (!isFinal) {
      const pauseMs = pauseAfter(attempt, rule)
      await this.#parts.log.failed(this.lease, position, of, describeFailure(error), pauseMs)
      return false
    }
    if (of === 'compensation') return this.#getStuck(state, error)
    return this.#turnBack({ ...state, state: hasCode(error, 'SAGA_STEP_REFUSED') ? 'refused' : 'failed' }, error)
  }

  async #turnBack(state: StepState & { readonly state: 'failed' | 'refused' }, error: unknown): Promise<boolean> {
    const { position, step } = state
    const failure = describeFailure(error)
    await this.#parts.log.turnBack(this.lease, failure, { position, name: step.name, state: state.state })
    this.#setState(state)
    this.#isCompensating = true
    return true
  }

  async #turnBackCanceled(): Promise<boolean> {
    await this.#parts.log.turnBack(this.lease, canceled)
    this.#isCompensating = true
    return true
  }

  async #getStuck({ position }: StepState, error: unknown): Promise<boolean> {
    await this.#parts.log.stuck(this.lease, position, describeFailure(error))
    this.#tellEnd('stuck')
    return false
  }

  #tellEnd(state: SagaEnd['state']): void {
    this.#parts.report.ended({ ...this.#named(), state })
  }

  #named(): { readonly id: string; readonly saga: string } {
    return { id: this.lease.id, saga: this.#definition.name }
  }

  #setState(state: StepState): void {
    this.#states[state.position] = state
  }
}

/** One attempt under way: its signal, its time, and what stops the waiting for it. */
class Attempt {
  readonly controller: AbortController = new AbortController()
  /** Rejects when it is not waited for any more. */
  readonly stopped: Promise<never>
  /** A transaction that is stopped is rolled back, so that nothing of it is there. */
  readonly isUndoneWhenStopped: boolean
  readonly #stopped: PromiseWithResolvers<never> = Promise.withResolvers()
  readonly #timer: NodeJS.Timeout | undefined

  constructor({ name, timeoutMs, transaction }: SagaStep) {
    this.stopped = this.#stopped.promise
    this.stopped.catch(() => undefined)
    this.isUndoneWhenStopped = transaction !== false
    if (timeoutMs === false) return
    this.#timer = setTimeout(() => this.stop(stepTimeout(name, timeoutMs)), timeoutMs)
  }

  stop(reason: Error): void {
    this.controller.abort(reason)
    this.#stopped.reject(reason)
  }

  settle(): void {
    clearTimeout(this.#timer)
  }
}

function stepTimeout(name: string, timeoutMs: number): DatabaseError {
  return new DatabaseError(
    'SAGA_STEP_TIMEOUT',
    `The step ${JSON.stringify(name)} did not end within ${timeoutMs} ms. Hand context.signal on to what it waits for, or raise its timeoutMs.`,
  )
}

/** The log could not be written; what the step did is not in question. */
class LogFailure extends Error {
  constructor(cause: unknown) {
    super('the log of a saga could not be written', { cause })
  }
}

/** The failure of an attempt that ended with its process, which nobody threw. */
class Interruption extends Error {
  readonly code = 'INTERRUPTED'

  constructor() {
    super('The process ended, or stopped waiting, before it was known what became of the last attempt.')
  }
}

function newState(position: number, step: SagaStep): StepState {
  return {
    position,
    step,
    state: 'running',
    attempts: 0,
    result: undefined,
    compensation: null,
    compensationAttempts: 0,
  }
}

/** Whether something has to be undone: what was done, and what may have been done outside of a transaction. */
function needsCompensation({ step, state, attempts, compensation }: StepState): boolean {
  if (step.compensate === undefined || compensation === 'done' || compensation === 'skipped') return false
  if (state === 'done') return true
  if (step.transaction !== false) return false
  // What a later attempt says of itself says nothing of those before it.
  return state !== 'refused' || attempts > 1
}

/** Doubled with each failure, and a quarter more or less, so that those who failed together do not come back together. */
function pauseAfter(failures: number, { minDelayMs, maxDelayMs }: Required<SagaRetry>): number {
  const pauseMs = Math.min(minDelayMs * 2 ** Math.min(failures - 1, 30), maxDelayMs)
  return pauseMs * (0.75 + Math.random() / 2)
}

function hasCode(error: unknown, code: DatabaseError['code']): boolean {
  return isDatabaseError(error) && error.code === code
}
