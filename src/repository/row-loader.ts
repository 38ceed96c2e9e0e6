import { type Expression, type Kysely, type RawBuilder, type SqlBool, expressionBuilder, sql } from 'kysely'
import { Batches } from './batches.ts'
import type { QuerySource } from './query-source.ts'
import type { RowMap } from './row-map.ts'
import type { OpenQuery, OpenRow } from './select-node.ts'

/** Where and what a repository, or a copy of it, reads just now. */
export interface Reading {
  readonly source: QuerySource<never>
  /** What distinguishes it from other copies of the repository. */
  readonly variant: string
  /** A query for all rows that there are to it. */
  rows(): OpenQuery
}

type Key = readonly unknown[]

// Beside the tables of the query, of which none is called so.
const wantedName = 'kanta:wanted'

/** Reads the rows of one table by their keys: those of one tick in one statement, which is prepared where the database can. */
export class RowLoader {
  readonly #map: RowMap
  readonly #key: readonly string[]
  readonly #batches = new Batches()
  readonly #prepared = new Map<string, (values: object) => Promise<unknown[]>>()

  constructor(map: RowMap, key: readonly string[]) {
    this.#map = map
    this.#key = key
  }

  /** The row with this key. */
  loadRow(reading: Reading, key: Key): Promise<OpenRow | undefined> {
    const what = `key ${reading.variant}`
    return this.#batched(reading, what, what, key, (keys) => this.#readAll(reading, keys))
  }

