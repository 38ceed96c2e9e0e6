import { readFileSync } from 'node:fs'
import type { z } from 'zod'
import { isRecord, optionNames, takesFalse } from './config-schema.ts'
import type { ConfigProblem } from './errors.ts'
import type { DatabaseOptions } from './options.ts'

/** Every environment variable that sets an option. Those in {@link secretPaths} can also come from a file: `NAME_FILE`. */
const environmentVariables: Readonly<Record<string, string>> = {
  DATABASE_URL: 'postgres.url',
  DATABASE_DIRECT_URL: 'postgres.directUrl',
  DATABASE_REPLICA_URLS: 'postgres.replicas',
  DATABASE_REPLICA_MAX_LAG_MS: 'postgres.replicaReads.maxLagMs',
  DATABASE_REPLICA_CHECK_INTERVAL_MS: 'postgres.replicaReads.checkIntervalMs',
  DATABASE_REPLICA_WAIT_MS: 'postgres.replicaReads.waitMs',
  DATABASE_PASSWORD: 'postgres.password',
  DATABASE_SSL_MODE: 'postgres.ssl',
  DATABASE_APPLICATION_NAME: 'postgres.applicationName',
  DATABASE_CONNECT_TIMEOUT_MS: 'postgres.connectTimeoutMs',
  DATABASE_QUERY_TIMEOUT_MS: 'postgres.queryTimeoutMs',
  DATABASE_STATEMENT_TIMEOUT_MS: 'postgres.statementTimeoutMs',
  // Switches stand before what they switch: off is off, whatever else is set.
  DATABASE_PIPELINE: 'postgres.pipeline',
  DATABASE_PREPARED_STATEMENTS: 'postgres.preparedStatements',
  DATABASE_RETRY: 'postgres.retry',
  DATABASE_BREAKER: 'postgres.breaker',
  DATABASE_LISTENER_HEARTBEAT_MS: 'postgres.listenerHeartbeatMs',
  DATABASE_REPEATED_READS: 'postgres.repeatedReads',
  DATABASE_PIPELINE_CONNECTIONS: 'postgres.pipeline.connections',
  DATABASE_PIPELINE_DEPTH: 'postgres.pipeline.depth',
  DATABASE_PREPARE_THRESHOLD: 'postgres.preparedStatements.threshold',
  DATABASE_PREPARE_MAX: 'postgres.preparedStatements.max',
  DATABASE_RETRY_ATTEMPTS: 'postgres.retry.attempts',
  DATABASE_POOL_MAX: 'postgres.pool.max',
  DATABASE_POOL_MIN: 'postgres.pool.min',
  DATABASE_POOL_MAX_WAITING: 'postgres.pool.maxWaiting',
  DATABASE_POOL_LEAK_WARNING_MS: 'postgres.pool.leakWarningMs',
  DATABASE_POOL_ACQUIRE_TIMEOUT_MS: 'postgres.pool.acquireTimeoutMs',
  DATABASE_POOL_IDLE_TIMEOUT_MS: 'postgres.pool.idleTimeoutMs',
  DATABASE_POOL_MAX_LIFETIME_MS: 'postgres.pool.maxLifetimeMs',
  DATABASE_POOL_DRAIN_TIMEOUT_MS: 'postgres.pool.drainTimeoutMs',
  DATABASE_TYPES_INT8: 'postgres.types.int8',
  DATABASE_TYPES_NUMERIC: 'postgres.types.numeric',
  DATABASE_TYPES_DATE: 'postgres.types.date',
  DATABASE_EMBEDDED_DATA_DIR: 'postgres.embedded.dataDir',
  DATABASE_CURSOR_SECRET: 'cursorSecret',
  REDIS_URL: 'redis.url',
  REDIS_COMMAND_TIMEOUT_MS: 'redis.commandTimeoutMs',
  CACHE_NAMESPACE: 'cache.namespace',
  CACHE_TTL_MS: 'cache.ttlMs',
  CACHE_MAX_TTL_MS: 'cache.maxTtlMs',
  CACHE_CODEC: 'cache.codec',
  CACHE_COMPRESS_ABOVE_BYTES: 'cache.compressAboveBytes',
  CACHE_LEASE_MS: 'cache.leaseMs',
  CACHE_HOLD_MS: 'cache.holdMs',
  CACHE_HEARTBEAT_MS: 'cache.heartbeatMs',
  CACHE_MAX_QUEUED: 'cache.maxQueued',
  CACHE_QUERIES: 'cache.queries',
  CACHE_LISTEN: 'cache.listen',
  CACHE_MEMORY_MAX_ENTRIES: 'cache.memory.maxEntries',
  CACHE_MEMORY_MAX_BYTES: 'cache.memory.maxBytes',
  CACHE_MEMORY_VALUES: 'cache.memory.values',
  CACHE_MEMORY_TTL_MS: 'cache.memory.ttlMs',
  CACHE_MEMORY_TTL_WITHOUT_REDIS_MS: 'cache.memory.ttlWithoutRedisMs',
}

