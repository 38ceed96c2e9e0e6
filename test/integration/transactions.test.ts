import { sql } from 'kysely'
import { beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { createDatabase, type Database, type DatabaseOptions } from '../../src/index.ts'
import { outside } from '../support/caches.ts'
import { freshDatabaseUrl } from '../support/database.ts'
import { startProxy } from '../../src/testing/fault-proxy.ts'

interface DB {
  notes: { id: number; text: string }
}

let url = ''

beforeEach(async () => {
  url = await freshDatabaseUrl('empty')
})

async function open(postgres: DatabaseOptions['postgres'] = {}): Promise<Database<DB>> {
  const database = await createDatabase<DB>({ postgres: { url, ...postgres }, redis: false })
  await sql`create table if not exists notes (id int primary key, text text not null default '')`.execute(database.db)
  return database
}

const write = (database: Database<DB>, id: number): Promise<unknown> =>
  database.db.insertInto('notes').values({ id, text: '' }).execute()

const ids = async (database: Database<DB>): Promise<number[]> =>
  (await database.db.selectFrom('notes').select('id').orderBy('id').execute()).map(({ id }) => id)

describe('an ambient transaction', () => {
  test('joins what runs inside, however deep, and commits it together', async () => {
    await using database = await open()
    await using other = await open()
    const deep = async (): Promise<void> => {
      await Promise.resolve()
      await write(database, 2)
    }
    const result = await database.transaction(async () => {
      await write(database, 1)
      await deep()
      expect(await ids(other)).toEqual([])
      return 'done'
    })
    expect(result).toBe('done')
    expect(await ids(other)).toEqual([1, 2])
  })

  test('is rolled back when its function throws, and the error is that of the function', async () => {
    await using database = await open()
    const failed = database.transaction(async () => {
      await write(database, 1)
      throw new Error('changed my mind')
    })
    await expect(failed).rejects.toThrow('changed my mind')
    expect(await ids(database)).toEqual([])
    expect(database.stats().pool.holders).toEqual([])
  })

  test('does not reach work of others', async () => {
    await using database = await open()
    const inside = Promise.withResolvers<void>()
    const release = Promise.withResolvers<void>()
    const running = database.transaction(async () => {
      await write(database, 1)
      inside.resolve()
      await release.promise
    })
    await inside.promise
    expect(await ids(database)).toEqual([])
    release.resolve()
    await running
    expect(await ids(database)).toEqual([1])
  })

  test('sends nothing at all when nothing is asked in it', async () => {
    await using database = await open()
    const statements: string[] = []
    database.events.on('query', ({ sql: text }) => statements.push(text))
    expect(await database.transaction(async () => 7)).toBe(7)
    expect(statements).toEqual([])
  })

  test.each(['repeatable read', 'serializable', 'read committed'] as const)('runs at %s', async (isolationLevel) => {
    await using database = await open()
    const level = await database.transaction(
      () => database.queryValue<string>(sql`select current_setting('transaction_isolation') as level`),
      { isolationLevel },
    )
    expect(level).toBe(isolationLevel)
  })

  test('refuses writes when it is read only, and may be deferrable', async () => {
    await using database = await open()
    const options = { isolationLevel: 'serializable', accessMode: 'read only', deferrable: true } as const
    const modes = await database.transaction(
      () =>
        database.queryOne(
          sql`select current_setting('transaction_read_only') as read_only, current_setting('transaction_deferrable') as deferrable`,
        ),
      options,
    )
    expect(modes).toEqual({ read_only: 'on', deferrable: 'on' })
    let attempts = 0
    const failed = database.transaction(() => {
      attempts += 1
      return write(database, 1)
    }, options)
    await expect(failed).rejects.toMatchObject({ code: 'READ_ONLY' })
    expect(attempts).toBe(1)
  })

  test('that swallowed the failure of a statement is not committed, and says which one it was', async () => {
    await using database = await open()
    const failed = database.transaction(async () => {
      await write(database, 1)
      await write(database, 1).catch(() => undefined)
    })
    await expect(failed).rejects.toMatchObject({ code: 'TRANSACTION_ABORTED', cause: { code: 'UNIQUE_VIOLATION' } })
    expect(await ids(database)).toEqual([])
  })

  test('runs its statements one after another on one connection, also when they are started together', async () => {
    await using database = await open()
    await database.transaction(async () => {
      const pids = await Promise.all(
        Array.from({ length: 10 }, () => database.queryValue(sql`select pg_backend_pid() as pid`)),
      )
      expect(new Set(pids).size).toBe(1)
    })
  })
})

describe('a nested transaction', () => {
  test('undoes only itself', async () => {
    await using database = await open()
    await database.transaction(async () => {
      await write(database, 1)
      const inner = database.transaction(async () => {
        await write(database, 2)
        throw new Error('boom')
      })
      await expect(inner).rejects.toThrow('boom')
      await write(database, 3)
    })
    expect(await ids(database)).toEqual([1, 3])
  })

  test('goes with the one around it', async () => {
    await using database = await open()
    const outer = database.transaction(async () => {
      await database.transaction(() => write(database, 1))
      throw new Error('boom')
    })
    await expect(outer).rejects.toThrow('boom')
    expect(await ids(database)).toEqual([])
  })

  test('lets the outer go on after a refused insert', async () => {
    await using database = await open()
    await database.transaction(async () => {
      await write(database, 1)
      await expect(database.transaction(() => write(database, 1))).rejects.toMatchObject({ code: 'UNIQUE_VIOLATION' })
      await write(database, 2)
    })
    expect(await ids(database)).toEqual([1, 2])
  })

  test('can be the first to ask anything, three levels deep', async () => {
    await using database = await open()
    await database.transaction(() =>
      database.transaction(async () => {
        await database.transaction(() => write(database, 1))
        await database.transaction(() => write(database, 2))
      }),
    )
    expect(await ids(database)).toEqual([1, 2])
  })

  test('beside another one on the same transaction is an error, not a mess', async () => {
    await using database = await open()
    const failed = database.transaction(async () => {
      await Promise.all([
        database.transaction(() => write(database, 1)),
        database.transaction(() => write(database, 2)),
      ])
    })
    await expect(failed).rejects.toMatchObject({ code: 'TRANSACTION_MISUSE' })
    expect(await ids(database)).toEqual([])
  })
})

describe('misuse is caught', () => {
  test('a statement that was not awaited fails the transaction', async () => {
    await using database = await open()
    const failed = database.transaction(async () => {
      await write(database, 1)
      void database.query(sql`select pg_sleep(0.05)`).catch(() => undefined)
    })
    await expect(failed).rejects.toMatchObject({
      code: 'TRANSACTION_MISUSE',
      sql: expect.stringContaining('pg_sleep') as string,
    })
    expect(await ids(database)).toEqual([])
  })

  test('a statement after the end fails and reaches nobody else', async () => {
    await using database = await open()
    const late = Promise.withResolvers<void>()
    let use: Promise<unknown> = Promise.resolve()
    await database.transaction(async () => {
      await write(database, 1)
      use = late.promise.then(() => write(database, 2)).catch((error: unknown) => error)
    })
    late.resolve()
    expect(await use).toMatchObject({ code: 'TRANSACTION_MISUSE' })
    expect(await ids(database)).toEqual([1])
  })
})

test('a query inside the loop of a stream on its own transaction fails at once', async () => {
  await using database = await open()
  await write(database, 1)
  const failed = database.db.transaction().execute(async (trx) => {
    for await (const _note of trx.selectFrom('notes').selectAll().stream(1)) await write(database, 2)
  })
  await expect(failed).rejects.toMatchObject({ code: 'TRANSACTION_MISUSE' })
  expect(await ids(database)).toEqual([1])
})

test('a rollback to a savepoint heals the transaction', async () => {
  await using database = await open()
  const trx = await database.db.startTransaction().execute()
  const after = await trx.savepoint('one').execute()
  await after.insertInto('notes').values({ id: 1, text: '' }).execute()
  await expect(after.insertInto('notes').values({ id: 1, text: '' }).execute()).rejects.toMatchObject({
    code: 'UNIQUE_VIOLATION',
  })
  await after.rollbackToSavepoint('one').execute()
  await trx.insertInto('notes').values({ id: 2, text: '' }).execute()
  await trx.commit().execute()
  expect(await ids(database)).toEqual([2])
})

describe('hooks', () => {
  test('run after the outermost commit, in their order, with what was committed in sight', async () => {
    await using database = await open()
    await using other = await open()
    const seen: unknown[] = []
    await database.transaction(async () => {
      await write(database, 1)
      database.afterCommit(async () => seen.push('outer', await ids(other)))
      await database.transaction(async () => {
        await write(database, 2)
        database.afterCommit(() => seen.push('inner'))
      })
      expect(seen).toEqual([])
    })
    expect(seen).toEqual(['outer', [1, 2], 'inner'])
  })

  test('of a savepoint that was undone are dropped, and its afterRollback runs', async () => {
    await using database = await open()
    const seen: string[] = []
    await database.transaction(async () => {
      await database
        .transaction(async () => {
          database.afterCommit(() => seen.push('never'))
          database.afterRollback(() => seen.push('undone'))
          throw new Error('boom')
        })
        .catch(() => undefined)
      database.afterCommit(() => seen.push('committed'))
    })
    expect(seen).toEqual(['undone', 'committed'])
  })

  test('that throw undo nothing, and are logged without the transaction failing', async () => {
    const warnings: string[] = []
    await using database = await createDatabase<DB>({
      postgres: { url },
      redis: false,
      logger: { info: () => {}, warn: (message) => void warnings.push(message) },
    })
    await sql`create table notes (id int primary key, text text)`.execute(database.db)
    await database.transaction(async () => {
      await write(database, 1)
      database.afterCommit(() => {
        throw new Error('mail server down')
      })
    })
    expect(await ids(database)).toEqual([1])
    expect(warnings).toEqual([expect.stringContaining('mail server down')])
  })

  test('outside a transaction afterCommit runs at once', async () => {
    await using database = await open()
    const ran = vi.fn<() => void>()
    database.afterCommit(ran)
    await vi.waitUntil(() => ran.mock.calls.length === 1)
  })
})

describe('retries', () => {
  test('concurrent serializable increments all commit, and no update is lost', async () => {
    await using database = await open({ pool: { max: 10 } })
    await sql`create table counter (n int not null)`.execute(database.db)
    await sql`insert into counter values (0)`.execute(database.db)
    let retries = 0
    database.events.on('retry', () => (retries += 1))
    const increment = (): Promise<unknown> =>
      database.transaction(
        async () => {
          const n = await database.queryCount(sql`select n from counter`)
          await database.query(sql`update counter set n = ${n + 1}`)
        },
        { isolationLevel: 'serializable', attempts: 100 },
      )
    await Promise.all(Array.from({ length: 10 }, increment))
    expect(await database.queryCount(sql`select n from counter`)).toBe(10)
    expect(retries).toBeGreaterThan(0)
  })

  test('crossed updates end in a deadlock that nobody sees', async () => {
    await using database = await open({ pool: { max: 4 } })
    await write(database, 1)
    await write(database, 2)
    const both = (first: number, second: number): Promise<unknown> =>
      database.transaction(async () => {
        await database.db.updateTable('notes').set({ text: 'x' }).where('id', '=', first).execute()
        await database.query(sql`select pg_sleep(0.05)`)
        await database.db.updateTable('notes').set({ text: 'y' }).where('id', '=', second).execute()
      })
    await Promise.all([both(1, 2), both(2, 1)])
  })

  test('hooks of failed attempts are dropped', async () => {
    await using database = await open()
    const committed: number[] = []
    const rolledBack: number[] = []
    let attempt = 0
    await database.transaction(async () => {
      attempt += 1
      const number = attempt
      database.afterCommit(() => committed.push(number))
      database.afterRollback(() => rolledBack.push(number))
      await write(database, number)
      if (number < 3)
        await sql`do $$ begin raise exception 'again' using errcode = '40001'; end $$`.execute(database.db)
    })
    expect({ committed, rolledBack, stored: await ids(database) }).toEqual({
      committed: [3],
      rolledBack: [1, 2],
      stored: [3],
    })
  })

  test('stop after the attempts asked for, with the last error', async () => {
    await using database = await open()
    let attempts = 0
    const failed = database.transaction(
      async () => {
        attempts += 1
        await sql`do $$ begin raise exception 'again' using errcode = '40001'; end $$`.execute(database.db)
      },
      { attempts: 2 },
    )
    await expect(failed).rejects.toMatchObject({ code: 'SERIALIZATION_FAILURE', retry: 'transaction' })
    expect(attempts).toBe(2)
  })

  test('happen for other codes only when asked for', async () => {
    await using database = await open()
    await write(database, 1)
    let attempts = 0
    const insertNext = (): Promise<unknown> => {
      attempts += 1
      return write(database, attempts)
    }
    await expect(database.transaction(insertNext)).rejects.toMatchObject({ code: 'UNIQUE_VIOLATION' })
    attempts = 0
    await database.transaction(insertNext, { retryOn: ['UNIQUE_VIOLATION'] })
    expect(await ids(database)).toEqual([1, 2])
  })
})

describe('limits', () => {
  test('timeoutMs rolls it back while a statement runs, and stops that statement', async () => {
    await using database = await open({ pool: { max: 1 }, pipeline: false })
    const start = performance.now()
    const failed = database.transaction(
      async () => {
        await write(database, 1)
        await database.query(sql`select pg_sleep(30)`)
      },
      { timeoutMs: 100 },
    )
    await expect(failed).rejects.toMatchObject({ code: 'TRANSACTION_TIMEOUT' })
    expect(performance.now() - start).toBeLessThan(1_500)
    expect(await ids(database)).toEqual([])
    expect(
      await database.queryCount(
        sql`select count(*) from pg_stat_activity where query like 'select pg_sleep(30)%' and state = 'active'`,
      ),
    ).toBe(0)
  })

  test('timeoutMs ends it with the same error at whatever moment it passes', async () => {
    await using database = await open({ pool: { max: 10 }, breaker: false })
    const sleep = (_: unknown, n: number): Promise<unknown> =>
      database.transaction(() => database.query(sql`select pg_sleep(30)`), { timeoutMs: 50 + n })
    const outcomes: PromiseSettledResult<unknown>[] = []
    for (let round = 0; round < 5; round += 1) {
      outcomes.push(...(await Promise.allSettled(Array.from({ length: 10 }, sleep))))
    }
    const codes = outcomes.map((outcome) => ((outcome as PromiseRejectedResult).reason as { code: string }).code)
    expect(new Set(codes)).toEqual(new Set(['TRANSACTION_TIMEOUT']))
  })

  test('timeoutMs ends it with the same error while it waits for a connection, and the cause says who has them', async () => {
    await using database = await open({ pool: { max: 1 }, pipeline: false })
    const held = Promise.withResolvers<void>()
    const release = Promise.withResolvers<void>()
    const holder = database.transaction(async () => {
      await database.query(sql`select 'the holder'`)
      held.resolve()
      await release.promise
    })
    await held.promise
    const error = await database
      .transaction(() => write(database, 1), { timeoutMs: 50 })
      .catch((thrown: unknown) => thrown)
    expect(error).toMatchObject({
      code: 'TRANSACTION_TIMEOUT',
      limitMs: 50,
      retry: 'transaction',
      cause: { code: 'POOL_TIMEOUT', message: expect.stringContaining(`last select 'the holder'`) as string },
    })
    expect(String(error)).toMatch(/within its 50 ms.*nothing was sent.*select 'the holder'/s)
    release.resolve()
    await holder
    expect(await ids(database)).toEqual([])
  })

  test('timeoutMs ends it with the same error while a connection is opened for it', async () => {
    const proxy = await startProxy({ to: url })
    onTestFinished(() => proxy.close())
    await using database = await open({ url: proxy.url, pool: { max: 2 }, pipeline: false })
    proxy.on({ from: 'client', message: 'Startup' }, 'black-hole', { times: Infinity })
    await database.transaction(async () => {
      await database.query(sql`select 1`)
      const waiting = outside(() => database.transaction(() => write(database, 1), { timeoutMs: 50 }))
      await expect(waiting).rejects.toMatchObject({
        code: 'TRANSACTION_TIMEOUT',
        limitMs: 50,
        cause: { code: 'CONNECTION_FAILED' },
      })
    })
    // The limit of the pool has its own error.
    await using impatient = await open({ pool: { max: 1, acquireTimeoutMs: 50 }, pipeline: false })
    await impatient.transaction(async () => {
      await impatient.query(sql`select 1`)
      const waiting = outside(() => impatient.transaction(() => write(impatient, 1), { timeoutMs: 60_000 }))
      await expect(waiting).rejects.toMatchObject({ code: 'POOL_TIMEOUT', limitMs: 50 })
    })
  })

  test('timeoutMs also ends a transaction that waits for something else', async () => {
    await using database = await open({ pool: { max: 1 }, pipeline: false })
    const never = database.transaction(
      async () => {
        await write(database, 1)
        await new Promise(() => {})
      },
      { timeoutMs: 50 },
    )
    await expect(never).rejects.toMatchObject({ code: 'TRANSACTION_TIMEOUT', limitMs: 50 })
    expect(await ids(database)).toEqual([])
  })

  test('an aborted signal rolls it back, with its reason', async () => {
    await using database = await open()
    const controller = new AbortController()
    const reason = new Error('the user left')
    const failed = database.transaction(
      async () => {
        await write(database, 1)
        controller.abort(reason)
        await database.query(sql`select 1`)
      },
      { signal: controller.signal },
    )
    await expect(failed).rejects.toBe(reason)
    expect(await ids(database)).toEqual([])
  })
})

describe("Kysely's own transactions", () => {
  test('are joined by what runs inside, and have hooks', async () => {
    await using database = await open()
    const committed = vi.fn<() => void>()
    await database.db.transaction().execute(async (trx) => {
      await trx.insertInto('notes').values({ id: 1, text: '' }).execute()
      await write(database, 2)
      database.afterCommit(committed)
      expect(await ids(database)).toEqual([1, 2])
      expect(committed).not.toHaveBeenCalled()
    })
    expect(committed).toHaveBeenCalledOnce()
    expect(await ids(database)).toEqual([1, 2])
  })

  test('inside one of ours are savepoints', async () => {
    await using database = await open()
    await database.transaction(async () => {
      await write(database, 1)
      const inner = database.db.transaction().execute(async (trx) => {
        await trx.insertInto('notes').values({ id: 2, text: '' }).execute()
        throw new Error('boom')
      })
      await expect(inner).rejects.toThrow('boom')
    })
    expect(await ids(database)).toEqual([1])
  })

  test('that are controlled can be rolled back to a savepoint, and leave no connection behind', async () => {
    await using database = await open()
    const trx = await database.db.startTransaction().execute()
    await trx.insertInto('notes').values({ id: 1, text: '' }).execute()
    const after = await trx.savepoint('one').execute()
    await after.insertInto('notes').values({ id: 2, text: '' }).execute()
    await after.rollbackToSavepoint('one').execute()
    await trx.commit().execute()
    expect(await ids(database)).toEqual([1])
    expect(database.stats().pool.holders).toEqual([])
  })

  test('that fail keep their error although the rollback cannot work', async () => {
    await using database = await open({ pool: { max: 2 } })
    await using other = await open()
    const failed = database.db.transaction().execute(async (trx) => {
      const { rows } = await sql<{ pid: number }>`select pg_backend_pid() as pid`.execute(trx)
      await sql`select pg_terminate_backend(${rows[0]?.pid})`.execute(other.db)
      throw new Error('my own')
    })
    await expect(failed).rejects.toThrow('my own')
    expect(await ids(database)).toEqual([])
  })
})

describe('withLock', () => {
  test('lets one at a time in, across two databases', async () => {
    await using one = await open()
    await using two = await open()
    let inside = 0
    let most = 0
    const work = async (): Promise<void> => {
      inside += 1
      most = Math.max(most, inside)
      await Promise.resolve()
      inside -= 1
    }
    await Promise.all(Array.from({ length: 10 }, (_, n) => (n % 2 ? one : two).withLock('report', work)))
    expect(most).toBe(1)
  })

  test('gives up after waitMs', async () => {
    await using database = await open()
    const held = Promise.withResolvers<void>()
    const release = Promise.withResolvers<void>()
    const holder = database.withLock('report', async () => {
      held.resolve()
      await release.promise
    })
    await held.promise
    const waiting = database.withLock('report', async () => undefined, { waitMs: 30 })
    await expect(waiting).rejects.toMatchObject({ code: 'LOCK_TIMEOUT' })
    release.resolve()
    await holder
  })
})

test('on the embedded PostgreSQL the same holds: join, savepoint, hooks', async () => {
  await using database = await createDatabase<DB>({
    postgres: { embedded: { dataDir: 'memory' } },
    redis: false,
    logger: { info: () => {}, warn: () => {} },
  })
  await sql`create table notes (id int primary key, text text not null)`.execute(database.db)
  const committed = vi.fn<() => void>()
  await database.transaction(async () => {
    await write(database, 1)
    await database.transaction(() => write(database, 1)).catch(() => undefined)
    await write(database, 2)
    database.afterCommit(committed)
  })
  expect(await ids(database)).toEqual([1, 2])
  expect(committed).toHaveBeenCalledOnce()
})
