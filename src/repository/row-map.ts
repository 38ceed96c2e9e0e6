import {
  type AliasedExpression,
  type InsertType,
  type KyselyPlugin,
  type SelectType,
  type UpdateType,
  sql,
} from 'kysely'
import { DatabaseError } from '../core/errors.ts'
import { quoted } from './select-node.ts'

/**
 * The column that holds each property of an entity. It has to name every property, and each column must exist and
 * be of the property's type, so that a renamed, dropped or retyped column stops compiling here. A property of another type than its
 * column's has a {@link PropertyMapping}.
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
  readonly [Property in keyof Entity & string]-?:
    | ColumnHolding<DB[Table], Entity[Property]>
    | MappingHolding<DB[Table], Entity[Property]>
}

/**
 * A property that is something else than what its column holds, for instance an amount of money instead of cents. Both ways are only
 * asked for values that are there: null stays null.
 *
 * @example
 * ```ts
 * const price = {
 *   column: 'price_minor',
 *   fromColumn: (minor: number) => ({ euros: minor / 100 }),
 *   toColumn: ({ euros }: { euros: number }) => Math.round(euros * 100),
 * } as const
 * ```
 */
export interface PropertyMapping<Column extends string, Stored, Value, Written = Stored> {
  readonly column: Column
  readonly fromColumn: (stored: Stored) => Value
  readonly toColumn: (value: Value) => Written
}

/** What each property of an entity is mapped to. */
export type PropertyColumns<Entity> = { readonly [Property in keyof Entity]: string | AnyMapping }

interface AnyMapping {
  readonly column: string
  fromColumn(stored: never): unknown
  toColumn(value: never): unknown
}

// Asked for the map that would fit, the compiler names the property that does not; asked for both at once, only `never`.
export type Fitting<Columns, Wanted> = Columns extends Wanted ? Columns : Wanted

type ColumnHolding<Row, Value> = {
  [Column in keyof Row & string]: [SelectType<Row[Column]>] extends [Value] ? Column : never
}[keyof Row & string]

type MappingHolding<Row, Value> = {
  [Column in keyof Row & string]: PropertyMapping<Column, NonNullable<SelectType<Row[Column]>>, NonNullable<Value>>
}[keyof Row & string]

/** The {@link ColumnMap} of entities that are the rows themselves. */
export type SameColumns<DB, Table extends keyof DB> = { readonly [Column in keyof DB[Table] & string]: Column }

type NameOf<Column> = Column extends { readonly column: infer Name } ? Name : Column

/** A value as it is given for a property: of the column's type, or of its mapping's. */
type Given<Column, Stored> = Column extends { toColumn(value: infer Value): unknown }
  ? Value | Extract<Stored, null | undefined>
  : Stored

