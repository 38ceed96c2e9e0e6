import { hostname } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { type MigrationBuilder, PG_MIGRATE_LOCK_ID, runner, type RunnerOption } from 'node-pg-migrate'
import type { Logger } from '../core/options.ts'
import { DatabaseError, MigrationError } from '../core/errors.ts'
import { isWhole, largestInt32 } from '../core/whole-number.ts'
import type { ConnectionSource } from '../postgres/connection.ts'
import { isConnectionGone, toDatabaseError } from '../postgres/sqlstate.ts'
import { BoundedClient } from './bounded-client.ts'
import {
  compareNumbers,
  lineAt,
  type MigrationFile,
  type MigrationStatement,
  numberOf,
  readMigrations,
} from './migration-files.ts'

/** Settings of a {@link Migrator}. Times are milliseconds. */
export interface MigratorOptions {
  /** Best without a pooler in between. One in transaction mode must have two connections to the server to spare. */
  readonly source: ConnectionSource
  /** The folder of the SQL files. */
  readonly directory: string
  /**
   * How long a statement waits for a lock on a table, while everyone else waits behind it. Then the file is rolled back
   * and tried again, six times in all, with a pause of about the same length in between. @default 5000
   */
  readonly lockTimeoutMs?: number | undefined
  /**
   * How long one statement may run; `false` is no limit. The embedded PostgreSQL has none. A server that does not answer
   * five seconds after the limit is taken for frozen and given up; without a limit it is waited for. @default 600000
   */
  readonly statementTimeoutMs?: number | false | undefined
  /** How long to wait for another process that is migrating. @default 60000 */
  readonly waitForLockMs?: number | undefined
  /** Hears of each file, of waiting and of repeated attempts. */
  readonly logger?: Logger | undefined
}

/** One file that was applied or undone. */
export interface MigrationRun {
  readonly name: string
  readonly durationMs: number
}

/** Where one migration stands. `missing`: applied to this database, but its file is not in the folder. */
export interface MigrationStatus {
  readonly name: string
  readonly state: 'applied' | 'missing' | 'pending'
  readonly appliedAt: Date | undefined
}

type Direction = 'down' | 'up'

const ledgerTable = 'pgmigrations'
const lockAttempts = 6
const lockPollMs = 200
/** How much later than its limit the server may say that it was reached. */
const answerGraceMs = 5_000

/**
 * Brings the schema of one database to what the files of a folder say. Each file runs in a transaction of its own
 * together with its row in the table `pgmigrations`, so it is applied wholly or not at all. Any number of processes may
 * migrate one database at the same time: they take turns, and each file is applied once. node-pg-migrate's own command
 * line takes the same lock and keeps the same table.
 *
 * @example
 * ```ts
 * import { createMigrator } from 'kanta/migrate'
 *
 * await using migrator = await createMigrator({ directory: 'migrations' })
 * for (const { name, durationMs } of await migrator.up()) console.log(name, durationMs)
 * ```
 */
export class Migrator {
  readonly #source: ConnectionSource
  readonly #directory: string
  readonly #lockTimeoutMs: number
  readonly #statementTimeoutMs: number | false
  readonly #waitForLockMs: number
  readonly #logger: Logger | undefined

  constructor(options: MigratorOptions) {
    this.#source = options.source
    this.#directory = options.directory
    this.#lockTimeoutMs = wholeNumber('lockTimeoutMs', options.lockTimeoutMs ?? 5_000, 1)
    const statementTimeoutMs = options.statementTimeoutMs ?? 600_000
    this.#statementTimeoutMs = statementTimeoutMs && wholeNumber('statementTimeoutMs', statementTimeoutMs, 1)
    this.#waitForLockMs = wholeNumber('waitForLockMs', options.waitForLockMs ?? 60_000, 0)
    this.#logger = options.logger
  }

