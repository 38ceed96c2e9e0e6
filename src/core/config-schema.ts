import { z } from 'zod'
import type { DatabaseOptions, Logger, RedisOptions } from './options.ts'
import { largestInt32 } from './whole-number.ts'

const wholeNumber = (min: number, max: number, what: string) => {
  const expected = `${what} from ${min} to ${max}`
  return z.int(expected).min(min, expected).max(max, expected).optional()
}
const milliseconds = (min: number) => wholeNumber(min, largestInt32, 'a whole number of milliseconds')
const text = (expected: string) => z.string(expected).min(1, expected).optional()

/** A setting that `false` switches off. */
const orOff = <Schema extends z.ZodType>(schema: Schema) => z.union([z.literal(false), schema]).optional()

export const sslModes = ['disable', 'no-verify', 'verify-full'] as const
export const sslModeExpected: string = `one of ${sslModes.join(', ')}`

const postgresShape = {
  url: text('a postgres:// URL'),
  directUrl: text('a postgres:// URL'),
  replicas: z.array(z.string('a postgres:// URL').min(1, 'a postgres:// URL'), 'a list of postgres:// URLs').optional(),
  replicaReads: z
    .strictObject(
      { maxLagMs: milliseconds(0), checkIntervalMs: milliseconds(10), waitMs: milliseconds(0) },
      'an object',
    )
    .optional(),
  password: z
    .custom<string | (() => string | Promise<string>)>(
      (value) => typeof value === 'string' || typeof value === 'function',
      'a string or a function that returns one',
    )
    .optional(),
  ssl: z.enum(sslModes, sslModeExpected).optional(),
  sslCa: text('a certificate as PEM text'),
  applicationName: z.string('text of 1 to 63 bytes').min(1).max(63).optional(),
  connectTimeoutMs: milliseconds(1),
  queryTimeoutMs: orOff(milliseconds(1)),
  statementTimeoutMs: milliseconds(0),
  listenerHeartbeatMs: orOff(milliseconds(1)),
  repeatedReads: orOff(wholeNumber(2, 1_000_000, 'a whole number of reads')),
  pipeline: orOff(
    z.strictObject(
      { connections: wholeNumber(1, 64, 'a whole number'), depth: wholeNumber(1, 10_000, 'a whole number') },
      'an object or false',
    ),
  ),
  preparedStatements: orOff(
    z.strictObject(
      { threshold: wholeNumber(1, 1_000_000, 'a whole number'), max: wholeNumber(1, 100_000, 'a whole number') },
      'an object or false',
    ),
  ),
  retry: orOff(
    z.strictObject(
      {
        attempts: wholeNumber(1, 100, 'a whole number'),
        baseDelayMs: milliseconds(0),
        maxDelayMs: milliseconds(0),
      },
      'an object or false',
    ),
  ),
  breaker: orOff(
    z.strictObject(
      {
        errorThresholdPercentage: wholeNumber(1, 100, 'a whole number'),
        volumeThreshold: wholeNumber(1, 1_000_000, 'a whole number'),
        windowMs: milliseconds(1),
        resetTimeoutMs: milliseconds(1),
      },
      'an object or false',
    ),
  ),
  pool: z
    .strictObject(
      {
        max: wholeNumber(1, 10_000, 'a whole number'),
        min: wholeNumber(0, 10_000, 'a whole number'),
        maxWaiting: wholeNumber(0, 10_000_000, 'a whole number'),
        acquireTimeoutMs: milliseconds(1),
        idleTimeoutMs: milliseconds(0),
        maxLifetimeMs: milliseconds(0),
        drainTimeoutMs: milliseconds(0),
        leakWarningMs: milliseconds(0),
      },
      'an object',
    )
    .optional(),
  types: z
    .strictObject(
      {
        int8: z.enum(['bigint', 'number', 'string'], 'bigint, number or string').optional(),
        numeric: z.enum(['number', 'string'], 'number or string').optional(),
        date: z.enum(['Date', 'string'], 'Date or string').optional(),
      },
      'an object',
    )
    .optional(),
  embedded: z.strictObject({ dataDir: text('a folder, or memory') }, 'an object').optional(),
}

const namespaceExpected = '1 to 100 letters, digits, dots, colons, hyphens or underscores'
const aDayOrMore = 366 * 86_400_000

