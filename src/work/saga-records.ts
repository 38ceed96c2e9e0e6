import { type RawBuilder, sql } from 'kysely'
import { NotFoundError, SagaError, type SagaFailure } from '../core/errors.ts'
import type { SagaDatabase, SagaState, StepRecord } from './saga-log.ts'
import { jsonColumn, readJson } from './saga-values.ts'

/** A saga, as its log says. */
export interface SagaRecord {
  readonly id: string
  /** Of its definition. */
  readonly name: string
  readonly version: number
  readonly idempotencyKey: string
  readonly state: SagaState
  /** The process that runs it now: host and process id. Of one that waits, or whose process is gone, there is none. */
  readonly runBy: string | undefined
  readonly isCanceled: boolean
  /** The step that failed, for which the saga turned back. */
  readonly failedStep: string | undefined
  readonly failure: SagaFailure | undefined
  readonly createdAt: Date
  readonly changedAt: Date
  /** Absent while it runs, and while it is stuck. */
  readonly endedAt: Date | undefined
  /** When it may go on, if it waits for its next attempt. */
  readonly nextAttemptAt: Date | undefined
  /** Those that were begun, in order. */
  readonly steps: readonly SagaStepRecord[]
}

/** A step that was begun, as the log says. */
export interface SagaStepRecord {
  readonly name: string
  /** `running` may also mean that its process has ended. */
  readonly state: StepRecord['state']
  readonly attempts: number
  /** Absent where none was tried. */
  readonly compensation: Exclude<StepRecord['compensation'], null> | undefined
  readonly compensationAttempts: number
  /** Why its last attempt, or that of its compensation, failed. */
  readonly failure: SagaFailure | undefined
  readonly startedAt: Date
  readonly endedAt: Date | undefined
}

/** Which sagas {@link Sagas.list} gives. */
export interface SagaFilter {
  readonly state?: SagaState
  /** Of their definition. */
  readonly name?: string
  /** At most so many. @default 100 */
  readonly limit?: number
}

/** How a saga came out, for who waits for it. */
export type SagaOutcome = { readonly results: object } | { readonly error: Error }

interface SagaRow {
  readonly id: string
  readonly name: string
  readonly version: number
  readonly key: string
  readonly state: SagaState
  readonly place: string | null
  readonly canceled: boolean
  readonly failed: string | null
  readonly code: string | null
  readonly message: string | null
  readonly created: number
  readonly changed: number
  readonly ended: number | null
  readonly due: number | null
}

interface StepRow {
  readonly saga: string
  readonly name: string
  readonly state: StepRecord['state']
  readonly attempts: number
  readonly compensation: StepRecord['compensation']
  readonly tries: number
  readonly code: string | null
  readonly message: string | null
  readonly started: number
  readonly ended: number | null
}

/** What can be asked and told from outside, by those who have no lease. */
export class SagaRecords {
  readonly #database: SagaDatabase

  constructor(database: SagaDatabase) {
    this.#database = database
  }

