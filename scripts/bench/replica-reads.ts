/** Reads by key from two replicas, against the same reads from the one server that they follow. */

import { Client } from 'pg'
import { createDatabase, type Database } from '../../src/index.ts'
import { startPostgres, startStandby } from '../../test/support/servers.ts'
import { type BenchSchema, createDataSet, rowCounts, userColumns } from './data-set.ts'
import { seededRandom, spread, type Spread } from './statistics.ts'

const callers = 32

/** Reads per second, and the ratio of the two in the same round. */
export interface ReplicaReads {
  readonly oneServer: Spread
  readonly twoReplicas: Spread
  readonly ratio: Spread
}

/** Starts the servers, and lets the same callers read from the one and from the two in turns. */
export async function measureReplicaReads(rounds: number, sliceMs: number): Promise<ReplicaReads> {
  await using opened = new AsyncDisposableStack()
  const primary = await startPostgres()
  opened.defer(() => primary.stop())
  const client = new Client({ connectionString: primary.url })
  await client.connect()
  await createDataSet(client)
  await client.end()
  const standbys = [await startStandby(primary), await startStandby(primary)]
  for (const standby of standbys) opened.defer(() => standby.stop())
  const database = opened.use(
    await createDatabase<BenchSchema>({
      postgres: { url: primary.url, replicas: standbys.map(({ url }) => url) },
      redis: false,
    }),
  )

  const oneServer: number[] = []
  const twoReplicas: number[] = []
  // The first round is for the compiler of V8.
  for (let round = 0; round <= rounds; round += 1) {
    const one = await readsPerSecond(database, false, sliceMs, round)
    const two = await readsPerSecond(database, true, sliceMs, round)
    if (round === 0) continue
    oneServer.push(one)
    twoReplicas.push(two)
  }
  const ratios = twoReplicas.map((two, round) => two / (oneServer[round] ?? Number.NaN))
  return { oneServer: spread(oneServer), twoReplicas: spread(twoReplicas), ratio: spread(ratios) }
}

async function readsPerSecond(
  database: Database<BenchSchema>,
  replica: boolean,
  sliceMs: number,
  seed: number,
): Promise<number> {
  const random = seededRandom(seed)
  const db = replica ? database.replica() : database.db
  const until = performance.now() + sliceMs
  let reads = 0
  const read = async (): Promise<void> => {
    while (performance.now() < until) {
      await db.selectFrom('users').select(userColumns).where('id', '=', random(rowCounts.users)).executeTakeFirst()
      reads += 1
    }
  }
  const began = performance.now()
  await Promise.all(Array.from({ length: callers }, read))
  return (reads / (performance.now() - began)) * 1000
}
