import { AsyncLocalStorage } from 'node:async_hooks'
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { type AnyChannel, channelName, type PayloadLimit, type PayloadOf } from '../core/channel.ts'
import { settleWithin } from '../core/deadline.ts'
import { databaseClosed, DatabaseError, TransactionError } from '../core/errors.ts'
import type { Logger } from '../core/options.ts'
import {
  type ListenOptions,
  type NotificationHandler,
  type NotificationStream,
  Subscriber,
  type SubscriberReport,
} from '../core/subscriber.ts'
import type { ConnectionSource } from './connection.ts'
import type { Engine } from './engine.ts'
import { type ListenerLink, openServerLink, openSharedLink } from './listener-link.ts'
import { toDatabaseError } from './sqlstate.ts'

/** A moment of what listens. */
export interface ListenerStats {
  /** `off`: nobody listens. `lost`: it was connected and is trying to be so again. */
  readonly state: 'connected' | 'connecting' | 'lost' | 'off'
  /** The channels that somebody listens to. */
  readonly channels: readonly string[]
  readonly subscriptions: number
  /** Notifications that wait for their handlers. */
  readonly waiting: number
  /** Notifications that were dropped because a buffer was full, since the database was opened. */
  readonly dropped: number
}

/** Settings of {@link Notifications}, resolved. Times are milliseconds. */
export interface NotificationSettings {
  /** How often the connection is tried; it is taken for dead when it has not answered by the next time. */
  readonly heartbeatMs: number | false
  /** How long LISTEN and the first proof that notifications arrive may take. */
  readonly answerTimeoutMs: number
  /** How long {@link Notifications.close} waits for handlers. */
  readonly drainTimeoutMs: number
}

/** PostgreSQL refuses 8 000 bytes: `NOTIFY_PAYLOAD_MAX_LENGTH` in async.c counts the NUL at the end. */
export const notificationLimit: PayloadLimit = { carrier: 'PostgreSQL', maxBytes: 7_999 }

const reconnectBaseMs = 50
const reconnectMaxMs = 5_000

/** Listens on one connection for all subscribers, for as long as there are some, and connects again when it is lost. */
export class Notifications {
  readonly #engine: Engine
  readonly #source: ConnectionSource
  readonly #settings: NotificationSettings
  readonly #logger: Logger
  readonly #report: SubscriberReport
  readonly #topics = new Map<string, Set<Subscriber>>()
  #link: ListenerLink | undefined
  /** The last connection that was said to be there; `#link` is another one, or none, while it is lost. */
  #announced: ListenerLink | undefined
  /** That a notification sent by the engine arrives here; asked once. */
  #isProven = false
  #probe: { readonly name: string; readonly heard: PromiseWithResolvers<void> } | undefined
  /** Connections in a row that could not be opened, or did not last. */
  #failures = 0
  #connectedAt = 0
  #droppedByThoseGone = 0
  /** Stops the present attempt to connect, when nobody waits for it any more. */
  #attempt = new AbortController()
  #hasChanged = false
  #isWorking = false
  #working: Promise<void> | undefined
  /** The connection outlives who asked for it, so it is opened outside their contexts. */
  readonly #outside = AsyncLocalStorage.snapshot()
  #closing: Promise<void> | undefined

  /** `source` is where it listens; the engine is where notifications are sent. */
  constructor(
    engine: Engine,
    source: ConnectionSource,
    settings: NotificationSettings,
    logger: Logger,
    report: SubscriberReport,
  ) {
    this.#report = report
    this.#engine = engine
    this.#source = source
    this.#settings = settings
    this.#logger = logger
  }

