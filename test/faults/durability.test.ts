import { randomInt, randomUUID } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { sql } from 'kysely'
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from 'vitest'
import type { Database, ErrorCode } from '../../src/index.ts'
import { startProxy } from '../../src/testing/fault-proxy.ts'
import { type OwnServer, startPostgres } from '../support/servers.ts'
import { open } from './open.ts'
import { isFull, record, tally, times } from './record.ts'
import { attempt, witness } from './witness.ts'

interface Bank {
  accounts: { id: number; balance: number }
  // Without a unique key: one would hide that something ran twice.
  transfers: { id: string; payer: number; payee: number; amount: number }
}

const accountCount = 20
const openingBalance = 1_000

let server: OwnServer

beforeAll(async () => {
  server = await startPostgres({ fsync: true, settings: { max_connections: 60 } })
}, 60_000)

afterAll(() => server.stop())

async function foundBank(name: string): Promise<string> {
  const url = Object.assign(new URL(server.url), { pathname: `/${name}` }).href
  {
    await using admin = await witness(server.url)
    await admin.rows(`create database ${name}`)
  }
  await using founder = await witness(url)
  await founder.rows('create table accounts (id int primary key, balance int not null)')
  await founder.rows('create table transfers (id uuid not null, payer int, payee int, amount int)')
  await founder.rows('insert into accounts select id, $1 from generate_series(1, $2) id', [
    openingBalance,
    accountCount,
  ])
  return url
}

/** How often each transfer is there. */
async function transfersIn(url: string): Promise<{ id: string; count: number }[]> {
  await using auditor = await witness(url)
  return await auditor.rows('select id, count(*)::int as count from transfers group by id')
}

interface Transfer {
  readonly id: string
  readonly payer: number
  readonly payee: number
  readonly amount: number
}

function newTransfer(): Transfer {
  // Never two transfers in opposite order at once: deadlocks are row 17.
  const payer = randomInt(1, accountCount)
  return { id: randomUUID(), payer, payee: randomInt(payer + 1, accountCount + 1), amount: randomInt(1, 100) }
}

function transferInTransaction(database: Database<Bank>, transfer: Transfer): Promise<void> {
  return database.transaction(async () => {
    const { payer, payee, amount } = transfer
    await database.db.insertInto('transfers').values(transfer).execute()
    await database.db
      .updateTable('accounts')
      .set({ balance: sql`balance - ${amount}` })
      .where('id', '=', payer)
      .execute()
    await database.db
      .updateTable('accounts')
      .set({ balance: sql`balance + ${amount}` })
      .where('id', '=', payee)
      .execute()
  })
}

/** All of it in one statement, which commits by itself and goes wherever single statements go. */
async function transferInOneStatement(database: Database<Bank>, { id, payer, payee, amount }: Transfer): Promise<void> {
  await database.db
    .with('noted', (db) => db.insertInto('transfers').values({ id, payer, payee, amount }).returning('amount'))
    .updateTable('accounts')
    .set({ balance: sql`balance + case id when ${payer}::int then -${amount}::int else ${amount}::int end` })
    .where('id', 'in', [payer, payee])
    .execute()
}

type Outcome = 'done' | 'failed' | 'unknown'

/** What the error of a single statement leaves open; of a transaction only its lost COMMIT does. */
const ambiguousCodes: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'COMMIT_OUTCOME_UNKNOWN',
  'CONNECTION_LOST',
  'QUERY_TIMEOUT',
  'SERVER_CRASHED',
  'SERVER_SHUTDOWN',
])

type Kill = 'backend crashed' | 'backend terminated' | 'network cut' | 'server crashed' | 'server shut down at once'

function killPlan(): Kill[] {
  const plan: Kill[] = [
    ...Array<Kill>(times(140, 4)).fill('backend terminated'),
    ...Array<Kill>(times(20, 1)).fill('backend crashed'),
    ...Array<Kill>(times(20, 1)).fill('network cut'),
    ...Array<Kill>(times(10, 1)).fill('server crashed'),
    ...Array<Kill>(times(20, 0)).fill('server shut down at once'),
  ]
  return plan.toSorted(() => Math.random() - 0.5)
}

