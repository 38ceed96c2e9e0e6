import { type Generated, sql } from 'kysely'
import { afterAll, beforeAll, beforeEach, expect, onTestFinished, test, vi } from 'vitest'
import { createDatabase, type Database, type PostgresOptions } from '../../src/index.ts'
import { type OwnServer, startPostgres, startStandby } from '../support/servers.ts'
import { type Witness, witness } from '../faults/witness.ts'

interface Notes {
  notes: { id: Generated<number>; body: string }
}

const checkIntervalMs = 50
const maxLagMs = 300

let primary: OwnServer
let standbys: readonly OwnServer[]
let admin: Witness

beforeAll(async () => {
  // Else standbys get commits only when the server's log writer wakes up.
  primary = await startPostgres({ settings: { synchronous_commit: 'on' } })
  admin = await witness(primary.url)
  await admin.rows('create table notes (id serial primary key, body text not null)')
  standbys = await Promise.all([startStandby(primary), startStandby(primary)])
}, 60_000)

afterAll(async () => {
  await admin?.[Symbol.asyncDispose]()
  await Promise.all([primary, ...(standbys ?? [])].map((server) => server?.stop()))
})

beforeEach(() => admin.rows('truncate notes restart identity'))

async function open(options: Omit<PostgresOptions, 'url'> & { url?: string } = {}): Promise<Database<Notes>> {
  const database = await createDatabase<Notes>({
    postgres: {
      url: primary.url,
      replicas: standbys.map(({ url }) => url),
      replicaReads: { checkIntervalMs, maxLagMs },
      ...options,
    },
    redis: false,
  })
  onTestFinished(() => database.close())
  return database
}

const port = sql<{ port: number }>`select inet_server_port() as port`

async function portOf(database: Database<Notes>, options: Parameters<Database<Notes>['query']>[1]): Promise<number> {
  return (await database.queryValue<number>(port, options)) as number
}

async function portsOf(database: Database<Notes>, count: number): Promise<Map<number, number>> {
  const ports = new Map<number, number>()
  for (let run = 0; run < count; run += 1) {
    const one = await portOf(database, { replica: true })
    ports.set(one, (ports.get(one) ?? 0) + 1)
  }
  return ports
}

const states = (database: Database<Notes>): readonly string[] =>
  (database.stats().replicas ?? []).map(({ state }) => state)

async function paused(standby: OwnServer): Promise<{ resume(): Promise<unknown> }> {
  const hand = await witness(standby.url)
  await hand.rows('select pg_wal_replay_pause()')
  await vi.waitUntil(async () => (await hand.value('select pg_get_wal_replay_pause_state()')) === 'paused')
  let isResumed = false
  const resume = async (): Promise<void> => {
    if (isResumed) return
    isResumed = true
    await hand.rows('select pg_wal_replay_resume()')
    await hand[Symbol.asyncDispose]()
  }
  onTestFinished(resume)
  return { resume }
}

test('reads that ask for a replica are spread evenly over the replicas, all others stay on the primary', async () => {
  const database = await open()
  await vi.waitUntil(() => states(database).every((state) => state === 'up'))
  expect(await portOf(database, undefined)).toBe(primary.port)
  // Among those that are equally far: one that is behind for a moment, on a busy machine, gets none of them.
  await vi.waitFor(
    async () => {
      const ports = await portsOf(database, 40)
      expect(new Set(ports.keys())).toEqual(new Set(standbys.map((standby) => standby.port)))
      expect([...ports.values()]).toEqual([20, 20])
    },
    { timeout: 10_000 },
  )
  const { replicas = [] } = database.stats()
  expect(replicas).toMatchObject(standbys.map(() => ({ state: 'up', role: 'standby', breaker: 'closed' })))
  expect(replicas.reduce((sum, { reads }) => sum + reads, 0) % 40).toBe(0)
})

test('many reads at once are spread evenly, too', async () => {
  const database = await open()
  await Promise.all(Array.from({ length: 200 }, () => portOf(database, { replica: true })))
  const [one = 0, other = 0] = (database.stats().replicas ?? []).map(({ reads }) => reads)
  expect(one + other).toBe(200)
  expect(Math.abs(one - other)).toBeLessThanOrEqual(20)
})

test('built, prepared and raw queries, and the transactions of the read-only handle, all go to a replica', async () => {
  const database = await open()
  const replicaPorts = standbys.map((standby) => standby.port)
  const db = database.replica()
  const built = await db.selectNoFrom(sql<number>`inet_server_port()`.as('port')).executeTakeFirstOrThrow()
  expect(replicaPorts).toContain(built.port)

  const prepared = database.prepare(() => database.db.selectNoFrom(sql<number>`inet_server_port()`.as('port')))
  expect(replicaPorts).toContain((await prepared.first({}, { replica: true }))?.port)

  const inside = await db.transaction().execute(async (trx) => {
    const { rows } = await sql<{ port: number; mode: string }>`
      select inet_server_port() as port, current_setting('transaction_read_only') as mode`.execute(trx as never)
    return rows[0]
  })
  expect(replicaPorts).toContain(inside?.port)
  expect(inside?.mode).toBe('on')
})

