import { randomUUID } from 'node:crypto'
import { existsSync, linkSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Client, type CustomTypesConfig } from 'pg'
import type { PGlite, PGliteOptions } from '@electric-sql/pglite'
import type { Logger } from '../core/options.ts'
import { describeTarget, type EmbeddedTarget } from '../core/postgres-target.ts'
import { settleWithin } from '../core/deadline.ts'
import { ConnectionError } from '../core/errors.ts'
import type { ConnectionSource } from './connection.ts'
import { parsersFor } from './value-parsers.ts'

/** How long a second `connect` waits for the only session to become free. */
const sessionWaitMs = 5_000

/** A cluster as {@link EmbeddedSource.dump} gave it. */
export type ClusterSnapshot = Blob

/** The embedded PostgreSQL as a source of its one connection. */
export interface EmbeddedSource extends ConnectionSource {
  /** The whole cluster, from which another can be opened. While nobody uses the session. */
  dump(): Promise<ClusterSnapshot>
}

/**
 * PostgreSQL inside this process (PGlite), for development without a server. It is one session: a second connection
 * waits until the first has ended. A data folder belongs to one process at a time; `memory` keeps nothing.
 *
 * Fails with `EMBEDDED_UNAVAILABLE` when the package is not installed, the folder is in use or cannot be read. With a
 * `snapshot` it begins as that was; only in memory.
 */
export async function openEmbedded(
  target: EmbeddedTarget,
  logger: Logger,
  snapshot?: ClusterSnapshot,
): Promise<EmbeddedSource> {
  const description = describeTarget(target)
  const { createPgConfig, extensions, PGlite } = await loadPGlite()
  const folder = target.dataDir === 'memory' ? undefined : lockFolder(target.dataDir)
  const starting =
    snapshot === undefined
      ? start({ PGlite, extensions }, folder)
      : ready(new PGlite({ extensions, loadDataDir: snapshot }))
  const pglite = await starting.catch((error: unknown) => {
    folder?.unlock()
    if (error instanceof ConnectionError) throw error
    const advice = 'If another version of PGlite wrote its data, move the folder away'
    throw unavailable(`The ${description} could not be started. ${advice}`, error)
  })
  logger.info(`using the ${description} (development only; set DATABASE_URL for a server)`)

  let sessionFree: Promise<void> = Promise.resolve()
  const channels = new Set<string>()
  return {
    description,
    maxConnections: 1,
    async connect() {
      const before = sessionFree
      const turn = Promise.withResolvers<void>()
      sessionFree = before.then(() => turn.promise)
      try {
        await settleWithin(before, sessionWaitMs, () => sessionInUse(description))
        await resetSession(pglite, channels)
        return await openClient(pglite, createPgConfig(pglite), parsersFor(target.types), turn.resolve)
      } catch (error) {
        turn.resolve()
        throw error instanceof ConnectionError ? error : unavailable(`The ${description} does not answer`, error)
      }
    },
    // It computes on the only thread, so whoever could ask for a stop has to wait until the statement is through.
    cancel: () => Promise.resolve(),
    exchange: (messages) => pglite.execProtocolRaw(messages, { syncToFs: false }),
    dump: () => pglite.dumpDataDir('none'),
    shared: { channels, subscribe: (onNotification) => pglite.onNotification(onNotification) },
    async close() {
      if (!pglite.closed) await pglite.close()
      folder?.unlock()
    },
  }
}

type PgConfig = ReturnType<(typeof import('@electric-sql/pglite/node-postgres'))['createPgConfig']>

async function openClient(
  pglite: PGlite,
  config: PgConfig,
  parsers: CustomTypesConfig | undefined,
  onEnd: () => void,
): Promise<Client> {
  const client = new Client(Object.assign(config, parsers && { types: parsers }))
  client.on('error', () => undefined)
  await client.connect()
  const { connection } = config
  Object.assign(connection, {
    sendMessages: (bytes: Uint8Array) => void forward(pglite.execProtocol(bytes, { throwOnError: false }), connection),
  })
  const end = connection.end.bind(connection)
  connection.end = () => {
    // It drops its listeners when it ends, so ours is added behind.
    end()
    connection.once('end', onEnd)
  }
  return client
}

/** Says the server's answers as the connection itself does for what it sends. */
async function forward(answer: ReturnType<PGlite['execProtocol']>, connection: NodeJS.EventEmitter): Promise<void> {
  try {
    const { messages } = await answer
    for (const message of messages) connection.emit(message.name === 'error' ? 'errorMessage' : message.name, message)
  } catch (error) {
    connection.emit('error', error)
  }
}

/** What the last client left, an open transaction or a setting, must not reach the next. */
async function resetSession(pglite: PGlite, channels: Iterable<string>): Promise<void> {
  await pglite.exec('rollback')
  await pglite.exec('discard all')
  for (const channel of channels) await pglite.exec(`listen ${channel}`)
}

async function loadPGlite() {
  try {
    const [{ PGlite: Engine }, { createPgConfig }, { pg_trgm }] = await Promise.all([
      import('@electric-sql/pglite'),
      import('@electric-sql/pglite/node-postgres'),
      import('@electric-sql/pglite/contrib/pg_trgm'),
    ])
    return { PGlite: Engine, createPgConfig, extensions: { pg_trgm } }
  } catch (error) {
    throw unavailable(
      'No DATABASE_URL is set and the embedded PostgreSQL is not installed. ' +
        'Run `npm install --save-dev @electric-sql/pglite`, or set DATABASE_URL',
      error,
    )
  }
}

/** What runs, with the modules that `create extension` finds as it would on a server. */
interface Engine {
  readonly PGlite: typeof PGlite
  readonly extensions: NonNullable<PGliteOptions['extensions']>
}

