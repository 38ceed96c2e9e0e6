import { AsyncResource } from 'node:async_hooks'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { inspect } from 'node:util'
import { sql } from 'kysely'
import { Client } from 'pg'
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from 'vitest'
import { resolveConfig } from '../../src/core/config.ts'
import { type DatabaseError, errorCatalog, type ErrorCode, isDatabaseError, retryScope } from '../../src/core/errors.ts'
import {
  createDatabase,
  createOutbox,
  createSagas,
  type Database,
  httpSink,
  paginate,
  type PostgresOptions,
  type Saga,
  saga,
  type Sagas,
  StepRefusedError,
  type StepContext,
} from '../../src/index.ts'
import { createMigrator, writeTypes } from '../../src/migrate.ts'
import { toDatabaseError } from '../../src/postgres/sqlstate.ts'
import { RedisClient } from '../../src/redis/client.ts'
import { Repository } from '../../src/repository/repository.ts'
import { startPgBouncer } from '../support/pgbouncer.ts'
import { type Proxy, startProxy } from '../../src/testing/fault-proxy.ts'
import { type OwnServer, startPostgres } from '../support/servers.ts'

/** Runs a call as another request would make it, outside the transaction that surrounds it. */
const outside = AsyncResource.bind((work: () => Promise<unknown>) => work())

interface Shop {
  users: { id: number; email: string; name: string; manager_id: number | null; age: number }
  rooms: { id: number }
  counted: { id: number; version: number }
}

let server: OwnServer
let url = ''
let admin: Client
const folder = mkdtempSync(join(tmpdir(), 'kanta-errors-'))

beforeAll(async () => {
  // Few locks in all, so that a statement can use them up.
  server = await startPostgres({ settings: { max_connections: 60, max_locks_per_transaction: 10 } })
  const founder = await connect(server.url)
  await founder.query('create database shop')
  await founder.end()
  url = Object.assign(new URL(server.url), { pathname: '/shop' }).href
  admin = await connect(url)
  await admin.query(`
    create role app login password 'right';
    create table users (id int primary key, email text constraint users_email_key unique, name text not null,
      manager_id int constraint users_manager_id_fkey references users, age int constraint users_age_check check (age > 0));
    create table counted (id int primary key, version int not null);
    insert into counted values (1, 5);
    create table rooms (id int, during int4range, constraint rooms_booked_once exclude using gist (during with &&));
    insert into users values (1, 'ada@example.org', 'Ada', null, 36), (2, 'bob@example.org', 'Bob', null, 40);
    insert into rooms values (1, '[1, 5)')`)
}, 60_000)

afterAll(async () => {
  await admin.end()
  await server.stop()
  rmSync(folder, { recursive: true })
})

async function connect(to: string): Promise<Client> {
  const client = new Client({ connectionString: to, application_name: 'witness' })
  client.on('error', () => undefined)
  await client.connect()
  return client
}

async function open(options: PostgresOptions = {}): Promise<Database<Shop>> {
  const postgres = { url, pipeline: false as const, retry: false as const, breaker: false as const, ...options }
  const database = await createDatabase<Shop>({ postgres, redis: false })
  onTestFinished(() => database.close())
  return database
}

async function proxyTo(to: string): Promise<Proxy> {
  const proxy = await startProxy({ to })
  onTestFinished(() => proxy.close())
  return proxy
}

/** A role of its own kind, whose name the page shows as `app`. */
async function roleUrl(name: string, ...settings: readonly string[]): Promise<string> {
  await admin.query(`create role ${name} login`)
  for (const setting of settings) await admin.query(`alter role ${name} ${setting}`)
  return Object.assign(new URL(url), { username: name }).href
}

async function freePort(): Promise<number> {
  const probe = createServer().listen(0, '127.0.0.1')
  await vi.waitUntil(() => probe.listening)
  const { port } = probe.address() as { port: number }
  await new Promise((resolve) => probe.close(resolve))
  return port
}

/** Runs something while a statement that sleeps is on its way, and gives the sleeper's fate. */
async function under(database: Database<Shop>, strike: (pid: number) => Promise<unknown>): Promise<unknown> {
  const sleeping = database.query(sql`select pg_sleep(60)`).catch((error: unknown) => error)
  await strike(await pidOf('select pg_sleep(60)'))
  throw await sleeping
}

