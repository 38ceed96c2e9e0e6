import type { Database } from '../database/database.ts'
import type { NewEvent, PublishOptions } from './outbox-event.ts'
import type { OutboxBatchHandler, OutboxHandler, OutboxSink, Relay, RelayOptions } from './outbox-relay.ts'
import type { DeadLetter, OutboxStats } from './outbox-store.ts'

/** Settings of an {@link Outbox}. Times are milliseconds. */
export interface OutboxOptions {
  /** Outboxes of different names have nothing to do with each other: other relays, other keys. @default 'default' */
  readonly name?: string | undefined
  /** Most bytes of payload and headers, as JSON. @default 262144 */
  readonly maxPayloadBytes?: number | undefined
  /** How long events are kept once they were delivered; at 0 they are deleted. @default 0 */
  readonly retainMs?: number | undefined
  /** How long the `idempotencyKey` of an event is remembered once it was delivered. @default 86400000, a day */
  readonly idempotencyMs?: number | undefined
}

/** A database of `createDatabase()`, whatever its schema. */
export type OutboxDatabase = Pick<Database<unknown>, 'afterCommit' | 'listen' | 'notify' | 'query' | 'transaction'>

/** Which dead letters to list. */
export interface DeadLetterOptions {
  /** @default 100 */
  readonly limit?: number | undefined
  /** Only those with a larger id, such as the last of the page before. */
  readonly after?: string | undefined
}

/**
 * Events that are written with the data they tell of, and are delivered by relays, at least once. Safe to share between any number
 * of callers; make one for each name and process. Made by {@link createOutbox}; it holds no connection and needs no end.
 *
 * `Topics` maps each topic to the type of its payload.
 */
export interface Outbox<Topics> {
  readonly name: string
  /**
   * Writes an event, in the transaction of this async context or by itself: it is there if and only if that commits, and not if
   * its savepoint is rolled back. Gives its id, or `undefined` where an event of the same `idempotencyKey` is there already.
   *
   * `INVALID_ARGUMENT`: the payload is not JSON, or would not come back as it is (functions, bigints, `NaN`, maps); `EVENT_TOO_LARGE`;
   * else as an insert.
   *
   * @example
   * ```ts
   * import { createDatabase, createOutbox } from 'kanta'
   * import type { DB } from './generated/schema.ts'
   *
   * const database = await createDatabase<DB>()
   * const outbox = await createOutbox<{ 'order.paid': { orderId: string } }>(database)
   * await database.transaction(async () => {
   *   await database.db.updateTable('orders').set({ status: 'paid' }).where('id', '=', '42').execute()
   *   await outbox.publish('order.paid', { orderId: '42' }, { key: '42' })
   * })
   * ```
   */
  publish<Topic extends keyof Topics & string>(
    topic: Topic,
    payload: Topics[Topic],
    options?: PublishOptions,
  ): Promise<string | undefined>
  /**
   * Writes many events in their order, all or none; gives their ids as {@link publish} does. With more than 200 different keys it
   * waits for all who publish with keys, and they for it. Memory and one statement hold them: give some ten thousand at most.
   */
  publishMany(events: readonly NewEvent<Topics>[]): Promise<readonly (string | undefined)[]>
  /**
   * Starts to deliver events to a handler, or to a sink: `await` nothing, it goes on behind until {@link Relay.close}. Any number
   * of relays in any number of processes share the work. Each should be able to deliver every topic, since whichever claims an event
   * delivers it. It outlives failures and restarts of the server.
   *
   * Throws `INVALID_ARGUMENT` for options that cannot be.
   *
   * @example
   * ```ts
   * import { createDatabase, createOutbox } from 'kanta'
   *
   * const database = await createDatabase()
   * const outbox = await createOutbox<{ 'order.paid': { orderId: string }; 'user.left': { userId: string } }>(database)
   * await using relay = outbox.relay(async (event, { signal }) => {
   *   if (event.topic === 'order.paid') {
   *     const headers = { 'Idempotency-Key': event.id }
   *     const answer = await fetch('http://127.0.0.1:8080/receipts', { method: 'POST', body: event.payload.orderId, headers, signal })
   *     if (!answer.ok) throw new Error('no receipt')
   *   }
   * })
   * console.log(relay.stats())
   * ```
   */
  relay(handler: OutboxBatchHandler<Topics>, options: RelayOptions & { readonly batch: true }): Relay
  relay(handler: OutboxHandler<Topics> | OutboxSink<Topics>, options?: RelayOptions & { readonly batch?: false }): Relay
  /** What the database knows: counts of what waits, so it costs more the more that is. */
  stats(): Promise<OutboxStats>
  /** Events that are not tried any more, the oldest first. They stay until somebody decides. */
  deadLetters(options?: DeadLetterOptions): Promise<readonly DeadLetter[]>
  /** Has them tried again, from the first attempt; gives how many there were. Joins the transaction of this async context. */
  retryDead(ids: readonly string[] | 'all'): Promise<number>
  /** Deletes them; gives how many there were. Joins the transaction of this async context. */
  discardDead(ids: readonly string[] | 'all'): Promise<number>
}
