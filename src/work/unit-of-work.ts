import { DatabaseError, isDatabaseError } from '../core/errors.ts'
import type { TableMapping } from '../core/table-mapping.ts'
import { executeSteps, type WrittenRows } from './work-execution.ts'
import { planSteps } from './work-plan.ts'
import { groupsOf } from './work-group.ts'
import { RowPreparation } from './work-rows.ts'
import type { Step, WorkStep } from './work-step.ts'
import {
  type ItemState,
  NewItem,
  Reference,
  type Referring,
  refusal,
  shapeOf,
  textOfKey,
  WorkItem,
} from './work-item.ts'
import { TableCatalog, type WorkDatabase } from './table-facts.ts'

/** A repository, as far as new rows go. */
export interface CreatingRepository<Entity extends object, Values> {
  readonly mapping: TableMapping
  create(values: Values): Promise<Entity>
}

/** A repository, as far as changed rows go. */
export interface UpdatingRepository<Entity extends object, Ref, Changes> {
  readonly mapping: TableMapping
  update(ref: Ref, patch: Changes): Promise<Entity>
}

/** A repository, as far as removed rows go. */
export interface DeletingRepository<Ref> {
  readonly mapping: TableMapping
  delete(ref: Ref): Promise<unknown>
}

/** What a flush has written. */
export interface FlushResult {
  /** The stored entities of new rows, in the order in which they were registered. */
  readonly created: readonly object[]
  /** The stored entities of changed rows, in the order in which they were registered. */
  readonly updated: readonly object[]
  /** How many rows were deleted, or marked as deleted. */
  readonly deleted: number
}

/**
 * Collects new, changed and removed rows of any tables, and writes them with one {@link flush}: in an order that foreign keys allow, with
 * one statement for each table and kind of change, all or nothing. Nothing is sent before; {@link plan} shows what would be.
 *
 * It is no identity map: it holds what it was told, tracks no entity, and reads nothing. It follows the rules of each repository: its
 * schemas, `version`, `updatedAt`, `deletedAt`, and not methods that a subclass has overridden.
 *
 * What is registered for one row becomes one change: of two values of a property the later counts, an update of a new row is part of its
 * insert, a new row that is deleted is none, and what is deleted cannot be changed any more.
 *
 * One unit of work is for one caller and one flush; calls while it is flushed, and after that, are refused with `INVALID_ARGUMENT`.
 *
 * @example
 * ```ts
 * import { createDatabase, type QuerySource, Repository, UnitOfWork } from 'kanta'
 * import type { DB } from './generated/schema.ts'
 *
 * class Categories extends Repository<DB, 'categories'> {
 *   constructor(database: QuerySource<DB>) {
 *     const columns = { id: 'id', parent_id: 'parent_id', slug: 'slug', name: 'name', position: 'position', created_at: 'created_at', updated_at: 'updated_at' } as const
 *     super(database, { table: 'categories', columns })
 *   }
 * }
 *
 * await using database = await createDatabase<DB>()
 * const categories = new Categories(database)
 * const work = new UnitOfWork(database)
 * const books = work.create(categories, { slug: 'books', name: 'Books' })
 * work.create(categories, { slug: 'poetry', name: 'Poetry', parent_id: books.ref('id') })
 * console.table(await work.plan())
 * await work.flush()
 * console.log(books.entity.id)
 * ```
 */
export class UnitOfWork {
  readonly #database: WorkDatabase
  readonly #items: ItemState[] = []
  readonly #handles = new Map<ItemState, WorkItem>()
  /** By table and key. */
  readonly #byRow = new Map<string, ItemState>()
  readonly #registered = new WeakMap<object, ItemState>()
  readonly #mappings = new Map<object, TableMapping>()
  #stage: 'flushed' | 'flushing' | 'open' = 'open'

  constructor(database: WorkDatabase) {
    this.#database = database
  }

