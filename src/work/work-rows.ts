import { sql } from 'kysely'
import type { TableMapping } from '../core/table-mapping.ts'
import { type ColumnFacts, defaultsMarkOf, type WorkDatabase } from './table-facts.ts'
import { columnsOf, type WorkGroup, type WorkRow, type WorkRows } from './work-group.ts'
import { type ItemState, Reference, refusal, textOfKey } from './work-item.ts'
import type { WorkStep } from './work-step.ts'

/** Of some columns, the rows that need a value of its default. */
type Wanted = Map<WorkGroup, Map<string, Set<ItemState>>>

/** Makes the rows of a flush out of what was registered: references resolved, values checked by the schemas, defaults where they must be known. */
export class RowPreparation {
  readonly #database: WorkDatabase
  readonly #groups: readonly WorkGroup[]
  readonly #groupOf = new Map<ItemState, WorkGroup>()
  readonly #rows = new Map<ItemState, WorkRow>()
  /** Values of defaults that others refer to. */
  readonly #reserved = new Map<ItemState, WorkRow>()
  readonly #underway = new Set<ItemState>()
  /** Reserved values that others have taken before the schema of the row was asked. */
  readonly #promised = new Map<ItemState, Set<string>>()

  constructor(database: WorkDatabase, groups: readonly WorkGroup[]) {
    this.#database = database
    this.#groups = groups
    for (const group of groups) {
      for (const item of [...group.creates, ...group.updates, ...group.deletes]) this.#groupOf.set(item, group)
    }
  }

  /** As far as it can be said without asking anybody; and the questions that there would be. */
  look(): { readonly rows: WorkRows; readonly questions: readonly WorkStep[] } {
    const referred = this.#referredDefaults()
    for (const item of this.#written()) {
      const { mapping, values } = item
      const { given, references } = split(values)
      const row = mapping.toColumns(given, item.kind)
      for (const [property, reference] of references) row[columnOf(mapping, property)] = reference
      this.#rows.set(item, row)
    }
    for (const [group, columns] of referred) {
      for (const [column, items] of columns) {
        for (const item of items) this.#rowOf(item)[column] ??= new Reference(item, propertyOf(group, column))
      }
    }
    const questions = [
      ...question(referred, 'other rows refer to these values, which the defaults of their columns make'),
      ...question(
        this.#differingDefaults(),
        'the new rows of a table are one statement, so all of them have the same columns',
      ),
    ]
    return { rows: this.#rows, questions }
  }

  /** The rows to be sent; nothing when the defaults of a table have changed since its facts were read. */
  async prepare(): Promise<WorkRows | undefined> {
    const referred = this.#referredDefaults()
    // Whatever a schema refuses is told before anything is asked.
    for (const item of this.#written()) if (split(item.values).references.length === 0) await this.#prepare(item)
    for (const columns of referred.values()) {
      for (const [column, items] of columns) {
        // A schema may have made the value.
        for (const item of items) if (this.#rows.get(item)?.[column] !== undefined) items.delete(item)
        if (items.size === 0) columns.delete(column)
      }
    }
    const reserved = await this.#ask(referred, false)
    if (reserved === undefined) return undefined
    for (const [item, column, value] of reserved) {
      const known = this.#reserved.get(item) ?? {}
      known[column] = value
      this.#reserved.set(item, known)
    }
    for (const item of this.#written()) await this.#prepare(item)
    this.#assertNotOverruled()
    this.#fillReserved()
    const differing = await this.#ask(this.#differingDefaults(), true)
    if (differing === undefined) return undefined
    for (const [item, column, value] of differing) {
      this.#rowOf(item)[column] = value
    }
    return this.#rows
  }

  #written(): readonly ItemState[] {
    return this.#groups.flatMap(({ creates, updates }) => [...creates, ...updates])
  }

  #rowOf(item: ItemState): WorkRow {
    const row = this.#rows.get(item) ?? {}
    this.#rows.set(item, row)
    return row
  }

  async #prepare(item: ItemState): Promise<WorkRow> {
    const known = this.#rows.get(item)
    if (known !== undefined) return known
    const { mapping, kind } = item
    if (this.#underway.has(item))
      throw refusal(mapping, 'rows refer to values that they have from one another, in a circle')
    this.#underway.add(item)
    const { given, references } = split(item.values)
    for (const [property, reference] of references) given[property] = await this.#resolve(reference, mapping, property)
    const row = await (kind === 'create' ? mapping.newRow(given, 'create') : mapping.changes(given, 'update'))
    this.#underway.delete(item)
    this.#rows.set(item, row)
    return row
  }

  async #resolve(reference: Reference<unknown>, by: TableMapping, place: string): Promise<unknown> {
    const { to, property } = reference
    const value = await this.#valueOf(to, property)
    if (value !== undefined && value !== null) return value
    throw refusal(by, `${place} refers to ${to.mapping.table}.${property}, which the new row there does not have`)
  }

  async #valueOf(to: ItemState, property: string): Promise<unknown> {
    const { mapping, values } = to
    const column = columnOf(mapping, property)
    // Rows that refer to one another in a long chain must not be as deep a stack.
    await Promise.resolve()
    const stored = await this.#storedOf(to, column)
    const given = values[property]
    // What is given is a property already; what it is written as may not be what is read.
    if (given !== undefined && given !== null && !(given instanceof Reference)) {
      const written = mapping.toColumns({ [property]: given }, 'create')[column]
      if (textOfKey([written]) === textOfKey([stored])) return given
    }
    return (mapping.toEntity({ [column]: stored }) as Record<string, unknown>)[property]
  }

