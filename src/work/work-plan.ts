import { columnsOf, type WorkGroup, type WorkRow, type WorkRows } from './work-group.ts'
import { type ItemState, Reference, textOfKey } from './work-item.ts'
import { type Link, linksAmong, nullableColumns, orderTables, type TableOrder } from './work-order.ts'
import type { Step } from './work-step.ts'

/**
 * The statements that write the rows. New rows come before changes, which can refer to them, and those before deletions, which they can
 * make room for. Deletions and changes of a table come first where they may free a unique value that is taken in the same
 * unit of work, unless a foreign key needs them later.
 */
export function planSteps(groups: readonly WorkGroup[], rows: WorkRows): readonly Step[] {
  const removing = groups.filter(({ deletes }) => deletes.length > 0)
  const marking = removing.filter(({ mapping }) => mapping.deletedAt !== undefined)
  const deleting = removing.filter(({ mapping }) => mapping.deletedAt === undefined)
  const early = earlyDeletes(groups, deleting, rows)
  const inserts = insertOrder(groups, rows)
  const earlyDeletions = deleteOrder(deleting.filter((group) => early.has(group)))
  const lateDeletions = deleteOrder(deleting.filter((group) => !early.has(group)))
  const deferred = [...earlyDeletions.deferred, ...inserts.deferred, ...lateDeletions.deferred]
  const updating = updateOrder(groups)
  const soon = updating.filter((group) => isEarlyUpdate(group, groups, rows))
  const late = updating.filter((group) => !soon.includes(group))
  return [
    ...constraintStep('defer', deferred),
    ...deleteOrder(marking).groups.toReversed().map(markStep),
    ...deleteSteps(earlyDeletions, 'before what is written, which may take a unique value that it frees'),
    ...soon.flatMap((group) =>
      updateSteps(group, rows, 'before the new rows, which may take a unique value that it frees'),
    ),
    ...insertSteps(inserts, rows),
    ...late.flatMap((group) => updateSteps(group, rows, 'after the new rows, which it may refer to')),
    ...deleteSteps(lateDeletions, 'after the changes, which may let go of it'),
    ...constraintStep('enforce', deferred),
  ]
}

function insertOrder(groups: readonly WorkGroup[], rows: WorkRows): TableOrder {
  const creating = groups.filter(({ creates }) => creates.length > 0)
  const used = linksAmong(creating).filter(({ child, key }) =>
    child.creates.some((item) => valueOf(item, child, key.columns, rows) !== undefined),
  )
  return orderTables(creating, used, (link) => referring(link, rows).length === 0, 'insert')
}

/** The new rows that refer to another new row by this link. */
function referring({ child: from, parent, key }: Link, rows: WorkRows): readonly ItemState[] {
  const known = new Set(parent.creates.map((item) => valueOf(item, parent, key.toColumns, rows)))
  const parents = new Set(parent.creates)
  return from.creates.filter((item) => {
    const row = rows.get(item) ?? {}
    const given = key.columns.map((name) => row[from.columnOf.get(name) ?? ''])
    if (given.some((value) => value instanceof Reference && parents.has(value.to))) return true
    const value = valueOf(item, from, key.columns, rows)
    return value !== undefined && known.has(value)
  })
}

/** What a row has in some columns, to be compared; `undefined` when one of them has nothing, and refers to nothing. */
function valueOf(item: ItemState, group: WorkGroup, names: readonly string[], rows: WorkRows): string | undefined {
  const row = rows.get(item) ?? {}
  const values = names.map((name) => row[group.columnOf.get(name) ?? ''])
  return values.some((value) => value === undefined || value === null) ? undefined : textOfKey(values)
}

function insertSteps(order: TableOrder, rows: WorkRows): readonly Step[] {
  const inserts = order.groups.flatMap((group): Step[] => {
    const held = order.broken.filter((link) => link.child === group)
    const parents = unique(order.links.filter((link) => link.child === group).map(({ parent }) => parent.mapping.table))
    const later = unique(held.map(({ parent }) => parent.mapping.table))
    const why = [
      parents.length > 0 ? `after ${parents.join(', ')}, which it refers to` : 'refers to no other new rows',
      ...(later.length > 0 ? [`what it has of ${later.join(', ')} is null at first`] : []),
    ].join('; ')
    const written = held.length === 0 ? rows : withoutLinks(held, rows)
    return alike(group, rows).map((items) => ({
      ...stepOf('insert', group, items, columnsOf(items, rows), why),
      written,
    }))
  })
  return [...inserts, ...order.broken.map((link) => completeStep(link, rows))]
}