  /**
   * Registers a row to be inserted. A value may be a {@link NewItem.ref} to another new row. `INVALID_ARGUMENT`: the same object was
   * registered before, or another row with this key.
   */
  create<Entity extends object, Values>(
    repository: CreatingRepository<Entity, Values>,
    values: Referring<NoInfer<Values>>,
  ): NewItem<Entity> {
    const mapping = this.#mappingOf(repository)
    const given = this.#copy(mapping, values, 'create')
    const before = this.#registered.get(values)
    if (before !== undefined && this.#items.includes(before)) {
      throw refusal(
        mapping,
        'this object was registered as a new row before; give a copy to insert a second row like it',
      )
    }
    const key = keyOfNew(mapping, given)
    const item: ItemState = { ...itemOf('create', mapping, key ?? []), values: given }
    if (key !== undefined) {
      const place = rowName(mapping, key)
      const known = this.#byRow.get(place)
      if (known !== undefined && known.kind !== 'delete') {
        throw refusal(mapping, 'a row with this key is registered already; a row can be inserted once')
      }
      // A row that is deleted and inserted anew stays known as the new one; the deleted one is kept in the list.
      this.#byRow.set(place, item)
    }
    this.#registered.set(values, item)
    return this.#add(item, new NewItem<Entity>(item))
  }

  /**
   * Registers a change of a row, by its key or by an entity that was read, whose version then has to be that of the row. A patch
   * without changes makes sure that the row is there, at that version, until the commit. Of a row that was registered before, the changes
   * are merged. `INVALID_ARGUMENT`: the row is to be deleted, or was given with another version.
   */
  update<Entity extends object, Ref, Changes>(
    repository: UpdatingRepository<Entity, Ref, Changes>,
    ref: NoInfer<Ref> | WorkItem<Entity>,
    patch: Referring<NoInfer<Changes>>,
  ): WorkItem<Entity> {
    const mapping = this.#mappingOf(repository)
    const changes = this.#copy(mapping, patch, 'update')
    const item = this.#itemFor('update', mapping, ref)
    if (item.kind === 'delete' || item.isDropped) {
      throw refusal(mapping, 'a row that is registered to be deleted cannot be changed in the same unit of work')
    }
    for (const property of mapping.key) {
      if (item.kind === 'create' && changes[property] !== undefined) {
        throw refusal(mapping, `update cannot change ${JSON.stringify(property)}, the key of the row`)
      }
    }
    Object.assign(item.values, changes)
    return this.#handleOf(item) as WorkItem<Entity>
  }

  /**
   * Registers a row to be deleted, or marked as deleted where the repository does that: by its key, or by an entity that was read, whose
   * version then has to be that of the row. One that is not there is not counted. A new row of this unit of work is inserted no more.
   */
  delete<Ref>(repository: DeletingRepository<Ref>, ref: NoInfer<Ref> | WorkItem): WorkItem {
    const mapping = this.#mappingOf(repository)
    const item = this.#itemFor('delete', mapping, ref)
    if (item.kind === 'create') {
      this.#drop(item)
    } else {
      item.kind = 'delete'
      item.values = {}
    }
    return this.#handleOf(item)
  }

  /** Takes back what was registered for a row, for instance after its flush has failed. */
  discard(item: WorkItem): void {
    this.#assertOpen()
    if (!this.#handles.delete(item.state)) {
      throw refusal(item.state.mapping, 'this row is not registered with this unit of work, or was taken back before')
    }
    this.#items.splice(this.#items.indexOf(item.state), 1)
    this.#drop(item.state)
  }