test('streams that ask for a replica, and those of the read-only handle, read there', async () => {
  const database = await open()
  const replicaPorts = standbys.map((standby) => standby.port)
  const here = sql<{ port: number; n: number }>`select inet_server_port() as port, n from generate_series(1, 500) n`
  const seen: number[] = []
  for await (const row of database.stream(here, { replica: true })) seen.push(row.port)
  expect(seen).toHaveLength(500)
  expect(replicaPorts).toContain(seen[0])
  const handle = database.replica().selectNoFrom(sql<number>`inet_server_port()`.as('port'))
  for await (const row of handle.stream()) expect(replicaPorts).toContain(row.port)
})

test('a read-only transaction runs on one replica from beginning to end, and what is in it joins', async () => {
  const database = await open()
  const seen = await database.transaction(
    async () => {
      const first = await portOf(database, undefined)
      const second = await portOf(database, { replica: true })
      const nested = await database.transaction(() => portOf(database, undefined))
      return { ports: [first, second, nested], mode: await database.queryValue(sql`show transaction_read_only`) }
    },
    { replica: true, isolationLevel: 'repeatable read' },
  )
  expect(new Set(seen.ports).size).toBe(1)
  expect(standbys.map((standby) => standby.port)).toContain(seen.ports[0])
  expect(seen.mode).toBe('on')
})

test('inside a transaction a read that asks for a replica sees what the transaction has written', async () => {
  const database = await open()
  await database.transaction(async () => {
    await database.db.insertInto('notes').values({ body: 'mine' }).execute()
    expect(await portOf(database, { replica: true })).toBe(primary.port)
    expect(await database.replica().selectFrom('notes').select('body').execute()).toEqual([{ body: 'mine' }])
    const nested = await database.transaction(() => portOf(database, undefined), { replica: true })
    expect(nested).toBe(primary.port)
  })
})