async function pidOf(query: string): Promise<number> {
  let pid: number | undefined
  await vi.waitUntil(async () => {
    const { rows } = await admin.query<{ pid: number }>(
      `select pid from pg_stat_activity where query = $1 and state = 'active'`,
      [query],
    )
    pid = rows[0]?.pid
    return pid !== undefined
  })
  return pid as number
}

/** Holds a connection of the pool with an open transaction while something else is tried. */
async function whileHeld(database: Database<Shop>, attempt: () => Promise<unknown>): Promise<unknown> {
  const over = Promise.withResolvers<void>()
  const held = Promise.withResolvers<void>()
  const holder = database.transaction(async function placeOrder() {
    await database.query(sql`update users set age = age where id = 1`)
    held.resolve()
    await over.promise
  })
  await held.promise
  try {
    return await attempt()
  } finally {
    over.resolve()
    await holder
  }
}

const insert = async (row: Partial<Shop['users']>): Promise<unknown> => {
  const database = await open()
  return database.db
    .insertInto('users')
    .values({ id: 3, email: 'eve@example.org', name: 'Eve', manager_id: null, age: 30, ...row })
    .execute()
}

const run = async (text: string, options?: PostgresOptions): Promise<unknown> =>
  (await open(options)).query(sql.raw(text))

/** What the server says where nobody can make it say so here; the message is made by the function that makes all. */
function reported(code: string, message: string, fields: object = {}): never {
  const report = Object.assign(new Error(message), { code, severity: 'FATAL', ...fields })
  throw toDatabaseError(report, { sql: 'select 1', target: 'postgres://app@127.0.0.1:5432/shop' })
}

const migrationFolder = (name: string, files: Readonly<Record<string, string>>): string => {
  const directory = mkdtempSync(join(folder, `${name}-`))
  for (const [file, text] of Object.entries(files)) writeFileSync(join(directory, file), text)
  return directory
}

const userColumns = { id: 'id', email: 'email' } as const

class Users extends Repository<Shop, 'users', Pick<Shop['users'], 'email' | 'id'>, typeof userColumns> {
  constructor(database: Database<Shop>) {
    super(database, { table: 'users', columns: userColumns, validate: { create: schema } })
  }
}

/** What zod makes of `z.object({ email: z.email() })`, as far as it is asked here. */
const schema = {
  '~standard': {
    version: 1,
    vendor: 'kanta',
    validate: () => ({ issues: [{ message: 'No email', path: ['email'] }] }),
  },
} as const

const countedColumns = { id: 'id', version: 'version' } as const

class Counted extends Repository<Shop, 'counted', Shop['counted'], typeof countedColumns> {
  constructor(database: Database<Shop>) {
    super(database, { table: 'counted', columns: countedColumns, version: 'version' })
  }
}

