import {
  type Expression,
  ExpressionWrapper,
  type Kysely,
  type RawBuilder,
  type SelectQueryBuilder,
  type Selectable,
  type Simplify,
  type SqlBool,
  type Transaction,
  expressionBuilder,
  sql,
} from 'kysely'
import { ConflictError, DatabaseError, NotFoundError } from '../core/errors.ts'
import type { TableMapping } from '../core/table-mapping.ts'
import { isWhole } from '../core/whole-number.ts'
import { hasColumns } from '../postgres/column-values.ts'
import { type Conditions, matches, orderOf, type Where } from './conditions.ts'
import {
  type ColumnMap,
  type EntityColumn,
  entries,
  type Fitting,
  type NewValues,
  type Patch,
  type PropertyColumns,
  RowMap,
  type SameColumns,
} from './row-map.ts'
import type { OrderTerm } from './keyset-order.ts'
import { type KeysetPage, paginate, type PaginateOptions } from './pagination.ts'
import type { QuerySource } from './query-source.ts'
import type {
  FindOptions,
  FindPageOptions,
  FindPartOptions,
  IdOf,
  LoadOptions,
  NumberOf,
  RefOf,
  RepositoryDefinition,
  UpsertOptions,
} from './repository-options.ts'
import { type Reading, RowLoader } from './row-loader.ts'
import { type OpenQuery, type OpenRow, parenthesized, quoted, rewritten, withParentheses } from './select-node.ts'
import { validated, validatedAll } from './validation.ts'

/** What is asked for, by its key and perhaps the version that was read. */
interface Target {
  readonly key: readonly unknown[]
  readonly version: number | undefined
}

