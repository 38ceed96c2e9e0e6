import { settleWithin } from '../core/deadline.ts'
import { databaseClosed, DatabaseError, type ErrorCode, isDatabaseError } from '../core/errors.ts'
import { isWhole, largestInt32 } from '../core/whole-number.ts'

/** How values are written behind. Times are milliseconds. */
export interface WriteBehindOptions<T> {
  /**
   * Writes the values, in a transaction of its own: all or none. One call at a time, each key once. What it throws undoes
   * it, and the values wait on.
   */
  readonly write: (values: ReadonlyMap<string, T>) => Promise<unknown>
  /** What is written of two values for one key. @default the newer one */
  readonly merge?: ((older: T, newer: T) => T) | undefined
  /** How long a value waits for others, at least; longer after a failure. @default 1000 */
  readonly intervalMs?: number | undefined
  /** Most keys that wait; {@link WriteBehind.add} refuses one more. @default 10000 */
  readonly maxKeys?: number | undefined
  /** Most keys in one call of `write`. @default 1000 */
  readonly batchSize?: number | undefined
  /**
   * Writing the same values twice is as good as once: then they are written again when nobody can tell whether they were
   * (`COMMIT_OUTCOME_UNKNOWN`). Else they are given up, and {@link onLost} is told. @default false
   */
  readonly idempotent?: boolean | undefined
  /**
   * Told what is given up, each value once: its outcome is unknown, the server or kanta refuses it for what it is, `merge` cannot
   * merge it, or the database is closed and could not take it. What is being written when the time of closing is over is told
   * of only when that has failed. @default a warning to the logger with their number
   */
  readonly onLost?: ((values: ReadonlyMap<string, T>, error: unknown) => void) | undefined
}

/** Values that are written a little later, together. Safe for any number of concurrent callers. */
export interface WriteBehind<T> extends AsyncDisposable {
  /**
   * Has a value written, soon; inside a transaction once that is committed. Throws `CACHE_WRITE_BEHIND_FULL` when too many keys
   * wait, `INVALID_ARGUMENT` for a key that is no text or for `undefined`, what `merge` throws outside a transaction, and
   * `DATABASE_CLOSED` after the end; then nothing of it waits.
   */
  add(key: string, value: T): void
  /** What waits for a key: to be put beside what is read. */
  pending(key: string): T | undefined
  /** How many keys wait. */
  readonly size: number
  /** Writes what waits now. Rejects as `write` does; then it waits on. */
  flush(): Promise<void>
  /** Writes what waits, and takes nothing more. Rejects as {@link flush}; then what is left is given up. */
  close(): Promise<void>
}

/** What a {@link WriteQueue} runs on. */
export interface WriteBehindPlace {
  /** Runs work in a transaction, outside any other. */
  transact<T>(work: () => Promise<T>): Promise<T>
  /** Runs work when the present transaction is committed, or now; the other when nobody can tell whether it was. */
  afterCommit(work: () => void, ifUnknown: () => void): void
  warn(message: string): void
  onClose(queue: object): void
}

const longestPauseMs = 30_000

/** {@link WriteBehind} over a map. */
export class WriteQueue<T> implements WriteBehind<T> {
  readonly #place: WriteBehindPlace
  readonly #options: WriteBehindOptions<T>
  readonly #merge: (older: T, newer: T) => T
  readonly #intervalMs: number
  readonly #maxKeys: number
  readonly #batchSize: number
  /** What waits, and what is being written. */
  #waiting = new Map<string, T>()
  #writing: ReadonlyMap<string, T> = new Map()
  #timer: NodeJS.Timeout | undefined
  #work: Promise<void> | undefined
  #failures = 0
  #closing: Promise<void> | undefined

  constructor(options: WriteBehindOptions<T>, place: WriteBehindPlace) {
    if (typeof options.write !== 'function') {
      throw new DatabaseError(
        'INVALID_ARGUMENT',
        'write of writing behind is no function. Give one that writes the values.',
      )
    }
    this.#place = place
    this.#options = options
    this.#merge = options.merge ?? ((_, newer) => newer)
    this.#intervalMs = milliseconds(options.intervalMs) ?? 1_000
    this.#maxKeys = count(options.maxKeys, 'maxKeys') ?? 10_000
    this.#batchSize = count(options.batchSize, 'batchSize') ?? 1_000
  }

