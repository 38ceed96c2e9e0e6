import { Client, type ClientConfig, Connection } from 'pg'
import type { Logger } from '../core/options.ts'
import { describeTarget, type PostgresTarget, type ServerAddress, type ServerTarget } from '../core/postgres-target.ts'
import { settleWithin } from '../core/deadline.ts'
import { ConnectionError, type DatabaseError } from '../core/errors.ts'
import { type ConnectionSource, cutClient, noteParameters, parameterOf } from './connection.ts'
import { openEmbedded } from './embedded.ts'
import { readRows } from './row-reader.ts'
import { toDatabaseError } from './sqlstate.ts'
import { parsersFor } from './value-parsers.ts'

/** The source for a resolved target. Starts the embedded PostgreSQL, or fails with `EMBEDDED_UNAVAILABLE`. */
export async function openSource(target: PostgresTarget, logger: Logger): Promise<ConnectionSource> {
  return target.kind === 'embedded' ? openEmbedded(target, logger) : serverSource(target)
}

/** Connections to a server that is reached over the network or a socket. */
export function serverSource(target: ServerTarget): ConnectionSource {
  const description = describeTarget(target)
  const servers = new Servers(target, description)
  return {
    description,
    maxConnections: Number.POSITIVE_INFINITY,
    connect: ({ pipeline = false, signal } = {}) => servers.connect(pipeline, signal),
    cancel: (client) => sendCancel(target, client),
    close: () => Promise.resolve(),
  }
}

/** A host that has not answered after this gets company: the next one is asked as well. */
const staggerMs = 300

/** The hosts of one URL, of which any may be the primary today. */
class Servers {
  readonly #target: ServerTarget
  readonly #description: string
  /** Where it worked the last time. */
  #preferred = 0

  constructor(target: ServerTarget, description: string) {
    this.#target = target
    this.#description = description
  }

  connect(pipeline: boolean, signal: AbortSignal | undefined): Promise<Client> {
    const [only, ...others] = this.#target.hosts
    if (only !== undefined && others.length === 0) return this.#connectTo(only, pipeline, signal)
    return this.#connectToFirst(pipeline, signal)
  }

  /** Asks one after the other, the next as soon as one has refused or is slow, and takes the first that is fit. */
  async #connectToFirst(pipeline: boolean, signal: AbortSignal | undefined): Promise<Client> {
    const { hosts } = this.#target
    const decided = new AbortController()
    const stop = signal === undefined ? decided.signal : AbortSignal.any([signal, decided.signal])
    const failures = new Map<number, DatabaseError>()
    const found = Promise.withResolvers<Client>()
    const waiting = hosts.map((_, index) => (this.#preferred + index) % hosts.length)
    let timer: NodeJS.Timeout | undefined

    const askNext = (): void => {
      clearTimeout(timer)
      const index = waiting.shift()
      if (index === undefined || decided.signal.aborted) return
      timer = setTimeout(askNext, staggerMs)
      this.#connectTo(hosts[index] as ServerAddress, pipeline, stop).then(
        (client) => {
          // Another was faster.
          if (decided.signal.aborted) return cutClient(client)
          this.#preferred = index
          decided.abort()
          found.resolve(client)
        },
        (error: unknown) => {
          failures.set(index, error as DatabaseError)
          if (failures.size === hosts.length) found.reject(this.#noneIsFit(failures))
          else askNext()
        },
      )
    }
    askNext()
    try {
      return await found.promise
    } finally {
      clearTimeout(timer)
      decided.abort()
    }
  }

  async #connectTo(address: ServerAddress, pipeline: boolean, signal: AbortSignal | undefined): Promise<Client> {
    const target = this.#target
    const client = new Client({ ...clientSettings(target), ...address, pipeline })
    const told = target.statementTimeoutMs === undefined ? {} : { statement_timeout: String(target.statementTimeoutMs) }
    noteParameters(client, told)
    readRows(client)
    // Without a listener the `error` of a connection that dies between two statements ends the process.
    client.on('error', () => undefined)
    const giveUp = (): void => cutClient(client)
    signal?.addEventListener('abort', giveUp, { once: true })
    try {
      await client.connect()
      await speakIso(client, target.connectTimeoutMs)
      if (!target.mustBeWritable || (await isWritable(client, target.connectTimeoutMs))) return client
      throw new ConnectionError('CONNECTION_FAILED', 'it is a standby, or set to read only')
    } catch (error) {
      cutClient(client)
      const place = describeTarget({ ...target, hosts: [address] })
      throw toDatabaseError(error, { phase: 'connect', target: place, limitMs: target.connectTimeoutMs })
    } finally {
      signal?.removeEventListener('abort', giveUp)
    }
  }

