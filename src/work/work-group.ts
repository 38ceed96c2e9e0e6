import { sql } from 'kysely'
import type { TableMapping } from '../core/table-mapping.ts'
import type { ColumnFacts, TableCatalog, TableFacts } from './table-facts.ts'
import { type ItemState, refusal } from './work-item.ts'

/** Rows that are written alike, because their repositories map them alike. */
export interface WorkGroup {
  readonly mapping: TableMapping
  readonly facts: TableFacts
  readonly creates: ItemState[]
  readonly updates: ItemState[]
  readonly deletes: ItemState[]
  /** By the name that the server has for a column, the one by which the repository calls it. */
  readonly columnOf: ReadonlyMap<string, string>
  /** By the name that the repository has for a column. */
  readonly factsOf: ReadonlyMap<string, ColumnFacts>
}

/** By column, what is written of a row; in a plan that is only looked at, a reference for what is not known yet. */
export type WorkRow = Record<string, unknown>

/** The rows of a flush: {@link ItemState.values} as columns hold them. */
export type WorkRows = ReadonlyMap<ItemState, WorkRow>

/** Sorts rows into {@link WorkGroup}s. */
export async function groupsOf(items: readonly ItemState[], catalog: TableCatalog): Promise<readonly WorkGroup[]> {
  const tables = await catalog.read(new Set(items.map(({ mapping }) => mapping.table)))
  const groups = new Map<string, WorkGroup>()
  for (const item of items) {
    const group = groups.get(item.shape) ?? groupOf(item.mapping, tables.get(item.mapping.table) as TableFacts, catalog)
    groups.set(item.shape, group)
    group[`${item.kind}s`].push(item)
  }
  return [...groups.values()]
}

function groupOf(mapping: TableMapping, facts: TableFacts, catalog: TableCatalog): WorkGroup {
  const columns = [...mapping.columns.values()]
  const columnOf = new Map(columns.map((column) => [catalog.nameOf(sql.id(column)), column]))
  const factsOf = new Map<string, ColumnFacts>()
  for (const [name, column] of columnOf) {
    const known = facts.columns.get(name)
    if (known === undefined) {
      catalog.forget()
      throw refusal(mapping, `has no column ${name}, which its repository maps; look for a migration that is missing`)
    }
    factsOf.set(column, known)
  }
  return { mapping, facts, creates: [], updates: [], deletes: [], columnOf, factsOf }
}

/** The columns that at least one of the rows has, in the order of the repository. */
export function columnsOf(items: readonly ItemState[], rows: WorkRows): readonly string[] {
  const given = new Set(items.flatMap((item) => Object.keys(rows.get(item) ?? {})))
  return [...(items[0]?.mapping.columns.values() ?? [])].filter((column) => given.has(column))
}
