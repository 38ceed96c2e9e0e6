import { type CompiledQuery, type RawBuilder, sql } from 'kysely'
import { DatabaseError, isDatabaseError } from '../core/errors.ts'
import { askColumnTypes, type ColumnType } from './column-values.ts'
import { ByteFeed, type CopyFeed, RowFeed } from './copy-rows.ts'
import { type CopyFormat, copyFrom } from './copy-sql.ts'
import { copyEnded, CopyIn } from './copy-statement.ts'
import type { CallOptions, Engine } from './engine.ts'
import { Refusal, type SourceReader } from './row-source.ts'
import { type ChunkReader, ReaderStream, type StreamOptions } from './row-stream.ts'
import { toDatabaseError } from './sqlstate.ts'
import type { Scope } from './transaction.ts'

export type { CopyFormat } from './copy-sql.ts'

/** How far a copy is. */
export interface CopyProgress {
  /** Bytes up to now, without those of the protocol. */
  readonly bytes: number
  /** Rows up to now; not where bytes are copied into a table, in which nobody looks for rows. */
  readonly rows?: number | undefined
}

/** How rows are copied into a table. Times are milliseconds. */
export interface CopyFromOptions<Column extends string = string> {
  /** The columns that each row has. @default those of the first row; for bytes all that are not generated, in their order */
  readonly columns?: readonly Column[] | undefined
  /**
   * How long the server may go without taking bytes, and how long it may take at the end, when it checks foreign keys. The
   * time of the source does not count. @default `queryTimeoutMs`
   */
  readonly timeoutMs?: number | false | undefined
  /** Ends it with its reason, and nothing is written. */
  readonly signal?: AbortSignal | undefined
  /** Hears of each piece of some 64 KB that was handed over, and is waited for. Its failure ends the copy; nothing is written. */
  readonly onProgress?: ((progress: CopyProgress) => unknown) | undefined
}

/** How bytes are copied into a table. */
export interface CopyBytesOptions<Column extends string = string> extends CopyFromOptions<Column>, CopyFormat {}

/** How rows are copied out, as `text` unless said otherwise. */
export interface CopyToOptions<Column extends string = string>
  extends Omit<StreamOptions, 'chunkSize'>, Partial<CopyFormat> {
  /** Of a table. @default all that are not generated, in their order */
  readonly columns?: readonly Column[] | undefined
  /** Hears of each piece before it is given, and is waited for. Its failure ends the copy. */
  readonly onProgress?: ((progress: CopyProgress) => unknown) | undefined
}

/** What was copied into a table. */
export interface CopyResult {
  /** Rows that are written. */
  readonly count: number
}

/** The bytes of a copy, in pieces of up to some 256 KB, to be read once. */
export interface CopyStream extends AsyncIterableIterator<Buffer, undefined>, AsyncDisposable {
  /** Rows up to now; all of them once it is read to its end. */
  readonly rowCount: number
  return(): Promise<IteratorReturnResult<undefined>>
}

/** What a copy into a table needs of the transaction that it is in. */
export interface CopyRunner {
  readonly engine: Engine
  readonly scope: Scope
  run(query: RawBuilder<Record<string, unknown>>, options: CallOptions): Promise<{ readonly rows: object[] }>
  compile(query: RawBuilder<unknown>): CompiledQuery
}

// A write that waits for the server is given up with it; a long piece in several, so that each has its own time.
const writeSize = 65_536

/** Copies rows or bytes into a table, in a transaction. */
export class CopyWrite {
  readonly #runner: CopyRunner
  readonly #table: string
  readonly #options: CopyFromOptions & Partial<CopyFormat>
  readonly #stream = { sql: '', stop: (): void => undefined }
  #bytes = 0

  constructor(runner: CopyRunner, table: string, options: CopyFromOptions & Partial<CopyFormat>) {
    this.#runner = runner
    this.#table = table
    this.#options = options
  }

