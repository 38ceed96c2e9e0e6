/** Where a server of Redis listens. */
export interface RedisAddress {
  readonly host: string
  readonly port: number
}

/** Where Redis is, and how it is made up. */
export interface RedisLocation {
  /** `sentinel`: the hosts are Sentinels, which know the primary; `cluster`: some nodes of a cluster, which know the others. */
  readonly mode: 'cluster' | 'sentinel' | 'standalone'
  /** At least one. */
  readonly hosts: readonly RedisAddress[]
  /** The name under which Sentinels know the primary. */
  readonly primaryName?: string | undefined
  readonly username?: string | undefined
  readonly password?: string | undefined
  /** What the Sentinels themselves ask for. */
  readonly sentinelPassword?: string | undefined
  readonly database: number
  readonly tls: boolean
  /** The URL without credentials. */
  readonly description: string
}

/** How long Redis may take to accept a connection, in milliseconds. */
export const redisConnectTimeoutMs = 1_000

/** What a URL of Redis looks like, for messages. */
export const redisUrlForms: string =
  'redis://:password@host:6379/0, redis+sentinel://host:26379,host:26379/primary-name/0?sentinelPassword=… or redis+cluster://host:6379,host:6379, ' +
  'with rediss for TLS'

const pattern =
  /^(?<tls>rediss?)(?:\+(?<mode>cluster|sentinel))?:\/\/(?:(?<credentials>[^/]*)@)?(?<hosts>[^/?#@]+)(?<path>\/[^?#]*)?(?:\?sentinelPassword=(?<sentinel>[^&#]+))?$/

const defaultPorts = { cluster: 6379, sentinel: 26_379, standalone: 6379 } as const

/** The parts of a URL of Redis, or nothing when it is none. */
export function parseRedisUrl(url: string): RedisLocation | undefined {
  const parts = pattern.exec(url)?.groups
  if (parts === undefined) return undefined
  const mode = (parts['mode'] ?? 'standalone') as RedisLocation['mode']
  const hosts = (parts['hosts'] ?? '').split(',').map((host) => parseHost(host, defaultPorts[mode]))
  if (!hosts.every((host) => host !== undefined) || (mode === 'standalone' && hosts.length > 1)) return undefined
  const segments = (parts['path'] ?? '').split('/').filter(Boolean)
  const primaryName = mode === 'sentinel' ? segments.shift() : undefined
  const database = Number(segments.shift() ?? 0)
  const isComplete = segments.length === 0 && Number.isInteger(database) && database >= 0
  if (parts['sentinel'] !== undefined && mode !== 'sentinel') return undefined
  // A cluster has only one database.
  if (!isComplete || (mode === 'sentinel' && !primaryName) || (mode === 'cluster' && database !== 0)) return undefined
  const [username, password] = credentialsIn(parts['credentials'])
  const scheme = mode === 'standalone' ? parts['tls'] : `${parts['tls']}+${mode}`
  return {
    mode,
    hosts,
    primaryName: primaryName && decode(primaryName),
    username,
    password,
    sentinelPassword: parts['sentinel'] && decode(parts['sentinel']),
    database,
    tls: parts['tls'] === 'rediss',
    description: `${scheme}://${parts['hosts']}${parts['path'] ?? ''}`,
  }
}

function parseHost(text: string, defaultPort: number): RedisAddress | undefined {
  const parts = /^(?:\[(?<address>[\da-f:.]+)\]|(?<host>[^:[\]\s]+))(?::(?<port>\d{1,5}))?$/i.exec(text)?.groups
  const host = parts?.['address'] ?? parts?.['host']
  const port = Number(parts?.['port'] ?? defaultPort)
  return host === undefined || port < 1 || port > 65_535 ? undefined : { host, port }
}

function credentialsIn(text: string | undefined): readonly [string | undefined, string | undefined] {
  if (text === undefined) return [undefined, undefined]
  const colon = text.indexOf(':')
  // Without a colon it is a name, as in any URL.
  const [username, password] = colon < 0 ? [text, ''] : [text.slice(0, colon), text.slice(colon + 1)]
  return [decode(username) || undefined, decode(password) || undefined]
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}
