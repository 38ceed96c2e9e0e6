import { setImmediate as nextTurn } from 'node:timers/promises'
import { type CompiledQuery, type RawBuilder, sql } from 'kysely'
import { DatabaseError, isDatabaseError } from '../core/errors.ts'
import { isWhole } from '../core/whole-number.ts'
import { ArrayParameter } from './array-parameter.ts'
import { askColumnTypes, type ColumnType, hasColumns } from './column-values.ts'
import type { CallOptions } from './engine.ts'
import { type Reading, Refusal, type RowSource, SourceReader } from './row-source.ts'

/** How many rows are written, and what becomes of the others when one cannot be. */
export interface BulkOptions<Column extends string = never> extends Omit<CallOptions, 'replica'> {
  /** Columns of the written rows to give back. Rows come in the order in which they are written. @default none */
  readonly returning?: readonly Column[] | undefined
  /** Most rows of one statement; it also ends at about a megabyte. @default 2000 */
  readonly chunkRows?: number | undefined
  /**
   * `true`: all rows or none, in one transaction. `false`: each statement for itself, and when one fails the error's
   * `rowsWritten` says how many rows are there. @default true
   */
  readonly atomic?: boolean | undefined
  /** Hears of each statement that has been done, and is waited for. */
  readonly onProgress?: ((progress: BulkProgress) => unknown) | undefined
}

/** How far it is. */
export interface BulkProgress {
  /** Rows that the statements up to now have written. */
  readonly rows: number
}

/** What to do with rows that are there already. */
export interface ConflictRule<Column extends string> {
  /** The columns of a unique index or primary key, or the name of a constraint. */
  readonly conflict: readonly Column[] | string
  /** What the existing row takes from the new one; `none` leaves it as it is. @default all given columns but those of `conflict` */
  readonly update?: readonly Column[] | 'none' | undefined
}

/** What was written. */
export interface BulkResult<Row> {
  /** Rows that were inserted or changed. */
  readonly count: number
  /** Empty unless `returning` was asked for. */
  readonly rows: Row[]
}

/** How statements are run, by whoever knows the transactions. */
export interface BulkRunner {
  compile(query: RawBuilder<Record<string, unknown>>): CompiledQuery<Record<string, unknown>>
  run(query: CompiledQuery<Record<string, unknown>>, options: CallOptions): Promise<StatementOutcome>
  /** An identifier as the statement will have it, quoted, and changed by the plugins that change identifiers. */
  nameOf(identifier: RawBuilder<unknown>): string
  /** `repeatable`: the work can be done again from its beginning. */
  transaction<T>(work: () => Promise<T>, repeatable: boolean): Promise<T>
  /** How the source is read in the present transaction, or outside of one. */
  reading(signal: AbortSignal | undefined): Reading
}

/** What is needed of the result of a statement. */
export interface StatementOutcome {
  readonly rows: Record<string, unknown>[]
  readonly numAffectedRows?: bigint | undefined
}

/** What is done with the rows: the statement for a chunk of them. */
export interface BulkCommand {
  /** In words, for messages: `insert into users`. */
  readonly description: string
  readonly table: string
  /** Columns that each row must have, and have no second time in one chunk. */
  readonly keys: readonly string[]
  /** Each row must have something beside its key. */
  readonly isUpdate: boolean
  statement(chunk: BulkChunk): RawBuilder<Record<string, unknown>>
}

/** Rows with the same columns, as they are sent. */
export interface BulkChunk {
  readonly columns: readonly string[]
  /** `u` with these columns, in their types. */
  readonly source: RawBuilder<unknown>
}

// Larger ones gain nothing (measured with 100 000 rows), and of few rows the first is encoded while the server has nothing to do.
const defaultChunkRows = 2_000
const chunkBytes = 1_048_576
// A message of the protocol has a gigabyte at most: this leaves room for what else is in it.
const mostBytesSent = 1_073_000_000

