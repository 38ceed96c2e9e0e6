import { AsyncLocalStorage } from 'node:async_hooks'
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { settleWithin } from '../core/deadline.ts'
import { DatabaseError, TransactionError } from '../core/errors.ts'
import type { Logger } from '../core/config.ts'
import type { ConnectionSource } from './connection.ts'
import type { Engine } from './engine.ts'
import { type ListenerLink, openServerLink, openSharedLink } from './listener-link.ts'
import { NotificationBuffer, type NotificationGap } from './notification-buffer.ts'
import { type AnyChannel, channelName, decodePayload, type PayloadOf } from './notification-channel.ts'
import { toDatabaseError } from './sqlstate.ts'

/** How a subscriber is served. */
export interface ListenOptions {
  /**
   * Called when notifications are missing, in their place among the others: read again what they told of. What it throws is
   * reported as a handler's failure is. @default a warning to the logger
   */
  readonly onGap?: ((gap: NotificationGap) => unknown) | undefined
  /**
   * Most notifications that wait for the handler; one more drops the oldest, and {@link onGap} tells. Each holds up to
   * 8 kB. @default 10000
   */
  readonly bufferSize?: number | undefined
}

/** Called with each payload, one after the other: the next waits for what it returns. */
export type NotificationHandler<Payload> = (payload: Payload) => unknown

/** One subscriber of a channel. */
export interface Subscription extends AsyncDisposable {
  readonly channel: string
  /**
   * Ends it: no handler is called from now on, one that runs is not waited for. Resolves when the connection is closed, if
   * this was the last subscriber of all. Never rejects; safe to call more than once, and inside the handler.
   */
  close(): Promise<void>
}

/** A subscriber that is read with `for await`. It ends with its loop, {@link Subscription.close} or the database. */
export interface NotificationStream<Payload> extends Subscription, AsyncIterable<Payload> {}

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

const defaultBufferSize = 10_000
const reconnectBaseMs = 50
const reconnectMaxMs = 5_000

/** Listens on one connection for all subscribers, for as long as there are some, and connects again when it is lost. */
export class Notifications {
  readonly #engine: Engine
  readonly #source: ConnectionSource
  readonly #settings: NotificationSettings
  readonly #logger: Logger
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
  constructor(engine: Engine, source: ConnectionSource, settings: NotificationSettings, logger: Logger) {
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
    const { bufferSize = defaultBufferSize } = options
    if (!Number.isInteger(bufferSize) || bufferSize < 1) {
      throw new DatabaseError('INVALID_ARGUMENT', 'bufferSize of listen must be a whole number from 1.')
    }
    if (this.#closing) throw closed()
    if (this.#source.shared && this.#engine.ambient.getStore()?.scope) throw sessionIsHeld()
    const subscriber = new Subscriber(channel, handler as NotificationHandler<unknown> | undefined, {
      bufferSize,
      onGap: options.onGap ?? ((gap) => this.#warnOfGap(name, gap)),
      // A handler belongs to the place that listens, but not to the transaction that may be open there.
      run: this.#engine.ambient.run({ scope: undefined }, () => AsyncLocalStorage.snapshot()),
      onFailure: (reason, error) => this.#reportFailure(name, reason, error),
      onClose: (leaving) => this.#leave(name, leaving),
    })
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
    for (const subscriber of subscribers) subscriber.end(closed())
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

  #reportFailure(name: string, reason: FailureReason, error: unknown): void {
    this.#engine.events.emit('notificationFailure', { channel: name, reason, error })
    const what = error instanceof Error ? `${error.name}: ${error.message}` : 'something that is not an Error'
    const who = { gap: `onGap of`, handler: `a handler of`, payload: `a payload on` }[reason]
    this.#logger.warn(`${who} the channel "${name}" failed: ${what}`)
  }

  #warnOfGap(name: string, { dropped, disconnected }: NotificationGap): void {
    const reasons = [
      disconnected ? 'what was sent while the connection was away' : undefined,
      dropped > 0 ? `${dropped} that came faster than the handler took them` : undefined,
    ]
    this.#logger.warn(
      `a subscriber of the channel "${name}" has missed notifications: ${reasons.filter(Boolean).join(', and ')}. ` +
        'Give listen an onGap that reads again what they tell of',
    )
  }
}

/** What failed about a notification. */
export type FailureReason = 'gap' | 'handler' | 'payload'

interface SubscriberSettings {
  readonly bufferSize: number
  readonly onGap: (gap: NotificationGap) => unknown
  readonly run: <T>(work: () => T) => T
  readonly onFailure: (reason: FailureReason, error: unknown) => void
  readonly onClose: (subscriber: Subscriber) => Promise<void>
}

/** One who listens: a bounded buffer, and a handler that works on it or a loop that reads it. */
class Subscriber implements NotificationStream<unknown> {
  readonly channel: string
  readonly buffer: NotificationBuffer
  readonly ready: PromiseWithResolvers<void> = Promise.withResolvers()
  /** The connection on which the server has confirmed it. */
  link: ListenerLink | undefined
  /** Resolves when no handler runs. */
  whenIdle: Promise<void> = Promise.resolve()
  readonly #source: AnyChannel
  readonly #handler: NotificationHandler<unknown> | undefined
  readonly #settings: SubscriberSettings
  #isStarted = false
  #isRunning = false
  #hasEnded = false
  /** Wakes the loops that wait for more. */
  #arrival: PromiseWithResolvers<void> | undefined

