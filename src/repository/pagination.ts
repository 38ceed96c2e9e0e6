import {
  AggregateFunctionNode,
  AliasNode,
  type RawBuilder,
  type SelectQueryBuilder,
  type SelectQueryNode,
  type Simplify,
  sql,
} from 'kysely'
import { type CursorSecret, cursorSecretFrom } from '../core/cursor-secret.ts'
import { isWhole } from '../core/whole-number.ts'
import { openCursor, sealCursor } from './cursor.ts'
import {
  type OrderTerm,
  type Place,
  placeExpression,
  refusal as refusedPage,
  reversed,
  rowsAfter,
  tablesOf,
  type Term,
  termsOf,
} from './keyset-order.ts'
import { count } from './query-helpers.ts'
import {
  hasBareCondition,
  type OpenQuery,
  type OpenRow,
  quoted,
  refusal,
  rewritten,
  selectNodeOf,
  withParentheses,
  wrapIt,
} from './select-node.ts'

/** Which page of a list is wanted: with neither cursor the first, or the last when it is `from` the end. */
export interface PageRequest {
  /** How many items at most. @default 20 */
  readonly limit?: number | undefined
  /** The `endCursor` of a page: what comes after it. */
  readonly after?: string | null | undefined
  /** The `startCursor` of a page: what comes before it, the nearest items, in the order of the list. */
  readonly before?: string | null | undefined
  /** Where to begin without a cursor. @default start */
  readonly from?: 'end' | 'start' | undefined
}

/** How {@link paginate} orders a list, and what it allows. */
export interface PaginateOptions<DB, TB extends keyof DB> extends PageRequest {
  /**
   * The order, by weight. Together the columns must tell each row from all others, so name the primary key last; two rows that
   * cannot be told apart are `INVALID_ARGUMENT` where they are seen.
   */
  readonly by: readonly OrderTerm<DB, TB>[]
  /** The most that `limit` may be. @default 100 */
  readonly maxLimit?: number | undefined
  /** `cursorSecret` of the database; for a Kysely of your own text of at least 16 bytes, or a list of which the first signs. */
  readonly secret: CursorSecret | string | readonly string[]
}

/** A part of a list, in the order of the list. */
export interface KeysetPage<Row> {
  readonly items: Row[]
  /**
   * Whether there was more after this page when it was read. Of a page that was asked for by `before` it is true: the row of
   * that cursor followed it when the cursor was made.
   */
  readonly hasNextPage: boolean
  /** The same for what is before this page; true of one that was asked for by `after`. */
  readonly hasPreviousPage: boolean
  /** The place of the first item; undefined without items. It can be read by whoever has it, and not be changed. */
  readonly startCursor: string | undefined
  /** The place of the last item; undefined without items. */
  readonly endCursor: string | undefined
}

const defaultLimit = 20
const defaultMaxLimit = 100
const pageSettings = ['after', 'before', 'by', 'from', 'limit', 'maxLimit', 'secret']

/** In lower case and of one word, so that plugins which rename columns leave it as it is. */
const placeColumn = 'kantaplace'

/**
 * A page of any select, found by the values of the row before it: the thousandth page costs what the first does where an index has
 * the order. A row that is there all the while is on exactly one of the pages that are read one after the other, whatever is
 * inserted and deleted meanwhile, as long as its own place stays.
 *
 * The query is given without order, limit and offset. Cursors are signed, and belong to this order of these tables; their values
 * are the server's text of the columns, exact to the microsecond, and reach SQL as parameters only.
 *
 * `CURSOR_INVALID`: a cursor that was changed, or is of another list: start at the first page. `INVALID_ARGUMENT`: a limit or an
 * order that cannot be, or a null in a column of the order for which no place is declared. `CONFIG_INVALID`: in production,
 * a database without a `cursorSecret`. Else as the query.
 *
 * @example
 * ```ts
 * import { createDatabase, type PageRequest, paginate } from 'kanta'
 * import type { DB } from './generated/schema.ts'
 *
 * const database = await createDatabase<DB>()
 *
 * export const newest = (page: PageRequest) =>
 *   paginate(database.db.selectFrom('posts').select(['id', 'title']).where('published_at', 'is not', null), {
 *     ...page,
 *     by: [['published_at', 'desc', { nulls: 'none' }], ['id', 'desc']],
 *     secret: database.cursorSecret,
 *   })
 *
 * const first = await newest({ limit: 50 })
 * const second = await newest({ limit: 50, after: first.endCursor })
 * console.log(second.items.map(({ title }) => title), second.hasNextPage)
 * ```
 */
