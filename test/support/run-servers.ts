/**
 * The servers of a test run: those that the environment names, else containers, else processes of our own, else, on a
 * Debian machine where we may, installed ones. Nothing is skipped for want of a server.
 */

import { existsSync } from 'node:fs'
import { request } from 'node:http'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { canInstall, installPackages } from './packages.ts'
import { findPgBouncer } from './pgbouncer.ts'
import { findPostgres, findRedis, startPostgres, startRedis } from './servers.ts'

/** A server that the run may use. */
interface RunServer {
  readonly url: string
  /** Where it comes from, for the run's first lines. */
  readonly origin: string
  /** Ends it if it was started for the run. */
  stop(): Promise<void>
}

/** The two servers of a run. */
export interface RunServers {
  readonly postgres: RunServer
  readonly redis: RunServer
}

/** PgBouncer, which the tests that need it start themselves; where it cannot be had, they say so. */
export function providePgBouncer(): void {
  if (findPgBouncer() !== undefined || !canInstall()) return
  try {
    installPackages(['pgbouncer'])
  } catch (error) {
    console.warn(`apt-get could not install pgbouncer: ${String(error)}`)
  }
}

/** Finds or starts both, or rejects with one message that says what to do. */
export async function findServers(env: NodeJS.ProcessEnv = process.env): Promise<RunServers> {
  const postgres = given(env, 'TEST_DATABASE_URL')
  const redis = given(env, 'TEST_REDIS_URL')
  const docker = (postgres === undefined || redis === undefined) && (await dockerAnswers(env))
  if (docker) {
    try {
      return await startBoth(postgres, redis, postgresContainer, redisContainer)
    } catch (error) {
      console.warn(`Docker is here but gave no servers (${String(error)}); looking on this machine.`)
    }
  }
  const missing: string[] = []
  if (postgres === undefined && findPostgres() === undefined) missing.push('postgresql')
  if (redis === undefined && findRedis() === undefined) missing.push('redis-server')
  if (missing.length > 0) install(missing)
  return startBoth(postgres, redis, ownPostgres, ownRedis)
}

async function startBoth(
  postgres: RunServer | undefined,
  redis: RunServer | undefined,
  startPostgresServer: () => Promise<RunServer>,
  startRedisServer: () => Promise<RunServer>,
): Promise<RunServers> {
  const started = await Promise.allSettled([postgres ?? startPostgresServer(), redis ?? startRedisServer()])
  const [first, second] = started
  if (first.status === 'fulfilled' && second.status === 'fulfilled')
    return { postgres: first.value, redis: second.value }
  await Promise.all(started.filter((each) => each.status === 'fulfilled').map((each) => each.value.stop()))
  throw first.status === 'rejected' ? first.reason : second.status === 'rejected' ? second.reason : undefined
}

function given(env: NodeJS.ProcessEnv, name: string): RunServer | undefined {
  const url = env[name]
  return url ? { url, origin: name, stop: async () => {} } : undefined
}

async function ownPostgres(): Promise<RunServer> {
  const server = await startPostgres({ inMemory: true })
  return { url: server.url, origin: `own process on port ${server.port}`, stop: () => server.stop() }
}

async function ownRedis(): Promise<RunServer> {
  const server = await startRedis()
  return { url: server.url, origin: `own process on port ${server.port}`, stop: () => server.stop() }
}

async function postgresContainer(): Promise<RunServer> {
  // Loaded only here: it takes longer to load than our own servers take to start.
  const { GenericContainer, Wait } = await import('testcontainers')
  const container = await new GenericContainer('postgres:18-alpine')
    .withEnvironment({ POSTGRES_HOST_AUTH_METHOD: 'trust' })
    .withCommand(['-c', 'fsync=off', '-c', 'synchronous_commit=off', '-c', 'max_connections=300'])
    .withTmpFs({ '/var/lib/postgresql': 'rw' })
    .withExposedPorts(5432)
    // The image starts the server once to set it up and then again for good.
    .withWaitStrategy(Wait.forLogMessage('database system is ready to accept connections', 2))
    .start()
  return {
    url: `postgres://postgres@${container.getHost()}:${container.getMappedPort(5432)}/postgres`,
    origin: 'container postgres:18-alpine',
    stop: async () => void (await container.stop()),
  }
}

async function redisContainer(): Promise<RunServer> {
  const { GenericContainer, Wait } = await import('testcontainers')
  const container = await new GenericContainer('redis:8-alpine')
    .withExposedPorts(6379)
    .withWaitStrategy(Wait.forLogMessage('Ready to accept connections'))
    .start()
  return {
    url: `redis://${container.getHost()}:${container.getMappedPort(6379)}/0`,
    origin: 'container redis:8-alpine',
    stop: async () => void (await container.stop()),
  }
}

/** Whether an engine really answers; the client alone is installed in many places. */
async function dockerAnswers(env: NodeJS.ProcessEnv): Promise<boolean> {
  const host = env['DOCKER_HOST']
  const sockets = [
    '/var/run/docker.sock',
    join(homedir(), '.docker/run/docker.sock'),
    join(homedir(), '.colima/docker.sock'),
  ]
  const targets =
    host === undefined ? sockets.filter((path) => existsSync(path)).map((path) => `unix://${path}`) : [host]
  const answers = await Promise.all(targets.map(pingDocker))
  return answers.includes(true)
}

async function pingDocker(target: string): Promise<boolean> {
  const place = target.startsWith('unix://')
    ? { socketPath: target.slice('unix://'.length) }
    : { host: new URL(target).hostname, port: new URL(target).port || '2375' }
  return new Promise((resolve) => {
    const ping = request({ ...place, path: '/_ping', signal: AbortSignal.timeout(2_000) }, (response) => {
      response.resume()
      resolve(response.statusCode === 200)
    })
    ping.once('error', () => resolve(false))
    ping.end()
  })
}

function install(packages: readonly string[]): void {
  const names = packages.join(' and ')
  if (!canInstall()) {
    throw new Error(
      [
        `The tests need ${names}, and neither a server nor Docker was found. Do one of these and run again:`,
        '  - start Docker;',
        `  - install ${names} on this machine (Debian: apt-get install ${packages.join(' ')}; macOS: brew install postgresql redis);`,
        '  - set TEST_DATABASE_URL to a PostgreSQL superuser and TEST_REDIS_URL to a Redis that may be written to.',
      ].join('\n'),
    )
  }
  try {
    installPackages(packages)
  } catch (error) {
    throw new Error(`apt-get could not install ${names}; set TEST_DATABASE_URL and TEST_REDIS_URL instead.`, {
      cause: error,
    })
  }
}
