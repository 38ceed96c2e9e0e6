import { type Kysely, type RawBuilder, sql } from 'kysely'
import type { Database } from '../database/database.ts'
import type { EncodedEvent, OutboxEvent } from './outbox-event.ts'
import { jsonColumn } from './saga-values.ts'

/** An event in the hands of a relay. */
export interface ClaimedEvent extends OutboxEvent {
  /** What it was claimed with: whoever claims it later has another. */
  readonly lease: string
}

/** What a claim found. */
export interface Claim {
  readonly events: readonly ClaimedEvent[]
  /** There was much to look at, and most of it waits behind earlier events of its key. */
  readonly isClogged: boolean
  /** Of the keys with parked events, the last that was looked at; where the next claim goes on. */
  readonly lastKey: string
  readonly hasMoreKeys: boolean
}

/** How an event that was not delivered goes back. */
export interface Return {
  readonly id: string
  readonly lease: string
  readonly state: 'dead' | 'waiting'
  /** From now on the server; undefined: when it was due before. */
  readonly delayMs: number | undefined
  /** Whether a handler was tried. */
  readonly isCounted: boolean
  readonly error: string | undefined
}

/** A dead letter: an event that was tried as often as it may be, or refused for good. */
export interface DeadLetter extends OutboxEvent {
  /** What its last failure was; without values of the event. */
  readonly error: string | undefined
  readonly diedAt: Date
}

/** A moment of an outbox, as the database sees it. */
export interface OutboxStats {
  /** To be delivered, now or later, and not in the hands of a relay. */
  readonly waiting: number
  readonly inFlight: number
  readonly dead: number
  /** How long the oldest of those that are to be delivered was due, in milliseconds; 0 when there is none. */
  readonly oldestMs: number
}

/** How long what was delivered is kept. */
export interface Retention {
  readonly retainMs: number
  readonly idempotencyMs: number
}

interface Written {
  readonly id: string
  /** Its idempotency key. */
  readonly mark: string | null
}

/** What a claim has looked at. */
interface Looked {
  readonly seen: number
  readonly keyCount: number
  readonly lastKey: string | null
}

/** Written by Kysely's builder, so that renewing a lease shares a connection and waits for none of a pool that is used up. */
interface LeaseTables {
  'kanta.outbox': { id: string; lease: string | null; state: string; leased_until: unknown }
}

interface EventRow {
  readonly id: string
  readonly topic: string
  readonly key: string | null
  readonly payload: string
  readonly headers: string | null
  readonly attempts: number
  readonly published: number
}

const free = sql`(o.leased_until is null or o.leased_until <= statement_timestamp())`
const epoch = (column: string): RawBuilder<number> =>
  sql<number>`(extract(epoch from ${sql.raw(column)}) * 1000)::float8`
/** Single words, and JSON as text: no plugin or parser of the application makes something else of them. */
const columns = sql`o.id::text as id, o.topic, o.key, ${jsonColumn('o.payload')} as payload, ${jsonColumn('o.headers')} as headers,
  o.attempts, ${epoch('o.published_at')} as published`

/** So many events are looked at for one claim. */
const windowSize = 500
/** So many keys with parked events are looked at for one claim. */
const parkedKeys = 100
const pruneSize = 1_000
/** Apart from the locks of `withLock`, whose seed is 0. */
const lockSeed = 7_305
/** Each takes room in the lock table of the server, which is a few thousand by default. */
const maxKeyLocks = 200

const ms = (value: RawBuilder<unknown> | number): RawBuilder<unknown> =>
  sql`${value}::float8 * interval '1 millisecond'`

/** The statements of one outbox. Time is that of the server. */
export class OutboxStore {
  readonly #database: Database<unknown>
  readonly #name: string
  readonly #retention: Retention

  constructor(database: Database<unknown>, name: string, retention: Retention) {
    this.#database = database
    this.#name = name
    this.#retention = retention
  }

