import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { inspect } from 'node:util'
import { afterAll, expect, test } from 'vitest'
import { resolveConfig } from '../../../src/core/config.ts'
import type { DatabaseOptions } from '../../../src/core/options.ts'
import { describeTarget, type ServerTarget } from '../../../src/core/postgres-target.ts'
import { ConfigError } from '../../../src/core/errors.ts'

const folder = mkdtempSync(join(tmpdir(), 'kanta-config-'))
afterAll(() => rmSync(folder, { recursive: true }))

function problemsOf(options: unknown, env: NodeJS.ProcessEnv = {}): ConfigError['problems'] {
  try {
    resolveConfig(options as DatabaseOptions, env)
  } catch (error) {
    if (error instanceof ConfigError) return error.problems
    throw error
  }
  throw new Error('the configuration was accepted')
}

function serverOf(options: DatabaseOptions, env: NodeJS.ProcessEnv = {}): ServerTarget {
  const { postgres } = resolveConfig(options, env)
  if (postgres.kind !== 'server') throw new Error('not a server')
  return postgres
}

test('nothing configured means the embedded PostgreSQL with its data kept', () => {
  expect(resolveConfig({}, {})).toMatchObject({
    environment: 'development',
    postgres: { kind: 'embedded', dataDir: '.kanta/postgres' },
    pool: { max: 1 },
    redis: undefined,
  })
})

test('under NODE_ENV=test the embedded PostgreSQL keeps nothing', () => {
  expect(resolveConfig({}, { NODE_ENV: 'test' }).postgres).toEqual({ kind: 'embedded', dataDir: 'memory' })
})

test.each(['production', 'staging'])('NODE_ENV=%s refuses to start without a URL, or embedded on request', (name) => {
  expect(problemsOf({}, { NODE_ENV: name })).toMatchObject([{ key: 'DATABASE_URL', received: 'nothing' }])
  expect(problemsOf({ postgres: { embedded: {} } }, { NODE_ENV: name })).toHaveLength(1)
})

test('every part of a URL is understood', () => {
  const url = 'postgres://ap%40p:p%2Fw@db.example.org:6432/sh%20op?sslmode=no-verify&application_name=api'
  const target = serverOf({ postgres: { url } })
  expect(target).toMatchObject({
    hosts: [{ host: 'db.example.org', port: 6432 }],
    user: 'ap@p',
    database: 'sh op',
    ssl: 'no-verify',
    applicationName: 'api',
  })
  expect(target.password?.reveal()).toBe('p/w')
})

test('a socket folder and an IPv6 address are hosts', () => {
  expect(serverOf({ postgres: { url: 'postgres://u@/shop?host=/run/postgresql' } }).hosts).toEqual([
    { host: '/run/postgresql', port: 5432 },
  ])
  const v6 = serverOf({ postgres: { url: 'postgres://u@[::1]:5433/shop' } })
  expect(v6.hosts).toEqual([{ host: '::1', port: 5433 }])
  expect(describeTarget(v6)).toBe('postgres://u@[::1]:5433/shop')
})

test('in production a server elsewhere is only trusted with a verified certificate', () => {
  const env = { NODE_ENV: 'production' }
  expect(serverOf({ postgres: { url: 'postgres://u@db.example.org/shop' } }, env).ssl).toBe('verify-full')
  expect(serverOf({ postgres: { url: 'postgres://u@127.0.0.1/shop' } }, env).ssl).toBe('disable')
  expect(serverOf({ postgres: { url: 'postgres://u@db.example.org/shop', ssl: 'disable' } }, env).ssl).toBe('disable')
})

test.each(['require', 'prefer', 'allow', 'verify-ca'])('sslmode=%s is refused and the safe mode named', (mode) => {
  const [problem] = problemsOf({ postgres: { url: `postgres://u@h/d?sslmode=${mode}` } })
  expect(problem).toMatchObject({ received: `"${mode}"`, remedy: expect.stringContaining('verify-full') })
})

