/**
 * PostgreSQL and Redis servers of our own for tests: on free ports, in temporary folders, as an unprivileged user where
 * the tests run as root. They can be killed, frozen and started again, and are gone after the run whatever ends it.
 */

import { execFile, execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import {
  accessSync,
  chownSync,
  closeSync,
  constants,
  fstatSync,
  globSync,
  mkdtempSync,
  openSync,
  readFileSync,
  realpathSync,
  statfsSync,
  writeFileSync,
} from 'node:fs'
import { rm } from 'node:fs/promises'
import { connect, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { delimiter, dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { Client } from 'pg'
import type { KeeperMessage } from './server-keeper.ts'

const startLimitMs = 30_000
const stopLimitMs = 10_000

/** A server process of this run. Stop it in the end; what is left when the run ends is killed and removed. */
export interface OwnServer {
  /** With the superuser for PostgreSQL, database 0 for Redis. */
  readonly url: string
  readonly port: number
  /** Of the main process; another one after `restart()`. */
  readonly pid: number
  readonly dataDir: string
  readonly logFile: string
  /**
   * Sends a signal to the main process: SIGQUIT and SIGKILL crash it, SIGSTOP freezes it (for PostgreSQL no new
   * connection is accepted, while backends go on), SIGCONT thaws it. Resolves when a deadly signal has done its work.
   */
  kill(signal: 'SIGCONT' | 'SIGINT' | 'SIGKILL' | 'SIGQUIT' | 'SIGSTOP' | 'SIGTERM'): Promise<void>
  /** Crashes it if it still runs, starts it on the same port and data, and resolves when it accepts connections. */
  restart(): Promise<void>
  /** Ends it in an orderly way, or by force after 10 s, and removes its folder. Safe to call twice. */
  stop(): Promise<void>
}

/** Settings of {@link startPostgres}. */
export interface PostgresServerOptions {
  /** Lines of postgresql.conf. */
  readonly settings?: Readonly<Record<string, string | number | boolean>>
  /** Whether commits survive a crash of the machine; a crash of the server they always do. @default false */
  readonly fsync?: boolean
  /**
   * Keeps its files in memory, where the machine has room for them there: a database is made in a fraction of the time.
   * @default false
   */
  readonly inMemory?: boolean
}

/** Starts a PostgreSQL with an empty cluster and resolves when it accepts connections, after about a second. */
export async function startPostgres(options: PostgresServerOptions = {}): Promise<OwnServer> {
  const binaries = postgresBinaries()
  return startCluster(binaries, options, async (folder, user) => {
    const locale = process.platform === 'linux' ? 'C.UTF-8' : 'en_US.UTF-8'
    const args = ['-D', join(folder, 'data'), '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--no-sync']
    await promisify(execFile)(join(binaries, 'initdb'), [...args, `--locale=${locale}`, '--lc-messages=C'], {
      cwd: folder,
      ...user,
    })
  })
}

/**
 * Starts a hot standby of a running server, from a copy that it takes of it, and resolves when it answers. It follows
 * that server until it is promoted; `select pg_promote()` does that.
 */
export async function startStandby(primary: OwnServer, options: PostgresServerOptions = {}): Promise<OwnServer> {
  const binaries = postgresBinaries()
  return startCluster(binaries, options, async (folder, user) => {
    const args = ['-D', join(folder, 'data'), '-d', primary.url, '-R', '-X', 'stream', '-c', 'fast', '--no-sync']
    await promisify(execFile)(join(binaries, 'pg_basebackup'), args, { cwd: folder, ...user })
  })
}

function postgresBinaries(): string {
  const binaries = findPostgres()
  if (binaries !== undefined) return binaries
  throw new Error('No PostgreSQL server was found on this machine. Install one, or set TEST_DATABASE_URL.')
}

/** Linux keeps what is here in memory; in a container it may be too small for a cluster, elsewhere there is none. */
const memoryFolder = '/dev/shm'
const wantedRoom = 3 * 1024 ** 3

/** The size of the folder is only the most that it may take, so there must be as much free memory, too. */
function hasRoom(folder: string): boolean {
  try {
    accessSync(folder, constants.W_OK)
    const { bavail, bsize } = statfsSync(folder)
    return Math.min(bavail * bsize, process.availableMemory()) > wantedRoom
  } catch {
    return false
  }
}

function startCluster(
  binaries: string,
  options: PostgresServerOptions,
  prepare: ServerKind['prepare'],
): Promise<OwnServer> {
  const settings = {
    listen_addresses: '127.0.0.1',
    max_connections: 300,
    // For standbys that are made while others are, or that were away for a while.
    wal_keep_size: '256MB',
    // In the folder that is removed: of a server that is killed the system would keep the rest for ever.
    dynamic_shared_memory_type: 'mmap',
    ...(options.fsync === true ? {} : { fsync: false, synchronous_commit: false, full_page_writes: false }),
    ...options.settings,
  }
  let dataDir = ''
  return startServer({
    name: 'postgres',
    parentFolder: options.inMemory === true && hasRoom(memoryFolder) ? memoryFolder : tmpdir(),
    prepare(folder, user) {
      dataDir = join(folder, 'data')
      return prepare(folder, user)
    },
    command: (folder, port) => {
      const program = [join(binaries, 'postgres'), '-D', join(folder, 'data'), '-p', String(port), '-k', folder]
      return [...program, ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])]
    },
    url: (port) => `postgres://postgres@127.0.0.1:${port}/postgres`,
    async answers(url) {
      const client = new Client({ connectionString: url, connectionTimeoutMillis: 2_000 })
      client.on('error', () => {})
      await client.connect()
      const { rows } = await client.query<{ data_directory: string }>('show data_directory')
      await client.end()
      if (rows[0]?.data_directory !== dataDir) throw new Error('another server has the port')
    },
  })
}

/** Starts an empty Redis that keeps nothing on disk and resolves when it answers. `settings` go into its command line. */
export async function startRedis(settings: (port: number) => readonly string[] = () => []): Promise<OwnServer> {
  const binary = findRedis()
  if (binary === undefined)
    throw new Error('No redis-server was found on this machine. Install one, or set TEST_REDIS_URL.')
  return startServer({
    name: 'redis',
    prepare: async () => {},
    command: (folder, port) => {
      const place = ['--bind', '127.0.0.1', '--port', String(port), '--dir', folder]
      return [binary, ...place, '--save', '', '--appendonly', 'no', ...settings(port)]
    },
    url: (port) => `redis://127.0.0.1:${port}/0`,
    answers: (_url, port) => redisAnswers(port),
  })
}

/** Starts a Sentinel that knows a primary by this name, and promotes its replica half a second after it is gone. */
export async function startSentinel(primaryName: string, primaryPort: number): Promise<OwnServer> {
  const binary = findRedis()
  if (binary === undefined) throw new Error('No redis-server was found on this machine.')
  const lines = [
    `sentinel monitor ${primaryName} 127.0.0.1 ${primaryPort} 1`,
    `sentinel down-after-milliseconds ${primaryName} 500`,
    `sentinel failover-timeout ${primaryName} 2000`,
  ]
  return startServer({
    name: 'sentinel',
    prepare(folder, { uid, gid }) {
      // It writes there what it learns.
      const file = join(folder, 'sentinel.conf')
      writeFileSync(file, lines.join('\n'))
      if (uid !== undefined) chownSync(file, uid, gid ?? uid)
      return Promise.resolve()
    },
    command: (folder, port) => {
      const place = ['--bind', '127.0.0.1', '--port', String(port), '--dir', folder]
      return [binary, join(folder, 'sentinel.conf'), '--sentinel', ...place]
    },
    url: (port) => `redis://127.0.0.1:${port}`,
    answers: (_url, port) => redisAnswers(port),
  })
}

/** The folder of the newest PostgreSQL server programs on this machine. */
export function findPostgres(): string | undefined {
  const folders = [
    ...searchPath(),
    ...globSync([
      '/usr/lib/postgresql/*/bin',
      '/usr/pgsql-*/bin',
      '/usr/local/pgsql/bin',
      '/opt/homebrew/opt/postgresql*/bin',
      '/usr/local/opt/postgresql*/bin',
      '/Applications/Postgres.app/Contents/Versions/*/bin',
    ]),
  ]
  const found = new Set(
    folders
      .filter((folder) => isExecutable(join(folder, 'postgres')))
      // PATH may hold a link to `postgres` alone; the other programs are where it points.
      .map((folder) => dirname(realpathSync(join(folder, 'postgres'))))
      .filter((folder) => isExecutable(join(folder, 'initdb'))),
  )
  const versions = [...found].map((folder) => {
    const output = execFileSync(join(folder, 'postgres'), ['--version'], { encoding: 'utf8' })
    return { folder, version: Number.parseFloat(/\d+(\.\d+)?/.exec(output)?.[0] ?? '0') }
  })
  return versions.toSorted((a, b) => b.version - a.version)[0]?.folder
}

/** The Redis server program on this machine. */
export function findRedis(): string | undefined {
  return [...searchPath(), '/usr/sbin', '/opt/homebrew/bin', '/usr/local/bin']
    .map((folder) => join(folder, 'redis-server'))
    .find(isExecutable)
}

/** What {@link startServer} has to know of a kind of server. */
export interface ServerKind {
  readonly name: string
  /** Where the folder of the server is made. @default the system's folder for temporary files */
  readonly parentFolder?: string
  prepare(folder: string, user: SystemUser): Promise<void>
  command(folder: string, port: number): string[]
  url(port: number): string
  /** Rejects while the server does not take connections. */
  answers(url: string, port: number): Promise<void>
}

/** Starts a server process of any kind in a temporary folder on a free port. */
export async function startServer(kind: ServerKind): Promise<OwnServer> {
  const user = unprivilegedUser()
  const folder = mkdtempSync(join(realpathSync(kind.parentFolder ?? tmpdir()), `kanta-${kind.name}-`))
  tellKeeper({ folder, pid: null })
  if (user.uid !== undefined) chownSync(folder, user.uid, user.gid ?? user.uid)
  const logFile = join(folder, 'server.log')
  let port = 0
  let child: ChildProcess | undefined

  async function launch(): Promise<void> {
    const [program = '', ...args] = kind.command(folder, port)
    const log = openSync(logFile, 'a')
    const logStart = fstatSync(log).size
    // A group of its own: Ctrl-C in the terminal ends the run, which then stops its servers in order.
    child = spawn(program, args, { cwd: folder, detached: true, stdio: ['ignore', log, log], ...user })
    closeSync(log)
    child.unref()
    if (child.pid !== undefined) tellKeeper({ folder, pid: child.pid })
    await untilReady(child, logStart)
  }

  async function untilReady(started: ChildProcess, logStart: number): Promise<void> {
    let failure: unknown
    started.once('error', (error) => {
      failure = error
    })
    for (const begun = Date.now(); Date.now() - begun < startLimitMs; await delay(20)) {
      if (failure !== undefined || hasEnded(started)) break
      try {
        // Another server on that port would answer too; ours has then ended, or is about to.
        await kind.answers(kind.url(port), port)
        await delay(0)
        if (!hasEnded(started)) return
      } catch (error) {
        if (Date.now() - begun > startLimitMs - 2_000) failure = error
      }
    }
    const log = readFileSync(logFile).subarray(logStart).toString().trim()
    throw new Error(`${kind.name} did not start on port ${port}. Its log:\n${log}`, { cause: failure })
  }

  async function end(signals: readonly NodeJS.Signals[]): Promise<void> {
    if (child?.pid === undefined) return
    const ending = child
    const pid = child.pid
    if (!hasEnded(ending)) {
      ending.ref()
      const exited = once(ending, 'exit')
      for (const signal of signals) process.kill(pid, signal)
      const force = setTimeout(() => ending.kill('SIGKILL'), stopLimitMs)
      await exited
      clearTimeout(force)
    }
    tellKeeper({ folder, pid: null })
  }

  async function remove(): Promise<void> {
    await rm(folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 })
    tellKeeper({ folder })
  }

  try {
    await kind.prepare(folder, user)
    for (let attempt = 1; ; attempt++) {
      port = await freePort()
      try {
        await launch()
        break
      } catch (error) {
        await end(['SIGKILL'])
        const taken = error instanceof Error && /address already in use/i.test(error.message)
        if (!taken || attempt === 5) throw error
      }
    }
  } catch (error) {
    await remove()
    throw error
  }

  return {
    url: kind.url(port),
    port,
    dataDir: kind.name === 'postgres' ? join(folder, 'data') : folder,
    logFile,
    get pid() {
      return child?.pid ?? Number.NaN
    },
    async kill(signal) {
      if (signal === 'SIGSTOP' || signal === 'SIGCONT') child?.kill(signal)
      else await end([signal])
    },
    async restart() {
      await end(['SIGCONT', 'SIGQUIT'])
      for (const begun = Date.now(); ; await delay(50)) {
        try {
          await launch()
          return
        } catch (error) {
          await end(['SIGKILL'])
          // After a SIGKILL the backends need a moment to notice that their parent is gone.
          const lingers = error instanceof Error && error.message.includes('pre-existing shared memory block')
          if (!lingers || Date.now() - begun > stopLimitMs) throw error
        }
      }
    },
    async stop() {
      await end(['SIGCONT', kind.name === 'postgres' ? 'SIGINT' : 'SIGTERM'])
      await remove()
    },
  }
}