export async function paginate<DB, TB extends keyof DB, O>(
  query: SelectQueryBuilder<DB, TB, O>,
  options: PaginateOptions<NoInfer<DB>, NoInfer<TB>>,
): Promise<KeysetPage<Simplify<O>>> {
  return (await readPage(query as unknown as OpenQuery, options)) as unknown as KeysetPage<Simplify<O>>
}

/** The options of a call without the types of its tables. */
type GivenOptions = Pick<PaginateOptions<{}, never>, 'maxLimit' | 'secret'> & PageRequest & { readonly by: unknown }

async function readPage(query: OpenQuery, options: GivenOptions): Promise<KeysetPage<OpenRow>> {
  knowOptions('paginate', options, pageSettings)
  const { isBackward, cursor } = directionOf(options)
  const limit = limitOf(options)
  const select = pageableNode(query)
  const terms = termsOf(options.by, select)
  const list = JSON.stringify([tablesOf(select), terms.map(({ identity }) => identity)])
  const keys = await cursorSecretFrom(options.secret).keys()
  const place = cursor === undefined ? undefined : (JSON.parse(openCursor(keys, list, cursor)) as Place)

  const order = isBackward ? reversed(terms) : terms
  const rows = await pageQuery(query, select, order, place, limit).execute()
  refuseUnclearOrder(rows.map(placeOf), terms)
  const shown = rows.slice(0, limit)
  if (isBackward) shown.reverse()

  const hasMore = rows.length > limit
  const cameFromCursor = place !== undefined
  const seal = (row: OpenRow | undefined): string | undefined => row && sealCursor(keys, list, placeOf(row))
  return {
    items: shown.map((row) => without(placeColumn, row)),
    hasNextPage: isBackward ? cameFromCursor : hasMore,
    hasPreviousPage: isBackward ? hasMore : cameFromCursor,
    startCursor: seal(shown[0]),
    endCursor: seal(shown.at(-1)),
  }
}

function limitOf({ limit, maxLimit = defaultMaxLimit }: PageRequest & { readonly maxLimit?: number | undefined }) {
  const max = rowCount('paginate', 'maxLimit', maxLimit, Number.MAX_SAFE_INTEGER - 1)
  return rowCount('paginate', 'limit', limit ?? Math.min(defaultLimit, max), max)
}

/** The tree of a query to which a condition and an order can be added without making another query of it. */
function pageableNode(query: OpenQuery): SelectQueryNode {
  const select = selectNodeOf(query)
  refuseParts('paginate', select, ['orderBy', 'limit', 'offset', 'fetch', 'setOperations', 'distinctOn'])
  refuseWindows(select)
  return select
}

function directionOf({ after, before, from }: PageRequest): { isBackward: boolean; cursor: unknown } {
  if (from !== undefined && from !== 'start' && from !== 'end') throw refusedPage('from must be start or end')
  const given = [after, before].filter((cursor) => cursor !== undefined && cursor !== null)
  if (given.length > 1) throw refusedPage('give after or before, not both')
  const [cursor] = given
  if (cursor !== undefined && from !== undefined) throw refusedPage('from is for a page without a cursor')
  const isBackward = cursor === undefined ? from === 'end' : cursor === before
  return { isBackward, cursor }
}

