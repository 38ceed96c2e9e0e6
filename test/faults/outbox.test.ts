import { type ChildProcess, fork } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { sql } from 'kysely'
import { expect, onTestFinished, test, vi } from 'vitest'
import { createDatabase, createOutbox, keepInvalidations } from '../../src/index.ts'
import { freshDatabaseUrl } from '../support/database.ts'
import { startPostgres, startRedis } from '../support/servers.ts'
import type { VictimOptions } from './cache-victim.ts'
import type { WorkerOptions } from './outbox-worker.ts'
import { isFull, record, times } from './record.ts'
import { type Witness, witness } from './witness.ts'

const keys = 6

/** Processes of which some are killed all the time, and replaced. */
class Workers {
  readonly #url: string
  readonly #running: { readonly kind: WorkerOptions['kind']; readonly process: ChildProcess }[] = []
  #count = 0
  kills = 0

  constructor(url: string) {
    this.#url = url
  }

  async start(kind: WorkerOptions['kind']): Promise<void> {
    this.#count += 1
    const options: WorkerOptions = { kind, postgresUrl: this.#url, name: `${kind} ${this.#count}`, keys }
    const process = fork(join(import.meta.dirname, 'outbox-worker.ts'), [JSON.stringify(options)], { silent: true })
    this.#running.push({ kind, process })
    await Promise.race([once(process, 'message'), once(process, 'exit')])
  }

  async killOne(): Promise<void> {
    const [victim] = this.#running.splice(Math.floor(Math.random() * this.#running.length), 1)
    if (victim === undefined) return
    this.kills += 1
    await end(victim.process)
    await this.start(victim.kind)
  }

  async endAll(kind?: WorkerOptions['kind']): Promise<void> {
    const chosen = this.#running.filter((worker) => kind === undefined || worker.kind === kind)
    for (const worker of chosen) this.#running.splice(this.#running.indexOf(worker), 1)
    await Promise.all(chosen.map(({ process }) => end(process)))
  }
}

async function end(process: ChildProcess): Promise<void> {
  if (process.exitCode !== null || process.signalCode !== null) return
  process.kill('SIGKILL')
  await once(process, 'exit')
}

/** Of each key, the first time that each event was seen: the order that is promised. */
async function disorder(admin: Witness): Promise<number> {
  return admin.value<number>(`
    with firsts as (select key, event, min(at) as at from seen where key is not null group by key, event)
    select count(*)::int from (
      select event < max(event) over (partition by key order by at rows between unbounded preceding and 1 preceding) as is_late
      from firsts) f where is_late`)
}

test(
  'row 30: every event that was committed is delivered, in the order of its key, and none that was rolled back',
  async () => {
    const server = await startPostgres({ fsync: true })
    onTestFinished(() => server.stop())
    const setup = await witness(server.url)
    await setup.rows('create table made (name text, number int)')
    await setup.rows(
      'create table seen (at bigint generated always as identity, event bigint, key text, name text, number int, is_undone boolean)',
    )
    await setup[Symbol.asyncDispose]()
    const first = await createDatabase({ postgres: { url: server.url }, redis: false })
    await createOutbox(first)
    await first.close()
    const workers = new Workers(server.url)
    onTestFinished(() => workers.endAll())
    const kinds = isFull
      ? (['publish', 'publish', 'relay', 'relay', 'relay'] as const)
      : (['publish', 'relay', 'relay'] as const)
    await Promise.all(kinds.map((kind) => workers.start(kind)))
    const kills = times(40, 3)
    for (let kill = 1; kill <= kills; kill += 1) {
      await delay(Math.random() * 250)
      await workers.killOne()
      if (kill === Math.floor(kills / 2)) {
        await server.kill('SIGQUIT')
        await server.restart()
      }
    }
    await workers.endAll('publish')
    await using admin = await witness(server.url)
    const waiting = (): Promise<number> => admin.value<number>('select count(*)::int from kanta.outbox')
    await vi.waitUntil(async () => (await waiting()) === 0, isFull ? 300_000 : 40_000)
    await workers.endAll()
    const made = await admin.value<number>('select count(*)::int from made')
    const missing = await admin.value<number>(`
      select count(*)::int from made m where not exists (select from seen s where (s.name, s.number) = (m.name, m.number))`)
    const undone = await admin.value<number>(`
      select count(*)::int from seen s where is_undone
        or not exists (select from made m where (m.name, m.number) = (s.name, abs(s.number)))`)
    const again = await admin.value<number>('select (count(*) - count(distinct event))::int from seen')
    const late = await disorder(admin)
    record(
      30,
      workers.kills,
      `${workers.kills} processes killed, the server crashed once: ${made} transactions committed, ${missing} events missing, ` +
        `${undone} of rolled back ones, ${late} out of order, ${again} delivered again`,
    )
    expect({ missing, undone, late }).toEqual({ missing: 0, undone: 0, late: 0 })
    expect(made).toBeGreaterThan(kills)
  },
  isFull ? 600_000 : 60_000,
)

test('row 24: what a process leaves in the cache that dies between COMMIT and invalidation is ended by another', async () => {
  const redis = await startRedis()
  onTestFinished(() => redis.stop())
  const postgresUrl = await freshDatabaseUrl('empty')
  await using admin = await witness(postgresUrl)
  await admin.rows('create table items (id int primary key, version int not null)')
  await admin.rows('insert into items values (1, 1)')
  const namespace = `kept-${randomBytes(4).toString('hex')}`
  await using database = await createDatabase({
    postgres: { url: postgresUrl },
    redis: { url: redis.url },
    cache: { namespace },
  })
  await vi.waitUntil(() => database.cache.stats().isTrusted, 10_000)
  const load = () => database.queryValue<number>(sql`select version from items`)
  const read = async (): Promise<(number | undefined)[]> => [
    await database.cache.getOrSet('by key', load),
    await database.cache.getOrSet('by tag', load, { tags: ['items'] }),
  ]
  expect(await read()).toEqual([1, 1])
  await vi.waitUntil(() => database.cache.stats().entries === 2, 10_000)
  const options: VictimOptions = { postgresUrl, redisUrl: redis.url, namespace, holdMs: false, isKept: true }
  const victim = fork(join(import.meta.dirname, 'cache-victim.ts'), [JSON.stringify(options)])
  const [, signal] = (await once(victim, 'exit')) as [unknown, string]
  expect(signal).toBe('SIGKILL')
  expect(await admin.value('select version from items')).toBe(2)
  // It was written with the commit, and nobody else has done it yet.
  expect(await admin.value('select count(*)::int from kanta.outbox')).toBe(1)
  expect(await read()).toEqual([1, 1])
  await using kept = await keepInvalidations(database, { delayMs: 100 })
  await vi.waitUntil(async () => (await read()).every((version) => version === 2), 10_000)
  await vi.waitUntil(() => kept.stats().delivered === 1, 10_000)
  record(24, 1, 'killed between COMMIT and invalidation, written down with the commit: ended by another process')
})
