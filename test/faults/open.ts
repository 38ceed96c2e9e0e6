import { type RawBuilder, type SelectQueryBuilder } from 'kysely'
import { createDatabase, type Database, type PostgresOptions } from '../../src/index.ts'

/** Opens a database without Redis on this server. */
export function open<DB>(url: string, postgres: Omit<PostgresOptions, 'url'> = {}): Promise<Database<DB>> {
  return createDatabase<DB>({ postgres: { url, ...postgres }, redis: false })
}

/**
 * `select … as value`, built by Kysely: such a statement may share a connection with others, which one that is written
 * by hand does not. Faults have to be survived on both.
 */
export function select<DB, T>(
  database: Database<DB>,
  expression: RawBuilder<T>,
): SelectQueryBuilder<DB, never, { value: T }> {
  return database.db.selectNoFrom(expression.as('value')).$castTo<{ value: T }>()
}
