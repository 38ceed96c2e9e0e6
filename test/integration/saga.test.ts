import { randomUUID } from 'node:crypto'
import { CamelCasePlugin, ParseJSONResultsPlugin, sql } from 'kysely'
import { afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest'
import {
  createDatabase,
  createSagas,
  type Database,
  type DatabaseOptions,
  DatabaseError,
  saga,
  type SagaDefinition,
  type SagaEnd,
  SagaError,
  type SagaRecord,
  type Sagas,
  type SagasOptions,
  StepRefusedError,
} from '../../src/index.ts'
import { freshDatabaseUrl } from '../support/database.ts'

interface DB {
  /** What steps did, in their order. */
  effects: { id?: number; what: string }
}

const quick = { attempts: 3, minDelayMs: 1, maxDelayMs: 2 }
const once = { attempts: 1 }

let url = ''
let database: Database<DB>
let warnings: string[] = []
/** What is open, in the order in which it was opened. */
const opened: { close(): Promise<void> }[] = []

beforeAll(async () => {
  url = await freshDatabaseUrl('empty')
})

beforeEach(async () => {
  warnings = []
  database = await openDatabase()
  await database.transaction(async () => {
    await database.query(sql`set local client_min_messages = warning`)
    await database.query(sql`drop schema if exists kanta cascade`)
    await database.query(sql`drop table if exists effects`)
    await database.query(sql`create table effects (id int generated always as identity, what text not null)`)
  })
})

afterEach(async () => {
  for (const one of opened.splice(0).toReversed()) await one.close()
})

async function openDatabase(postgres: DatabaseOptions['postgres'] = {}): Promise<Database<DB>> {
  const own = await createDatabase<DB>({ postgres: { url, ...postgres }, redis: false })
  opened.push(own)
  return own
}

async function open(definitions: readonly SagaDefinition[], options: SagasOptions = {}, on = database): Promise<Sagas> {
  const logger = { warn: (message: string) => void warnings.push(message) }
  const sagas = await createSagas(on, definitions, { pollMs: 50, logger, ...options })
  opened.push(sagas)
  return sagas
}

const note = async (what: string, on = database): Promise<void> => {
  await on.db.insertInto('effects').values({ what }).execute()
}

const effects = async (): Promise<string[]> =>
  (await database.db.selectFrom('effects').select('what').orderBy('id').execute()).map(({ what }) => what)

async function ended(sagas: Sagas, id: string, state: SagaRecord['state']): Promise<SagaRecord> {
  return vi.waitUntil(
    async () => {
      const record = await sagas.find(id)
      return record?.state === state ? record : undefined
    },
    { timeout: 10_000, interval: 10 },
  )
}

const failed = (work: Promise<unknown>): Promise<unknown> =>
  work.then(
    () => undefined,
    (error: unknown) => error,
  )

/** Steps that say what they did; each may be told to do something else. */
function trip(name = 'trip') {
  return saga<{ to: string }>(name)
    .step('flight', {
      retry: quick,
      run: async ({ input }) => {
        await note(`flight to ${input.to}`)
        return { seat: '7A' }
      },
      compensate: ({ result }) => note(`no flight, seat ${result?.seat ?? 'unknown'}`),
    })
    .step('hotel', {
      transaction: true,
      retry: quick,
      run: async ({ input }) => {
        await note(`hotel in ${input.to}`)
        return [1, 2]
      },
      compensate: ({ result }) => note(`no hotel for ${result.length}`),
    })
}

describe('a saga', () => {
  test('runs its steps in order, gives each the results before it, and gives all results to who waits', async () => {
    const car = trip().step('car', {
      run: async ({ input, results }) => note(`car in ${input.to}, ${results.flight.seat}, ${results.hotel.length}`),
    })
    const sagas = await open([car])
    expect(await sagas.run(car, { to: 'Oulu' })).toEqual({ flight: { seat: '7A' }, hotel: [1, 2], car: undefined })
    expect(await effects()).toEqual(['flight to Oulu', 'hotel in Oulu', 'car in Oulu, 7A, 2'])
  })

  test('that fails is undone in reverse order, and says at which step and why', async () => {
    const broken = trip().step('car', {
      retry: quick,
      run: () => {
        throw Object.assign(new Error('no cars left'), { code: 'SOLD_OUT' })
      },
    })
    const sagas = await open([broken])
    const error = await failed(sagas.run(broken, { to: 'Oulu' }, { idempotencyKey: 'trip 1' }))
    expect(error).toBeInstanceOf(SagaError)
    const failure = { code: 'SOLD_OUT', message: 'no cars left' }
    expect(error).toMatchObject({ code: 'SAGA_COMPENSATED', saga: 'trip', step: 'car', failure })
    expect(await effects()).toEqual(['flight to Oulu', 'hotel in Oulu', 'no hotel for 2', 'no flight, seat 7A'])
    const [record] = await sagas.list()
    expect(record).toMatchObject({ state: 'compensated', idempotencyKey: 'trip 1', failedStep: 'car', failure })
    expect(record?.steps).toMatchObject([
      { name: 'flight', state: 'done', attempts: 1, compensation: 'done', compensationAttempts: 1 },
      { name: 'hotel', state: 'done', attempts: 1, compensation: 'done' },
      { name: 'car', state: 'failed', attempts: 3, compensation: undefined, failure },
    ])
    expect(record?.endedAt?.getTime()).toBeGreaterThanOrEqual(record?.createdAt.getTime() ?? Number.NaN)
  })

  test('undoes also the step that failed, if that has outside effects, since it may have happened', async () => {
    const seen: unknown[] = []
    const broken = saga('broken').step('charge', {
      retry: once,
      run: ({ idempotencyKey }) => {
        seen.push(idempotencyKey)
        throw new Error('the connection was reset')
      },
      compensate: ({ result, stepKey, idempotencyKey }) => void seen.push(result, stepKey, idempotencyKey),
    })
    const sagas = await open([broken])
    await failed(sagas.run(broken, undefined))
    const [key] = seen
    expect(seen).toEqual([key, undefined, key, `${String(key)}:compensate`])
  })

  test('does not undo a step that says that it has not happened, nor try it again', async () => {
    let attempts = 0
    const refused = trip().step('car', {
      retry: quick,
      run: async () => {
        attempts += 1
        throw new StepRefusedError('no driving licence')
      },
      compensate: () => note('no car'),
    })
    const sagas = await open([refused])
    const error = await failed(sagas.run(refused, { to: 'Oulu' }))
    expect(error).toMatchObject({ step: 'car', failure: { code: 'SAGA_STEP_REFUSED', message: 'no driving licence' } })
    expect(attempts).toBe(1)
    expect(await effects()).toEqual(['flight to Oulu', 'hotel in Oulu', 'no hotel for 2', 'no flight, seat 7A'])
  })

  test('undoes a step that refuses at a later attempt, since an earlier one may have happened', async () => {
    const refused = saga('refused').step('charge', {
      retry: quick,
      run: ({ attempt }) => {
        throw attempt === 1 ? new Error('no answer') : new StepRefusedError('declined')
      },
      compensate: () => note('refund'),
    })
    const sagas = await open([refused])
    await failed(sagas.run(refused, undefined))
    expect(await effects()).toEqual(['refund'])
  })

  test('does not undo a transaction that failed, since nothing of it is there', async () => {
    const broken = trip().step('bill', {
      transaction: true,
      retry: quick,
      run: async () => {
        await note('bill')
        throw new Error('boom')
      },
      compensate: () => note('no bill'),
    })
    const sagas = await open([broken])
    await failed(sagas.run(broken, { to: 'Oulu' }))
    expect(await effects()).toEqual(['flight to Oulu', 'hotel in Oulu', 'no hotel for 2', 'no flight, seat 7A'])
  })

  test('tries a step again with the same key, and a transaction without a trace of the failed attempts', async () => {
    const keys: string[] = []
    const flaky = saga('flaky')
      .step('outside', {
        retry: quick,
        run: async ({ attempt, idempotencyKey }) => {
          keys.push(`${attempt} ${idempotencyKey}`)
          if (attempt < 3) throw new Error('busy')
        },
      })
      .step('inside', {
        transaction: true,
        retry: quick,
        run: async ({ attempt, idempotencyKey, sagaId }) => {
          await note(`attempt ${attempt} ${String(idempotencyKey === `${sagaId}:inside`)}`)
          if (attempt < 3) throw new Error('busy')
        },
      })
    const sagas = await open([flaky])
    await sagas.run(flaky, undefined)
    const key = keys[0]?.slice(2)
    expect(keys).toEqual([`1 ${key}`, `2 ${key}`, `3 ${key}`])
    expect(await effects()).toEqual(['attempt 3 true'])
  })

  test('waits for its next attempt in the database, and holds no connection meanwhile', async () => {
    const patient = saga('patient').step('call', {
      retry: { attempts: 2, minDelayMs: 60_000 },
      run: ({ attempt }) => {
        if (attempt === 1) throw new Error('busy')
      },
    })
    const sagas = await open([patient])
    const handle = await sagas.start(patient, undefined)
    const waiting = await vi.waitUntil(async () => {
      const record = await sagas.find(handle.id)
      return record?.nextAttemptAt === undefined ? undefined : record
    })
    expect(waiting).toMatchObject({ state: 'running', runBy: undefined })
    const inMs = (waiting.nextAttemptAt?.getTime() ?? 0) - waiting.changedAt.getTime()
    expect(inMs).toBeGreaterThan(44_000)
    expect(inMs).toBeLessThan(76_000)
    // But for the moment of looking for work.
    await vi.waitUntil(() => database.stats().pool.holders.length === 0)
    expect(await sagas.retry(handle.id)).toBe(true)
    await handle.result()
  })
})

describe('beginning a saga', () => {
  test('is part of the transaction that surrounds it: with its commit, and not before', async () => {
    const simple = trip()
    const sagas = await open([simple])
    const handle = await database.transaction(async () => {
      const begun = await sagas.start(simple, { to: 'Oulu' })
      const other = await openDatabase()
      expect(await other.queryCount(sql`select count(*) from kanta.sagas`)).toBe(0)
      return begun
    })
    expect(await handle.result()).toMatchObject({ hotel: [1, 2] })
  })

  test('is undone with the transaction', async () => {
    const simple = trip()
    const sagas = await open([simple])
    let id = ''
    const rolledBack = database.transaction(async () => {
      const handle = await sagas.start(simple, { to: 'Oulu' })
      id = handle.id
      throw new Error('changed my mind')
    })
    await expect(rolledBack).rejects.toThrow('changed my mind')
    expect(await sagas.find(id)).toBeUndefined()
    await sagas.run(simple, { to: 'Turku' })
    expect(await effects()).toEqual(['flight to Turku', 'hotel in Turku'])
  })

  test('twice under one key is one saga, also at the same time', async () => {
    const simple = trip()
    const sagas = await open([simple])
    const others = await open([simple], {}, await openDatabase())
    const start = (by: Sagas) => by.start(simple, { to: 'Oulu' }, { idempotencyKey: 'order 1' })
    const handles = await Promise.all(Array.from({ length: 20 }, (_, n) => start(n % 2 === 0 ? sagas : others)))
    expect(new Set(handles.map(({ id }) => id)).size).toBe(1)
    expect(await Promise.all(handles.map((handle) => handle.result()))).toHaveLength(20)
    expect(await sagas.run(simple, { to: 'Oulu' }, { idempotencyKey: 'order 1' })).toMatchObject({ hotel: [1, 2] })
    expect(await effects()).toEqual(['flight to Oulu', 'hotel in Oulu'])
  })

  test('under a key that has another input is an error that names the saga, and begins nothing', async () => {
    const simple = trip()
    const sagas = await open([simple])
    const { id } = await sagas.start(simple, { to: 'Oulu' }, { idempotencyKey: 'order 1' })
    const error = await failed(sagas.start(simple, { to: 'Turku' }, { idempotencyKey: 'order 1' }))
    expect(error).toMatchObject({ code: 'SAGA_CONFLICT', sagaId: id })
    expect(JSON.stringify(error) + String(error)).not.toContain('Turku')
    expect(await sagas.list()).toHaveLength(1)
  })

  test('and waiting for it inside a transaction is an error at once', async () => {
    const simple = trip()
    const sagas = await open([simple])
    const inside = database.transaction(() => sagas.run(simple, { to: 'Oulu' }))
    await expect(inside).rejects.toMatchObject({ code: 'TRANSACTION_MISUSE' })
    const waiting = database.transaction(async () => (await sagas.start(simple, { to: 'Oulu' })).result())
    await expect(waiting).rejects.toMatchObject({ code: 'TRANSACTION_MISUSE' })
    expect(await sagas.list()).toEqual([])
  })

  test('works where another process runs it, and tells how it came out', async () => {
    const simple = trip()
    const beginner = await open([simple], { concurrency: false })
    const handle = await beginner.start(simple, { to: 'Oulu' })
    expect((await beginner.find(handle.id))?.runBy).toBeUndefined()
    await open([simple], {}, await openDatabase())
    expect(await handle.result()).toMatchObject({ flight: { seat: '7A' } })
  })

  test('with an input that is no JSON, or too large, is refused before anything is written', async () => {
    const any = saga<string>('any').step('one', { run: () => undefined })
    const sagas = await open([any], { maxValueBytes: 1_000 })
    for (const [input, problem] of [
      [{ n: 1n }, 'input of the saga "any".n is of type bigint'],
      [{ at: [new Date()] }, '.at[0] is an instance of a class'],
      [{ text: 'x'.repeat(2_000) }, 'has 2011 bytes, more than the 1000'],
    ] as const) {
      const error = await failed(sagas.start(any, input as never))
      expect(error).toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(problem) as string })
    }
    await expect(sagas.start(any, 'x', { idempotencyKey: '' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await expect(sagas.list({ limit: 0.5 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    expect(await sagas.list()).toEqual([])
  })

  test('keeps whatever JSON can hold', async () => {
    const odd = { text: 'a "q" \0 \ud800 ü 雪', list: [null, -1.5e300, true, []], ['__proto__']: 1, empty: {} }
    const echo = saga<typeof odd>('echo').step('echo', { run: ({ input }) => input })
    const sagas = await open([echo])
    const { echo: answer } = await sagas.run(echo, odd)
    expect(answer).toEqual(JSON.parse(JSON.stringify(odd)))
    expect(Object.isFrozen(answer) && Object.isFrozen(answer.list)).toBe(true)
  })

  test('a result that is no JSON fails the step, which is undone and not tried again', async () => {
    let attempts = 0
    const wrong = saga('wrong').step('one', {
      retry: quick,
      run: (): string => {
        attempts += 1
        return new Date() as never
      },
      compensate: () => note('undone'),
    })
    const sagas = await open([wrong])
    const error = await failed(sagas.run(wrong, undefined))
    expect(error).toMatchObject({ code: 'SAGA_COMPENSATED', step: 'one', failure: { code: 'INVALID_ARGUMENT' } })
    expect([attempts, await effects()]).toEqual([1, ['undone']])
  })
})

describe('definitions', () => {
  test('without steps, or twice, and settings that are none are refused', async () => {
    for (const refused of [
      open([saga('empty')]),
      open([]),
      open([trip(), trip()]),
      open([trip()], { concurrency: 0 }),
      open([trip()], { leaseMs: 5 }),
      open([trip()], { pollMs: -1 }),
    ]) {
      expect(await failed(refused)).toMatchObject({ code: 'INVALID_ARGUMENT' })
    }
  })

  test('that this process does not know, in name, version or steps, are left alone', async () => {
    const second = saga<{ to: string }>('trip', { version: 2 }).step('walk', { run: ({ input }) => note(input.to) })
    const reshaped = saga<{ to: string }>('trip').step('sail', { run: () => note('sailed') })
    const beginner = await open([trip(), second], { concurrency: false })
    const [, definition] = [trip(), second]
    const known = await beginner.start(definition, { to: 'walked' })
    await expect(beginner.start(reshaped, { to: 'Oulu' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    const first = trip()
    const older = await open([first], { concurrency: false })
    const unknown = await older.start(first, { to: 'Oulu' })
    await open([reshaped, second])
    await known.result()
    // It has looked for work again since.
    await (await beginner.start(second, { to: 'again' })).result()
    expect(await effects()).toEqual(['walked', 'again'])
    expect((await beginner.find(unknown.id))?.state).toBe('running')
  })
})

describe('a compensation', () => {
  /** One step that is undone as soon as the switch is on. */
  function fragile() {
    const state = { isFixed: false, attempts: 0 }
    const definition = saga('fragile')
      .step('first', { run: () => note('first'), compensate: () => note('first undone') })
      .step('second', {
        run: () => note('second'),
        compensateRetry: { attempts: 2, minDelayMs: 1 },
        compensate: async () => {
          state.attempts += 1
          if (!state.isFixed) throw new Error('the bank is closed')
          await note('second undone')
        },
      })
      .step('third', {
        run: () => {
          throw new StepRefusedError('no')
        },
      })
    return { definition, state }
  }

  test('that fails for good leaves the saga stuck: kept, told, listed, and gone on with when a person says so', async () => {
    const { definition, state } = fragile()
    const sagas = await open([definition])
    const ends: SagaEnd[] = []
    sagas.events.on('sagaEnded', (end) => ends.push(end))
    const handle = await sagas.start(definition, undefined)
    const error = await failed(handle.result())
    const failure = { code: 'Error', message: 'the bank is closed' }
    expect(error).toMatchObject({ code: 'SAGA_STUCK', sagaId: handle.id, step: 'second', failure })
    expect(ends).toEqual([{ id: handle.id, saga: 'fragile', state: 'stuck' }])
    expect(warnings.join()).toContain(`${handle.id}) is stuck`)
    expect(await sagas.list({ state: 'stuck' })).toMatchObject([{ id: handle.id, endedAt: undefined }])
    expect(state.attempts).toBe(2)
    expect(await effects()).toEqual(['first', 'second'])

    state.isFixed = true
    expect(await sagas.retry(handle.id)).toBe(true)
    await expect(handle.result()).rejects.toMatchObject({ code: 'SAGA_COMPENSATED', step: 'third' })
    expect(await effects()).toEqual(['first', 'second', 'second undone', 'first undone'])
    expect(await sagas.list({ state: 'stuck' })).toEqual([])
    expect(await sagas.retry(handle.id)).toBe(false)
  })

  test('that a person has done by hand is skipped, and those before it are done', async () => {
    const { definition } = fragile()
    const sagas = await open([definition])
    const handle = await sagas.start(definition, undefined)
    await failed(handle.result())
    expect(await sagas.skip(handle.id, 'first')).toBe(false)
    expect(await sagas.skip(handle.id, 'second')).toBe(true)
    await expect(handle.result()).rejects.toMatchObject({ code: 'SAGA_COMPENSATED' })
    expect(await effects()).toEqual(['first', 'second', 'first undone'])
    expect((await sagas.find(handle.id))?.steps).toMatchObject([
      { compensation: 'done' },
      { compensation: 'skipped' },
      {},
    ])
  })

  test('of a saga that does not exist is nothing to retry, skip or cancel', async () => {
    const sagas = await open([trip()])
    const id = randomUUID()
    for (const call of [() => sagas.retry(id), () => sagas.skip(id, 'hotel'), () => sagas.cancel(id)]) {
      expect(await failed(call())).toMatchObject({ code: 'NOT_FOUND' })
    }
    await expect(sagas.cancel(`${id}' or true`)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })
})

describe('a limit of time', () => {
  test('aborts the signal of the step, which is tried again and then undone', async () => {
    const reasons: unknown[] = []
    const slow = saga('slow').step('call', {
      timeoutMs: 20,
      retry: { attempts: 2, minDelayMs: 1 },
      run: ({ signal }) => new Promise<void>(() => signal.addEventListener('abort', () => reasons.push(signal.reason))),
      compensate: ({ result }) => note(`undone, ${String(result)}`),
    })
    const sagas = await open([slow])
    const error = await failed(sagas.run(slow, undefined))
    expect(error).toMatchObject({ code: 'SAGA_COMPENSATED', failure: { code: 'SAGA_STEP_TIMEOUT' } })
    expect(reasons).toMatchObject([{ code: 'SAGA_STEP_TIMEOUT' }, { code: 'SAGA_STEP_TIMEOUT' }])
    expect(await effects()).toEqual(['undone, undefined'])
  })

  test('rolls the transaction of a step back', async () => {
    const slow = saga('slow').step('call', {
      transaction: true,
      timeoutMs: 50,
      retry: once,
      run: async () => {
        await note('never')
        await database.query(sql`select pg_sleep(60)`)
      },
    })
    const sagas = await open([slow])
    await expect(sagas.run(slow, undefined)).rejects.toMatchObject({ failure: { code: 'SAGA_STEP_TIMEOUT' } })
    expect(await effects()).toEqual([])
  })
})

describe('canceling', () => {
  test('tells the step that runs, and undoes what was done, also from another process', async () => {
    const begun = Promise.withResolvers<void>()
    const long = trip().step('wait', {
      timeoutMs: false,
      run: ({ signal }) => {
        begun.resolve()
        return new Promise<void>((_resolve, reject) =>
          signal.addEventListener('abort', () => reject(signal.reason as Error)),
        )
      },
    })
    const sagas = await open([long])
    const other = await open([long], { concurrency: false }, await openDatabase())
    const handle = await other.start(long, { to: 'Oulu' })
    await begun.promise
    expect(await other.cancel(handle.id)).toBe(true)
    await expect(handle.result()).rejects.toMatchObject({ code: 'SAGA_CANCELED', sagaId: handle.id })
    expect(await effects()).toEqual(['flight to Oulu', 'hotel in Oulu', 'no hotel for 2', 'no flight, seat 7A'])
    expect(await sagas.cancel(handle.id)).toBe(false)
    expect(await sagas.find(handle.id)).toMatchObject({ state: 'compensated', isCanceled: true })
  })

  test('counts what a step does that does not listen, and undoes it with its result', async () => {
    const begun = Promise.withResolvers<void>()
    const release = Promise.withResolvers<void>()
    const deaf = saga('deaf').step('last', {
      run: async () => {
        begun.resolve()
        await release.promise
        return 'a receipt'
      },
      compensate: ({ result }) => note(`undone: ${String(result)}`),
    })
    const sagas = await open([deaf])
    const handle = await sagas.start(deaf, undefined)
    await begun.promise
    expect(await sagas.cancel(handle.id)).toBe(true)
    release.resolve()
    await expect(handle.result()).rejects.toMatchObject({ code: 'SAGA_CANCELED' })
    expect(await effects()).toEqual(['undone: a receipt'])
  })

  test('ends the waiting for the next attempt at once', async () => {
    const patient = saga('patient').step('call', {
      retry: { attempts: 2, minDelayMs: 60_000 },
      run: () => {
        throw new Error('busy')
      },
      compensate: () => note('undone'),
    })
    const sagas = await open([patient])
    const handle = await sagas.start(patient, undefined)
    await vi.waitUntil(async () => (await sagas.find(handle.id))?.nextAttemptAt !== undefined)
    await sagas.cancel(handle.id)
    await expect(handle.result()).rejects.toMatchObject({ code: 'SAGA_CANCELED' })
    expect(await effects()).toEqual(['undone'])
  })

  test('a completed saga changes nothing', async () => {
    const simple = trip()
    const sagas = await open([simple])
    const handle = await sagas.start(simple, { to: 'Oulu' })
    await handle.result()
    expect(await sagas.cancel(handle.id)).toBe(false)
    await handle.result()
  })
})

describe('several processes', () => {
  test('racing for the same sagas run each step in a transaction once, and all of them', async () => {
    const definition = saga<{ n: number }>('raced')
      .step('one', { transaction: true, run: ({ input }) => note(`one ${input.n}`) })
      .step('two', { transaction: true, run: ({ input }) => note(`two ${input.n}`) })
    const parties = await Promise.all(
      Array.from({ length: 3 }, async () => open([definition], { concurrency: 4 }, await openDatabase())),
    )
    const beginner = await open([definition], { concurrency: false })
    const handles = await Promise.all(Array.from({ length: 40 }, (_, n) => beginner.start(definition, { n })))
    for (const party of parties) void party.list()
    await Promise.all(handles.map((handle) => handle.result()))
    const wanted = Array.from({ length: 40 }, (_, n) => [`one ${n}`, `two ${n}`]).flat()
    expect((await effects()).toSorted()).toEqual(wanted.toSorted())
  })

  test('one that is closed lets its step end, gives the saga back, and the other goes on at once', async () => {
    const begun = Promise.withResolvers<void>()
    const release = Promise.withResolvers<void>()
    const definition = saga('handed over')
      .step('one', {
        run: async () => {
          begun.resolve()
          await release.promise
          await note('one')
        },
      })
      .step('two', { run: () => note('two') })
    const leaving = await open([definition], { leaseMs: 60_000 }, await openDatabase())
    const staying = await open([definition], { concurrency: false })
    const handle = await staying.start(definition, undefined)
    await begun.promise
    const closing = leaving.close()
    release.resolve()
    await closing
    expect(await effects()).toEqual(['one'])
    expect(await staying.find(handle.id)).toMatchObject({ state: 'running', runBy: undefined })
    await open([definition], { leaseMs: 60_000 })
    await handle.result()
    expect(await effects()).toEqual(['one', 'two'])
  })

  test('one that is closed does not wait for ever: the step is told, and runs again elsewhere with the same key', async () => {
    const calls: string[] = []
    const begun = Promise.withResolvers<void>()
    const definition = saga('endless').step('one', {
      run: async ({ attempt, idempotencyKey, signal }) => {
        calls.push(`${attempt} ${idempotencyKey}`)
        begun.resolve()
        if (attempt === 1) await new Promise(() => signal.addEventListener('abort', () => calls.push('told')))
      },
    })
    const leaving = await open([definition], { leaseMs: 60_000, drainTimeoutMs: 20 }, await openDatabase())
    const handle = await leaving.start(definition, undefined)
    await begun.promise
    const waiting = failed(handle.result())
    await leaving.close()
    expect(await waiting).toMatchObject({ code: 'DATABASE_CLOSED' })
    await expect(leaving.start(definition, undefined)).rejects.toMatchObject({ code: 'DATABASE_CLOSED' })
    const staying = await open([definition], { leaseMs: 60_000 })
    await ended(staying, handle.id, 'completed')
    const key = `${handle.id}:one`
    expect(calls).toEqual([`1 ${key}`, 'told', `2 ${key}`])
  })

  test('one that has lost its lease writes nothing any more, and its transaction is undone', async () => {
    const begun = Promise.withResolvers<void>()
    const release = Promise.withResolvers<void>()
    let attempts = 0
    const definition = saga('fenced').step('one', {
      transaction: true,
      run: async ({ attempt }) => {
        attempts += 1
        await note(`attempt ${attempt}`, attempt === 1 ? slow : database)
        if (attempt > 1) return
        begun.resolve()
        await release.promise
      },
    })
    const slow = await openDatabase()
    const first = await open([definition], { leaseMs: 60_000 }, slow)
    const handle = await first.start(definition, undefined)
    await begun.promise
    // As if it had not been heard of for too long.
    await database.query(sql`update kanta.saga_workers set alive_until = now() - interval '1 s'`)
    const second = await open([definition], { leaseMs: 60_000 })
    await ended(second, handle.id, 'completed')
    release.resolve()
    await first.close()
    expect(attempts).toBe(2)
    expect(await effects()).toEqual(['attempt 2'])
  })

  test('whose processes end in the middle of every attempt turn back instead of going on for ever', async () => {
    const definition = saga('deadly').step('one', {
      retry: { attempts: 2 },
      run: () => undefined,
      compensate: () => note('undone'),
    })
    const beginner = await open([definition], { concurrency: false })
    const handle = await beginner.start(definition, undefined)
    await database.query(
      sql`insert into kanta.saga_steps (saga_id, position, name, state, attempts) values (${handle.id}, 0, 'one', 'running', 2)`,
    )
    await open([definition])
    await expect(handle.result()).rejects.toMatchObject({ step: 'one', failure: { code: 'INTERRUPTED' } })
    expect(await effects()).toEqual(['undone'])
  })
})

describe('the rest', () => {
  test('sagas that ended are deleted after their time, and those that are stuck are not', async () => {
    const simple = trip()
    const lost = saga('lost').step('one', {
      retry: once,
      compensateRetry: once,
      run: () => {
        throw new Error('no')
      },
      compensate: () => {
        throw new Error('no')
      },
    })
    const sagas = await open([simple, lost])
    await sagas.run(simple, { to: 'Oulu' }, { idempotencyKey: 'order 1' })
    const stuck = await sagas.start(lost, undefined)
    await failed(stuck.result())
    await sagas.close()
    const keeper = await open([simple, lost], { retainMs: 0 })
    await vi.waitUntil(async () => (await keeper.list()).length === 1)
    expect(await keeper.list()).toMatchObject([{ id: stuck.id, state: 'stuck' }])
    expect(await database.queryCount(sql`select count(*) from kanta.saga_steps`)).toBe(1)
    // The key is free again.
    await keeper.run(simple, { to: 'Turku' }, { idempotencyKey: 'order 1' })
  })

  test('waiting for a result ends with its signal, and the saga goes on', async () => {
    const release = Promise.withResolvers<void>()
    const slow = saga('slow').step('one', { run: () => release.promise })
    const sagas = await open([slow])
    const handle = await sagas.start(slow, undefined)
    const waiting = failed(handle.result({ signal: AbortSignal.timeout(20) }))
    expect(await waiting).toMatchObject({ name: 'TimeoutError' })
    release.resolve()
    await handle.result()
  })

  test('installing and beginning inside a transaction is part of it', async () => {
    const simple = trip()
    const { sagas, handle } = await database.transaction(async () => {
      const inside = await open([simple])
      return { sagas: inside, handle: await inside.start(simple, { to: 'Oulu' }) }
    })
    await handle.result()
    expect(await sagas.list()).toHaveLength(1)
  })

  test('a step sees no transaction of whoever began the saga, and one in a transaction sees its own', async () => {
    const seen: boolean[] = []
    const definition = saga('context')
      .step('outside', { run: () => void seen.push(database.currentTransaction !== undefined) })
      .step('inside', { transaction: true, run: () => void seen.push(database.currentTransaction !== undefined) })
    const sagas = await open([definition])
    const handle = await database.transaction(() => sagas.start(definition, undefined))
    await handle.result()
    expect(seen).toEqual([false, true])
  })

  test('a serializable step runs again when the server asks for it, within one attempt', async () => {
    const attempts: number[] = []
    const definition = saga('strict').step('one', {
      transaction: { isolationLevel: 'serializable' },
      run: async ({ attempt }) => {
        attempts.push(attempt)
        await note('one')
        if (attempts.length === 1) {
          await database.query(sql`do $$ begin raise 'try again' using errcode = '40001'; end $$`)
        }
        return (await database.queryValue<string>(sql`select current_setting('transaction_isolation') as level`)) ?? ''
      },
    })
    const sagas = await open([definition])
    expect(await sagas.run(definition, undefined)).toEqual({ one: 'serializable' })
    expect(attempts).toEqual([1, 1])
    expect(await effects()).toEqual(['one'])
  })

  test('events tell of each attempt that failed, with what was thrown', async () => {
    const boom = new DatabaseError('LOCK_TIMEOUT', 'busy')
    const flaky = saga('flaky').step('one', {
      retry: quick,
      run: ({ attempt }) => {
        if (attempt === 1) throw boom
      },
    })
    const sagas = await open([flaky])
    const events: unknown[] = []
    sagas.events.on('sagaStepFailed', (event) => events.push(event))
    const handle = await sagas.start(flaky, undefined)
    await handle.result()
    const expected = { id: handle.id, saga: 'flaky', step: 'one', of: 'run', attempt: 1, isFinal: false, error: boom }
    expect(events).toEqual([expected])
  })

  test('nothing keeps running when the database is closed first', async () => {
    const simple = trip()
    const own = await openDatabase()
    const sagas = await open([simple], {}, own)
    const release = Promise.withResolvers<void>()
    const slow = saga('slow').step('one', { run: () => release.promise })
    const others = await open([slow], {}, own)
    const handle = await others.start(slow, undefined)
    const waiting = failed(handle.result())
    await own.close()
    expect(await waiting).toMatchObject({ code: 'DATABASE_CLOSED' })
    release.resolve()
    await Promise.all([sagas.close(), others.close()])
  })

  test('a worker that cannot write its lease says so, and does not ask for work all the time', async () => {
    const simple = trip()
    const starter = await open([simple], { concurrency: false })
    const own = await openDatabase()
    let queries = 0
    own.events.on('query', () => void (queries += 1))
    await database.query(sql`alter table kanta.saga_workers add constraint frozen check (false) not valid`)
    const sagas = await open([simple], { leaseMs: 1_000, pollMs: 200 }, own)
    const handle = await starter.start(simple, { to: 'Tampere' })
    await vi.waitUntil(() => warnings.length > 0)
    queries = 0
    await new Promise((resolve) => void setTimeout(resolve, 1_000))
    expect(queries).toBeLessThan(25)
    expect(warnings).toHaveLength(1)
    await database.query(sql`alter table kanta.saga_workers drop constraint frozen`)
    await handle.result()
    await sagas.close()
  })

  test('after an outage in which nothing ran it is as before, and tells of the next one', async () => {
    await open([trip()], { pollMs: 200, retainMs: false })
    const pauseFor = (ms: number): Promise<void> => new Promise((resolve) => void setTimeout(resolve, ms))
    await pauseFor(300)
    for (const told of [1, 2]) {
      await database.query(sql`alter table kanta.sagas rename to sagas_away`)
      await vi.waitUntil(() => warnings.length === told, 3_000)
      await pauseFor(500)
      await database.query(sql`alter table kanta.sagas_away rename to sagas`)
      await pauseFor(1_000)
    }
  })

  test('many more sagas than may run at once all come to their end', async () => {
    let atOnce = 0
    let most = 0
    const counted = saga<number>('counted').step('one', {
      run: async ({ input }) => {
        atOnce += 1
        most = Math.max(most, atOnce)
        await new Promise((resolve) => void setImmediate(resolve))
        atOnce -= 1
        return input
      },
    })
    const sagas = await open([counted], { concurrency: 5 })
    const results = await Promise.all(Array.from({ length: 100 }, (_, n) => sagas.run(counted, n)))
    expect(results.map(({ one }) => one)).toEqual(Array.from({ length: 100 }, (_, n) => n))
    expect(most).toBeLessThanOrEqual(5)
  })

  test('plugins that rename columns or parse JSON do not disturb it', async () => {
    const plugins = [new CamelCasePlugin(), new ParseJSONResultsPlugin()]
    const own = await createDatabase<DB>({ postgres: { url }, redis: false, plugins })
    opened.push(own)
    const odd = saga<{ snake_case: string; json: string }>('odd')
      .step('first', { run: ({ input }) => ({ ...input, more_of: ['{"a":1}'] }) })
      .step('second', {
        retry: once,
        run: ({ results }) => {
          throw new Error(results.first.json + results.first.more_of.join())
        },
      })
    const sagas = await open([odd], {}, own)
    const error = await failed(sagas.run(odd, { snake_case: 'x', json: '[1]' }))
    expect(error).toMatchObject({ code: 'SAGA_COMPENSATED', failure: { message: '[1]{"a":1}' } })
    expect(await sagas.list()).toMatchObject([{ failedStep: 'second', steps: [{ compensation: undefined }, {}] }])
  })

  test('it works on the embedded PostgreSQL, too', async () => {
    const embedded = await createDatabase({
      postgres: { embedded: {} },
      redis: false,
      logger: { info: () => undefined, warn: () => undefined },
    })
    opened.push(embedded)
    const definition = saga('small').step('one', {
      transaction: true,
      run: async () => (await embedded.queryValue<number>(sql`select 1 as one`)) ?? 0,
    })
    const sagas = await createSagas(embedded, [definition])
    opened.push(sagas)
    expect(await sagas.run(definition, undefined)).toEqual({ one: 1 })
  })
})
