import {
  type AliasedExpression,
  AliasNode,
  ColumnNode,
  createQueryId,
  type Expression,
  ExpressionWrapper,
  IdentifierNode,
  isAliasedExpression,
  type OperationNode,
  PostgresQueryCompiler,
  type RawBuilder,
  RawNode,
  ReferenceNode,
  type SelectQueryNode,
  type SelectType,
  sql,
  type SqlBool,
  TableNode,
  ValueNode,
} from 'kysely'
import type { DatabaseError } from '../core/errors.ts'
import { quoted, refusal as refusalOf, wrapIt } from './select-node.ts'

/** Where the nulls of a column stand in an order: before all values, after them, or `none` where the query leaves no null. */
export type Nulls = 'first' | 'last' | 'none'

/** Says where nulls stand. */
export interface NullsRule {
  readonly nulls: Nulls
}

/** The columns of a query's tables whose type admits null, or those whose type does not. */
export type OrderColumn<DB, TB extends keyof DB, Kind extends 'never null' | 'nullable'> = {
  [Table in TB & string]: {
    [Column in keyof DB[Table] & string]: (
      null extends SelectType<DB[Table][Column]> ? 'nullable' : 'never null'
    ) extends Kind
      ? Column | `${Table}.${Column}`
      : never
  }[keyof DB[Table] & string]
}[TB & string]

/**
 * One step of an order: a column of the query's tables, or an expression with a name, its direction, and where nulls stand; that
 * has to be said where the type admits null.
 */
export type OrderTerm<DB, TB extends keyof DB> =
  | readonly [
      by: AliasedExpression<{}, string> | OrderColumn<DB, TB, 'never null'>,
      direction: 'asc' | 'desc',
      rule?: NullsRule,
    ]
  | readonly [
      by: AliasedExpression<unknown, string> | OrderColumn<DB, TB, 'nullable'>,
      direction: 'asc' | 'desc',
      rule: NullsRule,
    ]

/** A step of an order as it is worked with. */
export interface Term {
  /** What the caller calls it. */
  readonly name: string
  readonly expression: Expression<unknown>
  readonly isDescending: boolean
  /** Undefined where no null is expected. */
  readonly nulls: 'first' | 'last' | undefined
  /** What makes it the same as another: its SQL and the parameters in it. */
  readonly identity: readonly unknown[]
}

/** The values by which one row is ordered, as the server writes them. */
export type Place = readonly (string | null)[]

/** The terms of a call, checked. `INVALID_ARGUMENT` for what is none, or could not be compared as it is ordered. */
export function termsOf(by: unknown, select: SelectQueryNode): readonly Term[] {
  if (!Array.isArray(by) || by.length === 0) throw refusal('by must be a list of at least one [column, direction]')
  const terms = by.map((term: unknown) => termOf(term, select))
  const twice = terms.find(({ name }, index) => terms.findIndex((other) => other.name === name) !== index)
  if (twice !== undefined) throw refusal(`by has ${quoted(twice.name)} twice`)
  return terms
}

function termOf(given: unknown, select: SelectQueryNode): Term {
  const [by, direction, rule, ...rest]: readonly unknown[] = Array.isArray(given) ? given : []
  if (rest.length > 0) throw refusal('a part of by is [column, direction, { nulls }] and has no more')
  const { name, expression, identity: what } = namedExpression(by, select)
  if (direction !== 'asc' && direction !== 'desc') throw refusal(`the direction of ${quoted(name)} must be asc or desc`)
  const nulls = nullsOf(name, rule)
  const identity = [what, direction, nulls]
  return { name, expression, isDescending: direction === 'desc', nulls: nulls === 'none' ? undefined : nulls, identity }
}

const compiler = new PostgresQueryCompiler()

/** The SQL of an expression with its parameters. */
function identityOf(node: OperationNode): readonly unknown[] {
  const { sql: text, parameters } = compiler.compileQuery(RawNode.createWithChild(node), createQueryId())
  return [text, ...parameters.map(textOf)]
}

function textOf(parameter: unknown): string {
  return JSON.stringify(parameter, (_, inner: unknown) => (typeof inner === 'bigint' ? String(inner) : inner))
}

