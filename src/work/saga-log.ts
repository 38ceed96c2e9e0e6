import { type Kysely, sql } from 'kysely'
import { DatabaseError, type SagaFailure } from '../core/errors.ts'
import type { Database } from '../database/database.ts'
import { type SagaDefinition, type SagaStep, shapeOf } from './saga.ts'
import { decodeJson, jsonColumn, readJson } from './saga-values.ts'

/** Where a saga is: the last three are ends, but `stuck` waits for a person. */
export type SagaState = 'compensated' | 'compensating' | 'completed' | 'running' | 'stuck'

/** What the log needs of a database. */
export type SagaDatabase = Pick<
  Database<never>,
  'afterCommit' | 'isClosed' | 'currentTransaction' | 'listen' | 'notify' | 'query' | 'queryOne' | 'transaction'
> & { readonly db: Kysely<LeaseTables> }

/** Written by Kysely's builder, so that renewing a lease shares a connection and waits for none of a pool that is used up. */
interface LeaseTables {
  'kanta.saga_workers': { id: string; place: string; alive_until: unknown }
  'kanta.sagas': { id: string; fence: number; owner: string | null; canceled_at: unknown }
}

/** What is known of a saga by who has a lease on it. */
export interface ClaimedSaga {
  readonly id: string
  readonly fence: number
  readonly name: string
  readonly version: number
  readonly shape: string
  readonly state: 'compensating' | 'running'
  readonly input: unknown
  readonly steps: readonly StepRecord[]
}

/** One step in the log. */
export interface StepRecord {
  readonly position: number
  readonly state: 'done' | 'failed' | 'refused' | 'running'
  readonly attempts: number
  readonly result: unknown
  readonly compensation: 'done' | 'failed' | 'running' | 'skipped' | 'stuck' | null
  readonly compensationAttempts: number
}

interface StepRow extends Omit<StepRecord, 'compensationAttempts' | 'result'> {
  readonly saga: string
  readonly result: string | null
  readonly tries: number
}

/** Which saga is written to, and which of the leases on it the writer has. */
export interface Lease {
  readonly id: string
  readonly fence: number
}

/** What a write finds out on its way. */
export interface Written {
  readonly canceled: boolean
}

const longestOutage = 5_000

/**
 * The statements on the log, each atomic. Every write of a step is bound to the fence of its writer: whoever has lost the lease,
 * and writes all the same, changes nothing and is told `SAGA_LEASE_LOST`.
 */
export class SagaLog {
  readonly #database: SagaDatabase

  constructor(database: SagaDatabase) {
    this.#database = database
  }