/** `insert into`, with what happens to rows that are there already. */
export function insertCommand<Column extends string>(
  table: string,
  returning: readonly string[],
  rule?: ConflictRule<Column>,
): BulkCommand {
  return {
    description: `${rule ? 'upsert' : 'insert'} into ${table}`,
    table,
    keys: rule && typeof rule.conflict !== 'string' ? rule.conflict : [],
    isUpdate: false,
    statement: ({ columns, source }) => sql`
      insert into ${sql.table(table)} (${refs(columns)})
      select ${refs(columns, 'u')} from ${source}${rule ? onConflict(columns, rule) : nothing}${giveBack(returning)}`,
  }
}

/** `update` of the rows with these keys. */
export function updateCommand(table: string, returning: readonly string[], keys: readonly string[]): BulkCommand {
  return {
    description: `update ${table}`,
    table,
    keys,
    isUpdate: true,
    statement({ columns, source }) {
      const changed = columns.filter((column) => !keys.includes(column))
      const set = changed.map((column) => sql`${sql.id(column)} = ${sql.id('u', column)}`)
      const match = keys.map((key) => sql`${sql.id('t', key)} = ${sql.id('u', key)}`)
      return sql`
        update ${sql.table(table)} as t set ${sql.join(set)} from ${source}
        where ${sql.join(match, sql` and `)}${giveBack(returning, 't')}`
    },
  }
}

const nothing = sql``

function refs(columns: readonly string[], table?: string): RawBuilder<unknown> {
  return sql.join(columns.map((column) => (table ? sql`${sql.id(table, column)}` : sql.id(column))))
}

function giveBack(returning: readonly string[], table?: string): RawBuilder<unknown> {
  return returning.length === 0 ? nothing : sql` returning ${refs(returning, table)}`
}

function onConflict(columns: readonly string[], { conflict, update }: ConflictRule<string>): RawBuilder<unknown> {
  const keys = typeof conflict === 'string' ? [] : conflict
  const target = typeof conflict === 'string' ? sql`on constraint ${sql.id(conflict)}` : sql`(${refs(keys)})`
  const changed = update === 'none' ? [] : (update ?? columns.filter((column) => !keys.includes(column)))
  if (changed.length === 0) return sql` on conflict ${target} do nothing`
  const set = changed.map((column) => sql`${sql.id(column)} = ${sql.id('excluded', column)}`)
  return sql` on conflict ${target} do update set ${sql.join(set)}`
}

/**
 * Writes rows in statements of many: each column is one parameter, an array that the server unfolds, so that no number of
 * rows meets the protocol's limit of 65 535 parameters, and the text of the statement is always the same.
 */
export class BulkWrite {
  readonly #runner: BulkRunner
  readonly #command: BulkCommand
  readonly #options: BulkOptions<string>
  readonly #chunkRows: number
  /** Rows that wait for a statement, by the columns that they have. */
  readonly #pending = new Map<string, PendingRows>()
  #last: PendingRows | undefined
  #sending: Promise<void> | undefined
  #pendingRows = 0
  #pendingBytes = 0
  #types: ReadonlyMap<string, ColumnType> = new Map()
  #read = 0
  #count = 0
  #rows: Record<string, unknown>[] = []

  constructor(runner: BulkRunner, command: BulkCommand, options: BulkOptions<string>) {
    const { chunkRows = defaultChunkRows } = options
    if (!isWhole(chunkRows, 1)) {
      throw invalid(`chunkRows is ${String(chunkRows)}. Give a whole number of rows from 1, or leave it out.`)
    }
    this.#runner = runner
    this.#command = command
    this.#options = options
    this.#chunkRows = chunkRows
  }

