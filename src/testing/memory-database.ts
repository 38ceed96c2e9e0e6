import type { DatabaseOptions } from '../core/options.ts'
import { resolveConfig } from '../core/config.ts'
import { openDatabase } from '../database/create-database.ts'
import type { Database } from '../database/database.ts'
import type { ConnectionSource } from '../postgres/connection.ts'
import { type ClusterSnapshot, openEmbedded } from '../postgres/embedded.ts'
import type { KyselyOptions } from '../postgres/executor.ts'
import { Migrator } from '../schema/migrator.ts'
import { fingerprintOf, type SchemaSource } from './schema-source.ts'

/** What is in a {@link memoryDatabase}, and how it is opened. */
export interface MemoryDatabaseOptions<DB> extends SchemaSource<DB>, DatabaseOptions, KyselyOptions {}

/** What the embedded PostgreSQL looks like after these migrations, of this process. */
const snapshots = new Map<string, Promise<ClusterSnapshot>>()

/**
 * A new database in the memory of this process, with all migrations applied, on the embedded PostgreSQL: no server is needed. The
 * first one for the same migrations applies them, and each further one of the process begins as a copy of it. Each is an
 * engine of its own, so that tests with one each may run at the same time; it is gone with `close()`.
 *
 * It has one connection, and neither replication nor a second session; see the page on testing for what that means.
 * Rejects with `EMBEDDED_UNAVAILABLE` without the package `@electric-sql/pglite`, `CONFIG_INVALID` (under
 * `NODE_ENV=production` as well), or as the migrations and the seed do.
 *
 * @example
 * ```ts
 * import { memoryDatabase } from 'kanta/testing'
 * import type { DB } from './generated/schema.ts'
 *
 * await using database = await memoryDatabase<DB>({ migrations: 'migrations' })
 * await database.db.selectFrom('users').selectAll().execute()
 * ```
 */
export async function memoryDatabase<DB>(options: MemoryDatabaseOptions<DB> = {}): Promise<Database<DB>> {
  const { migrations, seed, version, plugins, log, postgres, redis = false, logger = silent, ...rest } = options
  const schema = { migrations, seed, version }
  const config = resolveConfig({
    ...rest,
    redis,
    logger,
    postgres: { ...postgres, embedded: { dataDir: 'memory' } },
  })
  const target = { kind: 'embedded', dataDir: 'memory', types: postgres?.types } as const
  const source = await openEmbedded(target, logger, await snapshotOf(schema))
  return openDatabase<DB>(config, { plugins, log }, { source, listenerSource: source })
}

async function snapshotOf<DB>(schema: SchemaSource<DB>): Promise<ClusterSnapshot> {
  const fingerprint = await fingerprintOf(schema)
  const known = snapshots.get(fingerprint)
  if (known !== undefined) return known
  const taking = takeSnapshot(schema)
  snapshots.set(fingerprint, taking)
  // What failed is tried again by the next one.
  taking.catch(() => snapshots.delete(fingerprint))
  return taking
}

async function takeSnapshot<DB>({ migrations = 'migrations', seed }: SchemaSource<DB>): Promise<ClusterSnapshot> {
  const source = await openEmbedded({ kind: 'embedded', dataDir: 'memory' }, silent)
  try {
    if (migrations !== false) await new Migrator({ source, directory: migrations }).up()
    if (seed !== undefined) await seedOver(source, seed)
    return await source.dump()
  } finally {
    await source.close()
  }
}

async function seedOver<DB>(source: ConnectionSource, seed: NonNullable<SchemaSource<DB>['seed']>): Promise<void> {
  const config = resolveConfig({ redis: false, logger: silent, postgres: { embedded: { dataDir: 'memory' } } })
  const kept = { ...source, close: () => Promise.resolve() }
  await using database = await openDatabase<DB>(config, {}, { source: kept, listenerSource: kept })
  await seed(database)
}

const silent = { info: () => undefined, warn: () => undefined }