  /** The newest first. */
  async list({ state, name, limit }: SagaFilter & { readonly limit: number }): Promise<SagaRecord[]> {
    return this.#read(
      sql`where ${state ?? null}::text is null or s.state = ${state ?? null}::text`,
      sql`where ${name ?? null}::text is null or found.name = ${name ?? null}::text order by found.created_at desc limit ${limit}::int`,
    )
  }

  async find(id: string): Promise<SagaRecord | undefined> {
    const [record] = await this.#read(sql`where s.id = ${id}`, sql``)
    return record
  }

  /** How those of these sagas came out that have come out; a saga that is not there is an outcome as well. */
  async outcomes(ids: readonly string[]): Promise<Map<string, SagaOutcome>> {
    const rows = await this.#database.query(
      sql<OutcomeRow>`
        select asked.id, s.name, s.state, s.canceled_at is not null as canceled,
               coalesce(stuck.name, s.failed_step) as step,
               coalesce(stuck.error_code, s.error_code) as code, coalesce(stuck.error_message, s.error_message) as message,
               case when s.state = 'completed' then (
                 select ${jsonColumn(`coalesce(json_agg(json_build_array(t.name, t.result)), '[]')`)}
                 from kanta.saga_steps t where t.saga_id = s.id and t.result is not null) end as results
        from unnest(${ids}::uuid[]) as asked (id)
        left join kanta.sagas s on s.id = asked.id
        left join kanta.saga_steps stuck on stuck.saga_id = s.id and stuck.compensation = 'stuck'
        where s.id is null or s.state in ('completed', 'compensated', 'stuck')`,
    )
    return new Map(rows.map((row) => [row.id, outcomeOf(row)]))
  }

  /** Whether it is now on its way back. `NOT_FOUND` where there is none. */
  async cancel(id: string): Promise<boolean> {
    const changed = await this.#database.query(
      sql`
        update kanta.sagas set canceled_at = coalesce(canceled_at, statement_timestamp()), run_at = least(run_at, statement_timestamp())
        where id = ${id} and state = 'running' returning id`,
      { idempotent: true },
    )
    if (changed.length > 0) return true
    await this.#assertThere(id)
    return false
  }

  /** Whether it goes on now: one that was stuck, with all attempts anew, or one that waited for its next attempt. */
  async retry(id: string): Promise<boolean> {
    const changed = await this.#database.query(
      sql`
        with saga as (
          update kanta.sagas set state = case when state = 'stuck' then 'compensating' else state end,
            run_at = least(run_at, statement_timestamp()), changed_at = clock_timestamp()
          where id = ${id} and state in ('compensating', 'running', 'stuck')
          returning id),
        step as (
          update kanta.saga_steps t set compensation = 'failed', compensation_attempts = 0
          from saga where t.saga_id = saga.id and t.compensation = 'stuck')
        select id from saga`,
    )
    if (changed.length > 0) return true
    await this.#assertThere(id)
    return false
  }

  /** Whether that step was the one at which the saga is stuck; then it counts as undone, and the saga goes on. */
  async skip(id: string, step: string): Promise<boolean> {
    const changed = await this.#database.query(
      sql`
        with step as (
          update kanta.saga_steps t set compensation = 'skipped', ended_at = clock_timestamp()
          where t.saga_id = ${id} and t.name = ${step} and t.compensation = 'stuck'
          returning t.saga_id)
        update kanta.sagas s set state = 'compensating', run_at = least(run_at, statement_timestamp()), changed_at = clock_timestamp()
        from step where s.id = step.saga_id and s.state = 'stuck'
        returning s.id`,
    )
    if (changed.length > 0) return true
    await this.#assertThere(id)
    return false
  }

  async #assertThere(id: string): Promise<void> {
    const found = await this.#database.queryOne(sql`select id from kanta.sagas where id = ${id}`)
    if (found === undefined) throw noSuchSaga(id)
  }

  async #read(which: RawBuilder<unknown>, narrowed: RawBuilder<unknown>): Promise<SagaRecord[]> {
    const sagas = await this.#database.query(
      sql<SagaRow>`
        with found as (select s.* from kanta.sagas s ${which})
        select found.id, found.name, found.version, idempotency_key as key, state, w.place,
               canceled_at is not null as canceled, failed_step as failed, error_code as code, error_message as message,
               ${epoch('created_at')} as created, ${epoch('changed_at')} as changed, ${epoch('ended_at')} as ended,
               case when state in ('running', 'compensating') and owner is null and run_at > statement_timestamp() then ${epoch('run_at')} end as due
        from found left join kanta.saga_workers w on w.id = found.owner and w.alive_until > statement_timestamp() ${narrowed}`,
    )
    if (sagas.length === 0) return []
    const steps = await this.#database.query(
      sql<StepRow>`
        select saga_id as saga, name, state, attempts, compensation, compensation_attempts as tries,
               error_code as code, error_message as message, ${epoch('started_at')} as started, ${epoch('ended_at')} as ended
        from kanta.saga_steps where saga_id = any(${sagas.map(({ id }) => id)}::uuid[]) order by position`,
    )
    const bySaga = Map.groupBy(steps, ({ saga }) => saga)
    return sagas.map((saga) => recordOf(saga, bySaga.get(saga.id) ?? []))
  }
}

