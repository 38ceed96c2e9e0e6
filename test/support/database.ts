/**
 * Databases for integration tests: each is new, belongs to one test, and is gone after it. A test that leaves
 * connections to one of its databases open fails. What is made in `beforeAll` belongs to the file and goes with it.
 * Not for `test.concurrent`: the tests of a file share this module, so two at once could not be told apart.
 */

import { randomBytes } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { Client } from 'pg'
import { afterAll, afterEach, beforeEach, inject } from 'vitest'
import { createDatabase } from '../../src/database/create-database.ts'
import type { Database } from '../../src/database/database.ts'
import type { DB } from '../../src/generated/schema.ts'

interface Scope {
  readonly names: string[]
  readonly opened: Pick<Database<DB>, 'close'>[]
}

const fileScope: Scope = { names: [], opened: [] }
let testScope: Scope | undefined

/**
 * The superuser's URL of a new database on the run's server: `domain` has all migrations applied, `empty` none.
 * Takes some 20 to 60 ms on an idle machine, least with this strategy. It is dropped after the test by itself.
 */
export async function freshDatabaseUrl(template: 'domain' | 'empty' = 'domain'): Promise<string> {
  const prefix = inject('databasePrefix')
  const name = `${prefix}_${randomBytes(4).toString('hex')}`
  const from = template === 'domain' ? inject('templateDatabase') : 'template0'
  await administer((client) => client.query(`CREATE DATABASE ${name} TEMPLATE ${from} STRATEGY file_copy`))
  ;(testScope ?? fileScope).names.push(name)
  const url = new URL(inject('postgresUrl'))
  url.pathname = `/${name}`
  return url.href
}

/** Closes it after the test, before it is looked whether connections are left. */
export function closeAfterTest<Closable extends Pick<Database<DB>, 'close'>>(database: Closable): Closable {
  ;(testScope ?? fileScope).opened.push(database)
  return database
}

/** An open {@link Database} on a new database with all migrations applied; closed after the test by itself. */
export async function freshDatabase(): Promise<Database<DB>> {
  const scope = testScope ?? fileScope
  const database = await createDatabase<DB>({ postgres: { url: await freshDatabaseUrl() }, redis: false })
  scope.opened.push(database)
  return database
}

/** The run's Redis; each worker has a database number of its own as long as there are no more than 16. */
export function redisUrl(): string {
  const url = new URL(inject('redisUrl'))
  url.pathname = `/${Number(process.env['VITEST_POOL_ID'] ?? 0) % 16}`
  return url.href
}

beforeEach(() => {
  testScope = { names: [], opened: [] }
})

afterEach(async () => {
  const scope = testScope
  testScope = undefined
  if (scope !== undefined) await finish(scope)
})

afterAll(() => finish(fileScope))

async function finish(scope: Scope): Promise<void> {
  if (scope.names.length === 0) return
  for (const database of scope.opened) await database.close()
  await administer(async (client) => {
    const leaks = await openConnections(client, scope.names)
    for (const name of scope.names) await client.query(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`)
    if (leaks.length > 0) {
      throw new Error(`The test left ${leaks.length} connections open. Their last statements:\n  ${leaks.join('\n  ')}`)
    }
  })
}

/** What is still connected after a second; a client that has ended may be seen on the server for some milliseconds. */
async function openConnections(client: Client, databases: readonly string[]): Promise<string[]> {
  for (const begun = Date.now(); ; await delay(10)) {
    const { rows } = await client.query<{ description: string }>(
      `SELECT datname || ' (' || coalesce(state, 'unknown') || '): ' || query AS description
         FROM pg_stat_activity
        WHERE datname = ANY ($1) AND backend_type = 'client backend'`,
      [databases],
    )
    if (rows.length === 0 || Date.now() - begun > 1_000) return rows.map((row) => row.description)
  }
}

async function administer(work: (client: Client) => Promise<unknown>): Promise<void> {
  const client = new Client({ connectionString: inject('postgresUrl') })
  await client.connect()
  try {
    await work(client)
  } finally {
    await client.end()
  }
}
