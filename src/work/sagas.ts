import { randomUUID } from 'node:crypto'
import { isDeepStrictEqual } from 'node:util'
import type { Kysely } from 'kysely'
import { DatabaseError, SagaError, TransactionError } from '../core/errors.ts'
import { Emitter, type EventSource } from '../core/events.ts'
import type { Database } from '../database.ts'
import { ensureOwnTables } from '../schema/own-tables.ts'
import { type SagaDatabase, SagaLog } from './saga-log.ts'
import { closedError, SagaOutcomes } from './saga-outcomes.ts'
import { type SagaFilter, type SagaRecord, SagaRecords } from './saga-records.ts'
import type { SagaEnd, SagaStepFailure } from './saga-run.ts'
import { sagaTables } from './saga-tables.ts'
import { decodeJson, encodeJson } from './saga-values.ts'
import { definitionKey, SagaWorker, type WorkerSettings } from './saga-worker.ts'
import { type Saga, type SagaDefinition, wholeNumber } from './saga.ts'

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

/**
 * Makes the tables of sagas where they are not there, and runs sagas of these definitions from now on, also those that other
 * processes began and left. Sagas of definitions that are not among them, or that have other steps, are left alone.
 *
 * Rejects with `INVALID_ARGUMENT` for two definitions of one name and version, one without steps, and settings that are none;
 * `INSUFFICIENT_PRIVILEGE` when the tables are not there and the role may not make them.
 *
 * @example
 * ```ts
 * import { createDatabase, createSagas, saga } from 'kanta'
 * import type { DB } from './generated/schema.ts'
 *
 * const database = await createDatabase<DB>()
 * const placeOrder = saga<{ sku: string; quantity: number }>('place-order').step('take stock', {
 *   transaction: true,
 *   run: async ({ input }) => {
 *     const { db } = database
 *     const taken = db.updateTable('products').set((row) => ({ stock: row('stock', '-', input.quantity) }))
 *     await taken.where('sku', '=', input.sku).execute()
 *   },
 * })
 *
 * await using sagas = await createSagas(database, [placeOrder])
 * await sagas.run(placeOrder, { sku: 'CUP-1', quantity: 2 }, { idempotencyKey: 'order 4711' })
 * ```
 */
export async function createSagas<DB>(
  database: Database<DB>,
  definitions: readonly SagaDefinition[],
  options: SagasOptions = {},
): Promise<Sagas> {
  const known = knownDefinitions(definitions)
  const settings = resolve(options)
  await ensureOwnTables(database.db as unknown as Kysely<never>, sagaTables)
  const sagas = new OpenSagas(database as unknown as SagaDatabase, known, settings)
  // Its tables may be part of a transaction of the caller.
  database.afterCommit(() => sagas.begin())
  return sagas
}

interface Settings extends WorkerSettings {
  readonly maxValueBytes: number
  readonly warn: (message: string) => void
}

class OpenSagas implements Sagas {
  readonly events: Emitter<SagaEvents> = new Emitter<SagaEvents>(['sagaStepFailed', 'sagaEnded'])
  readonly #database: SagaDatabase
  readonly #definitions: ReadonlyMap<string, SagaDefinition>
  readonly #settings: Settings
  readonly #log: SagaLog
  readonly #records: SagaRecords
  readonly #outcomes: SagaOutcomes
  readonly #worker: SagaWorker
  #closing: Promise<void> | undefined

  constructor(database: SagaDatabase, definitions: ReadonlyMap<string, SagaDefinition>, settings: Settings) {
    this.#database = database
    this.#definitions = definitions
    this.#settings = settings
    this.#log = new SagaLog(database)
    this.#records = new SagaRecords(database)
    this.#outcomes = new SagaOutcomes(this.#records, settings.pollMs)
    const report = {
      stepFailed: (event: SagaStepFailure) => this.events.emit('sagaStepFailed', event),
      ended: (event: SagaEnd) => this.#noteEnd(event),
    }
    const { warn, maxValueBytes } = settings
    this.#worker = new SagaWorker({ database, log: this.#log, definitions, report, warn, maxValueBytes }, settings)
  }

  begin(): void {
    this.#worker.begin()
  }

