import { type ExpressionBuilder, type SelectQueryBuilder, type SqlBool, sql } from 'kysely'
import { jsonArrayFrom } from 'kysely/helpers/postgres'
import { DatabaseError } from '../core/errors.ts'
import { isWhole } from '../core/whole-number.ts'
import { InsufficientStockError } from '../domain/errors.ts'
import {
  type CataloguePage,
  fewMatches,
  type LowStockOptions,
  type PricePage,
  type PriceRange,
  type Product,
  type ProductMatch,
  type ProductStore,
  type ProductWithCategories,
  searchFor,
  type SearchOptions,
} from '../domain/product.ts'
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
 * Similar names are found by the extension `pg_trgm`, which the migrations install where they can. Where it is not there, `search` finds
 * words only; it is asked for once, when the first search of an instance finds it missing or not.
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
  private hasTrigrams: boolean | undefined

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
    let query = this.onSale()
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
      .orderBy('products.name')
      .orderBy('products.id')
      .limit(this.rowCount('limit', limit))
    if (after !== undefined) {
      query = query.where(
        (product) => sql<SqlBool>`${product.refTuple('products.name', 'products.id')} > (${after.name}, ${after.id})`,
      )
    }
    if (category !== undefined) query = query.where(shownBelow(category))
    return await query.execute()
  }

  async findByPrice(page: PricePage = {}): Promise<Product[]> {
    const { limit = 50, after } = page
    let query = this.onSale()
      .where((product) => costing(product, page))
      .orderBy('products.price_minor')
      .orderBy('products.id')
      .limit(this.rowCount('limit', limit))
    if (after !== undefined) {
      query = query.where(
        (product) =>
          sql<SqlBool>`${product.refTuple('products.price_minor', 'products.id')} > (${after.priceMinor}, ${after.id})`,
      )
    }
    return await query.execute()
  }

  /** One statement. */
  async search(text: string, options: SearchOptions = {}): Promise<ProductMatch[]> {
    const { limit = 20, offset = 0, category, price } = options
    const [rows, skipped] = [this.rowCount('limit', limit), this.rowCount('offset', offset)]
    if (typeof text !== 'string') throw refusal('search takes a text')
    const { text: words, isPlain } = searchFor(text)
    if (words === '') return []
    this.hasTrigrams ??= await this.askForTrigrams()
    const isForgiving = isPlain && this.hasTrigrams

    const eligible = (product: ExpressionBuilder<DB, 'products'>) =>
      product.and([
        product('products.is_active', '=', sql.lit(true)),
        ...(price === undefined ? [] : [costing(product, price)]),
        ...(category === undefined ? [] : [shownBelow(category)]),
      ])
    const asked = sql`websearch_to_tsquery('english', ${words})`
    const similar = isForgiving
      ? sql<SqlBool>`${words} <% products.name and (select count(*) from found) < ${sql.lit(fewMatches)}`
      : sql.lit(false)
    return await this.db
      .with('found', (db) =>
        db
          .selectFrom('products')
          .where(eligible)
          .where(sql<SqlBool>`products.search_vector @@ ${asked}`)
          .select('products.id')
          // What has the words in its name goes before all else, however often others have them.
          .select(
            sql<number>`ts_rank_cd(products.search_vector, ${asked}, 32)
              + (ts_filter(products.search_vector, '{a}') @@ ${asked})::integer`.as('rank'),
          ),
      )
      .with('matches', (db) =>
        db
          .selectFrom('found')
          .select(['found.id', 'found.rank', sql<ProductMatch['match']>`'words'::text`.as('match')])
          .unionAll(
            db
              .selectFrom('products')
              .where(eligible)
              .where(similar)
              .where((product) =>
                product.not(
                  product.exists(
                    product.selectFrom('found').whereRef('found.id', '=', 'products.id').select('found.id'),
                  ),
                ),
              )
              .select([
                'products.id',
                (isForgiving ? sql<number>`word_similarity(${words}, products.name)` : sql<number>`0`).as('rank'),
                sql<ProductMatch['match']>`'similar'::text`.as('match'),
              ]),
          ),
      )
      .selectFrom('products')
      .innerJoin('matches', 'matches.id', 'products.id')
      .select(this.selection)
      .select(['matches.match', 'matches.rank'])
      .orderBy(sql`matches.match = 'words'`, 'desc')
      .orderBy('matches.rank', 'desc')
      .orderBy('products.name')
      .orderBy('products.id')
      .limit(rows)
      .offset(skipped)
      .execute()
  }

  /** Looks at all active products: an index on the stock would make each sale dearer, and this list is asked for rarely. */
  async findLowStock({ below = 5, limit = 50 }: LowStockOptions = {}): Promise<Product[]> {
    return await this.onSale()
      .where(sql<SqlBool>`products.stock < ${this.rowCount('below', below)}::bigint`)
      .orderBy('products.stock')
      .orderBy('products.id')
      .limit(this.rowCount('limit', limit))
      .execute()
  }

  async takeStock(id: string, quantity: number): Promise<Product> {
    const pieces = this.pieces(quantity)
    let seen: number | undefined
    for (;;) {
      const taken = await this.changeStock(id, -pieces)
      if (taken !== undefined) return taken
      const { stock, version } = await this.getById(id)
      if (stock < pieces) throw new InsufficientStockError([{ productId: id, requested: pieces, available: stock }])
      // Somebody has put some back in between, unless nobody has changed it.
      if (version === seen) throw notWritten()
      seen = version
    }
  }

  async putBackStock(id: string, quantity: number): Promise<Product> {
    return (await this.changeStock(id, this.pieces(quantity))) ?? this.missing()
  }

  private changeStock(id: string, change: number): Promise<Product | undefined> {
    return this.db
      .updateTable('products')
      .set((product) => ({
        stock: sql<number>`(${product.ref('products.stock')} + ${change}::bigint)::integer`,
        version: product('products.version', '+', 1),
        updated_at: sql<Date>`now()`,
      }))
      .where(this.hasKey(id))
      .where(sql<SqlBool>`products.stock >= ${-change}::bigint`)
      .returning(this.selection)
      .executeTakeFirst()
  }

  private onSale(): SelectQueryBuilder<DB, 'products', Product> {
    // Not a parameter: the generic plan of a prepared statement could not use the indexes of active products only.
    return this.select().where('products.is_active', '=', sql.lit(true))
  }

  private async askForTrigrams(): Promise<boolean> {
    const { rows } = await sql<{ found: boolean }>`
      select to_regprocedure('word_similarity(text, text)') is not null as found`.execute(this.db)
    return rows[0]?.found === true
  }

  private pieces(quantity: unknown): number {
    if (isWhole(quantity, 1)) return quantity
    throw refusal('quantity must be a whole number from 1')
  }
}

