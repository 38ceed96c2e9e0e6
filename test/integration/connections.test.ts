import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type RawBuilder, sql } from 'kysely'
import { expect, onTestFinished, test, vi } from 'vitest'
import { createDatabase, type Database, type DatabaseOptions } from '../../src/index.ts'
import { freshDatabaseUrl } from '../support/database.ts'
import { startProxy } from '../../src/testing/fault-proxy.ts'
import { type OwnServer, startPostgres } from '../support/servers.ts'

type PoolOptions = NonNullable<NonNullable<DatabaseOptions['postgres']>['pool']>

function open(url: string, pool: PoolOptions = {}): Promise<Database<never>> {
  return createDatabase<never>({ postgres: { url, pool }, redis: false })
}

async function value<T>(database: Database<never>, expression: RawBuilder<unknown>): Promise<T> {
  const { rows } = await sql<{ value: T }>`select ${expression} as value`.execute(database.db)
  return (rows[0] as { value: T }).value
}

const backend = (database: Database<never>): Promise<number> => value<number>(database, sql`pg_backend_pid()`)

/** Calls again and again, whatever comes of it. */
async function until(signal: AbortSignal, call: () => Promise<unknown>): Promise<void> {
  while (!signal.aborted) {
    await call().catch(() => undefined)
    await new Promise((resolve) => setImmediate(resolve))
  }
}

/** Resolves when so many calls in a row were refused. */
async function refusals(database: Database<never>, count: number): Promise<void> {
  for (let failed = 0; failed < count;) {
    failed = await backend(database).then(
      () => 0,
      () => failed + 1,
    )
  }
}

/** Ends the backends that sleep, and says how many those were. */
function terminateSleepers(database: Database<never>): Promise<number> {
  return value<number>(
    database,
    sql`(select count(pg_terminate_backend(pid))::int from pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid() and query like '%pg_sleep%')`,
  )
}

test('a killed idle connection is dropped and the next query works', async () => {
  const url = await freshDatabaseUrl('empty')
  await using database = await open(url, { max: 2 })
  await using other = await open(url)
  const victim = await backend(database)
  await sql`select pg_terminate_backend(${victim})`.execute(other.db)
  await vi.waitUntil(() => database.stats().pool.total === 0)
  expect(await backend(database)).not.toBe(victim)
})

test('a connection killed under a statement fails that statement alone', async () => {
  const url = await freshDatabaseUrl('empty')
  await using database = await open(url, { max: 2 })
  await using other = await open(url)
  const sleeping = sql`select pg_sleep(60)`.execute(database.db).catch((error: unknown) => error)
  await vi.waitUntil(async () => (await terminateSleepers(other)) > 0)
  expect(await sleeping).toMatchObject({ code: 'SERVER_SHUTDOWN', retry: 'none', transient: true, sqlState: '57P01' })
  expect(await value(database, sql`1`)).toBe(1)
})

test('a connection killed between the statements of a transaction advises to repeat the whole', async () => {
  const url = await freshDatabaseUrl('empty')
  await using database = await open(url, { max: 2 })
  await using other = await open(url)
  const failed = database.db.transaction().execute(async (trx) => {
    const { rows } = await sql<{ pid: number }>`select pg_backend_pid() as pid`.execute(trx)
    await sql`select pg_terminate_backend(${rows[0]?.pid})`.execute(other.db)
    await vi.waitUntil(
      async () =>
        (await value<number>(other, sql`(select count(*)::int from pg_stat_activity where pid = ${rows[0]?.pid})`)) ===
        0,
    )
    await sql`select 1`.execute(trx)
  })
  await expect(failed).rejects.toMatchObject({ transient: true })
  expect(await value(database, sql`1`)).toBe(1)
  expect(database.stats().pool).toMatchObject({ total: 1, idle: 1 })
})

