import { setTimeout as sleep } from 'node:timers/promises'
import type { Redis } from 'ioredis'
import type { RedisTarget } from '../core/config.ts'
import { settleWithin } from '../core/deadline.ts'
import { openSubscriberConnection } from './client.ts'

/** Who listens to a channel. */
export interface ChannelListener {
  /** Called with each message, in the order in which Redis sent them. */
  onMessage(message: Buffer): void
  /** Redis has confirmed the subscription: what is published from now on arrives. Called again after each loss. */
  onSubscribed(): void
  /** Messages may be missing from now on. */
  onLost(): void
}

const reconnectBaseMs = 20
const reconnectMaxMs = 500
/** How often the connection has to prove that it is alive. */
const pingIntervalMs = 1_000

/**
 * Listens to channels on a connection of its own, and connects again when that is lost: in a cluster to another node, since a
 * message reaches all of them. Never fails; who needs to know is told.
 */
export class RedisSubscriber {
  readonly #target: RedisTarget
  readonly #listeners = new Map<string, Set<ChannelListener>>()
  readonly #closing = new AbortController()
  #connection: Redis | undefined
  #working: Promise<void> | undefined

  constructor(target: RedisTarget) {
    this.#target = target
  }

  /** Listens from now on, and gives what ends that. */
  listen(channel: string, listener: ChannelListener): () => void {
    const listeners = this.#listeners.get(channel) ?? new Set()
    this.#listeners.set(channel, listeners.add(listener))
    // It connects again when that fails.
    if (this.#connection !== undefined) this.#subscribe(this.#connection, channel, [listener]).catch(() => undefined)
    else this.#connect()
    return () => this.#forget(channel, listener)
  }

  /** Ends it. Never rejects. */
  async close(): Promise<void> {
    this.#closing.abort()
    await this.#working
  }

  #connect(): void {
    this.#working ??= this.#keepConnected().finally(() => {
      this.#working = undefined
      // Somebody may have come when it was just about to end.
      if (this.#isWanted) this.#connect()
    })
  }

  async #keepConnected(): Promise<void> {
    const { signal } = this.#closing
    for (let attempt = 0, failures = 0; this.#isWanted; attempt += 1) {
      const connection = openSubscriberConnection(this.#target, attempt)
      // Whatever it is, the connection ends with it.
      connection.on('error', () => undefined)
      const cut = (): void => connection.disconnect()
      signal.addEventListener('abort', cut, { once: true })
      try {
        await connection.connect()
        // Nobody may want it any more.
        if (!this.#isWanted) return
        await this.#serve(connection)
        failures = 0
      } catch {
        failures += 1
      } finally {
        signal.removeEventListener('abort', cut)
        connection.disconnect()
      }
      const pauseMs = Math.min(reconnectBaseMs * 2 ** failures, reconnectMaxMs) * (0.5 + Math.random() / 2)
      await sleep(pauseMs, undefined, { ref: false, signal }).catch(() => undefined)
    }
  }

  get #isWanted(): boolean {
    return !this.#closing.signal.aborted && this.#listeners.size > 0
  }

  /** Until the connection is lost. */
  async #serve(connection: Redis): Promise<void> {
    const ended = new Promise<void>((resolve) => connection.once('close', resolve))
    connection.on('messageBuffer', (channel: Buffer, message: Buffer) => {
      for (const listener of this.#listeners.get(channel.toString()) ?? []) listener.onMessage(message)
    })
    const pinging = setInterval(() => void this.#ping(connection), pingIntervalMs)
    pinging.unref()
    try {
      // From here on, whoever comes subscribes on it.
      this.#connection = connection
      await Promise.all([...this.#listeners].map(([channel, all]) => this.#subscribe(connection, channel, [...all])))
      await ended
    } finally {
      clearInterval(pinging)
      this.#connection = undefined
      for (const listeners of this.#listeners.values()) for (const listener of listeners) listener.onLost()
    }
  }

  async #subscribe(connection: Redis, channel: string, listeners: Iterable<ChannelListener>): Promise<void> {
    try {
      await connection.subscribe(channel)
      for (const listener of listeners) listener.onSubscribed()
    } catch (error) {
      connection.disconnect()
      throw error
    }
  }

  /** A link that is silent because it is dead looks like one on which nothing happens. */
  async #ping(connection: Redis): Promise<void> {
    try {
      await settleWithin(connection.ping(), pingIntervalMs, () => new Error('no answer'))
    } catch {
      connection.disconnect()
    }
  }

  #forget(channel: string, listener: ChannelListener): void {
    const listeners = this.#listeners.get(channel)
    if (listeners === undefined || !listeners.delete(listener) || listeners.size > 0) return
    this.#listeners.delete(channel)
    if (this.#listeners.size === 0) this.#connection?.disconnect()
    else this.#connection?.unsubscribe(channel).catch(() => undefined)
  }
}
