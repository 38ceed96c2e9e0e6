import {
  AndNode,
  type KyselyPlugin,
  type OperationNode,
  ParensNode,
  RawNode,
  type RootOperationNode,
  type SelectQueryBuilder,
  SelectQueryNode,
  WhereNode,
} from 'kysely'
import { DatabaseError } from '../core/errors.ts'

/** A row of which the compiler knows nothing. */
export type OpenRow = Record<string, unknown>

/** A query of whose tables and columns the compiler knows nothing. */
export type OpenQuery = SelectQueryBuilder<Record<string, OpenRow>, string, OpenRow>

/** Kysely's tree of a select as it will be sent, after the plugins. */
export function selectNodeOf(query: OpenQuery): SelectQueryNode {
  return query.toOperationNode()
}

/**
 * The same query with another tree: where it runs, its plugins and its schema stay. Kysely gives the executor of a query to
 * nobody, and a plugin that comes last sees the tree as it will be sent.
 */
export function rewritten(query: OpenQuery, rewrite: (select: SelectQueryNode) => SelectQueryNode): OpenQuery {
  const plugin: KyselyPlugin = {
    transformQuery: ({ node }): RootOperationNode => (SelectQueryNode.is(node) ? rewrite(node) : node),
    transformResult: ({ result }) => Promise.resolve(result),
  }
  return query.withPlugin(plugin)
}

/** Whether a condition that is added would bind to a part of one that was written by hand: `a or b and c`. */
export function hasBareCondition({ where }: SelectQueryNode): boolean {
  return where !== undefined && isBare(where.where)
}

function isBare(node: OperationNode): boolean {
  return AndNode.is(node) ? isBare(node.left) || isBare(node.right) : RawNode.is(node)
}

/** The query with its conditions written by hand in parentheses. */
export function withParentheses(select: SelectQueryNode): SelectQueryNode {
  return select.where === undefined ? select : { ...select, where: WhereNode.create(parenthesized(select.where.where)) }
}

/** A condition of which no part binds to what is added to it. */
export function parenthesized(node: OperationNode): OperationNode {
  if (AndNode.is(node)) return AndNode.create(parenthesized(node.left), parenthesized(node.right))
  return RawNode.is(node) ? ParensNode.create(node) : node
}

/** What to do with a query to which nothing can be added. */
export const wrapIt: string = "Page through it as a table: db.selectFrom(query.as('page')).selectAll()"

/** The `INVALID_ARGUMENT` of a call. */
export function refusal(problem: string, caller: string): DatabaseError {
  return new DatabaseError('INVALID_ARGUMENT', `${caller}: ${problem}.`)
}

/** A name as messages show it. */
export function quoted(name: string): string {
  return JSON.stringify(name.length > 60 ? `${name.slice(0, 60)}…` : name)
}
