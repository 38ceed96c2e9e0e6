import { createHash } from 'node:crypto'
import type { RootOperationNode } from 'kysely'
import { RecentMap } from '../core/recent-map.ts'

/** What is known of one SQL text, across all connections. */
export interface StatementText {
  readonly sql: string
  /** The name under which connections prepare it. A hash of the text, so that it means the same on every connection. */
  readonly name: string
  /** Built from Kysely's nodes, and so certainly one command; text that was written by hand may be several. */
  readonly isSingle: boolean
  /** The tables that it writes, as far as its words tell: see {@link writtenTables}. */
  readonly writes: readonly string[]
  /** Reads only, as far as its nodes tell: it may be repeated although nobody knows whether it ran. */
  readonly isRead: boolean
  /** The server refused to prepare it the last time: it is sent without a name until it is accepted. */
  isRefused: boolean
  /** How often it was asked for. */
  uses: number
  /** How long it takes on the server, as a mean that follows the last dozen or so; 0 before the first. */
  meanMs: number
}

const maxTexts = 5_000

const ownName = /\bk_[\w-]{24}/
const namesItsOwn = /\b(?:deallocate|execute|prepare)\b/i

/**
 * Whether what the server says of a prepared statement (26000, 42P05) is about a name that we gave, and not about one
 * in the application's own PREPARE, EXECUTE or DEALLOCATE. The server quotes the name in every language.
 */
export function isAboutOwnName(message: string, sql: string | undefined): boolean {
  return ownName.test(message) || sql === undefined || !namesItsOwn.test(sql)
}

/** The texts that are in use; what has not been asked for the longest is dropped first. */
export class StatementTexts {
  readonly #texts = new RecentMap<string, StatementText>(maxTexts)

  get(sql: string, node: RootOperationNode): StatementText {
    return this.#texts.get(sql) ?? this.#add(sql, node)
  }

  /** The text of one of our own commands, such as BEGIN. */
  command(sql: string): StatementText {
    return this.#texts.get(sql) ?? this.#add(sql, 'command')
  }

  #add(sql: string, node: RootOperationNode | 'command'): StatementText {
    // 63 bytes are a name's limit; PostgreSQL would cut longer ones and mix them up.
    const name = `k_${createHash('sha256').update(sql).digest('base64url').slice(0, 24)}`
    const text: StatementText = {
      sql,
      name,
      isSingle: node === 'command' || node.kind !== 'RawNode',
      isRead: node !== 'command' && node.kind === 'SelectQueryNode' && !mayWrite(node),
      writes: node === 'command' ? nothing : writtenTables(sql),
      isRefused: false,
      uses: 0,
      meanMs: 0,
    }
    this.#texts.set(sql, text)
    return text
  }
}

const nothing: readonly string[] = []

/** Nobody caches what is in the tables of kanta itself, and what they are told of every event would be many messages. */
const ownTables = 'kanta.'

const identifier = '(?:"(?:[^"]|"")+"|[\\p{L}_][\\p{L}\\p{N}_$]*)'
const writing = new RegExp(
  `\\b(?:insert\\s+into|update|delete\\s+from|merge\\s+into|truncate(?:\\s+table)?|copy|refresh\\s+materialized\\s+view(?:\\s+concurrently)?)` +
    `\\s+(?:only\\s+)?(${identifier}(?:\\s*\\.\\s*${identifier})?)`,
  'giu',
)

/**
 * The tables after the words that write, wherever they stand in the text: rather one too many, such as in a comment, than one
 * too few. Names as the server knows them, with their schema where it is given. What a function writes is not in the text.
 */
export function writtenTables(sql: string): readonly string[] {
  const names = [...sql.matchAll(writing)].map(([, name = '']) => name)
  return names.length === 0 ? nothing : [...new Set(names.map(unquoted))].filter((name) => !name.startsWith(ownTables))
}

function unquoted(name: string): string {
  return name.replaceAll(/"((?:[^"]|"")+)"|([^".\s]+)|\s+/g, (_, quoted?: string, plain?: string) =>
    quoted === undefined ? (plain ?? '').toLowerCase() : quoted.replaceAll('""', '"'),
  )
}

const writingKinds: ReadonlySet<string> = new Set([
  'AggregateFunctionNode',
  'DeleteQueryNode',
  'InsertQueryNode',
  'MergeQueryNode',
  'UpdateQueryNode',
  // A function or a fragment of SQL may do anything, and a lock taken twice is not taken once.
  'FunctionNode',
  'RawNode',
  'SelectModifierNode',
])

/** Functions without effects that queries often call. */
const pureFunctions: ReadonlySet<string> = new Set([
  'any',
  'avg',
  'coalesce',
  'count',
  'lower',
  'max',
  'min',
  'sum',
  'upper',
])

/** What Kysely itself writes as a fragment. */
const harmlessFragments: ReadonlySet<string> = new Set(['asc', 'desc', 'true'])

function mayWrite(node: unknown): boolean {
  if (typeof node !== 'object' || node === null) return false
  if (Array.isArray(node)) return node.some(mayWrite)
  const { kind, func, modifier, sqlFragments } = node as {
    kind?: string
    func?: string
    modifier?: string
    sqlFragments?: readonly string[]
  }
  const isPure =
    (func !== undefined && pureFunctions.has(func)) ||
    modifier === 'Distinct' ||
    (sqlFragments?.length === 1 && harmlessFragments.has(sqlFragments[0] ?? ''))
  if (kind !== undefined && writingKinds.has(kind) && !isPure) return true
  // Parameters are data, whatever they look like.
  if (kind === 'ValueNode' || kind === 'PrimitiveValueListNode') return false
  return Object.values(node).some(mayWrite)
}