/** One way to each error. What rejects is what a caller of kanta sees. */
const provoke: Readonly<Record<ErrorCode, () => Promise<unknown>>> = {
  CONFIG_INVALID: () =>
    createDatabase({ postgres: { url: 'mysql://shop', pool: { max: 0, maxx: 9 } as object }, redis: false }),
  DATABASE_CLOSED: async () => {
    const database = await open()
    await database.close()
    return database.query(sql`select 1`)
  },
  EMBEDDED_UNAVAILABLE: () => {
    const dataDir = join(folder, 'a-file')
    writeFileSync(dataDir, '')
    return createDatabase({ postgres: { embedded: { dataDir: join(dataDir, 'data') } }, redis: false })
  },

  CONNECTION_FAILED: async () => open({ url: `postgres://app@127.0.0.1:${await freePort()}/shop` }),
  CONNECTION_LOST: async () => {
    const proxy = await proxyTo(url)
    const database = await open({ url: proxy.url })
    proxy.on({ from: 'server', message: 'CommandComplete', tag: 'UPDATE' }, 'reset')
    return database.query(sql`update users set age = age + 1 where id = ${1}`)
  },
  TOO_MANY_CONNECTIONS: async () => open({ url: await roleUrl('app_few', 'connection limit 0') }),
  SERVER_STARTING: async () => {
    const stopping = await startPostgres()
    onTestFinished(() => stopping.stop())
    const guest = await connect(stopping.url)
    onTestFinished(() => guest.end())
    // A smart shutdown waits for the guest, and lets nobody else in.
    process.kill(stopping.pid, 'SIGTERM')
    let error: unknown
    await vi.waitUntil(async () => {
      error = await open({ url: stopping.url })
        .then((database) => database.close())
        .catch((thrown: unknown) => thrown)
      return error !== undefined
    })
    throw error
  },
  SERVER_SHUTDOWN: async () => under(await open(), (pid) => admin.query('select pg_terminate_backend($1)', [pid])),
  SERVER_CRASHED: async () => {
    const crashing = await startPostgres()
    onTestFinished(() => crashing.stop())
    const victim = await connect(crashing.url)
    const { rows } = await victim.query<{ pid: number }>('select pg_backend_pid() as pid')
    const database = await open({ url: crashing.url })
    const sleeping = database.query(sql`select pg_sleep(60)`).catch((error: unknown) => error)
    await vi.waitUntil(async () => {
      const { rowCount } = await victim.query(`select from pg_stat_activity where query = 'select pg_sleep(60)'`)
      return rowCount === 1
    })
    process.kill(rows[0]?.pid as number, 'SIGKILL')
    throw await sleeping
  },
  IDLE_SESSION_TIMEOUT: async () => {
    const proxy = await proxyTo(await roleUrl('app_idle', 'set idle_session_timeout = 100'))
    const database = await open({ url: proxy.url })
    // The farewell is on its way when the next statement is sent.
    await proxy.on({ from: 'server', message: 'ErrorResponse' }, 'stall').struck
    const answer = database.query(sql`select 1`)
    setImmediate(() => proxy.thaw())
    return answer
  },
  // Only a standby says so, when its primary drops the database.
  DATABASE_DROPPED: async () => reported('57P04', 'terminating connection due to conflict with recovery'),
  POOLER_REJECTED: async () => {
    const pooler = await startPgBouncer(server.url)
    onTestFinished(() => pooler.stop())
    const behind = Object.assign(new URL(pooler.url), { pathname: '/shop' }).href
    return open({ url: behind, statementTimeoutMs: 1_000 })
  },
  NOTIFICATIONS_UNAVAILABLE: async () => {
    const pooler = await startPgBouncer(server.url)
    onTestFinished(() => pooler.stop())
    const behind = Object.assign(new URL(pooler.url), { pathname: '/shop' }).href
    return (await open({ url: behind })).listen('order_paid', () => undefined)
  },
  NOTIFICATION_TOO_LARGE: async () => (await open()).notify('order_paid', 'x'.repeat(10_000)),
  AUTHENTICATION_FAILED: () => open({ url: Object.assign(new URL(url), { username: 'nobody_here' }).href }),
  DATABASE_NOT_FOUND: () => open({ url: Object.assign(new URL(url), { pathname: '/shopp' }).href }),
  TLS_FAILED: () => open({ ssl: 'verify-full' }),
  RECOVERY_CONFLICT: async () => reported('40001', 'terminating connection due to conflict with recovery'),
  READ_ONLY: async () => {
    const database = await open()
    return database.transaction(() => database.query(sql`update users set age = 1`), { accessMode: 'read only' })
  },

  CIRCUIT_OPEN: async () => {
    const proxy = await proxyTo(url)
    const database = await open({
      url: proxy.url,
      breaker: { volumeThreshold: 1, resetTimeoutMs: 60_000 },
      pool: { idleTimeoutMs: 1 },
    })
    await vi.waitUntil(() => database.stats().pool.total === 0)
    await proxy.close()
    await vi.waitUntil(async () => {
      await database.query(sql`select 1`).catch(() => undefined)
      return database.stats().breaker === 'open'
    })
    return database.query(sql`select 1`)
  },
  POOL_OVERLOADED: async () => {
    const database = await open({ pool: { max: 1, maxWaiting: 1 } })
    return whileHeld(database, () =>
      outside(() => {
        void database.query(sql`select 1`)
        return database.query(sql`select 2`)
      }),
    )
  },
  POOL_TIMEOUT: async () => {
    const database = await open({ pool: { max: 1, acquireTimeoutMs: 100 } })
    return whileHeld(database, () => outside(() => database.query(sql`select 1`)))
  },
  QUERY_TIMEOUT: async () => (await open()).query(sql`select pg_sleep(60)`, { timeoutMs: 100 }),
  STATEMENT_TIMEOUT: () => run('select pg_sleep(60)', { statementTimeoutMs: 100 }),
  QUERY_CANCELED: async () => under(await open(), (pid) => admin.query('select pg_cancel_backend($1)', [pid])),
  LOCK_TIMEOUT: async () => {
    const database = await open()
    return whileHeld(database, () =>
      outside(() =>
        database.transaction(async () => {
          await database.query(sql`set local lock_timeout = 100`)
          await database.query(sql`update users set age = 37 where id = 1`)
        }),
      ),
    )
  },
  IDLE_IN_TRANSACTION_TIMEOUT: async () => {
    const database = await open({ url: await roleUrl('app_slow', 'set idle_in_transaction_session_timeout = 100') })
    return database.transaction(async () => {
      await database.query(sql`select 1`)
      await vi.waitUntil(() => isGone('app_slow'))
      await database.query(sql`select 2`)
    })
  },
  TRANSACTION_TIMEOUT: async () => {
    const database = await open()
    return database.transaction(() => database.query(sql`select pg_sleep(60)`), { timeoutMs: 100 })
  },

  SERIALIZATION_FAILURE: async () => {
    const database = await open()
    return database.transaction(
      async () => {
        await database.query(sql`select age from users where id = 1`)
        await admin.query('update users set age = age + 1 where id = 1')
        await database.query(sql`update users set age = age + 1 where id = 1`)
      },
      { isolationLevel: 'serializable', attempts: 1 },
    )
  },
  DEADLOCK: async () => {
    const database = await open()
    const both = Promise.withResolvers<void>()
    let arrived = 0
    const cross = (first: number, second: number): Promise<unknown> =>
      database.transaction(
        async () => {
          await database.query(sql`update users set age = age where id = ${first}`)
          arrived += 1
          if (arrived === 2) both.resolve()
          await both.promise
          await database.query(sql`update users set age = age where id = ${second}`)
        },
        { attempts: 1 },
      )
    return Promise.all([cross(1, 2), cross(2, 1)])
  },
  TRANSACTION_ABORTED: async () => {
    const database = await open()
    return database.transaction(async () => {
      await database.query(sql`select nothing from users`).catch(() => undefined)
    })
  },
  TRANSACTION_MISUSE: async () => {
    const database = await open()
    return database.transaction(async () => {
      void database.query(sql`update users set age = 1 where id = 1`).catch(() => undefined)
    })
  },
  COMMIT_OUTCOME_UNKNOWN: async () => {
    const proxy = await proxyTo(url)
    const database = await open({ url: proxy.url })
    // And nobody comes through any more to ask.
    proxy.on({ from: 'server', message: 'CommandComplete', tag: 'COMMIT' }, 'reset')
    proxy.on({ from: 'client', message: 'Startup' }, 'reset', { times: Infinity })
    return database.transaction(() => database.query(sql`update users set age = age where id = 1`))
  },

  UNIQUE_VIOLATION: () => insert({ email: 'ada@example.org' }),
  EXCLUSION_VIOLATION: () => run(`insert into rooms values (2, '[4, 6)')`),
  FOREIGN_KEY_VIOLATION: () => insert({ manager_id: 99 }),
  CHECK_VIOLATION: () => insert({ age: -1 }),
  NOT_NULL_VIOLATION: () => insert({ name: null as never }),

  INVALID_DATA: async () => (await open()).query(sql`select ${'4711x'}::int`),
  SYNTAX_ERROR: () => run('selekt 1'),
  UNDEFINED_OBJECT: () => run('select * from invoices'),
  INSUFFICIENT_PRIVILEGE: async () => run('select * from users', { url: await roleUrl('app_poor') }),
  QUERY_FAILED: () => run(`do $$ begin raise 'the warehouse is closed'; end $$`),
  PROTOCOL_VIOLATION: async () =>
    (await open()).query(sql`select 1 where 1 in (${sql.join(Array.from({ length: 65_536 }, (_, n) => n))})`),
  CACHED_PLAN_CHANGED: async () => {
    const database = await open({ preparedStatements: { threshold: 1 }, pipeline: false, pool: { max: 1 } })
    await admin.query('create table prices (id int)')
    const read = (): Promise<unknown> => database.query(sql`select * from prices where id > ${0}`)
    await read()
    // By another connection: a change of its own is noticed.
    await admin.query('alter table prices add amount int')
    return database.transaction(read, { attempts: 1 })
  },
  PREPARED_STATEMENT_LOST: async () => {
    const database = await open({ preparedStatements: { threshold: 1 } })
    return database.transaction(
      async () => {
        const read = (): Promise<unknown> => database.query(sql`select name from users where id = ${1}`)
        await read()
        await database.query(sql`deallocate all`)
        await read()
      },
      { attempts: 1 },
    )
  },

  // Row 20 of docs/faults.md fills a disk; it takes a file system of its own.
  DISK_FULL: async () =>
    reported('53100', 'could not extend file "base/16384/16401": No space left on device', { severity: 'ERROR' }),
  OUT_OF_MEMORY: () => run('select pg_advisory_xact_lock(n) from generate_series(1, 100000) n'),
  CONFIGURATION_LIMIT: async () => {
    await admin.query(`create role app_big login; alter role app_big set temp_file_limit = '64kB'`)
    await admin.query(`alter role app_big set work_mem = '64kB'`)
    const to = Object.assign(new URL(url), { username: 'app_big' }).href
    return run('select n from generate_series(1, 200000) n order by random()', { url: to })
  },
  SYSTEM_ERROR: () => run(`select pg_read_file('prices.csv')`),
  // Nobody damages a page for this; the code and the words are PostgreSQL's.
  INTERNAL_ERROR: () =>
    run(`do $$ begin raise 'invalid page in block 7 of relation base/16384/16401' using errcode = 'XX001'; end $$`),

  NOT_FOUND: async () => new Users(await open()).getById(99),
  VERSION_CONFLICT: async () => new Counted(await open()).delete({ id: 1, version: 4 }),
  VALIDATION_FAILED: async () => new Users(await open()).create({ email: 'ada', id: 1, name: 'Ada' } as never),
  INVALID_ARGUMENT: async () => (await open()).queryCount(sql`select name from users`),
  CURSOR_INVALID: async () => {
    const database = await open()
    const { cursorSecret: secret } = database
    return paginate(database.db.selectFrom('users').select('name'), { by: [['id', 'asc']], after: '4711', secret })
  },
  MIGRATION_INVALID: () => migrate({ '0001_users.sql': 'create table users ();' }),
  MIGRATION_FAILED: () => migrate({ '0001_prices.sql': '-- Up Migration\ncreate table offers (\n  id int,,\n);' }),
  MIGRATION_LOCKED: async () => {
    const other = await connect(url)
    onTestFinished(() => other.end())
    await other.query(`set application_name = 'kanta migrate, process 4242 on shop-7d9f'`)
    await other.query('select pg_advisory_lock(7241865325823964)')
    return migrate({ '0001_a.sql': '-- Up Migration\nselect 1;' }, 100)
  },
  BULK_SOURCE_FAILED: async () =>
    (await open()).insertMany(
      'users',
      (function* () {
        yield { id: 7, email: 'ada@example.org', name: 'Ada', age: 36 }
        throw new Error('the file ended in the middle of a line')
      })(),
    ),
  CODEGEN_FAILED: () => {
    const migrationsDirectory = migrationFolder('m', { '0001_a.sql': '-- Up Migration\ncreate table a (id int);' })
    const taken = join(folder, 'taken')
    writeFileSync(taken, '')
    return writeTypes({ migrationsDirectory, outFile: join(taken, 'schema.ts') })
  },
  REDIS_UNAVAILABLE: async () => {
    const { redis } = resolveConfig(
      { postgres: { url }, redis: { url: `redis://127.0.0.1:${await freePort()}/0` } },
      {},
    )
    const client = new RedisClient(redis as NonNullable<typeof redis>)
    onTestFinished(() => client.close())
    return client.ping()
  },
  CACHE_VALUE_UNSUPPORTED: async () => (await open()).cache.set('report', { rows: [1, 2], render: () => 'text' }),
  CACHE_LOAD_TIMEOUT: async () =>
    (await open()).cache.getOrSet('report', () => new Promise(() => undefined), { loadTimeoutMs: 50 }),
  CACHE_WRITE_BEHIND_FULL: async () => {
    const seen = (await open()).cache.writeBehind<Date>({ write: () => Promise.resolve(), maxKeys: 1 })
    seen.add('ada', new Date())
    seen.add('grace', new Date())
  },
  SAGA_COMPENSATED: () => runSaga({ run: () => refuse('The card was declined.') }),
  SAGA_CANCELED: () =>
    runSaga({
      run: async ({ sagaId, signal }, sagas) => {
        await sagas.cancel(sagaId)
        signal.throwIfAborted()
      },
    }),
  SAGA_STUCK: () =>
    runSaga({ run: () => refuse('The card was declined.'), undo: () => refuse('The shop is closed for the night.') }),
  SAGA_CONFLICT: async () => {
    const sagas = await openSagas({ run: () => undefined })
    await sagas.start(payOrder, { orderId: 4711 }, { idempotencyKey: 'order 4711' })
    return sagas.start(payOrder, { orderId: 4712 }, { idempotencyKey: 'order 4711' })
  },
  SAGA_STEP_REFUSED: async () => refuse('The card was declined.'),
  SAGA_STEP_TIMEOUT: () => reasonOfSignal(() => undefined),
  SAGA_LEASE_LOST: () =>
    reasonOfSignal((id) => admin.query('update kanta.sagas set fence = fence + 1 where id = $1', [id])),
  EVENT_TOO_LARGE: async () => {
    const outbox = await createOutbox<{ 'order.paid': string }>(await open(), { maxPayloadBytes: 1_000 })
    return outbox.publish('order.paid', 'x'.repeat(2_000))
  },
  DELIVERY_FAILED: async () => {
    const deliver = httpSink({ url: `http://127.0.0.1:${await freePort()}/orders` })
    const event = { id: '7', topic: 'order.paid', key: undefined, payload: 'x', headers: {}, attempt: 1 } as const
    const { signal } = new AbortController()
    return deliver({ ...event, publishedAt: new Date() }, { signal, timeoutMs: 1_000 })
  },
}

