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

/**
 * Makes the tables of a part, or brings them to the newest version that this kanta knows; two statements when they are there. Any
 * number of processes may do so at the same time. `INSUFFICIENT_PRIVILEGE` where they are not there and the role may not make them.
 */
export async function ensureOwnTables(db: Kysely<never>, tables: OwnTables): Promise<void> {
  if ((await versionOf(db, tables.part)) >= tables.versions.length) return
  try {
    await db.transaction().execute((transaction) => install(transaction, tables))
  } catch (error) {
    if (!isDatabaseError(error) || error.code !== 'INSUFFICIENT_PRIVILEGE') throw error
    throw new DatabaseError(
      error.code,
      `The tables of kanta's ${tables.part} are not there, and this role may not make them. Run \`kanta install\` once with a role that may create a schema.`,
      { cause: error, sqlState: error.sqlState },
    )
  }
}

async function install(db: Kysely<never>, { part, versions }: OwnTables): Promise<void> {
  await sql`select pg_advisory_xact_lock(hashtext('kanta.parts'))`.execute(db)
  await run(
    db,
    `create schema if not exists kanta;
     create table if not exists kanta.parts (
       part text primary key, version integer not null, changed_at timestamptz not null default now());
     comment on schema kanta is 'Tables of the data layer itself: outbox, sagas. Versioned by kanta.parts.'`,
  )
  const present = await versionOf(db, part)
  for (const script of versions.slice(present)) await run(db, script)
  const version = Math.max(present, versions.length)
  await sql`
    insert into kanta.parts (part, version) values (${part}, ${version})
    on conflict (part) do update set version = excluded.version, changed_at = now()`.execute(db)
}

async function run(db: Kysely<never>, script: string): Promise<void> {
  for (const statement of splitStatements(script).statements) await sql.raw(statement.sql).execute(db)
}

/** 0 where nothing is installed. */
async function versionOf(db: Kysely<never>, part: string): Promise<number> {
  const { rows } = await sql<{ there: boolean }>`select to_regclass('kanta.parts') is not null as there`.execute(db)
  if (!rows[0]?.there) return 0
  const found = await sql<{ version: number }>`select version from kanta.parts where part = ${part}`.execute(db)
  return found.rows[0]?.version ?? 0
}
