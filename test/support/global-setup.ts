/** Before the integration tests: the servers of the run, and the template that each test's database is a copy of. */

import { randomBytes } from 'node:crypto'
import { Client } from 'pg'
import type { TestProject } from 'vitest/node'
import { resolveConfig } from '../../src/core/config.ts'
import { openSource } from '../../src/postgres/source.ts'
import { Migrator } from '../../src/schema/migrator.ts'
import { findServers, providePgBouncer } from './run-servers.ts'

declare module 'vitest' {
  interface ProvidedContext {
    /** The superuser's URL. */
    postgresUrl: string
    redisUrl: string
    /** Every database of this run begins with it; the one with just that name is the template. */
    databasePrefix: string
  }
}

/** Called by vitest; what it returns undoes it. */
export async function setup(project: TestProject): Promise<() => Promise<void>> {
  providePgBouncer()
  const { postgres, redis } = await findServers()
  console.log(`PostgreSQL: ${postgres.origin}. Redis: ${redis.origin}.`)
  const prefix = `kanta_test_${randomBytes(4).toString('hex')}`

  async function teardown(): Promise<void> {
    await dropDatabases(postgres.url, prefix)
    await Promise.all([postgres.stop(), redis.stop()])
  }

  try {
    await makeTemplate(postgres.url, prefix)
  } catch (error) {
    await teardown()
    throw error
  }
  project.provide('postgresUrl', postgres.url)
  project.provide('redisUrl', redis.url)
  project.provide('databasePrefix', prefix)
  return teardown
}

async function makeTemplate(serverUrl: string, name: string): Promise<void> {
  await administer(serverUrl, (client) => client.query(`CREATE DATABASE ${name} TEMPLATE template0`))
  const url = new URL(serverUrl)
  url.pathname = `/${name}`
  const config = resolveConfig({ postgres: { url: url.href }, redis: false }, {})
  const source = await openSource(config.postgres, { info: () => {}, warn: console.warn })
  try {
    await new Migrator({ source, directory: 'migrations' }).up()
  } finally {
    await source.close()
  }
  // A connection to the template would make every copy fail.
  await administer(serverUrl, (client) =>
    client.query(`ALTER DATABASE ${name} ALLOW_CONNECTIONS false IS_TEMPLATE true`),
  )
}

async function dropDatabases(serverUrl: string, prefix: string): Promise<void> {
  await administer(serverUrl, async (client) => {
    const { rows } = await client.query<{ datname: string }>(
      'SELECT datname FROM pg_database WHERE starts_with(datname, $1)',
      [prefix],
    )
    for (const { datname } of rows) {
      await client.query(`ALTER DATABASE ${datname} IS_TEMPLATE false`)
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