  /** The schema of the row has the word, except in a circle, where what was asked for is the only thing that can be known. */
  async #storedOf(to: ItemState, column: string): Promise<unknown> {
    const reserved = this.#reserved.get(to)?.[column]
    if (reserved === undefined || !this.#underway.has(to)) {
      const row = await this.#prepare(to)
      return row[column] === undefined ? reserved : row[column]
    }
    this.#promised.set(to, (this.#promised.get(to) ?? new Set()).add(column))
    return reserved
  }

  #fillReserved(): void {
    for (const [item, values] of this.#reserved) {
      const row = this.#rowOf(item)
      for (const [column, value] of Object.entries(values)) {
        if (row[column] === undefined) row[column] = value
        if (row[column] === value || this.#promised.get(item)?.has(column) !== true) continue
        throw refusal(
          item.mapping,
          `the schema makes ${column} of a row to which others refer in a circle; give it then`,
        )
      }
    }
  }

  /** With the defaults that were asked for the server is overruled, which is not for values of the caller. */
  #assertNotOverruled(): void {
    for (const { creates, factsOf, mapping } of this.#groups) {
      const always = [...factsOf].flatMap(([column, facts]) => (facts.always ? [column] : []))
      for (const item of creates) {
        const given = always.find((column) => this.#rowOf(item)[column] !== undefined)
        if (given === undefined) continue
        throw refusal(mapping, `a new row was given a value for ${given}, which the database always makes itself`)
      }
    }
  }

  /** What others refer to and nobody gives. */
  #referredDefaults(): Wanted {
    const wanted: Wanted = new Map()
    for (const item of this.#written()) {
      for (const [place, { to, property }] of split(item.values).references) {
        const group = this.#groupOf.get(to)
        if (group === undefined || to.isDropped) {
          throw refusal(item.mapping, `${place} refers to a row of ${to.mapping.table} that is not inserted any more`)
        }
        if (to.values[property] !== undefined) continue
        const column = columnOf(to.mapping, property)
        if (wanted.get(group)?.has(column) === true) continue
        const facts = group.factsOf.get(column)
        if (facts === undefined || facts.default === null) {
          throw refusal(
            item.mapping,
            `${place} refers to ${to.mapping.table}.${property}, which is neither given nor made by a default of its column`,
          )
        }
        // Its neighbours will need the column as well, and are asked for in the same breath.
        for (const one of group.creates) if (one.values[property] === undefined) add(wanted, group, column, one)
      }
    }
    return wanted
  }

  /** Defaults of columns that some new rows of a table give and others do not. */
  #differingDefaults(): Wanted {
    const wanted: Wanted = new Map()
    for (const group of this.#groups) {
      for (const column of columnsOf(group.creates, this.#rows)) {
        const facts = group.factsOf.get(column)
        for (const item of group.creates) {
          if (this.#rowOf(item)[column] !== undefined || facts?.hasDefault !== true || facts.default === null) continue
          add(wanted, group, column, item)
        }
      }
    }
    return wanted
  }

  async #ask(wanted: Wanted, asText: boolean): Promise<(readonly [ItemState, string, unknown])[] | undefined> {
    const columns = [...wanted].flatMap(([group, of]) =>
      [...of].map(([column, items]) => ({ group, column, items: [...items] })),
    )
    if (columns.length === 0) return []
    const parts = columns.map(({ group, column, items }, index) => {
      const { default: expression, type } = group.factsOf.get(column) as ColumnFacts
      // What nobody looks at comes back as the server writes it.
      const value = sql.raw(`(${expression})::${type}${asText ? '::text' : ''}`)
      return sql`case when n <= ${sql.lit(items.length)} then ${value} end as ${sql.id(`v${index}`)}`
    })
    const tables = [...new Set([...wanted.keys()].map(({ facts }) => facts))]
    const marks = tables.map(({ oid }, index) => sql`${defaultsMarkOf(sql.lit(oid))} as ${sql.id(`m${index}`)}`)
    const most = Math.max(...columns.map(({ items }) => items.length))
    const rows = await this.#database.query(
      sql<
        Record<string, unknown>
      >`select ${sql.join([...parts, ...marks])} from generate_series(1, ${sql.lit(most)}) as n order by n`,
    )
    const values = rows.map((row) => Object.values(row))
    if (tables.some(({ defaultsMark }, index) => values[0]?.[columns.length + index] !== defaultsMark)) return undefined
    return columns.flatMap(({ column, items }, index) =>
      items.map((item, place) => [item, column, values[place]?.[index]] as const),
    )
  }
}

