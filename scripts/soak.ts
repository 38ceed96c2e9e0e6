/**
 * `npm run soak`: everything that a service does with kanta, mixed and for a long time, on a PostgreSQL of its own whose
 * backends are killed and which is restarted now and then. Between the rounds of load everything is at rest and counted:
 * memory, handles, timers, backends. Ends with exit code 1 when anything of that grows.
 *
 * `npm run soak -- --minutes 10` is the default; `--json` prints the result as the last line.
 */

import { randomInt } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { type RawBuilder, sql } from 'kysely'
import { Client } from 'pg'
import { createDatabase, type Database, isDatabaseError, type Parameters } from '../src/index.ts'
import { type OwnServer, startPostgres } from '../test/support/servers.ts'

interface Tables {
  notes: { id: number; body: string; visits: number }
  entries: { id: string; note_id: number; body: string }
}

/** What one moment of rest has shown. */
interface Sample {
  readonly atMs: number
  readonly heap: number
  /** Buffers and what else lies outside the heap. */
  readonly external: number
  readonly rss: number
  /** Sockets that belong to no open connection of the database. */
  readonly strays: number
  readonly timers: number
  readonly handles: number
  readonly backends: number
  readonly listeners: number
  readonly pool: number
  readonly pipeline: number
  /** Borrowed connections and waiting callers, of which there are none at rest. */
  readonly held: number
}

/** What `--json` prints. */
export interface SoakResult {
  readonly minutes: number
  readonly samples: number
  readonly calls: number
  readonly kills: number
  readonly restarts: number
  readonly heapBytesPerTenMinutes: number
  readonly missed: readonly string[]
}

const { values } = parseArgs({
  options: { minutes: { type: 'string', default: '10' }, json: { type: 'boolean', default: false } },
})
const minutes = Number(values.minutes)
if (!(minutes > 0)) throw new Error('--minutes takes a number above 0')

const noteCount = 1_000
const callers = 12
const pool = { max: 8, min: 2, acquireTimeoutMs: 2_000, idleTimeoutMs: 3_000, maxLifetimeMs: 20_000 }
const sharedConnections = 2
// The lists that are full after a while are full before anything is counted: the texts that an engine knows …
const knownTexts = 5_000
// … and those that a connection has prepared, of which more are in use than it may keep.
const maxPrepared = 32
const textsInUse = 100
let newTexts = 0
const megabyte = 1_048_576
const memoryBar = megabyte
/** From so many minutes on a slope can be told from noise; in less, memory may not grow by the bar in all. */
const longRun = 5
const roundMs = Math.min(3_000, (minutes * 60_000) / 12)
const killEveryMs = 1_500
const restartEveryMs = Math.min(120_000, (minutes * 60_000) / 3)

setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc') as () => void

const uncaught: string[] = []
process.on('uncaughtException', (error) => uncaught.push(`uncaught: ${String(error)}`))
process.on('unhandledRejection', (reason) => uncaught.push(`unhandled: ${String(reason)}`))
process.on('warning', (warning) => uncaught.push(`warning: ${warning.message}`))

const calls = new Map<string, number>()
const outcomes = new Map<string, number>()
const foreign = new Set<string>()
let kills = 0
let restarts = 0

const count = (map: Map<string, number>, key: string): void => void map.set(key, (map.get(key) ?? 0) + 1)

const server = await startPostgres({ settings: { max_connections: 60, deadlock_timeout: '50ms' } })
let result: SoakResult
try {
  await found(server.url)
  await using database = await openDatabase(server.url)
  result = await soak(database, server)
} finally {
  await server.stop()
}
if (values.json) console.log(JSON.stringify(result))
process.exitCode = result.missed.length === 0 ? 0 : 1

function openDatabase(url: string, most = pool.max): Promise<Database<Tables>> {
  return createDatabase<Tables>({
    postgres: {
      url,
      applicationName: 'soak',
      pool: { ...pool, max: most },
      pipeline: { connections: sharedConnections },
      preparedStatements: { max: maxPrepared },
      connectTimeoutMs: 2_000,
    },
    redis: false,
    logger: { info: () => undefined, warn: () => undefined },
  })
}