function pageQuery(
  query: OpenQuery,
  select: SelectQueryNode,
  order: readonly Term[],
  place: Place | undefined,
  limit: number,
): OpenQuery {
  let page: OpenQuery = query.select(placeExpression(order).as(placeColumn))
  if (place !== undefined) page = page.where(rowsAfter(order, place))
  for (const { expression, isDescending, nulls } of order) {
    page = page.orderBy(expression, (item) => {
      const directed = isDescending ? item.desc() : item.asc()
      if (nulls === undefined) return directed
      return nulls === 'first' ? directed.nullsFirst() : directed.nullsLast()
    })
  }
  // One more, to know whether there is one.
  page = page.limit(limit + 1)
  return place !== undefined && hasBareCondition(select) ? rewritten(page, withParentheses) : page
}

function placeOf({ [placeColumn]: place }: OpenRow): string {
  // A plugin that parses JSON has done so already.
  return typeof place === 'string' ? place : JSON.stringify(place)
}

/**
 * A copy: V8 makes a dictionary of an object that a property is deleted from. Measured with 21 rows of 12 columns, that takes 28 µs and the
 * copies 9, and to write them as JSON takes 30 µs and of the copies 10.
 */
function without(column: string, { [column]: _, ...row }: OpenRow): OpenRow {
  return row
}

/** What would lose rows on the next page is refused as soon as it is seen. */
function refuseUnclearOrder(places: readonly string[], terms: readonly Term[]): void {
  const isTwice = places.some((place, index) => place === places[index + 1])
  if (isTwice) {
    throw refusedPage(
      `two rows have the same ${terms.map(({ name }) => quoted(name)).join(', ')}, so none can be the first. Add a unique column at the end of by`,
    )
  }
  for (const place of places) {
    // Most places hold no null, and are not looked at any closer.
    if (!place.includes('null')) continue
    const values = JSON.parse(place) as Place
    const term = terms.find(({ nulls }, index) => nulls === undefined && values[index] === null)
    if (term !== undefined) {
      throw refusedPage(
        `${quoted(term.name)} has a null. Declare where nulls stand: { nulls: 'last' } or { nulls: 'first' }`,
      )
    }
  }
}

/** Which page of {@link paginateByOffset} is wanted, and what is allowed. */
export interface OffsetOptions {
  /** From 1. @default 1 */
  readonly page?: number | undefined
  /** @default 20 */
  readonly perPage?: number | undefined
  /** Whether to count all rows, each of which the server then visits for each page. @default false */
  readonly total?: boolean | undefined
  /** The most that `perPage` may be. @default 100 */
  readonly maxPerPage?: number | undefined
  /** The deepest row that a page may reach, since the server reads all before it. @default 10000 */
  readonly maxRows?: number | undefined
}

/** A page by its number. */
export interface OffsetPage<Row> {
  readonly items: Row[]
  readonly page: number
  readonly perPage: number
  readonly hasNextPage: boolean
  /** Of all pages; only where it was asked for. */
  readonly total?: number
}

const totalColumn = 'kantatotal'
const offsetSettings = ['maxPerPage', 'maxRows', 'page', 'perPage', 'total']

/**
 * A page by its number, for lists in which people jump: the server reads and throws away all rows before it, and what is inserted
 * or deleted meanwhile moves rows from one page to another. For everything else there is {@link paginate}.
 *
 * The query is given with its order and without limit and offset. `total` is counted in the statement of the page, in the same
 * snapshot; only for a page after the last one it is a second statement. `INVALID_ARGUMENT`: numbers out of bounds, or a
 * query without order. Else as the query.
 *
 * @example
 * ```ts
 * import { createDatabase, paginateByOffset } from 'kanta'
 * import type { DB } from './generated/schema.ts'
 *
 * await using database = await createDatabase<DB>()
 * const users = database.db.selectFrom('users').select(['id', 'name']).orderBy('name').orderBy('id')
 * const { items, total = 0 } = await paginateByOffset(users, { page: 3, perPage: 50, total: true })
 * console.log(items.length, Math.ceil(total / 50))
 * ```
 */
export async function paginateByOffset<DB, TB extends keyof DB, O>(
  query: SelectQueryBuilder<DB, TB, O>,
  options: OffsetOptions = {},
): Promise<OffsetPage<Simplify<O>>> {
  return (await readByOffset(query as unknown as OpenQuery, options)) as unknown as OffsetPage<Simplify<O>>
}

