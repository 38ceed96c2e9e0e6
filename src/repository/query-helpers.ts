import { AliasNode, IdentifierNode, RawNode, SelectionNode, SelectQueryNode } from 'kysely'
import { type OpenQuery, quoted, refusal, rewritten, selectNodeOf } from './select-node.ts'

/** A query of Kysely that gives rows: a select, or a write with `returning`. */
export interface GivesRows<Row> {
  execute(): Promise<Row[]>
}

/** A select of Kysely. */
export interface Selects {
  readonly isSelectQueryBuilder: true
}

/** What a row can be told by: compared by value in a `Map`, as a `Date` is not. */
export type RowKey = bigint | boolean | number | string | null

/** The type of the only column of a row; `never` of one with several. */
export type OnlyColumn<Row> = { [Column in keyof Row]: keyof Row extends Column ? Row[Column] : never }[keyof Row]

/**
 * The first row, or `undefined`. A select without a limit is sent with one of 1. For `$call` of any query; it joins the
 * transaction that the query is in.
 *
 * @example
 * ```ts
 * import { createDatabase, first } from 'kanta'
 * import type { DB } from './generated/schema.ts'
 *
 * await using database = await createDatabase<DB>()
 * const newest = await database.db.selectFrom('users').select(['id', 'name']).orderBy('created_at', 'desc').$call(first)
 * console.log(newest?.name)
 * ```
 */
export async function first<Row>(query: GivesRows<Row>): Promise<Row | undefined> {
  const [row] = await cutToOne(query).execute()
  return row
}

/**
 * The value of the only column in the first row, or `undefined` when there is no row. With several columns it does not compile,
 * and is `INVALID_ARGUMENT`.
 *
 * @example
 * ```ts
 * import { createDatabase, value } from 'kanta'
 * import type { DB } from './generated/schema.ts'
 *
 * await using database = await createDatabase<DB>()
 * const email = await database.db.selectFrom('users').select('email').where('username', '=', 'ada').$call(value)
 * console.log(email)
 * ```
 */
export async function value<Row extends object>(
  query: GivesRows<Row> & ([OnlyColumn<Row>] extends [never] ? 'one column has to be selected' : unknown),
): Promise<OnlyColumn<Row> | undefined> {
  const row = await first<Row>(query)
  if (row === undefined) return undefined
  const values: unknown[] = Object.values(row)
  if (values.length !== 1) throw refusal(`the query selects ${values.length} columns. Select one`, 'value')
  return values[0] as OnlyColumn<Row>
}

/**
 * The values of one column, in the order of the rows. `INVALID_ARGUMENT` when the rows have no such column.
 *
 * @example
 * ```ts
 * import { createDatabase, pluck } from 'kanta'
 * import type { DB } from './generated/schema.ts'
 *
 * await using database = await createDatabase<DB>()
 * const emails: string[] = await database.db.selectFrom('users').select('email').$call(pluck('email'))
 * ```
 */
export function pluck<const Column extends string>(
  column: Column,
): <Row extends Readonly<Record<Column, unknown>>>(query: GivesRows<Row>) => Promise<Row[Column][]> {
  return async (query) => (await rowsWith('pluck', column, query)).map((row) => row[column])
}

/**
 * The rows by the value of a column, in their order. `INVALID_ARGUMENT` when two rows have the same one, for {@link groupBy} is
 * right then, and when the column is none or holds objects.
 *
 * @example
 * ```ts
 * import { createDatabase, keyBy } from 'kanta'
 * import type { DB } from './generated/schema.ts'
 *
 * await using database = await createDatabase<DB>()
 * const users = await database.db.selectFrom('users').select(['id', 'name']).$call(keyBy('id'))
 * console.log(users.get('1')?.name)
 * ```
 */
export function keyBy<const Column extends string>(
  column: Column,
): <Row extends Readonly<Record<Column, RowKey>>>(query: GivesRows<Row>) => Promise<Map<Row[Column], Row>> {
  return async (query) => {
    const rows = await rowsWith('keyBy', column, query)
    const byKey = new Map(rows.map((row) => [keyOf('keyBy', column, row[column]), row]))
    if (byKey.size === rows.length) return byKey
    throw refusal(`two rows have the same ${quoted(column)}. Use groupBy, or a column that is unique`, 'keyBy')
  }
}

