import { DatabaseError } from '../core/errors.ts'
import type { ForeignKey } from './table-facts.ts'
import type { WorkGroup } from './work-group.ts'

/** Rows of one table refer to rows of another. */
export interface Link {
  readonly child: WorkGroup
  readonly parent: WorkGroup
  readonly key: ForeignKey
}

/** An order of tables, parents first, and what had to be done for there to be one. */
export interface TableOrder {
  readonly groups: readonly WorkGroup[]
  /** The links that the order follows. */
  readonly links: readonly Link[]
  /** To be checked after all statements instead of after each. */
  readonly deferred: readonly Link[]
  /** To be null while the statements of the order run. */
  readonly broken: readonly Link[]
}

/** The foreign keys from one of the tables to another. Those within a table are checked when its one statement is over. */
export function linksAmong(groups: readonly WorkGroup[]): readonly Link[] {
  return groups.flatMap((child) =>
    child.facts.foreignKeys.flatMap((key) =>
      groups
        .filter((parent) => parent !== child && parent.facts.oid === key.to)
        .map((parent) => ({ child, parent, key })),
    ),
  )
}

/**
 * Puts parents before their children; tables that do not depend on one another by their names, so that units of work at the same time
 * lock rows in the same order. Circles are opened where that costs least: at a link that no row has, or whose key gives way by itself
 * (`isIdle`), that is checked at the commit, that can be, or that can be null.
 */
export function orderTables(
  groups: readonly WorkGroup[],
  among: readonly Link[],
  isIdle: (link: Link) => boolean,
  call: string,
): TableOrder {
  const byName = groups.toSorted((a, b) => (a.mapping.table < b.mapping.table ? -1 : 1))
  const deferred: Link[] = []
  const broken: Link[] = []
  let links = among
  for (;;) {
    const found = sorted(byName, links)
    if (found.circle === undefined) return { groups: found.order, links, deferred, broken }
    const { circle } = found
    const opened =
      circle.find(isIdle) ??
      circle.find(({ key }) => key.checked === 'at commit') ??
      circle.find(({ key }) => key.checked === 'at once') ??
      circle.find(isNullable) ??
      noOrder(circle, call)
    if (!isIdle(opened) && opened.key.checked === 'at once') deferred.push(opened)
    else if (!isIdle(opened) && opened.key.checked === 'always at once') broken.push(opened)
    links = links.filter((link) => link !== opened)
  }
}

/** The columns of a key that can be null, and that the repository can write. */
export function nullableColumns({ child, key }: Link): readonly string[] {
  return key.nullable.flatMap((name) => child.columnOf.get(name) ?? [])
}

function isNullable(link: Link): boolean {
  return nullableColumns(link).length > 0
}

function sorted(
  groups: readonly WorkGroup[],
  links: readonly Link[],
): { readonly order: readonly WorkGroup[]; readonly circle?: readonly Link[] } {
  const order: WorkGroup[] = []
  let rest = groups
  while (rest.length > 0) {
    const waiting = links.filter(({ parent, child }) => rest.includes(parent) && rest.includes(child))
    const free = rest.find((group) => !waiting.some(({ child }) => child === group))
    if (free === undefined) return { order, circle: circleIn(waiting) }
    order.push(free)
    rest = rest.filter((group) => group !== free)
  }
  return { order }
}

/** Each child among the links is a parent's child in turn, so following them comes back to where it has been. */
function circleIn(links: readonly Link[]): readonly Link[] {
  const path: Link[] = []
  let link = links[0]
  while (link !== undefined) {
    path.push(link)
    const { parent } = link
    const start = path.findIndex(({ child }) => child === parent)
    if (start !== -1) return path.slice(start)
    link = links.find(({ child }) => child === parent)
  }
  return path
}

function noOrder(circle: readonly Link[], call: string): never {
  const tables = [...circle.map(({ child }) => child.mapping.table), circle[0]?.child.mapping.table]
  throw new DatabaseError(
    'INVALID_ARGUMENT',
    `The unit of work cannot ${call} these rows in any order: their foreign keys form the circle ${tables.join(' → ')}, and none of them ` +
      'can be null or checked later. Make one of them DEFERRABLE or its column nullable in a migration.',
    { table: circle[0]?.child.mapping.table, constraint: circle[0]?.key.name },
  )
}