  /**
   * Applies what is pending, in order: everything, up to and with the migration `to`, or the next `count`. Resolves to
   * what it applied; with nothing pending to an empty list.
   *
   * Fails with `MIGRATION_INVALID` before anything runs if a file or their order is wrong, `MIGRATION_LOCKED` if another
   * process migrates for too long, and `MIGRATION_FAILED` if a statement fails: files before it stay applied.
   */
  async up(
    options: { readonly to?: string | undefined; readonly count?: number | undefined } = {},
  ): Promise<readonly MigrationRun[]> {
    const { to, count } = options
    if (count !== undefined) wholeNumber('count', count, 1)
    const files = await readMigrations(this.#directory)
    const target = to === undefined ? undefined : this.#named(files, to)
    return this.#locked(async (session) => {
      const ledger = await session.withClient(async (client) => {
        await ensureLedger(client)
        return readLedger(client)
      })
      const pending = this.#pending(files, ledger)
      const wanted = pending.slice(0, count).filter((file) => !target || files.indexOf(file) <= files.indexOf(target))
      return this.#runAll(session, wanted, 'up')
    })
  }

  /**
   * Undoes the last `count` applied migrations, the newest first. Fails with `MIGRATION_INVALID`, before anything runs,
   * if one of them has no file or no Down section.
   */
  async down(options: { readonly count?: number | undefined } = {}): Promise<readonly MigrationRun[]> {
    const count = wholeNumber('count', options.count ?? 1, 1)
    const files = await readMigrations(this.#directory)
    return this.#locked(async (session) => {
      const ledger = await session.withClient(readLedger)
      const wanted = ledger
        .slice(-count)
        .toReversed()
        .map(({ name }) => this.#undoable(files, name))
      return this.#runAll(session, wanted, 'down')
    })
  }

  /** All migrations of the folder and of the database, in their order. Takes no lock and changes nothing. */
  async status(): Promise<readonly MigrationStatus[]> {
    const files = await readMigrations(this.#directory)
    const client = await this.#connect()
    try {
      const applied = new Map((await readLedger(client)).map((row) => [row.name, row.appliedAt]))
      const present = new Set(files.map((file) => file.name))
      const missing = [...applied.keys()].filter((name) => !present.has(name))
      return [...present, ...missing]
        .toSorted((a, b) => compareNumbers(numberOf(a), numberOf(b)))
        .map((name) => {
          const appliedAt = applied.get(name)
          const state = appliedAt === undefined ? 'pending' : 'applied'
          return { name, state: present.has(name) ? state : 'missing', appliedAt }
        })
    } finally {
      await client.end()
    }
  }

  /** Closes the source. */
  async close(): Promise<void> {
    await this.#source.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  #named(files: readonly MigrationFile[], to: string): MigrationFile {
    const wanted = to.replace(/\.sql$/, '')
    const found = files.find(
      (file) => file.name === wanted || (/^\d+$/.test(wanted) && numberOf(file.name) === BigInt(wanted)),
    )
    if (found) return found
    const last = files.at(-1)?.name ?? ''
    throw new DatabaseError(
      'INVALID_ARGUMENT',
      `There is no migration ${to} in ${this.#directory}. Give its name or its number, as in ${last}.`,
    )
  }

  #pending(files: readonly MigrationFile[], ledger: readonly LedgerRow[]): readonly MigrationFile[] {
    const applied = new Set(ledger.map((row) => row.name))
    const missing = ledger.find((row) => !files.some((file) => file.name === row.name))
    if (missing) throw this.#missing(missing.name)
    const newest = files.findLast((file) => applied.has(file.name))
    const pending = files.filter((file) => !applied.has(file.name))
    const [late] = pending
    if (late && newest && files.indexOf(late) < files.indexOf(newest)) {
      throw new MigrationError(
        'MIGRATION_INVALID',
        `${late.file} is not applied, but ${newest.name}, which comes after it, is. Give the file a number after ${newest.name}.`,
        { file: late.file },
      )
    }
    return pending
  }

  #undoable(files: readonly MigrationFile[], name: string): MigrationFile {
    const found = files.find((file) => file.name === name)
    if (!found) throw this.#missing(name)
    if (found.down.length > 0) return found
    throw new MigrationError(
      'MIGRATION_INVALID',
      `${found.file} has no SQL under \`-- Down Migration\`, so it cannot be undone. Write it, or write a new migration that makes the change back.`,
      { file: found.file },
    )
  }

  #missing(name: string): MigrationError {
    const file = `${name}.sql`
    const text = `Migration ${name} is applied to ${this.#source.description}, but ${this.#directory} has no ${file}. `
    return new MigrationError(
      'MIGRATION_INVALID',
      `${text}Bring the file back from version control; applied files are never removed or renamed.`,
      {
        file,
      },
    )
  }

  async #runAll(
    session: MigrationSession,
    files: readonly MigrationFile[],
    direction: Direction,
  ): Promise<readonly MigrationRun[]> {
    const runs: MigrationRun[] = []
    for (const file of files) {
      // A lock session that the server ended no longer keeps others out.
      // One file's settings must not reach the next; on a server each has a connection of its own.
      const check = this.#source.maxConnections === 1 ? 'discard all' : 'select 1'
      await session.client.query(check).catch(rethrowTyped)
      const before = performance.now()
      await this.#runPatiently(session, file, direction)
      const durationMs = Math.round(performance.now() - before)
      this.#logger?.info(`${direction === 'up' ? 'applied' : 'undid'} ${file.name} in ${durationMs} ms`)
      runs.push({ name: file.name, durationMs })
    }
    return runs
  }

  async #runPatiently(session: MigrationSession, file: MigrationFile, direction: Direction): Promise<void> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        await session.withClient((client) => this.#run(client, file, direction))
        return
      } catch (error) {
        const cause = error instanceof MigrationError && error.cause instanceof DatabaseError ? error.cause : undefined
        const mayPass = cause?.code === 'LOCK_TIMEOUT' || cause?.code === 'DEADLOCK'
        if (!mayPass || attempt === lockAttempts) throw error
        const pauseMs = Math.round(this.#lockTimeoutMs * (0.5 + Math.random()))
        this.#logger?.warn(
          `${file.name} did not get a lock on a table within ${this.#lockTimeoutMs} ms ` +
            `(attempt ${attempt} of ${lockAttempts}), again in ${pauseMs} ms`,
        )
        await sleep(pauseMs)
      }
    }
  }

  async #run(client: BoundedClient, file: MigrationFile, direction: Direction): Promise<void> {
    let failed: { readonly statement: MigrationStatement; readonly cause: unknown } | undefined
    const limitMs = this.#statementTimeoutMs !== false && this.#waitMs(this.#statementTimeoutMs)
    // node-pg-migrate has opened the transaction when it calls this, and records the file before it commits.
    const runStatements = async (): Promise<void> => {
      await client.query(
        `set local lock_timeout = ${this.#lockTimeoutMs}; set local statement_timeout = ${this.#statementTimeoutMs || 0}; set local timezone = 'UTC'`,
      )
      for (const statement of file[direction]) {
        try {
          await client.query(statement.sql, undefined, limitMs)
        } catch (cause) {
          failed = { statement, cause }
          throw cause
        }
      }
    }
    // It tells the directions apart by the identity of these two.
    const up = (_builder: MigrationBuilder): Promise<void> => runStatements()
    const down = (_builder: MigrationBuilder): Promise<void> => runStatements()
    try {
      await runner({
        dbClient: runnerClient(client, limitMs),
        dir: this.#directory,
        file: file.name,
        direction,
        migrationsTable: ledgerTable,
        singleTransaction: true,
        noLock: true,
        checkOrder: false,
        ignorePattern: String.raw`.*(?<!\.sql)`,
        migrationLoaderStrategies: [
          {
            extensions: ['.sql'],
            // The file as it was checked, not as it may have become on disk since.
            loader: () => Promise.resolve([{ id: file.file, filePaths: [file.file], actions: { up, down } }]),
          },
        ],
        logger: silent,
      })
    } catch (error) {
      if (failed) throw this.#failure(file, failed.cause, failed.statement)
      const { firstFailure } = client
      throw firstFailure ? stepFailure(file, firstFailure.sql, firstFailure.error) : toDatabaseError(error)
    }
  }

  #failure(file: MigrationFile, cause: unknown, statement: MigrationStatement): MigrationError {
    const limitMs = this.#statementTimeoutMs || undefined
    const typed = toDatabaseError(cause, { inTransaction: true, sql: statement.sql })
    const line = statement.line + lineAt(statement.sql, failingOffset(statement.sql, cause)) - 1
    const said = typed.sqlState && cause instanceof Error ? `${cause.message} (${typed.sqlState})` : typed.message
    const limit =
      typed.code === 'STATEMENT_TIMEOUT' && limitMs ? ` The limit is ${limitMs} ms (statementTimeoutMs).` : ''
    const hint = hints[typed.sqlState ?? ''] ?? ''
    return new MigrationError(
      'MIGRATION_FAILED',
      `${file.file}:${line} failed: ${said.replace(/\.$/, '')}.${limit}${hint} Nothing of this file is in effect. The statement:\n${excerpt(statement.sql)}`,
      { cause: typed, file: file.file, line, statement: statement.sql, sql: statement.sql, sqlState: typed.sqlState },
    )
  }

  /** Runs work while no other migrator can. */
  async #locked<T>(work: (session: MigrationSession) => Promise<T>): Promise<T> {
    const client = await this.#connect()
    try {
      // The embedded PostgreSQL has one session: whoever holds it needs no lock, and there is no second one to work on.
      if (this.#source.maxConnections === 1) return await work({ client, withClient: (run) => run(client) })
      await this.#acquireLock(client)
      try {
        return await work({ client, withClient: (run) => this.#withNewClient(run) })
      } finally {
        // Where this fails the session is gone, and its lock with it.
        await client.query('rollback').catch(() => undefined)
      }
    } finally {
      await client.end()
    }
  }

  /** Of what the migrator asks for itself, only a lock on its own table can take long. */
  #connect(): Promise<BoundedClient> {
    return BoundedClient.connect(this.#source, this.#waitMs(this.#lockTimeoutMs))
  }

  /** How long to wait for what the server ends by itself after a time. The embedded one freezes only with this process. */
  #waitMs(serverLimitMs: number): number | false {
    return this.#source.maxConnections > 1 && serverLimitMs + answerGraceMs
  }

  async #withNewClient<T>(run: (client: BoundedClient) => Promise<T>): Promise<T> {
    const client = await this.#connect()
    try {
      await client.query("select set_config('application_name', $1, false)", [sessionName()]).catch(rethrowTyped)
      return await run(client)
    } finally {
      await client.end()
    }
  }

  /** In a transaction, which it leaves open: behind a pooler only that stays on one session, and ends there for certain. */
  async #acquireLock(client: BoundedClient): Promise<void> {
    const deadline = performance.now() + this.#waitForLockMs
    await client.query("select set_config('application_name', $1, false)", [sessionName()]).catch(rethrowTyped)
    for (let told = false; ; told = true) {
      // It holds back no vacuum: under this level there is no snapshot between statements.
      await client.query('begin isolation level read committed').catch(rethrowTyped)
      await client.query(unlimitedTransaction).catch(rethrowTyped)
      const { rows } = await client
        .query<{ locked: boolean }>('select pg_try_advisory_xact_lock($1) as locked', [lockKey])
        .catch(rethrowTyped)
      if (rows[0]?.locked) return
      await client.query('rollback').catch(rethrowTyped)
      const holder = await describeHolder(client)
      const leftMs = deadline - performance.now()
      if (leftMs <= 0) {
        throw new MigrationError(
          'MIGRATION_LOCKED',
          `${this.#source.description} is being migrated by ${holder}, and the wait for it ended after ${this.#waitForLockMs} ms. ` +
            'Wait for it, or end that session with pg_terminate_backend if nobody needs it.',
        )
      }
      if (!told) this.#logger?.info(`waiting up to ${this.#waitForLockMs} ms for ${holder}, which is migrating`)
      await sleep(Math.min(leftMs, lockPollMs * (0.5 + Math.random())))
    }
  }
}