  constructor(source: AnyChannel, handler: NotificationHandler<unknown> | undefined, settings: SubscriberSettings) {
    this.channel = channelName(source)
    this.buffer = new NotificationBuffer(settings.bufferSize)
    this.#source = source
    this.#handler = handler
    this.#settings = settings
  }

  /** The server has confirmed LISTEN on this connection; if it is another one than before, something was missed. */
  confirm(link: ListenerLink): void {
    const before = this.link
    if (before === link) return
    this.link = link
    if (before === undefined) {
      this.ready.resolve()
      // Whoever listens gets hold of the subscription before its handler is called.
      setImmediate(() => {
        this.#isStarted = true
        this.#stir()
      })
      return
    }
    this.buffer.interrupt()
    this.#stir()
  }

  push(payload: string): void {
    this.buffer.push(payload)
    this.#stir()
  }

  /** No more is delivered. One that was not confirmed yet fails with the reason. */
  end(reason: unknown): void {
    if (this.link === undefined) this.ready.reject(reason)
    this.#hasEnded = true
    this.buffer.clear()
    this.#arrival?.resolve()
  }

  async close(): Promise<void> {
    if (this.#hasEnded) return
    this.end(undefined)
    await this.#settings.onClose(this)
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<unknown, void, undefined> {
    try {
      while (!this.#hasEnded) {
        const entry = this.buffer.take()
        if (entry === undefined) {
          this.#arrival ??= Promise.withResolvers()
          await this.#arrival.promise
        } else if (typeof entry !== 'string') await this.#attempt('gap', () => this.#settings.onGap(entry))
        else {
          const payload = this.#decode(entry)
          if (payload) yield payload.value
        }
      }
    } finally {
      await this.close()
    }
  }

  #stir(): void {
    this.#arrival?.resolve()
    this.#arrival = undefined
    if (this.#handler === undefined || this.#isRunning || !this.#isStarted) return
    this.#isRunning = true
    this.whenIdle = this.#handle(this.#handler)
  }

  async #handle(handler: NotificationHandler<unknown>): Promise<void> {
    const { run, onGap } = this.#settings
    for (let entry = this.buffer.take(); entry !== undefined; entry = this.buffer.take()) {
      if (typeof entry !== 'string') {
        const gap = entry
        await this.#attempt('gap', () => run(() => onGap(gap)))
        continue
      }
      const payload = this.#decode(entry)
      if (payload) await this.#attempt('handler', () => run(() => handler(payload.value)))
    }
    this.#isRunning = false
  }

  #decode(text: string): { readonly value: unknown } | undefined {
    try {
      return { value: decodePayload(this.#source, text) }
    } catch (error) {
      this.#settings.onFailure('payload', error)
      return undefined
    }
  }

  async #attempt(reason: FailureReason, work: () => unknown): Promise<void> {
    try {
      await work()
    } catch (error) {
      this.#settings.onFailure(reason, error)
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

function closed(): DatabaseError {
  return new DatabaseError('DATABASE_CLOSED', 'The database is closed. Create a new one, or move close() to the end.')
}
