/** What no longer holds. */
export interface Invalidation {
  readonly keys: readonly string[]
  readonly tags: readonly string[]
  /** Globs over keys: `*`, `?`. */
  readonly patterns: readonly string[]
  /** Everything there is. */
  readonly all?: boolean | undefined
}

/** An invalidation of nothing, to be filled. */
export const nothing: Invalidation = { keys: [], tags: [], patterns: [] }

/** All of them in one. */
export function mergedOf(all: readonly Invalidation[]): Invalidation {
  return {
    keys: unique(all.flatMap(({ keys }) => keys)),
    tags: unique(all.flatMap(({ tags }) => tags)),
    patterns: unique(all.flatMap(({ patterns }) => patterns)),
    all: all.some((what) => what.all === true),
  }
}

function unique(names: readonly string[]): readonly string[] {
  return names.length > 1 ? [...new Set(names)] : names
}

// What is forgotten first raises the floor, so that forgetting is safe; it only costs entries that are old.
const maxRemembered = 200_000
const maxPatterns = 100

/**
 * What was invalidated, and when, by one clock that only rises. An entry holds when its own clock, taken before its value was
 * loaded, is later than all that concerns it. What is being invalidated now is blocked: nothing of it holds until it is
 * known when that was.
 */
export class InvalidationLog {
  /** Of the last message, or of whoever replayed it. */
  clock = 0
  /** Nothing older holds. */
  floor = 0
  /** Changes with everything that may make an entry invalid. */
  version = 0
  readonly #keys = new Map<string, number>()
  readonly #tags = new Map<string, number>()
  readonly #patterns: { readonly test: (key: string) => boolean; readonly clock: number }[] = []
  readonly #blocked = new Map<Invalidation, (key: string) => boolean>()

  /** Whether an entry holds. */
  holds(key: string, clock: number, tags: readonly string[]): boolean {
    if (clock <= this.floor || clock <= (this.#keys.get(key) ?? 0)) return false
    for (const tag of tags) if (clock <= (this.#tags.get(tag) ?? 0)) return false
    for (const pattern of this.#patterns) if (clock <= pattern.clock && pattern.test(key)) return false
    return this.#blocked.size === 0 || !this.isBlocked(key, tags)
  }

  /** Whether it is being invalidated now. */
  isBlocked(key: string, tags: readonly string[]): boolean {
    for (const [{ tags: blocked, all }, concerns] of this.#blocked) {
      if (all === true || concerns(key) || blocked.some((tag) => tags.includes(tag))) return true
    }
    return false
  }

  block(invalidation: Invalidation): void {
    this.version += 1
    this.#blocked.set(invalidation, concernedBy(invalidation))
  }

  unblock(invalidation: Invalidation): void {
    this.#blocked.delete(invalidation)
  }

  /** It was invalidated then; tags perhaps until later. */
  note({ keys, tags, patterns, all }: Invalidation, clock: number, tagClock: number = clock): void {
    this.version += 1
    for (const key of keys) this.#remember(this.#keys, key, clock)
    for (const tag of tags) this.#remember(this.#tags, tag, tagClock)
    for (const pattern of patterns) this.#patterns.push({ test: globTest(pattern), clock })
    if (this.#patterns.length > maxPatterns) {
      for (const forgotten of this.#patterns.splice(0, this.#patterns.length - maxPatterns))
        this.raiseFloor(forgotten.clock)
    }
    if (all === true) this.raiseFloor(clock)
  }

  raiseFloor(clock: number): void {
    if (clock <= this.floor) return
    this.version += 1
    this.floor = clock
  }

  #remember(map: Map<string, number>, name: string, clock: number): void {
    const known = map.get(name)
    if (known !== undefined && known >= clock) return
    // The last one to be invalidated is the last in the map.
    map.delete(name)
    map.set(name, clock)
    if (map.size <= maxRemembered) return
    const [[oldest, oldClock] = ['', 0]] = map
    map.delete(oldest)
    this.raiseFloor(oldClock)
  }
}

/** Whether an invalidation is about a key, its tags left aside. */
export function concernedBy({ keys, patterns, all }: Invalidation): (key: string) => boolean {
  if (all === true) return () => true
  const named = new Set(keys)
  const tests = patterns.map(globTest)
  return (key) => named.has(key) || tests.some((test) => test(key))
}

/** A glob as Redis reads it in SCAN, without its character classes. */
export function globTest(pattern: string): (key: string) => boolean {
  const parts = pattern.split(/(\\.|[*?])/s).map((part) => {
    if (part === '*') return '.*'
    if (part === '?') return '.'
    return (part.startsWith('\\') ? part.slice(1) : part).replaceAll(/[\\^$.*+?()[\]{}|]/g, '\\$&')
  })
  const regex = new RegExp(`^${parts.join('')}$`, 's')
  return (key) => regex.test(key)
}