/** The limits of some versions that would end the transaction which only holds the lock. */
const unlimitedTransaction = `
  select set_config(name, '0', true) from pg_settings
   where name in ('idle_in_transaction_session_timeout', 'transaction_timeout')`

/** A session that keeps other migrators out, and the way to one for work. */
interface MigrationSession {
  readonly client: BoundedClient
  withClient<T>(run: (client: BoundedClient) => Promise<T>): Promise<T>
}

interface LedgerRow {
  readonly name: string
  readonly appliedAt: Date
}

/** node-pg-migrate would make the same table; but its error hides what PostgreSQL said. */
async function ensureLedger(client: BoundedClient): Promise<void> {
  try {
    if (await hasLedger(client)) return
    await client.query(
      `create table public.${ledgerTable} (id serial primary key, name varchar(255) not null, run_on timestamp not null)`,
    )
  } catch (error) {
    throw toDatabaseError(error)
  }
}

async function hasLedger(client: BoundedClient): Promise<boolean> {
  const { rows } = await client.query<{ exists: boolean }>(
    `select to_regclass('public.${ledgerTable}') is not null as exists`,
  )
  return rows[0]?.exists === true
}

async function readLedger(client: BoundedClient): Promise<readonly LedgerRow[]> {
  try {
    if (!(await hasLedger(client))) return []
    const { rows } = await client.query<{ name: string; applied_at: Date }>(
      `select name, run_on at time zone 'UTC' as applied_at from public.${ledgerTable} order by id`,
    )
    return rows.map((row) => ({ name: row.name, appliedAt: row.applied_at }))
  } catch (error) {
    throw toDatabaseError(error)
  }
}