/** The new rows of one statement: of what is no table, those with the same columns, since nobody knows the defaults of the others. */
function alike({ facts, creates }: WorkGroup, rows: WorkRows): readonly (readonly ItemState[])[] {
  if (facts.isTable) return [creates]
  return [...Map.groupBy(creates, (item) => columnsOf([item], rows).join('\0')).values()]
}

function withoutLinks(links: readonly Link[], rows: WorkRows): WorkRows {
  const changed = new Map(rows)
  for (const link of links) {
    const nulls = Object.fromEntries(nullableColumns(link).map((column) => [column, null]))
    for (const item of referring(link, rows)) changed.set(item, { ...changed.get(item), ...nulls })
  }
  return changed
}

function completeStep(link: Link, rows: WorkRows): Step {
  const why = `the new rows of ${link.child.mapping.table} and ${link.parent.mapping.table} refer to one another`
  const columns = nullableColumns(link)
  return { ...stepOf('complete', link.child, referring(link, rows), columns, why), written: rows }
}

function deleteOrder(groups: readonly WorkGroup[]): TableOrder {
  const links = linksAmong(groups).map((link): Link =>
    link.key.restricts ? { ...link, key: { ...link.key, checked: 'always at once' } } : link,
  )
  // Where the server takes the children along, or lets them go, the order does not matter.
  return orderTables(groups, links, ({ key }) => key.gives, 'delete')
}

function deleteSteps(order: TableOrder, place: string): readonly Step[] {
  const detaching = order.broken.map((link): Step => {
    const columns = nullableColumns(link)
    const row: WorkRow = Object.fromEntries(columns.map((column) => [column, null]))
    const items = inOrder(link.child.deletes)
    const why = `rows of ${link.child.mapping.table} and ${link.parent.mapping.table} that are deleted refer to one another`
    return { ...stepOf('detach', link.child, items, columns, why), written: new Map(items.map((item) => [item, row])) }
  })
  const deletes = order.groups.toReversed().map((group) => {
    const children = unique(
      order.links.filter(({ parent }) => parent === group).map((link) => link.child.mapping.table),
    )
    const why = children.length > 0 ? `${place}; after ${children.join(', ')}, which refers to it` : place
    return stepOf('delete', group, inOrder(group.deletes), [], why)
  })
  return [...detaching, ...deletes]
}

function markStep(group: WorkGroup): Step {
  const { deletedAt = '', columns } = group.mapping
  const why = 'first, since rows that are only marked keep what refers to them and may free a unique value'
  return stepOf('mark deleted', group, inOrder(group.deletes), [columns.get(deletedAt) ?? deletedAt], why)
}

/** Parents first, and by their names: whoever changes rows of several tables locks them in this order. */
function updateOrder(groups: readonly WorkGroup[]): readonly WorkGroup[] {
  return groups
    .filter(({ updates }) => updates.length > 0)
    .toSorted((a, b) => (a.mapping.table < b.mapping.table ? -1 : 1))
}

function updateSteps(group: WorkGroup, rows: WorkRows, why: string): readonly Step[] {
  const byColumns = Map.groupBy(group.updates, (item) => columnsOf([item], rows).join('\0'))
  return [...byColumns.values()].map((items): Step => {
    const columns = columnsOf(items.slice(0, 1), rows)
    if (columns.length > 0) return { ...stepOf('update', group, inOrder(items), columns, why), written: rows }
    return stepOf(
      'check',
      group,
      inOrder(items),
      [],
      'nothing of these rows is changed; they must be there until the commit',
    )
  })
}

/**
 * The tables whose rows can be deleted before anything is written, and have to be, since they may free a unique value. Not where an
 * update lets go of rows that are deleted, or changes rows that the deletion takes along.
 */