test('an option wins over its variable, a variable over the default', () => {
  const env = { DATABASE_POOL_MAX: '7', DATABASE_POOL_IDLE_TIMEOUT_MS: '1234', DATABASE_URL: 'postgres://u@h/d' }
  expect(resolveConfig({ postgres: { pool: { max: 3 } } }, env).pool).toMatchObject({ max: 3, idleTimeoutMs: 1234 })
  expect(resolveConfig({}, env).pool).toMatchObject({ max: 7, acquireTimeoutMs: 5000 })
})

test('a place given in code replaces all that the environment says of the place', () => {
  const env = {
    DATABASE_URL: 'postgres://env@env/env',
    DATABASE_PASSWORD: 'env',
    DATABASE_DIRECT_URL: 'postgres://env@direct/env',
  }
  const config = resolveConfig({ postgres: { url: 'postgres://u@h/d' } }, env)
  expect(config.postgres).toMatchObject({ hosts: [{ host: 'h' }], password: undefined })
  expect(config.directPostgres).toMatchObject({ hosts: [{ host: 'h' }] })
  expect(resolveConfig({ postgres: { embedded: { dataDir: 'memory' } } }, env).postgres.kind).toBe('embedded')
})

test('a direct URL is for migrations only', () => {
  const env = { DATABASE_URL: 'postgres://u@pooler/d', DATABASE_DIRECT_URL: 'postgres://u@server/d' }
  const config = resolveConfig({}, env)
  expect(config.postgres).toMatchObject({ hosts: [{ host: 'pooler' }] })
  expect(config.directPostgres).toMatchObject({ hosts: [{ host: 'server' }] })
})

test("libpq's variables are the last resort", () => {
  const env = { PGHOST: 'h', PGPORT: '5433', PGUSER: 'u', PGPASSWORD: 'p', PGSSLMODE: 'disable' }
  expect(serverOf({}, env)).toMatchObject({
    hosts: [{ host: 'h', port: 5433 }],
    user: 'u',
    database: 'u',
    ssl: 'disable',
  })
  expect(serverOf({}, { ...env, DATABASE_URL: 'postgres://x@y/z' })).toMatchObject({ hosts: [{ host: 'y' }] })
  expect(problemsOf({}, { ...env, PGPORT: 'many' })).toMatchObject([{ key: 'PGPORT', received: '"many"' }])
})

test('a secret can come from a file, whose last line end is not part of it', () => {
  const file = join(folder, 'url')
  writeFileSync(file, 'postgres://u:from-file@h/d\n')
  expect(serverOf({}, { DATABASE_URL_FILE: file }).password?.reveal()).toBe('from-file')
  expect(problemsOf({}, { DATABASE_URL_FILE: file, DATABASE_URL: 'postgres://u@h/d' })).toMatchObject([
    { key: 'DATABASE_URL_FILE', received: 'both' },
  ])
})

test('a missing secret file is named with its reason', () => {
  const file = join(folder, 'missing')
  expect(problemsOf({}, { DATABASE_URL_FILE: file })).toMatchObject([
    { key: 'DATABASE_URL_FILE', received: `${JSON.stringify(file)} (ENOENT)` },
  ])
})

test('all problems are reported at once, each by the name the user gave it', () => {
  const keys = problemsOf(
    { postgres: { url: 'mysql://u:p@h/d', pool: { max: 0, maxx: 3 } }, redis: { url: 'http://x' }, colour: 'red' },
    { DATABASE_POOL_IDLE_TIMEOUT_MS: 'soon' },
  ).map((problem) => problem.key)
  expect(keys.toSorted()).toEqual(
    [
      'postgres.url',
      'postgres.pool.max',
      'postgres.pool.maxx',
      'redis.url',
      'colour',
      'DATABASE_POOL_IDLE_TIMEOUT_MS',
    ].toSorted(),
  )
})

test('a problem of the redis URL is reported without the value', () => {
  expect(problemsOf({ redis: { url: 'http://:hunter2@x' } })).toMatchObject([
    { key: 'redis.url', received: 'a value that is not shown' },
  ])
})

