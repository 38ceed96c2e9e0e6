import { type QueryExecutorProvider, type RawBuilder, sql } from 'kysely'
import { DatabaseError } from '../core/errors.ts'
import type { ColumnType } from '../postgres/column-values.ts'

/** What a unit of work needs of a database; `createDatabase()` gives it. */
export interface WorkDatabase {
  readonly db: QueryExecutorProvider
  readonly currentTransaction: object | undefined
  transaction<T>(work: () => Promise<T>): Promise<T>
  afterRollback(hook: () => unknown): void
  query<Row>(query: RawBuilder<Row>): Promise<Row[]>
}

/** What has to be known of a column to write it. Names are quoted, as in a statement. */
export interface ColumnFacts extends ColumnType {
  /** It gets a value when none is given. */
  readonly hasDefault: boolean
  /** The expression of that value, where the server can be asked for it. */
  readonly default: string | null
  /** Only the server gives it a value, unless it is overruled. */
  readonly always: boolean
}

/** A foreign key, seen from the table that has it. Names are quoted. */
export interface ForeignKey {
  readonly name: string
  readonly columns: readonly string[]
  readonly nullable: readonly string[]
  /** The table that it refers to. */
  readonly to: string
  readonly toColumns: readonly string[]
  /** When it is checked: with each statement, or with each unless it is put off, or at the commit. */
  readonly checked: 'always at once' | 'at once' | 'at commit'
  /** Deleting the row that is referred to deletes or changes the one that refers. */
  readonly gives: boolean
  /** The row that is referred to cannot be deleted, whenever the key is checked otherwise. */
  readonly restricts: boolean
}

/** What the order of writing depends on. */
export interface TableFacts {
  readonly oid: string
  /** It stores rows itself, with its own defaults: no view and no foreign table. */
  readonly isTable: boolean
  /** Another text when a default of it is another. */
  readonly defaultsMark: string
  readonly columns: ReadonlyMap<string, ColumnFacts>
  readonly foreignKeys: readonly ForeignKey[]
  /** The columns of each unique index or exclusion constraint; `null` for one that depends on more, such as an expression or a condition. */
  readonly uniques: readonly (readonly string[] | null)[]
}

interface FactsRow {
  readonly name: string
  readonly oid: string | null
  readonly isTable: boolean
  readonly defaultsMark: string
  readonly columns: readonly ColumnFacts[] | null
  readonly foreignKeys: readonly ForeignKey[] | null
  readonly uniques: readonly (readonly string[] | null)[] | null
}

/** Each default that is set is a new row of the catalog. */
export const defaultsMarkOf = (oid: RawBuilder<unknown>): RawBuilder<string> =>
  sql`(select coalesce(string_agg(d.oid::text, ' ' order by d.oid), '') from pg_attrdef d where d.adrelid = ${oid})`

const quoted = (name: RawBuilder<unknown>): RawBuilder<string> => sql`'"' || replace(${name}, '"', '""') || '"'`

