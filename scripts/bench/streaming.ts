/** A result that is larger than memory is to be: one million rows, read one after the other. */

import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { Client } from 'pg'
import { type Spread, spread } from './statistics.ts'

export const streamedRows = 1_000_000

/** Who streams: kanta row by row, in chunks, and through Kysely's own `stream`, and its peers. */
export const streamContenders = [
  'kanta',
  'kanta-chunks',
  'kanta-kysely',
  'pg-query-stream',
  'postgres.js',
  'kysely',
] as const
export type StreamContender = (typeof streamContenders)[number]

/** To whom the others are compared. */
export const streamBaseline: StreamContender = 'pg-query-stream'

/** One reading of all rows, in a process of its own. */
export interface StreamTurn {
  readonly rowsPerSecond: number
  readonly cpuMicrosPerRow: number
  /** Of the whole process, Node itself included. */
  readonly peakMb: number
}

export type StreamResults = ReadonlyMap<StreamContender, readonly StreamTurn[]>

/** Fills a table, lets each contender read it in turn, each time in a fresh process, and drops it. */
export async function measureStreams(client: Client, url: string, rounds: number): Promise<StreamResults> {
  await client.query(`
    create table events with (autovacuum_enabled = false) as
      select n as id, 1 + n % 20000 as user_id, 'kind ' || n % 7 as kind, 'What happened at step ' || n as body,
        timestamptz '2025-01-01 00:00Z' + n * interval '1.003 seconds' as created_at
      from generate_series(1, ${streamedRows}) as n`)
  const results = new Map<StreamContender, StreamTurn[]>(streamContenders.map((name) => [name, []]))
  try {
    for (let round = 0; round < rounds; round += 1) {
      // Each is first in one round and last in another.
      const order = streamContenders.map((_, place) => streamContenders[(place + round) % streamContenders.length])
      for (const name of order) if (name !== undefined) results.get(name)?.push(await takeTurn(name, url))
    }
  } finally {
    await client.query('drop table events')
  }
  return results
}

/** How many times as fast as another a contender was in the same rounds. */
export function streamRatio(
  results: StreamResults,
  name: StreamContender,
  against: StreamContender = streamBaseline,
): Spread {
  const theirs = results.get(against) ?? []
  return spread(
    (results.get(name) ?? []).map((turn, round) => turn.rowsPerSecond / (theirs[round]?.rowsPerSecond ?? Number.NaN)),
  )
}

async function takeTurn(name: StreamContender, url: string): Promise<StreamTurn> {
  const worker = join(import.meta.dirname, 'streaming-worker.ts')
  const { stdout } = await promisify(execFile)(process.execPath, [worker, name, url, String(streamedRows)])
  return JSON.parse(stdout) as StreamTurn
}
