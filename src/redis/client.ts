import { Redis } from 'ioredis'
import type { RedisTarget } from '../core/config.ts'
import { settleWithin } from '../core/deadline.ts'
import { DatabaseError } from '../core/errors.ts'

/**
 * A connection to Redis that fails fast: a command never waits for a connection, is never sent twice, and settles
 * within `commandTimeoutMs`. It connects in the background and keeps trying, so that a missing Redis delays nothing.
 */
export class RedisClient {
  /** The server without credentials. */
  readonly description: string
  readonly #connection: Redis
  readonly #commandTimeoutMs: number
  #lastError: Error | undefined

  constructor(target: RedisTarget) {
    this.description = target.description
    this.#commandTimeoutMs = target.commandTimeoutMs
    this.#connection = new Redis(target.url.reveal(), {
      // A queue would hold callers for as long as the server is away.
      enableOfflineQueue: false,
      // Both repeat commands that may have been carried out: one INCR counted twice.
      maxRetriesPerRequest: 0,
      autoResendUnfulfilledCommands: false,
      commandTimeout: target.commandTimeoutMs,
      // A frozen server keeps its socket open; this tears it down.
      socketTimeout: target.commandTimeoutMs * 2,
      connectTimeout: 1_000,
      retryStrategy: (attempt) => Math.min(50 * 2 ** Math.min(attempt, 6), 2_000) * (0.5 + Math.random() / 2),
      // After a failover the old primary answers READONLY: connect again, but do not repeat the command (2 would, for ever).
      reconnectOnError: (error) => (error.message.startsWith('READONLY') ? 1 : false),
    })
    this.#connection.on('error', (error: Error) => {
      this.#lastError = error
    })
    this.#connection.on('ready', () => {
      this.#lastError = undefined
    })
  }

  /** One round trip, in milliseconds, and the server's version. Fails with `REDIS_UNAVAILABLE`. */
  async ping(): Promise<{ readonly latencyMs: number; readonly version: string | undefined }> {
    await this.#ready()
    const start = performance.now()
    try {
      const info = await this.#connection.info('server')
      return { latencyMs: performance.now() - start, version: /redis_version:(\S+)/.exec(info)?.[1] }
    } catch (error) {
      throw this.#unavailable(error)
    }
  }

  /** Says goodbye, or cuts the connection when there is no answer. Never rejects. */
  async close(): Promise<void> {
    try {
      // `quit` hangs on a frozen server.
      if (this.#connection.status === 'ready') {
        await settleWithin(this.#connection.quit(), this.#commandTimeoutMs, () => new Error('no answer'))
      }
    } catch {
      // Cut below.
    } finally {
      this.#connection.disconnect()
    }
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
    return settleWithin(ready.promise, this.#commandTimeoutMs, () => this.#unavailable(this.#lastError)).finally(() => {
      connection.off('ready', onReady)
      connection.off('close', onFailure)
    })
  }

  #unavailable(cause: unknown): DatabaseError {
    const reason =
      cause instanceof Error ? ((cause as NodeJS.ErrnoException).code ?? firstWords(cause.message)) : 'no connection'
    return new DatabaseError(
      'REDIS_UNAVAILABLE',
      `Redis at ${this.description} did not answer within ${this.#commandTimeoutMs} ms (${reason}). Check that it runs; queries go on without it.`,
      { cause },
    )
  }
}

/** What Redis says may go on to quote the arguments of a command. */
function firstWords(message: string): string {
  return message.split(/[:'"]/, 1)[0] ?? ''
}