async function pickBackend(database: string): Promise<number | undefined> {
  await using admin = await witness(server.url)
  return await admin.value<number | undefined>(
    `select pid from pg_stat_activity where datname = $1 and backend_type = 'client backend' order by random() limit 1`,
    [database],
  )
}

async function untilUp(): Promise<void> {
  await vi.waitUntil(
    async () => {
      try {
        await using admin = await witness(server.url)
        return (await admin.value('select 1')) === 1
      } catch {
        return false
      }
    },
    { timeout: 30_000, interval: 20 },
  )
}

async function strike(kill: Kill, database: string, cut: () => void): Promise<void> {
  if (kill === 'network cut') return cut()
  if (kill === 'server crashed' || kill === 'server shut down at once') {
    await server.kill(kill === 'server crashed' ? 'SIGKILL' : 'SIGQUIT')
    return server.restart()
  }
  const pid = await pickBackend(database)
  if (pid === undefined) return
  try {
    process.kill(pid, kill === 'backend crashed' ? 'SIGKILL' : 'SIGTERM')
  } catch {
    // It has ended by itself in the meantime.
  }
  if (kill === 'backend crashed') await untilUp()
}

test.each([
  ['transactions', transferInTransaction],
  ['single statements', transferInOneStatement],
] as const)(
  'row 1: %s that move money lose, repeat and invent nothing while backends and the server are killed',
  async (kind, transfer) => {
    const name = kind.replace(' ', '_')
    const url = await foundBank(name)
    const proxy = await startProxy({ to: url })
    const outcomes = new Map<string, Outcome>()
    const codes: string[] = []
    let done = 0
    const over = new AbortController()

    const database = await open<Bank>(proxy.url, { pool: { max: 8 } })
    const worker = async (): Promise<void> => {
      while (!over.signal.aborted) {
        const order = newTransfer()
        const { error } = await attempt(() => transfer(database, order))
        if (error === undefined) {
          outcomes.set(order.id, 'done')
          done += 1
          continue
        }
        codes.push(error.code)
        const isUnknown =
          kind === 'transactions' ? error.code === 'COMMIT_OUTCOME_UNKNOWN' : ambiguousCodes.has(error.code)
        outcomes.set(order.id, isUnknown ? 'unknown' : 'failed')
        // While the breaker is open calls fail at once; callers that do not wait a little would drown everything else.
        await delay(2)
      }
    }
    const workers = Array.from({ length: 8 }, worker)
    const kills = killPlan()
    try {
      for (const kill of kills) {
        const before = done
        await vi.waitUntil(() => done >= before + randomInt(5, 25), { timeout: 30_000, interval: 1 })
        await strike(kill, name, () => proxy.cut())
      }
      const before = done
      await vi.waitUntil(() => done >= before + 25, { timeout: 30_000, interval: 5 })
    } finally {
      over.abort()
      await Promise.all(workers)
      await database.close()
      await proxy.close()
    }

    await using auditor = await witness(url)
    const found = new Map((await transfersIn(url)).map((row) => [row.id, row.count]))
    const wrong = [...outcomes].filter(([id, outcome]) => {
      const count = found.get(id) ?? 0
      return outcome === 'done' ? count !== 1 : outcome === 'failed' ? count !== 0 : count > 1
    })
    const invented = [...found.keys()].filter((id) => !outcomes.has(id))
    const unknown = [...outcomes.values()].filter((outcome) => outcome === 'unknown').length
    record(
      1,
      kills.length,
      `${kind}: ${outcomes.size} transfers, ${done} done, ${unknown} unknown, ${wrong.length} wrong (${tally(codes)})`,
    )

    expect(wrong).toEqual([])
    expect(invented).toEqual([])
    expect(await auditor.value('select sum(balance)::int from accounts')).toBe(accountCount * openingBalance)
    expect(
      await auditor.rows(
        `
        select id from accounts a
         where balance <> $1 - (select coalesce(sum(amount), 0) from transfers where payer = a.id)
                             + (select coalesce(sum(amount), 0) from transfers where payee = a.id)`,
        [openingBalance],
      ),
    ).toEqual([])
  },
  isFull ? 900_000 : 60_000,
)