/** What is an object or `false`; from the environment it can only be switched off, or left on by `true`. */
const switchPaths: ReadonlySet<string> = new Set([
  'postgres.pipeline',
  'postgres.preparedStatements',
  'postgres.retry',
  'postgres.breaker',
])

const secretPaths: ReadonlySet<string> = new Set([
  'postgres.url',
  'postgres.directUrl',
  'postgres.replicas',
  'postgres.password',
  'redis.url',
  'cursorSecret',
])

/** From the environment, separated by spaces. */
const listPaths: ReadonlySet<string> = new Set(['postgres.replicas', 'cursorSecret'])

/** Settings that say which database; given in code, they replace all of these from the environment. */
const placePaths: ReadonlySet<string> = new Set([
  'postgres.url',
  'postgres.directUrl',
  'postgres.replicas',
  'postgres.password',
  'postgres.embedded.dataDir',
])

/** What came in: the options laid over the environment, and where each value is from. */
export interface Input {
  readonly values: Record<string, unknown>
  /** The name by which the user knows a setting: its variable if that gave the value, else its path. */
  keyOf(path: string): string
}

export function readInput(options: DatabaseOptions, env: NodeJS.ProcessEnv, problems: ConfigProblem[]): Input {
  const values = copyObjects(options) as Record<string, unknown>
  // It has a state of its own, and is called as its owner made it.
  if (isRecord(values) && 'logger' in values) values['logger'] = options.logger
  const origins = new Map<string, string>()
  const keyOf = (path: string): string => origins.get(path) ?? path
  if (!isRecord(values)) return { values, keyOf }

  const { postgres } = options
  const placeIsGiven = postgres?.url !== undefined || postgres?.embedded !== undefined
  const redisIsOff = options.redis === false
  if (redisIsOff) delete values['redis']

  for (const [name, path] of Object.entries(environmentVariables)) {
    if (placeIsGiven && placePaths.has(path)) continue
    if (redisIsOff && path.startsWith('redis.')) continue
    const value = secretPaths.has(path) ? readSecret(name, env, problems) : env[name]
    if (value === undefined || value === '') continue
    if (switchPaths.has(path) && value !== 'false') {
      if (value !== 'true') problems.push(notASwitch(name, value))
      continue
    }
    if (assignAbsent(values, path.split('.'), typedValue(path, value))) origins.set(path, name)
  }
  return { values, keyOf }
}

function typedValue(path: string, value: string): unknown {
  if (listPaths.has(path)) return value.trim().split(/\s+/)
  if (secretPaths.has(path)) return value
  if (value === 'false' && takesFalse(path)) return false
  return /^-?\d+$/.test(value) ? Number(value) : value
}