function earlyDeletes(
  groups: readonly WorkGroup[],
  deleting: readonly WorkGroup[],
  rows: WorkRows,
): ReadonlySet<WorkGroup> {
  const early = new Set<WorkGroup>()
  for (const group of deleting) {
    if (!groups.some((other) => other.facts.oid === group.facts.oid && takesUniqueValue(other, rows))) continue
    const together = withChildren(group, deleting)
    if (together.every((one) => !isHeldByUpdate(one, groups, rows))) for (const one of together) early.add(one)
  }
  return early
}

function withChildren(group: WorkGroup, deleting: readonly WorkGroup[]): readonly WorkGroup[] {
  const found = new Set([group])
  for (const parent of found) {
    for (const one of deleting) if (one.facts.foreignKeys.some(({ to }) => to === parent.facts.oid)) found.add(one)
  }
  return [...found]
}

function takesUniqueValue(group: WorkGroup, rows: WorkRows): boolean {
  const isTaken = (items: readonly ItemState[]): boolean => items.length > 0 && touchesUnique(group, items, rows)
  return isTaken(group.updates) || isTaken(group.creates)
}

/** Whether values are given in columns of a unique index. One that a default makes is new in any case. */
function touchesUnique(group: WorkGroup, items: readonly ItemState[], rows: WorkRows): boolean {
  const given = new Set(columnsOf(items, rows).filter((column) => items.some((item) => isGiven(item, column))))
  return group.facts.uniques.some(
    (names) => names === null || names.some((name) => given.has(group.columnOf.get(name) ?? '')),
  )
}

function isGiven({ mapping, values }: ItemState, column: string): boolean {
  return Object.keys(values).some((property) => mapping.columns.get(property) === column)
}

function isHeldByUpdate({ facts }: WorkGroup, groups: readonly WorkGroup[], rows: WorkRows): boolean {
  return groups.some(({ facts: others, updates, columnOf }) => {
    if (updates.length === 0) return false
    const changed = new Set(columnsOf(updates, rows))
    return others.foreignKeys.some(
      ({ to, columns, gives }) =>
        to === facts.oid && (gives || columns.some((name) => changed.has(columnOf.get(name) ?? ''))),
    )
  })
}

/** Changes that may free a unique value for a new row of the table, and refer to no new rows. */
function isEarlyUpdate(group: WorkGroup, groups: readonly WorkGroup[], rows: WorkRows): boolean {
  const { updates, creates, facts, columnOf } = group
  if (creates.length === 0 || !touchesUnique(group, updates, rows) || !touchesUnique(group, creates, rows)) return false
  const changed = new Set(columnsOf(updates, rows))
  const created = new Set(groups.flatMap((other) => (other.creates.length > 0 ? [other.facts.oid] : [])))
  return !facts.foreignKeys.some(
    ({ to, columns }) => created.has(to) && columns.some((name) => changed.has(columnOf.get(name) ?? '')),
  )
}

function constraintStep(operation: 'defer' | 'enforce', links: readonly Link[]): readonly Step[] {
  if (links.length === 0) return []
  const why =
    operation === 'defer'
      ? 'rows refer to one another in a circle, so these keys are checked after all of them'
      : 'what was put off is checked here and not at the commit'
  const columns = unique(links.map(({ key }) => key.name))
  return [{ operation, table: undefined, group: undefined, rows: 0, items: [], columns, why, written: new Map() }]
}

function stepOf(
  operation: Step['operation'],
  group: WorkGroup,
  items: readonly ItemState[],
  columns: readonly string[],
  why: string,
): Step {
  const { table } = group.mapping
  return { operation, table, group, rows: items.length, items, columns, why, written: new Map() }
}

/** Rows are locked in the order of their keys, as far as the server follows it. */
function inOrder(items: readonly ItemState[]): readonly ItemState[] {
  return items
    .map((item) => ({ item, key: textOfKey(item.key) }))
    .toSorted((a, b) => (a.key < b.key ? -1 : 1))
    .map(({ item }) => item)
}

function unique(names: readonly string[]): readonly string[] {
  return [...new Set(names)]
}
