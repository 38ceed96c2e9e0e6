/** Writing many rows: kanta's ways against inserts one by one and of many values through `pg`, and psql's `\copy`. */

import { execFile } from 'node:child_process'
import { createReadStream, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { Client } from 'pg'
import { createDatabase } from '../../src/index.ts'
import { findPostgres } from '../../test/support/servers.ts'
import { spread, type Spread } from './statistics.ts'

export const bulkRows = 100_000
/** One by one they take a second for so many; the speed is that of all. */
const rowsOneByOne = 10_000
/** A statement has at most 65 535 parameters. */
const rowsPerStatement = 13_000

export type BulkContender = 'copy, a file' | 'copy, rows' | 'insertMany' | 'many values' | 'one by one' | 'psql \\copy'

/** What the others are compared with. */
export const bulkBaseline: BulkContender = 'many values'

/** Rows per second by round. */
export type BulkResults = ReadonlyMap<BulkContender, readonly number[]>

interface Event {
  readonly id: number
  readonly user_id: number
  readonly kind: string
  readonly body: string
  readonly created_at: Date
}

const columns = ['id', 'user_id', 'kind', 'body', 'created_at'] as const

function eventOf(n: number): Event {
  const created_at = new Date(1_735_689_600_000 + n * 1_003)
  return { id: n, user_id: 1 + (n % 20_000), kind: `kind ${n % 7}`, body: `What happened at step ${n}`, created_at }
}

/** Writes the same rows into the same empty table in each way in turn. */
export async function measureBulk(url: string, rounds: number): Promise<BulkResults> {
  await using opened = new AsyncDisposableStack()
  const client = new Client({ connectionString: url })
  await client.connect()
  opened.defer(() => client.end())
  const database = opened.use(await createDatabase<{ written: Event }>({ postgres: { url }, redis: false }))
  const folder = mkdtempSync(join(tmpdir(), 'kanta-bench-'))
  opened.defer(() => rmSync(folder, { recursive: true }))
  await client.query(`create table written (id int primary key, user_id int not null, kind text not null,
    body text not null, created_at timestamptz not null) with (autovacuum_enabled = false)`)
  opened.defer(async () => void (await client.query('drop table written')))

  const events = Array.from({ length: bulkRows }, (_, n) => eventOf(n))
  const file = join(folder, 'events.tsv')
  writeFileSync(file, events.map((event) => `${values(event).map(textOf).join('\t')}\n`).join(''))
  const psql = findPsql()

  const ways: readonly (readonly [BulkContender, number, () => Promise<unknown>])[] = [
    ['insertMany', bulkRows, () => database.insertMany('written', events)],
    ['copy, rows', bulkRows, () => database.copy.from('written', events)],
    ['copy, a file', bulkRows, () => database.copy.from('written', createReadStream(file), { format: 'text' })],
    ['many values', bulkRows, () => insertValues(client, events)],
    ['one by one', rowsOneByOne, () => insertOneByOne(client, events.slice(0, rowsOneByOne))],
    ['psql \\copy', bulkRows, () => promisify(execFile)(psql, [url, '-qc', `\\copy written from '${file}'`])],
  ]
  const results = new Map<BulkContender, number[]>(ways.map(([name]) => [name, []]))
  // The first round is for the compiler of V8 and the caches of the server.
  for (let round = 0; round <= rounds; round += 1) {
    for (const [name, count, write] of ways) {
      await client.query('truncate written')
      const began = performance.now()
      await write()
      const seconds = (performance.now() - began) / 1000
      const { rows } = await client.query<{ count: number }>('select count(*)::int from written')
      if (rows[0]?.count !== count) throw new Error(`${name} wrote ${rows[0]?.count} rows of ${count}.`)
      if (round > 0) results.get(name)?.push(count / seconds)
    }
  }
  return results
}

/** How many times as fast one was as another in the same rounds. */
export function bulkRatio(results: BulkResults, one: BulkContender, other: BulkContender): Spread {
  const theirs = results.get(other) ?? []
  return spread((results.get(one) ?? []).map((ours, round) => ours / (theirs[round] ?? Number.NaN)))
}

function findPsql(): string {
  const folder = findPostgres()
  return folder === undefined ? 'psql' : join(folder, 'psql')
}

function values(event: Event): readonly unknown[] {
  return columns.map((column) => event[column])
}

function textOf(value: unknown): string {
  return value instanceof Date ? value.toISOString() : String(value)
}

/** All in one transaction, as `insertMany` does it. */
async function insertValues(client: Client, events: readonly Event[]): Promise<void> {
  await client.query('begin')
  for (let from = 0; from < events.length; from += rowsPerStatement) {
    const some = events.slice(from, from + rowsPerStatement)
    const places = some.map(
      (_, row) => `(${columns.map((_name, column) => `$${row * columns.length + column + 1}`).join()})`,
    )
    const text = `insert into written (${columns.join()}) values ${places.join()}`
    await client.query(text, some.flatMap(values))
  }
  await client.query('commit')
}

/** In one transaction too, prepared, each after the answer to the one before. */
async function insertOneByOne(client: Client, events: readonly Event[]): Promise<void> {
  const places = columns.map((_, column) => `$${column + 1}`).join()
  const text = `insert into written (${columns.join()}) values (${places})`
  await client.query('begin')
  for (const event of events) await client.query({ name: 'one', text, values: [...values(event)] })
  await client.query('commit')
}
