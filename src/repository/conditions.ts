import { type Expression, type ExpressionBuilder, type RawBuilder, type SqlBool, sql } from 'kysely'

/** What a value of a column can be compared with in an object of conditions. */
export type Comparable = string | number | bigint | boolean | Date | Uint8Array

/**
 * The rows that match: a property equals a value, is one of a list, is null, or compares as {@link op} says; or anything that
 * Kysely's expressions can say. An empty list matches nothing, an empty object everything.
 */
export type Where<DB, Table extends keyof DB, Entity> =
  | Conditions<Entity>
  | ((row: ExpressionBuilder<DB, Table>) => Expression<SqlBool>)

/** Conditions by property, all of which a row has to meet. */
export type Conditions<Entity> = {
  readonly [Property in keyof Entity as Entity[Property] extends Comparable | null ? Property : never]?:
    | Entity[Property]
    | readonly NonNullable<Entity[Property]>[]
    | Comparison<NonNullable<Entity[Property]>>
}

/** The other values of a comparison, as they are sent: mapped to what the column holds. */
type Operand = (value: unknown) => unknown

/**
 * A comparison of {@link op}. Only kanta's functions make one: whatever comes out of a request, as JSON or from a query string, is
 * no instance of this class and cannot become an operator.
 */
export class Comparison<out Value> {
  /** What it compares; for the compiler only. */
  declare protected readonly value: Value
  /** @internal */
  readonly toSql: (column: Expression<unknown>, operand: Operand) => Expression<SqlBool>

  /** @internal */
  constructor(toSql: (column: Expression<unknown>, operand: Operand) => Expression<SqlBool>) {
    this.toSql = toSql
  }
}

/** The functions of {@link op}. */
export interface Operators {
  gt<Value extends Comparable>(value: Value): Comparison<Value>
  gte<Value extends Comparable>(value: Value): Comparison<Value>
  lt<Value extends Comparable>(value: Value): Comparison<Value>
  lte<Value extends Comparable>(value: Value): Comparison<Value>
  /** Both ends are part of it. */
  between<Value extends Comparable>(low: Value, high: Value): Comparison<Value>
  /** A pattern with `%` for any text and `_` for one character, which a backslash before them takes literally. */
  like(pattern: string): Comparison<string>
  /** {@link like}, whatever the case of the letters. */
  ilike(pattern: string): Comparison<string>
  /**
   * All rows that the condition does not match, those without a value among them: `not(5)` finds null, as `<> 5` in SQL would
   * not; `not(null)` finds those that have a value.
   */
  not(condition: null): Comparison<never>
  not<Value extends Comparable>(condition: Value | readonly Value[] | Comparison<Value>): Comparison<Value>
}

const compare =
  (operator: string) =>
  (value: Comparable): Comparison<never> =>
    new Comparison((column, operand) => sql<SqlBool>`${column} ${sql.raw(operator)} ${operand(value)}`)

/**
 * Comparisons for the conditions of a {@link Repository} and its kind. They are functions and not keys of an object, so that nothing that
 * a request brings can be one. A row without a value matches none of them but `not`.
 *
 * @example
 * ```ts
 * import { createDatabase, op } from 'kanta'
 * import { type DB, ProductRepository } from 'kanta/domain'
 *
 * await using database = await createDatabase<DB>()
 * const products = new ProductRepository(database)
 * await products.findMany({ priceMinor: op.between(1_000, 5_000), stock: op.gt(0), name: op.not(op.ilike('%used%')) })
 * ```
 */
export const op: Operators = {
  gt: compare('>'),
  gte: compare('>='),
  lt: compare('<'),
  lte: compare('<='),
  between: (low, high) =>
    new Comparison((column, operand) => sql<SqlBool>`${column} between ${operand(low)} and ${operand(high)}`),
  like: compare('like'),
  ilike: compare('ilike'),
  not: (condition: unknown): Comparison<never> =>
    new Comparison((column, operand) =>
      condition === null
        ? sql<SqlBool>`${column} is not null`
        : sql<SqlBool>`(${matches(column, condition, operand)}) is not true`,
    ),
}

/** The condition of one property. `operand` checks a value and maps it to what the column holds. */
export function matches(column: Expression<unknown>, condition: unknown, operand: Operand): Expression<SqlBool> {
  if (condition === null) return sql<SqlBool>`${column} is null`
  if (condition instanceof Comparison) return condition.toSql(column, operand)
  if (!Array.isArray(condition)) return sql<SqlBool>`${column} = ${operand(condition)}`
  // One array parameter: lists of any length have the same text and never meet the limit of 65 535 parameters.
  return sql<SqlBool>`${column} = any(${Array.from(condition, operand)})`
}

/** How rows can be ordered. Without more, the server has nulls last in ascending and first in descending order. */
export type OrderDirection = 'asc' | 'desc' | `${'asc' | 'desc'} nulls ${'first' | 'last'}`

const directions: ReadonlySet<unknown> = new Set<OrderDirection>([
  'asc',
  'desc',
  'asc nulls first',
  'asc nulls last',
  'desc nulls first',
  'desc nulls last',
])

/** A part of an ORDER BY, or `undefined` for what is no direction. */
export function orderOf(column: Expression<unknown>, direction: unknown): RawBuilder<unknown> | undefined {
  return directions.has(direction) ? sql`${column} ${sql.raw(String(direction))}` : undefined
}
