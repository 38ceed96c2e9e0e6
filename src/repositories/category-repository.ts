import { sql } from 'kysely'
import { type CategoryNode, type CategoryStore, inTreeOrder, type PlacedCategory } from '../domain/product.ts'
import type { DB } from '../generated/schema.ts'
import type { QuerySource } from '../repository/query-source.ts'
import { Repository } from '../repository/repository.ts'

const categoryColumns = {
  id: 'id',
  parentId: 'parent_id',
  slug: 'slug',
  name: 'name',
  position: 'position',
  updatedAt: 'updated_at',
} as const

/**
 * The tree of categories on PostgreSQL.
 *
 * @example
 * ```ts
 * import { createDatabase } from 'kanta'
 * import { CategoryRepository, type DB } from 'kanta/domain'
 *
 * await using database = await createDatabase<DB>()
 * const categories = new CategoryRepository(database)
 * for (const { depth, name } of await categories.findCategorySubtree('kitchen')) console.log('  '.repeat(depth), name)
 * ```
 */
export class CategoryRepository
  extends Repository<DB, 'categories', PlacedCategory, typeof categoryColumns>
  implements CategoryStore
{
  constructor(database: QuerySource<DB>) {
    super(database, { table: 'categories', columns: categoryColumns, updatedAt: 'updatedAt' })
  }

  findBySlug(slug: string): Promise<PlacedCategory | undefined> {
    return this.first((categories) => categories.where('categories.slug', '=', slug))
  }

  /** One statement. */
  async findCategorySubtree(slug: string): Promise<CategoryNode[]> {
    // UNION, and no depth in it: were the tree ever bent into a ring, the recursion would still end.
    const { rows } = await sql<PlacedCategory>`
      with recursive below as (
        select id, parent_id, slug, name, position, updated_at from categories where slug = ${slug}
        union
        select child.id, child.parent_id, child.slug, child.name, child.position, child.updated_at
          from categories as child join below on child.parent_id = below.id
      )
      select id, parent_id as "parentId", slug, name, position, updated_at as "updatedAt" from below`.execute(this.db)
    return inTreeOrder(rows, slug)
  }

  async showProduct(categoryId: string, productId: string): Promise<void> {
    await this.db
      .insertInto('product_categories')
      .values({ category_id: categoryId, product_id: productId })
      .onConflict((shown) => shown.columns(['product_id', 'category_id']).doNothing())
      .execute()
  }

  async hideProduct(categoryId: string, productId: string): Promise<boolean> {
    const { numDeletedRows } = await this.db
      .deleteFrom('product_categories')
      .where('category_id', '=', categoryId)
      .where('product_id', '=', productId)
      .executeTakeFirstOrThrow()
    return numDeletedRows > 0n
  }
}