const cacheShape = {
  namespace: z
    .string(namespaceExpected)
    .regex(/^[\w.:-]{1,100}$/, namespaceExpected)
    .optional(),
  ttlMs: wholeNumber(0, aDayOrMore, 'a whole number of milliseconds'),
  maxTtlMs: wholeNumber(1, aDayOrMore, 'a whole number of milliseconds'),
  codec: z.enum(['json', 'msgpack'], 'json or msgpack').optional(),
  compressAboveBytes: orOff(wholeNumber(0, largestInt32, 'a whole number of bytes')),
  leaseMs: milliseconds(10),
  holdMs: orOff(milliseconds(1)),
  heartbeatMs: milliseconds(10),
  maxQueued: wholeNumber(1, 10_000_000, 'a whole number'),
  queries: z.boolean('true or false').optional(),
  listen: z.boolean('true or false').optional(),
  memory: z
    .strictObject(
      {
        maxEntries: wholeNumber(1, 100_000_000, 'a whole number'),
        maxBytes: wholeNumber(1, Number.MAX_SAFE_INTEGER, 'a whole number of bytes'),
        values: z.enum(['clone', 'freeze', 'shared'], 'clone, freeze or shared').optional(),
        ttlMs: milliseconds(1),
        ttlWithoutRedisMs: milliseconds(0),
      },
      'an object',
    )
    .optional(),
}

/** The fewest bytes that a secret for cursors may have. */
export const minCursorSecretBytes = 16

/** Secrets for cursors as a list; `undefined` when what was given is not what they must be. */
export function cursorSecretsIn(given: unknown): readonly string[] | undefined {
  const secrets: readonly unknown[] = Array.isArray(given) ? given : [given]
  return secrets.length > 0 && secrets.every(isLongEnough) ? secrets : undefined
}

function isLongEnough(given: unknown): given is string {
  return typeof given === 'string' && Buffer.byteLength(given) >= minCursorSecretBytes
}

const optionsSchema = z.strictObject(
  {
    environment: z.enum(['development', 'production', 'test'], 'development, production or test').optional(),
    postgres: z.strictObject(postgresShape, 'an object').optional(),
    redis: z
      .strictObject({ url: text('a redis:// URL'), commandTimeoutMs: milliseconds(1) }, 'an object or false')
      .optional(),
    cache: z.strictObject(cacheShape, 'an object').optional(),
    cursorSecret: z
      .custom<string | readonly string[]>(
        (value) => cursorSecretsIn(value) !== undefined,
        `text of at least ${minCursorSecretBytes} bytes, or a list of such`,
      )
      .optional(),
    logger: z
      .custom<Logger>(
        (value) =>
          typeof value === 'object' &&
          value !== null &&
          ['info', 'warn'].every((name) => typeof (value as Record<string, unknown>)[name] === 'function'),
        'an object with the functions info and warn',
      )
      .optional(),
  },
  'an object',
)

/** What was given, as far as it is right. */
export interface ParsedOptions extends Omit<DatabaseOptions, 'redis'> {
  readonly redis?: RedisOptions | undefined
}

/** Checks all of it; what is wrong comes as issues, and what is right all the same. */
export function parseOptions(values: unknown): {
  readonly valid: ParsedOptions
  readonly issues: readonly z.core.$ZodIssue[]
} {
  const parsed = optionsSchema.safeParse(values)
  if (parsed.success) return { valid: parsed.data, issues: [] }
  return { valid: validPart(optionsSchema, values), issues: parsed.error.issues }
}

/** Names for the message about one that does not exist. */
export function optionNames(path: string): readonly string[] {
  return Object.keys(objectIn(schemaAt(path))?.shape ?? {})
}

function schemaAt(path: string): z.core.$ZodType | undefined {
  const keys = path === '' ? [] : path.split('.')
  return keys.reduce<z.core.$ZodType | undefined>((outer, key) => objectIn(outer)?.shape[key], optionsSchema)
}

/** Whether `false` is a value of the option. */
export function takesFalse(path: string): boolean {
  const schema = schemaAt(path)
  return schema !== undefined && z.safeParse(schema, false).success
}

/** The object behind "optional" and "or false". */
function objectIn(schema: z.core.$ZodType | undefined): z.ZodObject | undefined {
  if (schema instanceof z.ZodOptional) return objectIn(schema.unwrap())
  if (schema instanceof z.ZodUnion) return schema.options.map(objectIn).find((option) => option !== undefined)
  return schema instanceof z.ZodObject ? schema : undefined
}

/** What is right of a configuration that is wrong elsewhere. */
function validPart(schema: z.ZodObject, value: unknown): Record<string, unknown> {
  if (!isRecord(value)) return {}
  return Object.fromEntries(
    Object.entries(schema.shape).flatMap(([key, field]) => {
      const result = z.safeParse(field, value[key])
      if (result.success) return result.data === undefined ? [] : [[key, result.data]]
      const inner = objectIn(field)
      return inner ? [[key, validPart(inner, value[key])]] : []
    }),
  )
}

/** A plain object. */
export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && Object.getPrototypeOf(value) === Object.prototype
}