  #noneIsFit(failures: ReadonlyMap<number, DatabaseError>): DatabaseError {
    const reasons = [...failures].toSorted(([one], [other]) => one - other)
    const said = reasons.map(([index, error]) => `${index + 1}. ${error.message.replace(/\.$/, '')}`).join('; ')
    // What will not pass by itself, such as a wrong password, is the more important news.
    const errors = reasons.map(([, error]) => error)
    const code = (errors.find(({ transient }) => !transient) ?? errors[0])?.code ?? 'CONNECTION_FAILED'
    return new ConnectionError(
      code,
      `None of the hosts of ${this.#description} accepts writes now, so nothing was sent. ${said}. ` +
        'While another server takes over this passes by itself; else look at the hosts in this order.',
      { cause: errors[0] },
    )
  }
}

/** Asked, though servers report it when a connection begins: a pooler repeats what was true when it made its own. */
async function isWritable(client: Client, limitMs: number): Promise<boolean> {
  const asked = client.query<{ transaction_read_only: string }>('show transaction_read_only')
  const { rows } = await settleWithin(asked, limitMs, () => new Error('timeout expired'))
  return rows[0]?.transaction_read_only === 'off'
}

/**
 * In another style than ISO, dates cannot be told apart (is 03/04 in March or April?), and `pg` reads them as null. A
 * server reports its style when a connection begins, so this costs a round trip only where it is set otherwise.
 */
async function speakIso(client: Client, limitMs: number): Promise<void> {
  const style = parameterOf(client, 'DateStyle')
  if (style === undefined || style.startsWith('ISO')) return
  const setting = { text: 'set datestyle to iso', query_timeout: limitMs }
  await client.query(setting)
}

const cancelTimeoutMs = 1_000

/** A connection of its own that carries one message; the server closes it when it has signaled the backend. */
function sendCancel(target: ServerTarget, client: Client): Promise<void> {
  // `pg` shows where a client is connected to, which of several hosts it is.
  const { processID, secretKey, host, port } = client as Client & { processID: number; secretKey: number }
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
    if (host.startsWith('/')) wire.connect(`${host}/.s.PGSQL.${port}`)
    else wire.connect(port, host)
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
  const parsers = parsersFor(target.types)
  return {
    user: target.user,
    // Left out, `pg` would send this server the password that PGPASSWORD holds for another.
    password: typeof password === 'function' ? () => askedFor(password, target) : (password ?? (() => '')),
    database: target.database,
    ssl: tlsSettings(target),
    application_name: target.applicationName,
    connectionTimeoutMillis: target.connectTimeoutMs,
    ...(target.statementTimeoutMs === undefined ? {} : { statement_timeout: target.statementTimeoutMs }),
    ...(parsers && { types: parsers }),
    // A peer that vanished without a word is noticed on an idle connection, too.
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
  }
}

/** What the application's function gives, or an error that does not pass for one of the network. */
async function askedFor(password: () => string | Promise<string>, target: ServerTarget): Promise<string> {
  const place = `for ${describeTarget(target)}`
  let given: unknown
  try {
    given = await password()
  } catch (cause) {
    // Its own words may hold a token; they are in the cause.
    const { name, code } = cause instanceof Error ? (cause as NodeJS.ErrnoException) : { name: typeof cause }
    throw new ConnectionError(
      'CONNECTION_FAILED',
      `The function postgres.password threw ${name}${typeof code === 'string' ? ` (${code})` : ''} when it was asked ${place}, so nobody logged in and ` +
        'nothing was sent. Look at its own error, in `cause`, and at the service that it asks.',
      { cause },
    )
  }
  if (typeof given === 'string') return given
  throw new ConnectionError(
    'AUTHENTICATION_FAILED',
    `The function postgres.password gave ${given === undefined || given === null ? String(given) : `a ${typeof given}`} ${place} where a string belongs. Correct the function.`,
  )
}

function tlsSettings(target: ServerTarget): ClientConfig['ssl'] {
  if (target.ssl === 'disable') return false
  const ca = target.sslCa === undefined ? {} : { ca: target.sslCa }
  return { rejectUnauthorized: target.ssl === 'verify-full', ...ca }
}
