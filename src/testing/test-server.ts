import { AsyncLocalStorage } from 'node:async_hooks'
import { randomBytes } from 'node:crypto'
import { type RawBuilder, sql } from 'kysely'
import { resolveConfig } from '../core/config.ts'
import type { DatabaseOptions } from '../core/options.ts'
import { pauseFor } from '../core/deadline.ts'
import { DatabaseError, isDatabaseError } from '../core/errors.ts'
import { createDatabase, openDatabase } from '../database/create-database.ts'
import type { Database } from '../database/database.ts'
import type { KyselyOptions } from '../postgres/executor.ts'
import { openSource } from '../postgres/source.ts'
import { Migrator } from '../schema/migrator.ts'
import { memoryDatabase } from './memory-database.ts'
import { fingerprintOf, type SchemaSource } from './schema-source.ts'

/** Where a {@link TestServer} is, and what is in its databases. */
export interface TestServerOptions<DB> extends SchemaSource<DB> {
  /**
   * A URL of a server on which this user may create databases; the database in it is only connected to.
   * @default `TEST_DATABASE_URL`; without it each database is a {@link memoryDatabase}
   */
  readonly url?: string | undefined
  /** How the names of all databases begin: letters, digits and _, at most 20. @default 'kanta_test' */
  readonly name?: string | undefined
}

/** Makes databases for tests; see {@link testServer}. */
export interface TestServer<DB> extends AsyncDisposable {
  /** `server`: databases of their own on a server. `embedded`: in the memory of this process. */
  readonly kind: 'embedded' | 'server'
  /** The database of which each is a copy; nothing without a server. */
  readonly template: string | undefined
  /**
   * A new database with all migrations applied and the seed in it, open. `close()` of it drops it, whoever is still connected. May be
   * called any number of times at once. Its options are those of `createDatabase`, but for where it is; `redis` is off unless given.
   */
  database(options?: DatabaseOptions & KyselyOptions): Promise<Database<DB>>
  /**
   * The URL of such a database, for programs that open it themselves. It is dropped by {@link close}. `INVALID_ARGUMENT` without a
   * server.
   */
  databaseUrl(): Promise<string>
  /** Drops what is left and ends the connections. Safe to call more than once. */
  close(): Promise<void>
}

/**
 * Finds the server for tests, and makes new databases on it in the time of a copy: the migrations and the seed run once for each
 * content of theirs, into a template database that stays there for the next run. Call it once in each file of tests, or once in
 * each process.
 *
 * Any number of processes may do so at the same time: they wait for the one that makes the template, which has its name only when it
 * is whole. What a process that was killed has left is dropped by the next one that starts, and so are templates that no process
 * uses: databases of this `name` alone, whose names were made here, and none whose process is still connected. All names
 * tell where they are from: `kanta_test_<process>_<run>_<number>`, `kanta_test_template_<hash of the migrations>`.
 *
 * Rejects with `CONFIG_INVALID`, `MIGRATION_INVALID` and `MIGRATION_FAILED` for the migrations, `INSUFFICIENT_PRIVILEGE` where the user
 * may not create databases, as `seed` does, or with a `ConnectionError`.
 *
 * @example
 * ```ts
 * import { testServer } from 'kanta/testing'
 * import type { DB } from './generated/schema.ts'
 *
 * await using server = await testServer<DB>({ migrations: 'migrations' })
 * await using database = await server.database()
 * await database.db.selectFrom('users').selectAll().execute()
 * ```
 */
export async function testServer<DB>(options: TestServerOptions<DB> = {}): Promise<TestServer<DB>> {
  const { name = 'kanta_test', url = process.env['TEST_DATABASE_URL'] } = options
  if (!/^[a-z][a-z0-9_]{0,19}$/.test(name)) {
    throw new DatabaseError(
      'INVALID_ARGUMENT',
      'The name of a test server is not one. Give up to 20 small letters, digits and _, a letter first.',
    )
  }
  if (url === undefined || url === '') return new EmbeddedServer(options)
  const fingerprint = await fingerprintOf(options)
  return CloningServer.open(options, { name, url, fingerprint })
}

/** A memory database each. */
class EmbeddedServer<DB> implements TestServer<DB> {
  readonly kind = 'embedded'
  readonly template: undefined = undefined
  readonly #schema: SchemaSource<DB>
  readonly #open = new Set<Database<DB>>()

  constructor({ migrations, seed, version }: TestServerOptions<DB>) {
    this.#schema = { migrations, seed, version }
  }

