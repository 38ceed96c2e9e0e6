import { type AnyChannel, channelName, decodePayload } from './channel.ts'
import { DatabaseError } from './errors.ts'
import { NotificationBuffer, type NotificationGap } from './notification-buffer.ts'
import { isWhole } from './whole-number.ts'

/** How a subscriber is served. */
export interface ListenOptions {
  /**
   * Called when notifications are missing, in their place among the others: read again what they told of. What it throws is
   * reported as a handler's failure is. @default a warning to the logger
   */
  readonly onGap?: ((gap: NotificationGap) => unknown) | undefined
  /**
   * Most notifications that wait for the handler; one more drops the oldest, and {@link onGap} tells. Each holds up to
   * 8 kB, or 1 MB from Redis. @default 10000
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

/** What failed about a notification. */
export type FailureReason = 'gap' | 'handler' | 'payload'

/** Who is told of what a subscriber has missed or failed with. */
export interface SubscriberReport {
  failed(channel: string, reason: FailureReason, error: unknown): void
  warn(message: string): void
}

/** What a {@link Subscriber} belongs to. */
export interface SubscriberPlace {
  readonly report: SubscriberReport
  /** Runs its handler in the context of whoever listens. */
  readonly run: <T>(work: () => T) => T
  readonly onClose: (subscriber: Subscriber) => Promise<void>
}

const defaultBufferSize = 10_000

/** One who listens: a bounded buffer, and a handler that works on it or a loop that reads it. */
export class Subscriber implements NotificationStream<unknown> {
  readonly channel: string
  readonly buffer: NotificationBuffer
  readonly ready: PromiseWithResolvers<void> = Promise.withResolvers()
  /** The connection on which the server has confirmed it. */
  link: object | undefined
  /** Resolves when no handler runs. */
  whenIdle: Promise<void> = Promise.resolve()
  readonly #source: AnyChannel
  readonly #handler: NotificationHandler<unknown> | undefined
  readonly #place: SubscriberPlace
  readonly #onGap: (gap: NotificationGap) => unknown
  #isStarted = false
  #isRunning = false
  #hasEnded = false
  /** Wakes the loops that wait for more. */
  #arrival: PromiseWithResolvers<void> | undefined

  /** Throws `INVALID_ARGUMENT` for a name that is none and for a buffer of no size. */
  constructor(
    source: AnyChannel,
    handler: NotificationHandler<unknown> | undefined,
    { bufferSize = defaultBufferSize, onGap }: ListenOptions,
    place: SubscriberPlace,
  ) {
    if (!isWhole(bufferSize, 1)) {
      throw new DatabaseError('INVALID_ARGUMENT', 'bufferSize of a subscriber must be a whole number from 1.')
    }
    this.channel = channelName(source)
    this.buffer = new NotificationBuffer(bufferSize)
    this.#source = source
    this.#handler = handler
    this.#place = place
    this.#onGap = onGap ?? ((gap) => place.report.warn(gapWarning(this.channel, gap)))
  }

  /** The server has confirmed the subscription on this connection; if it is another one than before, something was missed. */
  confirm(link: object): void {
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
    await this.#place.onClose(this)
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
        } else if (typeof entry !== 'string') await this.#attempt('gap', () => this.#onGap(entry))
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
    const { run } = this.#place
    for (let entry = this.buffer.take(); entry !== undefined; entry = this.buffer.take()) {
      if (typeof entry !== 'string') {
        const gap = entry
        await this.#attempt('gap', () => run(() => this.#onGap(gap)))
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
      this.#place.report.failed(this.channel, 'payload', error)
      return undefined
    }
  }

  async #attempt(reason: FailureReason, work: () => unknown): Promise<void> {
    try {
      await work()
    } catch (error) {
      this.#place.report.failed(this.channel, reason, error)
    }
  }
}

function gapWarning(channel: string, { dropped, disconnected }: NotificationGap): string {
  const reasons = [
    disconnected ? 'what was sent while the connection was away' : undefined,
    dropped > 0 ? `${dropped} that came faster than the handler took them` : undefined,
  ]
  return (
    `a subscriber of the channel "${channel}" has missed notifications: ${reasons.filter(Boolean).join(', and ')}. ` +
    'Give it an onGap that reads again what they tell of'
  )
}
