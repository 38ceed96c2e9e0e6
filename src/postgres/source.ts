import { Client, type ClientConfig, Connection } from 'pg'
import { describeTarget, type Logger, type PostgresTarget, type ServerTarget } from '../core/config.ts'
import { type ConnectionSource, cutClient, noteParameters } from './connection.ts'
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
    async connect({ pipeline = false, signal } = {}) {
      const client = new Client({ ...settings, pipeline })
      noteParameters(client)
      // Without a listener the `error` of a connection that dies between two statements ends the process.
      client.on('error', () => undefined)
      const giveUp = (): void => cutClient(client)
      signal?.addEventListener('abort', giveUp, { once: true })
      try {
        return await client.connect()
      } catch (error) {
        cutClient(client)
        throw toDatabaseError(error, { phase: 'connect', target: description, limitMs: target.connectTimeoutMs })
      } finally {
        signal?.removeEventListener('abort', giveUp)
      }
    },
    cancel: (client) => sendCancel(target, client),
    close: () => Promise.resolve(),
  }
}

const cancelTimeoutMs = 1_000

/** A connection of its own that carries one message; the server closes it when it has signaled the backend. */
function sendCancel(target: ServerTarget, client: Client): Promise<void> {
  const { processID, secretKey } = client as Client & { processID: number; secretKey: number }
  const wire = new Connection({ ssl: tlsSettings(target) }) as CancelWire
  return new Promise((resolve) => {
    const timer = setTimeout(() => wire.stream.destroy(), cancelTimeoutMs)
    wire.on('error', () => wire.stream.destroy())
    wire.once('end', () => {
      clearTimeout(timer)
      resolve()
    })
    wire.on('connect', () => (target.ssl === 'disable' ? wire.cancel(processID, secretKey) : wire.requestSsl()))
    wire.on('sslconnect', () => wire.cancel(processID, secretKey))
    if (target.host.startsWith('/')) wire.connect(`${target.host}/.s.PGSQL.${target.port}`)
    else wire.connect(target.port, target.host)
  })
}

/** What `pg`'s connection can do beyond its declarations. */
type CancelWire = Connection & {
  connect(port: number | string, host?: string): void
  requestSsl(): void
  cancel(processId: number, secretKey: number): void
}

function clientSettings(target: ServerTarget): ClientConfig {
  const password = target.password?.reveal()
  return {
    host: target.host,
    port: target.port,
    user: target.user,
    // Left out, `pg` would send this server the password that PGPASSWORD holds for another.
    password: password ?? (() => ''),
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
