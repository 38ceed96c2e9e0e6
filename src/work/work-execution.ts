import { type RawBuilder, sql } from 'kysely'
import { ConflictError, DatabaseError, NotFoundError } from '../core/errors.ts'
import { ArrayParameter } from '../postgres/array-parameter.ts'
import { unfolded } from '../postgres/bulk.ts'
import { integerType } from '../postgres/column-values.ts'
import type { ColumnFacts, WorkDatabase } from './table-facts.ts'
import type { WorkGroup, WorkRow } from './work-group.ts'
import { type ItemState, refusal } from './work-item.ts'
import type { Step } from './work-step.ts'

/** What the statements of a flush have written. */
export interface WrittenRows {
  readonly entities: ReadonlyMap<ItemState, object>
  readonly deleted: number
}

type Stored = Record<string, unknown>

/** A list of rows that a statement is given: a name, a type, and the value in each row. */
interface SentColumn {
  readonly name: string
  readonly facts: ColumnFacts
  readonly value: (item: ItemState, place: number) => unknown
}

/** The place of a row in what is sent, by which the server says what became of it. */
const placeName = 'kanta:place'
const versionName = 'kanta:version'

const placeFacts: ColumnFacts = { ...integerType, hasDefault: false, default: null, always: false }

/** Runs the statements in their order; whatever fails is thrown, and nothing of it is left when its transaction is rolled back. */
export async function executeSteps(steps: readonly Step[], database: WorkDatabase): Promise<WrittenRows> {
  const execution = new Execution(database)
  for (const step of steps) await execution.run(step)
  return execution.written()
}

class Execution {
  readonly #database: WorkDatabase
  readonly #stored = new Map<ItemState, Stored>()
  #deleted = 0

  constructor(database: WorkDatabase) {
    this.#database = database
  }

  written(): WrittenRows {
    const entities = new Map<ItemState, object>()
    for (const [item, row] of this.#stored) entities.set(item, item.mapping.toEntity(row))
    return { entities, deleted: this.#deleted }
  }

  async run(step: Step): Promise<void> {
    const { operation, group } = step
    if (group === undefined) {
      const names = sql.raw(step.columns.join(', '))
      await this.#query(sql`set constraints ${names} ${sql.raw(operation === 'defer' ? 'deferred' : 'immediate')}`)
    } else if (operation === 'insert') await this.#insert(step, group)
    else if (operation === 'delete') await this.#remove(step, group, this.#deletion(step, group))
    else if (operation === 'mark deleted') await this.#remove(step, group, this.#marking(step, group))
    else if (operation === 'check') await this.#change(step, group, this.#checking(step, group))
    else if (operation === 'update') await this.#change(step, group, this.#update(step, group))
    else await this.#rewrite(step, group)
  }

  async #insert(step: Step, group: WorkGroup): Promise<void> {
    const rows = await this.#query(insertStatement(step, group))
    if (rows.length !== step.items.length) throw suppressed(group, 'insert')
    step.items.forEach((item, index) => this.#stored.set(item, rows[index] as Stored))
  }

  /** Changes rows, all of which have to be there. */
  async #change(step: Step, group: WorkGroup, statement: RawBuilder<Stored>): Promise<void> {
    const done = this.#keep(step, await this.#query(statement))
    if (done.size < step.items.length) await this.#explain(step, group, done, true)
  }

  /** Removes rows; one that is gone already is fine. */
  async #remove(step: Step, group: WorkGroup, statement: RawBuilder<Stored>): Promise<void> {
    const rows = await this.#query(statement)
    this.#deleted += rows.length
    const done = new Set(rows.map((row) => Number(row[placeName])))
    if (done.size < step.items.length) await this.#explain(step, group, done, false)
  }

