import { randomUUID } from 'node:crypto'
import { isDeepStrictEqual } from 'node:util'
import type { Kysely } from 'kysely'
import { DatabaseError, SagaError, TransactionError } from '../core/errors.ts'
import { Emitter } from '../core/events.ts'
import { ensureOwnTables } from '../schema/own-tables.ts'
import { type SagaDatabase, SagaLog } from './saga-log.ts'
import { closedError, SagaOutcomes } from './saga-outcomes.ts'
import { type SagaFilter, type SagaRecord, SagaRecords } from './saga-records.ts'
import type { SagaEnd, SagaStepFailure } from './saga-run.ts'
import { sagaTables } from './saga-tables.ts'
import { decodeJson, encodeJson } from './saga-values.ts'
import { definitionKey, SagaWorker, type WorkerSettings } from './saga-worker.ts'
import { type Saga, type SagaDefinition, wholeNumber } from './saga.ts'
import type { SagaEvents, SagaHandle, Sagas, SagasOptions, StartOptions } from './sagas.ts'

/** What {@link createSagas} gives, its tables made where they are not there yet. */
export async function openSagas(
  database: SagaDatabase,
  definitions: readonly SagaDefinition[],
  options: SagasOptions,
): Promise<Sagas> {
  const known = knownDefinitions(definitions)
  const settings = resolve(options)
  await ensureOwnTables(database.db as unknown as Kysely<never>, sagaTables)
  const sagas = new OpenSagas(database, known, settings)
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