function add(wanted: Wanted, group: WorkGroup, column: string, item: ItemState): void {
  const columns = wanted.get(group) ?? new Map<string, Set<ItemState>>()
  wanted.set(group, columns)
  columns.set(column, (columns.get(column) ?? new Set()).add(item))
}

function question(wanted: Wanted, why: string): readonly WorkStep[] {
  if (wanted.size === 0) return []
  const tables = [...wanted.keys()].map(({ mapping }) => mapping.table)
  const columns = [...wanted].flatMap(([{ mapping }, of]) => [...of.keys()].map((name) => `${mapping.table}.${name}`))
  const rows = [...wanted.values()].flatMap((of) => [...of.values()]).reduce((sum, items) => sum + items.size, 0)
  return [{ operation: 'values', table: tables.length === 1 ? tables[0] : undefined, rows, columns, why }]
}

function split(values: Readonly<Record<string, unknown>>): {
  readonly given: Record<string, unknown>
  readonly references: readonly (readonly [property: string, reference: Reference<unknown>])[]
} {
  const given: Record<string, unknown> = {}
  const references: (readonly [string, Reference<unknown>])[] = []
  for (const [property, value] of Object.entries(values)) {
    if (value instanceof Reference) references.push([property, value])
    else given[property] = value
  }
  return { given, references }
}

function columnOf(mapping: TableMapping, property: string): string {
  const column = mapping.columns.get(property)
  if (column !== undefined) return column
  throw refusal(
    mapping,
    `has no property ${JSON.stringify(property)}; there are ${[...mapping.columns.keys()].join(', ')}`,
  )
}

function propertyOf({ mapping }: WorkGroup, column: string): string {
  return [...mapping.columns].find(([, name]) => name === column)?.[0] ?? column
}
