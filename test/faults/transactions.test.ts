import { randomInt } from 'node:crypto'
import { sql } from 'kysely'
import { expect, test, vi } from 'vitest'
import type { Database } from '../../src/index.ts'
import { freshDatabaseUrl } from '../support/database.ts'
import { open } from './open.ts'
import { isFull, record, tally, times } from './record.ts'
import { type Attempt, attempt, witness, type Witness } from './witness.ts'

interface Tables {
  notes: { id: number }
  counters: { id: number; value: number }
}

const graceMs = 50

class Boom extends Error {}

async function withTables(admin: Witness): Promise<void> {
  await admin.rows('create table notes (id int primary key)')
  await admin.rows('create table counters (id int primary key, value int not null)')
  await admin.rows('insert into counters select id, 0 from generate_series(1, 10) id')
}

type Step = readonly [name: string, run: (database: Database<Tables>, boom: Boom, admin: Witness) => Promise<unknown>]

const insert = (database: Database<Tables>, id: number): Promise<unknown> =>
  database.db.insertInto('notes').values({ id }).execute()

const steps: readonly Step[] = [
  ['before the first statement', (database, boom) => database.transaction(() => Promise.reject(boom))],
  [
    'before anything asynchronous',
    (database, boom) =>
      database.transaction(() => {
        throw boom
      }),
  ],
  [
    'after a statement',
    (database, boom) =>
      database.transaction(async () => {
        await insert(database, 1)
        throw boom
      }),
  ],
  [
    'after a statement that failed',
    (database, boom) =>
      database.transaction(async () => {
        await insert(database, 1)
        await insert(database, 1).catch(() => undefined)
        throw boom
      }),
  ],
  [
    'while a statement is on its way',
    (database, boom) =>
      database.transaction(async () => {
        insert(database, 1).catch(() => undefined)
        throw boom
      }),
  ],
  [
    'in a nested transaction',
    (database, boom) =>
      database.transaction(async () => {
        await insert(database, 1)
        await database.transaction(async () => {
          await insert(database, 2)
          throw boom
        })
      }),
  ],
  [
    'after a nested transaction',
    (database, boom) =>
      database.transaction(async () => {
        await database.transaction(() => insert(database, 1))
        throw boom
      }),
  ],
  [
    'after a nested transaction that failed',
    (database, boom) =>
      database.transaction(async () => {
        await expect(database.transaction(() => insert(database, Number.NaN))).rejects.toMatchObject({
          code: 'INVALID_DATA',
        })
        await insert(database, 1)
        throw boom
      }),
  ],
  [
    'on a connection that is dead by then',
    (database, boom, admin) =>
      database.transaction(async () => {
        const [row] = await database.query(sql<{ pid: number }>`select pg_backend_pid() as pid`)
        await admin.rows('select pg_terminate_backend($1)', [row?.pid])
        throw boom
      }),
  ],
  [
    "in a transaction of Kysely's own",
    (database, boom) =>
      database.db.transaction().execute(async (trx) => {
        await trx.insertInto('notes').values({ id: 1 }).execute()
        throw boom
      }),
  ],
  [
    'in a stream',
    (database, boom) =>
      database.transaction(async () => {
        for await (const row of database.db.selectFrom('counters').select('id').stream(1)) if (row.id === 3) throw boom
      }),
  ],
]

test.each(steps)('row 11: a callback that throws %s loses its work, leaks nothing and is heard', async (name, step) => {
  const url = await freshDatabaseUrl('empty')
  await using admin = await witness(url)
  await withTables(admin)
  await using database = await open<Tables>(url, { pool: { max: 2 } })
  const runs = times(100, 5)
  const caught: unknown[] = []
  for (let run = 0; run < runs; run += 1) {
    const boom = new Boom(`run ${run}`)
    const error: unknown = await step(database, boom, admin).then(
      () => 'no error',
      (thrown: unknown) => thrown,
    )
    if (error !== boom) caught.push(error)
    await vi.waitUntil(() => database.stats().pool.idle === database.stats().pool.total)
  }
  const countLeft = (): Promise<number> =>
    admin.value(
      `select count(*)::int from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'`,
    )
  // A terminated backend is seen for some milliseconds more.
  await vi.waitUntil(async () => (await countLeft()) === 0).catch(() => undefined)
  const [left, rows] = [await countLeft(), await admin.value<number>('select count(*)::int from notes')]
  record(11, runs, `${name}: ${caught.length} other errors, ${rows} rows left, ${left} transactions left`)
  expect(caught[0]).toBeUndefined()
  expect({ left, rows }).toEqual({ left: 0, rows: 0 })
})

test('row 11: work after a commit that throws does not undo the commit or hide in it', async () => {
  const url = await freshDatabaseUrl('empty')
  await using admin = await witness(url)
  await withTables(admin)
  await using database = await open<Tables>(url, { pool: { max: 2 } })
  const runs = times(100, 5)
  for (let run = 0; run < runs; run += 1) {
    const work = database.transaction(async () => {
      await insert(database, run)
      database.afterCommit(() => {
        throw new Boom()
      })
    })
    // Whether the caller hears of it is not what this is about.
    await work.catch(() => undefined)
    await vi.waitUntil(() => database.stats().pool.idle === database.stats().pool.total)
  }
  const rows = await admin.value<number>('select count(*)::int from notes')
  record(11, runs, `in afterCommit: ${rows} of ${runs} rows kept`)
  expect(rows).toBe(runs)
})

