import type { Survey } from './codec.ts'

/** How one value is cached, resolved. Times are milliseconds. */
export interface EntryPolicy<T = unknown> {
  readonly ttlMs: number
  /** How long it is kept beyond that, for when it cannot be loaded. */
  readonly staleMs: number
  /** A stale value is given at once, and loaded behind. */
  readonly whileRevalidate: boolean
  /** From which part of its time on a value is loaded anew behind those who read it. */
  readonly refreshAfter: number
  readonly negativeTtlMs: number | false
  /** By what part of it a time is shortened at random. */
  readonly jitter: number
  /** After so long a stale value is given while the loading goes on. */
  readonly softTimeoutMs: number | false
  readonly loadTimeoutMs: number | false
  readonly tags: readonly string[] | ((value: T) => readonly string[])
  readonly usesMemory: boolean
}

/** A value on its way into the cache, with the commit of what it was made of. */
export interface Post {
  readonly key: string
  readonly value: unknown
  readonly found: Survey
  readonly policy: EntryPolicy
  readonly tags: readonly string[]
  /** The clock of the last invalidation that was heard before its value was made. */
  readonly since: number
  /** When it was reserved, of the invalidations that are heard. */
  epoch: number
  /** What must still be under the key in Redis. */
  expected: string | undefined
}
