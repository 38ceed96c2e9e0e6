import type { ProductSales, RefreshOptions, RefreshResult, StatisticsAge, StatisticsStore } from '../domain/product.ts'
import { compareBy, rowCount, uuid } from './in-memory-table.ts'
import type { InMemoryTables } from './in-memory-tables.ts'

/** Statistics in memory: as old as the last refresh, as those of PostgreSQL are. */
export class InMemoryStatistics implements StatisticsStore {
  readonly #tables: InMemoryTables
  #sales: readonly ProductSales[] = []
  #refreshedAt: Date | undefined

  constructor(tables: InMemoryTables) {
    this.#tables = tables
  }

  async getTopProducts({ limit = 10 }: { readonly limit?: number } = {}): Promise<ProductSales[]> {
    const best = compareBy<ProductSales>(
      (sales) => -sales.pieces,
      (sales) => sales.productId,
      (sales) => sales.currency,
    )
    return this.#sales.toSorted(best).slice(0, rowCount('product_sales', 'limit', limit))
  }

  async getProductSales(productId: string): Promise<ProductSales[]> {
    const id = uuid(productId)
    return this.#sales.filter((sales) => sales.productId === id).toSorted(compareBy((sales) => sales.currency))
  }

  async getStatisticsAge(): Promise<StatisticsAge | undefined> {
    return this.#refreshedAt && ageOf(this.#refreshedAt, this.#tables.now())
  }

  async refreshStatistics({ maxAgeMs = 0 }: RefreshOptions = {}): Promise<RefreshResult> {
    const now = this.#tables.now()
    const newEnough = now.getTime() - rowCount('product_sales', 'maxAgeMs', maxAgeMs)
    if (this.#refreshedAt !== undefined && this.#refreshedAt.getTime() > newEnough) {
      return { ...ageOf(this.#refreshedAt, now), refreshed: false }
    }
    this.#sales = salesOf(this.#tables)
    this.#refreshedAt = now
    return { ...ageOf(now, now), refreshed: true }
  }
}

function ageOf(refreshedAt: Date, now: Date): StatisticsAge {
  return { refreshedAt, ageMs: now.getTime() - refreshedAt.getTime() }
}

function salesOf({ items, orders }: InMemoryTables): ProductSales[] {
  const lines = orders.alive
    .filter((order) => order.status !== 'cancelled')
    .flatMap((order) => (items.get(order.id) ?? []).map((item) => ({ ...item, order })))
  const groups = Map.groupBy(lines, ({ productId, order }) => `${productId} ${order.currency}`)
  return [...groups.values()].flatMap((group) => {
    const [first] = group
    if (first === undefined) return []
    const times = group.map(({ order }) => order.createdAt.getTime())
    return {
      productId: first.productId,
      currency: first.order.currency,
      orders: group.length,
      pieces: group.reduce((sum, item) => sum + item.quantity, 0),
      revenueMinor: group.reduce((sum, item) => sum + item.quantity * item.unitPriceMinor, 0),
      lastOrderedAt: new Date(Math.max(...times)),
    }
  })
}
