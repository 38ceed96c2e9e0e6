import { sql } from 'kysely'
import { jsonArrayFrom } from 'kysely/helpers/postgres'
import type { CataloguePage, Product, ProductStore, ProductWithCategories } from '../domain/product.ts'
import type { DB } from '../generated/schema.ts'
import type { QuerySource } from '../repository/query-source.ts'
import { Repository } from '../repository/repository.ts'

const productColumns = {
  id: 'id',
  sku: 'sku',
  name: 'name',
  description: 'description',
  priceMinor: 'price_minor',
  currency: 'currency',
  stock: 'stock',
  isActive: 'is_active',
  version: 'version',
  createdAt: 'created_at',
  updatedAt: 'updated_at',
} as const

/**
 * Products on PostgreSQL.
 *
 * @example
 * ```ts
 * import { createDatabase } from 'kanta'
 * import { type DB, ProductRepository } from 'kanta/domain'
 *
 * await using database = await createDatabase<DB>()
 * const products = new ProductRepository(database)
 * const page = await products.findWithCategories({ category: 'kitchen', limit: 20 })
 * const next = await products.findWithCategories({ category: 'kitchen', limit: 20, after: page.at(-1) })
 * ```
 */
export class ProductRepository
  extends Repository<DB, 'products', Product, typeof productColumns>
  implements ProductStore
{
  constructor(database: QuerySource<DB>) {
    super(database, {
      table: 'products',
      columns: productColumns,
      version: 'version',
      updatedAt: 'updatedAt',
    })
  }

  findBySku(sku: string): Promise<Product | undefined> {
    return this.first((products) => products.where('products.sku', '=', sql.val(sku)))
  }

  /** One statement, however many products and categories. */
  async findWithCategories({ category, limit = 50, after }: CataloguePage = {}): Promise<ProductWithCategories[]> {
    let query = this.select()
      .select((product) =>
        jsonArrayFrom(
          product
            .selectFrom('product_categories as shown_in')
            .innerJoin('categories as c', 'c.id', 'shown_in.category_id')
            .whereRef('shown_in.product_id', '=', 'products.id')
            .select(['c.id', 'c.parent_id as parentId', 'c.slug', 'c.name'])
            .orderBy('c.name')
            .orderBy('c.id'),
        ).as('categories'),
      )
      // Not a parameter: the generic plan of a prepared statement could not use the index of active products only.
      .where('products.is_active', '=', sql.lit(true))
      .orderBy('products.name')
      .orderBy('products.id')
      .limit(this.rowCount('limit', limit))
    if (after !== undefined) {
      query = query.where(
        (product) => sql<boolean>`${product.refTuple('products.name', 'products.id')} > (${after.name}, ${after.id})`,
      )
    }
    if (category !== undefined) {
      query = query.where('products.id', 'in', (product) =>
        product
          .selectFrom('product_categories')
          .where('category_id', 'in', categoryAndBelow(category))
          .select('product_id'),
      )
    }
    return await query.execute()
  }
}

// UNION, not UNION ALL: were the tree ever bent into a ring, the recursion would still end.
function categoryAndBelow(slug: string) {
  return sql<string>`(
    with recursive below as (
      select id from categories where slug = ${slug}
      union
      select child.id from categories as child join below on child.parent_id = below.id
    )
    select id from below
  )`
}
