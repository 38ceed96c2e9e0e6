import { randomBytes } from 'node:crypto'
import { ConflictError, ConstraintViolationError, DatabaseError, NotFoundError } from '../core/errors.ts'
import { isWhole } from '../core/whole-number.ts'

/** The columns that a table in memory keeps by itself. */
export interface Kept {
  readonly id: string
  readonly version?: number
  readonly createdAt?: Date
  readonly updatedAt?: Date
  readonly deletedAt?: Date | null
}

/** What a table refuses, and what its rows have when nothing is given. */
export interface TableRules<Row extends Kept> {
  readonly table: string
  /** All properties of a row but those of {@link Kept}, with what they are when they are left out; `undefined` is no default. */
  readonly defaults: { readonly [Property in Exclude<keyof Row, keyof Kept> & string]: Row[Property] | undefined }
  readonly kept: readonly (keyof Kept)[]
  /** Properties that may be null. */
  readonly nullable?: readonly string[]
  /** Properties that are whole numbers of 32 bits. */
  readonly integers?: readonly string[]
  /** Properties that are one of some words. */
  readonly words?: Readonly<Record<string, readonly string[]>>
  /** Properties that are given with a new row only. */
  readonly fixed?: readonly string[]
  /** Properties that are keys of other rows. */
  readonly references?: Readonly<Record<string, { readonly constraint: string; exists: (id: string) => boolean }>>
  readonly checks?: Readonly<Record<string, (row: Row) => boolean>>
  /** What no two rows have in common; `undefined` is never taken. */
  readonly unique?: Readonly<Record<string, (row: Row) => string | undefined>>
}

/** A row by its key, or as it was read. */
export type Ref = string | { readonly id: string; readonly version?: number | undefined }

/**
 * Rows in memory, with the rules, versions, times and errors of the table that they stand for. What it does is done at once: no other call
 * comes in between.
 */
export class InMemoryTable<Row extends Kept> {
  readonly #rules: TableRules<Row>
  readonly #now: () => Date
  readonly #rows = new Map<string, Row>()

  constructor(rules: TableRules<Row>, now: () => Date) {
    this.#rules = rules
    this.#now = now
  }

