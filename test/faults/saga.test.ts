import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { sql } from 'kysely'
import { expect, onTestFinished, test, vi } from 'vitest'
import { createDatabase, createSagas, type Database, saga, type Sagas } from '../../src/index.ts'
import { closeAfterTest, freshDatabaseUrl } from '../support/database.ts'
import { startPostgres } from '../support/servers.ts'
import { isFull, record, tally, times } from './record.ts'
import { inTurn, orderSaga, type OrderTables, stockSaga } from './saga-orders.ts'
import type { VictimMessage, VictimOptions } from './saga-victim.ts'
import { type Witness, witness } from './witness.ts'

interface Effect {
  readonly saga: string
  readonly what: string
  readonly key: string
  readonly count: number
}

interface Victim {
  readonly process: ChildProcess
  readonly messages: readonly VictimMessage[]
}

async function anywhere(): Promise<void> {}

async function prepare(
  url?: string,
): Promise<{ readonly url: string; readonly database: Database<OrderTables>; readonly auditor: Witness }> {
  const place = url ?? (await freshDatabaseUrl('empty'))
  const auditor = await witness(place)
  closeAfterTest({
    async close() {
      await auditor[Symbol.asyncDispose]()
    },
  })
  await auditor.rows(
    'create table effects (saga text not null, what text not null, key text not null, pid int not null)',
  )
  await auditor.rows(`insert into effects values ('the stock', 'open', '', 0)`)
  const database = await createDatabase<OrderTables>({ postgres: { url: place }, redis: false })
  return { url: place, auditor, database: closeAfterTest(database) }
}

function startVictim(options: VictimOptions): Victim {
  const child = fork(join(import.meta.dirname, 'saga-victim.ts'), [JSON.stringify(options)])
  onTestFinished(() => void child.kill('SIGKILL'))
  const messages: VictimMessage[] = []
  child.on('message', (message) => messages.push(message as VictimMessage))
  return { process: child, messages }
}

const of = <Kind extends VictimMessage['kind']>(victim: Victim, kind: Kind): Extract<VictimMessage, { kind: Kind }>[] =>
  victim.messages.filter((message): message is Extract<VictimMessage, { kind: Kind }> => message.kind === kind)

async function die(victim: Victim): Promise<void> {
  if (victim.process.exitCode !== null || victim.process.signalCode !== null) return
  const dead = once(victim.process, 'exit')
  victim.process.kill('SIGKILL')
  await dead
}

/** Runs all that is left in the log, as another process does after the lease of the first has run out. */
async function resume(url: string, database: Database<OrderTables>, auditor: Witness, versions: number): Promise<void> {
  await using outside = await witness(url)
  await auditor.rows(`update kanta.saga_workers set alive_until = now() - interval '1 s'`)
  const place = { database, outside: inTurn(outside), boundary: anywhere }
  const definitions = Array.from({ length: versions }, (_, n) => orderSaga(n + 1, place))
  const sagas = await createSagas(database, definitions, { pollMs: 20, concurrency: 20 })
  try {
    await vi.waitUntil(
      async () => (await auditor.value(`select count(*)::int from kanta.sagas where ended_at is null`)) === 0,
      { timeout: 60_000, interval: 20 },
    )
  } finally {
    await sagas.close()
  }
}

/** What is wrong about each saga, by what it left: nothing, if it is completed or wholly undone. */
async function faultsOf(auditor: Witness, ids: readonly string[], isRefused: boolean): Promise<string[]> {
  const states = new Map(
    (await auditor.rows<{ id: string; state: string }>('select id, state from kanta.sagas')).map((row) => [
      row.id,
      row.state,
    ]),
  )
  const effects = await auditor.rows<Effect>(
    'select saga, what, key, count(*)::int as count from effects group by saga, what, key',
  )
  return ids.flatMap((id) => {
    const own = effects.filter((effect) => effect.saga === id)
    const counts = (what: string): number[] => own.filter((effect) => effect.what === what).map(({ count }) => count)
    const faults: string[] = []
    const expectOnce = (what: string): void => {
      if (counts(what).join() !== '1') faults.push(`${what} took effect ${counts(what).join(' and ') || 'never'} times`)
    }
    const expectOneKey = (what: string): void => {
      if (counts(what).length !== 1) faults.push(`${what} was done under ${counts(what).length} keys`)
    }
    const expectNone = (what: string): void => {
      if (counts(what).length > 0) faults.push(`${what} was done`)
    }
    const state = states.get(id)
    if (state !== (isRefused ? 'compensated' : 'completed')) faults.push(`it is ${state ?? 'forgotten'}`)
    for (const what of ['reserve', 'book']) expectOnce(what)
    for (const what of ['charge', 'ship']) expectOneKey(what)
    if (isRefused) {
      for (const what of ['reserve undone', 'book undone']) expectOnce(what)
      for (const what of ['charge undone', 'ship undone']) expectOneKey(what)
      expectNone('close')
    } else {
      expectOnce('close')
      for (const { what } of own) if (what.endsWith('undone')) expectNone(what)
    }
    return faults.map((fault) => `${id}: ${fault}`)
  })
}

