/** How a value is cached. Times are milliseconds. What is left out is as `cache` of the database says. */
export interface CacheEntryOptions<T = unknown> {
  /** How long it counts as fresh. @default `cache.ttlMs` */
  readonly ttlMs?: number | undefined
  /** How long it is kept beyond that, to be given when it cannot be loaded, or not soon enough. @default 0 */
  readonly staleMs?: number | undefined
  /** Gives a stale value at once, and loads behind those who read it. Needs `staleMs`. @default false */
  readonly whileRevalidate?: boolean | undefined
  /** The part of its time, from 0 to 1, after which a read has the value loaded anew, and does not wait for it. @default 1, never */
  readonly refreshAfter?: number | undefined
  /** How long "there is none" (null or undefined) is remembered; `false`: not at all. @default `ttlMs`, at most 10000 */
  readonly negativeTtlMs?: number | false | undefined
  /** The part of its time, from 0 to 1, by which it is shortened at random, so that values do not all end together. @default 0.1 */
  readonly jitter?: number | undefined
  /** What it was made from: invalidating one of them invalidates it. A function gets the value. @default none */
  readonly tags?: readonly string[] | ((value: T) => readonly string[]) | undefined
  /** How long to wait before a stale value is given. Needs `staleMs`. @default as long as it takes */
  readonly softTimeoutMs?: number | false | undefined
  /** How long to wait before `CACHE_LOAD_TIMEOUT`; the loading goes on. @default as long as it takes */
  readonly loadTimeoutMs?: number | false | undefined
  /** `false`: kept in Redis only, for what is large and rarely read. @default true */
  readonly memory?: boolean | undefined
}
