import { type Kysely, sql } from 'kysely'
import { DatabaseError, isDatabaseError } from '../core/errors.ts'
import { splitStatements } from './statements.ts'

/** Tables of kanta itself, which are in the schema `kanta` and versioned apart from those of the user. */
export interface OwnTables {
  /** What they are for, as it stands in `kanta.parts`. */
  readonly part: string
  /** Scripts that make each version out of the one before. They only add, so that processes of the version before go on. */
  readonly versions: readonly string[]
}

/** What {@link ensureOwnTables} found and did. */
export interface OwnTablesChange {
  readonly part: string
  /** Before; 0 where nothing was installed. */
  readonly from: number
  /** Now: the newest that this kanta knows, or a newer one that was there. */
  readonly to: number
}

const parts = `create table if not exists kanta.parts (
  part text primary key, version integer not null, changed_at timestamptz not null default now());
comment on schema kanta is 'Tables of the data layer itself: outbox, sagas. Versioned by kanta.parts.'`

/**
 * Makes the tables of a part, or brings them to the newest version that this kanta knows; two statements when they are there. Any
 * number of processes may do so at the same time. `INSUFFICIENT_PRIVILEGE` where they are not there and the role may not make
 * them, or may not look.
 */
export async function ensureOwnTables(db: Kysely<never>, tables: OwnTables): Promise<OwnTablesChange> {
  const { part, versions } = tables
  try {
    const from = await versionOf(db, part)
    if (from >= versions.length) return { part, from, to: from }
    // Who waited for the lock has to see what its holder has committed, whatever the default of the role says.
    const transaction = db.transaction().setIsolationLevel('read committed')
    return await transaction.execute((inside) => install(inside, tables))
  } catch (error) {
    if (!isDatabaseError(error) || error.code !== 'INSUFFICIENT_PRIVILEGE') throw error
    throw new DatabaseError(
      error.code,
      `The tables of kanta's ${part} are not there, and this role may not make or use them. Run \`kanta install\` once with a ` +
        `role that may create a schema, and grant this one what docs/${part}.md says.`,
      { cause: error, sqlState: error.sqlState },
    )
  }
}

/** All statements that {@link ensureOwnTables} would send to a database that has none of these. */
export function ownTablesSql(all: readonly OwnTables[]): string {
  const scripts = all.map(({ part, versions }) => {
    const note = `insert into kanta.parts (part, version) values ('${part}', ${versions.length})`
    return [`-- ${part}`, ...versions.map((script) => script.trim()), `${note};`].join('\n\n')
  })
  return ['begin;', 'create schema if not exists kanta;', `${parts};`, ...scripts, 'commit;'].join('\n\n')
}

async function install(db: Kysely<never>, { part, versions }: OwnTables): Promise<OwnTablesChange> {
  await sql`select pg_advisory_xact_lock(hashtext('kanta.parts'))`.execute(db)
  // "If not exists" asks for the right to create before it looks.
  if (!(await isThere(db, sql`to_regnamespace('kanta')`))) await run(db, 'create schema kanta')
  if (!(await isThere(db, sql`to_regclass('kanta.parts')`))) await run(db, parts)
  const from = await versionOf(db, part)
  for (const script of versions.slice(from)) await run(db, script)
  const to = Math.max(from, versions.length)
  await sql`
    insert into kanta.parts (part, version) values (${part}, ${to})
    on conflict (part) do update set version = excluded.version, changed_at = now()`.execute(db)
  return { part, from, to }
}

async function run(db: Kysely<never>, script: string): Promise<void> {
  for (const statement of splitStatements(script).statements) await sql.raw(statement.sql).execute(db)
}

async function isThere(db: Kysely<never>, name: ReturnType<typeof sql>): Promise<boolean> {
  const { rows } = await sql<{ there: boolean }>`select ${name} is not null as there`.execute(db)
  return rows[0]?.there === true
}

/** 0 where nothing is installed. */
async function versionOf(db: Kysely<never>, part: string): Promise<number> {
  if (!(await isThere(db, sql`to_regclass('kanta.parts')`))) return 0
  const found = await sql<{ version: number }>`select version from kanta.parts where part = ${part}`.execute(db)
  return found.rows[0]?.version ?? 0
}
