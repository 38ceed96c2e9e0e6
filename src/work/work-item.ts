import { DatabaseError } from '../core/errors.ts'
import type { TableMapping } from '../core/table-mapping.ts'

/** What is to become of a row. */
export type WorkKind = 'create' | 'delete' | 'update'

/**
 * One row that is registered with a {@link UnitOfWork}: what it is after the flush, or why the flush could not write it.
 */
export class WorkItem<out Entity extends object = object> {
  /** @internal */
  readonly state: ItemState

  /** @internal */
  constructor(state: ItemState) {
    this.state = state
  }

  /** The entity as it is stored. `INVALID_ARGUMENT` before the flush, after a rollback, and of what is deleted. */
  get entity(): Entity {
    const { entity, mapping } = this.state
    if (entity !== undefined) return entity as Entity
    throw refusal(mapping, 'this row has no stored entity: it was not flushed yet, was rolled back, or is deleted')
  }

  /** Why the last flush failed at this row, if it did: it was not there, or had another version. */
  get failure(): DatabaseError | undefined {
    return this.state.failure
  }
}

/** A row that a {@link UnitOfWork} is to insert. */
export class NewItem<out Entity extends object = object> extends WorkItem<Entity> {
  /**
   * The value that a property of this row will have, as a value of another row in the same unit of work: for a key that the
   * database makes, too.
   */
  ref<Property extends keyof Entity & string>(property: Property): Reference<NonNullable<Entity[Property]>> {
    if (!this.state.mapping.columns.has(property)) {
      throw refusal(
        this.state.mapping,
        `ref was asked for ${JSON.stringify(property)}, which is no property of the repository`,
      )
    }
    return new Reference(this.state, property)
  }
}

/** A value that is known once another row is. {@link NewItem.ref} makes it. */
export class Reference<out Value> {
  /** What it stands for; for the compiler only. */
  declare protected readonly value: Value
  /** @internal */
  readonly to: ItemState
  /** @internal */
  readonly property: string

  /** @internal */
  constructor(to: ItemState, property: string) {
    this.to = to
    this.property = property
  }
}

/** Values, of which each can be taken from another new row. */
export type Referring<Values> = {
  readonly [Property in keyof Values]: Values[Property] | Reference<NonNullable<Values[Property]>>
}

/** What is known of a registered row. */
export interface ItemState {
  kind: WorkKind
  readonly mapping: TableMapping
  /** Rows whose mappings are alike are written together. */
  readonly shape: string
  /** By property: of a new row, or what is changed. */
  values: Record<string, unknown>
  /** Of a row that is there: its key, as columns hold it. */
  readonly key: readonly unknown[]
  /** The version that it was read at, if it was. */
  version: number | undefined
  /** Created and deleted again: nothing is written, and nothing can refer to it. */
  isDropped: boolean
  entity: object | undefined
  failure: DatabaseError | undefined
}

const shapes = new WeakMap<TableMapping, string>()

/** Mappings of one shape write alike. */
export function shapeOf(mapping: TableMapping): string {
  const { table, key, columns, version, updatedAt, deletedAt, seesDeleted } = mapping
  const shape =
    shapes.get(mapping) ?? JSON.stringify([table, key, [...columns], version, updatedAt, deletedAt, seesDeleted])
  shapes.set(mapping, shape)
  return shape
}

/** What equal values have in common, as far as is known of them here. */
export function textOfKey(values: readonly unknown[]): string {
  return JSON.stringify(values.map(textOfValue))
}

function textOfValue(value: unknown): string {
  if (value instanceof Date) return value.toISOString()
  if (value instanceof Uint8Array) return Buffer.from(value).toString('hex')
  const text = String(value)
  return /^[\da-f]{8}-(?:[\da-f]{4}-){3}[\da-f]{12}$/i.test(text) ? text.toLowerCase() : text
}

export function refusal({ table }: TableMapping, problem: string): DatabaseError {
  return new DatabaseError('INVALID_ARGUMENT', `${table}: ${problem}.`, { table })
}