test.each(['before its first row', 'between its chunks', 'when its reader stops'] as const)(
  'a stream whose connection is killed %s ends, and its connection is given back',
  async (moment) => {
    const url = await freshDatabaseUrl('empty')
    const proxy = await startProxy({ to: url })
    onTestFinished(() => proxy.close())
    await using database = await createDatabase<{ numbers: { n: number } }>({
      postgres: { url: proxy.url, pipeline: false, retry: false, pool: { max: 1 } },
      redis: false,
    })
    await sql`create view numbers as select n from generate_series(1, 1000) n`.execute(database.db)
    if (moment === 'before its first row') proxy.on({ from: 'server', message: 'BindComplete' }, 'reset')
    if (moment === 'when its reader stops') proxy.on({ from: 'client', message: 'Close' }, 'reset')
    let rows = 0
    const read = async (): Promise<void> => {
      for await (const _ of database.db.selectFrom('numbers').selectAll().stream(10)) {
        rows += 1
        if (rows === 15 && moment === 'between its chunks') proxy.cut()
        if (rows === 15 && moment === 'when its reader stops') break
      }
    }
    const fate = await read().then(
      () => 'read',
      (error: unknown) => (error as { code?: string }).code,
    )
    expect(fate).toBe(moment === 'when its reader stops' ? 'read' : 'CONNECTION_LOST')
    await expect.poll(() => database.stats().pool.holders).toEqual([])
    expect(await database.queryValue(sql`select 1`)).toBe(1)
  },
)

test('a server that is killed and comes back is used again without a restart of ours', async () => {
  const server = await startPostgres()
  try {
    await using database = await open(server.url, { max: 5 })
    await Promise.all(Array.from({ length: 5 }, () => value(database, sql`pg_sleep(0.01)`)))
    await server.kill('SIGKILL')
    // Its backends answer until they notice that it is gone.
    await vi.waitFor(() => expect(value(database, sql`1`)).rejects.toMatchObject({ transient: true }), 5_000)
    await server.restart()
    expect(await value(database, sql`1`)).toBe(1)
  } finally {
    await server.stop()
  }
})

test('who asks a server that refused just then waits for the next attempt, and finds it back', async () => {
  const proxy = await startProxy({ to: await freshDatabaseUrl('empty') })
  onTestFinished(() => proxy.close())
  await using database = await createDatabase<never>({
    postgres: { url: proxy.url, pool: { max: 5 }, pipeline: false, breaker: false, retry: false },
    redis: false,
  })
  const refusing = proxy.on({ from: 'client', message: 'Startup' }, 'reset', { times: Infinity })
  proxy.cut()
  await refusals(database, 5)
  // From now on it takes connections, and is left alone for a moment.
  refusing.off()
  const sleeping = sql`(select pg_backend_pid() from pg_sleep(0.05))`
  const pids = await Promise.all(Array.from({ length: 10 }, () => value(database, sleeping)))
  // One attempt found it back, and those who waited for that share what is opened then.
  expect(new Set(pids).size).toBeGreaterThan(1)
})

test('a server that refuses is told to each caller within one pause, to what is repeated at once, and by few attempts', async () => {
  const proxy = await startProxy({ to: await freshDatabaseUrl('empty') })
  onTestFinished(() => proxy.close())
  await using database = await createDatabase<never>({
    postgres: { url: proxy.url, pool: { max: 5, maxWaiting: 20 }, pipeline: false, breaker: false },
    redis: false,
  })
  proxy.on({ from: 'client', message: 'Startup' }, 'reset', { times: Infinity })
  proxy.cut()
  await refusals(database, 5)
  const connects = proxy.accepted.length
  const began = performance.now()
  const codes = new Set<string | undefined>()
  const took: number[] = []
  // More than may wait: they are told of the server, and not of a pool that is too small.
  const callers = Array.from({ length: 30 }, () =>
    until(AbortSignal.timeout(1_000), async () => {
      const start = performance.now()
      codes.add(await backend(database).then(String, (error: { code?: string }) => error.code))
      took.push(performance.now() - start)
    }),
  )
  await Promise.all(callers)
  const perSecond = ((proxy.accepted.length - connects) / (performance.now() - began)) * 1_000
  expect([...codes]).toEqual(['CONNECTION_FAILED'])
  expect(perSecond).toBeLessThan(20)
  // A quarter of a second until the attempt, and the pauses of two repetitions.
  expect(Math.max(...took)).toBeLessThan(250 + 25 + 50 + 150)
  const start = performance.now()
  await expect(database.query(sql`select 1`, { timeoutMs: 5 })).rejects.toMatchObject({ transient: true })
  expect(performance.now() - start).toBeLessThan(100)
})