interface OutcomeRow {
  readonly id: string
  /** Absent where there is no saga. */
  readonly name: string | null
  readonly state: SagaState
  readonly canceled: boolean
  readonly step: string | null
  readonly code: string | null
  readonly message: string | null
  readonly results: string | null
}

/** As a number, which no parser of the application's own turns into something else. */
function epoch(column: string): RawBuilder<number> {
  return sql<number>`(extract(epoch from ${sql.raw(column)}) * 1000)::float8`
}

function recordOf(saga: SagaRow, steps: readonly StepRow[]): SagaRecord {
  return {
    id: saga.id,
    name: saga.name,
    version: saga.version,
    idempotencyKey: saga.key,
    state: saga.state,
    runBy: saga.place ?? undefined,
    isCanceled: saga.canceled,
    failedStep: saga.failed ?? undefined,
    failure: failureOf(saga),
    createdAt: new Date(saga.created),
    changedAt: new Date(saga.changed),
    endedAt: dateOf(saga.ended),
    nextAttemptAt: dateOf(saga.due),
    steps: steps.map((step) => ({
      name: step.name,
      state: step.state,
      attempts: step.attempts,
      compensation: step.compensation ?? undefined,
      compensationAttempts: step.tries,
      failure: failureOf(step),
      startedAt: new Date(step.started),
      endedAt: dateOf(step.ended),
    })),
  }
}

function dateOf(ms: number | null): Date | undefined {
  return ms === null ? undefined : new Date(ms)
}

function failureOf({ code, message }: Pick<SagaRow, 'code' | 'message'>): SagaFailure | undefined {
  return code === null ? undefined : { code, message: message ?? '' }
}

function outcomeOf(row: OutcomeRow): SagaOutcome {
  if (row.name === null) return { error: noSuchSaga(row.id) }
  if (row.state === 'completed') {
    const results = readJson(row.results) as readonly (readonly [string, unknown])[]
    return { results: Object.freeze(Object.fromEntries(results)) }
  }
  return { error: failureToComplete(row, row.name) }
}

function failureToComplete(row: OutcomeRow, name: string): SagaError {
  const failure = failureOf(row)
  const why = failure === undefined ? '' : ` (${failure.code}: ${failure.message})`
  const init = { sagaId: row.id, saga: name, step: row.step ?? undefined, failure }
  const which = `The saga ${JSON.stringify(name)} (${row.id})`
  if (row.state === 'stuck') {
    return new SagaError(
      'SAGA_STUCK',
      `${which} is stuck: its step ${JSON.stringify(row.step)} could not be undone${why}. ` +
        'Mend the cause and call sagas.retry(id), or undo it by hand and call sagas.skip(id, step).',
      init,
    )
  }
  if (row.canceled) {
    return new SagaError('SAGA_CANCELED', `${which} was canceled, and what it had done is undone.`, init)
  }
  return new SagaError(
    'SAGA_COMPENSATED',
    `${which} failed at its step ${JSON.stringify(row.step)}${why}, and what it had done is undone. ` +
      'Mend the cause, and begin another saga under another idempotency key.',
    init,
  )
}

function noSuchSaga(id: string): NotFoundError {
  return new NotFoundError(
    `There is no saga ${id}. Check the id; those that ended longer than retainMs ago are deleted.`,
    { table: 'kanta.sagas' },
  )
}