function notWritten(): DatabaseError {
  return new DatabaseError(
    'QUERY_FAILED',
    'products: the update gave no row back. Look for a trigger, rule or policy of the table that suppresses it.',
    { table: 'products' },
  )
}

function refusal(problem: string): DatabaseError {
  return new DatabaseError('INVALID_ARGUMENT', `products: ${problem}.`, { table: 'products' })
}

function costing(product: ExpressionBuilder<DB, 'products'>, { minMinor, maxMinor, currency = 'EUR' }: PriceRange) {
  return product.and([
    product('products.currency', '=', currency),
    // Of any size: a price that no product can have is a limit all the same.
    ...(minMinor === undefined ? [] : [sql<SqlBool>`products.price_minor >= ${minMinor}::bigint`]),
    ...(maxMinor === undefined ? [] : [sql<SqlBool>`products.price_minor <= ${maxMinor}::bigint`]),
  ])
}

// UNION, not UNION ALL: were the tree ever bent into a ring, the recursion would still end.
function shownBelow(slug: string) {
  return sql<SqlBool>`products.id in (
    with recursive below as (
      select id from categories where slug = ${slug}
      union
      select child.id from categories as child join below on child.parent_id = below.id
    )
    select product_id from product_categories where category_id in (select id from below)
  )`
}
