/**
 * How the rows of one table become objects and back, and what each change of them sets besides: what whoever writes rows of several
 * repositories at once has to know of each. A `Repository` gives it as its `mapping`.
 */
export interface TableMapping {
  readonly table: string
  /** The database, or the transaction passed by hand, that the repository runs its queries on. */
  readonly source: object
  /** The properties of the primary key. */
  readonly key: readonly string[]
  /** All properties, with the column of each. */
  readonly columns: ReadonlyMap<string, string>
  /** The property with the number that grows with each change. */
  readonly version: string | undefined
  /** The property with the time of the last change. */
  readonly updatedAt: string | undefined
  /** The property with the time since when a row counts as deleted. */
  readonly deletedAt: string | undefined
  /** Rows that count as deleted are like any other. */
  readonly seesDeleted: boolean
  /** The columns of a new row, as its schema makes them of the values; `VALIDATION_FAILED`, `INVALID_ARGUMENT`. */
  newRow(values: object, call: string): Promise<Record<string, unknown>>
  /** The columns that a patch changes, as its schema makes them of it; `VALIDATION_FAILED`, `INVALID_ARGUMENT`. */
  changes(patch: object, call: string): Promise<Record<string, unknown>>
  /** Values by property as they are in columns, without any schema. */
  toColumns(values: object, call: string): Record<string, unknown>
  /** The row that a key or an entity names, and the version that it was read at if it has one. */
  target(ref: unknown): { readonly key: readonly unknown[]; readonly version: number | undefined }
  /** What a row whose properties are the columns is to the application. */
  toEntity(row: Record<string, unknown>): object
}
