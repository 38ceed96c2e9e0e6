/** A PgBouncer of our own in front of a test's PostgreSQL, in transaction mode. */

import { accessSync, constants, writeFileSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { Client } from 'pg'
import type { PostgresOptions } from '../../src/index.ts'
import { type OwnServer, startServer } from './servers.ts'

/** Settings of {@link startPgBouncer}. */
export interface PgBouncerOptions {
  /** Connections to PostgreSQL for each database. @default 4 */
  readonly poolSize?: number
  /** Further lines of pgbouncer.ini. */
  readonly settings?: Readonly<Record<string, string | number>>
}

/**
 * Starts one with the settings it comes with, but for the mode, and resolves when it lets clients through. Its superuser may
 * use the console: the database `pgbouncer`, by the simple protocol.
 */
export async function startPgBouncer(
  postgresUrl: string,
  { poolSize = 4, settings = {} }: PgBouncerOptions = {},
): Promise<OwnServer> {
  const binary = findPgBouncer()
  if (binary === undefined) {
    throw new Error(
      'This test needs PgBouncer. Install it (Debian: apt-get install pgbouncer; macOS: brew install pgbouncer).',
    )
  }
  const postgres = new URL(postgresUrl)
  return startServer({
    name: 'pgbouncer',
    prepare: async () => {},
    command(folder, port) {
      const users = join(folder, 'users.txt')
      writeFileSync(users, '"postgres" ""\n', { mode: 0o644 })
      const file = join(folder, 'pgbouncer.ini')
      writeFileSync(
        file,
        [
          '[databases]',
          `* = host=${postgres.hostname} port=${postgres.port}`,
          '[pgbouncer]',
          'listen_addr = 127.0.0.1',
          `listen_port = ${port}`,
          'unix_socket_dir =',
          'auth_type = trust',
          `auth_file = ${users}`,
          'pool_mode = transaction',
          `default_pool_size = ${poolSize}`,
          'max_client_conn = 200',
          'admin_users = postgres',
          ...Object.entries(settings).map(([name, value]) => `${name} = ${value}`),
          '',
        ].join('\n'),
        { mode: 0o644 },
      )
      return [binary, file]
    },
    url: (port) => `postgres://postgres@127.0.0.1:${port}/postgres`,
    async answers(url) {
      const client = new Client({ connectionString: url, connectionTimeoutMillis: 2_000 })
      client.on('error', () => {})
      await client.connect()
      await client.end()
    },
  })
}

/** A command on the console of a PgBouncer that was started here, such as `show servers`. */
export async function askConsole(bouncer: OwnServer, command: string): Promise<Record<string, string>[]> {
  const client = new Client({ connectionString: Object.assign(new URL(bouncer.url), { pathname: '/pgbouncer' }).href })
  await client.connect()
  try {
    return (await client.query<Record<string, string>>(command)).rows
  } finally {
    await client.end()
  }
}

/** What a query gives on each of the pooler's connections to the server; there must be as many to be had at once. */
export async function onEachServerConnection<Row extends object>(
  url: string,
  poolSize: number,
  query: string,
): Promise<Row[][]> {
  const clients = Array.from({ length: poolSize }, () => new Client({ connectionString: url }))
  try {
    await Promise.all(clients.map((client) => client.connect()))
    // A transaction keeps its connection, so that all of them together have each.
    await Promise.all(clients.map((client) => client.query('begin')))
    const answers = await Promise.all(clients.map((client) => client.query<Row>(query)))
    await Promise.all(clients.map((client) => client.query('rollback')))
    return answers.map(({ rows }) => rows)
  } finally {
    await Promise.all(clients.map((client) => client.end()))
  }
}

/** Settings that change how statements go through a pooler, by what they do. */
export const poolerWays: readonly (readonly [string, Omit<PostgresOptions, 'url'>])[] = [
  ['by default', {}],
  ['preparing at the first use', { preparedStatements: { threshold: 1 } }],
  ['without prepared statements', { preparedStatements: false }],
  ['without the pipeline', { pipeline: false }],
]

/** The program of the first PgBouncer on this machine. */
export function findPgBouncer(): string | undefined {
  const folders = [...(process.env['PATH'] ?? '').split(delimiter), '/usr/sbin', '/opt/homebrew/bin', '/usr/local/bin']
  return folders
    .filter(Boolean)
    .map((folder) => join(folder, 'pgbouncer'))
    .find(isExecutable)
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK)
    return true
  } catch {
    return false
  }
}