test('kill -9 of a backend, which makes the server drop everyone, is survived', async () => {
  const server = await startPostgres()
  try {
    await using database = await open(server.url, { max: 5 })
    const backends = await Promise.all(Array.from({ length: 5 }, () => backend(database)))
    process.kill(backends[0] as number, 'SIGKILL')
    await vi.waitUntil(() => database.stats().pool.total === 0)
    // Crash recovery takes a moment, in which the server says so.
    await vi.waitUntil(async () => (await database.health()).status === 'up', 10_000)
    expect(backends).not.toContain(await backend(database))
  } finally {
    await server.stop()
  }
})

test('a borrower that leaves a transaction open does not hand it to the next', async () => {
  await using database = await open(await freshDatabaseUrl('empty'), { max: 1 })
  await sql`create table notes (id int)`.execute(database.db)
  await database.db.connection().execute(async (connection) => {
    await sql`begin`.execute(connection)
    await sql`insert into notes values (1)`.execute(connection)
  })
  expect(await value(database, sql`(select count(*)::int from notes)`)).toBe(0)
  expect(await value(database, sql`pg_current_xact_id_if_assigned()`)).toBeNull()
})

test('nobody waits longer than acquireTimeoutMs, and the message says who holds the connections', async () => {
  await using database = await open(await freshDatabaseUrl('empty'), { max: 1, acquireTimeoutMs: 50 })
  const released = Promise.withResolvers<void>()
  const held = Promise.withResolvers<void>()
  const holder = database.db.connection().execute(async (connection) => {
    await sql`select 'the holder'`.execute(connection)
    held.resolve()
    await released.promise
  })
  await held.promise
  const start = performance.now()
  const error = await value(database, sql`1`).catch((thrown: unknown) => thrown)
  expect(error).toMatchObject({ code: 'POOL_TIMEOUT', limitMs: 50, retry: 'statement' })
  expect(String(error)).toMatch(/1 of 1 are in use.*select 'the holder'.*Raise pool\.max/s)
  expect(performance.now() - start).toBeGreaterThanOrEqual(49)
  released.resolve()
  await holder
  expect(await value(database, sql`1`)).toBe(1)
})

test('waiting callers are served in the order they came', async () => {
  await using database = await open(await freshDatabaseUrl('empty'), { max: 1 })
  const order: number[] = []
  await Promise.all(
    Array.from({ length: 20 }, async (_, n) => order.push(await value<number>(database, sql`${n}::int`))),
  )
  expect(order).toEqual(Array.from({ length: 20 }, (_, n) => n))
  expect(database.stats().pool).toMatchObject({ total: 1, waiting: 0 })
})

test('no more connections are opened than allowed', async () => {
  await using database = await open(await freshDatabaseUrl('empty'), { max: 3 })
  await Promise.all(Array.from({ length: 30 }, () => value(database, sql`1`)))
  expect(database.stats().pool.total).toBeLessThanOrEqual(3)
})

test('idle connections are closed after idleTimeoutMs', async () => {
  await using database = await open(await freshDatabaseUrl('empty'), { max: 3, idleTimeoutMs: 20 })
  await Promise.all(Array.from({ length: 3 }, () => value(database, sql`pg_sleep(0.02)`)))
  await vi.waitUntil(() => database.stats().pool.total === 0)
})

test('a connection past its lifetime is replaced', async () => {
  await using database = await open(await freshDatabaseUrl('empty'), { max: 1, maxLifetimeMs: 40 })
  const first = await backend(database)
  await vi.waitUntil(async () => (await backend(database)) !== first)
})

test('close waits for running statements, refuses new ones, and can be called again', async () => {
  const database = await open(await freshDatabaseUrl('empty'), { drainTimeoutMs: 5_000 })
  const running = value(database, sql`pg_sleep(0.1)`)
  await vi.waitUntil(() => database.stats().pool.idle === 0)
  const closing = database.close()
  await expect(value(database, sql`1`)).rejects.toMatchObject({ code: 'DATABASE_CLOSED' })
  await running
  await closing
  await database.close()
  expect(database.stats().pool.total).toBe(0)
})

test('close cuts what does not end within drainTimeoutMs', async () => {
  const url = await freshDatabaseUrl('empty')
  const database = await open(url, { drainTimeoutMs: 50 })
  const running = value(database, sql`pg_sleep(60)`).catch((error: unknown) => error)
  await vi.waitUntil(() => database.stats().pool.idle === 0)
  const start = performance.now()
  await database.close()
  expect(performance.now() - start).toBeLessThan(5_000)
  expect(await running).toMatchObject({ code: 'CONNECTION_LOST' })
  await using other = await open(url)
  await terminateSleepers(other)
})