const lockKey = String(PG_MIGRATE_LOCK_ID)

async function describeHolder(client: BoundedClient): Promise<string> {
  const { rows } = await client
    .query<{ pid: number; application_name: string | null; age: string | null }>(
      `select l.pid, a.application_name, date_trunc('second', clock_timestamp() - a.backend_start)::text as age
       from pg_locks l left join pg_stat_activity a on a.pid = l.pid
       where l.locktype = 'advisory' and l.granted and l.objsubid = 1
         and l.database = (select oid from pg_database where datname = current_database())
         and (l.classid::bigint << 32 | l.objid::bigint) = $1`,
      [lockKey],
    )
    .catch(rethrowTyped)
  const [holder] = rows
  if (!holder) return 'a session that has just ended'
  return `backend ${holder.pid} (${holder.application_name || 'no application name'}, connected for ${holder.age ?? 'an unknown time'})`
}

/** PostgreSQL keeps 63 bytes of it. */
function sessionName(): string {
  return `kanta migrate, process ${process.pid} on ${hostname()}`.slice(0, 63)
}

const hints: Readonly<Record<string, string>> = {
  '25001': ' Each file runs in a transaction, in which this statement is not allowed.',
  '42501': ' Migrate with a role that owns the tables and may create in the schema.',
  '55P03': ` No lock on a table was granted in ${lockAttempts} attempts; see who holds it with pg_blocking_pids, or migrate when less is going on.`,
}

