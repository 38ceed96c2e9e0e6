import { randomBytes } from 'node:crypto'
import { Client } from 'pg'
import { startPostgres } from '../../test/support/servers.ts'
import { createDataSet } from './data-set.ts'

/** A database with the data set in it. */
export interface BenchServer extends AsyncDisposable {
  readonly url: string
  /** The bench's own connection, idle while a contender has its turn. */
  readonly client: Client
  readonly version: string
  /** Where it came from, for the report. */
  readonly description: string
}

/** Starts a PostgreSQL, or makes a database on that of TEST_DATABASE_URL, and fills it. What was made is removed on disposal. */
export async function openServer(): Promise<BenchServer> {
  await using opened = new AsyncDisposableStack()
  const given = process.env['TEST_DATABASE_URL']
  const url = given === undefined || given === '' ? await ownServer(opened) : await newDatabase(opened, given)
  const client = await connect(url)
  opened.defer(() => client.end())
  await createDataSet(client)
  const { rows } = await client.query<{ version: string }>(`select current_setting('server_version') as version`)
  const kept = opened.move()
  return {
    url,
    client,
    version: rows[0]?.version.split(' ')[0] ?? 'of unknown version',
    description:
      given === undefined || given === '' ? 'default settings, fsync off' : 'the server of TEST_DATABASE_URL',
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  }
}

async function ownServer(opened: AsyncDisposableStack): Promise<string> {
  const server = await startPostgres()
  opened.defer(() => server.stop())
  return server.url
}

async function newDatabase(opened: AsyncDisposableStack, given: string): Promise<string> {
  const name = `kanta_bench_${randomBytes(4).toString('hex')}`
  const admin = await connect(given)
  opened.defer(() => admin.end())
  await admin.query(`create database ${name}`)
  opened.defer(async () => {
    await admin.query(`drop database ${name} with (force)`)
  })
  const url = new URL(given)
  url.pathname = name
  return url.href
}

async function connect(url: string): Promise<Client> {
  const client = new Client({ connectionString: url, application_name: 'bench' })
  await client.connect()
  return client
}