/** A new cluster takes seconds to set up and is always the same, so the first one is kept as a file to copy. */
async function start({ PGlite: Engine, extensions }: Engine, folder: LockedFolder | undefined): Promise<PGlite> {
  const place = { extensions, ...(folder && { dataDir: folder.path }) }
  if (folder?.holdsCluster()) return ready(new Engine(place))

  folder?.begin()
  const file = clusterFile()
  let pglite: PGlite | undefined
  if (existsSync(file)) {
    try {
      pglite = await ready(new Engine({ ...place, loadDataDir: new Blob([readFileSync(file)]) }))
    } catch {
      // A file that cannot be used is made anew below.
      rmSync(file, { force: true })
      folder?.begin()
    }
  }
  if (pglite === undefined) {
    pglite = await ready(new Engine(place))
    await keepCluster(pglite, file)
  }
  folder?.finish()
  return pglite
}

async function ready(pglite: PGlite): Promise<PGlite> {
  await pglite.waitReady
  return pglite
}

async function keepCluster(pglite: PGlite, file: string): Promise<void> {
  const draft = `${file}.${process.pid}`
  try {
    const cluster = await pglite.dumpDataDir('none')
    mkdirSync(dirname(file), { recursive: true })
    writeFileSync(draft, new Uint8Array(await cluster.arrayBuffer()))
    renameSync(draft, file)
  } catch {
    // Without a writable cache every start is a slow one, and nothing else is different.
    rmSync(draft, { force: true })
  }
}

/** In the user's own cache, where nobody else can put a cluster with surprises. */
function clusterFile(): string {
  const cache = process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache')
  const manifest = new URL('../package.json', import.meta.resolve('@electric-sql/pglite'))
  const { version } = JSON.parse(readFileSync(fileURLToPath(manifest), 'utf8')) as { version: string }
  return join(cache, 'kanta', `pglite-${version}.tar`)
}

interface LockedFolder {
  readonly path: string
  holdsCluster(): boolean
  /** Makes room for a new cluster. Refuses a folder that holds something else; clears what a killed start left. */
  begin(): void
  finish(): void
  unlock(): void
}

/** Two users of one data folder would destroy it, and PGlite does not look. */
function lockFolder(dataDir: string): LockedFolder {
  const path = resolve(dataDir)
  const file = `${path}.lock`
  const unfinished = `${path}.unfinished`
  try {
    mkdirSync(dirname(path), { recursive: true })
    const claim = claimFile(file, dataDir)
    return {
      path,
      holdsCluster: () => existsSync(join(path, 'PG_VERSION')) && !existsSync(unfinished),
      begin() {
        if (existsSync(unfinished)) rmSync(path, { recursive: true, force: true })
        else if (existsSync(path) && readdirSync(path).length > 0) {
          throw unavailable(
            `The folder ${dataDir} holds something else than a PostgreSQL of ours. Choose another folder`,
          )
        }
        writeFileSync(unfinished, '')
      },
      finish: () => rmSync(unfinished, { force: true }),
      unlock() {
        if (readClaim(file) === claim) rmSync(file, { force: true })
      },
    }
  } catch (error) {
    throw error instanceof ConnectionError ? error : unusable(dataDir, error)
  }
}

/**
 * Claims a file for this caller, and returns what stands in it: the process by number and time of start, since numbers
 * come back, and in a container every process may have the same.
 */
function claimFile(file: string, dataDir: string): string {
  const startedAt = Math.round(Date.now() / 1_000 - process.uptime())
  const claim = `${process.pid} ${startedAt} ${randomUUID()}`
  const draft = `${file}.${randomUUID()}`
  writeFileSync(draft, claim)
  try {
    for (;;) {
      try {
        // A link appears with its content at once, so nobody sees a claim without an owner.
        linkSync(draft, file)
        return claim
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
      }
      const other = readClaim(file)
      if (other === undefined) continue
      const [pid = 0, since = 0] = other.split(' ').map(Number)
      const isOurs = pid === process.pid && Math.abs(since - startedAt) <= 2
      if (isOurs || (pid !== process.pid && isAlive(pid))) {
        const who = isOurs ? 'this process' : `process ${pid}`
        throw unavailable(
          `The embedded PostgreSQL in ${dataDir} is in use by ${who}. Close it, or choose another folder`,
        )
      }
      takeAway(file, other)
    }
  } finally {
    rmSync(draft, { force: true })
  }
}

/** Removes a claim whose owner is gone; one that came in its place meanwhile is put back. */
function takeAway(file: string, claim: string): void {
  const aside = `${file}.${randomUUID()}`
  try {
    renameSync(file, aside)
    if (readClaim(aside) !== claim) linkSync(aside, file)
  } catch {
    // Somebody else was quicker; the next look tells.
  } finally {
    rmSync(aside, { force: true })
  }
}

function readClaim(file: string): string | undefined {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return undefined
  }
}

function isAlive(pid: number): boolean {
  if (!Number.isInteger(pid) || pid <= 0) return false
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

function sessionInUse(description: string): ConnectionError {
  return new ConnectionError(
    'CONNECTION_FAILED',
    `The ${description} has a single session, and it did not become free within ${sessionWaitMs} ms. ` +
      'Close the other user of it first, or set DATABASE_URL to use a server.',
  )
}

function unusable(dataDir: string, cause: unknown): ConnectionError {
  const { code = 'no reason given' } = cause as NodeJS.ErrnoException
  return unavailable(
    `The folder ${dataDir} cannot be used (${code}). Name one that this user may write (DATABASE_EMBEDDED_DATA_DIR), or set DATABASE_URL`,
    cause,
  )
}

function unavailable(message: string, cause?: unknown): ConnectionError {
  return new ConnectionError('EMBEDDED_UNAVAILABLE', `${message}.`, { cause })
}
