import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { Client } from 'pg'
import type { PGlite } from '@electric-sql/pglite'
import { describeTarget, type EmbeddedTarget, type Logger } from '../core/config.ts'
import { settleWithin } from '../core/deadline.ts'
import { ConnectionError } from '../core/errors.ts'
import type { ConnectionSource } from './connection.ts'

/** How long a second `connect` waits for the only session to become free. */
const sessionWaitMs = 5_000

/**
 * PostgreSQL inside this process (PGlite), for development without a server. It is one session: a second connection
 * waits until the first has ended. A data folder belongs to one process at a time; `memory` keeps nothing.
 *
 * Fails with `EMBEDDED_UNAVAILABLE` when the package is not installed, the folder is in use or cannot be read.
 */
export async function openEmbedded(target: EmbeddedTarget, logger: Logger): Promise<ConnectionSource> {
  const description = describeTarget(target)
  const { createPgConfig, PGlite } = await loadPGlite()
  const folder = target.dataDir === 'memory' ? undefined : lockFolder(target.dataDir)
  const pglite = await start(() => new PGlite(folder ? { dataDir: folder.path } : {}), description, folder)
  logger.info(`using the ${description} (development only; set DATABASE_URL for a server)`)

  let sessionFree: Promise<void> = Promise.resolve()
  return {
    description,
    maxConnections: 1,
    async connect() {
      const before = sessionFree
      const turn = Promise.withResolvers<void>()
      sessionFree = before.then(() => turn.promise)
      try {
        await settleWithin(before, sessionWaitMs, () => sessionInUse(description))
        await resetSession(pglite)
        return await openClient(createPgConfig(pglite), turn.resolve)
      } catch (error) {
        turn.resolve()
        throw error instanceof ConnectionError ? error : unavailable(`The ${description} does not answer`, error)
      }
    },
    async close() {
      if (!pglite.closed) await pglite.close()
      folder?.unlock()
    },
  }
}

type PgConfig = ReturnType<(typeof import('@electric-sql/pglite/node-postgres'))['createPgConfig']>

async function openClient(config: PgConfig, onEnd: () => void): Promise<Client> {
  const client = new Client(config)
  client.on('error', () => undefined)
  await client.connect()
  const { connection } = config
  const end = connection.end.bind(connection)
  connection.end = () => {
    // It drops its listeners when it ends, so ours is added behind.
    end()
    connection.once('end', onEnd)
  }
  return client
}

/** What the last client left, an open transaction or a setting, must not reach the next. */
async function resetSession(pglite: PGlite): Promise<void> {
  await pglite.exec('rollback')
  await pglite.exec('discard all')
}

async function loadPGlite() {
  try {
    const [{ PGlite: Engine }, { createPgConfig }] = await Promise.all([
      import('@electric-sql/pglite'),
      import('@electric-sql/pglite/node-postgres'),
    ])
    return { PGlite: Engine, createPgConfig }
  } catch (error) {
    throw unavailable(
      'No DATABASE_URL is set and the embedded PostgreSQL is not installed. ' +
        'Run `npm install --save-dev @electric-sql/pglite`, or set DATABASE_URL',
      error,
    )
  }
}

async function start(create: () => PGlite, description: string, folder: LockedFolder | undefined): Promise<PGlite> {
  try {
    const pglite = create()
    await pglite.waitReady
    return pglite
  } catch (error) {
    folder?.unlock()
    throw unavailable(
      `The ${description} could not be started. If another version of PGlite wrote its data, move the folder away`,
      error,
    )
  }
}

interface LockedFolder {
  readonly path: string
  unlock(): void
}

const foldersOfThisProcess = new Set<string>()

/** Two processes on one data folder would destroy it, and PGlite does not look. */
function lockFolder(dataDir: string): LockedFolder {
  const path = resolve(dataDir)
  const file = `${path}.lock`
  const inUse = (who: string): ConnectionError =>
    unavailable(`The embedded PostgreSQL in ${dataDir} is in use by ${who}. Close it, or choose another folder`)

  if (foldersOfThisProcess.has(path)) throw inUse('this process')
  try {
    mkdirSync(dirname(path), { recursive: true })
    claim(file, inUse)
  } catch (error) {
    throw error instanceof ConnectionError ? error : unavailable(`The folder ${dataDir} cannot be used`, error)
  }
  foldersOfThisProcess.add(path)
  return {
    path,
    unlock() {
      foldersOfThisProcess.delete(path)
      rmSync(file, { force: true })
    },
  }
}

function claim(file: string, inUse: (who: string) => ConnectionError): void {
  try {
    writeFileSync(file, String(process.pid), { flag: 'wx' })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    const owner = Number(readFileSync(file, 'utf8'))
    // In a container every process may have had the number that this one has now.
    if (owner !== process.pid && isAlive(owner)) throw inUse(`process ${owner}`)
    rmSync(file, { force: true })
    claim(file, inUse)
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

function unavailable(message: string, cause?: unknown): ConnectionError {
  return new ConnectionError('EMBEDDED_UNAVAILABLE', `${message}.`, { cause })
}
