import { type Kysely, type Transaction, sql } from 'kysely'
import type { ProductSales, RefreshOptions, RefreshResult, StatisticsAge, StatisticsStore } from '../domain/product.ts'
import { DatabaseError } from '../core/errors.ts'
import { isWhole } from '../core/whole-number.ts'
import type { DB } from '../generated/schema.ts'
import type { QuerySource } from '../repository/query-source.ts'

const view = 'product_sales'

/**
 * Statistics of sales on PostgreSQL, kept in the materialized view `product_sales`. Readers are never blocked: a refresh writes beside them, in one
 * transaction. One refresh runs at a time across all processes; calls that wait meanwhile take its result if it began after they did, so
 * any number of them at once costs two refreshes at most.
 *
 * The role has to own the view; from PostgreSQL 17 on `grant maintain on product_sales` is enough.
 *
 * @example
 * ```ts
 * import { createDatabase } from 'kanta'
 * import { type DB, SalesStatistics } from 'kanta/domain'
 *
 * await using database = await createDatabase<DB>()
 * const statistics = new SalesStatistics(database)
 * const { refreshed, ageMs } = await statistics.refreshStatistics({ maxAgeMs: 60_000 })
 * console.log(refreshed ? 'new' : `${ageMs} ms old`, await statistics.getTopProducts({ limit: 3 }))
 * ```
 */
export class SalesStatistics implements StatisticsStore {
  readonly #database: QuerySource<DB>

  constructor(database: QuerySource<DB>) {
    this.#database = database
  }

  async getTopProducts({ limit = 10 }: { readonly limit?: number } = {}): Promise<ProductSales[]> {
    return await this.#sales()
      .orderBy('pieces', 'desc')
      .orderBy('product_id')
      .orderBy('currency')
      .limit(wholeNumber('limit', limit))
      .execute()
  }

  async getProductSales(productId: string): Promise<ProductSales[]> {
    return await this.#sales().where('product_id', '=', productId).orderBy('currency').execute()
  }

  async getStatisticsAge(): Promise<StatisticsAge | undefined> {
    return await ageOn(this.#database.db)
  }

  async refreshStatistics({ maxAgeMs = 0 }: RefreshOptions = {}): Promise<RefreshResult> {
    const { db } = this.#database
    const { rows } = await sql<{ now: Date }>`select date_trunc('milliseconds', clock_timestamp()) as now`.execute(db)
    const newEnough = Number(rows[0]?.now) - wholeNumber('maxAgeMs', maxAgeMs)
    // Times have milliseconds: of the same one it is not known which came first.
    const isNew = (age: StatisticsAge | undefined): age is StatisticsAge =>
      age !== undefined && age.refreshedAt.getTime() > newEnough
    const before = await ageOn(db)
    if (isNew(before)) return { ...before, refreshed: false }
    return this.#transaction(async (inside) => {
      await sql`select pg_advisory_xact_lock(hashtextextended(${`kanta:refresh ${view}`}, 0))`.execute(inside)
      const meanwhile = await ageOn(inside)
      if (isNew(meanwhile)) return { ...meanwhile, refreshed: false }
      await refresh(inside)
      const age = (await ageOn(inside)) as StatisticsAge
      return { ...age, refreshed: true }
    })
  }

  #sales() {
    return this.#database.db
      .selectFrom(view)
      .select((row) => [
        row.ref('product_id').$notNull().as('productId'),
        row.ref('currency').$notNull().as('currency'),
        row.cast<number>('orders', 'double precision').as('orders'),
        row.cast<number>('pieces', 'double precision').as('pieces'),
        row.cast<number>('revenue_minor', 'double precision').as('revenueMinor'),
        row.ref('last_ordered_at').$notNull().as('lastOrderedAt'),
      ])
  }

  #transaction<T>(work: (inside: Kysely<DB>) => Promise<T>): Promise<T> {
    const { db } = this.#database
    if (this.#database.transaction !== undefined) return this.#database.transaction(() => work(db))
    return db.isTransaction ? work(db) : db.transaction().execute((inside: Transaction<DB>) => work(inside))
  }
}

async function refresh(inside: Kysely<DB>): Promise<void> {
  const { rows } = await sql<{ began: Date }>`select date_trunc('milliseconds', clock_timestamp()) as began`.execute(
    inside,
  )
  await sql`refresh materialized view concurrently product_sales`.execute(inside)
  const began = rows[0]?.began as Date
  const values = {
    refreshed_at: began,
    duration_ms: sql<number>`extract(epoch from clock_timestamp() - ${began}::timestamptz)::numeric * 1000`,
  }
  await inside
    .insertInto('statistics_refreshes')
    .values({ view_name: view, ...values })
    .onConflict((known) => known.column('view_name').doUpdateSet(values))
    .execute()
}

async function ageOn(db: Kysely<DB>): Promise<StatisticsAge | undefined> {
  return await db
    .selectFrom('statistics_refreshes')
    .where('view_name', '=', view)
    .select((row) => [
      'refreshed_at as refreshedAt',
      sql<number>`(extract(epoch from clock_timestamp() - ${row.ref('refreshed_at')}) * 1000)::double precision`.as(
        'ageMs',
      ),
    ])
    .executeTakeFirst()
}

function wholeNumber(name: string, value: unknown): number {
  if (isWhole(value, 0)) return value
  throw new DatabaseError('INVALID_ARGUMENT', `${view}: ${name} must be a whole number from 0.`, { table: view })
}