  /** Reads the source to its end and writes what it gives. */
  async write(source: RowSource<object>): Promise<BulkResult<Record<string, unknown>>> {
    if (this.#options.atomic === false) return this.#writeAll(source)
    return this.#runner.transaction(() => this.#writeAll(source), Array.isArray(source))
  }

  async #writeAll(source: RowSource<object>): Promise<BulkResult<Record<string, unknown>>> {
    // A transaction may begin its work anew.
    this.#pending.clear()
    this.#last = undefined
    this.#pendingRows = this.#pendingBytes = this.#read = this.#count = 0
    this.#rows = []
    try {
      this.#types = await this.#readTypes()
      await this.#readAll(source)
      await this.#flush()
    } catch (error) {
      await this.#sending?.catch(() => undefined)
      throw this.#explained(error)
    }
    return { count: this.#count, rows: this.#rows }
  }

  async #readAll(source: RowSource<object>): Promise<void> {
    const reader = new SourceReader(source, this.#runner.reading(this.#options.signal))
    await reader.read((row) => {
      this.#addWhole(row)
      return this.#pendingRows >= this.#chunkRows || this.#pendingBytes >= chunkBytes ? this.#send() : undefined
    })
  }

  #addWhole(row: object): void {
    this.#read += 1
    try {
      this.#add(row)
    } catch (error) {
      throw error instanceof RangeError ? this.#refused('is too long to be sent', error) : error
    }
  }

  #add(row: object): void {
    if (typeof row !== 'object' || row === null) throw this.#refused(`is ${row === null ? 'null' : typeof row}`)
    const pending = this.#pendingFor(row)
    const { columns, lists } = pending
    for (let index = 0; index < columns.length; index += 1) {
      this.#pendingBytes += this.#encode(
        lists[index] as ArrayParameter,
        (row as Record<string, unknown>)[columns[index] as string],
      )
    }
    pending.lastRow = this.#read
    this.#pendingRows += 1
    if (!pending.isNewKey(this.#command.keys)) throw this.#refused('has the key of another row that is written with it')
  }

  /** Most rows are like the one before. */
  #pendingFor(row: object): PendingRows {
    const last = this.#last
    if (last !== undefined && hasColumns(row, last.columns)) return last
    const entries = Object.entries(row).filter(([, value]) => value !== undefined)
    const shape = entries.map(([column]) => column).join('\0')
    this.#last = this.#pending.get(shape) ?? this.#begin(shape, entries)
    return this.#last
  }

  #begin(shape: string, entries: readonly (readonly [string, unknown])[]): PendingRows {
    const columns = entries.map(([column]) => column)
    if (columns.length === 0) throw this.#refused('has no values')
    if (this.#command.isUpdate && columns.length <= this.#command.keys.length)
      throw this.#refused('has nothing but its key')
    const missing = this.#command.keys.find((key) => !columns.includes(key))
    if (missing !== undefined) throw this.#refused(`has no ${missing}, which is of the key`)
    const types = columns.map((column) => {
      const type = this.#types.get(this.#runner.nameOf(sql.id(column)))
      if (type === undefined) throw this.#refused(`has ${column}, which is no column of ${this.#command.table}`)
      return type
    })
    const pending = new PendingRows(columns, types)
    this.#pending.set(shape, pending)
    return pending
  }

  #encode(list: ArrayParameter, value: unknown): number {
    try {
      return list.add(value)
    } catch (error) {
      if (error instanceof RangeError) throw error
      const { message, cause } = error as Error
      throw this.#refused(message, cause)
    }
  }

  /** Has what waits written, while the next rows are read; but no more than that. */
  async #send(): Promise<void> {
    const chunks = [...this.#pending.values()]
    this.#pending.clear()
    this.#last = undefined
    this.#pendingRows = this.#pendingBytes = 0
    // Made while the server is still busy with those before.
    const statements = chunks.map((chunk) => this.#statementFor(chunk))
    await this.#sending
    this.#sending = this.#write(statements)
    // Whoever waits for it next hears of its failure.
    this.#sending.catch(() => undefined)
    // It goes out at the end of this turn: not before the next rows are encoded, if they are all there already.
    await nextTurn()
  }

  async #flush(): Promise<void> {
    await this.#send()
    await this.#sending
  }

  async #write(statements: readonly CompiledQuery<Record<string, unknown>>[]): Promise<void> {
    const { returning, atomic: _atomic, chunkRows: _chunk, onProgress, ...call } = this.#options
    for (const statement of statements) {
      const { rows, numAffectedRows } = await this.#runner.run(statement, call)
      this.#count += Number(numAffectedRows ?? 0)
      if (returning !== undefined) for (const row of rows) this.#rows.push(row)
      await onProgress?.({ rows: this.#count })
    }
  }

  #statementFor({ columns, lists, lastRow }: PendingRows): CompiledQuery<Record<string, unknown>> {
    try {
      return this.#runner.compile(this.#command.statement({ columns, source: unfolded(lists) }))
    } catch (error) {
      // A row that long is the last of its statement.
      throw error instanceof RangeError ? this.#refused('is too long to be sent', error, lastRow) : error
    }
  }

  async #readTypes(): Promise<ReadonlyMap<string, ColumnType>> {
    const table = this.#runner.nameOf(sql.table(this.#command.table))
    const { timeoutMs, signal } = this.#options
    const { rows } = await this.#runner.run(this.#runner.compile(askColumnTypes(table)), { timeoutMs, signal })
    return new Map((rows as unknown as ColumnType[]).map((column) => [column.name, column]))
  }

  /** Says what is written, once nothing is on its way any more. */
  #explained(error: unknown): unknown {
    if (error instanceof Refusal) return this.#failed(error)
    if (!isDatabaseError(error)) return error
    if (error.sqlState === '21000') {
      const twice = 'Two of the rows have the same key. Give each key once.'
      return this.#failed(new Refusal('INVALID_ARGUMENT', twice, { cause: error }))
    }
    if (this.#options.atomic === false) (error as { rowsWritten?: number }).rowsWritten = this.#count
    return error
  }

  #refused(what: string, cause?: unknown, row = this.#read): Refusal {
    return new Refusal('INVALID_ARGUMENT', `Row ${row} ${what}.`, { cause })
  }

  #failed(refusal: Refusal): DatabaseError {
    return refusal.toError(this.#command.description, this.#options.atomic === false ? this.#count : undefined)
  }
}