async function found(url: string): Promise<void> {
  const founder = await witness(url)
  await founder.query('create table notes (id int primary key, body text not null, visits int not null default 0)')
  await founder.query(
    'create table entries (id uuid primary key default gen_random_uuid(), note_id int references notes, body text)',
  )
  await founder.query(`insert into notes select n, repeat('x', 200) from generate_series(1, $1) n`, [noteCount])
  await founder.end()
}

async function witness(url: string): Promise<Client> {
  const client = new Client({ connectionString: url, application_name: 'witness' })
  client.on('error', () => undefined)
  await client.connect()
  return client
}

type Action = () => Promise<unknown>

/** What the callers do, each as often as it is listed here by weight. */
function actionsOn(database: Database<Tables>, url: string): readonly (readonly [string, number, Action])[] {
  const { db } = database
  const anyNote = (): number => randomInt(1, noteCount + 1)
  const byId = database.prepare((p: Parameters<{ id: number }>) =>
    db.selectFrom('notes').selectAll().where('id', '=', p('id')),
  )
  const visit = (id: number): Promise<unknown> =>
    db
      .updateTable('notes')
      .set({ visits: sql`visits + 1` })
      .where('id', '=', id)
      .execute()
  const enter = (id: number): Promise<unknown> =>
    db
      .insertInto('entries')
      .values({ id: sql`gen_random_uuid()`, note_id: id, body: 'y'.repeat(randomInt(500)) })
      .returning('id')
      .executeTakeFirst()
  const givenUp = new Error('given up')
  const tolerate = (work: Promise<unknown>): Promise<unknown> =>
    work.catch((error: unknown) => {
      if (error !== givenUp) throw error
    })

  return [
    ['read by key', 30, () => db.selectFrom('notes').selectAll().where('id', '=', anyNote()).executeTakeFirst()],
    ['prepared read', 30, () => byId.first({ id: anyNote() })],
    ['page', 5, () => db.selectFrom('notes').selectAll().orderBy('id').limit(50).offset(randomInt(500)).execute()],
    ['insert', 10, () => enter(anyNote())],
    ['many texts', 10, () => database.query(sumWith(randomInt(textsInUse)))],
    ['new text', 2, () => database.query(sumWith(textsInUse + (newTexts += 1)))],
    [
      'transaction with a savepoint undone',
      6,
      () =>
        database.transaction(async () => {
          const id = anyNote()
          await enter(id)
          database.afterCommit(() => undefined)
          await tolerate(
            database.transaction(async () => {
              await enter(id)
              throw givenUp
            }),
          )
          await database.query(sql`select count(*) from entries where note_id = ${id}`)
        }),
    ],
    [
      'transaction undone',
      4,
      () =>
        tolerate(
          database.transaction(async () => {
            await visit(anyNote())
            database.afterRollback(() => undefined)
            throw givenUp
          }),
        ),
    ],
    [
      'crossed updates',
      3,
      () =>
        database.transaction(async () => {
          const [first, second] = randomInt(2) === 0 ? [1, 2] : [2, 1]
          await visit(first)
          await visit(second)
        }),
    ],
    [
      'serializable',
      3,
      () =>
        database.transaction(
          async () => {
            const note = await db.selectFrom('notes').select('visits').where('id', '=', 3).executeTakeFirstOrThrow()
            await db
              .updateTable('notes')
              .set({ visits: note.visits + 1 })
              .where('id', '=', 3)
              .execute()
          },
          { isolationLevel: 'serializable' },
        ),
    ],
    [
      'stream',
      2,
      async () => {
        const until = randomInt(400)
        let rows = 0
        for await (const _ of db.selectFrom('notes').selectAll().stream(50)) if ((rows += 1) > until) break
      },
    ],
    [
      'aborted',
      4,
      () => {
        const controller = new AbortController()
        setTimeout(() => controller.abort(givenUp), randomInt(10))
        return tolerate(database.query(sql`select pg_sleep(0.005)`, { signal: controller.signal }))
      },
    ],
    ['timed out', 1, () => database.query(sql`select pg_sleep(60)`, { timeoutMs: 20 })],
    [
      'timed out on a shared connection',
      1,
      () =>
        database.query(db.selectNoFrom(sql`pg_sleep(60 + ${sql.lit(randomInt(100))})`.as('slept')), { timeoutMs: 20 }),
    ],
    [
      'transaction timed out',
      1,
      () => database.transaction(() => database.query(sql`select pg_sleep(60)`), { timeoutMs: 20 }),
    ],
    ['key taken', 3, () => db.insertInto('notes').values({ id: 1, body: '', visits: 0 }).execute()],
    ['wrong syntax', 1, () => database.query(sql`selekt ${1}`)],
    [
      'wrong table',
      1,
      () =>
        db
          .selectFrom('nowhere' as 'notes')
          .selectAll()
          .execute(),
    ],
    ['wrong value', 1, () => database.query(sql`select ${'x'}::int`)],
    ['wrong parameter', 1, () => database.query(sql`select ${circular()}::jsonb`)],
    ['lock', 2, () => database.withLock(`lock ${randomInt(3)}`, () => visit(anyNote()), { waitMs: 50 })],
    ['health', 1, () => database.health()],
    ['stats', 2, async () => database.stats()],
    [
      'listeners',
      2,
      async () => {
        const stops = [database.events.on('query', () => undefined), database.events.on('retry', () => undefined)]
        await byId({ id: anyNote() })
        for (const stop of stops) stop()
      },
    ],
    [
      'another database',
      1,
      async () => {
        await using other = await openDatabase(url, 2)
        await Promise.all([
          other.health(),
          other.query(sql`select 1`),
          other.db.selectFrom('notes').select('id').execute(),
        ])
      },
    ],
  ]
}

