/** A schema of many tables, and the queries and repositories that a large application would have on it, as source text. */

/**
 * TypeScript files by name. Each table has 14 columns, refers to the one before it, and is read, joined, written and
 * wrapped by a repository in a file of its own for every tenth table.
 */
export function largeSchema(tables: number): ReadonlyMap<string, string> {
  const numbers = Array.from({ length: tables }, (_, index) => index)
  const files = new Map([['schema.ts', schema(numbers)]])
  for (let first = 1; first + 9 < tables; first += 10) files.set(`feature-${first}.ts`, feature(first))
  return files
}

function schema(numbers: readonly number[]): string {
  const entries = numbers.map((n) => `  table_${n}: Table${n}`)
  return `import type { ColumnType } from 'kysely'

export type Generated<T> =
  T extends ColumnType<infer S, infer I, infer U> ? ColumnType<S, I | undefined, U> : ColumnType<T, T | undefined, T>
export type Timestamp = ColumnType<Date, Date | string, Date | string>

${numbers.map(table).join('\n')}
export interface DB {
${entries.join('\n')}
}
`
}

function table(n: number): string {
  return `export interface Table${n} {
  id: Generated<string>
  parent_id: string | null
  name_${n}: string
  email: string
  is_active: Generated<boolean>
  status: 'draft' | 'open' | 'closed'
  amount_minor: number
  quantity_${n}: Generated<number>
  note: string | null
  due_at: Timestamp | null
  created_at: Generated<Timestamp>
  updated_at: Generated<Timestamp>
  tags: Generated<string[]>
  version: Generated<number>
}
`
}

function feature(n: number): string {
  return `import type { Kysely } from 'kysely'
import type { QuerySource } from '../../src/repository/query-source.ts'
import { Repository } from '../../src/repository/repository.ts'
import type { DB } from './schema.ts'

export interface Entity${n} {
  readonly id: string
  readonly name: string
  readonly email: string
  readonly status: 'draft' | 'open' | 'closed'
  readonly dueAt: Date | null
  readonly amount: number
}

const columns${n} = {
  id: 'id',
  name: 'name_${n}',
  email: 'email',
  status: 'status',
  dueAt: 'due_at',
  amount: 'amount_minor',
} as const

export class Repository${n} extends Repository<DB, 'table_${n}', Entity${n}, typeof columns${n}> {
  constructor(database: QuerySource<DB>) {
    super(database, { table: 'table_${n}', columns: columns${n} })
  }

  findOpen(): Promise<Entity${n}[]> {
    return this.findMany({ status: 'open' }, { orderBy: { dueAt: 'asc', id: 'asc' }, limit: 20 })
  }
}

export async function use${n}(db: Kysely<DB>): Promise<string> {
  const page = await db
    .selectFrom('table_${n} as t')
    .innerJoin('table_${n - 1} as parent', 'parent.id', 't.parent_id')
    .leftJoin('table_${n + 1} as child', 'child.parent_id', 't.id')
    .select(['t.id', 't.name_${n}', 'parent.name_${n - 1}', 'child.quantity_${n + 1} as quantity'])
    .where('t.status', '=', 'open')
    .where((eb) => eb.or([eb('t.due_at', '<', new Date()), eb('child.note', 'is not', null)]))
    .orderBy('t.created_at', 'desc')
    .limit(20)
    .execute()
  const created = await db
    .insertInto('table_${n + 2}')
    .values({ name_${n + 2}: 'a', email: 'ada@example.org', status: 'draft', amount_minor: 100 })
    .returning(['id', 'version'])
    .executeTakeFirstOrThrow()
  await db
    .updateTable('table_${n + 3}')
    .set((eb) => ({ status: 'closed', version: eb('version', '+', 1) }))
    .where('id', '=', created.id)
    .execute()
  const totals = await db
    .with('recent', (cte) => cte.selectFrom('table_${n + 4}').selectAll().where('is_active', '=', true))
    .selectFrom('recent')
    .select((eb) => ['recent.status', eb.fn.sum<string>('recent.amount_minor').as('total')])
    .groupBy('recent.status')
    .execute()
  const entity = await new Repository${n}({ db }).create({ name: 'a', email: 'ada@example.org', status: 'open', amount: 1 })
  return [...page.map((row) => row.name_${n - 1}), ...totals.map((row) => row.total), entity.name].join()
}
`
}