  /**
   * Writes events in their order, in one statement; gives their ids, with `undefined` for those that were published before.
   * The locks of their keys are taken before their numbers, and last until the end of the transaction: so of two events
   * of one key, the one with the smaller number is committed first.
   */
  async publish(events: readonly EncodedEvent[]): Promise<readonly (string | undefined)[]> {
    const isIdempotent = events.every(({ idempotencyKey }) => idempotencyKey !== null)
    const rows = await this.#database.query(this.insert(events), { idempotent: isIdempotent })
    const byKey = new Map(rows.map((row) => [row.mark, row.id]))
    // None of the others is left out, and numbers rise with the order.
    const others = inOrder(rows.filter((row) => row.mark === null)).values()
    return events.map(({ idempotencyKey }) => {
      if (idempotencyKey === null) return others.next().value?.id
      const id = byKey.get(idempotencyKey)
      // One that comes twice is there once.
      byKey.delete(idempotencyKey)
      return id
    })
  }

  /** The statement of {@link publish}. */
  insert(events: readonly EncodedEvent[]): RawBuilder<Written> {
    const keys = [...new Set(events.flatMap(({ key }) => (key === null ? [] : [key])))]
    const topics = events.map(({ topic }) => topic)
    const payloads = events.map(({ payload }) => payload)
    const headers = events.map((event) => event.headers)
    const idempotencyKeys = events.map(({ idempotencyKey }) => idempotencyKey)
    const delays = events.map(({ delayMs }) => delayMs)
    return sql`
      with turns as materialized (${this.#takeTurns(keys)})
      insert into kanta.outbox (outbox, topic, key, payload, headers, idempotency_key, due_at)
      select ${this.#name}, g.topic, g.key, g.payload::json, g.headers::json, g.idempotency_key,
        statement_timestamp() + ${ms(sql`g.delay_ms`)}
      from unnest(${topics}::text[], ${events.map(({ key }) => key)}::text[], ${payloads}::text[], ${headers}::text[],
        ${idempotencyKeys}::text[], ${delays}::float8[])
        with ordinality as g(topic, key, payload, headers, idempotency_key, delay_ms, at)
      where (select count(*) from turns) >= 0 order by g.at
      on conflict (outbox, idempotency_key) where idempotency_key is not null do nothing
      returning id::text as id, idempotency_key as mark`
  }