test('an unknown option names those that exist, and the near one', () => {
  const [problem] = problemsOf({ postgres: { pool: { Max: 3 } } })
  expect(problem).toMatchObject({ key: 'postgres.pool.Max', remedy: 'Did you mean max?' })
  expect(problem?.expected).toContain('acquireTimeoutMs')
})

test.each([
  [{ postgres: { pool: { max: 1.5 } } }, 'postgres.pool.max'],
  [{ postgres: { pool: { max: Number.NaN } } }, 'postgres.pool.max'],
  [{ postgres: { connectTimeoutMs: 2 ** 31 } }, 'postgres.connectTimeoutMs'],
  [{ postgres: { pool: { acquireTimeoutMs: -1 } } }, 'postgres.pool.acquireTimeoutMs'],
  [{ postgres: [] }, 'postgres'],
  [{ logger: {} }, 'logger'],
  [{ postgres: { embedded: {}, url: 'postgres://u@h/d' } }, 'postgres'],
  [7, 'options'],
])('%j is refused by its key', (options, key) => {
  expect(problemsOf(options).map((problem) => problem.key)).toContain(key)
})

test.each([
  'postgres://app:hunter2@db.example.org/shop?sslmode=require',
  'postgres://app:hunter2@db.example.org',
  'mysql://app:hunter2@db.example.org/shop',
  'postgres://app:hunter2/x@db.example.org:port/shop',
  'app:hunter2@db.example.org',
])('no message, inspection or JSON shows the password of %s', (url) => {
  for (const env of [{ DATABASE_URL: url }, { DATABASE_DIRECT_URL: url }, { REDIS_URL: url }]) {
    expect(shown(() => resolveConfig({}, env))).not.toContain('hunter2')
  }
})

/** Everything that printing the outcome of a call could show. */
function shown(call: () => unknown): string {
  let outcome: unknown
  try {
    outcome = call()
  } catch (error) {
    outcome = error
  }
  return inspect(outcome, { depth: null, showHidden: true }) + JSON.stringify(outcome)
}

test('a valid configuration is frozen to its depth and shows no secret', () => {
  const config = resolveConfig({ postgres: { url: 'postgres://u:hunter2@h/d' } }, {})
  expect(Object.isFrozen(config) && Object.isFrozen(config.postgres) && Object.isFrozen(config.pool)).toBe(true)
  expect(inspect(config, { depth: null, showHidden: true }) + JSON.stringify(config)).not.toContain('hunter2')
})

test('the options of the caller stay as they were', () => {
  const options = { postgres: { url: 'postgres://u@h/d' } }
  resolveConfig(options, { DATABASE_POOL_MAX: '7' })
  expect(options).toEqual({ postgres: { url: 'postgres://u@h/d' } })
})

const server = 'postgres://u@h/d'

test('statements are piped, prepared, repeated and broken off by default', () => {
  expect(resolveConfig({ postgres: { url: server } }, {})).toMatchObject({
    queryTimeoutMs: 30_000,
    pipeline: { connections: 2, depth: 128 },
    preparedStatements: { threshold: 3, max: 256 },
    retry: { attempts: 3, baseDelayMs: 25, maxDelayMs: 1_000 },
    breaker: { errorThresholdPercentage: 50, volumeThreshold: 10, windowMs: 10_000, resetTimeoutMs: 1_000 },
  })
})

test('false switches each of them off', () => {
  const off = {
    pipeline: false,
    preparedStatements: false,
    retry: false,
    breaker: false,
    queryTimeoutMs: false,
  } as const
  expect(resolveConfig({ postgres: { url: server, ...off } }, {})).toMatchObject({
    queryTimeoutMs: false,
    pipeline: false,
    preparedStatements: { threshold: false, max: 0 },
    retry: false,
    breaker: false,
  })
})

