import { InsufficientStockError } from '../domain/errors.ts'
import {
  type CataloguePage,
  type Category,
  type CategoryNode,
  type CategoryStore,
  fewMatches,
  inTreeOrder,
  type LowStockOptions,
  type NewCategory,
  type NewProduct,
  type PlacedCategory,
  type PricePage,
  type PriceRange,
  type Product,
  type ProductMatch,
  type ProductPatch,
  type ProductRef,
  type ProductStore,
  type ProductWithCategories,
  searchFor,
  type SearchOptions,
} from '../domain/product.ts'
import { likeness, searchTerms } from './in-memory-search.ts'
import { compareBy, invalidArgument, invalidData, rowCount, uuid, violation } from './in-memory-table.ts'
import type { InMemoryTables } from './in-memory-tables.ts'

/** Products in memory. */
export class InMemoryProducts implements ProductStore {
  readonly #tables: InMemoryTables

  constructor(tables: InMemoryTables) {
    this.#tables = tables
  }

  async findById(id: string): Promise<Product | undefined> {
    const row = this.#products.find(id)
    return row && { ...row }
  }

  async getById(id: string): Promise<Product> {
    return { ...this.#products.get(id) }
  }

  async findBySku(sku: string): Promise<Product | undefined> {
    const row = this.#products.alive.find((product) => product.sku === sku)
    return row && { ...row }
  }

  async findWithCategories({ category, limit = 50, after }: CataloguePage = {}): Promise<ProductWithCategories[]> {
    const byName = compareBy<Pick<Product, 'name' | 'id'>>(
      (product) => product.name,
      (product) => product.id,
    )
    return this.#onSale(category)
      .toSorted(byName)
      .filter((product) => after === undefined || byName(product, after) > 0)
      .slice(0, rowCount('products', 'limit', limit))
      .map((product) => ({ ...product, categories: this.#categoriesOf(product.id) }))
  }

  async findByPrice({ limit = 50, after, ...range }: PricePage = {}): Promise<Product[]> {
    const byPrice = compareBy<Pick<Product, 'priceMinor' | 'id'>>(
      (product) => product.priceMinor,
      (product) => product.id,
    )
    return this.#onSale(undefined, range)
      .toSorted(byPrice)
      .filter((product) => after === undefined || byPrice(product, after) > 0)
      .slice(0, rowCount('products', 'limit', limit))
      .map((product) => ({ ...product }))
  }

  async search(text: string, { limit = 20, offset = 0, category, price }: SearchOptions = {}): Promise<ProductMatch[]> {
    const [rows, skipped] = [rowCount('products', 'limit', limit), rowCount('products', 'offset', offset)]
    if (typeof text !== 'string') throw invalidArgument('products', 'search takes a text')
    const { text: asked, isPlain } = searchFor(text)
    if (asked === '') return []
    const terms = searchTerms(asked)
    const best = compareBy<ProductMatch>(
      (product) => -product.rank,
      (product) => product.name,
      (product) => product.id,
    )
    const eligible = this.#onSale(category, price)
    const matches = (kind: ProductMatch['match'], products: readonly Product[], rankOf: (product: Product) => number) =>
      products
        .map((product): ProductMatch => ({ ...product, match: kind, rank: rankOf(product) }))
        .filter((product) => product.rank > 0)
        .toSorted(best)
    const found = matches('words', eligible, ({ name, description }) => terms.rank(name, description))
    const ids = new Set(found.map((product) => product.id))
    const others = isPlain && found.length < fewMatches ? eligible.filter((product) => !ids.has(product.id)) : []
    const similar = matches('similar', others, ({ name }) => likeness(asked, name))
    return [...found, ...similar].slice(skipped, skipped + rows)
  }

  async findLowStock({ below = 5, limit = 50 }: LowStockOptions = {}): Promise<Product[]> {
    const least = rowCount('products', 'below', below)
    return this.#onSale()
      .filter((product) => product.stock < least)
      .toSorted(
        compareBy(
          (product) => product.stock,
          (product) => product.id,
        ),
      )
      .slice(0, rowCount('products', 'limit', limit))
      .map((product) => ({ ...product }))
  }

  async create(product: NewProduct): Promise<Product> {
    return { ...this.#products.insert(product) }
  }

  async update(ref: ProductRef, patch: ProductPatch): Promise<Product> {
    return { ...this.#products.update(ref, patch) }
  }

  async takeStock(id: string, quantity: number): Promise<Product> {
    const requested = rowCount('products', 'quantity', quantity, 1)
    const { stock: available } = this.#products.get(id)
    if (available < requested) throw new InsufficientStockError([{ productId: id, requested, available }])
    return { ...this.#products.update(id, { stock: available - requested }) }
  }

  async putBackStock(id: string, quantity: number): Promise<Product> {
    const pieces = rowCount('products', 'quantity', quantity, 1)
    return { ...this.#products.update(id, { stock: this.#products.get(id).stock + pieces }) }
  }

  async delete(ref: ProductRef): Promise<boolean> {
    return this.#tables.removeProduct(ref)
  }

  get #products(): InMemoryTables['products'] {
    return this.#tables.products
  }

  #onSale(category?: string, price?: PriceRange): Product[] {
    const { categories, products, shownIn } = this.#tables
    for (const limit of [price?.minMinor, price?.maxMinor]) {
      if (limit !== undefined && !Number.isInteger(limit)) throw invalidData('products', 'a price is no whole number')
    }
    const shelves = category === undefined ? undefined : inTreeOrder(categories.alive, category)
    return products.alive
      .filter((product) => product.isActive)
      .filter((product) => shelves === undefined || shelves.some(({ id }) => shownIn.get(product.id)?.has(id)))
      .filter((product) => price === undefined || isWithin(product, price))
  }

  #categoriesOf(productId: string): Category[] {
    const { categories, shownIn } = this.#tables
    const ids = shownIn.get(productId) ?? new Set()
    return categories.alive
      .filter(({ id }) => ids.has(id))
      .toSorted(
        compareBy(
          (category) => category.name,
          (category) => category.id,
        ),
      )
      .map(({ id, parentId, slug, name }) => ({ id, parentId, slug, name }))
  }
}

function isWithin(product: Product, { minMinor, maxMinor, currency = 'EUR' }: PriceRange): boolean {
  const { priceMinor } = product
  return (
    product.currency === currency &&
    priceMinor >= (minMinor ?? Number.NEGATIVE_INFINITY) &&
    priceMinor <= (maxMinor ?? Number.POSITIVE_INFINITY)
  )
}

/** The tree of categories in memory. */
export class InMemoryCategories implements CategoryStore {
  readonly #tables: InMemoryTables

  constructor(tables: InMemoryTables) {
    this.#tables = tables
  }

  async findById(id: string): Promise<PlacedCategory | undefined> {
    const row = this.#tables.categories.find(id)
    return row && { ...row }
  }

  async findBySlug(slug: string): Promise<PlacedCategory | undefined> {
    const row = this.#tables.categories.alive.find((category) => category.slug === slug)
    return row && { ...row }
  }

  async findCategorySubtree(slug: string): Promise<CategoryNode[]> {
    return inTreeOrder(this.#tables.categories.alive, slug)
  }

  async create(category: NewCategory): Promise<PlacedCategory> {
    return { ...this.#tables.categories.insert(category) }
  }

  async update(id: string, patch: Partial<NewCategory>): Promise<PlacedCategory> {
    return { ...this.#tables.categories.update(id, patch) }
  }

  async showProduct(categoryId: string, productId: string): Promise<void> {
    const { categories, products, shownIn } = this.#tables
    const [category, product] = [categories.find(categoryId), products.find(productId)]
    if (category === undefined || product === undefined) {
      const missing = product === undefined ? 'product' : 'category'
      throw violation('FOREIGN_KEY_VIOLATION', 'product_categories', `product_categories_${missing}_id_fkey`)
    }
    shownIn.set(product.id, (shownIn.get(product.id) ?? new Set()).add(category.id))
  }

  async hideProduct(categoryId: string, productId: string): Promise<boolean> {
    return this.#tables.shownIn.get(uuid(productId))?.delete(uuid(categoryId)) ?? false
  }
}
