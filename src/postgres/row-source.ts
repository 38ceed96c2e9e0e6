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

/** Reads a source to its end, once. */
export class SourceReader<Item> {
  /** Items that were read. */
  count = 0
  readonly #source: RowSource<Item>
  readonly #items: AsyncIterator<Item> | Iterator<Item>
  readonly #noun: string
  readonly #run: <T>(work: () => T) => T
  #peeked: Promise<IteratorResult<Item>> | undefined
  #isOver = false

  /** `noun` is what an item is called in messages; `run` calls into the source, in the context that is its own. */
  constructor(source: RowSource<Item>, noun = 'row', run: <T>(work: () => T) => T = (work) => work()) {
    this.#items = run(() => (Symbol.iterator in source ? source[Symbol.iterator]() : source[Symbol.asyncIterator]()))
    this.#source = source
    this.#noun = noun
    this.#run = run
    const isReadOnce = (this.#items as object) === source || isStream(source)
    if (isReadOnce && readOnce.has(source)) {
      throw new DatabaseError(
        'INVALID_ARGUMENT',
        `The source of the ${noun}s was read before, perhaps by a transaction that was undone and runs again. ` +
          'Create it inside the function of the transaction, or give an array.',
      )
    }
    if (isReadOnce) readOnce.add(source)
  }

  /** The first item, which {@link read} gives too. */
  peek(): Promise<IteratorResult<Item>> {
    this.#peeked = Promise.resolve(this.#next())
    return this.#peeked
  }

  /**
   * Calls with each item, and waits where that returns a promise. Rejects with a {@link Refusal} when the source fails,
   * and with what `take` throws. Leaves the source closed.
   */
  async read(take: (item: Item) => Promise<void> | undefined): Promise<void> {
    try {
      for (;;) {
        let next = this.#peeked ?? this.#next()
        this.#peeked = undefined
        // What is there already is not waited for: that would cost as much as all the rest.
        if (next instanceof Promise) next = await next
        if (next.done === true) {
          this.#isOver = true
          return
        }
        if (this.#isOver) return
        this.count += 1
        const taken = take(next.value)
        if (taken !== undefined) await taken
      }
    } catch (error) {
      // Its own end is not waited for: it may hang, and the failure is to be told now.
      void this.close().catch(() => undefined)
      throw error
    }
  }

  /** Wants no more. A generator that is at work ends with its next item, a stream of Node at once. */
  async close(): Promise<void> {
    if (this.#isOver) return
    this.#isOver = true
    // Its iterator would wait for the item that never comes.
    if (isStream(this.#source)) this.#source.destroy()
    await this.#run(() => this.#items.return?.())
  }

  #next(): IteratorResult<Item> | Promise<IteratorResult<Item>> {
    try {
      const next = this.#run(() => this.#items.next())
      return next instanceof Promise ? next.catch((cause: unknown) => this.#failed(cause)) : next
    } catch (cause) {
      return this.#failed(cause)
    }
  }

  #failed(cause: unknown): never {
    this.#isOver = true
    throw new Refusal(
      'BULK_SOURCE_FAILED',
      `The source of the ${this.#noun}s failed after ${this.#noun} ${this.count}.`,
      { cause },
    )
  }
}

/**
 * Does work that will read a source, and leaves that closed when the work fails before it has begun to read. A stream of
 * Node may fail at any time, and where nobody listens it would end the process.
 */
export async function withSource<T>(source: RowSource<unknown>, work: () => Promise<T>): Promise<T> {
  if (!isStream(source)) return work()
  source.on('error', ignore)
  try {
    return await work()
  } catch (error) {
    source.destroy()
    throw error
  }
}

/** Generators and streams that were read: what they would give a second time is nothing, which must not pass for no rows. */
const readOnce = new WeakSet<object>()

interface Stream {
  on(event: 'error', listener: () => void): unknown
  destroy(): unknown
}

function isStream(source: object): source is RowSource<unknown> & Stream {
  const { on, destroy } = source as Partial<Stream>
  return typeof on === 'function' && typeof destroy === 'function'
}

const ignore = (): void => undefined
