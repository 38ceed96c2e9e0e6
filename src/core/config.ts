import { describeIssue, type Input, readInput, remedyFor } from './config-input.ts'
import { cursorSecretsIn, isRecord, type ParsedOptions, parseOptions } from './config-schema.ts'
import { ConfigError, type ConfigProblem } from './errors.ts'
import type {
  BreakerOptions,
  CacheOptions,
  DatabaseOptions,
  Environment,
  Logger,
  MemoryCacheOptions,
  PipelineOptions,
  PoolOptions,
  PostgresOptions,
  ReplicaReadOptions,
  RetryOptions,
} from './options.ts'
import {
  type PostgresTarget,
  resolveDirectTarget,
  resolveReplicas,
  resolveTarget,
  type ServerTarget,
} from './postgres-target.ts'
import { parseRedisUrl, type RedisLocation, redisUrlForms } from './redis-url.ts'
import { Secret } from './secret.ts'

/** Redis as it will be connected to. */
export interface RedisTarget extends Omit<RedisLocation, 'password' | 'sentinelPassword'> {
  readonly password: Secret<string> | undefined
  readonly sentinelPassword: Secret<string> | undefined
  readonly commandTimeoutMs: number
}

/** Options and environment, validated, completed and frozen. */
export interface ResolvedConfig {
  readonly environment: Environment
  readonly postgres: PostgresTarget
  /** The same database without a pooler in between. */
  readonly directPostgres: PostgresTarget
  readonly replicas: readonly ServerTarget[]
  readonly replicaReads: Complete<ReplicaReadOptions>
  readonly pool: Complete<PoolOptions>
  readonly queryTimeoutMs: number | false
  readonly listenerHeartbeatMs: number | false
  readonly repeatedReads: number | false
  /** `false` on the embedded PostgreSQL, which is one connection. */
  readonly pipeline: Complete<PipelineOptions> | false
  readonly preparedStatements: { readonly threshold: number | false; readonly max: number }
  readonly retry: Complete<RetryOptions> | false
  readonly breaker: Complete<BreakerOptions> | false
  readonly redis: RedisTarget | undefined
  readonly cache: CacheSettings
  readonly cursorSecret: Secret<readonly string[]> | undefined
  readonly logger: Logger
}

/** {@link CacheOptions}, completed. */
export interface CacheSettings extends Omit<Required<Defined<CacheOptions>>, 'memory'> {
  readonly memory: Required<Defined<MemoryCacheOptions>>
}

type Defined<Options> = { readonly [Key in keyof Options]: Exclude<Options[Key], undefined> }

type Complete<Options> = { readonly [Key in keyof Options]-?: number }

/**
 * Options and environment in, one validated, completed and frozen configuration out. Reports every problem at once as
 * a {@link ConfigError}; nothing that it says holds a credential.
 */
export function resolveConfig(options: DatabaseOptions = {}, env: NodeJS.ProcessEnv = process.env): ResolvedConfig {
  const problems: ConfigProblem[] = []
  const input = readInput(options, env, problems)
  const { valid, issues } = parseOptions(input.values)
  problems.push(...issues.flatMap((issue) => describeIssue(issue, input)))

  const environment = environmentOf(options, env)
  // Targets are looked at even when another setting is wrong, so that their problems are reported in the same breath.
  const postgres = valid.postgres ?? {}
  const target = resolveTarget(postgres, { environment, env, input, problems })
  const direct = resolveDirectTarget(postgres, target, { environment, env, input, problems })
  const replicas = resolveReplicas(postgres, target, { environment, env, input, problems })
  const redis = resolveRedis(valid.redis, input, problems)
  if (!target || !direct || problems.length > 0) throw new ConfigError(problems)

  return deepFreeze({
    environment,
    postgres: target,
    directPostgres: direct,
    replicas,
    replicaReads: {
      maxLagMs: postgres.replicaReads?.maxLagMs ?? 10_000,
      checkIntervalMs: postgres.replicaReads?.checkIntervalMs ?? 1_000,
      waitMs: postgres.replicaReads?.waitMs ?? 500,
    },
    pool: resolvePool(postgres.pool, environment, target.kind),
    listenerHeartbeatMs: postgres.listenerHeartbeatMs ?? 10_000,
    repeatedReads: postgres.repeatedReads ?? (environment === 'development' ? 10 : false),
    ...resolveEngine(postgres, target.kind),
    redis,
    cache: resolveCache(valid.cache),
    cursorSecret: resolveCursorSecret(valid.cursorSecret),
    logger: valid.logger ?? stderrLogger,
  })
}

function environmentOf(options: DatabaseOptions, env: NodeJS.ProcessEnv): Environment {
  const name = options?.environment ?? env['NODE_ENV'] ?? ''
  if (name === '' || name === 'development') return 'development'
  // Staging and whatever else a team calls its servers get the careful defaults.
  return name === 'test' ? 'test' : 'production'
}