  #takeTurns(keys: readonly string[]): RawBuilder<unknown> {
    if (keys.length === 0) return sql`select 1 as turn`
    const lock = (how: string, value: RawBuilder<unknown>): RawBuilder<unknown> =>
      sql`${sql.raw(`pg_advisory_xact_lock${how}`)}(hashtextextended(${value}, ${sql.lit(lockSeed)}))`
    const gate = sql`${this.#name}::text`
    // So many keys at once have the turn of all keys, for which all who publish with a key leave room.
    if (keys.length > maxKeyLocks) return sql`select ${lock('', gate)} as turn`
    // In one order, so that two who publish the same keys do not wait for each other.
    return sql`
      select ${lock('', sql`${this.#name} || chr(31) || k.key`)} as turn
      from (select u.key from unnest(${keys}::text[]) u(key), (select ${lock('_shared', gate)} as gate offset 0) g
        where g.gate is not null order by u.key offset 0) k`
  }

  /**
   * Claims events that are due, and that are the first of their key: those whose time has come, and of keys with parked events,
   * from the key after `after` on, those that are the first by now.
   */
  async claim(lease: string, leaseMs: number, wanted: number, after: string): Promise<Claim> {
    const window = Math.max(windowSize, wanted)
    const rows = await this.#database.query(sql<Partial<EventRow> & Looked>`
      with recursive ${this.#due(window)}, parked as (
        ${this.#parkedKey(sql`${after}`)}
        union all
        select (${this.#parkedKey(sql`p.key`)}) from parked p where p.key is not null
      ), keys as materialized (
        select key from parked where key is not null limit ${parkedKeys}
      ), firsts as materialized (
        select f.id from keys k cross join lateral (
          select o.id, o.is_parked from kanta.outbox o
          where o.outbox = ${this.#name} and o.key = k.key and o.state = 'waiting' order by o.id limit 1) f
        where f.is_parked
      ), heads as materialized (
        select o.id from kanta.outbox o
        where o.id = any(array(
            select d.id from (select id, key, min(id) over (partition by key) as first from due) d
            where d.key is null or d.id = d.first union all select id from firsts))
          and o.state = 'waiting' and (o.due_at <= statement_timestamp() or o.is_parked) and ${free}
          and (o.key is null or not exists (
            select from kanta.outbox p
            where p.outbox = ${this.#name} and p.key = o.key and p.id < o.id and p.state = 'waiting'))
        order by o.due_at, o.id limit ${wanted} for update of o skip locked
      ), claimed as (
        update kanta.outbox o
        set attempts = o.attempts + 1, lease = ${lease}::uuid, leased_until = statement_timestamp() + ${ms(leaseMs)}
        where o.id = any(array(select id from heads))
        returning ${columns}
      )
      select s.*, c.* from (
        select (select count(*)::int from due) as seen, count(*)::int as "keyCount", max(key) as "lastKey" from keys
      ) s left join claimed c on true`)
    const events = rows.flatMap((row) =>
      row.id === undefined || row.id === null ? [] : [claimed(row as EventRow, lease)],
    )
    const { seen = 0, keyCount = 0, lastKey } = rows[0] ?? {}
    return {
      events: inOrder(events),
      isClogged: events.length < wanted && seen >= window,
      // Once around.
      lastKey: keyCount < parkedKeys ? '' : (lastKey ?? ''),
      hasMoreKeys: keyCount >= parkedKeys,
    }
  }

  #parkedKey(after: RawBuilder<unknown>): RawBuilder<unknown> {
    return sql`(select o.key from kanta.outbox o
      where o.outbox = ${this.#name} and o.state = 'waiting' and o.is_parked and o.key > ${after} order by o.key limit 1)`
  }

  /**
   * Claims events that come right after some that were claimed with the same lease, up to so many of each key. Who holds the first of
   * a key is the only one who can take what follows it.
   */
  async claimFollowers(
    heads: readonly ClaimedEvent[],
    lease: string,
    leaseMs: number,
    each: number,
  ): Promise<readonly ClaimedEvent[]> {
    const keys = heads.map(({ key }) => key)
    const ids = heads.map(({ id }) => id)
    const rows = await this.#database.query(sql<EventRow>`
      with followers as (
        select f.id from unnest(${keys}::text[], ${ids}::bigint[]) as h(key, id) cross join lateral (
          select x.id, bool_and(x.is_next) over (order by x.id) as is_in_run from (
            select o.id, (o.due_at <= statement_timestamp() or o.is_parked) and ${free} as is_next
            from kanta.outbox o
            where o.outbox = ${this.#name} and o.key = h.key and o.id > h.id and o.state = 'waiting'
            order by o.id limit ${each}) x
        ) f where f.is_in_run
      )
      update kanta.outbox o
      set attempts = o.attempts + 1, lease = ${lease}::uuid, leased_until = statement_timestamp() + ${ms(leaseMs)}
      where o.id = any(array(select id from followers)) and o.state = 'waiting' and ${free}
      returning ${columns}`)
    return inOrder(rows.map((row) => claimed(row, lease)))
  }

  /** Moves what waits behind an earlier event of its key out of the way, to be found by its key; gives how many. */
  async park(): Promise<number> {
    const rows = await this.#database.query(sql`
      with ${this.#due(windowSize)}, blocked as materialized (
        select k.key, h.id from (select distinct key from due where key is not null) k cross join lateral (
          select p.id, greatest(p.due_at, p.leased_until) as until from kanta.outbox p
          where p.outbox = ${this.#name} and p.key = k.key and p.state = 'waiting'
          order by p.id limit 1
        ) h
        where h.until > statement_timestamp()
      ), behind as materialized (
        select o.id from kanta.outbox o
        where o.id = any(array(select d.id from due d join blocked b on b.key = d.key and b.id < d.id))
          and o.state = 'waiting' and ${free}
        for update of o skip locked
      )
      update kanta.outbox o set is_parked = true where o.id = any(array(select id from behind)) returning o.id`)
    return rows.length
  }

  #due(window: number): RawBuilder<unknown> {
    return sql`due as materialized (
        select o.id, o.key from kanta.outbox o
        where o.outbox = ${this.#name} and o.state = 'waiting' and not o.is_parked
          and o.due_at <= statement_timestamp() and ${free}
        order by o.due_at, o.id limit ${window})`
  }

  /** How long until something is due that is not yet; undefined when there is nothing. */
  async dueInMs(): Promise<number | undefined> {
    const value = await this.#database.queryValue<number>(sql`
      select (extract(epoch from o.due_at - statement_timestamp()) * 1000)::float8 as due_in
      from kanta.outbox o
      where o.outbox = ${this.#name} and o.state = 'waiting' and not o.is_parked and o.due_at > statement_timestamp()
      order by o.due_at limit 1`)
    return value
  }

  /** They are delivered, where they are still held with these leases. */
  async finish(events: readonly Pick<ClaimedEvent, 'id' | 'lease'>[]): Promise<void> {
    const { retainMs, idempotencyMs } = this.#retention
    const isGone = retainMs > 0 ? sql`false` : sql`o.idempotency_key is null`
    const payload = retainMs > 0 ? sql`o.payload` : sql`'null'::json`
    const keepMs = sql`case when o.idempotency_key is null then ${retainMs} else ${Math.max(retainMs, idempotencyMs)} end`
    await this.#database.query(
      sql`
      with given as materialized (${pairs(events)}), gone as (
        delete from kanta.outbox o using given g
        where o.id = g.id and o.lease = g.lease and o.state = 'waiting' and ${isGone}
      )
      update kanta.outbox o set state = 'delivered', lease = null, leased_until = null, error = null, payload = ${payload},
        is_parked = false, ended_at = statement_timestamp(), expires_at = statement_timestamp() + ${ms(keepMs)}
      from given g
      where o.id = g.id and o.lease = g.lease and o.state = 'waiting' and not (${isGone})`,
      // What is no longer held with its lease is left alone.
      { idempotent: true },
    )
  }

  /** They were not delivered, and wait again or are dead, where they are still held with these leases. */
  async giveBack(returns: readonly Return[]): Promise<void> {
    const delays = returns.map(({ delayMs }) => delayMs ?? null)
    await this.#database.query(
      sql`
      with given as materialized (
        select * from unnest(${returns.map(({ id }) => id)}::bigint[], ${returns.map(({ lease }) => lease)}::uuid[],
          ${returns.map(({ state }) => state)}::text[], ${delays}::float8[], ${returns.map(({ isCounted }) => isCounted)}::boolean[],
          ${returns.map(({ error }) => error ?? null)}::text[]) as g(id, lease, state, delay_ms, is_counted, error)
      )
      update kanta.outbox o set state = g.state, lease = null, leased_until = null, is_parked = false,
        attempts = o.attempts - case when g.is_counted then 0 else 1 end,
        due_at = case when g.delay_ms is null then o.due_at else statement_timestamp() + ${ms(sql`g.delay_ms`)} end,
        error = coalesce(g.error, o.error),
        ended_at = case when g.state = 'dead' then statement_timestamp() end
      from given g where o.id = g.id and o.lease = g.lease and o.state = 'waiting'`,
      { idempotent: true },
    )
  }

  /** Holds them longer; gives the ids of those that are still held with these leases. */
  async renew(events: readonly Pick<ClaimedEvent, 'id' | 'lease'>[], leaseMs: number): Promise<ReadonlySet<string>> {
    const given = sql<{ id: string; lease: string }>`(${pairs(events)})`.as<'g'>('g')
    const query = (this.#database.db as unknown as Kysely<LeaseTables>)
      .updateTable('kanta.outbox as o')
      .from(given)
      .set({ leased_until: sql`statement_timestamp() + ${ms(leaseMs)}` })
      .whereRef('o.id', '=', 'g.id')
      .whereRef('o.lease', '=', 'g.lease')
      .where('o.state', '=', 'waiting')
      .returning(sql<string>`o.id::text`.as('id'))
    const rows = await this.#database.query(query, { idempotent: true })
    return new Set(rows.map(({ id }) => id))
  }

  /** Deletes what was delivered and is kept long enough, of all outboxes; gives whether there may be more. */
  async prune(): Promise<boolean> {
    const rows = await this.#database.query(sql`
      delete from kanta.outbox o where o.id = any(array(
        select p.id from kanta.outbox p where p.state = 'delivered' and p.expires_at <= statement_timestamp()
        order by p.expires_at limit ${pruneSize} for update skip locked)) returning o.id`)
    return rows.length === pruneSize
  }

  /** Takes events back that nobody needs to deliver any more, also from the hands of a relay. */
  async erase(ids: readonly string[]): Promise<void> {
    await this.#database.query(sql`delete from kanta.outbox o where o.id = any(${ids}::bigint[])`, { idempotent: true })
  }

  async stats(): Promise<OutboxStats> {
    const row = await this.#database.queryOne(sql<OutboxStats>`
      select count(*) filter (where ${free})::int as waiting, count(*) filter (where not ${free})::int as "inFlight",
        coalesce(greatest(0, extract(epoch from statement_timestamp() - min(o.due_at)) * 1000), 0)::float8 as "oldestMs",
        (select count(*)::int from kanta.outbox d where d.outbox = ${this.#name} and d.state = 'dead') as dead
      from kanta.outbox o where o.outbox = ${this.#name} and o.state = 'waiting'`)
    return row as OutboxStats
  }

  async deadLetters(limit: number, after: string): Promise<readonly DeadLetter[]> {
    const rows = await this.#database.query(sql<EventRow & { error: string | null; died: number }>`
      select ${columns}, o.error, ${epoch('o.ended_at')} as died from kanta.outbox o
      where o.outbox = ${this.#name} and o.state = 'dead' and o.id > ${after}::bigint order by o.id limit ${limit}`)
    return rows.map((row) => ({ ...eventOf(row), error: row.error ?? undefined, diedAt: new Date(row.died) }))
  }

  async retryDead(ids: readonly string[] | 'all'): Promise<number> {
    const rows = await this.#database.query(sql`
      update kanta.outbox o
      set state = 'waiting', attempts = 0, due_at = statement_timestamp(), error = null, ended_at = null
      where ${this.#dead(ids)} returning o.id`)
    return rows.length
  }

  async discardDead(ids: readonly string[] | 'all'): Promise<number> {
    return (await this.#database.query(sql`delete from kanta.outbox o where ${this.#dead(ids)} returning o.id`)).length
  }

  #dead(ids: readonly string[] | 'all'): RawBuilder<unknown> {
    const chosen = ids === 'all' ? sql`true` : sql`o.id = any(${ids}::bigint[])`
    return sql`o.outbox = ${this.#name} and o.state = 'dead' and ${chosen}`
  }
}

function pairs(events: readonly Pick<ClaimedEvent, 'id' | 'lease'>[]): RawBuilder<unknown> {
  const ids = events.map(({ id }) => id)
  return sql`select * from unnest(${ids}::bigint[], ${events.map(({ lease }) => lease)}::uuid[]) as g(id, lease)`
}

function claimed(row: EventRow, lease: string): ClaimedEvent {
  return { ...eventOf(row), lease }
}

function eventOf({ id, topic, key, payload, headers, attempts, published }: EventRow): OutboxEvent {
  return {
    id,
    topic,
    key: key ?? undefined,
    payload: parsed(payload),
    headers: headers === null ? {} : (parsed(headers) as OutboxEvent['headers']),
    attempt: attempts,
    publishedAt: new Date(published),
  }
}

/** What {@link jsonColumn} selected. */
function parsed(text: string): unknown {
  return JSON.parse(text.slice(1))
}

/** By number: in the order in which those of one key were committed. */
function inOrder<Event extends { readonly id: string }>(events: readonly Event[]): readonly Event[] {
  return events.toSorted((one, other) => (BigInt(one.id) < BigInt(other.id) ? -1 : 1))
}