/** More than any saga here passes, so that some come to their end and tell how many there are. */
const moreThanAll = 80

test.each([
  ['completes', false],
  ['turns back', true],
] as const)(
  'row 29: sagas of a process that is killed, one at each boundary of a saga that %s, come to their end elsewhere',
  async (_how, isRefused) => {
    const { url, database, auditor } = await prepare()
    const victim = startVictim({ url, mode: 'halt', isRefused, count: moreThanAll, firstVersion: 1 })
    const halted = (): string[] => of(victim, 'halted').map((message) => message.saga)
    const ended = (): string[] => of(victim, 'ended').map((message) => message.saga)
    await vi.waitUntil(() => new Set([...halted(), ...ended()]).size === moreThanAll, {
      timeout: 20_000,
      interval: 5,
    })
    await die(victim)
    const boundaries = halted().length
    const left = await auditor.value<number>('select count(*)::int from kanta.sagas where ended_at is null')
    await resume(url, database, auditor, moreThanAll)
    const ids = of(victim, 'begun').map((begun) => begun.saga)
    const faults = await faultsOf(auditor, ids, isRefused)
    const again = await auditor.value<number>(
      'select sum(n - 1)::int from (select count(*) as n from effects group by saga, what) as done',
    )
    record(
      29,
      boundaries,
      `${isRefused ? 'turning back' : 'completing'}: ${left} sagas left at ${boundaries} boundaries, ${again} outside effects repeated, ${faults.length} faults`,
    )
    expect(ids).toHaveLength(moreThanAll)
    expect(boundaries).toBeGreaterThan(isRefused ? 60 : 35)
    // At the last boundary of one that turns back, it has ended.
    expect(left).toBeGreaterThanOrEqual(boundaries - 1)
    expect(again).toBeGreaterThan(0)
    expect(faults).toEqual([])
  },
)

test.each([
  ['completes', false],
  ['turns back', true],
] as const)(
  'row 29: a process that kills itself at a boundary of a saga that %s leaves nothing undone, nor done twice',
  async (_how, isRefused) => {
    const { url, database, auditor } = await prepare()
    const ids: string[] = []
    // Each has its own statement, its own moment on the server, and nothing else under way.
    for (let boundary = isFull ? 1 : 27; boundary <= (isFull ? moreThanAll : 27); boundary += 1) {
      const victim = startVictim({ url, mode: 'kill', isRefused, count: boundary, firstVersion: boundary })
      await vi.waitUntil(() => victim.process.signalCode !== null || of(victim, 'ended').length > 0, {
        timeout: 20_000,
        interval: 5,
      })
      ids.push(...of(victim, 'begun').map((begun) => begun.saga))
      if (of(victim, 'ended').length === 0) continue
      await die(victim)
      break
    }
    await resume(url, database, auditor, moreThanAll)
    const faults = await faultsOf(auditor, ids, isRefused)
    record(
      29,
      ids.length,
      `${isRefused ? 'turning back' : 'completing'}: ${ids.length} processes, ${faults.length} faults`,
    )
    expect(ids.length).toBeGreaterThan(0)
    expect(faults).toEqual([])
  },
  isFull ? 300_000 : 30_000,
)

test('row 29: a process that was frozen beyond its lease in the transaction of a step does not do it again', async () => {
  const { url, database, auditor } = await prepare()
  const victim = startVictim({ url, mode: 'freeze', isRefused: false, count: 0, firstVersion: 1 })
  await vi.waitUntil(() => of(victim, 'in step').length === 1, { timeout: 10_000, interval: 5 })
  victim.process.kill('SIGSTOP')
  // It keeps the lock on the stock, until the server ends its session after as long as the step may take.
  const sagas = closeAfterTest(
    await createSagas(database, [stockSaga(database, anywhere)], { leaseMs: 300, pollMs: 20 }),
  )
  const id = of(victim, 'begun')[0]?.saga ?? ''
  await vi.waitUntil(async () => (await sagas.find(id))?.state === 'completed', { timeout: 20_000, interval: 20 })
  victim.process.send('go on')
  victim.process.kill('SIGCONT')
  await vi.waitUntil(() => of(victim, 'transaction').length > 0, { timeout: 10_000, interval: 5 })
  const outcomes = of(victim, 'transaction').map(({ outcome }) => outcome)
  const done = await auditor.rows<{ pid: number }>('select pid from effects where saga = $1', [id])
  await die(victim)
  await sagas.close()
  record(29, 1, `frozen: its transaction was ${tally(outcomes)}; done ${done.length} time, by the other process`)
  expect(outcomes).toEqual(['rolled back'])
  expect(done).toEqual([{ pid: process.pid }])
})

