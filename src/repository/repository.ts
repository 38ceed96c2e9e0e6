import {
  type AliasedExpression,
  type CompiledQuery,
  type Expression,
  type ExpressionBuilder,
  type InsertType,
  type Kysely,
  type SelectQueryBuilder,
  type SelectType,
  type Selectable,
  type SqlBool,
  type Transaction,
  type UpdateObject,
  type UpdateType,
  expressionBuilder,
  sql,
} from 'kysely'
import type { CacheEntryOptions } from '../core/cache-options.ts'
import { DatabaseError, NotFoundError } from '../core/errors.ts'

/** What a repository needs of a database: its Kysely. `createDatabase()` gives one, so does `{ db: anyKysely }`. */
export interface QuerySource<DB> {
  readonly db: Kysely<DB>
  /** Only for repositories that are cached. */
  cached?<Row>(query: { compile(): CompiledQuery<Row> }, options?: RepositoryCacheOptions): Promise<Row[]>
}

/** How a {@link Repository} caches what it reads by key; see {@link CacheEntryOptions}. Times are milliseconds. */
export type RepositoryCacheOptions = Omit<CacheEntryOptions, 'tags'>

/**
 * The column that holds each property of an entity. It has to name every property, and each column must exist and
 * be of the property's type, so that a renamed, dropped or retyped column stops compiling here.
 *
 * @example
 * ```ts
 * import type { ColumnMap } from 'kanta'
 * import type { DB } from './generated/schema.ts'
 *
 * interface Category { readonly id: string; readonly createdAt: Date }
 *
 * const categoryColumns = { id: 'id', createdAt: 'created_at' } as const satisfies ColumnMap<DB, 'categories', Category>
 * ```
 */
export type ColumnMap<DB, Table extends keyof DB, Entity> = {
  readonly [Property in keyof Entity & string]-?: ColumnHolding<DB[Table], Entity[Property]>
}

// Asked for the map that would fit, the compiler names the property that does not; asked for both at once, only `never`.
type Fitting<Columns, Wanted> = Columns extends Wanted ? Columns : Wanted

type ColumnHolding<Row, Value> = {
  [Column in keyof Row & string]: [SelectType<Row[Column]>] extends [Value] ? Column : never
}[keyof Row & string]

/** The {@link ColumnMap} of entities that are the rows themselves. */
export type SameColumns<DB, Table extends keyof DB> = { readonly [Column in keyof DB[Table] & string]: Column }

/** How a {@link Repository} finds its rows and maps them. */
export interface RepositoryDefinition<DB, Table extends keyof DB & string, Columns, Key> {
  readonly table: Table
  readonly columns: Columns
  /** The property that holds the primary key; without one, calls that take a key do not compile. @default 'id' */
  readonly key?: Key
  /**
   * Keeps what {@link Repository.findById} and {@link Repository.getById} read in the cache of the database, until the row is
   * written through kanta, in any process. They give the same frozen entity to all who ask. Needs a database of
   * `createDatabase()`. @default not cached
   */
  readonly cache?: RepositoryCacheOptions | undefined
  /** Columns that {@link Repository.update} sets besides its patch, for instance a time of change. */
  readonly onUpdate?: (row: ExpressionBuilder<DB, Table>) => UpdateObject<DB, Table>
}

/**
 * The rows that match: a property equals a value, is one of a list, or is null; or anything that Kysely's
 * expressions can say. An empty list matches nothing, an empty object everything.
 */
export type Where<DB, Table extends keyof DB, Entity> =
  | Partial<WhereProperties<Entity>>
  | ((row: ExpressionBuilder<DB, Table>) => Expression<SqlBool>)

type WhereProperties<Entity> = {
  readonly [Property in keyof Entity as Entity[Property] extends Comparable | null ? Property : never]:
    | Entity[Property]
    | readonly NonNullable<Entity[Property]>[]
}

type Comparable = string | number | bigint | boolean | Date | Uint8Array

/** Order and part of a {@link Repository.findMany}. */
export interface FindOptions<Entity> {
  /** Properties in order of weight. Name one that is unique last, or rows that tie come in any order. */
  readonly orderBy?: { readonly [Property in keyof Entity]?: 'asc' | 'desc' }
  /** At most so many rows. */
  readonly limit?: number
  /** Rows to skip. The server reads them all the same: for deep pages compare with the last row instead. */
  readonly offset?: number
}

type NewValues<Row, Columns> = {
  readonly [P in keyof Columns as InsertKey<Row, Columns[P], P, 'required'>]: InsertType<Row[Columns[P] & keyof Row]>
} & {
  readonly [P in keyof Columns as InsertKey<Row, Columns[P], P, 'optional'>]?: InsertType<Row[Columns[P] & keyof Row]>
} & {
  // A column that an INSERT cannot do without, but no property holds, makes `create` uncallable by its name.
  readonly [C in Exclude<keyof Row, Columns[keyof Columns]> as InsertKey<Row, C, C, 'required'>]: never
}

