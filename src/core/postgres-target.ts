import { readFileSync } from 'node:fs'
import { describeValue, type Input } from './config-input.ts'
import { sslModeExpected, sslModes } from './config-schema.ts'
import type { ConfigProblem } from './errors.ts'
import type { Environment, PostgresOptions, SslMode, ValueTypes } from './options.ts'
import { Secret } from './secret.ts'
import { isWhole } from './whole-number.ts'

/** Where a server listens. */
export interface ServerAddress {
  /** A host name, an address, or the folder of a Unix socket. */
  readonly host: string
  readonly port: number
}

/** A PostgreSQL server as it will be connected to. */
export interface ServerTarget {
  readonly kind: 'server'
  /** At least one. */
  readonly hosts: readonly ServerAddress[]
  /** Whether only one that accepts writes will do. */
  readonly mustBeWritable: boolean
  readonly user: string
  readonly password: Secret<string | (() => string | Promise<string>)> | undefined
  readonly database: string
  readonly ssl: SslMode
  readonly sslCa: string | undefined
  readonly applicationName: string
  readonly connectTimeoutMs: number
  readonly statementTimeoutMs: number | undefined
  readonly types?: ValueTypes | undefined
}

/** The embedded PostgreSQL. */
export interface EmbeddedTarget {
  readonly kind: 'embedded'
  readonly dataDir: string
  readonly types?: ValueTypes | undefined
}

/** Which PostgreSQL is used. */
export type PostgresTarget = ServerTarget | EmbeddedTarget

export interface TargetContext {
  readonly environment: Environment
  readonly env: NodeJS.ProcessEnv
  readonly input: Input
  readonly problems: ConfigProblem[]
}

export function resolveTarget(options: PostgresOptions, context: TargetContext): PostgresTarget | undefined {
  const { environment, env, problems } = context
  if (
    options.url !== undefined &&
    options.embedded !== undefined &&
    context.input.keyOf('postgres.url') === 'postgres.url'
  ) {
    problems.push({
      key: 'postgres',
      expected: 'either url or embedded',
      received: 'both',
      remedy: 'Leave one of them out.',
    })
    return undefined
  }
  if (options.url !== undefined) return resolveUrl('postgres.url', options.url, options, context)
  if (
    options.embedded === undefined ||
    context.input.keyOf('postgres.embedded.dataDir') === 'DATABASE_EMBEDDED_DATA_DIR'
  ) {
    if (env['PGHOST']) return resolveLibpq(options, context)
  }
  if (environment === 'production') {
    problems.push({
      key: 'DATABASE_URL',
      expected: 'a postgres:// URL',
      received: options.embedded ? 'the embedded PostgreSQL' : 'nothing',
      remedy:
        'Set DATABASE_URL. The embedded PostgreSQL is for development only, and NODE_ENV is not development or test.',
    })
    return undefined
  }
  return {
    kind: 'embedded',
    dataDir: options.embedded?.dataDir ?? (environment === 'test' ? 'memory' : '.kanta/postgres'),
    ...(options.types && { types: options.types }),
  }
}

export function resolveDirectTarget(
  options: PostgresOptions,
  target: PostgresTarget | undefined,
  context: TargetContext,
): PostgresTarget | undefined {
  if (options.directUrl === undefined) return target
  return resolveUrl('postgres.directUrl', options.directUrl, options, context)
}

/** Each host is a replica of its own, whatever its role is now: roles change. */
export function resolveReplicas(
  options: PostgresOptions,
  target: PostgresTarget | undefined,
  context: TargetContext,
): readonly ServerTarget[] {
  const { replicas = [] } = options
  if (replicas.length > 0 && target?.kind === 'embedded') {
    context.problems.push({
      key: context.input.keyOf('postgres.replicas'),
      expected: 'no replicas beside the embedded PostgreSQL',
      received: `${replicas.length}`,
      remedy: 'Set the URL of the primary as well, or remove the replicas.',
    })
    return []
  }
  return replicas.flatMap((url) => {
    const replica = resolveUrl('postgres.replicas', url, options, context)
    return (replica?.hosts ?? []).map((host) => ({
      ...(replica as ServerTarget),
      hosts: [host],
      mustBeWritable: false,
    }))
  })
}

const urlParameters = ['sslmode', 'sslrootcert', 'application_name', 'host', 'target_session_attrs']
const sessionAttributes = ['any', 'read-write']

