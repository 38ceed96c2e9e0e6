/** Reads all rows once as one contender, and prints what that took. Arguments: the contender, the URL, how many rows. */

import { Kysely, PostgresDialect } from 'kysely'
import pg from 'pg'
import Cursor from 'pg-cursor'
import QueryStream from 'pg-query-stream'
import postgres from 'postgres'
import { createDatabase } from '../../src/index.ts'
import type { StreamContender, StreamTurn } from './streaming.ts'

interface Event {
  readonly id: number
  readonly user_id: number
  readonly kind: string
  readonly body: string
  readonly created_at: Date
}

interface Schema {
  readonly events: Event
}

const columns = ['id', 'user_id', 'kind', 'body', 'created_at'] as const
const statement = `select ${columns.join(', ')} from events`
/** Rows per round trip for all who ask to be told; more makes none of them faster. */
const chunkSize = 1_000

type Open = (url: string) => Promise<{ read(use: (row: Event) => void): Promise<void>; close(): Promise<void> }>

const openKanta: (way: 'chunks' | 'kysely' | 'rows') => Open = (way) => async (url) => {
  const database = await createDatabase<Schema>({ postgres: { url }, redis: false })
  const query = database.db.selectFrom('events').select(columns)
  return {
    async read(use) {
      if (way === 'rows') for await (const row of database.stream(query)) use(row)
      else if (way === 'kysely') for await (const row of query.stream(chunkSize)) use(row)
      else for await (const rows of database.stream(query).chunks()) for (const row of rows) use(row)
    },
    close: () => database.close(),
  }
}

const contenders: Readonly<Record<StreamContender, Open>> = {
  kanta: openKanta('rows'),
  'kanta-chunks': openKanta('chunks'),
  'kanta-kysely': openKanta('kysely'),
  async 'pg-query-stream'(url) {
    const client = new pg.Client(url)
    await client.connect()
    return {
      async read(use) {
        const stream = client.query(new QueryStream(statement, [], { batchSize: chunkSize, highWaterMark: chunkSize }))
        for await (const row of stream) use(row as Event)
      },
      close: () => client.end(),
    }
  },
  async 'postgres.js'(url) {
    const sql = postgres(url, { max: 1 })
    return {
      async read(use) {
        for await (const rows of sql.unsafe<Event[]>(statement).cursor(chunkSize)) for (const row of rows) use(row)
      },
      close: () => sql.end(),
    }
  },
  async kysely(url) {
    const pool = new pg.Pool({ connectionString: url, max: 1 })
    const db = new Kysely<Schema>({ dialect: new PostgresDialect({ pool, cursor: Cursor }) })
    return {
      async read(use) {
        for await (const row of db.selectFrom('events').select(columns).stream(chunkSize)) use(row)
      },
      close: () => db.destroy(),
    }
  },
}

const [name, url = '', wanted] = process.argv.slice(2)
const contender = await contenders[name as StreamContender](url)
let rows = 0
let ids = 0
const begun = performance.now()
const cpuBefore = process.cpuUsage()
await contender.read((row) => {
  rows += 1
  // Something of each kind of column is looked at, so that nobody gains by not making it.
  ids += row.id + row.body.length * 0 + row.created_at.getTime() * 0
})
const seconds = (performance.now() - begun) / 1_000
const { user, system } = process.cpuUsage(cpuBefore)
await contender.close()
const expected = Number(wanted)
if (rows !== expected || ids !== (expected * (expected + 1)) / 2)
  throw new Error(`${name} read ${rows} rows, ids ${ids}`)
const turn: StreamTurn = {
  rowsPerSecond: rows / seconds,
  cpuMicrosPerRow: (user + system) / rows,
  peakMb: process.resourceUsage().maxRSS / 1_024,
}
console.log(JSON.stringify(turn))