/** A text for each number. */
function sumWith(number: number): RawBuilder<{ sum: number }> {
  return sql`select ${sql.lit(number)}::int + ${1}::int as sum`
}

function circular(): object {
  const value: { self?: unknown } = {}
  value.self = value
  return value
}

async function soak(database: Database<Tables>, own: OwnServer): Promise<SoakResult> {
  const actions = actionsOn(database, own.url)
  const wheel = actions.flatMap(([name, weight, action]) => Array.from({ length: weight }, () => ({ name, action })))
  await warmUp(database, actions)

  const samples: Sample[] = []
  const began = performance.now()
  const end = began + minutes * 60_000
  let restartAt = began + restartEveryMs / 2
  const stuck: string[] = []
  while (performance.now() < end && stuck.length === 0) {
    const over = new AbortController()
    const load = Array.from({ length: callers }, () => call(wheel, over.signal))
    const disturbing = disturb(own.url, over.signal)
    await delay(roundMs)
    if (performance.now() > restartAt) {
      restartAt += restartEveryMs
      await own.kill('SIGQUIT')
      await own.restart()
      restarts += 1
      await delay(roundMs)
    }
    over.abort()
    const settled = await Promise.race([Promise.all([...load, disturbing]), delay(40_000, 'stuck', { ref: false })])
    if (settled === 'stuck') stuck.push(`calls that did not settle: ${JSON.stringify(database.stats())}`)
    samples.push(await restAndCount(database, own.url, performance.now() - began))
    if (process.stdout.isTTY) process.stdout.write(`\r${samples.length} rounds`)
  }
  return judge(samples, stuck, actions)
}

/** Fills what is filled once: texts, names, shapes, and the code that the engine of JavaScript compiles. */
async function warmUp(database: Database<Tables>, actions: ReturnType<typeof actionsOn>): Promise<void> {
  for (let known = 0; known < knownTexts; known += 50) {
    await Promise.all(Array.from({ length: 50 }, () => database.query(sumWith(textsInUse + (newTexts += 1)))))
  }
  for (let round = 0; round < 5; round += 1) {
    for (const [, , action] of actions) await action().catch(() => undefined)
  }
}