type InsertKey<Row, Column, Property, Kind> = Column extends keyof Row
  ? [InsertType<Row[Column]>] extends [never]
    ? never
    : (
          undefined extends InsertType<Row[Column]>
            ? 'optional'
            : null extends InsertType<Row[Column]>
              ? 'optional'
              : 'required'
        ) extends Kind
      ? Property
      : never
  : never

type Patch<Row, Columns, Key> = {
  readonly [P in Exclude<keyof Columns, Key> as UpdateKey<Row, Columns[P], P>]?: UpdateType<Row[Columns[P] & keyof Row]>
}

type UpdateKey<Row, Column, Property> = Column extends keyof Row
  ? [UpdateType<Row[Column]>] extends [never]
    ? never
    : Property
  : never

type Tables = Record<string, Record<string, unknown>>

/**
 * Typed access to one table: rows come back as entities, built by the driver from the select list, so mapping costs
 * nothing per row. It keeps no rows and has no state of its own; one instance serves the whole process at once.
 *
 * Names that reach it at run time (properties of a condition, of a patch, of an order) are looked up among those of
 * its column map and refused with `INVALID_ARGUMENT` otherwise, before any SQL is sent; values are always bound as
 * parameters. Errors of the server come as their `DatabaseError`.
 *
 * {@link withTransaction} makes its copy without running the constructor again, so a subclass keeps what it needs
 * in `private` or `protected` fields: reading a `#field` on the copy is a `TypeError`.
 *
 * @example
 * ```ts
 * import { type QuerySource, Repository } from 'kanta'
 * import type { DB } from './generated/schema.ts'
 *
 * interface Category { readonly id: string; readonly slug: string; readonly parentId: string | null }
 *
 * const columns = { id: 'id', slug: 'slug', parentId: 'parent_id' } as const
 *
 * export class CategoryRepository extends Repository<DB, 'categories', Category, typeof columns> {
 *   constructor(database: QuerySource<DB>) {
 *     super(database, { table: 'categories', columns })
 *   }
 *
 *   findBySlug(slug: string): Promise<Category | undefined> {
 *     return this.first((categories) => categories.where('slug', '=', slug))
 *   }
 * }
 * ```
 */
export abstract class Repository<
  DB,
  Table extends keyof DB & string,
  Entity extends object = Selectable<DB[Table]>,
  Columns extends { readonly [Property in keyof Entity]: string } = SameColumns<DB, Table> & {
    readonly [Property in keyof Entity]: string
  },
  Key extends keyof Entity & string = 'id' & keyof Entity,