function resolveUrl(
  path: string,
  value: string,
  options: PostgresOptions,
  context: TargetContext,
): ServerTarget | undefined {
  const { input, problems } = context
  const before = problems.length
  const wrong = (expected: string, received: string, remedy: string): void => {
    problems.push({ key: input.keyOf(path), expected, received, remedy })
  }
  const { first, others } = splitHosts(value)
  // libpq allows no host between @ and /, WHATWG does not.
  const url = URL.parse(first.replace(/^(postgres(?:ql)?:\/\/[^/?#]*@)(?=\/)/, '$1-'))
  if (!url || !/^postgres(ql)?:$/.test(url.protocol)) {
    const received = url && !url.password && !url.username ? `a ${url.protocol}// URL` : 'a value that is not shown'
    wrong(
      'postgres://user:password@host:5432/database',
      received,
      'Percent-encode special characters in user and password.',
    )
    return undefined
  }
  for (const name of url.searchParams.keys()) {
    if (!urlParameters.includes(name)) {
      wrong(
        `only the parameters ${urlParameters.join(', ')}`,
        name,
        'Remove it; most settings are options of createDatabase.',
      )
    }
  }
  const database = decode(url.pathname.slice(1))
  const host = url.searchParams.get('host') ?? hostOf(url)
  const further = others.map((authority) => URL.parse(`postgres://${authority}/`))
  if (further.some((other) => other === null || other.hostname === '' || other.username !== '')) {
    wrong('hosts as one:5432,two:5432', 'a list in which one is none', 'Separate hosts by commas, each with its port.')
  }
  const attributes = url.searchParams.get('target_session_attrs')
  if (attributes !== null && !sessionAttributes.includes(attributes)) {
    wrong(`target_session_attrs as ${sessionAttributes.join(' or ')}`, describeValue(attributes), 'Correct it.')
  }
  if (!host) wrong('a host', 'none', 'Write postgres://host/database, or ?host=/folder for a socket.')
  if (!database) wrong('a database', 'none', 'Write its name after the host: postgres://host/database.')
  const ca = url.searchParams.get('sslrootcert')
  const hosts = [{ host, port: portOf(url) }].concat(
    further.filter((other) => other !== null).map((other) => ({ host: hostOf(other), port: portOf(other) })),
  )
  const target = completeTarget(options, context, {
    hosts,
    mustBeWritable: hosts.length > 1 && attributes !== 'any',
    user: decode(url.username) || systemUser(context.env),
    password: url.password === '' ? undefined : decode(url.password),
    database,
    sslMode: url.searchParams.get('sslmode'),
    sslModeKey: `${input.keyOf(path)} (sslmode)`,
    caFile: ca,
    applicationName: url.searchParams.get('application_name'),
  })
  return problems.length > before ? undefined : target
}

/** libpq's list of hosts, which is no URL: one with the first, and the rest. */
function splitHosts(value: string): { readonly first: string; readonly others: readonly string[] } {
  const parts = /^(postgres(?:ql)?:\/\/(?:[^/?#]*@)?)([^/?#]*,[^/?#]*)(.*)$/s.exec(value)
  if (parts === null) return { first: value, others: [] }
  const [, scheme = '', list = '', rest = ''] = parts
  const [host = '', ...others] = list.split(',')
  return { first: `${scheme}${host}${rest}`, others }
}

function hostOf(url: URL): string {
  return decode(url.hostname).replace(/^\[(.*)\]$|^-$/, '$1')
}

function portOf(url: URL): number {
  return url.port === '' ? 5432 : Number(url.port)
}

/** The variables that psql and its kin read. */
function resolveLibpq(options: PostgresOptions, context: TargetContext): ServerTarget | undefined {
  const { env, problems } = context
  const before = problems.length
  const port = env['PGPORT'] ? Number(env['PGPORT']) : 5432
  if (!isWhole(port, 1, 65_535)) {
    const received = describeValue(env['PGPORT'])
    problems.push({ key: 'PGPORT', expected: 'a port from 1 to 65535', received, remedy: 'Correct or unset PGPORT.' })
  }
  const user = env['PGUSER'] || systemUser(env)
  const target = completeTarget(options, context, {
    hosts: [{ host: env['PGHOST'] ?? 'localhost', port }],
    mustBeWritable: false,
    user,
    password: env['PGPASSWORD'],
    database: env['PGDATABASE'] || user,
    sslMode: env['PGSSLMODE'] ?? null,
    sslModeKey: 'PGSSLMODE',
    caFile: env['PGSSLROOTCERT'] ?? null,
    applicationName: env['PGAPPNAME'] ?? null,
  })
  return problems.length > before ? undefined : target
}

interface Place {
  readonly hosts: readonly ServerAddress[]
  readonly mustBeWritable: boolean
  readonly user: string
  readonly password: string | undefined
  readonly database: string
  readonly sslMode: string | null
  readonly sslModeKey: string
  readonly caFile: string | null
  readonly applicationName: string | null
}

function completeTarget(options: PostgresOptions, context: TargetContext, place: Place): ServerTarget {
  const { environment, env, input, problems } = context
  const mode = preferred('postgres.ssl', options.ssl, place.sslMode, input) ?? defaultSslMode(place.hosts, environment)
  const isKnown = (sslModes as readonly string[]).includes(mode)
  if (!isKnown) {
    problems.push({
      key: place.sslModeKey,
      expected: sslModeExpected,
      received: describeValue(mode),
      remedy:
        'Modes such as require and prefer mean different things to different drivers; say verify-full for safety.',
    })
  }
  const caFiles = [env['DATABASE_SSL_CA_FILE'], place.caFile]
  const caFile = (isFromCode('postgres.url', options.url, input) ? caFiles.toReversed() : caFiles).find(Boolean)
  const password = options.password ?? place.password
  return {
    kind: 'server',
    hosts: place.hosts,
    mustBeWritable: place.mustBeWritable,
    user: place.user,
    password: password === undefined ? undefined : new Secret(password),
    database: place.database,
    ssl: isKnown ? (mode as SslMode) : 'verify-full',
    sslCa: options.sslCa ?? (caFile ? readCertificate(caFile, problems) : undefined),
    applicationName:
      preferred('postgres.applicationName', options.applicationName, place.applicationName, input) ?? 'kanta',
    connectTimeoutMs: options.connectTimeoutMs ?? 5_000,
    statementTimeoutMs: options.statementTimeoutMs,
    ...(options.types && { types: options.types }),
  }
}

/** A parameter of a URL in code counts for more than the environment, and less than an option of its own. */
function preferred(
  path: string,
  option: string | undefined,
  parameter: string | null,
  input: Input,
): string | undefined {
  if (isFromCode(path, option, input)) return option
  const isUrlFromCode = input.keyOf('postgres.url') === 'postgres.url'
  return isUrlFromCode ? (parameter ?? option) : (option ?? parameter ?? undefined)
}

function isFromCode(path: string, value: unknown, input: Input): boolean {
  return value !== undefined && input.keyOf(path) === path
}

function readCertificate(file: string, problems: ConfigProblem[]): string | undefined {
  try {
    return readFileSync(file, 'utf8')
  } catch (error) {
    const reason = (error as NodeJS.ErrnoException).code ?? 'unreadable'
    problems.push({
      key: 'DATABASE_SSL_CA_FILE',
      expected: 'a PEM file that can be read',
      received: `${JSON.stringify(file)} (${reason})`,
      remedy: 'Correct the path (DATABASE_SSL_CA_FILE, sslrootcert or PGSSLROOTCERT).',
    })
    return undefined
  }
}

function defaultSslMode(hosts: readonly ServerAddress[], environment: Environment): SslMode {
  const isLocal = hosts.every(({ host }) => host.startsWith('/') || /^(localhost|127\..*|::1)$/.test(host))
  return environment === 'production' && !isLocal ? 'verify-full' : 'disable'
}

/** The target without credentials, as messages show it. */
export function describeTarget(target: PostgresTarget): string {
  if (target.kind === 'embedded') {
    return target.dataDir === 'memory' ? 'embedded PostgreSQL in memory' : `embedded PostgreSQL in ${target.dataDir}`
  }
  const { hosts, user, database } = target
  const [first] = hosts
  if (first?.host.startsWith('/')) return `postgres://${user}@/${database}?host=${first.host}&port=${first.port}`
  return `postgres://${user}@${hosts.map(describeAddress).join(',')}/${database}`
}

function describeAddress({ host, port }: ServerAddress): string {
  return `${host.includes(':') ? `[${host}]` : host}:${port}`
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part)
  } catch {
    return part
  }
}

function systemUser(env: NodeJS.ProcessEnv): string {
  return env['PGUSER'] || env['USER'] || env['USERNAME'] || 'postgres'
}