function nullsOf(name: string, rule: unknown): Nulls {
  if (rule === undefined) return 'none'
  const nulls = typeof rule === 'object' && rule !== null && 'nulls' in rule ? rule.nulls : undefined
  if (nulls === 'first' || nulls === 'last' || nulls === 'none') return nulls
  throw refusal(`nulls of ${quoted(name)} must be first, last or none`)
}

type Named = Pick<Term, 'expression' | 'identity' | 'name'>

function namedExpression(by: unknown, select: SelectQueryNode): Named {
  if (typeof by === 'string') return { name: by, expression: columnOf(by, select), identity: [by] }
  if (typeof by !== 'object' || by === null || !isAliasedExpression(by)) {
    throw refusal("by takes names of columns, or expressions with a name, such as sql`lower(name)`.as('name')")
  }
  const { alias, node } = by.toOperationNode()
  const name = IdentifierNode.is(alias) ? alias.name : ''
  if (name === '') throw refusal('the name of an expression must be text that is not empty')
  if (select.groupBy !== undefined) {
    throw refusal(`${quoted(name)} is an expression, and the query groups its rows. ${wrapIt}`)
  }
  const clear = unambiguous(name, node, select)
  return { name, expression: new ExpressionWrapper(clear), identity: [name, ...identityOf(clear)] }
}

function columnOf(reference: string, select: SelectQueryNode): Expression<unknown> {
  const parts = reference.split('.')
  if (parts.length > 3 || parts.includes('')) throw refusal(`${quoted(reference)} is no column`)
  const [column = '', table, schema] = parts.toReversed()
  if (table === undefined) return new ExpressionWrapper(qualified(column, select))
  const tableNode = schema === undefined ? TableNode.create(table) : TableNode.createWithSchema(schema, table)
  return new ExpressionWrapper(ReferenceNode.create(ColumnNode.create(column), tableNode))
}

/**
 * In ORDER BY a bare name is that of a selected column if there is one, and in WHERE it never is: `select lower(name) as name`
 * would be ordered by one and compared by the other.
 */
function qualified(column: string, { from, joins = [] }: SelectQueryNode): ReferenceNode {
  const [source, ...others] = from?.froms ?? []
  const table = source && tableOf(source)
  if (table === undefined || others.length + joins.length > 0) {
    throw refusal(`${quoted(column)} could be of several tables. Say which: "posts.id"`)
  }
  return ReferenceNode.create(ColumnNode.create(column), table)
}

function tableOf(source: OperationNode): TableNode | undefined {
  if (TableNode.is(source)) return source
  return AliasNode.is(source) && IdentifierNode.is(source.alias) ? TableNode.create(source.alias.name) : undefined
}

function unambiguous(name: string, node: OperationNode, select: SelectQueryNode): OperationNode {
  if (ReferenceNode.is(node) && node.table === undefined && ColumnNode.is(node.column)) {
    return qualified(node.column.column.name, select)
  }
  if (RawNode.is(node)) {
    const [before, after, ...more] = node.sqlFragments
    const [child] = node.parameters
    // What sql.ref and sql.id make: nothing but what is in it.
    if (child !== undefined && more.length === 0 && before?.trim() === '' && after?.trim() === '') {
      return unambiguous(name, child, select)
    }
    // And a whole number is the place of a selected column.
    if (child === undefined && /^\s*(?:\w+|"[^"]+")\s*$/.test(before ?? '')) {
      throw refusal(`${quoted(name)} is a bare name. Say of which table, or give the name of the column as text`)
    }
  }
  if (IdentifierNode.is(node)) return qualified(node.name, select)
  if (ValueNode.is(node)) throw refusal(`${quoted(name)} is a value, by which no row comes before another`)
  return node
}

/** The names of the tables of a query, which a cursor is bound to as well. */
export function tablesOf({ from, joins = [] }: SelectQueryNode): readonly string[] {
  return [...(from?.froms ?? []), ...joins.map(({ table }) => table)].map(nameOf)
}