> {
  // Not #private: the copy that withTransaction makes inherits its fields from this object.
  private readonly database: QuerySource<DB>
  private readonly table: string
  private readonly key: string
  private readonly columns: ReadonlyMap<string, string>
  private readonly cache: RepositoryCacheOptions | undefined
  private readonly onUpdate: ((row: ExpressionBuilder<DB, Table>) => object) | undefined

  /** The select list of an entity, for `select` and `returning` in queries of your own on this table. */
  protected readonly selection: readonly EntityColumn<Entity>[]

  constructor(
    database: QuerySource<DB>,
    definition: RepositoryDefinition<DB, Table, Fitting<Columns, ColumnMap<DB, Table, Entity>>, Key>,
  ) {
    this.database = database
    this.table = definition.table
    this.columns = new Map(Object.entries<string>({ ...definition.columns }))
    this.key = definition.key ?? 'id'
    this.onUpdate = definition.onUpdate
    this.cache = definition.cache
    if (this.cache !== undefined && database.cached === undefined) {
      throw this.refusal('cache needs the cache of a database: give the repository what createDatabase() gives')
    }
    this.selection = Array.from(this.columns, ([property, column]) =>
      sql.ref(`${this.table}.${column}`).as(property),
    ) as unknown as readonly EntityColumn<Entity>[]
  }

  /** Where queries of the repository run: the database, or the transaction it was bound to. */
  protected get db(): Kysely<DB> {
    return this.database.db
  }

  /** This repository on a transaction: all that the copy does is committed or rolled back with it. */
  withTransaction(transaction: Transaction<DB>): this {
    const copy: unknown = Object.create(this, { database: { value: { db: transaction } } })
    return copy as this
  }

  /** The entity with this key, or `undefined`. */
  async findById(id: Entity[Key]): Promise<Entity | undefined> {
    const query = this.select().where(this.hasKey(id))
    // A transaction that is passed by hand has no cache.
    if (this.cache === undefined || this.database.cached === undefined) return await query.executeTakeFirst()
    const [entity] = await this.database.cached(query, this.cache)
    return entity
  }

  /** The entity with this key; `NotFoundError` when there is none. */
  async getById(id: Entity[Key]): Promise<Entity> {
    return (await this.findById(id)) ?? this.missing()
  }

  /** All entities that match, in the order asked for; without a condition, all. */
  async findMany(...given: [] | [where: Where<DB, Table, Entity>, options?: FindOptions<Entity>]): Promise<Entity[]> {
    let query = this.select()
    for (const condition of this.conditions(given)) query = query.where(condition)
    const [, options = {}] = given
    const unknown = entries(options, () => this.refusal('the options must be a plain object')).find(
      ([name]) => !['limit', 'offset', 'orderBy'].includes(name),
    )
    if (unknown) throw this.refusal(`findMany has no option ${quoted(unknown[0])}; there are limit, offset, orderBy`)
    for (const [property, direction] of entries(options.orderBy ?? {}, () =>
      this.refusal('orderBy must be a plain object'),
    )) {
      const column = this.reference(property)
      if (direction !== 'asc' && direction !== 'desc') {
        throw this.refusal(`orderBy.${property} must be 'asc' or 'desc'`, property)
      }
      query = query.orderBy(column, direction)
    }
    if (options.limit !== undefined) query = query.limit(this.rowCount('limit', options.limit))
    if (options.offset !== undefined) query = query.offset(this.rowCount('offset', options.offset))
    return await query.execute()
  }

  /**
   * The first entity of a query that you narrow and order, or `undefined`. The columns have their own names in it,
   * not those of the properties.
   */
  async first(
    narrow: (query: SelectQueryBuilder<DB, Table, Entity>) => Limitable<Entity>,
  ): Promise<Entity | undefined> {
    return await narrow(this.select()).limit(1).executeTakeFirst()
  }

  /** Whether at least one row matches; the server stops at the first. */
  async exists(...given: [] | [where: Where<DB, Table, Entity>]): Promise<boolean> {
    let query = this.tables.selectFrom(this.table).select(sql.lit(1).as('found')).limit(1)
    for (const condition of this.conditions(given)) query = query.where(condition)
    return (await query.executeTakeFirst()) !== undefined
  }

  /** How many rows match. The server visits each of them. */
  async count(...given: [] | [where: Where<DB, Table, Entity>]): Promise<number> {
    let query = this.tables.selectFrom(this.table).select((row) => row.fn.countAll().as('count'))
    for (const condition of this.conditions(given)) query = query.where(condition)
    const { count } = await query.executeTakeFirstOrThrow()
    return Number(count)
  }

  /** Inserts one row and gives it back as stored, defaults filled in. A property that is `undefined` takes its default. */
  async create(values: NewValues<DB[Table], Columns>): Promise<Entity> {
    const row = this.toRow(values, 'create')
    const insert = this.tables.insertInto(this.table)
    const query = Object.keys(row).length === 0 ? insert.defaultValues() : insert.values(row)
    const created = await query.returning(this.selection).executeTakeFirst()
    return this.inserted(created as unknown as Entity | undefined)
  }

  /**
   * Changes one row and gives it back as stored; `NotFoundError` when it is not there. Properties that are
   * `undefined` are left as they are; a patch that changes nothing only reads.
   */
  async update(id: Entity[Key], patch: Patch<DB[Table], Columns, Key>): Promise<Entity> {
    const changes = this.toRow(patch, 'update')
    if (Object.hasOwn(patch, this.key)) {
      throw this.refusal(`update cannot change ${quoted(this.key)}, the key of the row`, this.key)
    }
    if (Object.keys(changes).length === 0) return await this.getById(id)
    const updated = await this.tables
      .updateTable(this.table)
      .set({ ...this.onUpdate?.(expressionBuilder<DB, Table>()), ...changes })
      .where(this.hasKey(id))
      .returning(this.selection)
      .executeTakeFirst()
    return (updated as unknown as Entity | undefined) ?? this.missing()
  }

  /** Deletes one row; `false` when it was not there. */
  async delete(id: Entity[Key]): Promise<boolean> {
    const { numDeletedRows } = await this.tables.deleteFrom(this.table).where(this.hasKey(id)).executeTakeFirstOrThrow()
    return numDeletedRows > 0n
  }

  /** A query for entities of this table, to be narrowed with all that Kysely offers. */
  protected select(): SelectQueryBuilder<DB, Table, Entity> {
    const query: unknown = this.tables.selectFrom(this.table).select(this.selection)
    return query as SelectQueryBuilder<DB, Table, Entity>
  }

  /** The condition that a row has this key, for updates and deletes of your own. */
  protected hasKey(id: Entity[Key]): Expression<SqlBool> {
    const value = this.comparable(this.key, id)
    return expressionBuilder()(this.reference(this.key), '=', value)
  }

  /** A limit or offset as given by a caller, or `INVALID_ARGUMENT` when it is not a whole number from 0. */
  protected rowCount(name: string, value: unknown): number {
    if (Number.isSafeInteger(value) && Number(value) >= 0) return Number(value)
    throw this.refusal(`${name} must be a whole number from 0`)
  }

  /** Throws the `NotFoundError` of a row that had to be there. */
  protected missing(): never {
    throw new NotFoundError(
      `${this.table} has no row with this ${this.key}. Check the key, or use findById where absence is normal.`,
      { table: this.table },
    )
  }

  /** What an insert gave back; `QUERY_FAILED` when that is nothing. For inserts of your own. */
  protected inserted(entity: Entity | undefined): Entity {
    if (entity !== undefined) return entity
    throw new DatabaseError(
      'QUERY_FAILED',
      `${this.table}: the insert gave no row back. Look for a trigger or rule of the table that suppresses it.`,
      { table: this.table },
    )
  }

  // TypeScript cannot follow Kysely's types through an open DB; names are checked by `columns`, values by `Where`.
  private get tables(): Kysely<Tables> {
    return this.db as unknown as Kysely<Tables>
  }

  // By rest parameters a condition that was left out differs from one that is undefined by mistake, which is refused.
  private conditions(
    given: readonly [] | readonly [where: Where<DB, Table, Entity>, ...unknown[]],
  ): Expression<SqlBool>[] {
    if (given.length === 0) return []
    const [where] = given
    if (typeof where === 'function') return [where(expressionBuilder<DB, Table>())]
    return entries(where, () => this.refusal('a condition must be a plain object or a function')).map(
      ([property, value]): Expression<SqlBool> => {
        const column = this.reference(property)
        if (value === null) return sql<SqlBool>`${column} is null`
        if (!Array.isArray(value)) return sql<SqlBool>`${column} = ${this.comparable(property, value)}`
        // One array parameter: lists of any length have the same text and never meet the limit of 65 535 parameters.
        return sql<SqlBool>`${column} = any(${Array.from(value, (item) => this.comparable(property, item))})`
      },
    )
  }

  private reference(property: string): Expression<unknown> {
    return sql.ref(`${this.table}.${this.column(property)}`)
  }

  private column(property: string): string {
    const column = this.columns.get(property)
    if (column !== undefined) return column
    throw this.refusal(`has no property ${quoted(property)}; there are ${[...this.columns.keys()].join(', ')}`)
  }

  private comparable(property: string, value: unknown): unknown {
    switch (typeof value) {
      case 'string':
      case 'number':
      case 'bigint':
      case 'boolean':
        return value
      case 'undefined':
        throw this.refusal(`${property} is undefined; leave it out, or use null to find rows without a value`, property)
      default:
        if (value instanceof Date || value instanceof Uint8Array) return value
        throw this.refusal(
          `${property} must be compared with a string, number, bigint, boolean, Date, Uint8Array, or a list of them`,
          property,
        )
    }
  }

  private toRow(values: object, call: string): Record<string, unknown> {
    const given = entries(values, () => this.refusal(`${call} takes a plain object`))
    const row: Record<string, unknown> = {}
    for (const [property, value] of given) {
      const column = this.column(property)
      if (bringsSql(value)) {
        throw this.refusal(`${property} must be a value; SQL expressions belong in a query on db`, property)
      }
      if (value !== undefined) row[column] = value
    }
    return row
  }

  private refusal(problem: string, property?: string): DatabaseError {
    const column = property === undefined ? undefined : this.columns.get(property)
    return new DatabaseError('INVALID_ARGUMENT', `${this.table}: ${problem}.`, { table: this.table, column })
  }
}

type EntityColumn<Entity> = {
  [Property in keyof Entity & string]: AliasedExpression<Entity[Property], Property>
}[keyof Entity & string]

/** A query that can be cut after its first row. */
interface Limitable<Row> {
  limit(limit: number): { executeTakeFirst(): Promise<Row | undefined> }
}

/**
 * Own properties of a plain object. Anything else is refused: the conditions of `Object.create({ email })`, or of a
 * class instance with getters, would be none at all.
 */
function entries(object: unknown, refusal: () => DatabaseError): [string, unknown][] {
  if (typeof object !== 'object' || object === null) throw refusal()
  const prototype: unknown = Object.getPrototypeOf(object)
  if (prototype !== null && prototype !== Object.prototype) throw refusal()
  return Object.entries(object)
}

/** Whether Kysely would take a value for SQL: it calls functions, and whatever has a `toOperationNode` to call. */
function bringsSql(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return typeof value === 'function'
  return 'toOperationNode' in value && typeof value.toOperationNode === 'function'
}

function quoted(name: string): string {
  return JSON.stringify(name.length > 60 ? `${name.slice(0, 60)}…` : name)
}
