import { type Kysely, sql } from 'kysely'

/** What the types need to know of the schema and kysely-codegen does not read. */
export interface CatalogFacts {
  /** `table.column` (`schema.table.column` outside `public`) of what nobody can write: generated columns, views. */
  readonly readOnlyColumns: ReadonlySet<string>
  /** COMMENT ON TABLE and VIEW by table name, with the schema outside `public`. */
  readonly tableComments: ReadonlyMap<string, string>
  /** Sorted names that PostgreSQL puts into the `constraint` field of an error: constraints and unique indexes. */
  readonly constraintNames: readonly string[]
}

/** Schemas that hold none of the application's tables. */
const foreignSchemas = sql`n.nspname in ('information_schema', 'kanta') or n.nspname like 'pg\\_%'`

const qualifiedName = sql`case n.nspname when 'public' then c.relname else n.nspname || '.' || c.relname end`

/** Reads what {@link CatalogFacts} holds from the connected database. */
export async function readCatalogFacts(db: Kysely<unknown>): Promise<CatalogFacts> {
  const readOnly = await sql<{ column: string }>`
    select ${qualifiedName} || '.' || a.attname as column
    from pg_attribute a
    join pg_class c on c.oid = a.attrelid
    join pg_namespace n on n.oid = c.relnamespace
    where a.attnum > 0 and not a.attisdropped and not (${foreignSchemas})
      and (c.relkind in ('v', 'm') or c.relkind in ('r', 'p', 'f') and (a.attidentity = 'a' or a.attgenerated <> ''))
  `.execute(db)
  const comments = await sql<{ table: string; comment: string }>`
    select ${qualifiedName} as table, obj_description(c.oid, 'pg_class') as comment
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'f', 'v', 'm') and not (${foreignSchemas})
      and obj_description(c.oid, 'pg_class') is not null
  `.execute(db)
  // PostgreSQL 18 has rows for NOT NULL, too, but an error of that kind names the column and no constraint.
  const constraints = await sql<{ name: string }>`
    select k.conname as name
    from pg_constraint k
    join pg_namespace n on n.oid = k.connamespace
    where k.contype in ('c', 'f', 'p', 'u', 'x') and not (${foreignSchemas})
      and k.conrelid is distinct from to_regclass('public.pgmigrations')
    union
    select c.relname
    from pg_index i
    join pg_class c on c.oid = i.indexrelid
    join pg_namespace n on n.oid = c.relnamespace
    where i.indisunique and not (${foreignSchemas})
      and i.indrelid is distinct from to_regclass('public.pgmigrations')
  `.execute(db)

  return {
    readOnlyColumns: new Set(readOnly.rows.map((row) => row.column)),
    tableComments: new Map(comments.rows.map((row) => [row.table, row.comment])),
    // In code unit order: the collation of the server must not show in the file.
    constraintNames: constraints.rows.map((row) => row.name).toSorted(),
  }
}