  get size(): number {
    return new Set([...this.#waiting.keys(), ...this.#writing.keys()]).size
  }

  add(key: string, value: T): void {
    if (this.#closing) throw databaseClosed()
    assertAddable(key, value)
    const isNew = !this.#waiting.has(key) && !this.#writing.has(key)
    if (isNew && this.#waiting.size + this.#writing.size >= this.#maxKeys) throw full(this.#maxKeys)
    const lose = (error: unknown): void => this.#giveUp(new Map([[key, value]]), error)
    let isLater = false
    // The transaction may end later than this.
    const whenDone = (): void => {
      if (this.#closing) return lose(databaseClosed())
      try {
        this.#put(key, value)
      } catch (error) {
        if (!isLater) throw error
        // Nobody is there any more to be told of it by an exception.
        return lose(error)
      }
      this.#writeLater()
    }
    this.#place.afterCommit(whenDone, () => (this.#options.idempotent === true ? whenDone() : lose(unknownOutcome())))
    isLater = true
  }

  pending(key: string): T | undefined {
    const written = this.#writing.get(key)
    const waiting = this.#waiting.get(key)
    if (!this.#writing.has(key)) return waiting
    return this.#waiting.has(key) ? this.#merge(written as T, waiting as T) : written
  }

  async flush(): Promise<void> {
    await this.#work?.catch(() => undefined)
    await this.#writeAll()
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    // Whatever is added from now on is refused.
    await Promise.resolve()
    try {
      await this.flush()
    } catch (error) {
      this.#giveUp(this.#waiting, error)
      throw error
    } finally {
      clearTimeout(this.#timer)
      this.#place.onClose(this)
    }
  }

  /** The database ends: what is not written by then is given up. */
  async end(limitMs: number): Promise<void> {
    const late = new DatabaseError('DATABASE_CLOSED', `It was not written within ${limitMs} ms.`)
    await settleWithin(this.close(), limitMs, () => late).catch(() => {
      // What is being written goes on, as long as the database lets it, and is given up by the closing when that fails.
      this.#giveUp(this.#waiting, late)
    })
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #put(key: string, newer: T): void {
    const value = this.#waiting.has(key) ? this.#merge(this.#waiting.get(key) as T, newer) : newer
    this.#waiting.set(key, value)
  }

  /** The timer keeps the process: what was promised is written before it ends by itself. */
  #writeLater(): void {
    if (this.#timer !== undefined || this.#waiting.size === 0 || this.#work !== undefined) return
    const pauseMs = Math.min(this.#intervalMs * 2 ** this.#failures, Math.max(longestPauseMs, this.#intervalMs))
    this.#timer = setTimeout(() => void this.#writeAll().catch(() => undefined), pauseMs)
  }

  #writeAll(): Promise<void> {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#work ??= this.#writeBatches().finally(() => {
      this.#work = undefined
      if (!this.#closing) this.#writeLater()
    })
    return this.#work
  }

  async #writeBatches(): Promise<void> {
    // What is added meanwhile waits for its own turn.
    for (let left = this.#waiting.size; left > 0 && this.#waiting.size > 0; left -= this.#batchSize) {
      const batch = new Map([...this.#waiting].slice(0, Math.min(left, this.#batchSize)))
      for (const key of batch.keys()) this.#waiting.delete(key)
      this.#writing = batch
      try {
        await this.#write(batch)
        this.#failures = 0
      } catch (error) {
        this.#failures += 1
        // At its end, what could not be written is given up, and that is told.
        if (this.#failures === 1 && !this.#closing)
          this.#place.warn(`what is written behind waits, since it could not be written: ${told(error)}`)
        throw error
      } finally {
        this.#writing = new Map()
      }
    }
  }

  /** Writes them, or puts those back that can be written another time. */
  async #write(batch: ReadonlyMap<string, T>): Promise<void> {
    try {
      await this.#place.transact(() => this.#options.write(batch))
    } catch (error) {
      const isUnknown = isDatabaseError(error) && error.code === 'COMMIT_OUTCOME_UNKNOWN'
      if (isUnknown && this.#options.idempotent !== true) return this.#giveUp(batch, error)
      if (!isAboutValues(error)) {
        this.#putBack(batch)
        throw error
      }
      if (batch.size === 1) return this.#giveUp(batch, error)
      await this.#writeHalves(batch)
    }
  }

  /** One value that is refused must not keep all others from being written. */
  async #writeHalves(batch: ReadonlyMap<string, T>): Promise<void> {
    const entries = [...batch]
    const middle = Math.ceil(entries.length / 2)
    const second = new Map(entries.slice(middle))
    try {
      await this.#write(new Map(entries.slice(0, middle)))
    } catch (error) {
      this.#putBack(second)
      throw error
    }
    await this.#write(second)
  }

  #putBack(batch: ReadonlyMap<string, T>): void {
    for (const [key, older] of batch) {
      const newer = this.#waiting.get(key) as T
      try {
        this.#waiting.set(key, this.#waiting.has(key) ? this.#merge(older, newer) : older)
      } catch (error) {
        this.#giveUp(new Map([[key, older]]), error)
      }
    }
  }

  #giveUp(values: ReadonlyMap<string, T>, error: unknown): void {
    if (values.size === 0) return
    const lost = new Map(values)
    if (this.#waiting === values) this.#waiting = new Map()
    const { onLost = () => this.#place.warn(`${lost.size} values to be written behind are given up: ${told(error)}`) } =
      this.#options
    try {
      onLost(lost, error)
    } catch (failure) {
      this.#place.warn(`onLost of what is written behind failed: ${told(failure)}`)
    }
  }
}

const refusals: ReadonlySet<ErrorCode> = new Set<ErrorCode>(['INVALID_ARGUMENT', 'INVALID_DATA'])

/** The server takes statements, and it or kanta refuses these values. */
function isAboutValues(error: unknown): boolean {
  return isDatabaseError(error) && (error.code.endsWith('_VIOLATION') || refusals.has(error.code))
}

function told(error: unknown): string {
  return error instanceof Error ? `${error.name}: ${error.message}` : 'something that is not an Error'
}

/** A value that is none could not be told from nothing that waits. */
function assertAddable(key: unknown, value: unknown): void {
  const problem =
    typeof key !== 'string' || key === ''
      ? `A key of writing behind is ${key === '' ? 'empty' : `of type ${typeof key}`}. Give text.`
      : value === undefined
        ? 'A value of writing behind is undefined. Give null for none.'
        : undefined
  if (problem !== undefined) throw new DatabaseError('INVALID_ARGUMENT', problem)
}

function full(maxKeys: number): DatabaseError {
  return new DatabaseError(
    'CACHE_WRITE_BEHIND_FULL',
    `${maxKeys} keys wait to be written behind, and no more may (maxKeys). Write this one at once, or see why writing is slow.`,
  )
}

function unknownOutcome(): DatabaseError {
  return new DatabaseError('COMMIT_OUTCOME_UNKNOWN', 'Nobody can tell whether the transaction around it was committed.')
}

function count(value: number | undefined, name: string): number | undefined {
  if (value === undefined || isWhole(value, 1)) return value
  throw new DatabaseError(
    'INVALID_ARGUMENT',
    `${name} of writing behind is ${String(value)}. Give a whole number from 1.`,
  )
}

function milliseconds(value: number | undefined): number | undefined {
  if (value === undefined || (Number.isFinite(value) && value >= 1 && value <= largestInt32)) return value
  throw new DatabaseError(
    'INVALID_ARGUMENT',
    `intervalMs of writing behind is ${String(value)}. Give milliseconds from 1 to ${largestInt32}.`,
  )
}
