import { type QueryExecutorProvider, sql } from 'kysely'
import type { ResolvedConfig } from '../core/config.ts'
import { settleWithin } from '../core/deadline.ts'
import { DatabaseError, isDatabaseError } from '../core/errors.ts'
import type { Engine } from '../postgres/engine.ts'
import type { Replicas } from '../postgres/replicas.ts'
import { toDatabaseError } from '../postgres/sqlstate.ts'
import type { RedisClient } from '../redis/client.ts'
import type { Health, PostgresHealth, ServerHealth } from './database.ts'

/** How long each server is waited for. */
export const healthTimeoutMs = 2_000

const askHealth = sql`select current_setting('server_version') as version, current_setting('transaction_read_only') as read_only`

interface HealthParts {
  readonly engine: Engine
  readonly replicas: Replicas | undefined
  readonly redis: RedisClient | undefined
  readonly db: QueryExecutorProvider
  readonly config: Pick<ResolvedConfig, 'postgres'>
}

/** Asks the servers of a database how they are. */
export class HealthCheck {
  readonly #parts: HealthParts

  constructor(parts: HealthParts) {
    this.#parts = parts
  }

  /** Never rejects for a server that is down. */
  async check(): Promise<Health> {
    const [postgres, redis] = await Promise.all([this.#postgres(), this.#redis()])
    const replicas = this.#parts.replicas
      ?.stats()
      .map(({ target, state, role, lagMs }) => ({ target, state, role, lagMs }))
    const isDegraded = redis?.status === 'down' || replicas?.some(({ state }) => state !== 'up') === true
    const status = postgres.status === 'down' ? 'down' : isDegraded ? 'degraded' : 'up'
    return { status, postgres, ...(replicas && { replicas }), ...(redis && { redis }) }
  }

  async #postgres(): Promise<PostgresHealth> {
    const { engine, config } = this.#parts
    const embedded = config.postgres.kind === 'embedded'
    const answer = await probe(engine.source.description, () => this.#askPostgres())
    return { embedded, ...answer, pool: engine.pool.stats() }
  }

  async #askPostgres(): Promise<Pick<PostgresHealth, 'latencyMs' | 'readOnly' | 'version'>> {
    const { engine, db } = this.#parts
    const session = await engine.pool.acquire({ purpose: 'a health check' })
    let failure: unknown
    try {
      const start = performance.now()
      const { sql: text, query } = askHealth.compile(db)
      const request = { text: engine.texts.get(text, query), values: [], deadline: start + healthTimeoutMs }
      const { rows } = await engine.sendOn<{ version: string; read_only: string }>(session, request, undefined)
      const latencyMs = performance.now() - start
      const [row] = rows
      return { latencyMs, ...(row && { version: row.version, readOnly: row.read_only === 'on' }) }
    } catch (cause) {
      failure = toDatabaseError(cause, { target: engine.source.description })
      throw failure
    } finally {
      engine.giveBack(session, failure)
    }
  }

  async #redis(): Promise<ServerHealth | undefined> {
    const { redis } = this.#parts
    if (!redis) return undefined
    return probe(redis.description, async () => {
      const { latencyMs, version } = await redis.ping()
      return { latencyMs, ...(version !== undefined && { version }) }
    })
  }
}

async function probe<Answer extends object>(
  target: string,
  ask: () => Promise<Answer>,
): Promise<Answer & ServerHealth> {
  const tooSlow = (): DatabaseError =>
    new DatabaseError('QUERY_TIMEOUT', `${target} did not answer a health check within ${healthTimeoutMs} ms.`)
  try {
    return { status: 'up', target, ...(await settleWithin(ask(), healthTimeoutMs, tooSlow)) }
  } catch (error) {
    if (!isDatabaseError(error)) throw error
    return { status: 'down', target, error: { code: error.code, message: error.message } } as Answer & ServerHealth
  }
}