  /** Adds a saga if there is none under this key; gives the one that is there then. Joins the ambient transaction. */
  async insert(
    { name, version, ...rest }: SagaDefinition,
    saga: { readonly id: string; readonly key: string; readonly input: string | null },
  ): Promise<{ readonly id: string; readonly input: unknown }> {
    const shape = shapeOf({ name, version, ...rest })
    for (;;) {
      const added = await this.#database.queryOne(
        sql`insert into kanta.sagas (id, name, version, shape, idempotency_key, input)
            values (${saga.id}, ${name}, ${version}, ${shape}, ${saga.key}, ${saga.input}::json)
            on conflict (name, idempotency_key) do nothing returning id`,
        { idempotent: true },
      )
      if (added !== undefined) return { id: saga.id, input: decodeJson(saga.input) }
      const found = await this.#database.queryOne(
        sql<{ id: string; input: string | null }>`
          select id, ${jsonColumn('input')} as input from kanta.sagas where name = ${name} and idempotency_key = ${saga.key}`,
      )
      // Pruned in between: the key is free again.
      if (found !== undefined) return { id: found.id, input: readJson(found.input) }
    }
  }

  /** This worker is alive for another `leaseMs`. Rejects rather than take longer than a third of that. */
  async renew(worker: string, place: string, leaseMs: number): Promise<void> {
    const alive = sql`clock_timestamp() + ${leaseMs}::float8 * interval '1 ms'`
    const query = this.#database.db
      .insertInto('kanta.saga_workers')
      .values({ id: worker, place, alive_until: alive })
      .onConflict((conflict) => conflict.column('id').doUpdateSet({ alive_until: alive }))
    await this.#database.query(query, { timeoutMs: Math.max(50, leaseMs / 3), idempotent: true })
  }

  /** What this worker has a lease on now. */
  async held(worker: string, leaseMs: number): Promise<(Lease & Written)[]> {
    const query = this.#database.db
      .selectFrom('kanta.sagas')
      .select(['id', 'fence', sql<boolean>`canceled_at is not null`.as('canceled')])
      .where('owner', '=', worker)
    return this.#database.query(query, { timeoutMs: Math.max(50, leaseMs / 3) })
  }

  /**
   * Takes leases on sagas that are due and that nobody runs: those of no owner, of one that is not alive, and our own that
   * we do not run, since an answer got lost. Never one of `running`.
   */
  async claim(
    worker: string,
    definitions: Iterable<SagaDefinition>,
    running: readonly string[],
    limit: number,
  ): Promise<ClaimedSaga[]> {
    const known = knownAs(definitions)
    const claimed = await this.#database.query(
      sql<Omit<ClaimedSaga, 'input' | 'steps'> & { readonly input: string | null }>`
        with due as (
          select s.id from kanta.sagas s
          where s.state in ('running', 'compensating') and s.run_at <= statement_timestamp()
            and s.id <> all(${running}::uuid[])
            and (s.owner is null or s.owner = ${worker}::uuid
                 or not exists (select from kanta.saga_workers w where w.id = s.owner and w.alive_until > statement_timestamp()))
            and exists (select from ${known} where k.name = s.name and k.version = s.version and k.shape = s.shape)
          order by s.run_at limit ${limit}::int
          for update of s skip locked)
        update kanta.sagas s set owner = ${worker}::uuid, fence = s.fence + 1, changed_at = clock_timestamp()
        from due where s.id = due.id
        returning s.id, s.fence, s.name, s.version, s.shape, s.state, ${jsonColumn('s.input')} as input`,
    )
    const steps = await this.#stepsOf(claimed.map(({ id }) => id))
    return claimed.map((saga) => ({ ...saga, input: readJson(saga.input), steps: steps.get(saga.id) ?? [] }))
  }

  /** In how many milliseconds the next saga that nobody runs is due; `undefined` when none waits. */
  async nextDueMs(definitions: Iterable<SagaDefinition>): Promise<number | undefined> {
    const known = knownAs(definitions)
    const next = await this.#database.queryOne(
      // Not the least of all, for which the server would look at each of them.
      sql<{ ms: number }>`
        select (extract(epoch from s.run_at - statement_timestamp()) * 1000)::float8 as ms from kanta.sagas s
        where s.state in ('running', 'compensating') and s.owner is null
          and exists (select from ${known} where k.name = s.name and k.version = s.version and k.shape = s.shape)
        order by s.run_at limit 1`,
    )
    return next?.ms
  }

  /** An attempt begins. `attempt` is absent when the saga was canceled, so that none may. */
  async begin(lease: Lease, position: number, { name }: SagaStep): Promise<Written & { readonly attempt?: number }> {
    const row = await this.#fenced(
      lease,
      sql<{ canceled: boolean; attempt: number | null }>`
        with saga as (
          select id, canceled_at is not null as canceled from kanta.sagas
          where id = ${lease.id} and fence = ${lease.fence} for update),
        step as (
          insert into kanta.saga_steps as t (saga_id, position, name, state, attempts)
          select id, ${position}::int, ${name}, 'running', 1 from saga where not canceled
          on conflict (saga_id, position) do update
            set state = 'running', attempts = t.attempts + 1, started_at = clock_timestamp(), ended_at = null
          returning attempts)
        select canceled, (select attempts from step) as attempt from saga`,
      false,
    )
    return { canceled: row.canceled, ...(row.attempt !== null && { attempt: row.attempt }) }
  }

  /** A compensation begins; gives the number of the attempt. */
  async beginCompensation(lease: Lease, position: number): Promise<number> {
    const row = await this.#fenced(
      lease,
      sql<{ attempt: number }>`
        with saga as (select id from kanta.sagas where id = ${lease.id} and fence = ${lease.fence} for update)
        update kanta.saga_steps t
        set compensation = 'running', compensation_attempts = t.compensation_attempts + 1
        from saga where t.saga_id = saga.id and t.position = ${position}
        returning t.compensation_attempts as attempt`,
      false,
    )
    return row.attempt
  }

  /**
   * First in the transaction of a step: fails it when the lease is lost, and has the server end it when its process does nothing for
   * as long as the step may take, such as one that is frozen and would keep its locks.
   */
  async enter(lease: Lease, limitMs: number | false): Promise<void> {
    const limit =
      limitMs === false ? sql`''` : sql`set_config('idle_in_transaction_session_timeout', ${String(limitMs)}, true)`
    await this.#fenced(
      lease,
      sql<{
        limit: string
      }>`select ${limit} as limit from kanta.sagas where id = ${lease.id} and fence = ${lease.fence}`,
      false,
    )
  }

  /** A step has been done; with the last one the saga is completed, unless it was canceled. Part of the step's transaction. */
  async done(lease: Lease, position: number, result: string | null, isLast: boolean): Promise<Written> {
    return this.#fenced(
      lease,
      sql<Written>`
        with saga as (
          update kanta.sagas set changed_at = clock_timestamp(),
            state = case when ${isLast}::bool and canceled_at is null then 'completed' else state end,
            ended_at = case when ${isLast}::bool and canceled_at is null then clock_timestamp() end,
            owner = case when ${isLast}::bool and canceled_at is null then null else owner end
          where id = ${lease.id} and fence = ${lease.fence}
          returning id, canceled_at is not null as canceled),
        step as (
          update kanta.saga_steps t
          set state = 'done', result = ${result}::json, error_code = null, error_message = null, ended_at = clock_timestamp()
          from saga where t.saga_id = saga.id and t.position = ${position}::int)
        select canceled from saga`,
    )
  }

  /** A step has been undone. Part of its transaction. */
  async compensated(lease: Lease, position: number): Promise<void> {
    await this.#fenced(
      lease,
      sql`
        with saga as (
          update kanta.sagas set changed_at = clock_timestamp() where id = ${lease.id} and fence = ${lease.fence} returning id)
        update kanta.saga_steps t
        set compensation = 'done', error_code = null, error_message = null, ended_at = clock_timestamp()
        from saga where t.saga_id = saga.id and t.position = ${position}::int
        returning t.position`,
    )
  }

  /** An attempt failed, of a step or of its compensation, and the next is due after a pause; the lease ends with this. */
  async failed(
    lease: Lease,
    position: number,
    of: 'compensation' | 'run',
    failure: SagaFailure,
    pauseMs: number,
  ): Promise<void> {
    const outcome = of === 'run' ? sql`state = 'failed'` : sql`compensation = 'failed'`
    await this.#fenced(
      lease,
      sql`
        with saga as (
          update kanta.sagas set changed_at = clock_timestamp(), owner = null,
            run_at = clock_timestamp() + case when state = 'running' and canceled_at is not null then 0 else ${pauseMs}::float8 end * interval '1 ms'
          where id = ${lease.id} and fence = ${lease.fence}
          returning id)
        update kanta.saga_steps t
        set ${outcome}, error_code = ${failure.code}, error_message = ${failure.message}, ended_at = clock_timestamp()
        from saga where t.saga_id = saga.id and t.position = ${position}::int
        returning t.position`,
    )
  }

  /** The saga turns back: a step failed for good, or it was canceled before one began. */
  async turnBack(
    lease: Lease,
    failure: SagaFailure,
    step?: { readonly position: number; readonly name: string; readonly state: 'failed' | 'refused' },
  ): Promise<void> {
    await this.#fenced(
      lease,
      sql`
        with saga as (
          update kanta.sagas set state = 'compensating', changed_at = clock_timestamp(),
            failed_step = ${step?.name ?? null}, error_code = ${failure.code}, error_message = ${failure.message}
          where id = ${lease.id} and fence = ${lease.fence}
          returning id),
        step as (
          update kanta.saga_steps t
          set state = ${step?.state ?? null}, error_code = ${failure.code}, error_message = ${failure.message},
            ended_at = clock_timestamp()
          from saga where t.saga_id = saga.id and t.position = ${step?.position ?? null}::int)
        select id from saga`,
    )
  }

  /** A compensation failed for good: the saga waits for a person. */
  async stuck(lease: Lease, position: number, failure: SagaFailure): Promise<void> {
    await this.#fenced(
      lease,
      sql`
        with saga as (
          update kanta.sagas set state = 'stuck', owner = null, changed_at = clock_timestamp()
          where id = ${lease.id} and fence = ${lease.fence}
          returning id)
        update kanta.saga_steps t
        set compensation = 'stuck', error_code = ${failure.code}, error_message = ${failure.message}, ended_at = clock_timestamp()
        from saga where t.saga_id = saga.id and t.position = ${position}::int
        returning t.position`,
    )
  }

  /** All is undone. */
  async ended(lease: Lease): Promise<void> {
    await this.#fenced(
      lease,
      sql`
        update kanta.sagas set state = 'compensated', owner = null, changed_at = clock_timestamp(), ended_at = clock_timestamp()
        where id = ${lease.id} and fence = ${lease.fence}
        returning id`,
    )
  }

  /** This worker runs nothing any more: what it had may be claimed at once. */
  async release(worker: string): Promise<void> {
    const options = { timeoutMs: longestOutage, idempotent: true }
    await this.#database.query(
      sql`
        with gone as (delete from kanta.saga_workers where id = ${worker})
        update kanta.sagas set owner = null where owner = ${worker}`,
      options,
    )
  }

  /** Deletes what ended longer ago, and workers that are gone; gives how many sagas, of which at most a thousand at once. */
  async prune(retainMs: number): Promise<number> {
    const pruned = await this.#database.query(
      sql`
        with gone as (delete from kanta.saga_workers where alive_until < statement_timestamp() - interval '1 day')
        delete from kanta.sagas where id in (
          select id from kanta.sagas where ended_at < statement_timestamp() - ${retainMs}::float8 * interval '1 ms'
          order by ended_at limit 1000 for update skip locked)
        returning id`,
    )
    return pruned.length
  }

  async #stepsOf(ids: readonly string[]): Promise<Map<string, StepRecord[]>> {
    const steps = new Map<string, StepRecord[]>()
    if (ids.length === 0) return steps
    const rows = await this.#database.query(
      sql<StepRow>`
        select saga_id as saga, position, state, attempts, ${jsonColumn('result')} as result, compensation, compensation_attempts as tries
        from kanta.saga_steps where saga_id = any(${ids}::uuid[]) order by position`,
    )
    for (const { saga, tries, ...row } of rows) {
      const step = { ...row, result: readJson(row.result), compensationAttempts: tries }
      steps.set(saga, [...(steps.get(saga) ?? []), step])
    }
    return steps
  }

  /** A write that says the same however often it arrives may be sent again; one that counts may not. */
  async #fenced<Row>(lease: Lease, statement: ReturnType<typeof sql<Row>>, idempotent = true): Promise<Row> {
    const row = await this.#database.queryOne(statement, { idempotent })
    if (row !== undefined) return row
    throw leaseLost(lease.id)
  }
}

/** What a process is told that writes for a saga which another one has taken meanwhile. */
export function leaseLost(id: string): DatabaseError {
  return new DatabaseError(
    'SAGA_LEASE_LOST',
    `This process has lost its lease on the saga ${id}, which another one may go on with: nothing that it does is recorded any more. ` +
      'Look for what kept it (a frozen process, a blocked event loop, a server out of reach), or raise leaseMs.',
  )
}

function knownAs(definitions: Iterable<SagaDefinition>): ReturnType<typeof sql> {
  const known = [...definitions]
  return sql`unnest(
    ${known.map(({ name }) => name)}::text[],
    ${known.map(({ version }) => version)}::int[],
    ${known.map(shapeOf)}::text[]) as k (name, version, shape)`
}
