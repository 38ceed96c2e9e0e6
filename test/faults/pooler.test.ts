import { randomInt } from 'node:crypto'
import { sql } from 'kysely'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { Database } from '../../src/index.ts'
import { onEachServerConnection, poolerWays, startPgBouncer } from '../support/pgbouncer.ts'
import { type OwnServer, startPostgres } from '../support/servers.ts'
import { open } from './open.ts'
import { isFull, record, tally, times } from './record.ts'
import { attempt, witness } from './witness.ts'

interface Tables {
  notes: { id: number; body: string }
}

const poolSize = 3

let server: OwnServer
let bouncer: OwnServer

beforeAll(async () => {
  server = await startPostgres()
  bouncer = await startPgBouncer(server.url, { poolSize })
  await using admin = await witness(server.url)
  await admin.rows('create table notes (id int, body text)')
}, 120_000)

afterAll(async () => {
  await bouncer.stop()
  await server.stop()
})

/** What applications do that is sensitive to changing servers: the same texts again and again, transactions, limits. */
const works: readonly ((database: Database<Tables>, id: number) => Promise<unknown>)[] = [
  (database, id) => database.db.selectFrom('notes').selectAll().where('id', '=', id).execute(),
  (database, id) => database.db.selectFrom('notes').select('body').where('id', '>', id).limit(3).execute(),
  (database, id) => database.db.insertInto('notes').values({ id, body: 'single' }).execute(),
  (database, id) => database.db.updateTable('notes').set({ body: 'changed' }).where('id', '=', id).execute(),
  (database, id) => database.query(sql`select ${id}::int as id`, { timeoutMs: 5_000 }),
  (database, id) =>
    database.transaction(async () => {
      await database.db.insertInto('notes').values({ id, body: 'in a transaction' }).execute()
      await database.db.selectFrom('notes').selectAll().where('id', '=', id).execute()
      await database.db.updateTable('notes').set({ body: 'changed' }).where('id', '=', id).execute()
    }),
  (database, id) =>
    database.transaction(() => database.db.selectFrom('notes').selectAll().where('id', '=', id).execute(), {
      isolationLevel: 'repeatable read',
      timeoutMs: 5_000,
    }),
  (database, id) =>
    database.transaction(async () => {
      await database.transaction(() => database.db.insertInto('notes').values({ id, body: 'nested' }).execute())
    }),
]

test.each(poolerWays)(
  'row 21: behind PgBouncer in transaction mode %s no prepared statement is missed and no setting leaks',
  async (how, options) => {
    const runs = times(5_000, 300)
    const failures: string[] = []
    let begun = 0
    {
      await using database = await open<Tables>(bouncer.url, { ...options, pool: { max: 10 } })
      const worker = async (): Promise<void> => {
        while (begun < runs) {
          begun += 1
          const work = works[randomInt(works.length)]
          const { error } = await attempt(async () => work?.(database, randomInt(50)))
          if (error !== undefined) failures.push(`${error.code} ${error.sqlState ?? ''}`.trim())
        }
      }
      await Promise.all(Array.from({ length: 12 }, worker))
    }
    const leaks = await leakedSettings()
    record(
      21,
      begun,
      `${how}: ${failures.length} failures (${tally(failures)}); leaked settings: ${leaks.join(', ') || 'none'}`,
    )
    expect(tally(failures)).toBe('none')
    expect(leaks).toEqual([])
  },
  isFull ? 180_000 : 30_000,
)

/** Settings that a server connection of the pooler still has from whoever had it before. */
async function leakedSettings(): Promise<string[]> {
  const leaks = await onEachServerConnection<{ leak: string }>(
    bouncer.url,
    poolSize,
    // PgBouncer itself hands these five on from the client.
    `select name || '=' || setting as leak from pg_settings
      where source = 'session' and name not in
            ('application_name', 'client_encoding', 'DateStyle', 'standard_conforming_strings', 'TimeZone')`,
  )
  return leaks.flat().map(({ leak }) => leak)
}