/** Of some tables, named as statements name them. */
const askFacts = (tables: readonly string[]): RawBuilder<FactsRow> => sql`
  with recursive wanted as (
    select name, to_regclass(name)::oid as oid from unnest(${tables}::text[]) as name
  ), base as (
    select oid as type, oid as base, typtype, typbasetype from pg_type
    where oid in (select atttypid from pg_attribute join wanted on attrelid = oid)
    union all
    select base.type, t.oid, t.typtype, t.typbasetype from base join pg_type t on t.oid = base.typbasetype
  )
  select w.name, w.oid::text as oid, ${defaultsMarkOf(sql`w.oid`)} as "defaultsMark",
    (select relkind in ('r', 'p') from pg_class where pg_class.oid = w.oid) as "isTable",
    (select json_agg(json_build_object(
        'name', ${quoted(sql`a.attname`)},
        'type', format_type(b.base, -1),
        'oid', b.base::int8,
        'array', (select typcategory = 'A' from pg_type where oid = b.base),
        'hasDefault', a.atthasdef or a.attidentity <> '' or y.typtype = 'd',
        'always', a.attidentity = 'a',
        'default', case
          when a.attgenerated <> '' then null
          when a.attidentity <> '' then format('nextval(%L::regclass)', pg_get_serial_sequence(w.name, a.attname))
          else coalesce(pg_get_expr(d.adbin, d.adrelid), pg_get_expr(y.typdefaultbin, 0)) end))
      from pg_attribute a
      join base b on b.type = a.atttypid and b.typtype <> 'd'
      join pg_type y on y.oid = a.atttypid
      left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
      where a.attrelid = w.oid and a.attnum > 0 and not a.attisdropped) as columns,
    (select json_agg(json_build_object(
        'name', (select ${quoted(sql`nspname`)} from pg_namespace where oid = k.connamespace) || '.' || ${quoted(sql`k.conname`)},
        'columns', (select json_agg(${quoted(sql`a.attname`)} order by at.place) from unnest(k.conkey) with ordinality as at(number, place)
          join pg_attribute a on a.attrelid = k.conrelid and a.attnum = at.number),
        'nullable', (select coalesce(json_agg(${quoted(sql`a.attname`)}), '[]') from pg_attribute a
          where a.attrelid = k.conrelid and a.attnum = any(k.conkey) and not a.attnotnull),
        'to', k.confrelid::text,
        'toColumns', (select json_agg(${quoted(sql`a.attname`)} order by at.place) from unnest(k.confkey) with ordinality as at(number, place)
          join pg_attribute a on a.attrelid = k.confrelid and a.attnum = at.number),
        'checked', case when k.condeferred then 'at commit' when k.condeferrable then 'at once' else 'always at once' end,
        'gives', k.confdeltype in ('c', 'n', 'd'),
        'restricts', k.confdeltype = 'r') order by k.conname)
      from pg_constraint k where k.conrelid = w.oid and k.contype = 'f') as "foreignKeys",
    (select json_agg(case when i.indexprs is null and i.indpred is null then
        (select json_agg(${quoted(sql`a.attname`)}) from pg_attribute a
         where a.attrelid = i.indrelid and a.attnum = any(i.indkey)) end)
      from pg_index i where i.indrelid = w.oid and (i.indisunique or i.indisexclusion)) as uniques
  from wanted w`

/** What is known of the tables of a database: asked for once, and again when something is not known or has failed. */
export class TableCatalog {
  static readonly #known = new WeakMap<object, TableCatalog>()
  readonly #database: WorkDatabase
  readonly #facts = new Map<string, TableFacts>()

  private constructor(database: WorkDatabase) {
    this.#database = database
  }

  /** The one of a database. */
  static of(database: WorkDatabase): TableCatalog {
    const known = TableCatalog.#known.get(database) ?? new TableCatalog(database)
    TableCatalog.#known.set(database, known)
    return known
  }

  /** Whatever is known may be why something failed: a migration has changed the tables since. */
  forget(): void {
    this.#facts.clear()
  }

  /** An identifier as the statements have it, quoted, and changed by the plugins that change identifiers. */
  nameOf(identifier: RawBuilder<unknown>): string {
    return identifier.compile(this.#database.db).sql
  }

  /** The facts of each table; `INVALID_ARGUMENT` for one that is not there. */
  async read(tables: ReadonlySet<string>): Promise<ReadonlyMap<string, TableFacts>> {
    // A flush that fails at the same time may have them forgotten while the others are asked for.
    const found = new Map(this.#facts)
    const unknown = [...tables].filter((table) => !found.has(table))
    if (unknown.length === 0) return found
    const names = unknown.map((table) => this.nameOf(sql.table(table)))
    const rows = await this.#database.query(askFacts(names))
    for (const [index, table] of unknown.entries()) {
      const row = rows.find(({ name }) => name === names[index])
      if (row === undefined || row.oid === null) throw noTable(table)
      const facts = {
        oid: row.oid,
        isTable: row.isTable,
        defaultsMark: row.defaultsMark,
        columns: new Map((row.columns ?? []).map((column) => [column.name, column])),
        foreignKeys: row.foreignKeys ?? [],
        uniques: row.uniques ?? [],
      }
      found.set(table, facts)
      this.#facts.set(table, facts)
    }
    return found
  }
}

function noTable(table: string): DatabaseError {
  return new DatabaseError(
    'INVALID_ARGUMENT',
    `The unit of work writes to ${table}, which the database does not have. Look for a migration that is missing, or at the schema of the connection.`,
    { table },
  )
}
