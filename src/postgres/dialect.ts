import type { Dialect } from 'kysely'
import type { ConnectionSource } from './connection.ts'
import { Engine, type EngineSettings } from './engine.ts'
import { EngineDialect } from './executor.ts'
import { Transactions } from './transaction.ts'

/** A dialect with one connection at a time, for short work such as reading the catalog. */
export function sourceDialect(source: ConnectionSource): Dialect {
  const settings: EngineSettings = {
    pool: {
      max: 1,
      min: 0,
      maxWaiting: 1_000,
      acquireTimeoutMs: 30_000,
      idleTimeoutMs: 0,
      maxLifetimeMs: 0,
      drainTimeoutMs: 1_000,
      leakWarningMs: 0,
    },
    queryTimeoutMs: false,
    pipeline: false,
    preparedStatements: { threshold: false, max: 0 },
    retry: false,
    breaker: false,
  }
  const engine = new Engine(source, settings)
  const transactions = new Transactions(engine, () => undefined)
  return new EngineDialect(() => Promise.resolve({ engine, transactions }))
}
