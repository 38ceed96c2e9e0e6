import { createHash } from 'node:crypto'
import type { CompiledQuery } from 'kysely'
import { DatabaseError } from '../core/errors.ts'
import { writtenTables } from '../postgres/statement-text.ts'
import { textOf } from '../postgres/wire.ts'
import type { Cache, CacheEntryOptions } from './layered-cache.ts'

/** How the rows of a query are cached. Times are milliseconds. */
export interface CachedOptions<Row = unknown> extends CacheEntryOptions<Row[]> {
  /**
   * Tables that it reads, beside those that its builder names: of SQL written by hand all of them, else those that are read by
   * functions and by fragments of SQL.
   */
  readonly tables?: readonly string[] | undefined
}

/** Runs one of kanta's own questions, in the transaction of the async context if there is one. */
export type Ask = (sql: string) => Promise<readonly Record<string, unknown>[]>

/** What else changes with a table, and what a view is made of. */
interface Dependencies {
  /** A write to the one is a write to the others: cascades, partitions, views that are written through. */
  readonly writes: ReadonlyMap<string, ReadonlySet<string>>
  /** A read of the one is a read of the others. */
  readonly reads: ReadonlyMap<string, ReadonlySet<string>>
}

const refreshMs = 60_000

/** Rows of queries, which end with the next committed write to one of the tables that they come from. */
export class QueryCache {
  readonly #cache: Cache
  readonly #ask: Ask
  #dependencies: Dependencies | undefined
  #loading: Promise<void> | undefined
  #loadedAt = 0

  constructor(cache: Cache, ask: Ask) {
    this.#cache = cache
    this.#ask = ask
  }

  /** Learns how tables depend on one another. To be called before anything is written that is to be noticed. */
  async prepare(): Promise<void> {
    if (this.#dependencies === undefined) await (this.#loading ??= this.#load())
    else if (performance.now() - this.#loadedAt > refreshMs) {
      // What was known goes on to count until then.
      this.#loadedAt = performance.now()
      this.#load().catch(() => undefined)
    }
  }

  /** The rows of a query that only reads. */
  async read<Row>(
    query: CompiledQuery<Row>,
    run: () => Promise<Row[]>,
    options: CachedOptions<Row> = {},
  ): Promise<Row[]> {
    const { tables = [], tags = [], ...entry } = options
    const read = [...readTables(query, tables)].map(tableName)
    await this.prepare()
    const ownTags = this.#reached(read, 'reads').map(tagOf)
    const allTags = (rows: Row[]): string[] => [...ownTags, ...(typeof tags === 'function' ? tags(rows) : tags)]
    const known = typeof tags === 'function' ? allTags : [...ownTags, ...tags]
    return this.#cache.getOrSet(keyOf(query), run, { ...entry, tags: known })
  }

  /** The tags of the queries that end when these tables have been written. */
  tagsOfWrite(tables: readonly string[]): string[] {
    return this.#reached(tables.map(tableName), 'writes').map(tagOf)
  }

  #reached(tables: readonly string[], by: keyof Dependencies): string[] {
    const reached = new Set(tables)
    // What is added while it goes on is visited too.
    for (const table of reached) for (const other of this.#dependencies?.[by].get(table) ?? []) reached.add(other)
    return [...reached]
  }

  async #load(): Promise<void> {
    try {
      const writes = new Map<string, Set<string>>()
      const reads = new Map<string, Set<string>>()
      for (const { kind, one, other } of await this.#ask(askDependencies)) {
        const map = kind === 'read' ? reads : writes
        const others = map.get(String(one)) ?? new Set()
        map.set(String(one), others.add(String(other)))
      }
      this.#dependencies = { writes, reads }
      this.#loadedAt = performance.now()
    } finally {
      this.#loading = undefined
    }
  }
}

const relationName = (oid: string): string => `(
  select case n.nspname when 'public' then '' else n.nspname || '.' end || c.relname
  from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = ${oid})`

// Foreign keys with actions, partitions and inheritance, and what views are made of.
const askDependencies = `
  select 'write' as kind, ${relationName('confrelid')} as one, ${relationName('conrelid')} as other
  from pg_constraint where contype = 'f' and (confdeltype in ('c', 'n', 'd') or confupdtype in ('c', 'n', 'd'))
  union
  select 'write', ${relationName('inhrelid')}, ${relationName('inhparent')} from pg_inherits
  union
  select 'write', ${relationName('inhparent')}, ${relationName('inhrelid')} from pg_inherits
  union
  select kind, ${relationName('r.ev_class')}, ${relationName('d.refobjid')}
  from pg_rewrite r
  join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and d.refclassid = 'pg_class'::regclass
  cross join (values ('read'), ('write')) as kinds(kind)
  where d.refobjid <> r.ev_class`

/** By its text and its parameters as they are sent. */
function keyOf({ sql, parameters }: CompiledQuery): string {
  const hash = createHash('sha256').update(sql)
  for (const parameter of parameters) {
    const text = textOf(parameter)
    hash.update(text === null ? '\0n' : `\0${text.length}:${text}`)
  }
  return hash.digest('base64url')
}

function readTables({ query, sql }: CompiledQuery, declared: readonly string[]): Set<string> {
  const isByHand = query.kind === 'RawNode'
  if (writtenTables(sql).length > 0 || (query.kind !== 'SelectQueryNode' && !isByHand)) {
    throw new DatabaseError('INVALID_ARGUMENT', 'cached() takes a query that only reads. Run this one by itself.', {
      sql,
    })
  }
  if (isByHand && declared.length === 0) {
    throw new DatabaseError(
      'INVALID_ARGUMENT',
      "cached() cannot tell which tables are read by SQL that is written by hand. Name them: { tables: ['products'] }.",
      { sql },
    )
  }
  const tables = new Set(declared)
  collectTables(query, tables)
  return tables
}

function collectTables(node: unknown, tables: Set<string>): void {
  if (typeof node !== 'object' || node === null) return
  if (Array.isArray(node)) {
    for (const item of node) collectTables(item, tables)
    return
  }
  const { kind, table } = node as {
    kind?: string
    table?: { schema?: { name: string }; identifier?: { name: string } }
  }
  // Parameters are data, and what refers to a column names a table that is named elsewhere, or its alias.
  if (kind === 'ValueNode' || kind === 'PrimitiveValueListNode' || kind === 'ReferenceNode') return
  if (kind === 'TableNode' && table?.identifier !== undefined) {
    tables.add(table.schema ? `${table.schema.name}.${table.identifier.name}` : table.identifier.name)
    return
  }
  for (const inner of Object.values(node)) collectTables(inner, tables)
}

function tableName(name: string): string {
  return name.startsWith('public.') ? name.slice('public.'.length) : name
}

/** No longer than a tag may be: names have at most 63 bytes each. */
function tagOf(table: string): string {
  return `table:${table}`
}