test('a part of an object leaves the other defaults in place', () => {
  const some = {
    pipeline: { depth: 8 },
    preparedStatements: { max: 9 },
    retry: { attempts: 1 },
    breaker: { windowMs: 7 },
  }
  expect(resolveConfig({ postgres: { url: server, ...some } }, {})).toMatchObject({
    pipeline: { connections: 2, depth: 8 },
    preparedStatements: { threshold: 3, max: 9 },
    retry: { attempts: 1, baseDelayMs: 25, maxDelayMs: 1_000 },
    breaker: { errorThresholdPercentage: 50, volumeThreshold: 10, windowMs: 7, resetTimeoutMs: 1_000 },
  })
})

test('the embedded PostgreSQL is one connection and shares none', () => {
  expect(resolveConfig({ postgres: { embedded: { dataDir: 'memory' }, pipeline: { depth: 8 } } }, {}).pipeline).toBe(
    false,
  )
})

const engineVariables = {
  DATABASE_URL: server,
  DATABASE_QUERY_TIMEOUT_MS: '1500',
  DATABASE_PIPELINE_CONNECTIONS: '4',
  DATABASE_PIPELINE_DEPTH: '16',
  DATABASE_PREPARE_THRESHOLD: '1',
  DATABASE_PREPARE_MAX: '32',
  DATABASE_RETRY_ATTEMPTS: '5',
  DATABASE_POOL_MAX_WAITING: '0',
  DATABASE_POOL_LEAK_WARNING_MS: '0',
}

test('the engine can be set from the environment', () => {
  expect(resolveConfig({}, engineVariables)).toMatchObject({
    queryTimeoutMs: 1_500,
    pipeline: { connections: 4, depth: 16 },
    preparedStatements: { threshold: 1, max: 32 },
    retry: { attempts: 5, baseDelayMs: 25 },
    pool: { maxWaiting: 0, leakWarningMs: 0 },
  })
})

test('what is switched off in code stays off whatever the environment says', () => {
  const off = { pipeline: false, preparedStatements: false, retry: false, queryTimeoutMs: false } as const
  expect(resolveConfig({ postgres: off }, engineVariables)).toMatchObject({
    queryTimeoutMs: false,
    pipeline: false,
    preparedStatements: { threshold: false },
    retry: false,
  })
})

test('an object in code and the environment complete each other', () => {
  const { pipeline } = resolveConfig({ postgres: { pipeline: { depth: 8 } } }, engineVariables)
  expect(pipeline).toEqual({ connections: 4, depth: 8 })
})

const wholeMs = (min: number): string => `a whole number of milliseconds from ${min} to 2147483647`

test.each([
  ['queryTimeoutMs', 0, wholeMs(1), '0'],
  ['queryTimeoutMs', '1s', wholeMs(1), '"1s"'],
  ['queryTimeoutMs', true, wholeMs(1), 'true'],
  ['queryTimeoutMs', null, wholeMs(1), 'null'],
  ['pipeline', true, 'an object or false', 'true'],
  ['pipeline', 4, 'an object or false', '4'],
  ['pipeline.connections', 0, 'a whole number from 1 to 64', '0'],
  ['pipeline.connections', 65, 'a whole number from 1 to 64', '65'],
  ['pipeline.depth', 1.5, 'a whole number from 1 to 10000', '1.5'],
  ['preparedStatements', 'off', 'an object or false', '"off"'],
  ['preparedStatements.threshold', 0, 'a whole number from 1 to 1000000', '0'],
  ['preparedStatements.threshold', false, 'a whole number from 1 to 1000000', 'false'],
  ['preparedStatements.max', '256', 'a whole number from 1 to 100000', '"256"'],
  ['retry', [], 'an object or false', 'a list'],
  ['retry.attempts', 0, 'a whole number from 1 to 100', '0'],
  ['retry.baseDelayMs', -1, wholeMs(0), '-1'],
  ['retry.maxDelayMs', 2 ** 31, wholeMs(0), '2147483648'],
  ['breaker', null, 'an object or false', 'null'],
  ['breaker.errorThresholdPercentage', 101, 'a whole number from 1 to 100', '101'],
  ['breaker.volumeThreshold', 0, 'a whole number from 1 to 1000000', '0'],
  ['breaker.windowMs', 0, wholeMs(1), '0'],
  ['breaker.resetTimeoutMs', {}, wholeMs(1), 'an object'],
])('postgres.%s: %j is refused with what is expected', (path, value, expected, received) => {
  const [name = '', inner] = path.split('.')
  const options = { postgres: { url: server, [name]: inner === undefined ? value : { [inner]: value } } }
  expect(problemsOf(options)).toEqual([
    { key: `postgres.${path}`, expected, received, remedy: expect.stringContaining('Correct it in the call') },
  ])
})