test(
  'row 1: the number of a transaction that a crash made the server forget is not taken for that of the next',
  async () => {
    // Without the WAL writer an insert is on disk only when some transaction commits; the server gives its number again.
    const forgetful = await startPostgres({ fsync: true, settings: { wal_writer_delay: '10s', autovacuum: false } })
    onTestFinished(() => forgetful.stop())
    const proxy = await startProxy({ to: forgetful.url })
    onTestFinished(() => proxy.close())
    {
      await using founder = await witness(forgetful.url)
      await founder.rows('create table transfers (id uuid not null, payer int, payee int, amount int)')
      await founder.rows('create table others (number text)')
      await founder.rows('checkpoint')
    }
    const runs = times(20, 2)
    const outcomes: string[] = []
    let reused = 0
    for (let run = 0; run < runs; run += 1) {
      await using database = await open<Bank>(proxy.url, { breaker: false, pool: { max: 4 } })
      const transfer = newTransfer()
      let number: string | undefined
      // The COMMIT never arrives, and its sender does not learn that the server has crashed before it is up again.
      const rules = (['Query', 'Parse'] as const).map((message) =>
        proxy.on({ from: 'client', message, sql: /^\s*commit/i }, 'black-hole'),
      )
      const call = attempt(() =>
        database.transaction(
          async () => {
            await database.db.insertInto('transfers').values(transfer).execute()
            number ??= await database.queryValue(sql<{ id: string }>`select pg_current_xact_id()::text as id`)
          },
          { attempts: 1 },
        ),
      )
      await Promise.race(rules.map((rule) => rule.struck))
      for (const rule of rules) rule.off()
      await forgetful.kill('SIGKILL')
      await forgetful.restart()
      await using auditor = await witness(forgetful.url)
      for (let other = 0; other < 5; other += 1) {
        await auditor.rows('insert into others values (pg_current_xact_id()::text)')
      }
      if (await auditor.value('select exists (select from others where number = $1)', [number])) reused += 1
      proxy.cut()
      const { error } = await call
      const isThere = await auditor.value<boolean>('select exists (select from transfers where id = $1)', [transfer.id])
      outcomes.push(`${error?.code ?? 'done'}, ${isThere ? 'there' : 'absent'}`)
    }
    record(1, runs, `numbers given again: ${reused} of ${runs} (${tally(outcomes)})`)
    expect(reused).toBeGreaterThan(0)
    expect(outcomes.filter((outcome) => outcome === 'done, absent')).toEqual([])
  },
  isFull ? 180_000 : 30_000,
)

test(
  'row 2: a lost reply to COMMIT is an unknown outcome or resolved rightly, and nothing is replayed',
  async () => {
    const url = await foundBank('lost_replies')
    const proxy = await startProxy({ to: url })
    const database = await open<Bank>(proxy.url, { breaker: false, pool: { max: 4 } })
    const rule = proxy.on({ from: 'server', message: 'CommandComplete', tag: 'COMMIT' }, 'reset', { times: Infinity })
    const runs = times(1_000, 40)
    const outcomes = new Map<string, ErrorCode | undefined>()
    const calls = new Map<string, number>()
    let begun = 0
    const worker = async (): Promise<void> => {
      while (begun < runs) {
        begun += 1
        const transfer = newTransfer()
        const { error } = await attempt(() =>
          database.transaction(async () => {
            calls.set(transfer.id, (calls.get(transfer.id) ?? 0) + 1)
            await database.db.insertInto('transfers').values(transfer).execute()
          }),
        )
        outcomes.set(transfer.id, error?.code)
      }
    }
    await Promise.all(Array.from({ length: 4 }, worker))
    await database.close()
    await proxy.close()

    const rows = await transfersIn(url)
    record(
      2,
      runs,
      `${rule.hits} replies lost: ${tally([...outcomes.values()].map((code) => code ?? 'resolved as committed'))}`,
    )
    expect(rule.hits).toBe(runs)
    expect([...outcomes.values()].filter((code) => code !== undefined && code !== 'COMMIT_OUTCOME_UNKNOWN')).toEqual([])
    expect(rows.filter((row) => row.count !== 1)).toEqual([])
    expect(rows).toHaveLength(runs)
    expect([...calls.values()].filter((count) => count !== 1)).toEqual([])
  },
  isFull ? 300_000 : 30_000,
)