async function call(wheel: readonly { name: string; action: Action }[], over: AbortSignal): Promise<void> {
  while (!over.aborted) {
    const { name, action } = wheel[randomInt(wheel.length)] as (typeof wheel)[number]
    count(calls, name)
    try {
      await action()
      count(outcomes, 'answer')
    } catch (error) {
      count(outcomes, isDatabaseError(error) ? error.code : 'foreign')
      if (!isDatabaseError(error)) foreign.add(`${name}: ${String(error)}`)
      // Callers that fail at once while the server is away would drown everything else.
      await delay(2)
    }
  }
}

/** Kills a backend now and then, and keeps the tables from growing. */
async function disturb(url: string, over: AbortSignal): Promise<void> {
  while (!over.aborted) {
    await delay(killEveryMs, undefined, { signal: over }).catch(() => undefined)
    if (over.aborted) return
    try {
      const killer = await witness(url)
      try {
        const { rowCount } = await killer.query(
          `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'soak' order by random() limit 1`,
        )
        kills += rowCount ?? 0
        await killer.query('delete from entries')
      } finally {
        await killer.end()
      }
    } catch {
      // The server is being restarted.
    }
  }
}

/** Counts at rest: nothing is under way, and what is on its way out has had a moment to go. */
async function restAndCount(database: Database<Tables>, url: string, atMs: number): Promise<Sample> {
  const counter = await witness(url)
  try {
    let current = await look(database, counter, atMs)
    for (const until = performance.now() + 5_000; !isAtRest(current) && performance.now() < until;) {
      await delay(50)
      current = await look(database, counter, atMs)
    }
    return current
  } finally {
    await counter.end()
  }
}

function isAtRest({ strays, held, backends, pool: open, pipeline }: Sample): boolean {
  return strays === 0 && held === 0 && backends === open + pipeline && pipeline === sharedConnections
}

async function look(database: Database<Tables>, counter: Client, atMs: number): Promise<Sample> {
  const { rows } = await counter.query<{ backends: number }>(
    `select count(*)::int as backends from pg_stat_activity where application_name = 'soak'`,
  )
  // What is only held weakly, or by a finalizer, goes with the second and third collection.
  for (let round = 0; round < 3; round += 1) {
    collectGarbage()
    await delay(5)
  }
  const resources = process.getActiveResourcesInfo()
  const kinds = (kind: string): number => resources.filter((resource) => resource === kind).length
  const { pool: connections, pipeline } = database.stats()
  const shared = pipeline?.connections ?? 0
  const { heapUsed, external, arrayBuffers, rss } = process.memoryUsage()
  return {
    atMs,
    heap: heapUsed,
    external: external + arrayBuffers,
    rss,
    // One more is the counter's own.
    strays: kinds('TCPSocketWrap') - connections.total - shared - 1,
    timers: kinds('Timeout'),
    handles: resources.length - kinds('TCPSocketWrap') - kinds('Timeout'),
    backends: rows[0]?.backends ?? Number.NaN,
    listeners: process.eventNames().reduce((sum, name) => sum + process.listenerCount(name), 0),
    pool: connections.total,
    pipeline: shared,
    held: connections.holders.length + connections.waiting,
  }
}

/** The line of least squares through the second half, and how sure its slope is, per ten minutes. */
function trend(samples: readonly Sample[], of: (sample: Sample) => number): { slope: number; error: number } {
  const half = samples.slice(Math.floor(samples.length / 2))
  const points = half.map((sample) => [sample.atMs / 600_000, of(sample)] as const)
  const mean = (numbers: readonly number[]): number => numbers.reduce((sum, n) => sum + n, 0) / numbers.length
  const [meanX, meanY] = [mean(points.map(([x]) => x)), mean(points.map(([, y]) => y))]
  const spread = points.reduce((sum, [x]) => sum + (x - meanX) ** 2, 0)
  const slope = points.reduce((sum, [x, y]) => sum + (x - meanX) * (y - meanY), 0) / spread
  const rest = points.reduce((sum, [x, y]) => sum + (y - meanY - slope * (x - meanX)) ** 2, 0)
  return { slope, error: Math.sqrt(rest / Math.max(1, points.length - 2) / spread) }
}