  /** Rows that do not count as deleted. The objects are those that are kept. */
  get alive(): Row[] {
    return [...this.#rows.values()].filter(isAlive)
  }

  /** Whether there is such a row, deleted or not. */
  exists(id: string): boolean {
    return this.#rows.has(uuid(id))
  }

  find(id: string): Row | undefined {
    const row = this.#rows.get(uuid(id))
    return row && isAlive(row) ? row : undefined
  }

  get(id: string): Row {
    return this.find(id) ?? this.missing()
  }

  insert(values: object): Row {
    const now = this.#now()
    const given = this.#given(values)
    const row = { ...this.#rules.defaults, ...given, id: uuidV7(now) } as unknown as Row
    Object.assign(row, this.#keptOf(now))
    this.#check(row)
    this.#rows.set(row.id, row)
    return row
  }

  /** A change that counts, unless there is nothing to change. */
  update(ref: Ref, patch: object): Row {
    const row = this.target(ref)
    const changes = this.#given(patch)
    const fixed = this.#rules.fixed?.find((property) => Object.hasOwn(changes, property))
    if (fixed !== undefined) throw this.#notToBeSet(fixed)
    return Object.keys(changes).length === 0 ? row : this.write(row, changes)
  }

  /** Changes a row and counts that, whatever is changed. */
  write(row: Row, changes: Partial<Row>): Row {
    const marks = {
      ...(row.version !== undefined && { version: row.version + 1 }),
      ...(row.updatedAt !== undefined && { updatedAt: this.#now() }),
    }
    return this.replace({ ...row, ...marks, ...changes })
  }

  /** Keeps a row as it is given, if the rules allow it. */
  replace(row: Row): Row {
    this.#check(row)
    this.#rows.set(row.id, row)
    return row
  }

  /** As if it had never been. */
  forget(id: string): void {
    this.#rows.delete(id)
  }

  remove(ref: Ref): boolean {
    const { id, version } = partsOf(ref)
    const row = this.find(id)
    if (row === undefined) return false
    this.#compare(row, version)
    if (row.deletedAt === undefined) this.#rows.delete(row.id)
    else this.write(row, { deletedAt: this.#now() } as Partial<Row>)
    return true
  }

  restore(id: string): Row {
    const row = this.#rows.get(uuid(id)) ?? this.missing()
    return isAlive(row) ? row : this.write(row, { deletedAt: null } as Partial<Row>)
  }

  /** The row that is meant, if it is there and of that version. */
  target(ref: Ref): Row {
    const { id, version } = partsOf(ref)
    const row = this.get(id)
    this.#compare(row, version)
    return row
  }

  missing(): never {
    const { table } = this.#rules
    throw new NotFoundError(`${table} has no row with this id. Check the key.`, { table })
  }

  #compare(row: Row, expectedVersion: number | undefined): void {
    const { version: actualVersion } = row
    const { table } = this.#rules
    if (expectedVersion === undefined || actualVersion === undefined) return
    if (!Number.isSafeInteger(expectedVersion)) throw invalidArgument(table, 'version must be a whole number')
    if (actualVersion === expectedVersion) return
    const message = `${table}: the row was read at version ${expectedVersion} and is at ${actualVersion} now. Read it again.`
    throw new ConflictError(message, { table, expectedVersion, actualVersion })
  }

  #given(values: object): Partial<Row> {
    const { defaults } = this.#rules
    const entries = Object.entries(values).filter(([, value]) => value !== undefined)
    const unknown = entries.find(([property]) => !Object.hasOwn(defaults, property))
    if (unknown !== undefined) throw this.#notToBeSet(unknown[0])
    // Copies: what the caller does with its dates afterwards is not written.
    const kept = entries.map(([property, value]) => [property, value instanceof Date ? new Date(value) : value])
    return Object.fromEntries(kept) as Partial<Row>
  }

  #notToBeSet(property: string): DatabaseError {
    return invalidArgument(this.#rules.table, `${JSON.stringify(property)} cannot be set`)
  }

  #keptOf(now: Date): Partial<Kept> {
    const values = { version: 1, createdAt: now, updatedAt: now, deletedAt: null }
    const { kept } = this.#rules
    return Object.fromEntries(Object.entries(values).filter(([property]) => kept.includes(property as keyof Kept)))
  }

  /** In the order in which the server looks: types, nulls, checks by their names, unique keys, keys of other rows. */
  #check(row: Row): void {
    const { table, defaults, nullable = [], integers = [], references = {}, checks = {}, unique = {} } = this.#rules
    const values = row as unknown as Record<string, unknown>
    for (const property of integers) {
      const value = values[property]
      if (typeof value === 'number' && (value | 0) !== value) {
        throw invalidData(table, `${property} is no whole number of 32 bits`)
      }
    }
    for (const [property, words] of Object.entries(this.#rules.words ?? {})) {
      const value = values[property]
      if (typeof value === 'string' && !words.includes(value)) throw invalidData(table, `${property} is no such word`)
    }
    for (const [property, value] of Object.entries(values)) {
      if (isUnwritable(value)) throw invalidData(table, `${property} cannot be written`)
    }
    for (const property of Object.keys(references)) {
      const value = values[property]
      if (value !== undefined && value !== null) values[property] = uuid(value)
    }
    for (const property of Object.keys(defaults)) {
      const isMissing = values[property] === undefined || values[property] === null
      if (isMissing && !nullable.includes(property)) throw violation('NOT_NULL_VIOLATION', table, undefined)
    }
    for (const name of Object.keys(checks).toSorted()) {
      if (checks[name]?.(row) === false) throw violation('CHECK_VIOLATION', table, name)
    }
    for (const [name, keyOf] of Object.entries(unique)) {
      const key = keyOf(row)
      const isTaken = [...this.#rows.values()].some((other) => other.id !== row.id && keyOf(other) === key)
      if (key !== undefined && isTaken) throw violation('UNIQUE_VIOLATION', table, name)
    }
    for (const [property, { constraint, exists }] of Object.entries(references)) {
      const value = values[property]
      if (typeof value === 'string' && !exists(value)) throw violation('FOREIGN_KEY_VIOLATION', table, constraint)
    }
  }
}

function isAlive(row: Kept): boolean {
  return row.deletedAt === undefined || row.deletedAt === null
}

function partsOf(ref: Ref): { readonly id: string; readonly version?: number | undefined } {
  return typeof ref === 'object' && ref !== null ? ref : { id: ref }
}

/** Texts with NUL, and dates that are none. */
function isUnwritable(value: unknown): boolean {
  return typeof value === 'string' ? value.includes('\0') : value instanceof Date && Number.isNaN(value.getTime())
}

const uuidForm = /^[\da-f]{8}-(?:[\da-f]{4}-){3}[\da-f]{12}$/i

/** An id as the server writes it; `INVALID_DATA` for a text that is none, `INVALID_ARGUMENT` for what is no text. */
export function uuid(value: unknown): string {
  if (typeof value !== 'string') throw invalidArgument('in memory', 'an id must be a string')
  if (!uuidForm.test(value)) throw invalidData('in memory', 'an id is no UUID')
  return value.toLowerCase()
}

let lastTime = 0
let sequence = 0

/** Of version 7: in the order in which they are made. */
export function uuidV7(now: Date): string {
  const time = Math.max(now.getTime(), lastTime)
  sequence = time === lastTime ? sequence + 1 : 0
  lastTime = time + (sequence >> 12)
  sequence &= 0xfff
  const head = lastTime.toString(16).padStart(12, '0')
  const random = randomBytes(8)
  random[0] = ((random[0] ?? 0) & 0x3f) | 0x80
  const tail = random.toString('hex')
  return `${head.slice(0, 8)}-${head.slice(8)}-7${sequence.toString(16).padStart(3, '0')}-${tail.slice(0, 4)}-${tail.slice(4)}`
}

/** A limit as given by a caller. */
export function rowCount(table: string, name: string, value: unknown, least = 0): number {
  if (isWhole(value, least)) return value
  throw invalidArgument(table, `${name} must be a whole number from ${least}`)
}

export function invalidArgument(table: string, problem: string): DatabaseError {
  return new DatabaseError('INVALID_ARGUMENT', `${table}: ${problem}.`, { table })
}

export function invalidData(table: string, problem: string): DatabaseError {
  return new DatabaseError('INVALID_DATA', `${table}: ${problem}.`, { table, sqlState: '22P02' })
}

export function violation(
  code: ConstraintViolationError['code'],
  table: string,
  constraint: string | undefined,
): ConstraintViolationError {
  const what = constraint === undefined ? 'a value that must be given is null' : `${constraint} refuses the row`
  return new ConstraintViolationError(code, `${table}: ${what}.`, { table, constraint })
}

/** How many characters PostgreSQL counts. */
export function lengthOf(text: string): number {
  return Array.from(text).length
}

/** By several values, each ascending: texts by their code units, as in the collation C. */
export function compareBy<Item>(
  ...parts: readonly ((item: Item) => Date | number | string)[]
): (a: Item, b: Item) => number {
  return (a, b) => {
    for (const part of parts) {
      const [left, right] = [part(a), part(b)]
      if (left < right) return -1
      if (left > right) return 1
    }
    return 0
  }
}

/** The latest first; of one moment the greater id. */
export function newestFirst<Row extends { readonly id: string }>(
  timeOf: (row: Row) => Date | null,
): (a: Row, b: Row) => number {
  return (a, b) => Number(timeOf(b)) - Number(timeOf(a)) || (a.id < b.id ? 1 : -1)
}

/** The rows behind the last of a page that has the newest first, at most so many. */
export function pageOf<Row extends { readonly id: string }>(
  rows: readonly Row[],
  timeOf: (row: Row) => Date | null,
  after: { readonly time: Date; readonly id: string } | undefined,
  limit: number,
): Row[] {
  const sorted = rows.toSorted(newestFirst(timeOf))
  if (after === undefined) return sorted.slice(0, limit)
  const isBehind = (row: Row): boolean => {
    const [time, last] = [Number(timeOf(row)), Number(after.time)]
    return time === last ? row.id < after.id : time < last
  }
  return sorted.filter(isBehind).slice(0, limit)
}
