import {
  AliasNode,
  AndNode,
  BinaryOperationNode,
  type OperationNode,
  OperatorNode,
  type RootOperationNode,
  TableNode,
} from 'kysely'

/** The one column of a table's primary key, and how its values are written down. */
export interface PrimaryKey {
  readonly column: string
  readonly type: 'integer' | 'text' | 'uuid'
}

/** What a statement is about: which rows, as far as its nodes tell. */
export type Rows =
  /** One row by its primary key, whether it is there or not. */
  | { readonly kind: 'row'; readonly key: string }
  /** Rows that were not there before. */
  | { readonly kind: 'new' }
  | { readonly kind: 'any' }

const any: Rows = { kind: 'any' }

/** Which rows of its one table a query reads. */
export function readRows(query: RootOperationNode, primaryKey: PrimaryKey | undefined): Rows {
  if (query.kind !== 'SelectQueryNode' || primaryKey === undefined) return any
  const { kind: _, from, joins, where, with: ctes, setOperations, ...rest } = query
  if (joins || ctes || setOperations || where === undefined || !isOneTable(from?.froms)) return any
  // What else it says must not look at other rows.
  if (!isPlain(rest) || !isPlain(where)) return any
  return keyIn(where.where, primaryKey)
}

/** Which rows of its one table a statement writes. */
export function writtenRows(query: RootOperationNode, primaryKey: PrimaryKey | undefined): Rows {
  switch (query.kind) {
    case 'InsertQueryNode':
      return query.with || query.onConflict || query.onDuplicateKey ? any : { kind: 'new' }
    case 'UpdateQueryNode': {
      const isOther = query.with || query.from || query.joins || primaryKey === undefined || query.where === undefined
      if (isOther || setsColumn(query.updates, primaryKey.column)) return any
      return keyIn(query.where.where, primaryKey)
    }
    case 'DeleteQueryNode': {
      const isOther = query.with || query.using || query.joins || primaryKey === undefined || query.where === undefined
      return isOther || !isOneTable(query.from.froms) ? any : keyIn(query.where.where, primaryKey)
    }
    default:
      return any
  }
}

/** And not what another query gives, whose columns may have the same names. */
function isOneTable(froms: readonly OperationNode[] | undefined): boolean {
  const [from, second] = froms ?? []
  if (from === undefined || second !== undefined) return false
  return TableNode.is(from) || (AliasNode.is(from) && TableNode.is(from.node))
}

/** A condition that holds for one key only, however else it is narrowed. */
function keyIn(condition: OperationNode, primaryKey: PrimaryKey): Rows {
  const node = unwrapped(condition)
  if (AndNode.is(node)) {
    const left = keyIn(node.left, primaryKey)
    return left.kind === 'row' ? left : keyIn(node.right, primaryKey)
  }
  if (!BinaryOperationNode.is(node) || !OperatorNode.is(node.operator) || node.operator.operator !== '=') return any
  if (columnOf(node.leftOperand) !== primaryKey.column) return any
  const value: OperationNode & { readonly value?: unknown } = unwrapped(node.rightOperand)
  const key = value.kind === 'ValueNode' ? writtenDown(value.value, primaryKey) : undefined
  return key === undefined ? any : { kind: 'row', key }
}

/** What two ways to write the same value have in common; nothing for a value that may have others. */
function writtenDown(value: unknown, { type }: PrimaryKey): string | undefined {
  if (type === 'integer') {
    if (typeof value === 'bigint' || Number.isSafeInteger(value)) return String(value)
    return typeof value === 'string' && /^-?\d{1,19}$/.test(value) ? String(BigInt(value)) : undefined
  }
  if (typeof value !== 'string') return undefined
  if (type === 'text') return value
  return /^[\da-f]{8}-(?:[\da-f]{4}-){3}[\da-f]{12}$/i.test(value) ? value.toLowerCase() : undefined
}

function setsColumn(updates: readonly OperationNode[] | undefined, column: string): boolean {
  return (updates ?? []).some((update) => {
    const set = columnOf((update as { readonly column?: OperationNode }).column)
    return set === undefined || set === column
  })
}

function columnOf(node: OperationNode | undefined): string | undefined {
  const found = node && (unwrapped(node) as OperationNode & { column?: OperationNode; name?: string })
  if (found?.kind === 'IdentifierNode') return found.name
  return found?.kind === 'ReferenceNode' || found?.kind === 'ColumnNode' ? columnOf(found.column) : undefined
}

/** Parentheses, and `sql.ref()`, which is SQL by hand of nothing but a reference. */
function unwrapped(node: OperationNode): OperationNode {
  const {
    kind,
    sqlFragments,
    parameters,
    node: inner,
  } = node as OperationNode & {
    sqlFragments?: readonly string[]
    parameters?: readonly OperationNode[]
    node?: OperationNode
  }
  if (kind === 'ParensNode' && inner !== undefined) return unwrapped(inner)
  const isBare = kind === 'RawNode' && parameters?.length === 1 && sqlFragments?.every((text) => text === '') === true
  return isBare ? unwrapped(parameters[0] as OperationNode) : node
}

// Of an aggregate there is a row even where there is none to read.
const otherwise: ReadonlySet<string> = new Set([
  'AggregateFunctionNode',
  'FunctionNode',
  'JSONPathNode',
  'RawNode',
  'SelectQueryNode',
])

/** It has no query in it, no function and no SQL by hand, which could look anywhere. */
function isPlain(node: unknown): boolean {
  if (typeof node !== 'object' || node === null) return true
  if (Array.isArray(node)) return node.every(isPlain)
  const bare = 'kind' in node ? unwrapped(node as OperationNode) : node
  if ('kind' in bare) {
    // Values are data.
    if (bare.kind === 'ValueNode' || bare.kind === 'PrimitiveValueListNode') return true
    if (otherwise.has(String(bare.kind))) return false
  }
  return Object.values(bare).every(isPlain)
}
