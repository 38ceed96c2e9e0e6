import { randomBytes, type ScryptOptions, scrypt, timingSafeEqual } from 'node:crypto'
import { promisify } from 'node:util'
import { DatabaseError } from '../core/errors.ts'
import { isWhole } from '../core/whole-number.ts'
import type { PasswordHasher } from '../domain/password-hasher.ts'

const derive = promisify<string, Buffer, number, ScryptOptions, Buffer>(scrypt)

// Long passwords cost the server one HMAC pass each; far above any passphrase, far below a body used as a weapon.
const maxPasswordBytes = 1024
const saltBytes = 16
const keyBytes = 32

/** Settings of a {@link scryptPasswordHasher}. */
export interface ScryptHasherOptions {
  /**
   * The base-2 logarithm of scrypt's cost N, 14 to 20. Each hash takes 1 KiB × 2^logCost of memory and the time
   * that goes with it: 128 MiB at 17. Lower it where many people log in at once on little memory.
   * @default 17
   * @see https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html#scrypt
   */
  readonly logCost?: number
}

/**
 * Password hashes by scrypt (r = 8, p = 1) in the PHC format: `$scrypt$ln=17,r=8,p=1$salt$hash`. It runs on Node's
 * thread pool, so the event loop stays free. `verify` accepts hashes of any cost up to 2^20, so the cost can be raised
 * later.
 *
 * A password is 1 to 1024 bytes of UTF-8 in Unicode form NFKC: `hash` refuses others with `INVALID_ARGUMENT`,
 * `verify` answers `false`. A stored hash that is not one of these is `INVALID_ARGUMENT` too.
 *
 * @example
 * ```ts
 * import { scryptPasswordHasher } from 'kanta/domain'
 *
 * const hasher = scryptPasswordHasher()
 * const hash = await hasher.hash('correct horse battery staple')
 * console.log(await hasher.verify('correct horse battery staple', hash)) // true
 * ```
 */
export function scryptPasswordHasher(options: ScryptHasherOptions = {}): PasswordHasher {
  const logCost = options.logCost ?? 17
  if (!isWhole(logCost, 14, 20)) {
    throw new DatabaseError('INVALID_ARGUMENT', 'scryptPasswordHasher: logCost must be a whole number from 14 to 20.')
  }
  return {
    async hash(password) {
      const text = normalized(password)
      if (text === undefined) {
        throw new DatabaseError('INVALID_ARGUMENT', `A password must be text of 1 to ${maxPasswordBytes} bytes.`)
      }
      const salt = randomBytes(saltBytes)
      const key = await derive(text, salt, keyBytes, costs(logCost, 8, 1))
      return `$scrypt$ln=${logCost},r=8,p=1$${base64(salt)}$${base64(key)}`
    },

    async verify(password, hash) {
      const { logN, r, p, salt, key } = parsed(hash)
      const text = normalized(password)
      if (text === undefined) return false
      return timingSafeEqual(key, await derive(text, salt, key.length, costs(logN, r, p)))
    },
  }
}

function normalized(password: unknown): string | undefined {
  // The length is looked at before the work of normalizing, and after it, which can make text longer.
  if (typeof password !== 'string' || password.length > maxPasswordBytes) return undefined
  const text = password.normalize('NFKC')
  const bytes = Buffer.byteLength(text)
  return bytes >= 1 && bytes <= maxPasswordBytes ? text : undefined
}

function costs(logN: number, r: number, p: number): ScryptOptions {
  // Node refuses to use more than maxmem; scrypt needs 128 · r · (N + p) bytes and a little more.
  return { N: 2 ** logN, r, p, maxmem: 128 * r * (2 ** logN + p + 2) }
}

function parsed(hash: string): { logN: number; r: number; p: number; salt: Buffer; key: Buffer } {
  const match = /^\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]{11,86})\$([A-Za-z0-9+/]{22,86})$/.exec(
    hash,
  )
  const [, ln, r, p, salt = '', key = ''] = match ?? []
  const found = { logN: Number(ln), r: Number(r), p: Number(p), salt: decoded(salt), key: decoded(key) }
  // A stored hash decides how much memory is spent on it, so it is not believed without limits.
  const reasonable =
    found.logN >= 1 && found.logN <= 20 && found.r >= 1 && found.r <= 16 && found.p >= 1 && found.p <= 16
  if (match !== null && reasonable) return found
  throw new DatabaseError(
    'INVALID_ARGUMENT',
    'A stored password hash is not in the form $scrypt$ln=…,r=…,p=…$salt$hash. Use the hasher that made it.',
  )
}

function base64(bytes: Buffer): string {
  return bytes.toString('base64').replace(/=+$/, '')
}

function decoded(text: string): Buffer {
  return Buffer.from(text, 'base64')
}