interface OrderSteps {
  readonly run: (context: StepContext<unknown, unknown>, sagas: Sagas) => unknown
  readonly undo?: () => unknown
  readonly timeoutMs?: number
}

let payOrder: Saga<{ orderId: number }>

function refuse(message: string): never {
  throw new StepRefusedError(message)
}

async function openSagas({ run: charge, undo, timeoutMs = 30_000 }: OrderSteps): Promise<Sagas> {
  const opened: { sagas?: Sagas } = {}
  payOrder = saga<{ orderId: number }>('pay-order')
    .step('take stock', { run: () => undefined, compensate: async () => void (await undo?.()) })
    .step('charge', {
      retry: { attempts: 1 },
      timeoutMs,
      run: async (context) => void (await charge(context, opened.sagas as Sagas)),
    })
  const logger = { warn: () => undefined }
  const sagas = await createSagas(await open(), [payOrder], { leaseMs: 300, pollMs: 20, logger })
  opened.sagas = sagas
  onTestFinished(() => sagas.close())
  return sagas
}

async function runSaga(steps: OrderSteps): Promise<unknown> {
  return (await openSagas(steps)).run(payOrder, { orderId: 4711 })
}

/** Why the signal of a step aborts. */
async function reasonOfSignal(strike: (id: string) => unknown): Promise<never> {
  const aborted = Promise.withResolvers<unknown>()
  const sagas = await openSagas({
    timeoutMs: 500,
    run: async ({ sagaId, signal }) => {
      signal.addEventListener('abort', () => aborted.resolve(signal.reason))
      await strike(sagaId)
      await aborted.promise
    },
  })
  await sagas.start(payOrder, { orderId: 4711 })
  throw await aborted.promise
}