test('what writes is refused before it is sent to a replica, or by it', async () => {
  const database = await open()
  const insert = database.db.insertInto('notes').values({ body: 'x' })
  await expect(database.query(insert, { replica: true })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  await expect(database.query(sql`insert into notes (body) values ('x')`, { replica: true })).rejects.toMatchObject({
    code: 'READ_ONLY',
  })
  await expect(
    database.transaction(() => Promise.resolve(), { replica: true, accessMode: 'read write' }),
  ).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  // The primary is none the worse for it: it was not taken for a standby.
  await database.db.insertInto('notes').values({ body: 'y' }).execute()
})

test('a replica that falls behind is not read from until it has caught up', async () => {
  const database = await open()
  const events: string[] = []
  database.events.on('replica', ({ target, state }) => events.push(`${new URL(target).port} ${state}`))
  const [first, second] = standbys as [OwnServer, OwnServer]
  const pause = await paused(first)
  await admin.rows(`insert into notes (body) values ('while one stands still')`)
  await vi.waitUntil(() => states(database)[0] === 'lagging')
  expect([...(await portsOf(database, 10)).keys()]).toEqual([second.port])
  expect(database.stats().replicas?.[0]?.lagMs).toBeGreaterThan(maxLagMs)
  await expect(database.health()).resolves.toMatchObject({
    status: 'degraded',
    replicas: [{ state: 'lagging', role: 'standby' }, { state: 'up' }],
  })

  const other = await paused(second)
  await admin.rows(`insert into notes (body) values ('while both stand still')`)
  await vi.waitUntil(() => states(database).every((state) => state === 'lagging'))
  expect([...(await portsOf(database, 4)).keys()]).toEqual([primary.port])

  await pause.resume()
  await other.resume()
  await vi.waitUntil(() => states(database).every((state) => state === 'up'))
  expect((await portsOf(database, 10)).size).toBe(2)
  expect(events).toEqual([
    `${first.port} lagging`,
    `${second.port} lagging`,
    expect.stringMatching(/ up$/),
    expect.stringMatching(/ up$/),
  ])
})

test('a read with the token of a commit sees it: on a replica that has it, else on the primary within the wait', async () => {
  const database = await open({ replicaReads: { checkIntervalMs: 1_000, maxLagMs: 60_000, waitMs: 300 } })
  const replicaPorts = standbys.map((standby) => standby.port)
  for (let run = 0; run < 50; run += 1) {
    await database.db
      .insertInto('notes')
      .values({ body: String(run) })
      .execute()
    const after = await database.lastCommitToken()
    const count = sql<{
      count: number
      port: number
    }>`select count(*)::int as count, inet_server_port() as port from notes`
    const row = await database.queryOne(count, { replica: { after } })
    expect(row?.count).toBe(run + 1)
    // Streaming takes a millisecond or two, far less than the wait.
    expect(replicaPorts).toContain(row?.port)
  }

  const pauses = await Promise.all(standbys.map(paused))
  await database.db.insertInto('notes').values({ body: 'last' }).execute()
  const after = await database.lastCommitToken()
  const began = performance.now()
  expect(await portOf(database, { replica: { after } })).toBe(primary.port)
  expect(performance.now() - began).toBeGreaterThan(250)
  expect(await portOf(database, { replica: { after, waitMs: 0 } })).toBe(primary.port)
  // Whoever does not ask for it still gets the earlier state.
  expect(replicaPorts).toContain(await portOf(database, { replica: true }))
  for (const pause of pauses) await pause.resume()
  const handle = database.replica({ after, waitMs: 5_000 })
  const found = await handle.selectFrom('notes').select('body').where('body', '=', 'last').execute()
  expect(found).toEqual([{ body: 'last' }])
})

test('a token is taken after the commit, and one that is none is refused', async () => {
  const database = await open()
  let token: string | undefined
  await database.transaction(async () => {
    await database.db.insertInto('notes').values({ body: 'x' }).execute()
    await expect(database.lastCommitToken()).rejects.toMatchObject({ code: 'TRANSACTION_MISUSE' })
    database.afterCommit(async () => {
      token = await database.lastCommitToken()
    })
  })
  expect(token).toMatch(/^[0-9A-F]+\/[0-9A-F]+$/)
  for (const after of ['', 'latest', "0/0'; drop table notes", '0/123456789'])
    await expect(portOf(database, { replica: { after } })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
})

test('a replica that dies costs no read, is reported, and serves again once it is back', async () => {
  const database = await open()
  const [first, second] = standbys as [OwnServer, OwnServer]
  const over = new AbortController()
  let reads = 0
  const readers = Array.from({ length: 8 }, async () => {
    while (!over.signal.aborted) {
      await portOf(database, { replica: true })
      reads += 1
    }
  })
  await vi.waitUntil(() => reads > 200)
  await first.kill('SIGKILL')
  await vi.waitUntil(() => states(database)[0] === 'down')
  const before = reads
  await vi.waitUntil(() => reads > before + 200)
  await expect(database.health()).resolves.toMatchObject({ status: 'degraded', replicas: [{ state: 'down' }, {}] })
  expect([...(await portsOf(database, 5)).keys()]).toEqual([second.port])
  await first.restart()
  await vi.waitUntil(() => states(database)[0] === 'up', { timeout: 5_000 })
  over.abort()
  await Promise.all(readers)
  await vi.waitUntil(async () => (await portsOf(database, 10)).size === 2, { timeout: 5_000 })
}, 30_000)

test('without a replica at the start, and with none that is up, the primary reads', async () => {
  const closed = new URL(primary.url)
  closed.port = '1'
  const database = await open({ replicas: [closed.href] })
  expect(states(database)).toEqual(['down'])
  expect(await portOf(database, { replica: true })).toBe(primary.port)
  expect(await database.transaction(() => portOf(database, undefined), { replica: true })).toBe(primary.port)

  const alone = await open({ replicas: [] })
  expect(alone.stats()).not.toHaveProperty('replicas')
  expect(await portOf(alone, { replica: true })).toBe(primary.port)
  expect(await alone.transaction(() => alone.queryValue(sql`show transaction_read_only`), { replica: true })).toBe('on')
})

test('a table that a replica does not have yet is read on the primary', async () => {
  const database = await open({ replicaReads: { checkIntervalMs: 1_000, maxLagMs: 60_000 } })
  const pauses = await Promise.all(standbys.map(paused))
  await admin.rows('create table fresh as select 1 as value')
  expect(await database.query(sql`select value from fresh`, { replica: true })).toEqual([{ value: 1 }])
  for (const pause of pauses) await pause.resume()
  await admin.rows('drop table fresh')
})

test('of several hosts in one URL the one that accepts writes is used, in whatever order', async () => {
  const [first] = standbys as [OwnServer, OwnServer]
  const hosts = [`127.0.0.1:${first.port}`, '127.0.0.1:1', `127.0.0.1:${primary.port}`]
  for (const list of [hosts, hosts.toReversed()]) {
    const database = await open({ url: `postgres://postgres@${list.join(',')}/postgres`, replicas: [] })
    await database.db.insertInto('notes').values({ body: 'x' }).execute()
    expect(await portOf(database, undefined)).toBe(primary.port)
  }
  const any = await open({ url: `postgres://postgres@${hosts[0]}/postgres?target_session_attrs=any`, replicas: [] })
  expect(await portOf(any, undefined)).toBe(first.port)

  const none = open({ url: `postgres://postgres@${hosts[0]},${hosts[1]}/postgres`, replicas: [] })
  await expect(none).rejects.toMatchObject({
    code: 'CONNECTION_FAILED',
    message: expect.stringMatching(/None of the hosts of .* accepts writes now.*standby.*ECONNREFUSED/s),
  })
})

test('one URL with several hosts is as many replicas', async () => {
  const hosts = standbys.map((standby) => `127.0.0.1:${standby.port}`).join(',')
  const database = await open({ replicas: [`postgres://postgres@${hosts}/postgres`] })
  expect(database.stats().replicas?.map(({ target }) => new URL(target).port)).toEqual(
    standbys.map((standby) => String(standby.port)),
  )
  expect((await portsOf(database, 10)).size).toBe(2)
})