test('a server that refuses is told within the time of one attempt, by where it is', async () => {
  const server = await startPostgres()
  await server.stop()
  await expect(open(server.url.replace('postgres@', 'postgres:hunter2@'))).rejects.toMatchObject({
    code: 'CONNECTION_FAILED',
    message: expect.not.stringContaining('hunter2') as string,
  })
})

test('a frozen server is given up after connectTimeoutMs', async () => {
  const server = await startPostgres()
  try {
    await server.kill('SIGSTOP')
    const start = performance.now()
    const opening = createDatabase({ postgres: { url: server.url, connectTimeoutMs: 200 }, redis: false })
    await expect(opening).rejects.toMatchObject({
      code: 'CONNECTION_FAILED',
      message: expect.stringContaining('200 ms') as string,
    })
    expect(performance.now() - start).toBeLessThan(2_000)
  } finally {
    await server.stop()
  }
})

test('a wrong password and a missing database have errors of their own', async () => {
  const url = await freshDatabaseUrl('empty')
  await expect(open(withPart(url, { pathname: '/nowhere' }))).rejects.toMatchObject({
    code: 'DATABASE_NOT_FOUND',
  })
  await expect(open(withPart(url, { username: 'nobody_here' }))).rejects.toMatchObject({
    code: 'AUTHENTICATION_FAILED',
  })
})

test('a password function is asked for each new connection, and what it gives is used', async () => {
  const server = await serverWithPassword()
  try {
    const url = withPart(server.url, { username: 'app' })
    const answers = ['wrong', 'right', 'right']
    const password = (): Promise<string> => Promise.resolve(answers.shift() ?? 'too many')
    const connect = (): Promise<Database<never>> =>
      createDatabase<never>({ postgres: { url, password, pool: { max: 2 }, pipeline: false }, redis: false })

    await expect(connect()).rejects.toMatchObject({ code: 'AUTHENTICATION_FAILED' })
    await using database = await connect()
    await Promise.all([value(database, sql`pg_sleep(0.02)`), value(database, sql`pg_sleep(0.02)`)])
    expect(database.stats().pool.total).toBe(2)
    expect(answers).toEqual([])
  } finally {
    await server.stop()
  }
})

test('a password function that throws is named as the reason, and what it said stays in the cause', async () => {
  const server = await serverWithPassword()
  try {
    const url = withPart(server.url, { username: 'app' })
    const reason = Object.assign(new Error('GET https://vault.example.org/?token=hunter2 failed'), {
      code: 'ENOTFOUND',
    })
    const error = await createDatabase({
      postgres: { url, password: () => Promise.reject(reason) },
      redis: false,
    }).catch((thrown: unknown) => thrown as Error)
    expect(error).toMatchObject({ code: 'CONNECTION_FAILED', transient: true, cause: reason })
    const { message } = error as Error
    expect(message).toMatch(/postgres\.password.*threw.*ENOTFOUND/)
    expect(message).not.toMatch(/hunter2|host and port/)

    const wrong = createDatabase({ postgres: { url, password: () => 42 as never }, redis: false })
    await expect(wrong).rejects.toMatchObject({
      code: 'AUTHENTICATION_FAILED',
      message: expect.stringMatching(/postgres\.password.*gave a number/) as string,
    })
  } finally {
    await server.stop()
  }
})

function withPart(url: string, part: Partial<Pick<URL, 'pathname' | 'username'>>): string {
  return Object.assign(new URL(url), part).href
}

/** Its role `app` has the password `right`. */
async function serverWithPassword(): Promise<OwnServer> {
  const server = await startPostgres()
  await using admin = await open(server.url)
  await sql`create role app login password 'right'`.execute(admin.db)
  writeFileSync(join(server.dataDir, 'pg_hba.conf'), 'host all app all scram-sha-256\nhost all all all trust\n')
  await sql`select pg_reload_conf()`.execute(admin.db)
  await vi.waitUntil(() => value(admin, sql`(select count(*) > 1 from pg_hba_file_rules)`))
  return server
}
