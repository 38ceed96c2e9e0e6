import { settleWithin } from '../core/deadline.ts'
import { type AnyChannel, channelName, encodePayload, type PayloadLimit, type PayloadOf } from '../core/channel.ts'
import { databaseClosed, DatabaseError } from '../core/errors.ts'
import {
  type ListenOptions,
  type NotificationHandler,
  type NotificationStream,
  Subscriber,
  type SubscriberReport,
} from '../core/subscriber.ts'
import type { RedisClient } from './client.ts'
import type { RedisSubscriber } from './subscriber.ts'

/** Settings of {@link RedisMessages}. Times are milliseconds. */
export interface MessageSettings {
  /** How long a first confirmation may take. */
  readonly answerTimeoutMs: number
  /** How long {@link RedisMessages.close} waits for handlers. */
  readonly drainTimeoutMs: number
  /** A snapshot of the context of whoever subscribes, without its transaction. */
  readonly context: () => <T>(work: () => T) => T
}

/** A moment of those who subscribe. */
export interface SubscriberStats {
  readonly subscriptions: number
  /** Messages that wait for their handlers. */
  readonly waiting: number
  /** Messages that were dropped because a buffer was full, of those who subscribe now. */
  readonly dropped: number
}

// Redis lets go of a subscriber that is 8 MB behind for a minute, or 32 MB: `client-output-buffer-limit pubsub`.
const limit: PayloadLimit = { carrier: 'kanta for Redis', maxBytes: 1_048_576 }

/** Publishes to channels of Redis, and serves those who subscribe to them. */
export class RedisMessages {
  readonly #client: RedisClient
  readonly #subscriber: RedisSubscriber
  readonly #settings: MessageSettings
  readonly #report: SubscriberReport
  /** Each with what ends it. */
  readonly #subscribers = new Map<Subscriber, () => void>()
  #isClosed = false

  constructor(client: RedisClient, subscriber: RedisSubscriber, settings: MessageSettings, report: SubscriberReport) {
    this.#client = client
    this.#subscriber = subscriber
    this.#settings = settings
    this.#report = report
  }

  /** Sends it once at most: rejects with `REDIS_UNAVAILABLE` when nobody can tell whether it was. */
  async publish(channel: string, text: string): Promise<void> {
    await this.#client.call('publish', channel, text)
  }

  /** Resolves once Redis has confirmed it. Without a handler the subscriber is read as a stream. */
  async subscribe<Channel extends AnyChannel>(
    channel: Channel,
    handler: NotificationHandler<PayloadOf<Channel>> | undefined,
    options: ListenOptions = {},
  ): Promise<NotificationStream<PayloadOf<Channel>>> {
    const subscriber = new Subscriber(channel, handler as NotificationHandler<unknown> | undefined, options, {
      report: this.#report,
      run: this.#settings.context(),
      onClose: (leaving) => this.#leave(leaving),
    })
    if (this.#isClosed) throw databaseClosed()
    const stop = this.#subscriber.listen(subscriber.channel, {
      onMessage: (message) => subscriber.push(message.toString()),
      // Each time it is another connection, and what was published between the two was missed.
      onSubscribed: () => subscriber.confirm({}),
      onLost: () => undefined,
    })
    this.#subscribers.set(subscriber, stop)
    try {
      const { answerTimeoutMs } = this.#settings
      await settleWithin(subscriber.ready.promise, answerTimeoutMs, () => this.#unanswered(answerTimeoutMs))
    } catch (error) {
      await this.#leave(subscriber)
      throw error
    }
    return subscriber as NotificationStream<unknown> as NotificationStream<PayloadOf<Channel>>
  }

  stats(): SubscriberStats {
    const buffers = [...this.#subscribers.keys()].map(({ buffer }) => buffer)
    return {
      subscriptions: buffers.length,
      waiting: buffers.reduce((sum, { waiting }) => sum + waiting, 0),
      dropped: buffers.reduce((sum, { dropped }) => sum + dropped, 0),
    }
  }

  /** Ends all subscribers, and waits for the handlers that run. Never rejects. */
  async close(): Promise<void> {
    this.#isClosed = true
    const subscribers = [...this.#subscribers.keys()]
    for (const subscriber of subscribers) {
      subscriber.end(databaseClosed())
      await this.#leave(subscriber)
    }
    const handled = Promise.all(subscribers.map(({ whenIdle }) => whenIdle))
    const drained = settleWithin(handled, this.#settings.drainTimeoutMs, () => new Error('handlers still run'))
    await drained.catch(() => undefined)
  }

  #leave(subscriber: Subscriber): Promise<void> {
    this.#subscribers.get(subscriber)?.()
    this.#subscribers.delete(subscriber)
    return Promise.resolve()
  }

  #unanswered(afterMs: number): DatabaseError {
    return new DatabaseError(
      'REDIS_UNAVAILABLE',
      `Redis at ${this.#client.description} did not confirm a subscription within ${afterMs} ms. Check that it runs, and subscribe again.`,
    )
  }
}

/** The text of a message; see {@link encodePayload}. */
export function encodeMessage(to: AnyChannel, payload: unknown): { readonly channel: string; readonly text: string } {
  return { channel: channelName(to), text: encodePayload(to, payload, limit) }
}