  /**
   * The statements that {@link flush} would send, in their order. The tables are looked up where they are not known yet; nothing is
   * written, and no schema of a repository is asked: what it would add or refuse shows in the flush. `INVALID_ARGUMENT` as there.
   */
  async plan(): Promise<readonly WorkStep[]> {
    this.#assertOpen()
    const items = this.#live()
    if (items.length === 0) return []
    const catalog = TableCatalog.of(this.#database)
    const groups = await groupsOf(items, catalog)
    const { rows, questions } = new RowPreparation(this.#database, groups).look()
    return [...questions, ...planSteps(groups, rows)].map(describe)
  }

  /**
   * Writes everything, or nothing. It joins the transaction of the async context, as a savepoint; outside of one it opens its own, which is
   * repeated as a whole when the server asks for it. Without anything registered nothing is sent.
   *
   * `VALIDATION_FAILED` of a repository's schema, before anything is written; `VERSION_CONFLICT` and `NOT_FOUND` for the first row that was
   * changed or deleted by somebody else, and {@link WorkItem.failure} for each of them; `INVALID_ARGUMENT` for values that cannot be sent,
   * references to rows that are not inserted, and circles of foreign keys that no order of statements satisfies; else as the
   * server refuses. After any of these the unit of work is as before, and can be looked at, changed and flushed again; so it is
   * when the surrounding transaction is rolled back later. After `COMMIT_OUTCOME_UNKNOWN` look what is stored first.
   */
  async flush(): Promise<FlushResult> {
    this.#assertOpen()
    this.#stage = 'flushing'
    const items = this.#live()
    try {
      for (const item of items) item.failure = undefined
      const written = items.length === 0 ? undefined : await this.#write(items)
      this.#stage = 'flushed'
      return settle(items, written)
    } catch (error) {
      this.#reopen(items)
      if (!isExpected(error)) TableCatalog.of(this.#database).forget()
      throw error
    }
  }

  async #write(items: readonly ItemState[]): Promise<WrittenRows> {
    const database = this.#database
    if (database.currentTransaction === undefined) {
      const steps = await this.#prepare(items)
      return database.transaction(() => executeSteps(steps, database))
    }
    return database.transaction(async () => {
      // The transaction around it may run again from its beginning, and then has to find the work to be done.
      database.afterRollback(() => this.#reopen(items))
      return executeSteps(await this.#prepare(items), database)
    })
  }

  async #prepare(items: readonly ItemState[]): Promise<readonly Step[]> {
    const catalog = TableCatalog.of(this.#database)
    for (;;) {
      const groups = await groupsOf(items, catalog)
      const rows = await new RowPreparation(this.#database, groups).prepare()
      if (rows !== undefined) return planSteps(groups, rows)
      catalog.forget()
    }
  }

  #reopen(items: readonly ItemState[]): void {
    this.#stage = 'open'
    for (const item of items) item.entity = undefined
  }

  #drop(item: ItemState): void {
    item.isDropped = true
    const place = rowName(item.mapping, item.key)
    if (this.#byRow.get(place) !== item) return
    this.#byRow.delete(place)
    // What was to be inserted anew is deleted all the same.
    const deleted = this.#items.find(
      ({ kind, mapping, key, isDropped }) => kind === 'delete' && !isDropped && rowName(mapping, key) === place,
    )
    if (deleted !== undefined) this.#byRow.set(place, deleted)
  }

  #live(): readonly ItemState[] {
    return this.#items.filter(({ isDropped }) => !isDropped)
  }

  #mappingOf(repository: { readonly mapping: TableMapping }): TableMapping {
    this.#assertOpen()
    const known = this.#mappings.get(repository)
    if (known !== undefined) return known
    const { mapping } = repository
    const { source } = mapping
    const database: object = this.#database
    if (source === database || (source as { db?: unknown }).db === this.#database.db) {
      this.#mappings.set(repository, mapping)
      return mapping
    }
    throw refusal(
      mapping,
      'the repository is of another database than the unit of work, or bound to a transaction by withTransaction. Give the repository itself; a flush joins the transaction by itself',
    )
  }

  #copy(mapping: TableMapping, values: unknown, call: string): Record<string, unknown> {
    const prototype: unknown = typeof values === 'object' && values !== null ? Object.getPrototypeOf(values) : undefined
    if (prototype !== null && prototype !== Object.prototype) throw refusal(mapping, `${call} takes a plain object`)
    const entries = Object.entries(values as object).filter(([, value]) => value !== undefined)
    for (const [property, value] of entries) {
      if (!(value instanceof Reference) || this.#handles.has(value.to)) continue
      throw refusal(
        mapping,
        `${JSON.stringify(property)} refers to a row that is not registered with this unit of work`,
      )
    }
    return Object.fromEntries(entries)
  }

  #itemFor(kind: 'delete' | 'update', mapping: TableMapping, ref: unknown): ItemState {
    if (ref instanceof WorkItem) {
      const { state } = ref
      if (this.#handles.get(state) === ref && state.shape === shapeOf(mapping)) return state
      throw refusal(mapping, 'the row is not registered with this unit of work, or through another repository')
    }
    const { key, version } = mapping.target(ref)
    const place = rowName(mapping, key)
    const known = this.#byRow.get(place)
    if (known === undefined) {
      const item = { ...itemOf(kind, mapping, key), version }
      this.#byRow.set(place, item)
      this.#add(item, new WorkItem(item))
      return item
    }
    if (known.shape !== shapeOf(mapping)) {
      throw refusal(mapping, 'the row is registered through a repository that maps this table in another way')
    }
    if (version !== undefined && known.version !== undefined && version !== known.version) {
      throw refusal(
        mapping,
        `the row is registered at version ${known.version} and now at ${version}; discard the older registration first`,
      )
    }
    known.version ??= version
    return known
  }

  #add<Handle extends WorkItem>(item: ItemState, handle: Handle): Handle {
    this.#items.push(item)
    this.#handles.set(item, handle)
    return handle
  }

