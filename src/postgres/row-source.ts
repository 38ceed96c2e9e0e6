import { setImmediate as nextTurn } from 'node:timers/promises'
import { DatabaseError } from '../core/errors.ts'

/** Rows to write: of an array, a generator, a stream of objects, or anything else that can be iterated. */
export type RowSource<Row> = AsyncIterable<Row> | Iterable<Row>

/** Why rows are not written, before it is known what has been. */
export class Refusal extends Error {
  readonly code: 'BULK_SOURCE_FAILED' | 'INVALID_ARGUMENT'

  constructor(code: Refusal['code'], message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }

  /** As the caller reads it: `what` was to be done, and what has remained of it. */
  toError(what: string, rowsWritten?: number): DatabaseError {
    const rest = rowsWritten ? `${rowsWritten} rows are written.` : 'Nothing was written.'
    return new DatabaseError(this.code, `${what}: ${this.message} ${rest}`, { cause: this.cause, rowsWritten })
  }
}

/** How a source is read, and what ends that. */
export interface Reading {
  /** What an item is called in messages. @default 'row' */
  readonly noun?: string | undefined
  /** Calls into the source, in the context that is its own. */
  readonly run?: (<T>(work: () => T) => T) | undefined
  /** Ends it with its reason. */
  readonly signal?: AbortSignal | undefined
  /** Calls when there is nothing left to read for; gives what takes that back. */
  readonly onLost?: ((listener: (reason: unknown) => void) => () => void) | undefined
}

// A source that is always ready must not keep everybody else in the process waiting.
const turnMs = 10
const itemsBetweenLooks = 1_024

/** Reads a source to its end, once. */
export class SourceReader<Item> {
  /** Items that were read. */
  count = 0
  readonly #source: RowSource<Item>
  readonly #items: AsyncIterator<Item> | Iterator<Item>
  readonly #noun: string
  readonly #run: <T>(work: () => T) => T
  /** Rejects when the reading is ended from outside: the source may never say anything again. */
  readonly #interrupted = Promise.withResolvers<never>()
  readonly #unlisten: () => void
  #peeked: Promise<IteratorResult<Item>> | undefined
  #isOver = false

  /** Throws `INVALID_ARGUMENT` for what cannot be read, or not again. */
  constructor(source: RowSource<Item>, { noun = 'row', run = (work) => work(), signal, onLost }: Reading = {}) {
    assertReadable(source, noun)
    this.#items = run(() => (Symbol.iterator in source ? source[Symbol.iterator]() : source[Symbol.asyncIterator]()))
    this.#source = source
    this.#noun = noun
    this.#run = run
    this.#noteReading()
    this.#interrupted.promise.catch(ignore)
    const onAbort = (): void => this.#interrupted.reject(signal?.reason)
    signal?.addEventListener('abort', onAbort, { once: true })
    const keep = onLost?.(this.#interrupted.reject)
    this.#unlisten = () => {
      signal?.removeEventListener('abort', onAbort)
      keep?.()
    }
  }

  /** The first item, which {@link read} gives too. */
  peek(): Promise<IteratorResult<Item>> {
    this.#peeked = Promise.race([this.#next(), this.#interrupted.promise])
    return this.#peeked
  }

  /**
   * Calls with each item, and waits where that returns a promise. Rejects with a {@link Refusal} when the source fails,
   * and with what `take` throws. Leaves the source closed.
   */
  async read(take: (item: Item) => Promise<void> | undefined): Promise<void> {
    try {
      await Promise.race([this.#readAll(take), this.#interrupted.promise])
    } catch (error) {
      // Its own end is not waited for: it may hang, and the failure is to be told now.
      void this.close().catch(ignore)
      throw error
    }
  }

  /** Wants no more. A generator that is at work ends with its next item, a stream of Node at once. */
  async close(): Promise<void> {
    if (this.#isOver) return
    this.#end()
    // Its iterator would wait for the item that never comes.
    if (isStream(this.#source)) this.#source.destroy()
    await this.#run(() => this.#items.return?.())
  }

  async #readAll(take: (item: Item) => Promise<void> | undefined): Promise<void> {
    let turnBegan = performance.now()
    while (!this.#isOver) {
      let next = this.#peeked ?? this.#next()
      this.#peeked = undefined
      // What is there already is not waited for: that would cost as much as all the rest.
      if (next instanceof Promise) next = await next
      if (this.#isOver) return
      if (next.done === true) return this.#end()
      this.count += 1
      const taken = take(next.value)
      if (taken !== undefined) await taken
      else if (this.count % itemsBetweenLooks !== 0) continue
      if (performance.now() - turnBegan < turnMs) continue
      await nextTurn()
      turnBegan = performance.now()
    }
  }

  #next(): IteratorResult<Item> | Promise<IteratorResult<Item>> {
    try {
      const next = this.#run(() => this.#items.next())
      return next instanceof Promise ? next.catch((cause: unknown) => this.#failed(cause)) : next
    } catch (cause) {
      return this.#failed(cause)
    }
  }

  #end(): void {
    this.#isOver = true
    this.#unlisten()
  }

  #failed(cause: unknown): never {
    this.#end()
    throw new Refusal(
      'BULK_SOURCE_FAILED',
      `The source of the ${this.#noun}s failed after ${this.#noun} ${this.count}.`,
      { cause },
    )
  }

  /** What can be read but once, such as a generator, would give nothing a second time: that must not pass for no rows. */
  #noteReading(): void {
    const source: object = this.#source
    const items: object = this.#items
    const before = readings.get(items) ?? readings.get(source)
    if (before !== undefined) {
      throw new DatabaseError(
        'INVALID_ARGUMENT',
        `The source of the ${this.#noun}s was read before, perhaps by a transaction that was undone and runs again. ` +
          'Create it inside the function of the transaction, or give an array.',
        { cause: before.failure },
      )
    }
    const reading = {}
    readings.set(items, reading)
    if (items === source || isStream(source) || source instanceof ReadableStream) readings.set(source, reading)
  }
}

/**
 * Does work that will read a source, and leaves that closed when the work fails before it has begun to read. A stream of
 * Node may fail at any time, and where nobody listens it would end the process.
 */
export async function withSource<T>(source: RowSource<unknown>, work: () => Promise<T>): Promise<T> {
  if (isStream(source)) source.on('error', ignore)
  try {
    return await work()
  } catch (error) {
    const reading = readings.get(source)
    if (reading) reading.failure ??= error
    if (isStream(source)) source.destroy()
    throw error
  }
}

/** Iterators, and sources that are read once, with what became of it. */
const readings = new WeakMap<object, { failure?: unknown }>()

function assertReadable(source: unknown, noun: string): void {
  const isOne = typeof source === 'string' || source instanceof Uint8Array
  const isReadable =
    typeof source === 'object' && source !== null && (Symbol.iterator in source || Symbol.asyncIterator in source)
  if (isReadable && !isOne) return
  const given = source === null ? 'null' : source instanceof Uint8Array ? 'a buffer' : `of type ${typeof source}`
  throw new DatabaseError(
    'INVALID_ARGUMENT',
    `The source of the ${noun}s is ${given}. Give an array, a generator or a stream${isOne ? '; of a single one, [it]' : ''}.`,
  )
}

interface Stream {
  on(event: 'error', listener: () => void): unknown
  destroy(): unknown
}

function isStream(source: unknown): source is RowSource<unknown> & Stream {
  const { on, destroy } = (source ?? {}) as Partial<Stream>
  return typeof on === 'function' && typeof destroy === 'function'
}

const ignore = (): void => undefined
