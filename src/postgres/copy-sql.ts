import { type CompiledQuery, PostgresQueryCompiler, type RawBuilder, sql } from 'kysely'
import { DatabaseError } from '../core/errors.ts'
import { textOf } from './wire.ts'

/** How bytes are written, as PostgreSQL's COPY knows it. Each option but `format` has the server's default. */
export interface CopyFormat {
  readonly format: 'binary' | 'csv' | 'text'
  /** A first line with the names of the columns; `'match'` (PostgreSQL 15) checks them when it is read. Not for `binary`. */
  readonly header?: boolean | 'match' | undefined
  /** One character of one byte. @default a tabulator in `text`, a comma in `csv` */
  readonly delimiter?: string | undefined
  /** What stands for null. @default `\N` in `text`, an unquoted empty value in `csv` */
  readonly nullText?: string | undefined
  /** Only for `csv`. @default `"` */
  readonly quote?: string | undefined
  /** What stands before a quote within a value. Only for `csv`. @default the same as `quote` */
  readonly escape?: string | undefined
  /** As PostgreSQL names it, such as `LATIN1`. @default UTF8 */
  readonly encoding?: string | undefined
}

/** `COPY … FROM STDIN`, without columns into all. */
export function copyFrom(
  table: string,
  columns: readonly string[] | undefined,
  format?: CopyFormat,
): RawBuilder<unknown> {
  return sql`copy ${sql.table(table)}${columnList(columns)} from stdin${format ? formatOptions(format) : nothing}`
}

/** `COPY … TO STDOUT` of a table. */
export function copyTableTo(
  table: string,
  columns: readonly string[] | undefined,
  format: CopyFormat,
): RawBuilder<unknown> {
  return sql`copy ${sql.table(table)}${columnList(columns)} to stdout${formatOptions(format)}`
}

/** A query with its values in its text, as literals of no type yet: COPY takes no parameters. */
export function withLiterals({ query, queryId }: CompiledQuery): string {
  return new LiteralCompiler().compileQuery(query, queryId).sql
}

/** `COPY … TO STDOUT` of a query. */
export function copyQueryTo(text: string, format: CopyFormat): RawBuilder<unknown> {
  // A comment at its end goes to the end of its line, and what ends a statement may not stand inside one.
  return sql`copy (${sql.raw(text.replace(/[;\s]+$/, ''))}\n) to stdout${formatOptions(format)}`
}

class LiteralCompiler extends PostgresQueryCompiler {
  protected override appendValue(value: unknown): void {
    this.append(literal(value))
  }
}

const nothing = sql``

function columnList(columns: readonly string[] | undefined): RawBuilder<unknown> {
  return columns ? sql` (${sql.join(columns.map((column) => sql.id(column)))})` : nothing
}

function formatOptions({ nullText, ...format }: CopyFormat): RawBuilder<unknown> {
  const options = Object.entries({ ...optionsOf(format), null: nullText }).filter(([, value]) => value !== undefined)
  const list = options.map(([name, value]) => sql`${sql.raw(name)} ${sql.raw(literal(value))}`)
  return sql` with (${sql.join(list)})`
}

/** Only those that exist: a name must not come from outside. */
function optionsOf({ format, header, delimiter, quote, escape, encoding }: CopyFormat): Record<string, unknown> {
  return { format, header, delimiter, quote, escape, encoding }
}

/** A value as it stands in a statement, under any setting of `standard_conforming_strings`. */
function literal(value: unknown): string {
  const text = parameterText(value)
  if (text === null) return 'null'
  const quoted = `'${text.replaceAll("'", "''")}'`
  return text.includes('\\') ? ` E${quoted.replaceAll('\\', '\\\\')}` : quoted
}

function parameterText(value: unknown): string | null {
  let text: string | null
  try {
    text = textOf(value)
  } catch (cause) {
    throw unsendable(cause instanceof Error ? cause.message : 'it cannot be converted', cause)
  }
  if (text?.includes('\0')) throw unsendable('it has a NUL character, which PostgreSQL cannot store')
  return text
}

function unsendable(reason: string, cause?: unknown): DatabaseError {
  return new DatabaseError('INVALID_ARGUMENT', `A parameter cannot be sent: ${reason}. Pass a plain value.`, { cause })
}