/** What a new row is made of. */
export type NewValues<Row, Columns> = {
  readonly [P in keyof Columns as InsertKey<Row, NameOf<Columns[P]>, P, 'required'>]: Given<
    Columns[P],
    InsertType<Row[NameOf<Columns[P]> & keyof Row]>
  >
} & {
  readonly [P in keyof Columns as InsertKey<Row, NameOf<Columns[P]>, P, 'optional'>]?: Given<
    Columns[P],
    InsertType<Row[NameOf<Columns[P]> & keyof Row]>
  >
} & {
  // A column that an INSERT cannot do without, but no property holds, makes `create` uncallable by its name.
  readonly [C in Exclude<keyof Row, NameOf<Columns[keyof Columns]>> as InsertKey<Row, C, C, 'required'>]: never
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

/** What of a row may be changed. */
export type Patch<Row, Columns, Key> = {
  readonly [P in Exclude<keyof Columns, Key> as UpdateKey<Row, NameOf<Columns[P]>, P>]?: Given<
    Columns[P],
    UpdateType<Row[NameOf<Columns[P]> & keyof Row]>
  >
}

type UpdateKey<Row, Column, Property> = Column extends keyof Row
  ? [UpdateType<Row[Column]>] extends [never]
    ? never
    : Property
  : never

/** An entry of a select list that gives an entity. */
export type EntityColumn<Entity> = {
  [Property in keyof Entity & string]: AliasedExpression<Entity[Property], Property>
}[keyof Entity & string]

interface MappedColumn {
  readonly column: string
  readonly mapping: AnyMapping | undefined
}

/** Between the properties of an entity and the columns of its table, at run time: what is not in the map does not get through. */
export class RowMap {
  readonly table: string
  readonly #columns: ReadonlyMap<string, MappedColumn>
  readonly #mapped: readonly (readonly [property: string, mapping: AnyMapping])[]
  /** Properties are called as their columns are. */
  readonly #hasSameNames: boolean

  constructor(table: string, columns: Readonly<Record<string, string | AnyMapping>>) {
    this.table = table
    this.#columns = new Map(
      Object.entries(columns).map(([property, column]) => [
        property,
        typeof column === 'string' ? { column, mapping: undefined } : { column: column.column, mapping: column },
      ]),
    )
    this.#hasSameNames = [...this.#columns].every(([property, { column }]) => property === column)
    this.#mapped = [...this.#columns].flatMap(([property, { mapping }]) => (mapping ? [[property, mapping]] : []))
  }

  get properties(): readonly string[] {
    return [...this.#columns.keys()]
  }

  /** Some property is something else than its column holds. */
  get isMapped(): boolean {
    return this.#mapped.length > 0
  }

  /** The select list of an entity, or of a part of it. */
  selection(properties: readonly string[] = this.properties): readonly AliasedExpression<unknown, string>[] {
    return properties.map((property) => this.reference(property).as(property))
  }

  reference(property: string): ReturnType<typeof sql.ref> {
    return sql.ref(`${this.table}.${this.column(property)}`)
  }

  column(property: string): string {
    return this.#found(property).column
  }

  /** What the column holds for a value of the property, which has to be one that can be compared. */
  comparable(property: string, value: unknown): unknown {
    const { mapping } = this.#found(property)
    const stored = mapping !== undefined && isThere(value) ? mapping.toColumn(value as never) : value
    switch (typeof stored) {
      case 'string':
      case 'number':
      case 'bigint':
      case 'boolean':
        return stored
      case 'undefined':
        throw this.refusal(`${property} is undefined; leave it out, or use null to find rows without a value`, property)
      default:
        if (stored instanceof Date || stored instanceof Uint8Array) return stored
        throw this.refusal(
          `${property} must be compared with a string, number, bigint, boolean, Date, Uint8Array, a list of them, or by one of op`,
          property,
        )
    }
  }

  /** The columns of given properties. One that is `undefined` is left out. */
  toRow(values: object, call: string): Record<string, unknown> {
    if (!isPlain(values)) throw this.refusal(`${call} takes a plain object`)
    const row: Record<string, unknown> = {}
    for (const property of Object.keys(values)) {
      const value = (values as Record<string, unknown>)[property]
      const { column, mapping } = this.#found(property)
      if (bringsSql(value)) {
        throw this.refusal(`${property} must be a value; SQL expressions belong in a query on db`, property)
      }
      if (value !== undefined) row[column] = mapping && value !== null ? mapping.toColumn(value as never) : value
    }
    return row
  }

  /** An entity, or a part of it, out of what its select list gave. */
  toEntity(row: Record<string, unknown>): Record<string, unknown> {
    for (const [property, mapping] of this.#mapped) {
      const stored = row[property]
      if (isThere(stored)) row[property] = mapping.fromColumn(stored as never)
    }
    return row
  }

  /** {@link fromColumns} for a row that has nothing but these columns: it may become the entity itself. */
  fromExactColumns(row: Record<string, unknown>): Record<string, unknown> {
    return this.#hasSameNames ? this.toEntity(row) : this.fromColumns(row)
  }

  /** An entity out of a row whose properties are the columns. */
  fromColumns(row: Record<string, unknown>): Record<string, unknown> {
    const entity: Record<string, unknown> = {}
    for (const [property, { column }] of this.#columns) entity[property] = row[column]
    return this.toEntity(entity)
  }

  /** For queries whose select list is {@link selection}. */
  get plugin(): KyselyPlugin {
    return {
      transformQuery: ({ node }) => node,
      transformResult: ({ result }) =>
        Promise.resolve({ ...result, rows: result.rows.map((row) => this.toEntity(row)) }),
    }
  }

  refusal(problem: string, property?: string): DatabaseError {
    const column = property === undefined ? undefined : this.#columns.get(property)?.column
    return new DatabaseError('INVALID_ARGUMENT', `${this.table}: ${problem}.`, { table: this.table, column })
  }

  #found(property: string): MappedColumn {
    const found = this.#columns.get(property)
    if (found !== undefined) return found
    throw this.refusal(`has no property ${quoted(property)}; there are ${this.properties.join(', ')}`)
  }
}

/**
 * Own properties of a plain object. Anything else is refused: the conditions of `Object.create({ email })`, or of a
 * class instance with getters, would be none at all.
 */
export function entries(object: unknown, refusal: () => DatabaseError): [string, unknown][] {
  if (!isPlain(object)) throw refusal()
  return Object.entries(object)
}

function isPlain(object: unknown): object is object {
  if (typeof object !== 'object' || object === null) return false
  const prototype: unknown = Object.getPrototypeOf(object)
  return prototype === null || prototype === Object.prototype
}

function isThere(value: unknown): boolean {
  return value !== undefined && value !== null
}

/** Whether Kysely would take a value for SQL: it calls functions, and whatever has a `toOperationNode` to call. */
function bringsSql(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return typeof value === 'function'
  return 'toOperationNode' in value && typeof value.toOperationNode === 'function'
}