function resolvePool(
  options: PostgresOptions['pool'],
  environment: Environment,
  kind: PostgresTarget['kind'],
): ResolvedConfig['pool'] {
  return {
    // The embedded PostgreSQL is a single session.
    max: kind === 'embedded' ? 1 : (options?.max ?? 20),
    min: options?.min ?? 0,
    maxWaiting: options?.maxWaiting ?? 1_000,
    acquireTimeoutMs: options?.acquireTimeoutMs ?? 5_000,
    idleTimeoutMs: options?.idleTimeoutMs ?? 30_000,
    maxLifetimeMs: options?.maxLifetimeMs ?? 1_800_000,
    drainTimeoutMs: options?.drainTimeoutMs ?? (environment === 'production' ? 10_000 : 2_000),
    leakWarningMs: options?.leakWarningMs ?? 60_000,
  }
}

type EngineParts = Pick<ResolvedConfig, 'breaker' | 'pipeline' | 'preparedStatements' | 'queryTimeoutMs' | 'retry'>

function resolveEngine(options: PostgresOptions, kind: PostgresTarget['kind']): EngineParts {
  const { pipeline, preparedStatements, retry, breaker } = options
  return {
    queryTimeoutMs: options.queryTimeoutMs ?? 30_000,
    pipeline:
      pipeline === false || kind === 'embedded'
        ? false
        : { connections: pipeline?.connections ?? 2, depth: pipeline?.depth ?? 128 },
    preparedStatements:
      preparedStatements === false
        ? { threshold: false, max: 0 }
        : { threshold: preparedStatements?.threshold ?? 3, max: preparedStatements?.max ?? 256 },
    retry: retry !== false && {
      attempts: retry?.attempts ?? 3,
      baseDelayMs: retry?.baseDelayMs ?? 25,
      maxDelayMs: retry?.maxDelayMs ?? 1_000,
    },
    breaker: breaker !== false && {
      errorThresholdPercentage: breaker?.errorThresholdPercentage ?? 50,
      volumeThreshold: breaker?.volumeThreshold ?? 10,
      windowMs: breaker?.windowMs ?? 10_000,
      resetTimeoutMs: breaker?.resetTimeoutMs ?? 1_000,
    },
  }
}

function resolveCache(options: ParsedOptions['cache'] = {}): CacheSettings {
  const { memory = {} } = options
  const maxTtlMs = options.maxTtlMs ?? 86_400_000
  return {
    namespace: options.namespace ?? 'kanta',
    ttlMs: Math.min(options.ttlMs ?? 60_000, maxTtlMs),
    maxTtlMs,
    codec: options.codec ?? 'msgpack',
    compressAboveBytes: options.compressAboveBytes ?? 4_096,
    leaseMs: options.leaseMs ?? 10_000,
    holdMs: options.holdMs ?? false,
    heartbeatMs: options.heartbeatMs ?? 1_000,
    maxQueued: options.maxQueued ?? 10_000,
    queries: options.queries ?? true,
    listen: options.listen ?? false,
    memory: {
      maxEntries: memory.maxEntries ?? 10_000,
      maxBytes: memory.maxBytes ?? 67_108_864,
      values: memory.values ?? 'freeze',
      ttlMs: memory.ttlMs ?? 60_000,
      ttlWithoutRedisMs: memory.ttlWithoutRedisMs ?? 1_000,
    },
  }
}

function resolveRedis(
  options: ParsedOptions['redis'],
  input: Input,
  problems: ConfigProblem[],
): RedisTarget | undefined {
  if (options?.url === undefined) return undefined
  const location = parseRedisUrl(options.url)
  if (location === undefined) {
    problems.push({
      key: input.keyOf('redis.url'),
      expected: redisUrlForms,
      received: 'a value that is not shown',
      remedy: remedyFor('redis.url', input),
    })
    return undefined
  }
  return {
    ...location,
    password: secret(location.password),
    sentinelPassword: secret(location.sentinelPassword),
    commandTimeoutMs: options.commandTimeoutMs ?? 500,
  }
}

function resolveCursorSecret(given: ParsedOptions['cursorSecret']): ResolvedConfig['cursorSecret'] {
  const secrets = given === undefined ? undefined : cursorSecretsIn(given)
  return secrets && new Secret(secrets)
}

function secret(value: string | undefined): Secret<string> | undefined {
  return value === undefined ? undefined : new Secret(value)
}

const stderrLogger: Logger = {
  info: (message) => void process.stderr.write(`kanta: ${message}\n`),
  warn: (message) => void process.stderr.write(`kanta: warning: ${message}\n`),
}

function deepFreeze<T extends object>(value: T): T {
  for (const [key, inner] of Object.entries(value))
    if ((isRecord(inner) || Array.isArray(inner)) && key !== 'logger') deepFreeze(inner)
  return Object.freeze(value)
}
