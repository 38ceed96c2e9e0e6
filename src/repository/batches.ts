import { isDatabaseError } from '../core/errors.ts'

/** Reads for many keys at once; the results in the order of the keys. */
type ReadMany<Key, Result> = (keys: readonly Key[]) => Promise<readonly Result[]>

interface Call {
  readonly key: unknown
  readonly resolve: (result: never) => void
  readonly reject: (error: unknown) => void
}

/** A batch is whole when everything that is ready to run has run, promises included: callers one await apart still share it. */
const whenIdle = (work: () => void): void => queueMicrotask(() => process.nextTick(work))

/** What calls have in common that become one. */
export interface BatchKind {
  /** The transaction, or what stands for none. */
  readonly scope: object
  /** What is read: calls of one name read in the same way. */
  readonly name: string
  /** A statement that has failed does not spoil those behind it. */
  readonly isRepeatable: boolean
  /** Called with each, where it is asked for; all but the first of a batch are shared. */
  onCall(isShared: boolean): void
}

/**
 * Collects what is asked for one at a time in one tick, and asks for it at once. Calls share a statement only within one scope: that of a
 * transaction, or that of no transaction.
 */
export class Batches {
  readonly #open = new WeakMap<object, Map<string, Call[]>>()

  load<Key, Result>(kind: BatchKind, key: Key, read: ReadMany<Key, Result>): Promise<Result> {
    const { scope, name } = kind
    const batches = this.#open.get(scope) ?? new Map<string, Call[]>()
    this.#open.set(scope, batches)
    const { promise, resolve, reject } = Promise.withResolvers<Result>()
    const call = { key, resolve, reject } as Call
    const batch = batches.get(name)
    kind.onCall(batch !== undefined)
    if (batch !== undefined) batch.push(call)
    else {
      const calls = [call]
      batches.set(name, calls)
      whenIdle(() => {
        batches.delete(name)
        void settle(calls, read as ReadMany<unknown, never>, kind.isRepeatable)
      })
    }
    return promise
  }
}

async function settle(calls: readonly Call[], read: ReadMany<unknown, never>, isRepeatable: boolean): Promise<void> {
  try {
    const results = await read(calls.map(({ key }) => key))
    calls.forEach(({ resolve }, index) => resolve(results[index] as never))
  } catch (error) {
    // One key that is none fails the statement for all; whose it is shows when each half is asked for alone. One after the other: of
    // thousands, statements for all at once would be more than the pool takes.
    if (isRepeatable && calls.length > 1 && isDatabaseError(error) && error.code === 'INVALID_DATA') {
      const middle = Math.ceil(calls.length / 2)
      await settle(calls.slice(0, middle), read, isRepeatable)
      await settle(calls.slice(middle), read, isRepeatable)
    } else for (const { reject } of calls) reject(error)
  }
}