type RunnerClient = NonNullable<Extract<RunnerOption, { dbClient?: unknown }>['dbClient']>

/** Behind a pooler others have the session next. In one message it is the same session, which has what the file has set. */
const commit = 'COMMIT; reset role; reset session authorization; reset all'

/** What node-pg-migrate sends by itself; of that only COMMIT, which checks deferred constraints, takes as long as a statement. */
function runnerClient(client: BoundedClient, limitMs: number | false): RunnerClient {
  const query = (sql: string): Promise<unknown> =>
    sql === 'COMMIT' ? client.query(commit, undefined, limitMs) : client.query(sql)
  return { query } as unknown as RunnerClient
}

/** A failure of what is around the statements of a file. */
function stepFailure(file: MigrationFile, sent: string, cause: unknown): MigrationError {
  const isCommit = sent === commit
  const sql = isCommit ? 'COMMIT' : sent
  const error = toDatabaseError(cause, { inTransaction: true, sql, ...(isCommit && { phase: 'commit' }) })
  const said = error.sqlState && cause instanceof Error ? `${cause.message} (${error.sqlState})` : error.message
  // A backend that is ended at COMMIT may have committed before it said so.
  const isUnknown = isCommit && (error.sqlState === undefined || isConnectionGone(error))
  const outcome = isUnknown
    ? '`kanta migrate status` tells whether it is applied.'
    : 'Nothing of this file is in effect.'
  const hint = hints[error.sqlState ?? ''] ?? ''
  return new MigrationError(
    'MIGRATION_FAILED',
    `${file.file} ${stepOf(sql)}: ${said.replace(/\.$/, '')}.${hint} ${outcome}`,
    { cause: error, file: file.file, sql, sqlState: error.sqlState },
  )
}

function stepOf(sql: string): string {
  if (sql === 'COMMIT') return 'could not be committed'
  if (sql === 'BEGIN') return 'was not begun, because no transaction could be opened'
  if (/^INSERT|^DELETE/.test(sql)) return `ran, but could not be noted in ${ledgerTable}`
  if (sql.startsWith('set local')) return 'was not begun, because its limits could not be set'
  return `was not begun, because ${ledgerTable} could not be read`
}

/** PostgreSQL counts characters from 1; a string of ours counts UTF-16 units from 0. */
function failingOffset(sql: string, cause: unknown): number {
  const { position } = cause as { readonly position?: unknown }
  const characters = typeof position === 'string' ? Number(position) - 1 : 0
  return Array.from(sql).slice(0, characters).join('').length
}

function excerpt(sql: string): string {
  const lines = sql.split('\n')
  const shown = lines.slice(0, 12).map((line) => `  ${line.length > 160 ? `${line.slice(0, 160)}…` : line}`)
  return [...shown, ...(lines.length > 12 ? [`  … (${lines.length - 12} more lines)`] : [])].join('\n')
}

function wholeNumber(name: string, value: number, least: number): number {
  if (isWhole(value, least, largestInt32)) return value
  throw new DatabaseError(
    'INVALID_ARGUMENT',
    `${name} must be a whole number from ${least} to ${largestInt32}; it is ${String(value)}.`,
  )
}

function rethrowTyped(error: unknown): never {
  throw toDatabaseError(error)
}

const silent = { info: () => undefined, warn: () => undefined, error: () => undefined }
