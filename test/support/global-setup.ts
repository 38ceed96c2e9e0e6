/** Before the integration tests: the servers of the run, and the template that each test's database is a copy of. */

import { randomBytes } from 'node:crypto'
import { Client } from 'pg'
import type { TestProject } from 'vitest/node'
import { type TestServer, testServer } from '../../src/testing.ts'
import { findServers, providePgBouncer } from './run-servers.ts'

declare module 'vitest' {
  interface ProvidedContext {
    /** The superuser's URL. */
    postgresUrl: string
    redisUrl: string
    /** Every database of this run begins with it. */
    databasePrefix: string
    /** With all migrations applied. */
    templateDatabase: string
  }
}

/** Called by vitest; what it returns undoes it. */
export async function setup(project: TestProject): Promise<() => Promise<void>> {
  providePgBouncer()
  const { postgres, redis } = await findServers()
  console.log(`PostgreSQL: ${postgres.origin}. Redis: ${redis.origin}.`)
  const prefix = `kanta_test_${randomBytes(4).toString('hex')}`

  let server: TestServer<never> | undefined

  async function teardown(): Promise<void> {
    await server?.close()
    await dropDatabases(postgres.url, prefix)
    await Promise.all([postgres.stop(), redis.stop()])
  }

  try {
    server = await testServer<never>({ url: postgres.url, name: prefix })
  } catch (error) {
    await teardown()
    throw error
  }
  project.provide('postgresUrl', postgres.url)
  project.provide('redisUrl', redis.url)
  project.provide('databasePrefix', prefix)
  project.provide('templateDatabase', server.template ?? '')
  return teardown
}

async function dropDatabases(serverUrl: string, prefix: string): Promise<void> {
  await administer(serverUrl, async (client) => {
    const { rows } = await client.query<{ datname: string }>(
      'SELECT datname FROM pg_database WHERE starts_with(datname, $1)',
      [prefix],
    )
    for (const { datname } of rows) {
      await client.query(`DROP DATABASE ${datname} WITH (FORCE)`)
    }
  })
}

async function administer(url: string, work: (client: Client) => Promise<unknown>): Promise<void> {
  const client = new Client({ connectionString: url })
  await client.connect()
  try {
    await work(client)
  } finally {
    await client.end()
  }
}