async function isGone(role: string): Promise<boolean> {
  return (await admin.query('select from pg_stat_activity where usename = $1', [role])).rowCount === 0
}

async function migrate(files: Readonly<Record<string, string>>, waitForLockMs = 1_000): Promise<unknown> {
  const logger = { info: () => undefined, warn: () => undefined }
  const migrator = await createMigrator({
    postgres: { url },
    directory: migrationFolder('m', files),
    waitForLockMs,
    logger,
  })
  onTestFinished(() => migrator.close())
  return migrator.up()
}

const codes = Object.keys(errorCatalog) as ErrorCode[]
const samples = new Map<ErrorCode, DatabaseError>()

test.for(codes)('%s reaches its caller as itself, with a message in whole sentences', async (code) => {
  const error = await provoke[code]().then(
    () => undefined,
    (thrown: unknown) => thrown,
  )
  expect(isDatabaseError(error) ? error.code : error).toBe(code)
  const { message } = error as DatabaseError
  expect(message.split('\n')[0]).toMatch(/[.:]$/)
  samples.set(code, error as DatabaseError)
})

// `npm test -- errors-page -u` writes the page anew.
test('docs/errors.md is the catalog, with these messages', async () => {
  expect(codes.filter((code) => !samples.has(code))).toEqual([])
  await expect(page()).toMatchFileSnapshot('../../docs/errors.md')
})