async function readByOffset(query: OpenQuery, options: OffsetOptions): Promise<OffsetPage<OpenRow>> {
  const caller = 'paginateByOffset'
  knowOptions(caller, options, offsetSettings)
  const most = Number.MAX_SAFE_INTEGER - 1
  const maxPerPage = rowCount(caller, 'maxPerPage', options.maxPerPage ?? 100, most)
  const perPage = rowCount(caller, 'perPage', options.perPage ?? Math.min(defaultLimit, maxPerPage), maxPerPage)
  const page = rowCount(caller, 'page', options.page ?? 1, most)
  const maxRows = rowCount(caller, 'maxRows', options.maxRows ?? 10_000, most)
  if (page * perPage > maxRows) {
    throw refusal(`page ${page} ends after row ${maxRows}. Narrow the query, use paginate, or raise maxRows`, caller)
  }
  const select = selectNodeOf(query)
  refuseParts(
    caller,
    select,
    options.total === true ? ['limit', 'offset', 'fetch', 'setOperations'] : ['limit', 'offset', 'fetch'],
  )
  if (select.orderBy === undefined) {
    throw refusal(
      'the query has no order, so any row could be on any page. Add orderBy, with a unique column last',
      caller,
    )
  }

  const withTotal = options.total === true ? query.select(totalOf(query).as(totalColumn)) : query
  const rows = await withTotal
    .limit(perPage + 1)
    .offset((page - 1) * perPage)
    .execute()
  const shown = rows.slice(0, perPage)
  const place = { page, perPage, hasNextPage: rows.length > perPage }
  if (options.total !== true) return { items: shown, ...place }
  const [first] = rows
  const total = first === undefined ? await totalOfNothing(query, page) : Number(first[totalColumn])
  return { items: shown.map((row) => without(totalColumn, row)), ...place, total }
}

function totalOf(query: OpenQuery): RawBuilder<unknown> {
  return sql`(select count(*) from ${query.clearOrderBy()} as counted)`
}

/** A page without rows has no place for the total; if it is the first, there are none. */
async function totalOfNothing(query: OpenQuery, page: number): Promise<number> {
  return page === 1 ? 0 : await count(query)
}

type Part = 'distinctOn' | 'fetch' | 'limit' | 'offset' | 'orderBy' | 'setOperations'

const names: Readonly<Record<Part, string>> = {
  orderBy: 'an order of its own',
  limit: 'a limit',
  offset: 'an offset',
  fetch: 'a fetch clause',
  setOperations: 'a union or its kin',
  distinctOn: 'distinct on',
}

function refuseParts(caller: string, select: SelectQueryNode, parts: readonly Part[]): void {
  const part = parts.find((name) => select[name] !== undefined)
  if (part === undefined) return
  const advice = part === 'setOperations' || part === 'distinctOn' ? wrapIt : 'Leave it to the options of the page'
  throw refusal(`the query has ${names[part]}. ${advice}`, caller)
}

/** What a page leaves out would not be in their windows. */
function refuseWindows({ selections = [] }: SelectQueryNode): void {
  const hasWindow = selections.some(
    ({ selection }) =>
      AliasNode.is(selection) && AggregateFunctionNode.is(selection.node) && selection.node.over !== undefined,
  )
  if (hasWindow) throw refusedPage(`the query has a window function. ${wrapIt}`)
}

function knowOptions(caller: string, options: unknown, known: readonly string[]): void {
  if (typeof options !== 'object' || options === null) throw refusal('the options must be an object', caller)
  const unknown = Object.keys(options).find((name) => !known.includes(name))
  if (unknown !== undefined)
    throw refusal(`there is no option ${quoted(unknown)}; there are ${known.join(', ')}`, caller)
}

function rowCount(caller: string, name: string, value: unknown, max: number): number {
  if (isWhole(value, 1, max)) return value
  throw refusal(`${name} must be a whole number from 1${max < 2 ** 52 ? ` to ${max}` : ''}`, caller)
}
