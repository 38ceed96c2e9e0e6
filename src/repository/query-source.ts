import type { CompiledQuery, Expression, Kysely } from 'kysely'
import type { CacheEntryOptions } from '../core/cache-options.ts'
import type { CursorSecret } from '../core/cursor-secret.ts'

/**
 * What a repository needs of a database: its Kysely. `createDatabase()` gives all of it, so that reads are prepared and cached and many
 * rows are written as arrays; `{ db: anyKysely }` is enough for the rest.
 */
export interface QuerySource<DB> {
  readonly db: Kysely<DB>
  /** Stands for the transaction of the async context. */
  readonly currentTransaction?: object | undefined
  /** What the cursors of pages are signed with. */
  readonly cursorSecret?: CursorSecret
  /** Hears of reads where they are asked for. `isShared`: by a statement that others have begun in this tick. */
  readonly noteRead?: ((read: string, isShared: boolean) => void) | undefined
  transaction?<T>(work: () => Promise<T>): Promise<T>
  prepare?(build: (parameter: (name: never) => Expression<never>) => Compilable): (values: object) => Promise<unknown[]>
  cached?<Row>(
    query: { compile(): CompiledQuery<Row> },
    options?: RepositoryCacheOptions,
    load?: () => Promise<Row[]>,
  ): Promise<Row[]>
  insertMany?(
    table: keyof DB & string,
    rows: readonly never[],
    options?: { readonly returning?: readonly never[] },
  ): Promise<{ readonly rows: readonly object[] }>
}

/** A built query of Kysely. */
export interface Compilable {
  compile(): CompiledQuery<never>
}

/** How a {@link Repository} caches what it reads by key; see {@link CacheEntryOptions}. Times are milliseconds. */
export type RepositoryCacheOptions = Omit<CacheEntryOptions, 'tags'>
