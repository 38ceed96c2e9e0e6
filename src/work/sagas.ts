import type { EventSource } from '../core/events.ts'
import type { SagaFilter, SagaRecord } from './saga-records.ts'
import type { SagaEnd, SagaStepFailure } from './saga-run.ts'
import type { Saga } from './saga.ts'

/** Settings of {@link createSagas}. Times are milliseconds. */
export interface SagasOptions {
  /** Most sagas that this process runs at once. `false`: it begins sagas, and others run them. @default 10 */
  readonly concurrency?: number | false
  /**
   * How long a process may not be heard of before others go on with its sagas. It is renewed at a third of it. @default 30000
   */
  readonly leaseMs?: number
  /** How often work is looked for at least. Most is heard of at once. @default 5000 */
  readonly pollMs?: number
  /**
   * How long sagas that have ended are kept, and with them their idempotency keys; those that are stuck stay. `false` keeps
   * all. @default 604800000, which are 7 days
   */
  readonly retainMs?: number | false
  /** How long {@link Sagas.close} waits for steps that run. @default 5000 */
  readonly drainTimeoutMs?: number
  /** Most bytes of an input, and of the result of a step, as JSON. @default 262144 */
  readonly maxValueBytes?: number
  /** Whether other processes wake this one when there is work, over the listening connection of the database. @default true */
  readonly listen?: boolean
  /** Hears of sagas that are stuck, leases that are lost, and outages. @default a warning of the process */
  readonly logger?: { warn(message: string): void }
}

/** How a saga is begun. */
export interface StartOptions {
  /**
   * Names the piece of work among sagas of this name, such as the id of the order: a second call with the same key begins nothing and
   * gives the saga that is there. 1 to 255 characters. @default a random one
   */
  readonly idempotencyKey?: string
}

/** A saga that was begun. */
export interface SagaHandle<Results> {
  readonly id: string
  /**
   * The results of all steps, once the saga is completed, whichever process runs it. Rejects with a `SagaError`: `SAGA_COMPENSATED` with
   * the step that failed, `SAGA_CANCELED`, `SAGA_STUCK`; with the reason of the signal, which ends the waiting alone;
   * `TRANSACTION_MISUSE` inside a transaction, since the saga may only run after its commit; `DATABASE_CLOSED` when this
   * process stops; `NOT_FOUND` when the saga was begun in a transaction that was rolled back, or is deleted.
   */
  result(options?: { readonly signal?: AbortSignal }): Promise<Results>
}

/** What happens to sagas in this process. */
export interface SagaEvents {
  sagaStepFailed: SagaStepFailure
  /** It is completed, compensated, or stuck, which a person should hear of. */
  sagaEnded: SagaEnd
}

/**
 * The sagas of a database, as this process sees them: begins them, runs those that are due, and tells of all. Any number of
 * processes may have the same. Made by {@link createSagas}.
 */
export interface Sagas extends AsyncDisposable {
  /**
   * Begins a saga. Inside a transaction it is part of that: it is begun if and only if that commits, and runs afterwards. Under an
   * idempotency key that is there it gives the saga that is there; `SAGA_CONFLICT` when that has another input.
   * `INVALID_ARGUMENT`: an input that is no JSON or too large, a definition that {@link createSagas} was not given.
   */
  start<Input, Results extends object>(
    definition: Saga<Input, Results>,
    input: NoInfer<Input>,
    options?: StartOptions,
  ): Promise<SagaHandle<Results>>
  /** {@link start}, and then the results, with the errors of both. `TRANSACTION_MISUSE` inside a transaction. */
  run<Input, Results extends object>(
    definition: Saga<Input, Results>,
    input: NoInfer<Input>,
    options?: StartOptions & { readonly signal?: AbortSignal },
  ): Promise<Results>
  /**
   * Has a saga turn back: what it did is undone, a step that runs is told by its signal. `false` when it has turned back or ended
   * already; after `true` it does not complete any more. Joins the ambient transaction. `NOT_FOUND` where there is none.
   */
  cancel(id: string): Promise<boolean>
  /**
   * For the person who has mended what was in the way: a saga that is stuck goes on with its compensations, all attempts anew; one that
   * waits for its next attempt goes on now. `false` when it has ended. `NOT_FOUND` where there is none.
   */
  retry(id: string): Promise<boolean>
  /**
   * For the person who has undone a step by hand: a saga that is stuck at this step counts it as undone and goes on with
   * the others. `false` when it is not stuck there. `NOT_FOUND` where there is none.
   */
  skip(id: string, step: string): Promise<boolean>
  /** The newest sagas first; with `state: 'stuck'` those that wait for a person. */
  list(filter?: SagaFilter): Promise<SagaRecord[]>
  /** One saga, or `undefined`. */
  find(id: string): Promise<SagaRecord | undefined>
  readonly events: EventSource<SagaEvents>
  /**
   * Takes no more sagas, waits up to `drainTimeoutMs` for the steps that run and then aborts their signals, and gives all leases back, so
   * that other processes go on at once. Call it before the database is closed. Never rejects; safe to call more than once.
   */
  close(): Promise<void>
}