  /** Reads the source to its end. All that it gives is written, or nothing. */
  async write(source: SourceReader<unknown>): Promise<CopyResult> {
    try {
      const feeding = await this.#openFeed(source)
      return { count: feeding === undefined ? 0 : await this.#writeAll(source, feeding) }
    } catch (error) {
      throw error instanceof Refusal ? error.toError(`copy into ${this.#table}`) : error
    } finally {
      // One that hangs is not waited for.
      void source.close().catch(() => undefined)
    }
  }

  /** Nothing when there is no row. */
  async #openFeed(source: SourceReader<unknown>): Promise<Feeding | undefined> {
    const { format, columns: given } = this.#options
    if (format !== undefined) {
      return {
        feed: new ByteFeed(this.#options.encoding),
        query: copyFrom(this.#table, given, this.#options as CopyFormat),
      }
    }
    const first = await source.peek()
    if (first.done === true) return undefined
    const columns = given ?? columnsOf(first.value)
    const types = await this.#readTypes(columns)
    return { feed: new RowFeed(columns, types), query: copyFrom(this.#table, columns) }
  }

  async #readTypes(columns: readonly string[]): Promise<readonly ColumnType[]> {
    const runner = this.#runner
    const { timeoutMs } = this.#options
    const { rows } = await runner.run(askColumnTypes(runner.compile(sql.table(this.#table)).sql), { timeoutMs })
    const types = new Map((rows as ColumnType[]).map((type) => [type.name, type]))
    return columns.map((column) => {
      const type = types.get(runner.compile(sql.id(column)).sql)
      if (type === undefined) {
        throw new Refusal('INVALID_ARGUMENT', `There is no column ${column} in ${this.#table}.`)
      }
      return type
    })
  }

  async #writeAll(source: SourceReader<unknown>, { feed, query }: Feeding): Promise<number> {
    const { scope } = this.#runner
    const began = performance.now()
    const compiled = this.#runner.compile(query)
    const copy = this.#begin(compiled)
    let failure: unknown
    try {
      // Whatever that waits for, a failure of the server is heard at once.
      this.#pump(copy, source, feed).catch((error: unknown) => error !== copyEnded && copy.fail(error))
      const count = await copy.done
      this.#report(compiled.sql, began, count)
      return count
    } catch (cause) {
      failure = this.#explained(copy, cause, compiled.sql)
      this.#report(compiled.sql, began, 0, failure)
      throw failure
    } finally {
      scope.endStream(this.#stream, failure)
      if (failure === undefined) await scope.noteWrite()
    }
  }

  #begin(compiled: CompiledQuery): CopyIn {
    const { engine, scope } = this.#runner
    const { timeoutMs } = this.#options
    const request = scope.beginStream(this.#stream, compiled)
    const copy = new CopyIn(request, () => engine.limits({ timeoutMs }).deadline)
    this.#stream.sql = compiled.sql
    this.#stream.stop = () => copy.abandon(givenUp(compiled.sql))
    engine.submit(scope.session, copy)
    return copy
  }

  async #pump(copy: CopyIn, source: SourceReader<unknown>, feed: CopyFeed): Promise<void> {
    await copy.opened
    await source.read((item) => {
      const bytes = feed.add(item)
      return bytes && this.#send(copy, bytes, feed)
    })
    const rest = feed.rest()
    if (rest.length > 0) await this.#send(copy, rest, feed)
    copy.finish()
  }

  async #send(copy: CopyIn, bytes: Uint8Array, feed: CopyFeed): Promise<void> {
    const { session } = this.#runner.scope
    for (let at = 0; at < bytes.length; at += writeSize) {
      const piece = bytes.subarray(at, at + writeSize)
      await copy.send(piece)
      session.noteUse()
      this.#bytes += piece.length
    }
    await this.#options.onProgress?.({ bytes: this.#bytes, rows: feed.rows })
  }

  #explained(copy: CopyIn, cause: unknown, text: string): unknown {
    // What the caller's own function threw is passed on as it is.
    if (cause instanceof Refusal || copy.hasFailedBy(cause)) return cause
    return toDatabaseError(cause, { sql: text, inTransaction: true, target: this.#runner.engine.source.description })
  }

  #report(text: string, began: number, count: number, failure?: unknown): void {
    const { engine } = this.#runner
    if (!engine.events.hears('query')) return
    const result = { rows: [], numAffectedRows: BigInt(count) }
    const error = failure === undefined || isDatabaseError(failure) ? failure : givenUp(text, failure)
    engine.report(text, began, 1, true, result, error)
  }
}

interface Feeding {
  readonly feed: CopyFeed
  readonly query: RawBuilder<unknown>
}

/** The bytes of a copy as they are read. */
export class CopyReaderStream extends ReaderStream<Buffer> implements CopyStream {
  readonly #reader: ChunkReader<Buffer>

  constructor(reader: ChunkReader<Buffer>, onProgress: CopyToOptions['onProgress']) {
    let bytes = 0
    const tell = async (pieces: Buffer[]): Promise<Buffer[]> => {
      for (const piece of pieces) bytes += piece.length
      await onProgress?.({ bytes, rows: reader.rowCount })
      return pieces
    }
    super(reader, onProgress && tell)
    this.#reader = reader
  }

  get rowCount(): number {
    return this.#reader.rowCount
  }
}

function columnsOf(row: unknown): readonly string[] {
  const isRow = typeof row === 'object' && row !== null && !(row instanceof Uint8Array)
  const columns = isRow ? Object.entries(row).filter(([, value]) => value !== undefined) : []
  if (columns.length > 0) return columns.map(([column]) => column)
  const what = isRow ? 'has no values' : 'is no row. To copy text or bytes, give their format'
  throw new Refusal('INVALID_ARGUMENT', `Row 1 ${what}.`)
}

function givenUp(text: string, cause?: unknown): DatabaseError {
  return new DatabaseError('QUERY_CANCELED', 'The copy was given up before its end; nothing of it is written.', {
    cause,
    sql: text,
  })
}