/**
 * The rows in groups that have the same value in a column; groups in the order of their first rows. `INVALID_ARGUMENT` when the
 * column is none or holds objects.
 *
 * @example
 * ```ts
 * import { createDatabase, groupBy } from 'kanta'
 * import type { DB } from './generated/schema.ts'
 *
 * await using database = await createDatabase<DB>()
 * const posts = await database.db.selectFrom('posts').select(['author_id', 'title']).$call(groupBy('author_id'))
 * for (const [author, written] of posts) console.log(author, written.length)
 * ```
 */
export function groupBy<const Column extends string>(
  column: Column,
): <Row extends Readonly<Record<Column, RowKey>>>(query: GivesRows<Row>) => Promise<Map<Row[Column], Row[]>> {
  return async (query) =>
    Map.groupBy(await rowsWith('groupBy', column, query), (row) => keyOf('groupBy', column, row[column]))
}

/**
 * Whether a select gives any row. The server stops at the first; nothing is fetched.
 *
 * @example
 * ```ts
 * import { createDatabase, exists } from 'kanta'
 * import type { DB } from './generated/schema.ts'
 *
 * await using database = await createDatabase<DB>()
 * const isTaken = await database.db.selectFrom('users').where('username', '=', 'ada').$call(exists)
 * ```
 */
export async function exists(query: Selects): Promise<boolean> {
  const asked = rewritten(query as unknown as OpenQuery, (select) =>
    SelectQueryNode.cloneWithSelections(SelectQueryNode.create(select.with), [
      selection(RawNode.create(['exists ', ''], [asSubquery(select)]), 'found'),
    ]),
  )
  const [row] = await asked.execute()
  return row?.['found'] === true
}

/**
 * How many rows a select gives, whatever is in it: groups are counted as groups, `distinct` counts distinct rows, and a limit is
 * one. The server visits each row.
 *
 * @example
 * ```ts
 * import { count, createDatabase } from 'kanta'
 * import type { DB } from './generated/schema.ts'
 *
 * await using database = await createDatabase<DB>()
 * const authors: number = await database.db.selectFrom('posts').select('author_id').distinct().$call(count)
 * ```
 */
export async function count(query: Selects): Promise<number> {
  const counted = rewritten(query as unknown as OpenQuery, (select) =>
    SelectQueryNode.cloneWithSelections(
      SelectQueryNode.createFrom([AliasNode.create(asSubquery(select), IdentifierNode.create('rows'))], select.with),
      [selection(RawNode.createWithSql('count(*)'), 'count')],
    ),
  )
  const [row] = await counted.execute()
  return Number(row?.['count'])
}

function selection(node: RawNode, name: string): SelectionNode {
  return SelectionNode.create(AliasNode.create(node, IdentifierNode.create(name)))
}

/** What stands around it has its common table expressions, for those that write may only be there. */
function asSubquery({ with: _, ...select }: SelectQueryNode): SelectQueryNode {
  const { limit, offset, fetch, distinctOn, orderBy, ...unordered } = select
  // Which rows there are depends on their order only where some are left out.
  return (limit ?? offset ?? fetch ?? distinctOn) ? select : unordered
}

/** A write gives all its rows, and a limit that is there is kept. */
function cutToOne<Row>(query: GivesRows<Row>): GivesRows<Row> {
  if (!('isSelectQueryBuilder' in query)) return query
  const open = query as unknown as OpenQuery
  const { limit, fetch } = selectNodeOf(open)
  return (limit ?? fetch) ? query : (open.limit(1) as unknown as GivesRows<Row>)
}

async function rowsWith<Row>(caller: string, column: string, query: GivesRows<Row>): Promise<Row[]> {
  const rows = await query.execute()
  const [row] = rows
  if (row === undefined || Object.hasOwn(row as object, column)) return rows
  throw refusal(`the rows have no column ${quoted(column)}. Select it`, caller)
}

function keyOf<Key>(caller: string, column: string, key: Key): Key {
  if (typeof key !== 'object' || key === null) return key
  throw refusal(`${quoted(column)} holds objects, which no Map finds again. Use a column of text or numbers`, caller)
}
