import { createHash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Database } from '../database/database.ts'
import { readMigrations } from '../schema/migration-files.ts'

/** What a database for tests holds when a test begins. */
export interface SchemaSource<DB> {
  /** The folder of the migrations; `false` for none. @default 'migrations' */
  readonly migrations?: string | false | undefined
  /**
   * Writes what every test finds there, once after the migrations. Its own text is part of what decides whether it has to run
   * again; what it calls is not: change `version` with that.
   */
  readonly seed?: ((database: Database<DB>) => Promise<unknown>) | undefined
  /** Anything that changes when `seed` gives something else. */
  readonly version?: string | undefined
}

/**
 * The same for the same migrations and the same seed, and for no others. Fails with `MIGRATION_INVALID` for a folder that holds no
 * migrations.
 */
export async function fingerprintOf<DB>({
  migrations = 'migrations',
  seed,
  version,
}: SchemaSource<DB>): Promise<string> {
  const hash = createHash('sha256')
  const add = (text: Uint8Array | string): unknown => hash.update(`${text.length}:`).update(text)
  if (migrations !== false) {
    // Refused before anything is made.
    await readMigrations(migrations)
    const names = (await readdir(migrations)).filter((name) => name.endsWith('.sql')).toSorted()
    for (const name of names) {
      add(name)
      add(await readFile(join(migrations, name)))
    }
  }
  add(seed === undefined ? '' : seed.toString())
  add(version ?? '')
  return hash.digest('hex').slice(0, 12)
}
