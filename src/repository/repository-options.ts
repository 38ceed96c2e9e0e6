import type { OrderDirection, Where } from './conditions.ts'
import type { PageRequest } from './pagination.ts'
import type { RepositoryCacheOptions } from './query-source.ts'
import type { StandardSchema } from './validation.ts'

/** How a {@link Repository} finds its rows and maps them. */
export interface RepositoryDefinition<
  DB,
  Table extends keyof DB & string,
  Columns,
  Key,
  Property = keyof Columns,
  Counter = Property,
> {
  readonly table: Table
  readonly columns: Columns
  /** The property that holds the primary key, or all of them; without one, calls that take a key do not compile. @default 'id' */
  readonly key?: Key | readonly Key[]
  /**
   * The property with the number that grows with each change, in a column that is read as a number: `int4`, or `int8` with
   * `postgres.types`. Whoever changes or deletes a row by an entity that was read, and not by its key alone, is told by a
   * {@link ConflictError} when the row has changed since. @default not counted
   */
  readonly version?: Counter & string
  /** The property with the time of the last change, which each change sets to the server's time where it gives none; of {@link Repository.upsert} where `update` does not name it. @default not set */
  readonly updatedAt?: Property & string
  /**
   * The property with the time since when a row counts as deleted: {@link Repository.delete} sets it, and nothing finds such rows but
   * {@link Repository.withDeleted}. @default rows are really deleted
   */
  readonly deletedAt?: Property & string
  /** What given values have to be, and what is made of them, before anything is sent. @default only the types */
  readonly validate?: { readonly create?: StandardSchema; readonly update?: StandardSchema }
  /**
   * Keeps what {@link Repository.findById} and {@link Repository.getById} read in the cache of the database, until the row is
   * written through kanta, in any process. They give the same frozen entity to all who ask; one that has a
   * {@link PropertyMapping} is made for each of them. Needs a database of
   * `createDatabase()`. @default not cached
   */
  readonly cache?: RepositoryCacheOptions | undefined
}

/** Order and part of what is found. */
export interface FindOptions<Entity> {
  /** Properties in order of weight. Name one that is unique last, or rows that tie come in any order. */
  readonly orderBy?: { readonly [Property in keyof Entity]?: OrderDirection } | undefined
  /** At most so many rows. */
  readonly limit?: number | undefined
  /** Rows to skip. The server reads them all the same: for deep pages compare with the last row instead. */
  readonly offset?: number | undefined
}

/** {@link FindOptions} for a part of each entity. */
export interface FindPartOptions<Entity, Property extends keyof Entity> extends FindOptions<Entity> {
  /** Only these properties are read. */
  readonly select: readonly Property[]
}

/** Which page of {@link Repository.findPage} is wanted, and in which order. */
export interface FindPageOptions<Entity> extends PageRequest {
  /** Properties in order of weight; of one that may be null the place of nulls has to be said. @default by the key */
  readonly orderBy?:
    | {
        readonly [Property in keyof Entity]?: null extends Entity[Property]
          ? Extract<OrderDirection, `${string} nulls ${string}`>
          : 'asc' | 'desc'
      }
    | undefined
  /** The most that `limit` may be. @default 100 */
  readonly maxLimit?: number | undefined
}

/** What of {@link Repository.loadMany} is read for each value. */
export interface LoadOptions<DB, Table extends keyof DB, Entity> extends Omit<FindOptions<Entity>, 'offset'> {
  /** Only those that match as well. */
  readonly where?: Where<DB, Table, Entity> | undefined
}

/** What {@link Repository.upsert} does with a row that is there already. */
export interface UpsertOptions<Property> {
  /** The properties of a unique index or primary key. */
  readonly conflict: readonly Property[]
  /** What the row takes of the new values; `none` leaves it as it is. @default all that are given, but those of `conflict` */
  readonly update?: readonly Property[] | 'none' | undefined
}

/** The key of an entity: the value of its one property, or an object of all. */
export type IdOf<Entity, Key extends keyof Entity> = [Key] extends [never]
  ? never
  : IsUnion<Key> extends true
    ? Readonly<Pick<Entity, Key>>
    : Entity[Key]

/** A row by its key, or by an entity that was read, whose version then has to be that of the row. */
export type RefOf<Entity, Key extends keyof Entity> =
  | IdOf<Entity, Key>
  | ([Key] extends [never] ? never : Readonly<Pick<Entity, Key> & Partial<Entity>>)

/** The properties that are numbers. */
export type NumberOf<Entity> = {
  [Property in keyof Entity]-?: Entity[Property] extends number ? Property : never
}[keyof Entity]

type IsUnion<T, Whole = T> = T extends unknown ? ([Whole] extends [T] ? false : true) : never