  /** Sets some columns of rows that were inserted here, or are about to be deleted: it is no change that counts. */
  async #rewrite(step: Step, group: WorkGroup): Promise<void> {
    const keyOf = step.operation === 'complete' ? (item: ItemState) => this.#insertedKey(item, group) : undefined
    const source = sourceOf(step, group, [...keyColumns(group, keyOf), ...changedColumns(step, group)])
    const rows = await this.#query(sql`
      update ${sql.table(group.mapping.table)} as t set ${sql.join(assignments(step))} from ${source}
      where ${matchingKey(group)} returning ${results(group)}`)
    if (step.operation === 'detach') return
    if (this.#keep(step, rows).size < step.items.length) throw suppressed(group, 'update')
  }

  #insertedKey(item: ItemState, { mapping }: WorkGroup): readonly unknown[] {
    const row = this.#stored.get(item) ?? {}
    return mapping.key.map((property) => row[mapping.columns.get(property) ?? property])
  }

  #update(step: Step, group: WorkGroup): RawBuilder<Stored> {
    const source = sourceOf(step, group, [...targetColumns(step, group), ...changedColumns(step, group)])
    return sql`
      update ${sql.table(group.mapping.table)} as t set ${sql.join([...marks(step, group), ...assignments(step)])}
      from ${source} where ${isTarget(step, group)} returning ${results(group)}`
  }

  #marking(step: Step, group: WorkGroup): RawBuilder<Stored> {
    const source = sourceOf(step, group, targetColumns(step, group))
    const since = step.columns.map((column) => sql`${sql.id(column)} = now()`)
    // A row that is marked already stays as it is, also for a repository that sees such rows.
    const isAlive = sql.join(
      step.columns.map((column) => sql`${sql.id('t', column)} is null`),
      sql` and `,
    )
    return sql`
      update ${sql.table(group.mapping.table)} as t set ${sql.join([...marks(step, group), ...since])}
      from ${source} where ${isTarget(step, group)} and ${isAlive} returning ${sql.id('u', placeName)}`
  }

  #deletion(step: Step, group: WorkGroup): RawBuilder<Stored> {
    const source = sourceOf(step, group, targetColumns(step, group))
    return sql`
      delete from ${sql.table(group.mapping.table)} as t using ${source}
      where ${isTarget(step, group)} returning ${sql.id('u', placeName)}`
  }

  #checking(step: Step, group: WorkGroup): RawBuilder<Stored> {
    const source = sourceOf(step, group, targetColumns(step, group))
    return sql`
      select ${results(group)} from ${sql.table(group.mapping.table)} as t join ${source} on ${isTarget(step, group)}
      for share of t`
  }

  #keep({ items }: Step, rows: readonly Stored[]): ReadonlySet<number> {
    const places = new Set<number>()
    for (const row of rows) {
      const place = Number(row[placeName])
      places.add(place)
      this.#stored.set(items[place] as ItemState, row)
    }
    return places
  }

  /** Finds out what is the matter with rows that a statement did not match, and throws if it is anything. */
  async #explain(step: Step, group: WorkGroup, done: ReadonlySet<number>, mustBe: boolean): Promise<void> {
    const missed = step.items.filter((_, place) => !done.has(place))
    const { mapping } = group
    const source = sourceOf({ ...step, items: missed }, group, keyColumns(group))
    const version = mapping.version === undefined ? sql`null` : sql.id('t', columnOf(group, mapping.version))
    const rows = await this.#query(sql`
      select ${sql.id('u', placeName)}, ${version} as ${sql.id(versionName)}
      from ${sql.table(mapping.table)} as t join ${source} on ${matchingKey(group)}${alive(group, step.operation === 'mark deleted')}`)
    const found = new Map(rows.map((row) => [Number(row[placeName]), row[versionName]]))
    const failures = missed.flatMap((item, place) => {
      if (!found.has(place)) return mustBe ? [failureOf(item, notFound(group, step))] : []
      const actual = Number(found.get(place))
      if (item.version !== undefined && item.version !== actual)
        return [failureOf(item, conflict(group, item.version, actual))]
      return [failureOf(item, mustBe ? suppressed(group, step.operation) : suppressed(group, 'delete'))]
    })
    const [first] = failures
    if (first === undefined) return
    throw failures.length === 1 ? first : others(first, failures.length)
  }

  #query(statement: RawBuilder<Stored>): Promise<Stored[]> {
    return this.#database.query(statement)
  }
}

function insertStatement(step: Step, group: WorkGroup): RawBuilder<Stored> {
  const { items, columns } = step
  const table = sql.table(group.mapping.table)
  const returning = sql`returning ${sql.join(allColumns(group).map((column) => sql.id('t', column)))}`
  if (columns.length === 0) {
    return sql`insert into ${table} as t select from generate_series(1, ${sql.lit(items.length)}) ${returning}`
  }
  // The server was asked for these values as its own; without these words it takes none from anybody.
  const isOverruled = columns.some((column) => group.factsOf.get(column)?.always === true)
  const overruling = sql.raw(isOverruled ? 'overriding system value' : '')
  const sent = sentRows(step, group, changedColumns(step, group))
  return sql`
    insert into ${table} as t (${sql.join(columns.map((column) => sql.id(column)))}) ${overruling}
    select ${sql.join(columns.map((column) => sql.id('u', column)))} from ${sent} ${returning}`
}

function sourceOf(step: Step, group: WorkGroup, columns: readonly SentColumn[]): RawBuilder<unknown> {
  return sentRows(step, group, [{ name: placeName, facts: placeFacts, value: (_, place) => place }, ...columns])
}

function sentRows({ items }: Step, group: WorkGroup, columns: readonly SentColumn[]): RawBuilder<unknown> {
  const lists = columns.map(({ name, facts, value }) => {
    const list = new ArrayParameter(name, facts)
    for (const [place, item] of items.entries()) add(list, group, name, value(item, place))
    return list
  })
  try {
    return unfolded(lists)
  } catch (cause) {
    const { table } = group.mapping
    const rows = items.length === 1 ? 'a row is' : `${items.length} rows are`
    throw new DatabaseError(
      'INVALID_ARGUMENT',
      `${table}: ${rows} too long to be sent in one statement. Register fewer of them in one unit of work, or shorter values.`,
      { cause, table },
    )
  }
}

function add(list: ArrayParameter, group: WorkGroup, name: string, value: unknown): void {
  try {
    list.add(value ?? null)
  } catch (error) {
    throw new DatabaseError('INVALID_ARGUMENT', `${group.mapping.table}: a row ${(error as Error).message}.`, {
      cause: error,
      table: group.mapping.table,
      column: name,
    })
  }
}

function changedColumns({ columns, written }: Step, group: WorkGroup): readonly SentColumn[] {
  return columns.map((name) => ({
    name,
    facts: factsOf(group, name),
    value: (item) => (written.get(item) as WorkRow)[name],
  }))
}

function keyColumns(
  group: WorkGroup,
  keyOf: (item: ItemState) => readonly unknown[] = ({ key }) => key,
): readonly SentColumn[] {
  return group.mapping.key.map((property, index) => {
    const name = columnOf(group, property)
    return { name, facts: factsOf(group, name), value: (item) => keyOf(item)[index] }
  })
}

/** The keys of the rows, and the versions that they were read at if any was. */
function targetColumns({ items }: Step, group: WorkGroup): readonly SentColumn[] {
  const keys = keyColumns(group)
  const { version } = group.mapping
  if (version === undefined || items.every((item) => item.version === undefined)) return keys
  return [
    ...keys,
    { name: versionName, facts: factsOf(group, columnOf(group, version)), value: (item) => item.version },
  ]
}

function isTarget({ items }: Step, group: WorkGroup): RawBuilder<unknown> {
  const { version } = group.mapping
  const parts = sql`${matchingKey(group)}${alive(group)}`
  if (version === undefined || items.every((item) => item.version === undefined)) return parts
  const expected = sql.id('u', versionName)
  return sql`${parts} and (${expected} is null or ${sql.id('t', columnOf(group, version))} = ${expected})`
}

function matchingKey(group: WorkGroup): RawBuilder<unknown> {
  const parts = group.mapping.key.map((property) => {
    const column = columnOf(group, property)
    return sql`${sql.id('t', column)} = ${sql.id('u', column)}`
  })
  return sql.join(parts, sql` and `)
}

/** Only rows that do not count as deleted, where the repository makes that difference. */
function alive(group: WorkGroup, always = false): RawBuilder<unknown> {
  const { deletedAt, seesDeleted } = group.mapping
  if (deletedAt === undefined || (seesDeleted && !always)) return sql``
  return sql` and ${sql.id('t', columnOf(group, deletedAt))} is null`
}

function assignments({ columns }: Step): readonly RawBuilder<unknown>[] {
  return columns.map((column) => sql`${sql.id(column)} = ${sql.id('u', column)}`)
}

/** What each change sets besides what it is about; a time of change that is given counts. */
function marks({ columns }: Step, group: WorkGroup): readonly RawBuilder<unknown>[] {
  const { version, updatedAt } = group.mapping
  const counted = version === undefined ? [] : [columnOf(group, version)]
  const timed = updatedAt === undefined ? [] : [columnOf(group, updatedAt)].filter((name) => !columns.includes(name))
  return [
    ...timed.map((column) => sql`${sql.id(column)} = now()`),
    ...counted.map((column) => sql`${sql.id(column)} = ${sql.id('t', column)} + 1`),
  ]
}

function results(group: WorkGroup): RawBuilder<unknown> {
  const columns = allColumns(group).map((column) => sql.id('t', column))
  return sql.join([sql.id('u', placeName), ...columns])
}

function allColumns({ mapping }: WorkGroup): readonly string[] {
  return [...new Set(mapping.columns.values())]
}

function columnOf({ mapping }: WorkGroup, property: string): string {
  return mapping.columns.get(property) ?? property
}

function factsOf(group: WorkGroup, column: string): ColumnFacts {
  const facts = group.factsOf.get(column)
  if (facts !== undefined) return facts
  throw refusal(group.mapping, `has no property for the column ${column}, which is part of its key`)
}

function failureOf(item: ItemState, failure: DatabaseError): DatabaseError {
  item.failure = failure
  return failure
}

function notFound({ mapping }: WorkGroup, { operation }: Step): DatabaseError {
  const what = operation === 'check' ? 'to be kept as it is' : 'to be changed'
  return new NotFoundError(
    `${mapping.table} has no row with the ${mapping.key.join(' and ')} of one that was ${what} by a unit of work. Nothing was written; ` +
      'read again, or discard what was registered for it.',
    { table: mapping.table },
  )
}

function conflict({ mapping: { table } }: WorkGroup, expectedVersion: number, actualVersion: number): DatabaseError {
  return new ConflictError(
    `${table}: a row of a unit of work was read at version ${expectedVersion} and is at ${actualVersion} now. Nothing was written; ` +
      'read it again, and decide with what it is now.',
    { table, expectedVersion, actualVersion },
  )
}

function suppressed({ mapping: { table } }: WorkGroup, operation: string): DatabaseError {
  return new DatabaseError(
    'QUERY_FAILED',
    `${table}: the ${operation} of a unit of work has left out rows that are there. Look for a trigger, rule or policy of the table that ` +
      'suppresses it, and for a key that is given twice, written in two ways.',
    { table },
  )
}

/** The first of several, with all of them for those who want to see them at once. */
function others(first: DatabaseError, count: number): DatabaseError {
  first.message += ` It is the first of ${count} such rows; see failure of each registered row.`
  return first
}
