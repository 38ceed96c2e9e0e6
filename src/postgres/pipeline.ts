import { setTimeout as sleep } from 'node:timers/promises'
import { Channel } from './channel.ts'
import type { PreparationPolicy } from './prepared-statements.ts'
import { type ConnectionSource, cutClient } from './connection.ts'
import type { StatementText } from './statement-text.ts'

/** How single statements share connections. */
export interface PipelineSettings {
  readonly connections: number
  /** Most statements in flight on one of them. */
  readonly depth: number
}

/** A moment of a {@link Pipeline}. */
export interface PipelineStats {
  readonly connections: number
  readonly inFlight: number
}

/** A text that takes longer than this goes to a connection of its own, for nobody to wait behind it. */
const slowMs = 20
/** A connection whose present statement runs longer than this gets no others. */
const stallMs = 5
/** Pauses between attempts to replace a lost connection. */
const reconnectBaseMs = 50
const reconnectMaxMs = 2_000

/**
 * A few shared connections on which independent single statements are sent without waiting for one another. It never
 * makes anyone wait: where no connection is fit for a statement, there is none, and the caller takes one of the pool.
 */
export class Pipeline {
  readonly #source: ConnectionSource
  readonly #settings: PipelineSettings
  readonly #prepared: PreparationPolicy
  readonly #maxLifetimeMs: number
  readonly #channels: SharedChannel[] = []
  #opening = 0
  readonly #connecting = new AbortController()
  #isClosed = false

  constructor(
    source: ConnectionSource,
    settings: PipelineSettings,
    prepared: PreparationPolicy,
    maxLifetimeMs: number,
  ) {
    this.#source = source
    this.#settings = settings
    this.#prepared = prepared
    this.#maxLifetimeMs = maxLifetimeMs
    this.#refill()
  }

  get channels(): readonly Channel[] {
    return this.#channels
  }

  stats(): PipelineStats {
    const inFlight = this.#channels.reduce((sum, channel) => sum + channel.inFlight.length, 0)
    return { connections: this.#channels.length, inFlight }
  }

  /** The connection for a statement now, if one is fit. */
  pick(text: StatementText): Channel | undefined {
    if (text.meanMs > slowMs || !text.isSingle) return undefined
    let best: SharedChannel | undefined
    for (const channel of this.#channels) {
      if (best === undefined || channel.inFlight.length < best.inFlight.length) best = channel
    }
    if (best === undefined || best.inFlight.length === 0) return this.#fresh(best)
    if (best.inFlight.length >= this.#settings.depth) return undefined
    // The least loaded may be so because it is stuck; then the pool is the safe place.
    return performance.now() - best.busySince > stallMs ? undefined : best
  }

  /** Ends all connections once they are idle and opens others: the server is not what it was. */
  drain(): void {
    for (const channel of this.#channels.splice(0)) void retire(channel)
    this.#refill()
  }

  /** Takes no more, waits up to `drainTimeoutMs` for what is in flight, then cuts. */
  async close(drainTimeoutMs: number): Promise<void> {
    this.#isClosed = true
    this.#connecting.abort()
    const channels = this.#channels.splice(0)
    const idle = Promise.all(channels.map((channel) => channel.whenIdle()))
    await Promise.race([idle, sleep(drainTimeoutMs, undefined, { ref: false })])
    await Promise.all(channels.map((channel) => channel.end()))
  }

  /** An idle connection that has reached its age is replaced at the moment it would be used. */
  #fresh(channel: SharedChannel | undefined): Channel | undefined {
    if (channel === undefined || performance.now() < channel.expires) return channel
    this.#remove(channel)
    void channel.end()
    return undefined
  }

  #refill(): void {
    while (!this.#isClosed && this.#channels.length + this.#opening < this.#settings.connections) void this.#open()
  }

  async #open(): Promise<void> {
    this.#opening += 1
    for (let failures = 0; !this.#isClosed; failures += 1) {
      if (failures > 0) {
        const bound = Math.min(reconnectBaseMs * 2 ** failures, reconnectMaxMs)
        // Neither a hurry nor a reason to keep the process alive: the pool serves meanwhile.
        await sleep(bound * (0.5 + Math.random() / 2), undefined, { ref: false })
      }
      try {
        const client = await this.#source.connect({ pipeline: true, signal: this.#connecting.signal })
        this.#opening -= 1
        const channel = new SharedChannel(client, this.#prepared, () => this.#remove(channel), true)
        const lifetimeMs = this.#maxLifetimeMs === 0 ? Number.POSITIVE_INFINITY : this.#maxLifetimeMs
        channel.expires = performance.now() + lifetimeMs * (1 - Math.random() / 10)
        if (this.#isClosed) cutClient(client)
        else this.#channels.push(channel)
        return
      } catch {
        // Whoever needs a connection now gets one from the pool, or its error.
      }
    }
    this.#opening -= 1
  }

  #remove(channel: SharedChannel): void {
    const index = this.#channels.indexOf(channel)
    if (index < 0) return
    this.#channels.splice(index, 1)
    this.#refill()
  }
}

class SharedChannel extends Channel {
  /** As `performance.now()`. */
  expires = Number.POSITIVE_INFINITY
}

async function retire(channel: Channel): Promise<void> {
  await channel.whenIdle()
  await channel.end()
}