function notASwitch(name: string, value: string): ConfigProblem {
  return { key: name, expected: 'true or false', received: describeValue(value), remedy: `Correct or unset ${name}.` }
}

function readSecret(name: string, env: NodeJS.ProcessEnv, problems: ConfigProblem[]): string | undefined {
  const fileKey = `${name}_FILE`
  const file = env[fileKey]
  if (!file) return env[name]
  if (env[name]) {
    problems.push({
      key: fileKey,
      expected: `either ${name} or ${fileKey}`,
      received: 'both',
      remedy: 'Unset one of them.',
    })
    return undefined
  }
  try {
    return readFileSync(file, 'utf8').replace(/\r?\n$/, '')
  } catch (error) {
    const reason = (error as NodeJS.ErrnoException).code ?? 'unreadable'
    problems.push({
      key: fileKey,
      expected: 'a file that can be read',
      received: `${JSON.stringify(file)} (${reason})`,
      remedy: 'Put the secret at that path, or correct the path.',
    })
    return undefined
  }
}

export function describeIssue(issue: z.core.$ZodIssue, input: Input): ConfigProblem[] {
  if (issue.code === 'invalid_union') {
    // "False or this": what is wrong with it as "this" is what there is to say.
    return (issue.errors.at(-1) ?? []).flatMap((inner) =>
      describeIssue({ ...inner, path: [...issue.path, ...inner.path] }, input),
    )
  }
  const path = issue.path.join('.')
  if (issue.code === 'unrecognized_keys') return issue.keys.map((key) => unknownOption(path, key))
  const received = secretPaths.has(path.replace(/\.\d+$/, ''))
    ? 'a value that is not shown'
    : describeValue(valueAt(input.values, issue.path))
  return [{ key: input.keyOf(path) || 'options', expected: issue.message, received, remedy: remedyFor(path, input) }]
}

export function remedyFor(path: string, input: Input): string {
  const variable = Object.keys(environmentVariables).find((name) => environmentVariables[name] === path)
  const key = input.keyOf(path)
  if (variable === undefined) return 'Correct it in the call.'
  return key === variable
    ? `Correct or unset ${variable}.`
    : `Correct it in the call, or leave it out and set ${variable}.`
}

function unknownOption(path: string, key: string): ConfigProblem {
  const known = optionNames(path)
  const near = known.find(
    (name) => name.toLowerCase() === key.toLowerCase() || name.startsWith(key) || key.startsWith(name),
  )
  return {
    key: path ? `${path}.${key}` : key,
    expected: `one of ${known.join(', ')}`,
    received: 'an option that does not exist',
    remedy: near ? `Did you mean ${near}?` : 'Remove it.',
  }
}

export function describeValue(value: unknown): string {
  if (value === undefined) return 'nothing'
  if (typeof value === 'function') return 'a function'
  if (typeof value === 'object' && value !== null) return Array.isArray(value) ? 'a list' : 'an object'
  // A URL where an object belongs holds what a URL holds.
  if (typeof value === 'string' && value.includes('://')) return 'a URL, which is not shown'
  const shown = JSON.stringify(value) ?? typeof value
  return shown.length > 60 ? `${shown.slice(0, 57)}…` : shown
}

/** A copy of the plain objects, so that laying the environment below them changes nothing of the caller's. */
function copyObjects(value: unknown): unknown {
  if (!isRecord(value)) return value
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, copyObjects(inner)]))
}

function valueAt(root: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>((value, key) => (isRecord(value) ? value[String(key)] : undefined), root)
}

function assignAbsent(root: Record<string, unknown>, path: readonly string[], value: unknown): boolean {
  const [key, ...rest] = path
  if (key === undefined) return false
  if (rest.length === 0) {
    if (root[key] !== undefined) return false
    root[key] = value
    return true
  }
  root[key] ??= {}
  const inner = root[key]
  return isRecord(inner) && assignAbsent(inner, rest, value)
}
