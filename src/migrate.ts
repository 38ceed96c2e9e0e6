/** Migrations and generated types: the entry point `kanta/migrate`. */
import { resolveConfig } from './core/config.ts'
import type { DatabaseOptions } from './core/options.ts'
import { openSource } from './postgres/source.ts'
import { Migrator, type MigratorOptions } from './schema/migrator.ts'

export { checkTypes, type CodegenOptions, generateTypes, type TypesFileOptions, writeTypes } from './schema/codegen.ts'
export { type MigrationRun, type MigrationStatus, Migrator, type MigratorOptions } from './schema/migrator.ts'

/** Where to migrate and how: the options of `createDatabase`, and those of the {@link Migrator}. */
export interface MigrateOptions extends DatabaseOptions, Omit<MigratorOptions, 'directory' | 'logger' | 'source'> {
  /** The folder of the SQL files. @default `migrations` */
  readonly directory?: string | undefined
}

/**
 * A migrator for the configured database: `DATABASE_DIRECT_URL` where it is set, so that a pooler is passed by, else
 * what `createDatabase` would use, which without any URL is the embedded PostgreSQL. It owns its connections: close it.
 *
 * Fails with `CONFIG_INVALID` when a setting is wrong. A server that is down shows with the first call.
 *
 * @example
 * ```ts
 * import { createMigrator } from 'kanta/migrate'
 *
 * await using migrator = await createMigrator()
 * const applied = await migrator.up()
 * console.log(`${applied.length} migrations applied`)
 * ```
 */
export async function createMigrator(options: MigrateOptions = {}): Promise<Migrator> {
  const { directory = 'migrations', lockTimeoutMs, statementTimeoutMs, waitForLockMs, ...databaseOptions } = options
  const { directPostgres, logger } = resolveConfig({ ...databaseOptions, redis: false })
  const source = await openSource(directPostgres, logger)
  try {
    return new Migrator({ source, directory, lockTimeoutMs, statementTimeoutMs, waitForLockMs, logger })
  } catch (error) {
    await source.close()
    throw error
  }
}