test.each([
  ['pipeline', 'depths', 'connections, depth', 'Did you mean depth?'],
  ['preparedStatements', 'Max', 'threshold, max', 'Did you mean max?'],
  ['retry', 'jitter', 'attempts, baseDelayMs, maxDelayMs', 'Remove it.'],
  [
    'breaker',
    'window',
    'errorThresholdPercentage, volumeThreshold, windowMs, resetTimeoutMs',
    'Did you mean windowMs?',
  ],
])('an unknown option in %s is named with those that exist', (name, unknown, known, remedy) => {
  expect(problemsOf({ postgres: { url: server, [name]: { [unknown]: 1 } } })).toEqual([
    {
      key: `postgres.${name}.${unknown}`,
      expected: `one of ${known}`,
      received: 'an option that does not exist',
      remedy,
    },
  ])
})

test('all that is wrong inside one of them is reported at once', () => {
  const wrong = {
    url: server,
    pipeline: { connections: 'many', depth: 'deep', width: 1 },
    retry: { attempts: 0, maxDelayMs: 'long' },
    breaker: { windowMs: 0, resetTimeoutMs: 0 },
  }
  expect(
    problemsOf({ postgres: wrong })
      .map((problem) => problem.key)
      .toSorted(),
  ).toEqual([
    'postgres.breaker.resetTimeoutMs',
    'postgres.breaker.windowMs',
    'postgres.pipeline.connections',
    'postgres.pipeline.depth',
    'postgres.pipeline.width',
    'postgres.retry.attempts',
    'postgres.retry.maxDelayMs',
  ])
})

test.each([
  ['DATABASE_QUERY_TIMEOUT_MS', 'soon', wholeMs(1)],
  ['DATABASE_PIPELINE_CONNECTIONS', '0', 'a whole number from 1 to 64'],
  ['DATABASE_PIPELINE_DEPTH', '1.5', 'a whole number from 1 to 10000'],
  ['DATABASE_PREPARE_THRESHOLD', 'never', 'a whole number from 1 to 1000000'],
  ['DATABASE_PREPARE_MAX', '-1', 'a whole number from 1 to 100000'],
  ['DATABASE_RETRY_ATTEMPTS', '101', 'a whole number from 1 to 100'],
])('%s=%s is refused by its name, with what is expected', (name, value, expected) => {
  expect(problemsOf({}, { [name]: value })).toMatchObject([
    { key: name, expected, remedy: `Correct or unset ${name}.` },
  ])
})

test.each([
  ['postgres://app:hunter2@db.example.org/shop'],
  [{ postgres: 'postgres://app:hunter2@db.example.org/shop' }],
  [{ redis: 'redis://:hunter2@db.example.org' }],
])('a URL in the place of an object is refused without being shown', (options) => {
  expect(shown(() => resolveConfig(options as DatabaseOptions, {}))).toMatch(/expected an object(?![^]*hunter2)/)
})

test('a URL in code counts for more than the environment, and less than an option', () => {
  const env = { DATABASE_SSL_MODE: 'disable', DATABASE_APPLICATION_NAME: 'env' }
  const url = 'postgres://u@h/d?sslmode=verify-full&application_name=url'
  expect(serverOf({ postgres: { url } }, env)).toMatchObject({ ssl: 'verify-full', applicationName: 'url' })
  expect(serverOf({ postgres: { url, ssl: 'no-verify' } }, env)).toMatchObject({ ssl: 'no-verify' })
  expect(serverOf({}, { ...env, DATABASE_URL: url })).toMatchObject({ ssl: 'disable', applicationName: 'env' })
})

