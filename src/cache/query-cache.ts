import { createHash } from 'node:crypto'
import type { CompiledQuery, RootOperationNode } from 'kysely'
import type { CacheEntryOptions } from '../core/cache-options.ts'
import { DatabaseError } from '../core/errors.ts'
import { writtenTables } from '../postgres/statement-text.ts'
import { textOf } from '../postgres/wire.ts'
import type { Cache } from './layered-cache.ts'
import { type PrimaryKey, readRows, type Rows, writtenRows } from './row-keys.ts'

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
  readonly keys: ReadonlyMap<string, PrimaryKey>
}

const anyRows: Rows = { kind: 'any' }

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
    const ownTags = this.#tagsOfRead(query.query, read)
    const isFixed = typeof ownTags !== 'function' && typeof tags !== 'function'
    const allTags = (rows: Row[]): string[] => [
      ...(typeof ownTags === 'function' ? ownTags(rows) : ownTags),
      ...(typeof tags === 'function' ? tags(rows) : tags),
    ]
    return this.#cache.getOrSet(keyOf(query), run, { ...entry, tags: isFixed ? [...ownTags, ...tags] : allTags })
  }

  /** The tags of the queries that end when these tables have been written, by this query if it is known. */
  tagsOfWrite(tables: readonly string[], query?: RootOperationNode): string[] {
    const written = tables.map(tableName)
    const [table] = written
    const reached = this.#reached(written, 'writes')
    const isOne = query !== undefined && table !== undefined && written.length === 1
    const rows =
      isOne && !this.#comesBack(table, reached) ? writtenRows(query, this.#dependencies?.keys.get(table)) : anyRows
    return reached.flatMap((name) => tagsOfWritten(name, name === table ? rows : anyRows))
  }

  /** A row by its key ends with writes to that row, and to rows that are not known; all else with any to its tables. */
  #tagsOfRead(
    query: RootOperationNode,
    read: readonly string[],
  ): readonly string[] | ((rows: readonly unknown[]) => readonly string[]) {
    const tables = this.#reached(read, 'reads')
    const [table] = tables
    const rows =
      table === undefined || tables.length > 1 ? anyRows : readRows(query, this.#dependencies?.keys.get(table))
    if (table === undefined || rows.kind !== 'row') return tables.map((name) => tag('table', name))
    const tags = [rowTag(table, rows.key), tag('rows', table)]
    // That there is none ends with any row that is new.
    return (found) => (found.length > 0 ? tags : [...tags, tag('absent', table)])
  }

  /** What is written with it, by cascades for instance, are further rows of the table itself. */
  #comesBack(table: string, reached: readonly string[]): boolean {
    return reached.some((name) => this.#dependencies?.writes.get(name)?.has(table))
  }

  #reached(tables: readonly string[], by: 'reads' | 'writes'): string[] {
    const reached = new Set(tables)
    // What is added while it goes on is visited too.
    for (const table of reached) for (const other of this.#dependencies?.[by].get(table) ?? []) reached.add(other)
    return [...reached]
  }

  async #load(): Promise<void> {
    try {
      const writes = new Map<string, Set<string>>()
      const reads = new Map<string, Set<string>>()
      const keys = new Map<string, PrimaryKey>()
      for (const { kind, one, other, type } of await this.#ask(askDependencies)) {
        if (kind === 'key') {
          keys.set(String(one), { column: String(other), type: type as PrimaryKey['type'] })
          continue
        }
        const map = kind === 'read' ? reads : writes
        const others = map.get(String(one)) ?? new Set()
        map.set(String(one), others.add(String(other)))
      }
      this.#dependencies = { writes, reads, keys }
      this.#loadedAt = performance.now()
    } finally {
      this.#loading = undefined
    }
  }
}

const relationName = (oid: string): string => `(
  select case n.nspname when 'public' then '' else n.nspname || '.' end || c.relname
  from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = ${oid})`

// Foreign keys with actions, partitions and inheritance, what views are made of, and primary keys of one column of which equal
// values are written alike; but not of tables with triggers behind a write, which may write other rows.
const askDependencies = `
  select 'write' as kind, ${relationName('confrelid')} as one, ${relationName('conrelid')} as other, '' as type
  from pg_constraint where contype = 'f' and (confdeltype in ('c', 'n', 'd') or confupdtype in ('c', 'n', 'd'))
  union
  select 'write', ${relationName('inhrelid')}, ${relationName('inhparent')}, '' from pg_inherits
  union
  select 'write', ${relationName('inhparent')}, ${relationName('inhrelid')}, '' from pg_inherits
  union
  select 'key', ${relationName('k.conrelid')}, a.attname,
    case t.typname when 'uuid' then 'uuid' when 'text' then 'text' when 'varchar' then 'text' else 'integer' end
  from pg_constraint k
  join pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
  join pg_type t on t.oid = a.atttypid
  left join pg_collation l on l.oid = a.attcollation
  where k.contype = 'p' and cardinality(k.conkey) = 1 and coalesce(l.collisdeterministic, true)
    and t.typname in ('int2', 'int4', 'int8', 'uuid', 'text', 'varchar')
    and not exists (
      select from pg_trigger g
      where g.tgrelid = k.conrelid and not g.tgisinternal and g.tgtype & 2 = 0 and g.tgname <> 'kanta_written')
  union
  select kind, ${relationName('r.ev_class')}, ${relationName('d.refobjid')}, ''
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

function tagsOfWritten(table: string, rows: Rows): string[] {
  const list = tag('table', table)
  if (rows.kind === 'row') return [list, rowTag(table, rows.key)]
  if (rows.kind === 'new') return [list, tag('absent', table)]
  return [list, tag('rows', table), tag('absent', table)]
}

/** No longer than a tag may be: names have at most 63 bytes each. */
function tag(kind: 'absent' | 'rows' | 'table', table: string): string {
  return `${kind}:${table}`
}

function rowTag(table: string, key: string): string {
  return `row:${table}:${key.length <= 64 ? key : createHash('sha256').update(key).digest('base64url')}`
}
