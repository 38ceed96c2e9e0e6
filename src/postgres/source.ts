import { Client, type ClientConfig } from 'pg'
import { describeTarget, type Logger, type PostgresTarget, type ServerTarget } from '../core/config.ts'
import { type ConnectionSource, endClient } from './connection.ts'
import { openEmbedded } from './embedded.ts'
import { toDatabaseError } from './sqlstate.ts'

/** The source for a resolved target. Starts the embedded PostgreSQL, or fails with `EMBEDDED_UNAVAILABLE`. */
export async function openSource(target: PostgresTarget, logger: Logger): Promise<ConnectionSource> {
  return target.kind === 'embedded' ? openEmbedded(target, logger) : serverSource(target)
}

function serverSource(target: ServerTarget): ConnectionSource {
  const description = describeTarget(target)
  const settings = clientSettings(target)
  return {
    description,
    maxConnections: Number.POSITIVE_INFINITY,
    async connect() {
      const client = new Client(settings)
      // Without a listener the `error` of a connection that dies between two statements ends the process.
      client.on('error', () => undefined)
      try {
        return await client.connect()
      } catch (error) {
        void endClient(client)
        throw toDatabaseError(error, { phase: 'connect', target: description, limitMs: target.connectTimeoutMs })
      }
    },
    close: () => Promise.resolve(),
  }
}

function clientSettings(target: ServerTarget): ClientConfig {
  const password = target.password?.reveal()
  return {
    host: target.host,
    port: target.port,
    user: target.user,
    ...(password === undefined ? {} : { password }),
    database: target.database,
    ssl: tlsSettings(target),
    application_name: target.applicationName,
    connectionTimeoutMillis: target.connectTimeoutMs,
    ...(target.statementTimeoutMs === undefined ? {} : { statement_timeout: target.statementTimeoutMs }),
    // A peer that vanished without a word is noticed on an idle connection, too.
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
  }
}

function tlsSettings(target: ServerTarget): ClientConfig['ssl'] {
  if (target.ssl === 'disable') return false
  const ca = target.sslCa === undefined ? {} : { ca: target.sslCa }
  return { rejectUnauthorized: target.ssl === 'verify-full', ...ca }
}