function page(): string {
  const rows = codes.map((code) => {
    const advice = errorCatalog[code]
    const cells = [
      `[\`${code}\`](#${code.toLowerCase()})`,
      `\`${samples.get(code)?.name}\``,
      advice.transient ? 'yes' : 'no',
      retryScope(advice),
      retryScope(advice, true),
    ]
    return `| ${cells.join(' | ')} |`
  })
  return `# Errors

Everything that kanta throws is a \`DatabaseError\` with a literal \`code\`. Compare codes, not messages.

- \`transient\`: waiting may help, nothing in the program or its data has to change.
- \`retry\`: what may be run again without running anything twice. \`statement\`: the same statement, even a write, because it
  never ran or was undone. \`transaction\`: only the whole transaction, from its first statement. \`none\`: nothing, because it
  would fail again or because it may already have happened.
- \`sql\`, \`sqlState\`, \`schema\`, \`table\`, \`column\`, \`constraint\` where they apply. Parameters and credentials are in no message
  and no field. The driver's error is in \`cause\`; what PostgreSQL quotes of a row (\`cause.detail\`) can be read there but is not
  enumerable, so that loggers do not print it.

\`isDatabaseError(error)\` recognises them, also across two copies of the package; \`isViolation<ConstraintName>(error, 'users_email_key')\`
recognises the violation of one constraint, and stops compiling when the constraint is renamed.

| code | class | transient | \`retry\` outside a transaction | inside one |
|---|---|---|---|---|
${rows.join('\n')}

## What a log shows

For each code: what it means, what to do, and an example as it stands in a log, class, message and fields, without its stack. The
examples are not written by hand: \`test/integration/errors-page.test.ts\` provokes each error and compares this page with what
was thrown. Words at the start of a message are PostgreSQL's own, and differ a little between its versions.

${codes.map(section).join('\n\n')}
`
}