  /** Resolves once the server has confirmed LISTEN. Without a handler the subscriber is read as a stream. */
  async listen<Channel extends AnyChannel>(
    channel: Channel,
    handler: NotificationHandler<PayloadOf<Channel>> | undefined,
    options: ListenOptions = {},
  ): Promise<NotificationStream<PayloadOf<Channel>>> {
    const name = channelName(channel)
    const subscriber = new Subscriber(channel, handler as NotificationHandler<unknown> | undefined, options, {
      report: this.#report,
      run: this.#engine.callersContext(),
      onClose: (leaving) => this.#leave(name, leaving),
    })
    if (this.#closing) throw databaseClosed()
    if (this.#source.shared && this.#engine.ambient.getStore()?.scope) throw sessionIsHeld()
    this.#join(name, subscriber)
    await subscriber.ready.promise
    return subscriber as NotificationStream<unknown> as NotificationStream<PayloadOf<Channel>>
  }

  stats(): ListenerStats {
    const subscribers = [...this.#topics.values()].flatMap((topic) => [...topic])
    return {
      state: this.#state(),
      channels: [...this.#topics.keys()],
      subscriptions: subscribers.length,
      waiting: subscribers.reduce((sum, { buffer }) => sum + buffer.waiting, 0),
      dropped: subscribers.reduce((sum, { buffer }) => sum + buffer.dropped, this.#droppedByThoseGone),
    }
  }

  /** Ends all subscribers, waits for the handlers that run, and closes the connection. Never rejects. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    const subscribers = [...this.#topics.values()].flatMap((topic) => [...topic])
    this.#topics.clear()
    for (const subscriber of subscribers) subscriber.end(databaseClosed())
    const handled = Promise.all(subscribers.map(({ whenIdle }) => whenIdle))
    const drained = settleWithin(handled, this.#settings.drainTimeoutMs, () => new Error('handlers still run'))
    await Promise.all([this.#hangUp(), drained.catch(() => undefined)])
    await this.#working
  }

  #state(): ListenerStats['state'] {
    if (this.#link !== undefined && this.#link === this.#announced) return 'connected'
    if (this.#topics.size === 0) return 'off'
    return this.#announced === undefined ? 'connecting' : 'lost'
  }

  #join(name: string, subscriber: Subscriber): void {
    const topic = this.#topics.get(name)
    if (topic === undefined) this.#topics.set(name, new Set([subscriber]))
    else topic.add(subscriber)
    if (this.#link?.channels.has(name)) subscriber.confirm(this.#link)
    else this.#wake()
  }

  async #leave(name: string, subscriber: Subscriber): Promise<void> {
    const topic = this.#topics.get(name)
    if (!topic?.delete(subscriber)) return
    this.#droppedByThoseGone += subscriber.buffer.dropped
    if (topic.size > 0) return
    this.#topics.delete(name)
    if (this.#topics.size === 0) await this.#hangUp()
    else this.#wake()
  }

  /** Nobody listens any more. */
  async #hangUp(): Promise<void> {
    this.#attempt.abort()
    const link = this.#link
    this.#link = undefined
    this.#announced = undefined
    this.#failures = 0
    await link?.end()
  }

  /** One worker at a time brings the connection to what the subscribers ask for. */
  #wake(): void {
    this.#hasChanged = true
    if (this.#isWorking) return
    this.#isWorking = true
    this.#working = this.#outside(() => this.#work())
  }

  async #work(): Promise<void> {
    while (this.#hasChanged) {
      this.#hasChanged = false
      if (this.#topics.size > 0) await this.#step()
    }
    this.#isWorking = false
  }

  async #step(): Promise<void> {
    const attempt = new AbortController()
    this.#attempt = attempt
    const isFresh = this.#link === undefined
    try {
      if (isFresh && this.#failures > 0) await this.#pause(attempt.signal)
      const link = this.#link ?? (await this.#connect(attempt.signal))
      await link.follow(this.#topics.keys())
      if (this.#link === link) this.#confirm(link)
    } catch (error) {
      this.#hasChanged = true
      // Who listens now came after the last of those for whom this was done.
      if (attempt.signal.aborted) return
      await this.#drop(error)
      // That a connection was dead already is nobody's failure before another was tried.
      if (isFresh) this.#failed(error)
    }
  }

  async #connect(signal: AbortSignal): Promise<ListenerLink> {
    const link = await this.#open(signal)
    const stop = (): void => void link.end()
    signal.addEventListener('abort', stop, { once: true })
    try {
      if (!this.#isProven && this.#source.shared === undefined) await this.#prove(link)
      signal.throwIfAborted()
    } catch (error) {
      await link.end()
      throw error
    } finally {
      signal.removeEventListener('abort', stop)
    }
    // Here and not by the caller: until then it could be hung up on without being known.
    this.#link = link
    void link.ended.then(async (error) => {
      if (this.#link !== link) return
      await this.#drop(error)
      this.#wake()
    })
    return link
  }

  async #open(signal: AbortSignal): Promise<ListenerLink> {
    const { shared } = this.#source
    const { answerTimeoutMs, heartbeatMs } = this.#settings
    if (shared) return openSharedLink(shared, (sql) => this.#engine.ask(sql, [], answerTimeoutMs), this.#dispatch)
    return openServerLink(this.#source, { answerTimeoutMs, heartbeatMs, signal }, this.#dispatch)
  }

  readonly #dispatch = (name: string, payload: string): void => {
    if (this.#probe?.name === name) this.#probe.heard.resolve()
    for (const subscriber of this.#topics.get(name) ?? []) subscriber.push(payload)
  }

  /** A pooler in transaction mode confirms LISTEN, and nothing ever comes. */
  async #prove(link: ListenerLink): Promise<void> {
    const { answerTimeoutMs } = this.#settings
    const name = `kanta_${randomUUID()}`
    const heard = Promise.withResolvers<void>()
    heard.promise.catch(() => undefined)
    void link.ended.then(heard.reject)
    this.#probe = { name, heard }
    try {
      await link.follow([name])
      await Promise.race([this.#engine.ask('select pg_notify($1, $2)', [name, ''], answerTimeoutMs), heard.promise])
      await settleWithin(heard.promise, answerTimeoutMs, () => this.#unheard())
      this.#isProven = true
    } catch (error) {
      // A pooler keeps the session for others, and with it what that listens to.
      await link.follow([]).catch(() => undefined)
      throw error
    } finally {
      this.#probe = undefined
    }
  }

  #unheard(): DatabaseError {
    const from = this.#engine.source.description
    const to = this.#source.description
    return new DatabaseError(
      'NOTIFICATIONS_UNAVAILABLE',
      `A notification sent through ${from} did not arrive within ${this.#settings.answerTimeoutMs} ms on a connection to ` +
        `${from === to ? 'the same place' : to} that had confirmed LISTEN: a pooler in transaction mode is in between, or ` +
        'these are two databases. Set postgres.directUrl (DATABASE_DIRECT_URL) to the server itself, with the same database.',
    )
  }

  #confirm(link: ListenerLink): void {
    for (const [name, topic] of this.#topics) {
      if (link.channels.has(name)) for (const subscriber of topic) subscriber.confirm(link)
    }
    const before = this.#announced
    if (before === link) return
    this.#announced = link
    this.#connectedAt = performance.now()
    if (before !== undefined) {
      this.#logger.info(`listening again at ${this.#source.description}; what was sent meanwhile was missed`)
    }
    const state = before === undefined ? 'connected' : 'reconnected'
    this.#engine.events.emit('listener', { state, channels: this.#topics.size, error: undefined })
  }

  /** Gives up the connection, and says so once where it has worked. */
  async #drop(error: unknown): Promise<void> {
    const link = this.#link
    if (link === undefined) return
    this.#link = undefined
    if (link === this.#announced) {
      // One that ends as soon as it is there is a failure as well.
      if (performance.now() - this.#connectedAt > reconnectMaxMs) this.#failures = 0
      this.#failures += 1
      const { code, message } = toDatabaseError(error)
      this.#logger.warn(`the connection that listens at ${this.#source.description} is opened again: ${message}`)
      this.#engine.events.emit('listener', { state: 'lost', channels: this.#topics.size, error: code })
    }
    await link.end()
  }

  #failed(reason: unknown): void {
    this.#rejectWaiting(reason)
    this.#failures = this.#topics.size === 0 ? 0 : this.#failures + 1
  }

  /** Longer after each failure, and random, so that those who lost a server together do not come back together. */
  async #pause(signal: AbortSignal): Promise<void> {
    const bound = Math.min(reconnectBaseMs * 2 ** (this.#failures - 1), reconnectMaxMs)
    await sleep(bound * Math.random(), undefined, { signal })
  }

  /** Those who have listened wait on; those who begin are told that it does not work now. */
  #rejectWaiting(error: unknown): void {
    for (const [name, topic] of [...this.#topics]) {
      for (const subscriber of [...topic]) {
        if (subscriber.link !== undefined) continue
        topic.delete(subscriber)
        subscriber.end(error)
      }
      if (topic.size === 0) this.#topics.delete(name)
    }
  }
}

function sessionIsHeld(): TransactionError {
  return new TransactionError(
    'TRANSACTION_MISUSE',
    'To listen inside a transaction would wait for the one session of the embedded PostgreSQL, which that transaction ' +
      'holds. Listen before it begins, or set DATABASE_URL to use a server.',
  )
}