  async database(options: DatabaseOptions & KyselyOptions = {}): Promise<Database<DB>> {
    const database = await memoryDatabase<DB>({ ...options, ...this.#schema })
    this.#open.add(database)
    return database
  }

  databaseUrl(): Promise<string> {
    return Promise.reject(
      new DatabaseError(
        'INVALID_ARGUMENT',
        'There is no URL of a database in memory. Set TEST_DATABASE_URL, or give url to testServer().',
      ),
    )
  }

  async close(): Promise<void> {
    await Promise.all([...this.#open].map((database) => database.close()))
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

interface Place {
  readonly name: string
  readonly url: string
  readonly fingerprint: string
}

const silent = { info: () => undefined, warn: () => undefined }

// Copies of a template, and a template that another process makes, may take their time on a busy machine.
const adminTimeoutMs = 120_000
// Of a connection that has ended the server knows for some milliseconds; an autovacuum worker is sent away by the server itself.
const inUsePauseMs = 20
const inUseAttempts = 250

/** Copies of a template on a server. */
class CloningServer<DB> implements TestServer<DB> {
  readonly kind = 'server'
  readonly #place: Place
  readonly #schema: SchemaSource<DB>
  readonly #run: string
  readonly #admin: Database<never>
  readonly #names = new Set<string>()
  readonly #cloning = new Set<Promise<string>>()
  #strategy = ''
  #count = 0
  #closing: Promise<void> | undefined

  private constructor(place: Place, schema: SchemaSource<DB>, run: string, admin: Database<never>) {
    this.#place = place
    this.#schema = schema
    this.#run = run
    this.#admin = admin
  }

  static async open<DB>(options: TestServerOptions<DB>, place: Place): Promise<CloningServer<DB>> {
    const run = randomBytes(4).toString('hex')
    const admin = await createDatabase<never>({
      redis: false,
      logger: silent,
      postgres: {
        url: place.url,
        // By this name others see that the run is alive and which template it uses.
        applicationName: presenceOf(place.name, run, place.fingerprint),
        queryTimeoutMs: adminTimeoutMs,
        pipeline: false,
        // One stays open as long as the run lasts.
        pool: { min: 1, max: 4, maxWaiting: 10_000, acquireTimeoutMs: adminTimeoutMs, maxLifetimeMs: 0 },
      },
    })
    const server = new CloningServer<DB>(place, options, run, admin)
    try {
      await server.#prepare()
      return server
    } catch (error) {
      await server.close()
      throw error
    }
  }

  async database(options: DatabaseOptions & KyselyOptions = {}): Promise<Database<DB>> {
    const { plugins, log, redis = false, postgres, ...rest } = options
    const name = await this.#clone()
    try {
      const config = resolveConfig({ ...rest, redis, postgres: { ...postgres, url: this.#urlOf(name) } })
      const source = await openSource(config.postgres, config.logger)
      // What cannot be dropped now is dropped by close(), or swept away by the next run.
      const onClosed = (): Promise<void> => this.#drop(name).catch(() => undefined)
      return await openDatabase<DB>(config, { plugins, log }, { source, listenerSource: source, onClosed })
    } catch (error) {
      await this.#drop(name)
      throw error
    }
  }

  async databaseUrl(): Promise<string> {
    return this.#urlOf(await this.#clone())
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #close(): Promise<void> {
    // What is just being made can only be dropped when it is there.
    await Promise.allSettled(this.#cloning)
    await Promise.all([...this.#names].map((name) => this.#drop(name)))
    await this.#admin.close()
  }

  get template(): string {
    return `${this.#place.name}_template_${this.#place.fingerprint}`
  }

  async #prepare(): Promise<void> {
    const fsync = await this.#admin.queryValue<string>(sql`show fsync`)
    const version = Number(await this.#admin.queryValue<string>(sql`show server_version_num`))
    // Faster where its checkpoints need not wait for a disk.
    this.#strategy = version >= 150_000 && fsync === 'off' ? ' strategy file_copy' : ''
    await this.#sweep()
    await this.#ensureTemplate()
  }

  async #ensureTemplate(): Promise<void> {
    if (await this.#exists(this.template)) return
    // No database can be made in the transaction that holds the lock.
    const outside = AsyncLocalStorage.snapshot()
    // Who comes meanwhile waits here, and then finds it.
    await this.#admin.withLock(this.template, async () => {
      if (!(await this.#exists(this.template))) await outside(() => this.#makeTemplate())
    })
  }

  /** It is made under a name of this run, so that it is swept away if this process does not come to the end. */
  async #makeTemplate(): Promise<void> {
    const { migrations = 'migrations', seed } = this.#schema
    const name = this.#nextName()
    await this.#command(sql`create database ${sql.id(name)} template template0`)
    this.#names.add(name)
    const config = resolveConfig({ redis: false, logger: silent, postgres: { url: this.#urlOf(name) } })
    const source = await openSource(config.postgres, silent)
    if (migrations !== false) await new Migrator({ source, directory: migrations }).up()
    const database = await openDatabase<DB>(config, {}, { source, listenerSource: source })
    try {
      await seed?.(database)
    } finally {
      await database.close()
    }
    // Nobody may connect to it: a copy would have to wait for them.
    await this.#command(sql`alter database ${sql.id(name)} allow_connections false`)
    try {
      await this.#command(sql`alter database ${sql.id(name)} rename to ${sql.id(this.template)}`)
      this.#names.delete(name)
    } catch (error) {
      // Another process, which came by another database and so did not see the lock, was faster.
      if (!isDatabaseError(error) || error.sqlState !== '42P04') throw error
      await this.#drop(name)
    }
  }

  #clone(): Promise<string> {
    const cloning = this.#cloneOnce()
      .catch(async (error: unknown) => {
        // Another process, which saw this run too late, took the template for one that nobody uses.
        if (this.#closing !== undefined || !isDatabaseError(error) || error.sqlState !== '3D000') throw error
        await this.#ensureTemplate()
        return this.#cloneOnce()
      })
      .finally(() => this.#cloning.delete(cloning))
    this.#cloning.add(cloning)
    return cloning
  }

  async #cloneOnce(): Promise<string> {
    const name = this.#nextName()
    this.#names.add(name)
    try {
      await this.#command(
        sql`create database ${sql.id(name)} template ${sql.id(this.template)}${sql.raw(this.#strategy)}`,
      )
    } catch (error) {
      this.#names.delete(name)
      throw error
    }
    return name
  }

  async #drop(name: string): Promise<void> {
    if (!this.#names.has(name)) return
    await this.#command(sql`drop database if exists ${sql.id(name)} with (force)`)
    this.#names.delete(name)
  }

  /** What those have left who are not there any more. */
  async #sweep(): Promise<void> {
    const { name } = this.#place
    const { rows } = await sql<{ database: string }>`
      select datname as database from pg_database where starts_with(datname, ${`${name}_`})`.execute(this.#admin.db)
    const left = rows.map(({ database }) => database).filter((database) => ownerOf(database, name) !== undefined)
    if (left.length === 0) return
    // Asked after the names: whoever has made one of them was there before.
    const present = await this.#presences()
    for (const database of left) {
      const owner = ownerOf(database, name) ?? ''
      if (present.some((presence) => presence.split(' ').includes(owner))) continue
      // Without force: who is connected after all keeps it. And another process may be sweeping, too.
      await this.#command(sql`drop database if exists ${sql.id(database)}`, 1).catch(ifMine)
    }
  }

  async #presences(): Promise<string[]> {
    const beginning = `${presence} ${this.#place.name} `
    const { rows } = await sql<{ application: string }>`
      select distinct application_name as application from pg_stat_activity
      where starts_with(application_name, ${beginning})`.execute(this.#admin.db)
    return rows.map(({ application }) => application)
  }

  async #exists(database: string): Promise<boolean> {
    return this.#admin.queryBoolean(sql`select exists (select from pg_database where datname = ${database})`)
  }

  /** Waits while a database is in use by someone who is about to leave it. */
  async #command(command: RawBuilder<unknown>, attempts = inUseAttempts): Promise<void> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        await this.#admin.query(command)
        return
      } catch (error) {
        if (!isDatabaseError(error) || error.sqlState !== '55006' || attempt >= attempts) throw error
        await pauseFor(inUsePauseMs)
      }
    }
  }

  #nextName(): string {
    this.#count += 1
    return `${this.#place.name}_${process.pid}_${this.#run}_${this.#count}`
  }

  #urlOf(database: string): string {
    const url = new URL(this.#place.url)
    url.pathname = `/${database}`
    return url.href
  }
}

const presence = 'kanta-test'

function presenceOf(name: string, run: string, fingerprint: string): string {
  return `${presence} ${name} ${run} ${fingerprint}`
}

/** Who has made a database, the run or the hash of its template; nothing for names that are not made here. */
function ownerOf(database: string, name: string): string | undefined {
  const rest = database.slice(name.length)
  return (/^_template_([0-9a-f]{12})$/.exec(rest) ?? /^_\d+_([0-9a-f]{8})_\d+$/.exec(rest))?.[1]
}

/** Somebody is there, or it is another user's, or already gone. */
function ifMine(error: unknown): void {
  const isTheirs = isDatabaseError(error) && ['3D000', '42501', '55006'].includes(error.sqlState ?? '')
  if (!isTheirs) throw error
}