test('a logger with a state of its own stays as it is', () => {
  const logger = {
    count: 0,
    info(): void {
      this.count += 1
    },
    warn(): void {},
  }
  const config = resolveConfig({ logger }, {})
  config.logger.info('x')
  expect(logger.count).toBe(1)
  expect(problemsOf({ logger: { info: 1, warn: 2 } })).toMatchObject([{ key: 'logger' }])
})

test('one URL can name several hosts, as libpq has it', () => {
  const url = 'postgres://u:p@one:5433,[::1]:5434,three/shop?application_name=api'
  const target = serverOf({ postgres: { url } })
  expect(target).toMatchObject({
    hosts: [
      { host: 'one', port: 5433 },
      { host: '::1', port: 5434 },
      { host: 'three', port: 5432 },
    ],
    mustBeWritable: true,
    database: 'shop',
    applicationName: 'api',
  })
  expect(describeTarget(target)).toBe('postgres://u@one:5433,[::1]:5434,three:5432/shop')
  const unchosen = { url: 'postgres://u@one,two/shop?target_session_attrs=any' }
  expect(serverOf({ postgres: unchosen }).mustBeWritable).toBe(false)
  expect(serverOf({ postgres: { url: 'postgres://u@one/shop' } }).mustBeWritable).toBe(false)
})

test.each([
  'postgres://u@one,/shop',
  'postgres://u@one,two:port/shop',
  'postgres://u@one,v@two/shop',
  'postgres://u@one,two/shop?target_session_attrs=standby',
])('a list of hosts that is none is refused: %s', (url) => {
  expect(problemsOf({ postgres: { url } })[0]).toMatchObject({ key: 'postgres.url' })
})

test('one server that is not local makes all of them servers to verify', () => {
  const url = 'postgres://u@127.0.0.1,db.example.org/shop'
  expect(serverOf({ postgres: { url } }, { NODE_ENV: 'production' }).ssl).toBe('verify-full')
})

test('replicas come from the call or the environment, one for each host, with the settings of the primary', () => {
  const env = {
    DATABASE_URL: 'postgres://u@one/shop',
    DATABASE_REPLICA_URLS: ' postgres://u@two:5433,three/shop  postgres://u@four/shop ',
    DATABASE_REPLICA_MAX_LAG_MS: '2000',
    DATABASE_PASSWORD: 'secret',
    DATABASE_APPLICATION_NAME: 'api',
  }
  const { replicas, replicaReads } = resolveConfig({}, env)
  expect(replicas.map(({ hosts }) => hosts)).toEqual([
    [{ host: 'two', port: 5433 }],
    [{ host: 'three', port: 5432 }],
    [{ host: 'four', port: 5432 }],
  ])
  for (const replica of replicas) {
    expect(replica).toMatchObject({ applicationName: 'api', mustBeWritable: false })
    expect(replica.password?.reveal()).toBe('secret')
  }
  expect(replicaReads).toEqual({ maxLagMs: 2000, checkIntervalMs: 1000, waitMs: 500 })
  expect(resolveConfig({ postgres: { url: 'postgres://u@one/shop' } }, env).replicas).toEqual([])
  expect(resolveConfig({ postgres: { replicas: [] } }, env).replicas).toEqual([])
})

test('a wrong replica is reported without what it holds', () => {
  const url = 'postgres://u@one/shop'
  const wrong = problemsOf({ postgres: { url, replicas: ['mysql://u:secret@two/shop'] } })
  expect(wrong).toMatchObject([{ key: 'postgres.replicas', received: 'a value that is not shown' }])
  expect(JSON.stringify(wrong)).not.toContain('secret')
  const list = problemsOf({ postgres: { url, replicas: 'postgres://u:secret@two/shop' as never } })
  expect(list).toMatchObject([{ key: 'postgres.replicas', expected: 'a list of postgres:// URLs' }])
  expect(JSON.stringify(list)).not.toContain('secret')
  const embedded = problemsOf({ postgres: { embedded: { dataDir: 'memory' }, replicas: ['postgres://u@two/shop'] } })
  expect(embedded).toMatchObject([{ key: 'postgres.replicas' }])
})