test(
  'row 17: transactions that update the same rows in opposite order all commit',
  async () => {
    const url = await freshDatabaseUrl('empty')
    await using admin = await witness(url)
    await withTables(admin)
    await admin.rows(
      `do $$ begin execute format('alter database %I set deadlock_timeout = %L', current_database(), '10ms'); end $$`,
    )
    await using database = await open<Tables>(url, { pool: { max: 8 } })
    const runs = times(1_000, 60)
    const failures: Attempt<unknown>[] = []
    let deadlocks = 0
    database.events.on('retry', ({ error }) => {
      if (error === 'DEADLOCK') deadlocks += 1
    })
    let begun = 0
    const worker = async (_: unknown, number: number): Promise<void> => {
      while (begun < runs) {
        begun += 1
        const ids = number % 2 === 0 ? [1, 2] : [2, 1]
        const outcome = await attempt(() =>
          database.transaction(
            async () => {
              for (const id of ids) {
                await database.db
                  .updateTable('counters')
                  .set({ value: sql`value + 1` })
                  .where('id', '=', id)
                  .execute()
              }
            },
            { attempts: 20 },
          ),
        )
        if (outcome.error !== undefined) failures.push(outcome)
      }
    }
    await Promise.all(Array.from({ length: 4 }, worker))
    record(
      17,
      begun,
      `${deadlocks} deadlocks, ${failures.length} not committed (${tally(failures.map(({ error }) => error?.code))})`,
    )
    expect(tally(failures.map(({ error }) => error?.code))).toBe('none')
    expect(deadlocks).toBeGreaterThan(0)
    expect(await admin.rows('select id, value from counters where id <= 2 order by id')).toEqual([
      { id: 1, value: begun },
      { id: 2, value: begun },
    ])
  },
  isFull ? 180_000 : 30_000,
)

test(
  'row 18: ten workers that read and write one row under serializable lose no update',
  async () => {
    const url = await freshDatabaseUrl('empty')
    await using admin = await witness(url)
    await withTables(admin)
    await using database = await open<Tables>(url, { pool: { max: 10 } })
    const runs = times(2_000, 150)
    const codes: string[] = []
    let begun = 0
    let calls = 0
    const worker = async (): Promise<void> => {
      while (begun < runs) {
        begun += 1
        const { error } = await attempt(() =>
          database.transaction(
            async () => {
              calls += 1
              const { value } = await database.db
                .selectFrom('counters')
                .select('value')
                .where('id', '=', 1)
                .executeTakeFirstOrThrow()
              await database.db
                .updateTable('counters')
                .set({ value: value + 1 })
                .where('id', '=', 1)
                .execute()
            },
            { isolationLevel: 'serializable', attempts: 50 },
          ),
        )
        codes.push(error?.code ?? 'committed')
      }
    }
    await Promise.all(Array.from({ length: 10 }, worker))
    const committed = codes.filter((code) => code === 'committed').length
    const value = await admin.value<number>('select value from counters where id = 1')
    record(18, begun, `${tally(codes)} in ${calls} attempts; the row says ${value}`)
    expect(value).toBe(committed)
    expect(committed).toBe(begun)
  },
  isFull ? 180_000 : 30_000,
)

test(
  'row 19: a lock that is not granted fails in time, and the transaction around the savepoint goes on',
  async () => {
    const url = await freshDatabaseUrl('empty')
    await using admin = await witness(url)
    await withTables(admin)
    await using database = await open<Tables>(url, { pool: { max: 2 } })
    const runs = times(100, 5)
    const limitMs = 50
    const attempts: Attempt<unknown>[] = []
    await admin.rows('begin')
    await admin.rows('select * from counters where id = 1 for update')
    for (let run = 0; run < runs; run += 1) {
      await database.transaction(async () => {
        await insert(database, run)
        await database.query(sql`set local lock_timeout = ${sql.lit(limitMs)}`)
        attempts.push(
          await attempt(() =>
            database.transaction(() =>
              database.db
                .updateTable('counters')
                .set({ value: randomInt(100) })
                .where('id', '=', 1)
                .execute(),
            ),
          ),
        )
        await database.db.updateTable('counters').set({ value: run }).where('id', '=', 2).execute()
      })
    }
    await admin.rows('rollback')
    const latest = Math.max(...attempts.map(({ tookMs }) => tookMs)) - limitMs
    record(
      19,
      runs,
      `${tally(attempts.map(({ error }) => `${error?.code} ${error?.sqlState}`))}; latest ${latest.toFixed(0)} ms after its limit`,
    )
    expect(new Set(attempts.map(({ error }) => error?.sqlState))).toEqual(new Set(['55P03']))
    expect(latest).toBeLessThanOrEqual(graceMs)
    expect(await admin.value('select count(*)::int from notes')).toBe(runs)
    expect(await admin.value('select value from counters where id = 2')).toBe(runs - 1)
  },
  isFull ? 120_000 : 30_000,
)