test(
  'row 29: sagas go on after PostgreSQL was killed and restarted under them',
  async () => {
    const server = await startPostgres({ fsync: true, settings: { max_connections: 60 } })
    onTestFinished(() => server.stop())
    const { database, auditor: first } = await prepare(server.url)
    let isStruck = false
    const count = times(200, 40)
    const strikes = times(5, 1)
    const steps = saga<{ n: number }>('restarted')
      .step('one', {
        transaction: true,
        run: ({ input, idempotencyKey }) => act(database, `one ${input.n}`, idempotencyKey),
      })
      .step('two', {
        run: async ({ input, idempotencyKey }) => {
          await act(database, `two ${input.n}`, idempotencyKey)
          if (input.n % 10 === 0) await vi.waitUntil(() => isStruck, { timeout: 60_000, interval: 5 })
        },
        timeoutMs: false,
      })
      .step('three', {
        transaction: true,
        run: ({ input, idempotencyKey }) => act(database, `three ${input.n}`, idempotencyKey),
      })
    const logger = { warn: () => undefined }
    const parties: Sagas[] = []
    for (let n = 0; n < 2; n += 1)
      parties.push(await createSagas(database, [steps], { pollMs: 50, concurrency: 15, logger }))
    onTestFinished(async () => void (await Promise.all(parties.map((sagas) => sagas.close()))))
    const [sagas] = parties as [Sagas]
    const handles = await database.transaction(async () => {
      const begun = []
      for (let n = 0; n < count; n += 1) begun.push(await sagas.start(steps, { n }))
      return begun
    })
    const waiting = Promise.allSettled(handles.map((handle) => handle.result()))
    for (let strike = 1; strike <= strikes; strike += 1) {
      const enough = (strike * count) / (strikes + 1)
      await vi
        .waitUntil(async () => (await first.value<number>('select count(*)::int from effects')) > enough, {
          timeout: 20_000,
          interval: 5,
        })
        .catch(() => undefined)
      await server.kill('SIGKILL')
      await server.restart()
    }
    isStruck = true
    const results = await waiting
    for (const party of parties) await party.close()
    await using auditor = await witness(server.url)
    const effects = await auditor.rows<{ what: string; n: number; keys: number }>(
      `select what, count(*)::int as n, count(distinct key)::int as keys from effects where saga <> 'the stock' group by what`,
    )
    const outcomes = tally(results.map(({ status }) => status))
    const repeated = effects.filter(({ what, n }) => n > 1 && what.startsWith('two')).length
    record(29, count, `restarted ${strikes} times: ${outcomes}; ${repeated} outside effects repeated`)
    expect(results.filter(({ status }) => status === 'rejected')).toEqual([])
    expect(effects).toHaveLength(3 * count)
    expect(effects.filter(({ what, n }) => n !== 1 && !what.startsWith('two'))).toEqual([])
    expect(effects.filter(({ keys }) => keys !== 1)).toEqual([])
    await database.close()
  },
  isFull ? 120_000 : 60_000,
)

async function act(database: Database<OrderTables>, what: string, key: string): Promise<void> {
  await database.query(sql`insert into effects values ('', ${what}, ${key}, 0)`)
}

test('row 29: processes that race for the same sagas, and take them from each other, do each step in a transaction once', async () => {
  const { url, database, auditor } = await prepare()
  await using outside = await witness(url)
  const definition = orderSaga(1, { database, outside: inTurn(outside), boundary: anywhere, attempts: 1_000_000 })
  // A lease that hardly holds: each takes what the other has just begun.
  const options = { leaseMs: 100, pollMs: 5, concurrency: 8, logger: { warn: () => undefined } }
  const parties: Sagas[] = []
  for (let n = 0; n < 3; n += 1) parties.push(await createSagas(database, [definition], options))
  const [first] = parties as [Sagas]
  const handles = await Promise.all(
    Array.from({ length: times(300, 30) }, () => first.start(definition, { isRefused: false })),
  )
  const waiting = Promise.all(handles.map((handle) => handle.result()))
  const over = new AbortController()
  const thieving = (async () => {
    while (!over.signal.aborted) {
      await delay(10)
      await auditor.rows(`update kanta.saga_workers set alive_until = now() - interval '1 s'`)
    }
  })()
  try {
    await waiting
  } finally {
    over.abort()
    await thieving
  }
  const taken = await auditor.value<number>('select sum(fence - 1)::int from kanta.sagas')
  for (const party of parties) await party.close()
  const faults = await faultsOf(
    auditor,
    handles.map(({ id }) => id),
    false,
  )
  record(29, handles.length, `raced for by three: taken from one another ${taken} times, ${faults.length} faults`)
  expect(taken).toBeGreaterThan(0)
  expect(faults).toEqual([])
})
