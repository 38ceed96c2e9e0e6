import { type Insertable, type Kysely, type Selectable, sql } from 'kysely'

/** What a factory needs of a database: its Kysely. A database of `createDatabase()`, of a sandbox, or `{ db: transaction }`. */
export interface FactorySource<DB> {
  readonly db: Kysely<DB>
}

/** Which row of its factory is being made, and what is to be different in it. */
export interface Sequence {
  /** From 1. */
  readonly n: number
  /** A short text of small letters, digits and `-` that no other row of the factory has, nor one of another seed. */
  readonly unique: string
  /** A whole number from `low` to `high`; the same for the same seed and row. */
  readonly between: (low: number, high: number) => number
  /** One of a list; the same for the same seed and row. */
  readonly pick: <Item>(items: readonly [Item, ...Item[]]) => Item
}

/** How a factory makes what is not the same for all. */
export interface FactoryOptions<Parents> {
  /** Others for other values. Processes that write into one database at the same time need one each. @default 1 */
  readonly seed?: number | undefined
  /** Make what a row refers to, for the rows of which that is not given; only when rows are written. */
  readonly parents?: Parents | undefined
}

/** Makes rows of one table. */
export interface Factory<DB, Table extends keyof DB, Parent extends PropertyKey = never> {
  /** A row without a database, and without what it refers to unless that is given. */
  build(
    overrides?: Partial<Insertable<DB[Table]>>,
  ): Omit<Insertable<DB[Table]>, Parent> & Partial<Insertable<DB[Table]>>
  /** Writes a row and what it refers to, and gives the row as the database has it. Rejects as an insert does. */
  create(overrides?: Partial<Insertable<DB[Table]>>): Promise<Selectable<DB[Table]>>
  /** Writes so many rows in one statement, in their order; the overrides may differ from row to row. */
  createMany(
    count: number,
    overrides?: Partial<Insertable<DB[Table]>> | ((index: number) => Partial<Insertable<DB[Table]>>),
  ): Promise<Selectable<DB[Table]>[]>
}

type ParentMakers<Row> = { readonly [Column in keyof Insertable<Row>]?: () => Promise<Insertable<Row>[Column]> }

/**
 * A factory of valid rows: `defaults` gives what a row needs, `parents` make the rows that it refers to, and a test says only what it
 * is about. Values are the same in every run, and unique within the factory.
 *
 * @example
 * ```ts
 * import type { Database } from 'kanta'
 * import { factory } from 'kanta/testing'
 * import type { DB } from './generated/schema.ts'
 *
 * declare const database: Database<DB>
 * const users = factory(database, 'users', ({ unique }) => ({
 *   email: `${unique}@example.org`, username: unique, name: 'Ada', password_hash: 'none that could be used',
 * }))
 * const posts = factory(database, 'posts', ({ n }) => ({ title: `Post ${n}`, body: '' }), {
 *   parents: { author_id: async () => (await users.create()).id },
 * })
 * const post = await posts.create({ title: 'Of a user of its own' })
 * console.log(post.id, post.author_id)
 * ```
 */
export function factory<DB, Table extends keyof DB & string, Parents extends ParentMakers<DB[Table]> = object>(
  database: FactorySource<DB>,
  table: Table,
  defaults: (sequence: Sequence) => Omit<Insertable<DB[Table]>, keyof Parents>,
  { seed = 1, parents }: FactoryOptions<Parents> = {},
): Factory<DB, Table, keyof Parents> {
  type Row = Partial<Insertable<DB[Table]>>
  type Built = Omit<Insertable<DB[Table]>, keyof Parents> & Row
  let count = 0

  const build = (overrides: Row = {}): Built => {
    count += 1
    // What is undefined is as if it were not there.
    const given = Object.entries(overrides).filter(([, value]) => value !== undefined)
    return { ...defaults(sequenceOf(seed, count, table)), ...Object.fromEntries(given) } as Built
  }

  const complete = async (row: Built): Promise<Built> => {
    const made: Record<string, unknown> = {}
    for (const [column, make] of Object.entries(parents ?? {})) {
      if (!(column in row)) made[column] = await (make as () => Promise<unknown>)()
    }
    return { ...row, ...made }
  }

  const createMany: Factory<DB, Table, keyof Parents>['createMany'] = async (wanted, overrides = {}) => {
    const rows: Built[] = []
    for (let index = 0; index < wanted; index += 1) {
      rows.push(await complete(build(typeof overrides === 'function' ? overrides(index) : overrides)))
    }
    return insert(database.db as unknown as Kysely<Tables>, table, rows) as Promise<Selectable<DB[Table]>[]>
  }

  return {
    build,
    async create(overrides) {
      const [row] = await createMany(1, overrides)
      return row as Selectable<DB[Table]>
    },
    createMany,
  }
}

type Tables = Record<string, Record<string, unknown>>

// Far below the 65 535 parameters that a statement may have, for tables of up to sixty columns.
const rowsPerStatement = 1_000

async function insert(db: Kysely<Tables>, table: string, rows: readonly object[]): Promise<unknown[]> {
  const written: unknown[] = []
  for (let at = 0; at < rows.length; at += rowsPerStatement) {
    const values = rows.slice(at, at + rowsPerStatement) as Record<string, unknown>[]
    if (values.some((row) => Object.keys(row).length > 0)) {
      written.push(...(await db.insertInto(table).values(values).returningAll().execute()))
    } else {
      // There are no words for several rows of defaults alone.
      const defaults = sql`insert into ${sql.table(table)} select from generate_series(1, ${values.length}::int) returning *`
      written.push(...(await defaults.execute(db)).rows)
    }
  }
  return written
}

function sequenceOf(seed: number, n: number, table: string): Sequence {
  let state = hashOf(`${seed} ${n} ${table}`)
  // mulberry32: good enough for anything but secrets.
  const next = (): number => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
  return {
    n,
    unique: `${seed}-${n}`,
    between: (low, high) => low + Math.floor(next() * (high - low + 1)),
    pick: (items) => items[Math.floor(next() * items.length)] ?? items[0],
  }
}

/** FNV-1a. */
function hashOf(text: string): number {
  let hash = 0x811c9dc5
  for (const character of text) hash = Math.imul(hash ^ (character.codePointAt(0) ?? 0), 0x01000193)
  return hash
}
