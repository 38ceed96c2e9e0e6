import { createSecretKey, type KeyObject, randomBytes, scrypt } from 'node:crypto'
import type { ResolvedConfig } from './config.ts'
import { cursorSecretsIn, minCursorSecretBytes } from './config-schema.ts'
import { ConfigError, DatabaseError } from './errors.ts'
import { RecentMap } from './recent-map.ts'

/**
 * What the cursors of {@link paginate} are signed with: `cursorSecret` of a database. It shows nothing of itself in logs, and
 * is safe to share between any number of callers.
 */
export class CursorSecret {
  readonly #load: () => Promise<readonly KeyObject[]>
  #keys: Promise<readonly KeyObject[]> | undefined

  /** `load` is called once, when the first cursor is made or read. */
  constructor(load: () => Promise<readonly KeyObject[]>) {
    this.#load = load
  }

  /** At least one key: the first signs, all verify. `CONFIG_INVALID` where there is none that other processes would agree on. */
  keys(): Promise<readonly KeyObject[]> {
    this.#keys ??= this.#load()
    return this.#keys
  }
}

// Two databases of one process agree; two processes do not.
let keyOfProcess: KeyObject | undefined

/**
 * The secret of a database: what was configured, else a key derived from its password, else, outside production, one of this
 * process alone.
 */
export function cursorSecretOf(
  config: Pick<ResolvedConfig, 'cursorSecret' | 'environment' | 'postgres'>,
): CursorSecret {
  const { cursorSecret, environment, postgres } = config
  return new CursorSecret(async () => {
    if (cursorSecret !== undefined) return keysFrom(cursorSecret.reveal())
    const password = postgres.kind === 'server' ? postgres.password?.reveal() : undefined
    if (postgres.kind === 'server' && typeof password === 'string' && password !== '') {
      return [await derivedKey(password, `${postgres.user}\0${postgres.database}`)]
    }
    if (environment === 'production') throw noSecret()
    keyOfProcess ??= createSecretKey(randomBytes(32))
    return [keyOfProcess]
  })
}

/** Secrets that a caller gives: `INVALID_ARGUMENT` for one that is too short, or none. */
export function cursorSecretFrom(given: unknown): CursorSecret {
  if (given instanceof CursorSecret) return given
  const secrets = cursorSecretsIn(given)
  if (secrets !== undefined) return givenSecret(secrets)
  throw new DatabaseError(
    'INVALID_ARGUMENT',
    `paginate: secret must be database.cursorSecret, or text of at least ${minCursorSecretBytes} bytes, or a list of such of which the first signs.`,
  )
}

const givenSecrets = new RecentMap<string, CursorSecret>(16)

function givenSecret(secrets: readonly string[]): CursorSecret {
  const name = JSON.stringify(secrets)
  const known = givenSecrets.get(name)
  if (known !== undefined) return known
  const secret = new CursorSecret(() => Promise.resolve(keysFrom(secrets)))
  givenSecrets.set(name, secret)
  return secret
}

function keysFrom(secrets: readonly string[]): readonly KeyObject[] {
  // Node makes one of each buffer that it is given as a key, which takes longer than to sign.
  return secrets.map((secret) => createSecretKey(secret, 'utf8'))
}

/**
 * Cursors are public, and whoever has one can try passwords on it at home. So each trial has to be expensive; here it is paid
 * once in the life of a process.
 */
function derivedKey(password: string, place: string): Promise<KeyObject> {
  const { promise, resolve, reject } = Promise.withResolvers<KeyObject>()
  const cost = { N: 2 ** 15, r: 8, p: 1, maxmem: 64 * 2 ** 20 }
  scrypt(password, `kanta cursors\0${place}`, 32, cost, (error, key) =>
    error ? reject(error) : resolve(createSecretKey(key)),
  )
  return promise
}

function noSecret(): ConfigError {
  const problem = {
    key: 'cursorSecret',
    expected: `text of at least ${minCursorSecretBytes} bytes`,
    received: 'nothing, and the database has no fixed password to derive it from',
    remedy: 'Set DATABASE_CURSOR_SECRET to the same value for all instances of the service.',
  }
  return new ConfigError([problem], 'kanta cannot sign cursors')
}