  /** The rows of `query` whose property has this value. */
  loadMany(reading: Reading, property: string, value: unknown, query: OpenQuery): Promise<OpenRow[]> {
    const { sql: text, parameters } = query.compile()
    const what = `${property} ${text}`
    return this.#batched(reading, what, `${what} ${described(parameters)}`, [value], (keys) =>
      this.#lookUp(reading, [property], keys, query),
    )
  }

  /** The row with this key, by a statement of its own. */
  async readRow(reading: Reading, key: Key): Promise<OpenRow | undefined> {
    const names = this.#key.map((_, index) => `key${index}`)
    const values = Object.fromEntries(names.map((name, index) => [name, key[index]]))
    const rows = await this.#fixed(reading, 'one', values, (parameter) =>
      reading.rows().where(this.matching(names.map((name) => parameter(name)))),
    )
    return rows[0]
  }

  /** The condition that a row has this key. */
  matching(key: Key): Expression<SqlBool> {
    const parts = this.#key.map((property, index) =>
      expressionBuilder()(this.#map.reference(property), '=', key[index]),
    )
    return parts.length === 1 && parts[0] ? parts[0] : expressionBuilder().and(parts)
  }

  #batched<Result>(
    { source }: Reading,
    what: string,
    name: string,
    key: Key,
    read: (keys: readonly Key[]) => Promise<readonly Result[]>,
  ): Promise<Result> {
    const { currentTransaction, db } = source
    // Without the values that are in the name: what is noted is told in logs.
    const onCall = (isShared: boolean): void => source.noteRead?.(`${this.#map.table} by ${what}`, isShared)
    const isRepeatable = currentTransaction === undefined && !db.isTransaction
    return this.#batches.load({ scope: currentTransaction ?? db, name, isRepeatable, onCall }, key, read)
  }

  /** Rows in the order of their keys. */
  async #readAll(reading: Reading, keys: readonly Key[]): Promise<readonly (OpenRow | undefined)[]> {
    const [property, ...more] = this.#key
    const [only] = keys
    if (keys.length === 1 && only !== undefined) return [await this.readRow(reading, only)]
    if (property === undefined || more.length > 0) {
      const found = await this.#lookUp(reading, this.#key, keys, reading.rows())
      return found.map(([row]) => row)
    }
    const rows = await this.#readAny(reading, property, [...new Set(keys.map(([value]) => value))])
    const found = inOrderOf(keys, rows, property)
    // The server knows more ways to write one key than we do, for instance in a case-insensitive column.
    const areSure = rows.every((row) => hasOneForm(row[property]))
    const doubtful = keys.filter(([value], index) => found[index] === undefined && !(areSure && hasOneForm(value)))
    if (rows.length === 0 || doubtful.length === 0) return found
    const lists = await this.#lookUp(reading, this.#key, doubtful, reading.rows())
    const late = new Map(doubtful.map((key, index) => [key, lists[index]?.[0]]))
    return found.map((row, index) => row ?? late.get(keys[index] ?? []))
  }

  #readAny(reading: Reading, property: string, keys: readonly unknown[]): Promise<OpenRow[]> {
    return this.#fixed(reading, 'any', { keys }, (parameter) =>
      reading.rows().where(sql<SqlBool>`${this.#map.reference(property)} = any(${parameter('keys')})`),
    )
  }

  /** Runs a query that is always the same but for its values. */
  async #fixed(
    { source, variant }: Reading,
    name: string,
    values: OpenRow,
    build: (parameter: (name: string) => unknown) => OpenQuery,
  ): Promise<OpenRow[]> {
    if (source.prepare === undefined) return build((parameter) => values[parameter]).execute()
    const prepared =
      this.#prepared.get(name + variant) ??
      source.prepare((parameter: (name: never) => unknown) => build((placeholder) => parameter(placeholder as never)))
    this.#prepared.set(name + variant, prepared)
    return (await prepared(values)) as OpenRow[]
  }

  /** For each of the keys, the rows of `query` whose properties have its values. */
  async #lookUp(
    { source }: Reading,
    properties: readonly string[],
    keys: readonly Key[],
    query: OpenQuery,
  ): Promise<OpenRow[][]> {
    const names = properties.map((_, index) => `value${index}`)
    // What is never there gives the arrays the type of their column.
    const arrays = properties.map((property, index) => {
      // Of a domain it is what the domain is made of: a value that the domain refuses is not there, and no error.
      const none = (source.db as unknown as Kysely<Record<string, OpenRow>>)
        .selectFrom(this.#map.table)
        .select(sql`coalesce(${this.#map.reference(property)}, null)`.as('value'))
        .where(sql.lit(false))
      return sql`coalesce(${keys.map((key) => key[index])}, array(${none}))`
    })
    let matching = query
    for (const [index, property] of properties.entries()) {
      matching = matching.where(sql<SqlBool>`${this.#map.reference(property)} = ${sql.id(wantedName, `value${index}`)}`)
    }
    const wanted = sql.id(wantedName)
    const columns = sql.join([...names, 'place'].map((name) => sql.id(name)))
    const found: RawBuilder<OpenRow> = sql`
      select ${sql.id(wantedName, 'place')}::integer as "kanta:place", found.*
      from unnest(${sql.join(arrays)}) with ordinality as ${wanted}(${columns}) cross join lateral (${matching}) as found`
    const { rows } = await found.execute(source.db)
    const results: OpenRow[][] = keys.map(() => [])
    for (const { 'kanta:place': place, ...row } of rows) results[Number(place) - 1]?.push(row)
    return results
  }
}

/** Each caller has a row of its own. */
function inOrderOf(keys: readonly Key[], rows: readonly OpenRow[], property: string): readonly (OpenRow | undefined)[] {
  const left = new Map(rows.map((row) => [identity(row[property]), row]))
  const given = new Set<OpenRow>()
  return keys.map(([value]) => {
    const row = left.get(identity(value))
    if (row === undefined || given.has(row)) return row && { ...row }
    given.add(row)
    return row
  })
}

/** Whole numbers and lower-case UUIDs: two of them are the same key only if they are written alike. */
function hasOneForm(value: unknown): boolean {
  return /^(?:0|-?[1-9]\d*|[\da-f]{8}-(?:[\da-f]{4}-){3}[\da-f]{12})$/.test(identity(value))
}

/** What equal keys have in common, as far as is known of them here. */
function identity(value: unknown): string {
  if (value instanceof Date) return value.toISOString()
  if (value instanceof Uint8Array) return Buffer.from(value).toString('hex')
  return String(value)
}

function described(parameters: readonly unknown[]): string {
  // Of what JSON has no word for, one would be taken for the other.
  return JSON.stringify(parameters, (_, value: unknown) =>
    typeof value === 'bigint' || (typeof value === 'number' && !Number.isFinite(value)) ? `${value}n` : value,
  )
}
