import type { IsolationLevel } from 'kysely'
import { DatabaseError } from '../core/errors.ts'
import { isWhole, largestInt32 } from '../core/whole-number.ts'
import type { Jsonable } from './saga-values.ts'

/** What a step of a {@link Saga} is called with. */
export interface StepContext<Input, Results> {
  readonly sagaId: string
  /** What the saga was begun with, frozen. */
  readonly input: Input
  /** What the steps before this one gave, by their names, frozen. */
  readonly results: Readonly<Results>
  /**
   * The same at every attempt, in every process, and of no other step: give it to whatever takes one (`Idempotency-Key`), or
   * store it with a unique key. The compensation of the step has another one.
   */
  readonly idempotencyKey: string
  /** From 1. Attempts that ended with their process are counted. */
  readonly attempt: number
  /**
   * Aborts when the step's time is over (`SAGA_STEP_TIMEOUT`), the saga is canceled, this process lost its lease on it
   * (`SAGA_LEASE_LOST`), or `close()` waits no longer.
   */
  readonly signal: AbortSignal
}

/** What a compensation is called with. */
export interface CompensationContext<Input, Results, Result> extends StepContext<Input, Results> {
  /**
   * What the step gave. `undefined` where nobody knows whether it happened: it failed, took too long, or ended with its
   * process. Only of a step with outside effects.
   */
  readonly result: Result
  /** The {@link StepContext.idempotencyKey} of the step itself, to find what it did where there is no result. */
  readonly stepKey: string
}

/** How often and how patiently something is tried. Times are milliseconds. */
export interface SagaRetry {
  /** Attempts in all, those included that ended with their process. With 1 a step is run at most once. */
  readonly attempts?: number
  /** The pause after the first failure; it doubles with each, by up to a quarter more or less. @default 500 */
  readonly minDelayMs?: number
  /** @default 30000, for compensations 60000 */
  readonly maxDelayMs?: number
}

/** In what transaction a step runs. */
export interface StepTransaction {
  /** @default the server's, which is `read committed` */
  readonly isolationLevel?: Exclude<IsolationLevel, 'snapshot'>
}

/** A step of a {@link Saga}. Times are milliseconds. */
export interface StepOptions<Input, Results, Result, Transactional extends StepTransaction | boolean> {
  /** Does the step. What it gives is kept in the log as JSON, and later steps have it. */
  readonly run: (context: StepContext<Input, Results>) => Promise<Result> | Result
  /**
   * Undoes the step when a later one fails for good or the saga is canceled; also one with outside effects that failed
   * itself, since it may have happened. It may be called more than once, as the step may.
   */
  readonly compensate?: (
    context: CompensationContext<Input, Results, Transactional extends false ? Result | undefined : Result>,
  ) => unknown
  /**
   * Whether `run` and `compensate` each run in one transaction with their row in the log, so that what they write through the
   * database takes effect exactly once. Without, they run outside of any transaction, at least once (at most once with
   * `retry: { attempts: 1 }`). @default false
   */
  readonly transaction?: Transactional
  /** @default 5 attempts */
  readonly retry?: SagaRetry
  /** @default 10 attempts; then the saga is stuck */
  readonly compensateRetry?: SagaRetry
  /**
   * How long an attempt of either may take; then it counts as failed. `false` is no limit. @default 30000
   */
  readonly timeoutMs?: number | false
}

/** What {@link saga} takes besides the name. */
export interface SagaOptions {
  /**
   * Count it up when steps are added, removed, renamed or put into a transaction, and give {@link createSagas} the old definition as well as long as
   * sagas of it may be under way: each goes on by the version that it was begun with. @default 1
   */
  readonly version?: number
}

/** A step as it is run, with its defaults filled in. */
export interface SagaStep {
  readonly name: string
  readonly transaction: StepTransaction | false
  readonly retry: Required<SagaRetry>
  readonly compensateRetry: Required<SagaRetry>
  readonly timeoutMs: number | false
  readonly run: (context: StepContext<unknown, object>) => unknown
  readonly compensate: ((context: CompensationContext<unknown, object, unknown>) => unknown) | undefined
}

/** Any {@link Saga}, whatever its types. */
export interface SagaDefinition {
  readonly name: string
  readonly version: number
  readonly steps: readonly SagaStep[]
}

const longestName = 100

/**
 * Steps in order, each with what undoes it. It holds nothing and runs nothing: {@link createSagas} does. Each
 * {@link Saga.step} gives another saga, so one may be the beginning of several.
 */
export class Saga<Input, Results extends object = object> implements SagaDefinition {
  /** Only for the compiler; there is nothing in it. */
  declare readonly types?: { readonly input: Input; readonly results: Results }
  readonly name: string
  readonly version: number
  readonly steps: readonly SagaStep[]

  constructor(name: string, version: number, steps: readonly SagaStep[]) {
    this.name = name
    this.version = version
    this.steps = steps
    Object.freeze(this)
  }