/** Rows with the same columns that wait for their statement. */
class PendingRows {
  readonly columns: readonly string[]
  readonly lists: readonly ArrayParameter[]
  /** Its number in the source. */
  lastRow = 0
  readonly #keys = new Set<string>()

  constructor(columns: readonly string[], types: readonly ColumnType[]) {
    this.columns = columns
    this.lists = columns.map((column, index) => new ArrayParameter(column, types[index] as ColumnType))
  }

  /** Whether the last row has a key that none before it has: which of two would count is left to the server. */
  isNewKey(keys: readonly string[]): boolean {
    if (keys.length === 0) return true
    const key = keys.map((name) => this.lists[this.columns.indexOf(name)]?.lastText ?? '').join('\0')
    const isNew = !this.#keys.has(key)
    this.#keys.add(key)
    return isNew
  }
}

/**
 * The rows again, as `u` with these columns: as many lists as columns, each as long, are unfolded in step. An array of arrays would
 * be unfolded whole, so arrays travel as texts that the server casts row by row. Throws a RangeError for what is too long to be sent.
 */
export function unfolded(lists: readonly ArrayParameter[]): RawBuilder<unknown> {
  let bytes = 0
  const values = lists.map((list) => {
    const { column, type } = list
    const value = list.encode()
    bytes += typeof value === 'string' ? Buffer.byteLength(value) : value.length
    const elements = sql`unnest(${value}::${sql.raw(type.array ? 'text' : type.type)}[])`
    return sql`${type.array ? sql`${elements}::${sql.raw(type.type)}` : elements} as ${sql.id(column)}`
  })
  if (bytes > mostBytesSent) throw new RangeError('the rows are longer than a message of the protocol can be')
  return sql`(select ${sql.join(values)}) as u`
}

function invalid(message: string): DatabaseError {
  return new DatabaseError('INVALID_ARGUMENT', message)
}