function section(code: ErrorCode): string {
  const { meaning, remedy } = errorCatalog[code]
  return `### ${code}\n\n${meaning} ${remedy}\n\n\`\`\`text\n${steady(shown(samples.get(code) as DatabaseError))}\n\`\`\``
}

/** As console.error and most loggers show it, but for stack and cause. */
function shown(error: DatabaseError): string {
  const { name, message, ...fields } = error.toJSON()
  const given = Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined))
  if (typeof given['sql'] === 'string' && given['sql'].length > 200) given['sql'] = `${given['sql'].slice(0, 60)} …`
  return `${String(name)}: ${String(message)}\n${inspect(given, { breakLength: 110 })}`
}

/** What differs from run to run: places, numbers of processes, and times that were measured. */
function steady(text: string): string {
  return text
    .replaceAll(new RegExp(`${folder}/m-[A-Za-z0-9]+`, 'g'), 'migrations')
    .replaceAll(folder, '/srv/shop')
    .replaceAll(/127\.0\.0\.1:\d+\/0/g, '127.0.0.1:6379/0')
    .replaceAll(/127\.0\.0\.1:\d+(?!\d*\/0)/g, '127.0.0.1:5432')
    .replaceAll(/app_[a-z]+/g, 'app')
    .replaceAll(/ at [^;]*errors-page\.test\.ts:\d+:\d+\)?/g, ' at placeOrder (src/orders.ts:12:7)')
    .replaceAll(/\d+ ms (after the statement|by a transaction)/g, '104 ms $1')
    .replaceAll(/next attempt is in \d+ ms/g, 'next attempt is in 812 ms')
    .replaceAll(/[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}/g, '01980f5e-7a3c-4d21-9f4b-2f0c6d1e8a57')
    .replaceAll(/\bbackend \d+/g, 'backend 4711')
    .replaceAll(/connected for [\d:]+/g, 'connected for 00:00:41')
}