function hasEnded(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null
}

interface SystemUser {
  readonly uid?: number
  readonly gid?: number
}

/** PostgreSQL refuses to run as root. */
function unprivilegedUser(): SystemUser {
  if (process.getuid?.() !== 0) return {}
  const accounts = new Map(
    readFileSync('/etc/passwd', 'utf8')
      .split('\n')
      .map((line) => line.split(':'))
      .map(([name, , uid, gid]) => [name, { uid: Number(uid), gid: Number(gid) }]),
  )
  const account = accounts.get('postgres') ?? accounts.get('nobody')
  if (account === undefined)
    throw new Error('Running as root, and there is no user "postgres" or "nobody" to run servers as.')
  return account
}

/** Given out already: until its server listens, the system takes a port for free and gives it again. */
const givenPorts = new Set<number>()

async function freePort(): Promise<number> {
  const probe = createServer().listen(0, '127.0.0.1')
  await once(probe, 'listening')
  const address = probe.address()
  probe.close()
  await once(probe, 'close')
  if (address === null || typeof address === 'string') throw new Error('The system gave no port.')
  if (givenPorts.has(address.port)) return freePort()
  givenPorts.add(address.port)
  return address.port
}

async function redisAnswers(port: number): Promise<void> {
  const socket = connect(port, '127.0.0.1')
  try {
    await once(socket, 'connect')
    socket.write('PING\r\n')
    const [reply] = (await once(socket, 'data', { signal: AbortSignal.timeout(2_000) })) as [Buffer]
    if (!reply.toString().startsWith('+PONG')) throw new Error(`Unexpected reply: ${reply.toString().trim()}`)
  } finally {
    socket.destroy()
  }
}

let keeper: ChildProcess | undefined

function tellKeeper(message: KeeperMessage): void {
  if (keeper === undefined) {
    keeper = spawn(process.execPath, [join(import.meta.dirname, 'server-keeper.ts')], {
      detached: true,
      stdio: ['pipe', 'ignore', 'ignore'],
    })
    keeper.unref()
    // The pipe is there to break when this process ends; it must not keep it alive.
    ;(keeper.stdin as Socket | null)?.unref()
  }
  keeper.stdin?.write(`${JSON.stringify(message)}\n`)
}

function searchPath(): string[] {
  return (process.env['PATH'] ?? '').split(delimiter).filter((folder) => folder !== '')
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK)
    return true
  } catch {
    return false
  }
}