/**
 * Typed access to one table: rows come back as entities, built by the driver from the select list, so mapping costs
 * nothing per row. It keeps no rows; one instance serves the whole process at once. It joins the transaction of the async context.
 *
 * Reads by key within one tick become one statement, in a transaction too: `Promise.all(ids.map((id) => users.findById(id)))` costs one
 * round trip.
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
  Columns extends PropertyColumns<Entity> = SameColumns<DB, Table> & {
    readonly [Property in keyof Entity]: string
  },
  Key extends keyof Entity & string = 'id' & keyof Entity,
> {
  // Not #private: the copy that withTransaction makes inherits its fields from this object.
  private readonly database: QuerySource<DB>
  private readonly definition: Omit<RepositoryDefinition<DB, Table, Columns, string, string>, 'columns' | 'key'>
  private readonly key: readonly string[]
  private readonly map: RowMap
  private readonly loader: RowLoader
  private readonly seesDeleted: boolean = false

  /**
   * The select list of an entity, for `select` and `returning` in queries of your own on this table. A property with a
   * {@link PropertyMapping} comes as its column holds it; {@link select} maps it.
   */
  protected readonly selection: readonly EntityColumn<Entity>[]

  constructor(
    database: QuerySource<DB>,
    definition: RepositoryDefinition<
      DB,
      Table,
      Fitting<Columns, ColumnMap<DB, Table, Entity>>,
      Key,
      keyof Entity & string,
      NumberOf<Entity>
    >,
  ) {
    const { columns, key = 'id', ...rest } = definition
    this.database = database
    this.definition = rest
    this.key = typeof key === 'string' ? [key] : key
    this.map = new RowMap(definition.table, { ...(columns as Record<string, string>) })
    this.loader = new RowLoader(this.map, this.key)
    if (rest.cache !== undefined && database.cached === undefined) {
      throw this.map.refusal('cache needs the cache of a database: give the repository what createDatabase() gives')
    }
    for (const property of [rest.version, rest.updatedAt, rest.deletedAt]) {
      if (property !== undefined) this.map.column(property)
    }
    this.selection = this.map.selection() as readonly EntityColumn<Entity>[]
  }

  /** Where queries of the repository run: the database, or the transaction it was bound to. */
  protected get db(): Kysely<DB> {
    return this.database.db
  }

  /** This repository on a transaction: all that the copy does is committed or rolled back with it. */
  withTransaction(transaction: Transaction<DB>): this {
    const copy: unknown = Object.create(this, {
      database: { value: { db: transaction, cursorSecret: this.database.cursorSecret } },
    })
    return copy as this
  }

  /** Runs `work` in a transaction, which joins the one around it; see {@link Database.transaction}. */
  transaction<T>(work: (repository: this) => Promise<T>): Promise<T> {
    const { database, db } = this
    if (database.transaction !== undefined) return database.transaction(() => work(this))
    if (db.isTransaction) return work(this)
    return db.transaction().execute((transaction) => work(this.withTransaction(transaction)))
  }

  /** This repository, for which rows that count as deleted are like any other. */
  withDeleted(): this {
    const copy: unknown = Object.create(this, { seesDeleted: { value: true } })
    return copy as this
  }

  /** How rows become entities and back, for what writes the rows of several repositories at once: a {@link UnitOfWork}. */
  get mapping(): TableMapping {
    const { map, key, seesDeleted, database: source } = this
    const { table, version, updatedAt, deletedAt } = this.definition
    return {
      ...{ table, source, key, seesDeleted, version, updatedAt, deletedAt },
      columns: new Map(map.properties.map((property) => [property, map.column(property)])),
      newRow: (values, call) => this.newRow(values, call),
      changes: (patch, call) => this.changes(patch, call),
      toColumns: (values, call) => map.toRow(values, call),
      target: (ref) => this.target(ref),
      toEntity: (row) => map.fromColumns(row),
    }
  }

  /** The entity with this key, or `undefined`. */
  async findById(id: IdOf<Entity, Key>): Promise<Entity | undefined> {
    const key = this.keyOf(id)
    const { cache } = this.definition
    // A transaction that is passed by hand has no cache.
    if (cache === undefined || this.database.cached === undefined) return this.loadByKey(key)
    const [row] = await this.database.cached(this.selectable().where(this.loader.matching(key)), cache, async () => {
      const found = await this.loader.loadRow(this.reading(), key)
      return found === undefined ? [] : [found]
    })
    return row && this.entity(this.map.isMapped ? { ...row } : row)
  }

  /** The entity with this key; `NotFoundError` when there is none. */
  async getById(id: IdOf<Entity, Key>): Promise<Entity> {
    return (await this.findById(id)) ?? this.missing()
  }

  /** All entities, in the order asked for. */
  findAll(options: FindOptions<Entity> = {}): Promise<Entity[]> {
    return this.findMany({}, options)
  }

  /** All entities that match, in the order asked for; without a condition, all. */
  findMany<Property extends keyof Entity & string>(
    where: Where<DB, Table, Entity>,
    options: FindPartOptions<Entity, Property>,
  ): Promise<Pick<Entity, Property>[]>
  findMany(...given: [] | [where: Where<DB, Table, Entity>, options?: FindOptions<Entity>]): Promise<Entity[]>
  async findMany(
    ...given: [] | [where: Where<DB, Table, Entity>, options?: FindOptions<Entity> & { select?: readonly string[] }]
  ): Promise<Entity[]> {
    const [, options = {}] = given
    const query = this.narrowed(this.rows(this.selected(options)), this.conditions(given), options, 'findMany')
    return this.entities(await query.execute())
  }

  /**
   * The first entity that matches, in the order asked for; or of a query that you narrow and order, in which the columns have their own
   * names and not those of the properties. `undefined` when there is none.
   */
  first(narrow: (query: SelectQueryBuilder<DB, Table, Entity>) => Limitable<Entity>): Promise<Entity | undefined>
  first(where: Conditions<Entity>, options?: Pick<FindOptions<Entity>, 'orderBy'>): Promise<Entity | undefined>
  async first(
    given: Conditions<Entity> | ((query: SelectQueryBuilder<DB, Table, Entity>) => Limitable<Entity>),
    options?: Pick<FindOptions<Entity>, 'orderBy'>,
  ): Promise<Entity | undefined> {
    if (typeof given === 'function') return await given(this.select()).limit(1).executeTakeFirst()
    const [entity] = await this.findMany(given, { ...options, limit: 1 })
    return entity
  }

  /**
   * A page of the entities that match, in the order asked for and by the key where that leaves rows equal, found by the values of the
   * row before it; see {@link paginate} for what its cursors guarantee and for the errors. Needs a database of
   * `createDatabase()`, which signs them.
   *
   * @example
   * ```ts
   * import { createDatabase } from 'kanta'
   * import { type DB, UserRepository } from 'kanta/domain'
   *
   * await using database = await createDatabase<DB>()
   * const users = new UserRepository(database)
   * const first = await users.findPage({ isActive: true }, { orderBy: { createdAt: 'desc' }, limit: 50 })
   * const second = await users.findPage({ isActive: true }, { orderBy: { createdAt: 'desc' }, limit: 50, after: first.endCursor })
   * ```
   */
  async findPage(where: Where<DB, Table, Entity>, options: FindPageOptions<Entity> = {}): Promise<KeysetPage<Entity>> {
    const { orderBy = {}, ...page } = options
    const named = entries(orderBy, () => this.map.refusal('orderBy must be a plain object'))
    const last = named.at(-1)?.[1]
    const direction = typeof last === 'string' && last.startsWith('desc') ? 'desc' : 'asc'
    const rest = this.key.filter((property) => !named.some(([name]) => name === property))
    const by = [
      ...named.map(([property, given]) => this.orderTerm(property, given)),
      ...rest.map((property) => this.orderTerm(property, direction)),
    ]
    let query = this.rows()
    for (const condition of this.conditions([where])) query = query.where(condition)
    const found = await this.paginate(query as unknown as SelectQueryBuilder<DB, Table, Entity>, { ...page, by })
    return { ...found, items: this.entities(found.items) }
  }

  /**
   * The entities whose property has this value, for instance the posts of an author, in the order asked for and at most `limit` for
   * each value. Calls of one tick with the same options become one statement.
   *
   * @example
   * ```ts
   * import { createDatabase } from 'kanta'
   * import { type DB, PostRepository, UserRepository } from 'kanta/domain'
   *
   * await using database = await createDatabase<DB>()
   * const [users, posts] = [new UserRepository(database), new PostRepository(database)]
   * const authors = await users.findAll({ limit: 20 })
   * const latest = await Promise.all(
   *   authors.map(({ id }) => posts.loadMany('authorId', id, { orderBy: { createdAt: 'desc', id: 'desc' }, limit: 3 })),
   * )
   * ```
   */
  async loadMany<Property extends keyof Entity & string>(
    property: Property,
    value: NonNullable<Entity[Property]>,
    options: LoadOptions<DB, Table, Entity> = {},
  ): Promise<Entity[]> {
    const { where = {}, ...rest } = options
    const comparable = this.map.comparable(property, value)
    const query = this.narrowed(this.rows(), this.conditions([where]), rest, 'loadMany')
    return this.entities(await this.loader.loadMany(this.reading(), property, comparable, query))
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

  /**
   * Inserts one row and gives it back as stored, defaults filled in. A property that is `undefined` takes its default.
   * `VALIDATION_FAILED` when the schema refuses the values.
   */
  async create(values: NewValues<DB[Table], Columns>): Promise<Entity> {
    const row = await this.newRow(values, 'create')
    const insert = this.tables.insertInto(this.table)
    const query = Object.keys(row).length === 0 ? insert.defaultValues() : insert.values(row)
    const created = await query.returning(this.map.selection()).executeTakeFirst()
    return this.inserted(created && this.entity(created))
  }

  /**
   * Inserts any number of rows, all or none, and gives them back as stored and in their order: on a database of `createDatabase()` in
   * statements of thousands, see {@link Database.insertMany}.
   */
  async createMany(values: readonly NewValues<DB[Table], Columns>[]): Promise<Entity[]> {
    const given = list(values, () => this.map.refusal('createMany takes a list'))
    const schema = this.definition.validate?.create
    const valid = schema ? await validatedAll(schema, given, this.table) : given
    const rows = valid.map((item) => this.map.toRow(item, 'createMany'))
    if (rows.length === 0) return []
    const { database } = this
    // A row of nothing but defaults is in no array.
    if (database.insertMany === undefined || !rows.every(hasAny)) {
      return this.transaction((inside) => inside.insertInChunks(rows))
    }
    const returning = this.map.properties.map((property) => this.map.column(property))
    // Rows with the same columns are written together, and so they come back.
    const places = areAlike(rows) ? undefined : placesByColumns(rows)
    const sent = places?.map((place) => rows[place]) ?? rows
    const created = await database.insertMany(this.definition.table, sent as never[], {
      returning: returning as never[],
    })
    const entities = created.rows.map((row) => this.map.fromExactColumns(row as OpenRow) as Entity)
    // A trigger that suppresses rows leaves nothing to tell them by.
    return places?.length === entities.length ? backInOrder(entities, places) : entities
  }

  /**
   * Inserts a row, or changes the one that is there already by the properties of `conflict`, and gives it back as stored. A row that
   * counts as deleted is one again that does not.
   */
  async upsert(
    values: NewValues<DB[Table], Columns>,
    { conflict, update }: UpsertOptions<keyof Entity & string>,
  ): Promise<Entity> {
    const row = await this.newRow(values, 'upsert')
    const keys = conflict.map((property) => this.map.column(property))
    if (keys.length === 0) throw this.map.refusal('upsert needs the properties of a unique index in conflict')
    const given = update === undefined || update === 'none' ? Object.keys(row) : update.map((p) => this.map.column(p))
    const taken = given
      .filter((column) => !keys.includes(column))
      .map((column) => [column, sql.ref(`excluded.${column}`)] as const)
    // A time that was read with the entity is none of this change, unless it is said to be.
    const times =
      update === undefined
        ? { ...Object.fromEntries(taken), ...this.timeMark() }
        : { ...this.timeMark(), ...Object.fromEntries(taken) }
    const changes = update === 'none' ? {} : { ...times, ...this.versionMark(), ...this.aliveMark() }
    const isKept = Object.keys(changes).length === 0
    const { deletedAt } = this.definition
    const insert = this.tables.insertInto(this.table).values(row)
    const written = await insert
      .onConflict((rule) => {
        const columns = rule.columns(keys)
        // Any unique index serves, also one of the rows that are not deleted.
        const target = deletedAt === undefined ? columns : columns.where(this.map.column(deletedAt), 'is', null)
        return isKept ? target.doNothing() : target.doUpdateSet(changes)
      })
      .returning(this.map.selection())
      .executeTakeFirst()
    if (written !== undefined) return this.entity(written)
    return isKept ? this.existing(keys, row) : this.inserted(undefined)
  }

  /**
   * Changes one row and gives it back as stored; `NotFoundError` when it is not there. Properties that are
   * `undefined` are left as they are; a patch that changes nothing only reads. Given an entity that was read, of a repository with
   * `version`, it is a {@link ConflictError} when the row has changed since.
   */
  async update(ref: RefOf<Entity, Key>, patch: Patch<DB[Table], Columns, Key>): Promise<Entity> {
    const target = this.target(ref)
    const changes = await this.changes(patch, 'update')
    if (Object.keys(changes).length === 0) return this.unchanged(target)
    const updated = await this.tables
      .updateTable(this.table)
      .set({ ...this.changeMarks(), ...changes })
      .where(this.isTarget(target))
      .returning(this.map.selection())
      .executeTakeFirst()
    return updated === undefined ? this.missed(target) : this.entity(updated)
  }

  /** Changes all rows that match, and says how many. A condition without properties is refused: say `() => sql.lit(true)` to mean all. */
  async updateMany(where: Where<DB, Table, Entity>, patch: Patch<DB[Table], Columns, Key>): Promise<number> {
    const conditions = this.narrowing(where, 'updateMany')
    const changes = await this.changes(patch, 'updateMany')
    if (Object.keys(changes).length === 0) return this.count(where)
    let query = this.tables.updateTable(this.table).set({ ...this.changeMarks(), ...changes })
    for (const condition of conditions) query = query.where(condition)
    return Number((await query.executeTakeFirstOrThrow()).numUpdatedRows)
  }

  /**
   * Deletes one row, or marks it as deleted; `false` when it was not there. Given an entity that was read, of a repository with
   * `version`, it is a {@link ConflictError} when the row has changed since.
   */
  async delete(ref: RefOf<Entity, Key>): Promise<boolean> {
    const target = this.target(ref)
    const count = await this.remove([this.isTarget(target)])
    if (count === 0 && target.version !== undefined) await this.refuseOtherVersion(target, target.version)
    return count > 0
  }

  /** Deletes all rows that match, or marks them as deleted, and says how many. Conditions as in {@link updateMany}. */
  async deleteMany(where: Where<DB, Table, Entity>): Promise<number> {
    return this.remove(this.narrowing(where, 'deleteMany'))
  }

  /** Deletes one row for good, also one that counts as deleted; `false` when it was not there. */
  async purge(id: IdOf<Entity, Key>): Promise<boolean> {
    const query = this.tables.deleteFrom(this.table).where(this.loader.matching(this.keyOf(id)))
    return (await query.executeTakeFirstOrThrow()).numDeletedRows > 0n
  }

  /** Makes a row that counts as deleted one that does not, and gives it back; `NotFoundError` when there is none with this key. */
  async restore(id: IdOf<Entity, Key>): Promise<Entity> {
    const { deletedAt } = this.definition
    if (deletedAt === undefined)
      throw this.map.refusal('restore needs the option deletedAt: rows here are really deleted')
    const restored = await this.tables
      .updateTable(this.table)
      .set({ ...this.changeMarks(), ...this.aliveMark() })
      .where(this.loader.matching(this.keyOf(id)))
      .where(sql<SqlBool>`${this.map.reference(deletedAt)} is not null`)
      .returning(this.map.selection())
      .executeTakeFirst()
    return restored === undefined ? this.withDeleted().getById(id) : this.entity(restored)
  }

  /** A query for entities of this table, to be narrowed with all that Kysely offers. */
  protected select(): SelectQueryBuilder<DB, Table, Entity> {
    const alive = this.alive()
    let query = this.rows()
    for (const condition of alive) query = query.where(condition)
    // An alternative that is written by hand must not get around them.
    if (alive.length > 0) query = rewritten(query, withParentheses)
    return (this.map.isMapped ? query.withPlugin(this.map.plugin) : query) as unknown as SelectQueryBuilder<
      DB,
      Table,
      Entity
    >
  }

  /** The condition that a row has this key, for updates and deletes of your own. */
  protected hasKey(id: IdOf<Entity, Key>): Expression<SqlBool> {
    return this.loader.matching(this.keyOf(id))
  }

  /** {@link paginate} for queries of your own, with the secret of the database. */
  protected async paginate<Tables, Source extends keyof Tables, Result>(
    query: SelectQueryBuilder<Tables, Source, Result>,
    options: Omit<PaginateOptions<NoInfer<Tables>, NoInfer<Source>>, 'secret'>,
  ): Promise<KeysetPage<Simplify<Result>>> {
    const { cursorSecret: secret } = this.database
    if (secret === undefined) {
      throw this.map.refusal('pages need the secret of a database: give the repository what createDatabase() gives')
    }
    return paginate(query, { ...options, secret })
  }

  /** A limit or offset as given by a caller, or `INVALID_ARGUMENT` when it is not a whole number from 0. */
  protected rowCount(name: string, value: unknown): number {
    if (isWhole(value, 0)) return value
    throw this.map.refusal(`${name} must be a whole number from 0`)
  }

  /** Throws the `NotFoundError` of a row that had to be there. */
  protected missing(): never {
    throw new NotFoundError(
      `${this.table} has no row with this ${this.key.join(' and ')}. Check the key, or use findById where absence is normal.`,
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

  private get table(): string {
    return this.definition.table
  }

  // TypeScript cannot follow Kysely's types through an open DB; names are checked by the map, values by `Where`.
  private get tables(): Kysely<Record<string, OpenRow>> {
    return this.db as unknown as Kysely<Record<string, OpenRow>>
  }

  private rows(properties?: readonly string[]): OpenQuery {
    return this.tables.selectFrom(this.table).select(this.map.selection(properties))
  }

  private entity(row: OpenRow): Entity {
    return (this.map.isMapped ? this.map.toEntity(row) : row) as Entity
  }

  private entities(rows: readonly OpenRow[]): Entity[] {
    return (this.map.isMapped ? rows.map((row) => this.map.toEntity(row)) : rows) as Entity[]
  }

  private async loadByKey(key: readonly unknown[]): Promise<Entity | undefined> {
    const row = await this.loader.loadRow(this.reading(), key)
    return row && this.entity(row)
  }

  private reading(): Reading {
    return {
      source: this.database as unknown as QuerySource<never>,
      variant: this.seesDeleted ? 'deleted rows too' : '',
      rows: () => this.selectable(),
    }
  }

  /** A query for rows of entities, deleted ones only if they are asked for. */
  private selectable(): OpenQuery {
    let query = this.rows()
    for (const condition of this.alive()) query = query.where(condition)
    return query
  }

  private selected({ select }: { select?: readonly string[] }): readonly string[] | undefined {
    if (select === undefined) return undefined
    const properties = list(select, () => this.map.refusal('select takes a list of properties'))
    if (properties.length === 0) throw this.map.refusal('select must name at least one property')
    return properties
  }

  private narrowed(
    rows: OpenQuery,
    conditions: readonly Expression<SqlBool>[],
    options: FindOptions<Entity>,
    call: string,
  ): OpenQuery {
    const allowed = call === 'findMany' ? ['select', 'orderBy', 'limit', 'offset'] : ['where', 'orderBy', 'limit']
    const unknown = entries(options, () => this.map.refusal('the options must be a plain object')).find(
      ([name]) => !allowed.includes(name),
    )
    if (unknown) {
      throw this.map.refusal(`${call} has no option ${quoted(unknown[0])}; there are ${allowed.join(', ')}`)
    }
    let query = rows
    for (const condition of conditions) query = query.where(condition)
    for (const part of this.ordering(options.orderBy)) query = query.orderBy(part)
    if (options.limit !== undefined) query = query.limit(this.rowCount('limit', options.limit))
    if (options.offset !== undefined) query = query.offset(this.rowCount('offset', options.offset))
    return query
  }

  private ordering(orderBy: FindOptions<Entity>['orderBy'] = {}): readonly RawBuilder<unknown>[] {
    return entries(orderBy, () => this.map.refusal('orderBy must be a plain object')).map(([property, direction]) => {
      const part = orderOf(this.map.reference(property), direction)
      if (part === undefined) throw this.unordered(property)
      return part
    })
  }

  private unordered(property: string): DatabaseError {
    return this.map.refusal(
      `orderBy.${property} must be 'asc' or 'desc', with 'nulls first' or 'nulls last' behind it or not`,
      property,
    )
  }

  private orderTerm(property: string, given: unknown): OrderTerm<never, never> {
    const [direction, , nulls] = String(given).split(' ')
    if (orderOf(this.map.reference(property), given) === undefined) throw this.unordered(property)
    const rule = nulls === undefined ? [] : [{ nulls }]
    return [this.map.reference(property).as(property), direction, ...rule] as never
  }

  // By rest parameters a condition that was left out differs from one that is undefined by mistake, which is refused.
  private conditions(
    given: readonly [] | readonly [where: Where<DB, Table, Entity>, ...unknown[]],
  ): Expression<SqlBool>[] {
    const alive = this.alive()
    if (given.length === 0) return alive
    const [where] = given
    if (typeof where === 'function') {
      const condition = where(expressionBuilder<DB, Table>()).toOperationNode()
      return [new ExpressionWrapper<DB, Table, SqlBool>(parenthesized(condition)), ...alive]
    }
    const named = entries(where, () => this.map.refusal('a condition must be a plain object or a function'))
    return [
      ...named.map(([property, condition]) =>
        matches(this.map.reference(property), condition, (value) => this.map.comparable(property, value)),
      ),
      ...alive,
    ]
  }

  /** Conditions that are some: a filter that has become empty must not change everything. */
  private narrowing(where: Where<DB, Table, Entity>, call: string): Expression<SqlBool>[] {
    if (typeof where === 'object' && where !== null && Object.keys(where).length === 0) {
      throw this.map.refusal(
        `${call} was given a condition without properties. To mean all rows say () => sql.lit(true)`,
      )
    }
    return this.conditions([where])
  }

  private alive(): Expression<SqlBool>[] {
    const { deletedAt } = this.definition
    if (deletedAt === undefined || this.seesDeleted) return []
    // As Kysely's own condition, in which the cache sees that it looks at no other row.
    return [expressionBuilder()(this.map.reference(deletedAt), 'is', null)]
  }

  private keyOf(id: unknown): readonly unknown[] {
    const [property, ...more] = this.key
    if (property !== undefined && more.length === 0) return [this.map.comparable(property, id)]
    return this.keyIn(id)
  }

  private keyIn(given: unknown): readonly unknown[] {
    return this.key.map((property) => {
      const isThere = typeof given === 'object' && given !== null && Object.hasOwn(given, property)
      if (!isThere) throw this.map.refusal(`a row is named by its ${this.key.join(' and ')}`, property)
      return this.map.comparable(property, (given as OpenRow)[property])
    })
  }

  private target(ref: unknown): Target {
    const isObject = typeof ref === 'object' && ref !== null && !(ref instanceof Date) && !(ref instanceof Uint8Array)
    // A key that is mapped may be an object itself.
    const isKey = !isObject || (this.key.length === 1 && !Object.hasOwn(ref, this.key[0] ?? ''))
    if (isKey) return { key: this.keyOf(ref), version: undefined }
    const { version: property } = this.definition
    if (property === undefined || !Object.hasOwn(ref, property)) return { key: this.keyIn(ref), version: undefined }
    const version = (ref as OpenRow)[property]
    // A version that was forgotten must not mean any.
    if (!Number.isSafeInteger(version)) throw this.map.refusal(`${property} must be a whole number`, property)
    return { key: this.keyIn(ref), version: version as number }
  }

  private isTarget({ key, version }: Target): Expression<SqlBool> {
    const parts = [this.loader.matching(key), ...this.alive()]
    const { version: property } = this.definition
    if (property !== undefined && version !== undefined) {
      parts.push(sql<SqlBool>`${this.map.reference(property)} = ${version}`)
    }
    return expressionBuilder().and(parts)
  }

  private async newRow(values: object, call: string): Promise<OpenRow> {
    const schema = this.definition.validate?.create
    return this.map.toRow(schema ? await validated(schema, values, this.table, call) : values, call)
  }

  private async changes(patch: object, call: string): Promise<OpenRow> {
    const { validate, version, deletedAt } = this.definition
    const given = validate?.update ? await validated(validate.update, patch, this.table, call) : patch
    const changes = this.map.toRow(given, call)
    for (const property of this.key) {
      if (Object.hasOwn(given, property)) {
        throw this.map.refusal(`${call} cannot change ${quoted(property)}, the key of the row`, property)
      }
    }
    for (const property of [version, deletedAt]) {
      if (property === undefined || (given as OpenRow)[property] === undefined) continue
      throw this.map.refusal(
        `${call} cannot set ${quoted(property)}, which the repository keeps itself${property === deletedAt ? '; there are delete and restore' : ''}`,
        property,
      )
    }
    return changes
  }

  /** What each change sets besides what it is about. */
  private changeMarks(): OpenRow {
    return { ...this.timeMark(), ...this.versionMark() }
  }

  private timeMark(): OpenRow {
    const { updatedAt } = this.definition
    return updatedAt === undefined ? {} : { [this.map.column(updatedAt)]: sql`now()` }
  }

  private versionMark(): OpenRow {
    const { version } = this.definition
    return version === undefined ? {} : { [this.map.column(version)]: sql`${this.map.reference(version)} + 1` }
  }

  private aliveMark(): OpenRow {
    const { deletedAt } = this.definition
    return deletedAt === undefined ? {} : { [this.map.column(deletedAt)]: null }
  }

  private async remove(conditions: readonly Expression<SqlBool>[]): Promise<number> {
    const { deletedAt } = this.definition
    if (deletedAt === undefined) {
      let query = this.tables.deleteFrom(this.table)
      for (const condition of conditions) query = query.where(condition)
      return Number((await query.executeTakeFirstOrThrow()).numDeletedRows)
    }
    let query = this.tables
      .updateTable(this.table)
      .set({ ...this.changeMarks(), [this.map.column(deletedAt)]: sql`now()` })
    for (const condition of conditions) query = query.where(condition)
    if (this.seesDeleted) query = query.where(sql<SqlBool>`${this.map.reference(deletedAt)} is null`)
    return Number((await query.executeTakeFirstOrThrow()).numUpdatedRows)
  }

  private async unchanged(target: Target): Promise<Entity> {
    const entity = (await this.loadByKey(target.key)) ?? this.missing()
    if (target.version !== undefined) this.refuseVersion(target.version, entity as OpenRow)
    return entity
  }

  private async missed(target: Target): Promise<never> {
    if (target.version !== undefined) await this.refuseOtherVersion(target, target.version)
    return this.missing()
  }

  private async refuseOtherVersion({ key }: Target, expected: number): Promise<void> {
    const row = await this.loader.readRow(this.reading(), key)
    if (row !== undefined) this.refuseVersion(expected, row)
  }

  private refuseVersion(expectedVersion: number, row: OpenRow): void {
    const actualVersion = Number(row[this.definition.version ?? ''])
    if (actualVersion === expectedVersion) return
    throw new ConflictError(
      `${this.table}: the row was read at version ${expectedVersion} and is at ${actualVersion} now. Read it again, and decide with what it is now.`,
      { table: this.table, expectedVersion, actualVersion },
    )
  }

  /** For a Kysely that has no statement for many rows: as many values as the protocol takes. */
  private async insertInChunks(rows: readonly OpenRow[]): Promise<Entity[]> {
    const columns = new Set(rows.flatMap((row) => Object.keys(row))).size
    const perStatement = columns === 0 ? 1 : Math.max(1, Math.floor(maxParameters / columns))
    const created: Entity[] = []
    for (let from = 0; from < rows.length; from += perStatement) {
      const part = rows.slice(from, from + perStatement)
      const into = this.tables.insertInto(this.table)
      const insert = columns === 0 ? into.defaultValues() : into.values(part)
      created.push(...this.entities(await insert.returning(this.map.selection()).execute()))
    }
    return created
  }

  private async existing(columns: readonly string[], row: OpenRow): Promise<Entity> {
    let query = this.rows()
    for (const column of columns) query = query.where(sql.ref(`${this.table}.${column}`), '=', row[column])
    const { deletedAt } = this.definition
    if (deletedAt !== undefined) query = query.orderBy(sql`${this.map.reference(deletedAt)} desc nulls first`).limit(1)
    const found = await query.executeTakeFirst()
    return this.inserted(found && this.entity(found))
  }
}

/** Of one statement in the protocol. */
const maxParameters = 65_535

/** A query that can be cut after its first row. */
interface Limitable<Result> {
  limit(limit: number): { executeTakeFirst(): Promise<Result | undefined> }
}

function hasAny(row: OpenRow): boolean {
  return Object.keys(row).length > 0
}

function areAlike(rows: readonly OpenRow[]): boolean {
  const columns = Object.keys(rows[0] ?? {})
  return rows.every((row) => hasColumns(row, columns))
}

/** The places of the rows in their list, those together whose rows have the same columns. */
function placesByColumns(rows: readonly OpenRow[]): readonly number[] {
  const groups = Map.groupBy(rows.keys(), (place) => Object.keys(rows[place] ?? {}).join('\0'))
  return [...groups.values()].flat()
}

function backInOrder<Item>(items: readonly Item[], places: readonly number[]): Item[] {
  const ordered = [...items]
  for (const [index, item] of items.entries()) ordered[places[index] ?? index] = item
  return ordered
}

function list<Item>(value: readonly Item[], refusal: () => DatabaseError): readonly Item[] {
  if (Array.isArray(value)) return value
  throw refusal()
}