test('what `false` switches off in code, the word false switches off in the environment', () => {
  expect(
    resolveConfig({}, { DATABASE_URL: 'postgres://u@h/d', DATABASE_QUERY_TIMEOUT_MS: 'false' }).queryTimeoutMs,
  ).toBe(false)
  const off = {
    DATABASE_URL: 'postgres://u@h/d',
    DATABASE_PIPELINE: 'false',
    DATABASE_PIPELINE_DEPTH: '7',
    DATABASE_PREPARED_STATEMENTS: 'false',
    DATABASE_RETRY: 'false',
    DATABASE_BREAKER: 'false',
  }
  expect(resolveConfig({}, off)).toMatchObject({
    pipeline: false,
    preparedStatements: { threshold: false },
    retry: false,
    breaker: false,
  })
  expect(resolveConfig({ postgres: { retry: { attempts: 2 } } }, off).retry).toMatchObject({ attempts: 2 })
  expect(resolveConfig({}, { DATABASE_URL: 'postgres://u@h/d', DATABASE_RETRY: 'true' }).retry).toMatchObject({
    attempts: 3,
  })
})

test('a switch takes true and false alone, and false is a name where a name belongs', () => {
  expect(problemsOf({}, { DATABASE_PIPELINE: 'off' })).toEqual([
    {
      key: 'DATABASE_PIPELINE',
      expected: 'true or false',
      received: '"off"',
      remedy: 'Correct or unset DATABASE_PIPELINE.',
    },
  ])
  expect(problemsOf({}, { DATABASE_POOL_MAX: 'false' })).toMatchObject([{ key: 'DATABASE_POOL_MAX' }])
  const env = { DATABASE_URL: 'postgres://u@h/d', DATABASE_APPLICATION_NAME: 'false' }
  expect(serverOf({}, env).applicationName).toBe('false')
})

test('as what values are read is set in code or by variables, and wrong words are refused by name', () => {
  const url = 'postgres://u@h/d'
  expect(serverOf({ postgres: { url } }).types).toBeUndefined()
  const env = { DATABASE_TYPES_INT8: 'bigint', DATABASE_TYPES_DATE: 'string' }
  expect(serverOf({ postgres: { url, types: { int8: 'number' } } }, env).types).toEqual({
    int8: 'number',
    date: 'string',
  })
  expect(resolveConfig({}, { ...env, NODE_ENV: 'test' }).postgres).toMatchObject({ types: { int8: 'bigint' } })
  expect(
    problemsOf({ postgres: { types: { numeric: 'bigint', uuid: 'string' } } }, { DATABASE_TYPES_INT8: '8' }),
  ).toEqual(
    expect.arrayContaining([
      expect.objectContaining({ key: 'postgres.types.numeric', expected: 'number or string' }),
      expect.objectContaining({ key: 'DATABASE_TYPES_INT8', expected: 'bigint, number or string' }),
      expect.objectContaining({ key: 'postgres.types.uuid', expected: 'one of int8, numeric, date' }),
    ]),
  )
})

test('the heartbeat of the listener has a default, a variable, and can be switched off', () => {
  expect(resolveConfig({}, {}).listenerHeartbeatMs).toBe(10_000)
  expect(resolveConfig({}, { DATABASE_LISTENER_HEARTBEAT_MS: '250' }).listenerHeartbeatMs).toBe(250)
  expect(resolveConfig({ postgres: { listenerHeartbeatMs: false } }, {}).listenerHeartbeatMs).toBe(false)
  expect(problemsOf({ postgres: { listenerHeartbeatMs: 0 } })).toMatchObject([
    { key: 'postgres.listenerHeartbeatMs', received: '0' },
  ])
})