  /**
   * The saga with one step more. Put `run` before `compensate`, so that the compiler knows the type of its result there.
   * Throws `INVALID_ARGUMENT` for a name that is taken, empty or longer than 100 characters, and for options that are none.
   */
  step<
    const Name extends string,
    Result extends Jsonable<Result>,
    const Transactional extends StepTransaction | boolean = false,
  >(
    name: Name,
    options: StepOptions<Input, Results, Result, Transactional>,
  ): Saga<Input, Results & { readonly [Step in Name]: Result }> {
    const what = `The step ${JSON.stringify(name)} of the saga ${JSON.stringify(this.name)}`
    assertName(name, `The name of a step of the saga ${JSON.stringify(this.name)}`)
    if (this.steps.some((step) => step.name === name)) {
      throw refusal(`${what} is there twice. Give each step a name of its own.`)
    }
    return new Saga(this.name, this.version, [...this.steps, resolveStep(name, options, what)])
  }
}

/**
 * A saga without steps, to which {@link Saga.step} adds them: work that is done in several transactions and systems, and undone
 * as a whole when it cannot be completed. `Input` must be JSON. Throws `INVALID_ARGUMENT` for a name that is empty or
 * longer than 100 characters, and a version that is no whole number from 1.
 *
 * @example
 * ```ts
 * import { saga, type Database } from 'kanta'
 * import type { DB } from './generated/schema.ts'
 *
 * declare const database: Database<DB>
 * declare const bank: {
 *   charge(order: { id: string; key: string; signal: AbortSignal }): Promise<{ paymentId: string }>
 *   refund(payment: { key: string }): Promise<void>
 * }
 *
 * export const payOrder = saga<{ orderId: string }>('pay-order')
 *   .step('charge', {
 *     run: ({ input, idempotencyKey, signal }) => bank.charge({ id: input.orderId, key: idempotencyKey, signal }),
 *     compensate: ({ stepKey }) => bank.refund({ key: stepKey }),
 *   })
 *   .step('mark as paid', {
 *     transaction: true,
 *     run: async ({ input, results }) => {
 *       console.log(results.charge.paymentId)
 *       await database.db.updateTable('orders').set({ status: 'paid' }).where('id', '=', input.orderId).execute()
 *     },
 *   })
 * ```
 */
export function saga<Input extends Jsonable<Input>>(name: string, { version = 1 }: SagaOptions = {}): Saga<Input> {
  assertName(name, 'The name of a saga')
  if (!isWhole(version, 1, largestInt32)) {
    throw refusal(`The version of the saga ${JSON.stringify(name)} must be a whole number from 1.`)
  }
  return new Saga<Input>(name, version, [])
}

/** What tells definitions of one version apart that have different steps: their names in order, and which are in transactions. */
export function shapeOf({ steps }: SagaDefinition): string {
  return JSON.stringify(steps.map(({ name, transaction }) => (transaction === false ? name : [name])))
}

function resolveStep<Input, Results, Result, Transactional extends StepTransaction | boolean>(
  name: string,
  options: StepOptions<Input, Results, Result, Transactional>,
  what: string,
): SagaStep {
  const { run, compensate, transaction = false, retry, compensateRetry, timeoutMs = 30_000 } = options
  if (typeof run !== 'function') throw refusal(`${what} has no function run.`)
  if (compensate !== undefined && typeof compensate !== 'function') {
    throw refusal(`compensate of ${lower(what)} is no function.`)
  }
  return Object.freeze({
    name,
    transaction: transaction === true ? {} : transaction,
    retry: resolveRetry(retry, { attempts: 5, minDelayMs: 500, maxDelayMs: 30_000 }, `retry of ${lower(what)}`),
    compensateRetry: resolveRetry(
      compensateRetry,
      { attempts: 10, minDelayMs: 500, maxDelayMs: 60_000 },
      `compensateRetry of ${lower(what)}`,
    ),
    timeoutMs: timeoutMs === false ? false : wholeNumber(timeoutMs, 1, `timeoutMs of ${lower(what)}`),
    run: run as SagaStep['run'],
    compensate: compensate as SagaStep['compensate'],
  })
}

function resolveRetry(given: SagaRetry = {}, defaults: Required<SagaRetry>, what: string): Required<SagaRetry> {
  const { attempts = defaults.attempts, minDelayMs = defaults.minDelayMs } = given
  const maxDelayMs = given.maxDelayMs ?? Math.max(defaults.maxDelayMs, minDelayMs)
  const retry = {
    attempts: wholeNumber(attempts, 1, `attempts in ${what}`),
    minDelayMs: wholeNumber(minDelayMs, 0, `minDelayMs in ${what}`),
    maxDelayMs: wholeNumber(maxDelayMs, 0, `maxDelayMs in ${what}`),
  }
  if (retry.maxDelayMs < retry.minDelayMs) throw refusal(`maxDelayMs in ${what} is less than minDelayMs.`)
  return retry
}

/** A setting that counts something; `INVALID_ARGUMENT` when it does not. */
export function wholeNumber(value: unknown, least: number, what: string): number {
  if (isWhole(value, least, largestInt32)) return value
  throw refusal(`${what} must be a whole number from ${least} to ${largestInt32}.`)
}

function assertName(name: unknown, what: string): void {
  const isName = typeof name === 'string' && name.length > 0 && name.length <= longestName && !name.includes('\0')
  if (!isName) throw refusal(`${what} must be a text of 1 to ${longestName} characters without NUL.`)
}

const lower = (sentence: string): string => sentence.replace('The', 'the')

function refusal(message: string): DatabaseError {
  return new DatabaseError('INVALID_ARGUMENT', message)
}
