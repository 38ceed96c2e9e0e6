import type { Socket } from 'node:net'
import { Cluster, Redis, type RedisOptions } from 'ioredis'
import type { RedisTarget } from '../core/config.ts'
import { settleWithin } from '../core/deadline.ts'
import { DatabaseError } from '../core/errors.ts'
import { redisConnectTimeoutMs } from '../core/redis-url.ts'
import { type BreakerSettings, type BreakerState, CircuitBreaker, type Verdict } from '../resilience/circuit-breaker.ts'

/** A moment of a {@link RedisClient}. */
export interface RedisClientStats {
  /** Where it is, without credentials. */
  readonly target: string
  /** Whether it takes commands now. */
  readonly isReady: boolean
  readonly breaker: BreakerState
}

/** What a {@link RedisClient} reports. */
export interface RedisObserver {
  /** It takes commands: connected for the first time, or again. */
  onReady?(): void
  onLost?(): void
  onBreaker?(state: BreakerState): void
}

/** A script with its own SHA, sent whole only where the server does not know it. */
export interface Script {
  readonly name: string
  readonly lua: string
}

/** A value of a command or a reply; replies of scripts are bytes, numbers and lists of them. */
export type RedisReply = Buffer | number | null | readonly RedisReply[]

type Connection = Redis | Cluster

// Its constructors take each kind of reply by itself.
type ConnectionOptions = Omit<RedisOptions, 'replyMapping'>

/**
 * A connection to Redis that fails fast: a command never waits for a connection, is never sent twice, and settles
 * within `commandTimeoutMs`. It connects in the background and keeps trying, so that a missing Redis delays nothing. A breaker
 * stops commands to a server that answers none.
 */
export class RedisClient {
  /** The server without credentials. */
  readonly description: string
  /** Whether keys of one script may be anywhere; a cluster wants all of them on one node. */
  readonly isCluster: boolean
  readonly #target: RedisTarget
  readonly #connection: Connection
  readonly #breaker: CircuitBreaker | undefined
  #lastError: Error | undefined
  #isCorked = false