  #handleOf(item: ItemState): WorkItem {
    return this.#handles.get(item) as WorkItem
  }

  #assertOpen(): void {
    if (this.#stage === 'open') return
    throw new DatabaseError(
      'INVALID_ARGUMENT',
      this.#stage === 'flushing'
        ? 'The unit of work is being flushed. Await the flush, and take a new unit of work for what comes next.'
        : 'The unit of work was flushed. Take a new one for what comes next.',
    )
  }
}

function itemOf(kind: ItemState['kind'], mapping: TableMapping, key: readonly unknown[]): ItemState {
  const rest = { version: undefined, isDropped: false, entity: undefined, failure: undefined }
  return { kind, mapping, shape: shapeOf(mapping), key, values: {}, ...rest }
}

/** The key of a new row, where it is given. */
function keyOfNew(mapping: TableMapping, values: Readonly<Record<string, unknown>>): readonly unknown[] | undefined {
  const isGiven = (property: string): boolean =>
    values[property] !== undefined && values[property] !== null && !(values[property] instanceof Reference)
  if (mapping.key.length === 0 || !mapping.key.every(isGiven)) return undefined
  const row = mapping.toColumns(Object.fromEntries(mapping.key.map((name) => [name, values[name]])), 'create')
  return mapping.key.map((property) => row[mapping.columns.get(property) ?? property])
}

function rowName({ table }: TableMapping, key: readonly unknown[]): string {
  return `${table} ${textOfKey(key)}`
}

/** Says nothing of the tables: others were faster, or the values are wrong. */
function isExpected(error: unknown): boolean {
  if (!isDatabaseError(error)) return true
  return ['NOT_FOUND', 'UNIQUE_VIOLATION', 'VALIDATION_FAILED', 'VERSION_CONFLICT'].includes(error.code)
}

function describe({ operation, table, rows, columns, why }: WorkStep): WorkStep {
  return { operation, table, rows, columns, why }
}

function settle(items: readonly ItemState[], written: WrittenRows | undefined): FlushResult {
  for (const item of items) item.entity = written?.entities.get(item)
  const of = (kind: ItemState['kind']): object[] =>
    items.flatMap((item) => (item.kind === kind && item.entity !== undefined ? [item.entity] : []))
  return { created: of('create'), updated: of('update'), deleted: written?.deleted ?? 0 }
}
