import { LRUCache } from 'lru-cache'

/**
 * What a caller gets of a value that others get too: `freeze` it itself, which nobody can change; `clone` a copy of its own
 * each time; `shared` it itself, for callers that promise to change nothing.
 */
export type ValueSharing = 'clone' | 'freeze' | 'shared'

/** Bounds of a {@link MemoryTier}. */
export interface MemorySettings {
  readonly maxEntries: number
  /** Of values, about. */
  readonly maxBytes: number
  readonly values: ValueSharing
}

/** What is kept of a value in memory. Instants are those of `performance.now()`. */
export interface MemoryFacts {
  readonly value: unknown
  readonly clock: number
  readonly tags: readonly string[]
  readonly freshUntil: number
  /** From when on whoever reads it has it loaded anew. */
  readonly refreshAt: number
  /** Later than that it is not even given when nothing else is to be had. */
  readonly staleUntil: number
  readonly size: number
  /** Of the entry in Redis that it is a copy of. */
  readonly header: string | undefined
  /** The version of the invalidations by which it was last found to hold. */
  readonly checkedAt: number
}

/** A value in memory. Of a class, since V8 gives up on what comes in several shapes, and a hit is made of little else. */
export class MemoryEntry implements MemoryFacts {
  readonly value: unknown
  readonly clock: number
  readonly tags: readonly string[]
  readonly freshUntil: number
  readonly refreshAt: number
  readonly staleUntil: number
  readonly size: number
  readonly header: string | undefined
  checkedAt: number
  /** The value for those who wait, once somebody has. */
  promise: Promise<unknown> | undefined = undefined

  constructor(facts: MemoryFacts) {
    this.value = facts.value
    this.clock = facts.clock
    this.tags = facts.tags
    this.freshUntil = facts.freshUntil
    this.refreshAt = facts.refreshAt
    this.staleUntil = facts.staleUntil
    this.size = facts.size
    this.header = facts.header
    this.checkedAt = facts.checkedAt
  }
}

/** The values of one process, the least recently used of which make room for others. */
export class MemoryTier {
  /** Whether {@link give} gives what is kept, and no copy. */
  readonly givesItself: boolean
  readonly #entries: LRUCache<string, MemoryEntry>
  readonly #sharing: ValueSharing

  constructor({ maxEntries, maxBytes, values }: MemorySettings) {
    this.#sharing = values
    this.givesItself = values !== 'clone'
    this.#entries = new LRUCache({ max: maxEntries, maxSize: maxBytes, sizeCalculation: ({ size }) => size })
  }

  get count(): number {
    return this.#entries.size
  }

  get bytes(): number {
    return this.#entries.calculatedSize
  }

  get(key: string): MemoryEntry | undefined {
    return this.#entries.get(key)
  }

  set(key: string, facts: MemoryFacts): void {
    this.#entries.set(key, new MemoryEntry(facts))
  }

  delete(key: string): void {
    this.#entries.delete(key)
  }

  /** Deletes one that is not later. */
  deleteUntil(key: string, clock: number): void {
    const entry = this.#entries.peek(key)
    if (entry !== undefined && entry.clock <= clock) this.#entries.delete(key)
  }

  deleteWhere(test: (key: string, entry: MemoryEntry) => boolean): void {
    for (const [key, entry] of [...this.#entries.entries()]) if (test(key, entry)) this.#entries.delete(key)
  }

  clear(): void {
    this.#entries.clear()
  }

  /** The value as it may be kept. */
  keep<T>(value: T): T {
    if (this.#sharing === 'freeze') return deepFreeze(value)
    // Its first caller may change what it was given.
    return this.#sharing === 'clone' ? structuredClone(value) : value
  }

  /** A kept value for a caller. */
  give(value: unknown): unknown {
    return this.givesItself || typeof value !== 'object' || value === null ? value : structuredClone(value)
  }

  /** {@link give} for callers that wait. */
  promise(entry: MemoryEntry): Promise<unknown> {
    if (!this.givesItself) return Promise.resolve(this.give(entry.value))
    entry.promise ??= Promise.resolve(entry.value)
    return entry.promise
  }
}

/** Dates, maps, sets and bytes cannot be frozen; what is in maps and sets is. */
function deepFreeze<T>(value: T): T {
  if (typeof value !== 'object' || value === null || Object.isFrozen(value)) return value
  if (value instanceof Date || ArrayBuffer.isView(value)) return value
  if (value instanceof Map) {
    for (const [key, item] of value) {
      deepFreeze(key)
      deepFreeze(item)
    }
  } else if (value instanceof Set) for (const item of value) deepFreeze(item)
  else {
    Object.freeze(value)
    // Of objects that are alike V8 knows the names already, and makes no list.
    for (const name in value) deepFreeze(value[name])
  }
  return value
}