  constructor(target: RedisTarget, breaker: BreakerSettings | false = false, observer: RedisObserver = {}) {
    this.description = target.description
    this.isCluster = target.mode === 'cluster'
    this.#target = target
    this.#connection = openConnection(target)
    this.#breaker =
      breaker === false
        ? undefined
        : new CircuitBreaker(target.description, breaker, verdictOf, (state) => observer.onBreaker?.(state))
    // A node is connected to with its first command, and those behind that would fail.
    this.#connection.on('+node', (node: Redis) => {
      // The cluster tells of it, too.
      node.on('error', () => undefined)
      void node.connect().catch(() => undefined)
    })
    this.#connection.on('error', (error: Error) => {
      this.#lastError = error
    })
    this.#connection.on('ready', () => {
      this.#lastError = undefined
      observer.onReady?.()
    })
    this.#connection.on('close', () => observer.onLost?.())
  }

  /** Whether commands are taken, and what the breaker makes of those that were sent. */
  stats(): RedisClientStats {
    return { target: this.description, isReady: this.isReady, breaker: this.#breaker?.state ?? 'closed' }
  }

  /** Whether commands are taken now. */
  get isReady(): boolean {
    return this.#connection.status === 'ready' && this.#breaker?.state !== 'open'
  }

  /** Makes a script callable by {@link call}. */
  define({ name, lua }: Script): void {
    this.#connection.defineCommand(name, { lua })
  }

  /**
   * Sends a command, or a script that was defined: then the first argument is the number of keys. Never sent a second time.
   * Rejects with `REDIS_UNAVAILABLE`, or `CIRCUIT_OPEN`; a refusal of the server is its own error.
   */
  async call(name: string, ...args: (Buffer | number | string)[]): Promise<RedisReply> {
    // Of a connection that is away ioredis says no more than that it may not be written to; and it is no business of the breaker.
    if (this.#connection.status !== 'ready') throw this.#unavailable(this.#lastError)
    const breaker = this.#breaker
    const send = (): Promise<RedisReply> => this.#send(name, args)
    if (breaker === undefined) return send()
    if (!breaker.isCalm) return breaker.run(send)
    const { generation } = breaker
    try {
      return await send()
    } catch (error) {
      breaker.note(error, generation)
      throw error
    }
  }

  /** All keys that match a glob, some at a time, of all nodes. A key may come twice. */
  async scan(pattern: string, take: (keys: readonly Buffer[]) => Promise<void>): Promise<void> {
    if (this.#connection.status !== 'ready') throw this.#unavailable(this.#lastError)
    const nodes = this.#connection instanceof Cluster ? this.#connection.nodes('master') : [this.#connection]
    for (const node of nodes) {
      let cursor = '0'
      do {
        const [next, keys] = await node
          .scanBuffer(cursor, 'MATCH', pattern, 'COUNT', 500)
          .catch((error: unknown) => Promise.reject(isRefusal(error) ? error : this.#unavailable(error)))
        cursor = next.toString()
        if (keys.length > 0) await take(keys)
      } while (cursor !== '0')
    }
  }

  /** One round trip, in milliseconds, and the server's version. Fails with `REDIS_UNAVAILABLE`. */
  async ping(): Promise<{ readonly latencyMs: number; readonly version: string | undefined }> {
    await this.#ready()
    const start = performance.now()
    const info = await this.#send('info', ['server'])
    const version = Buffer.isBuffer(info) ? /redis_version:(\S+)/.exec(info.toString())?.[1] : undefined
    return { latencyMs: performance.now() - start, version }
  }

  /** Says goodbye, or cuts the connection when there is no answer. Never rejects. */
  async close(): Promise<void> {
    this.#breaker?.shutdown()
    try {
      // `quit` hangs on a frozen server.
      if (this.#connection.status === 'ready') {
        await settleWithin(this.#connection.quit(), this.#target.commandTimeoutMs, () => new Error('no answer'))
      }
    } catch {
      // Cut below.
    } finally {
      this.#connection.disconnect()
    }
  }

  async #send(name: string, args: readonly (Buffer | number | string)[]): Promise<RedisReply> {
    this.#cork()
    try {
      const commands = this.#connection as unknown as Record<string, (...args: unknown[]) => Promise<RedisReply>>
      return await (commands[`${name}Buffer`] as (typeof commands)[string]).apply(this.#connection, [...args])
    } catch (error) {
      throw isRefusal(error) ? error : this.#unavailable(error)
    }
  }

  /** All commands of a tick leave in one write, which costs more than all the rest of a command. */
  #cork(): void {
    if (this.#isCorked || this.#connection instanceof Cluster) return
    // Its declarations leave out what it writes to.
    const { stream } = this.#connection as unknown as { readonly stream?: Socket }
    if (stream === undefined) return
    this.#isCorked = true
    stream.cork()
    process.nextTick(() => {
      this.#isCorked = false
      stream.uncork()
    })
  }

  /** The first connection may still be on its way when the first command comes. */
  #ready(): Promise<void> {
    if (this.#connection.status === 'ready') return Promise.resolve()
    const connection = this.#connection
    const ready = Promise.withResolvers<void>()
    const onReady = (): void => ready.resolve()
    const onFailure = (): void => ready.reject(this.#unavailable(this.#lastError))
    connection.once('ready', onReady)
    connection.once('close', onFailure)
    const { commandTimeoutMs } = this.#target
    return settleWithin(ready.promise, commandTimeoutMs, () => this.#unavailable(this.#lastError)).finally(() => {
      connection.off('ready', onReady)
      connection.off('close', onFailure)
    })
  }

  #unavailable(cause: unknown): DatabaseError {
    const reason =
      cause instanceof Error ? ((cause as NodeJS.ErrnoException).code ?? firstWords(cause.message)) : 'no connection'
    return new DatabaseError(
      'REDIS_UNAVAILABLE',
      `Redis at ${this.description} did not answer within ${this.#target.commandTimeoutMs} ms (${reason}). Check that it runs; queries go on without it.`,
      { cause },
    )
  }
}

/** A connection of its own for a subscriber, which is not connected again by itself; to one of the nodes of a cluster. */
export function openSubscriberConnection(target: RedisTarget, attempt: number): Redis {
  const node = target.hosts[attempt % target.hosts.length]
  return new Redis({
    ...(target.mode === 'sentinel' ? sentinelOptions(target) : node),
    ...connectionOptions(target),
    // A subscriber is silent for as long as nothing happens.
    socketTimeout: undefined,
    lazyConnect: true,
    retryStrategy: () => null,
    autoResubscribe: false,
  })
}

function openConnection(target: RedisTarget): Connection {
  const profile = connectionOptions(target)
  if (target.mode === 'sentinel') return new Redis({ ...sentinelOptions(target), ...profile })
  if (target.mode === 'standalone') return new Redis({ ...target.hosts[0], ...profile })
  return new Cluster([...target.hosts], {
    redisOptions: profile,
    enableOfflineQueue: false,
    // All three repeat a command whose connection was lost.
    retryDelayOnFailover: 0,
    retryDelayOnClusterDown: 0,
    retryDelayOnTryAgain: 0,
    slotsRefreshTimeout: 1_000,
    clusterRetryStrategy: pauseBeforeAttempt,
  })
}

function connectionOptions({ username, password, database, tls, commandTimeoutMs }: RedisTarget): ConnectionOptions {
  return {
    ...(username !== undefined && { username }),
    ...(password !== undefined && { password: password.reveal() }),
    db: database,
    ...(tls && { tls: {} }),
    // A queue would hold callers for as long as the server is away.
    enableOfflineQueue: false,
    // Both repeat commands that may have been carried out: one INCR counted twice.
    maxRetriesPerRequest: 0,
    autoResendUnfulfilledCommands: false,
    commandTimeout: commandTimeoutMs,
    // A frozen server keeps its socket open; this tears it down.
    socketTimeout: commandTimeoutMs * 2,
    connectTimeout: redisConnectTimeoutMs,
    retryStrategy: pauseBeforeAttempt,
    ...cutSoon,
    // After a failover the old primary answers READONLY: connect again, but do not repeat the command (2 would, for ever).
    reconnectOnError: (error) => (error.message.startsWith('READONLY') ? 1 : false),
  }
}

function sentinelOptions({ hosts, primaryName, sentinelPassword }: RedisTarget): ConnectionOptions {
  return {
    sentinels: [...hosts],
    name: primaryName ?? '',
    ...(sentinelPassword !== undefined && { sentinelPassword: sentinelPassword.reveal() }),
    sentinelRetryStrategy: pauseBeforeAttempt,
  }
}

/** How long a socket may take to end before it is cut: a frozen server never answers. Its declarations leave this out. */
const cutSoon: object = { disconnectTimeout: 100 }

// As long as a process is away, others may keep what it could not invalidate.
const longestPauseMs = 500

function pauseBeforeAttempt(attempt: number): number {
  return Math.min(25 * 2 ** Math.min(attempt, 6), longestPauseMs) * (0.5 + Math.random() / 2)
}

/** What the server itself says, such as WRONGTYPE. */
function isRefusal(error: unknown): error is Error {
  return error instanceof Error && error.name === 'ReplyError' && !unwell.test(error.message)
}

/** It answers, but not the command: it is loading, a replica, out of memory or without its cluster. */
const unwell = /^(?:READONLY|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY|OOM|MISCONF|NOREPLICAS)\b/

function verdictOf(error: unknown): Verdict {
  return isRefusal(error) ? 'healthy' : 'unhealthy'
}

/** What Redis says may go on to quote the arguments of a command. */
function firstWords(message: string): string {
  return message.split(/[:'"]/, 1)[0] ?? ''
}
