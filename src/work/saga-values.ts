import { type RawBuilder, sql } from 'kysely'
import { DatabaseError, isDatabaseError, type SagaFailure } from '../core/errors.ts'

/**
 * What `T` has to be assignable to so that it comes out of JSON as it went in: no dates, no bigints, no functions, no instances of
 * classes, and nothing of which nobody knows what it is.
 */
export type Jsonable<T> = JsonScalar | ({ readonly [Property in keyof T]: JsonPart<T[Property]> } & NoBuiltIn)

type JsonScalar = boolean | number | string | null | undefined | void

type JsonPart<T> = T extends JsonScalar
  ? T
  : T extends bigint | symbol | ((...given: never[]) => unknown)
    ? never
    : T extends object
      ? { readonly [Property in keyof T]: JsonPart<T[Property]> }
      : never

/** Bigints and maps have the one, functions the other. */
interface NoBuiltIn {
  readonly [Symbol.toStringTag]?: never
  readonly [Symbol.hasInstance]?: never
}

const deepest = 100

/**
 * A value as JSON text, or `null` for `undefined`. Throws `INVALID_ARGUMENT` for what would come out of JSON as something else,
 * and for more than `maxBytes`; the message names the place and never the value.
 */
export function encodeJson(value: unknown, what: string, maxBytes: number): string | null {
  if (value === undefined) return null
  const problem = findForeign(value, what, 0)
  if (problem !== undefined) {
    throw new DatabaseError(
      'INVALID_ARGUMENT',
      `${problem}, which the log of a saga cannot keep. Use texts, finite numbers, flags, null, lists and plain objects.`,
    )
  }
  const text = JSON.stringify(value)
  const size = Buffer.byteLength(text)
  if (size <= maxBytes) return text
  throw new DatabaseError(
    'INVALID_ARGUMENT',
    `${what} has ${size} bytes, more than the ${maxBytes} that maxValueBytes allows. Store it in a row of yours, and give its key.`,
  )
}

/** What {@link encodeJson} wrote, frozen: what a step changed in it would be there or not, depending on the process. */
export function decodeJson(text: string | null): unknown {
  return text === null ? undefined : JSON.parse(text, (_key, value: unknown) => Object.freeze(value))
}

/** A JSON column, to be read by {@link readJson}: as text that no plugin or parser of the application takes for JSON. */
export function jsonColumn(column: string): RawBuilder<string | null> {
  return sql`'=' || ${sql.raw(column)}::text`
}

/** What {@link jsonColumn} selected. */
export function readJson(text: string | null): unknown {
  return decodeJson(text === null ? null : text.slice(1))
}

/** What the log keeps of an error: its code and its message, not its cause, its stack, or what the server quotes of a row. */
export function describeFailure(error: unknown): SagaFailure {
  if (!(error instanceof Error)) return { code: 'UNKNOWN', message: 'Something was thrown that is not an Error.' }
  const { code } = error as { readonly code?: unknown }
  const isCode = isDatabaseError(error) || (typeof code === 'string' && /^\w{1,63}$/.test(code))
  return { code: isCode ? String(code) : clean(error.name, 63), message: clean(error.message, 500) }
}

function clean(text: unknown, length: number): string {
  // A text column takes neither NUL nor half a character.
  return String(text).replaceAll('\0', '').slice(0, length).toWellFormed()
}

function findForeign(value: unknown, place: string, depth: number): string | undefined {
  switch (typeof value) {
    case 'string':
    case 'boolean':
      return undefined
    case 'number':
      return Number.isFinite(value) ? undefined : `${place} is not a finite number`
    case 'object':
      if (value === null) return undefined
      if (depth === deepest) return `${place} is deeper than ${deepest} levels, or a circle`
      return Array.isArray(value) ? findInList(value, place, depth) : findInObject(value, place, depth)
    default:
      return `${place} is of type ${typeof value}`
  }
}

function findInList(list: readonly unknown[], place: string, depth: number): string | undefined {
  for (let index = 0; index < list.length; index += 1) {
    const problem = findForeign(list[index], `${place}[${index}]`, depth + 1)
    if (problem !== undefined) return problem
  }
  return undefined
}

function findInObject(object: object, place: string, depth: number): string | undefined {
  const prototype: unknown = Object.getPrototypeOf(object)
  if (prototype !== null && prototype !== Object.prototype) return `${place} is an instance of a class`
  for (const [property, value] of Object.entries(object)) {
    // A property that is undefined comes out as one that is not there, which is the same to whoever reads it.
    const problem = value === undefined ? undefined : findForeign(value, `${place}.${property.slice(0, 60)}`, depth + 1)
    if (problem !== undefined) return problem
  }
  return undefined
}
