/**
 * What a test pays for each way of docs/testing.md, the median and the fastest, on a PostgreSQL of its own in memory or on `TEST_DATABASE_URL`:
 * `node scripts/measure-testing.ts`. Each test opens what it needs, writes a user, reads it, and closes.
 */

import type { DB } from '../src/generated/schema.ts'
import type { Database } from '../src/index.ts'
import { factories, memoryDatabase, sandbox, testServer } from '../src/testing.ts'
import { startPostgres } from '../test/support/servers.ts'

async function oneTest(database: Database<DB>): Promise<void> {
  const { id } = await factories(database).users.create()
  await database.db.selectFrom('users').select('name').where('id', '=', id).executeTakeFirstOrThrow()
}

async function median(rounds: number, work: () => Promise<void>): Promise<string> {
  const times: number[] = []
  for (let round = 0; round < rounds; round += 1) {
    const began = performance.now()
    await work()
    times.push(performance.now() - began)
  }
  const sorted = times.toSorted((one, other) => one - other)
  const [first = 0] = times
  const [fastest = 0] = sorted
  return `${(sorted[Math.floor(rounds / 2)] ?? 0).toFixed(1)} ms (fastest ${fastest.toFixed(1)} ms, first ${first.toFixed(0)} ms)`
}

const own = process.env['TEST_DATABASE_URL'] === undefined ? await startPostgres({ inMemory: true }) : undefined
const url = own?.url ?? process.env['TEST_DATABASE_URL']
try {
  const began = performance.now()
  await using server = await testServer<DB>({ url, name: 'kanta_measure' })
  console.log(`template made:   ${(performance.now() - began).toFixed(0)} ms`)
  const shared = await server.database()
  console.log(`sandbox:         ${await median(100, () => sandbox(shared, oneTest))}`)
  const fresh = async (): Promise<void> => {
    await using database = await server.database()
    await oneTest(database)
  }
  console.log(`fresh database:  ${await median(20, fresh)}`)
  const inMemory = async (): Promise<void> => {
    await using database = await memoryDatabase<DB>()
    await oneTest(database)
  }
  console.log(`in memory:       ${await median(7, inMemory)}`)
  await using embedded = await memoryDatabase<DB>()
  console.log(`sandbox in that: ${await median(30, () => sandbox(embedded, oneTest))}`)
  await shared.close()
} finally {
  await own?.stop()
}
