import { type CompiledQuery, type Expression, expressionBuilder, type QueryResult } from 'kysely'
import { DatabaseError } from '../core/errors.ts'
import type { CallOptions } from './engine.ts'

/**
 * Stands for the parameters of a query that is prepared: `p('email')` is an expression of the type that `Values` gives
 * it, so that a use where it does not fit does not compile.
 */
export type Parameters<Values extends object> = <Name extends keyof Values & string>(
  name: Name,
) => Expression<Values[Name]>

/** A query that was built and compiled once. Concurrent calls are independent of one another. */
export interface PreparedQuery<Values extends object, Row> {
  /** All rows for these values. `INVALID_ARGUMENT` when one is missing. */
  (values: Values, options?: CallOptions): Promise<Row[]>
  /** The first row, or `undefined`. */
  first(values: Values, options?: CallOptions): Promise<Row | undefined>
  readonly sql: string
}

/** Holds the place of a value. */
class Placeholder {
  readonly name: string

  constructor(name: string) {
    this.name = name
  }
}

/** Compiles a query once, with places for its values. */
export function prepareQuery<Values extends object, Row>(
  compile: (parameter: Parameters<Values>) => CompiledQuery<Row>,
  run: (query: CompiledQuery<Row>, options: CallOptions | undefined) => Promise<QueryResult<Row>>,
): PreparedQuery<Values, Row> {
  const parameter = (name: string): Expression<unknown> => expressionBuilder<object>().val(new Placeholder(name))
  const { query, queryId, sql, parameters } = compile(parameter as Parameters<Values>)
  const names = parameters.map((value) => (value instanceof Placeholder ? value.name : undefined))

  const fill = (values: Values): unknown[] => {
    const filled = [...parameters]
    for (let index = 0; index < names.length; index += 1) {
      const name = names[index]
      if (name === undefined) continue
      const value = (values as Record<string, unknown>)[name]
      if (value === undefined) throw missing(name, sql)
      filled[index] = value
    }
    return filled
  }
  const all = async (values: Values, options?: CallOptions): Promise<Row[]> => {
    const { rows } = await run({ query, queryId, sql, parameters: fill(values) }, options)
    return rows
  }
  return Object.assign(all, {
    sql,
    first: async (values: Values, options?: CallOptions): Promise<Row | undefined> => (await all(values, options))[0],
  })
}

function missing(name: string, sql: string): DatabaseError {
  return new DatabaseError('INVALID_ARGUMENT', `The prepared query was called without ${name}. Give it, or null.`, {
    sql,
  })
}
