import { type RawBuilder, sql } from 'kysely'
import { types } from 'pg'
import { textOf } from './wire.ts'

const { builtins } = types
const instantType: number = builtins.TIMESTAMPTZ
const jsonTypes: ReadonlySet<number> = new Set([builtins.JSON, builtins.JSONB])

/** What has to be known of a column to send values for it as text. */
export interface ColumnType {
  /** Quoted, as in a statement. */
  readonly name: string
  /**
   * As the server writes it, without a length, and of a domain what it is made of: a cast to `varchar(3)` would cut where an
   * insert refuses.
   */
  readonly type: string
  /** The number of that type. */
  readonly oid: number
  readonly array: boolean
}

/** For whole numbers that are in no table. */
export const integerType: ColumnType = { name: '', type: 'integer', oid: builtins.INT4, array: false }

/** Asks for the columns of a table, named as a statement names it; its rows are {@link ColumnType}. */
export function askColumnTypes(table: string): RawBuilder<Record<string, unknown>> {
  return sql`
    with recursive base as (
      select oid as type, oid as base, typtype, typbasetype from pg_type
      where oid in (select atttypid from pg_attribute where attrelid = ${table}::regclass)
      union all
      select base.type, t.oid, t.typtype, t.typbasetype from base join pg_type t on t.oid = base.typbasetype
    )
    select '"' || replace(a.attname, '"', '""') || '"' as name, format_type(base, -1) as type, base as oid,
      (select typcategory = 'A' from pg_type where oid = base) as array
    from pg_attribute a join base on base.type = a.atttypid and base.typtype <> 'd'
    where a.attrelid = ${table}::regclass and a.attnum > 0 and not a.attisdropped`
}

/**
 * A value as the text that the server reads for its column; null is null. Throws an Error whose message says, with the
 * column's name, why it cannot be sent.
 */
export function columnText(column: string, { oid }: ColumnType, value: unknown): string | null {
  if (typeof value === 'number') return String(value)
  // `pg` writes a time in the zone of the process, which takes long; for an instant any will do.
  if (oid === instantType && value instanceof Date && isOrdinary(value)) return value.toISOString()
  let text: string | null
  try {
    // A string is JSON already, as in a parameter; an array would be one of the server's.
    text = jsonTypes.has(oid) && typeof value === 'object' && value !== null ? jsonOf(value) : textOf(value)
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : 'it cannot be converted'
    throw new Error(`has a value in ${column} that cannot be sent: ${reason}`, { cause })
  }
  if (text?.includes('\0')) throw new Error(`has a NUL character in ${column}, which PostgreSQL cannot store`)
  return text
}

/** As null what has no JSON, as `pg` sends it. */
function jsonOf(value: object): string | null {
  const json: string | undefined = JSON.stringify(value)
  return json ?? null
}

/** Whether a row has these columns, in this order, and no others. */
export function hasColumns(row: object, columns: readonly string[]): boolean {
  let index = 0
  for (const column in row) {
    if (columns[index] !== column || (row as Record<string, unknown>)[column] === undefined) return false
    index += 1
  }
  return index === columns.length
}

/** ISO 8601 has signs for other years, and invalid ones are the server's to refuse. */
export function isOrdinary(date: Date): boolean {
  const year = date.getUTCFullYear()
  return year >= 1 && year <= 9999
}