function nameOf(source: OperationNode): string {
  if (AliasNode.is(source)) {
    const alias = IdentifierNode.is(source.alias) ? source.alias.name : ''
    return `${TableNode.is(source.node) ? nameOf(source.node) : ''} as ${alias}`
  }
  if (!TableNode.is(source)) return ''
  const { schema, identifier } = source.table
  return schema === undefined ? identifier.name : `${schema.name}.${identifier.name}`
}

/** The same order from its end to its beginning. */
export function reversed(terms: readonly Term[]): readonly Term[] {
  return terms.map((term) => ({
    ...term,
    isDescending: !term.isDescending,
    nulls: term.nulls && (term.nulls === 'first' ? 'last' : 'first'),
  }))
}

/** All that a row is ordered by as one text; `null` and text stay apart in it. */
export function placeExpression(terms: readonly Term[]): RawBuilder<string> {
  const texts = terms.map(({ expression }) => sql`cast(${expression} as text)`)
  return sql<string>`cast(json_build_array(${sql.join(texts)}) as text)`
}

/**
 * Which rows come after a place. Where all terms have one direction it is a comparison of rows, which is one range of an index;
 * else each term is compared where those before it are equal, and the first terms bound the range.
 */
export function rowsAfter(terms: readonly Term[], place: Place): Expression<SqlBool> {
  const steps = terms.map((term, index) => ({ term, value: place[index] ?? null }))
  const run = leadingRun(steps)
  if (run.length === steps.length) return compareRows(run, '')
  const beyond = steps.reduceRight<Condition>(
    (later, step) => either(comesAfter(step), both(isSame(step), later)),
    false,
  )
  const condition = both(run.length > 0 ? compareRows(run, '=') : comesNotBefore(steps[0]), beyond)
  return typeof condition === 'boolean' ? sql<SqlBool>`${sql.lit(condition)}` : condition
}

interface Step {
  readonly term: Term
  readonly value: string | null
}

/** What is always true or false is left out of the SQL. */
type Condition = Expression<SqlBool> | boolean

/**
 * The first terms that go in one direction and need no word about nulls: there is a value, and what nulls there are come before
 * it, so that a comparison, which is never true of them, leaves them out rightly.
 */
function leadingRun(steps: readonly Step[]): readonly Step[] {
  const isDescending = steps[0]?.term.isDescending
  const end = steps.findIndex(
    ({ term, value }) => term.isDescending !== isDescending || value === null || term.nulls === 'last',
  )
  return end === -1 ? steps : steps.slice(0, end)
}

function compareRows(run: readonly Step[], equal: '' | '='): Expression<SqlBool> {
  const operator = sql.raw(`${run[0]?.term.isDescending ? '<' : '>'}${equal}`)
  const columns = sql.join(run.map(({ term }) => term.expression))
  const values = sql.join(run.map(({ value }) => value))
  return sql<SqlBool>`(${columns}) ${operator} (${values})`
}

function comesAfter({ term, value }: Step): Condition {
  const { expression, nulls } = term
  if (value === null) return nulls === 'first' ? sql<SqlBool>`(${expression}) is not null` : false
  const isBeyond = compareRows([{ term, value }], '')
  return nulls === 'last' ? either(isBeyond, sql<SqlBool>`(${expression}) is null`) : isBeyond
}

function isSame({ term: { expression }, value }: Step): Condition {
  return value === null ? sql<SqlBool>`(${expression}) is null` : sql<SqlBool>`(${expression}) = ${value}`
}

/** A bound for the server to begin at. With nulls at the end there is none: two ranges are not one. */
function comesNotBefore(step: Step | undefined): Condition {
  return step === undefined || step.value === null || step.term.nulls === 'last' || compareRows([step], '=')
}

function both(left: Condition, right: Condition): Condition {
  if (typeof left === 'boolean') return left && right
  if (typeof right === 'boolean') return right && left
  return sql<SqlBool>`(${left} and ${right})`
}

function either(left: Condition, right: Condition): Condition {
  if (typeof left === 'boolean') return left || right
  if (typeof right === 'boolean') return right || left
  return sql<SqlBool>`(${left} or ${right})`
}

/** The `INVALID_ARGUMENT` of a page. */
export function refusal(problem: string): DatabaseError {
  return refusalOf(problem, 'paginate')
}