  async start<Input, Results extends object>(
    definition: Saga<Input, Results>,
    input: Input,
    { idempotencyKey = randomUUID() }: StartOptions = {},
  ): Promise<SagaHandle<Results>> {
    this.#assertOpen()
    this.#assertKnown(definition)
    assertKey(idempotencyKey)
    const what = `The input of the saga ${JSON.stringify(definition.name)}`
    const text = encodeJson(input, what, this.#settings.maxValueBytes)
    const own = randomUUID()
    const found = await this.#log.insert(definition, { id: own, key: idempotencyKey, input: text })
    if (found.id === own) this.#database.afterCommit(() => this.#worker.wake())
    else if (!isDeepStrictEqual(found.input, decodeJson(text))) throw conflict(definition, found.id)
    return { id: found.id, result: (options) => this.#result<Results>(found.id, options?.signal) }
  }

  async run<Input, Results extends object>(
    definition: Saga<Input, Results>,
    input: Input,
    options: StartOptions & { readonly signal?: AbortSignal } = {},
  ): Promise<Results> {
    this.#assertOutside('sagas.run()')
    const handle = await this.start<Input, Results>(definition, input, options)
    return handle.result(options)
  }

  async cancel(id: string): Promise<boolean> {
    const isChanged = await this.#records.cancel(assertId(id))
    if (isChanged) this.#afterChange(id)
    return isChanged
  }

  async retry(id: string): Promise<boolean> {
    const isChanged = await this.#records.retry(assertId(id))
    if (isChanged) this.#afterChange(id)
    return isChanged
  }

  async skip(id: string, step: string): Promise<boolean> {
    const isChanged = await this.#records.skip(assertId(id), step)
    if (isChanged) this.#afterChange(id)
    return isChanged
  }

  async list({ limit = 100, ...filter }: SagaFilter = {}): Promise<SagaRecord[]> {
    return this.#records.list({ ...filter, limit: wholeNumber(limit, 1, 'limit of list()') })
  }

  async find(id: string): Promise<SagaRecord | undefined> {
    return this.#records.find(assertId(id))
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #close(): Promise<void> {
    await this.#worker.close()
    await this.#outcomes.close()
  }

  async #result<Results extends object>(id: string, signal: AbortSignal | undefined): Promise<Results> {
    this.#assertOutside('result() of a saga')
    const outcome = await this.#outcomes.of(id, signal)
    if ('error' in outcome) throw outcome.error
    return outcome.results as Results
  }

  /** Whoever has it, or could take it, looks at it now. */
  #afterChange(id: string): void {
    this.#database.afterCommit(() => {
      this.#worker.lookAt(id)
      this.#worker.tellOthers(id)
    })
  }

  #noteEnd(event: SagaEnd): void {
    this.events.emit('sagaEnded', event)
    this.#outcomes.look()
    if (event.state !== 'stuck') return
    this.#settings.warn(
      `the saga ${JSON.stringify(event.saga)} (${event.id}) is stuck: a compensation failed for good. See sagas.find(id); mend the cause ` +
        'and call sagas.retry(id), or undo the step by hand and call sagas.skip(id, step)',
    )
  }

  #assertOpen(): void {
    if (this.#closing !== undefined) throw closedError()
  }

  #assertKnown(definition: SagaDefinition): void {
    if (this.#definitions.get(definitionKey(definition)) === definition) return
    throw refusal(
      `The saga ${JSON.stringify(definition.name)} in version ${definition.version} is not among the definitions that createSagas() was given. Add it there.`,
    )
  }

  #assertOutside(what: string): void {
    if (this.#database.currentTransaction === undefined) return
    throw new TransactionError(
      'TRANSACTION_MISUSE',
      `${what} was called inside a transaction, and would wait for a saga that may only run after its commit. ` +
        'Call sagas.start() inside, and result() of what it gives afterwards.',
    )
  }
}

function knownDefinitions(definitions: readonly SagaDefinition[]): ReadonlyMap<string, SagaDefinition> {
  const known = new Map<string, SagaDefinition>()
  for (const definition of definitions) {
    const { name, version, steps } = definition
    const which = `The saga ${JSON.stringify(name)} in version ${version}`
    if (steps.length === 0) throw refusal(`${which} has no steps. Add them with step().`)
    if (known.has(definitionKey(definition))) throw refusal(`${which} is there twice. Give each its own version.`)
    known.set(definitionKey(definition), definition)
  }
  if (known.size === 0)
    throw refusal('createSagas() was given no definition. Give it those of all sagas that may be under way.')
  return known
}

function resolve(options: SagasOptions): Settings {
  const { concurrency = 10, retainMs = 7 * 24 * 60 * 60_000, listen = true, logger } = options
  return {
    concurrency: concurrency === false ? 0 : wholeNumber(concurrency, 1, 'concurrency of sagas'),
    leaseMs: wholeNumber(options.leaseMs ?? 30_000, 100, 'leaseMs of sagas'),
    pollMs: wholeNumber(options.pollMs ?? 5_000, 1, 'pollMs of sagas'),
    retainMs: retainMs === false ? false : wholeNumber(retainMs, 0, 'retainMs of sagas'),
    drainTimeoutMs: wholeNumber(options.drainTimeoutMs ?? 5_000, 0, 'drainTimeoutMs of sagas'),
    maxValueBytes: wholeNumber(options.maxValueBytes ?? 262_144, 1, 'maxValueBytes of sagas'),
    listen,
    warn: (message) => (logger === undefined ? process.emitWarning(message) : logger.warn(message)),
  }
}

function assertKey(key: unknown): void {
  if (typeof key === 'string' && key.length > 0 && key.length <= 255 && !key.includes('\0')) return
  throw refusal('The idempotencyKey of a saga must be a text of 1 to 255 characters without NUL.')
}

function assertId(id: unknown): string {
  if (typeof id === 'string' && /^[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}$/i.test(id)) return id
  throw refusal('The id of a saga is a UUID, as start() and list() give it.')
}

function conflict({ name }: SagaDefinition, id: string): SagaError {
  return new SagaError(
    'SAGA_CONFLICT',
    `There is a saga ${JSON.stringify(name)} (${id}) under this idempotency key already, with another input. ` +
      'Give each piece of work a key of its own.',
    { sagaId: id, saga: name },
  )
}

function refusal(message: string): DatabaseError {
  return new DatabaseError('INVALID_ARGUMENT', message)
}