function judge(
  samples: readonly Sample[],
  stuck: readonly string[],
  actions: ReturnType<typeof actionsOn>,
): SoakResult {
  const heap = trend(samples, (sample) => sample.heap)
  const external = trend(samples, (sample) => sample.external)
  const limit = pool.max + sharedConnections
  const firstHalf = samples.slice(0, Math.ceil(samples.length / 2))
  const secondHalf = samples.slice(firstHalf.length)
  const most = (of: readonly Sample[], key: keyof Sample): number => Math.max(...of.map((sample) => sample[key]))
  const missed: string[] = [...stuck]
  const demand = (holds: boolean, what: string): void => void (holds || missed.push(what))

  for (const [name, { slope, error }] of Object.entries({ heap, external })) {
    const grown = minutes >= longRun ? slope - 2 * error : (slope * minutes) / 20
    demand(grown < memoryBar, `${name} grows by ${mb(slope)} ± ${mb(error)} MB in ten minutes`)
  }
  demand(most(samples, 'backends') <= limit, `${most(samples, 'backends')} backends, of which ${limit} are allowed`)
  demand(most(samples, 'strays') === 0, `${most(samples, 'strays')} sockets that belong to no connection`)
  demand(most(samples, 'held') === 0, `${most(samples, 'held')} connections borrowed, or callers waiting, at rest`)
  for (const key of ['handles', 'timers', 'listeners'] as const) {
    const [before, after] = [most(firstHalf, key), most(secondHalf, key)]
    demand(after <= before, `${key} grew from ${before} to ${after}`)
  }
  demand(uncaught.length === 0, uncaught.join('; '))
  demand(foreign.size === 0, `errors that are not of kanta: ${[...foreign].join('; ')}`)
  for (const [name] of actions) demand((calls.get(name) ?? 0) > 0, `nobody did: ${name}`)
  demand(kills > 0, 'no backend was killed')
  demand(restarts > 0, 'the server was not restarted')

  printReport(samples, { heap, external }, missed)
  return {
    minutes,
    samples: samples.length,
    calls: [...calls.values()].reduce((sum, n) => sum + n, 0),
    kills,
    restarts,
    heapBytesPerTenMinutes: Math.round(heap.slope),
    missed,
  }
}

function printReport(
  samples: readonly Sample[],
  trends: Readonly<Record<string, { slope: number; error: number }>>,
  missed: readonly string[],
): void {
  const step = Math.max(1, Math.floor(samples.length / 20))
  const shown = samples.filter((_, index) => index % step === 0 || index === samples.length - 1)
  const head = ['time', 'heap MB', 'external MB', 'RSS MB', 'pool', 'shared', 'backends', 'strays', 'timers', 'handles']
  console.log(`\n| ${head.join(' | ')} |\n|${head.map((title) => `${'-'.repeat(title.length + 1)}:`).join('|')}|`)
  for (const one of shown) {
    const cells = [
      (one.atMs / 60_000).toFixed(1),
      mb(one.heap),
      mb(one.external),
      mb(one.rss),
      ...[one.pool, one.pipeline, one.backends, one.strays, one.timers, one.handles].map(String),
    ]
    console.log(`| ${cells.map((cell, column) => cell.padStart(head[column]?.length ?? 0)).join(' | ')} |`)
  }
  const tally = (map: Map<string, number>): string =>
    [...map]
      .toSorted((one, other) => other[1] - one[1])
      .map(([name, n]) => `${n} ${name}`)
      .join(', ')
  console.log(`\ncalls: ${tally(calls)}`)
  console.log(`outcomes: ${tally(outcomes)}`)
  console.log(`${kills} backends killed, ${restarts} restarts of the server`)
  for (const [name, { slope, error }] of Object.entries(trends)) {
    console.log(`${name}: ${mb(slope)} ± ${mb(error)} MB per ten minutes over the second half`)
  }
  console.log(missed.length === 0 ? 'held' : `MISSED\n${missed.map((what) => `  ${what}`).join('\n')}`)
}

function mb(bytes: number): string {
  return (bytes / megabyte).toFixed(2)
}