test(
  'row 2: a COMMIT lost on its way is an unknown outcome, or resolved rightly',
  async () => {
    const url = await foundBank('lost_commits')
    const proxy = await startProxy({ to: url })
    const database = await open<Bank>(proxy.url, { breaker: false, pool: { max: 4 } })
    const runs = times(200, 20)
    const outcomes = new Map<string, ErrorCode | undefined>()
    for (let run = 0; run < runs; run += 1) {
      const transfer = newTransfer()
      const rules = (['Query', 'Parse', 'Bind'] as const).map((message) =>
        proxy.on({ from: 'client', message, sql: /^\s*commit/i }, 'reset'),
      )
      const { error } = await attempt(() =>
        database.transaction(async () => void (await database.db.insertInto('transfers').values(transfer).execute())),
      )
      outcomes.set(transfer.id, error?.code)
      expect(rules.some((rule) => rule.hits === 1)).toBe(true)
      for (const rule of rules) rule.off()
    }
    await database.close()
    await proxy.close()

    const rows = await transfersIn(url)
    const found = new Map(rows.map((row) => [row.id, row.count]))
    record(
      2,
      runs,
      `COMMIT itself lost: ${tally([...outcomes.values()].map((code) => code ?? 'done after a proven abort'))}`,
    )
    const wrong = [...outcomes].filter(([id, code]) => (found.get(id) ?? 0) !== (code === undefined ? 1 : 0))
    expect(wrong).toEqual([])
  },
  isFull ? 120_000 : 30_000,
)

test.each([
  ['before', [{ from: 'client', message: 'Bind', sql: /insert into "transfers"/ }]],
  ['after', [{ from: 'server', message: 'CommandComplete', tag: 'INSERT' }]],
] as const)(
  'row 3: a cut %s an INSERT never makes a duplicate row',
  async (place, [pattern]) => {
    const url = await foundBank(`cut_${place}`)
    const proxy = await startProxy({ to: url })
    const database = await open<Bank>(proxy.url, { breaker: false, pool: { max: 4 } })
    const runs = times(1_000, 40)
    const outcomes = new Map<string, ErrorCode | undefined>()
    let cuts = 0
    while (cuts < runs) {
      // One of several that are on their way at once, so that those on the same connection are hit with it.
      const rule = proxy.on(pattern, 'reset', { nth: randomInt(1, 5) })
      await Promise.all(
        Array.from({ length: 4 }, async () => {
          const transfer = newTransfer()
          const { error } = await attempt(() => database.db.insertInto('transfers').values(transfer).execute())
          outcomes.set(transfer.id, error?.code)
        }),
      )
      cuts += rule.hits
      rule.off()
    }
    await database.close()
    await proxy.close()

    const rows = await transfersIn(url)
    const found = new Map(rows.map((row) => [row.id, row.count]))
    const duplicates = rows.filter((row) => row.count > 1)
    record(
      3,
      cuts,
      `${place}: ${outcomes.size} inserts, ${duplicates.length} duplicates (${tally([...outcomes.values()].map((code) => code ?? 'done'))})`,
    )
    expect(duplicates).toEqual([])
    const wrong = [...outcomes].filter(([id, code]) =>
      code === undefined ? !found.has(id) : found.has(id) && !ambiguousCodes.has(code),
    )
    expect(wrong).toEqual([])
  },
  isFull ? 300_000 : 30_000,
)
