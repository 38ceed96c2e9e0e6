/** Something that can be bought. */
export interface Product {
  readonly id: string
  /** The stock keeping unit: the key that the warehouse knows. */
  readonly sku: string
  readonly name: string
  readonly description: string
  /** The price of one piece in the smallest unit of the currency, for instance cents. */
  readonly priceMinor: number
  /** ISO 4217, for instance EUR. */
  readonly currency: string
  /** Pieces that can still be sold. */
  readonly stock: number
  /** False hides it from the catalogue. */
  readonly isActive: boolean
  readonly version: number
  readonly createdAt: Date
  readonly updatedAt: Date
}

export interface NewProduct {
  readonly sku: string
  readonly name: string
  /** @default '' */
  readonly description?: string
  readonly priceMinor: number
  /** @default 'EUR' */
  readonly currency?: string
  /** @default 0 */
  readonly stock?: number
  /** @default true */
  readonly isActive?: boolean
}

/** What of a product may be changed. What is left out stays. */
export type ProductPatch = Partial<NewProduct>

/** A product by id, or as it was read: then only if nobody has changed it since. A sale is a change. */
export type ProductRef = string | (Pick<Product, 'id'> & Partial<Product>)

/** A node of the tree by which the catalogue is browsed. */
export interface Category {
  readonly id: string
  /** The category above; null at the top. */
  readonly parentId: string | null
  /** The name in addresses. */
  readonly slug: string
  readonly name: string
}

/** A category with its place in the tree. */
export interface PlacedCategory extends Category {
  /** The place among the children of one parent; of equal ones the name decides. */
  readonly position: number
  readonly updatedAt: Date
}

export interface NewCategory {
  readonly slug: string
  readonly name: string
  /** @default null, at the top */
  readonly parentId?: string | null
  /** The place among the children of one parent. @default 0 */
  readonly position?: number
}

export interface CategoryNode extends PlacedCategory {
  /** 0 for the category that was asked for. */
  readonly depth: number
}

export interface ProductWithCategories extends Product {
  /** In the order of their names. */
  readonly categories: readonly Category[]
}

/** Which products of the catalogue: in the order of their names. */
export interface CataloguePage {
  /** Slug of a category: only products shown in it or below it. */
  readonly category?: string | undefined
  /** @default 50 */
  readonly limit?: number
  /** The last product of the page before. */
  readonly after?: Pick<Product, 'name' | 'id'> | undefined
}

/** Limits of a price in one currency; both are part of it. */
export interface PriceRange {
  readonly minMinor?: number | undefined
  readonly maxMinor?: number | undefined
  /** @default 'EUR' */
  readonly currency?: string | undefined
}

/** Which products of a range of prices: the cheapest come first. */
export interface PricePage extends PriceRange {
  /** @default 50 */
  readonly limit?: number
  /** The last product of the page before. */
  readonly after?: Pick<Product, 'priceMinor' | 'id'> | undefined
}

/** Where to search, and which part of what is found. */
export interface SearchOptions {
  /** @default 20 */
  readonly limit?: number
  /** How many matches to leave out. @default 0 */
  readonly offset?: number
  /** Slug of a category: only products shown in it or below it. */
  readonly category?: string | undefined
  readonly price?: PriceRange | undefined
}

export interface ProductMatch extends Product {
  /** `words` when all that was asked for is in it, `similar` when its name is like it. */
  readonly match: 'words' | 'similar'
  /** How well it matches, within matches of its kind. */
  readonly rank: number
}

/** Products of which few are left. */
export interface LowStockOptions {
  /** Fewer than so many. @default 5 */
  readonly below?: number
  /** @default 50 */
  readonly limit?: number
}

/** Where products are kept. */
export interface ProductStore {
  findById(id: string): Promise<Product | undefined>
  getById(id: string): Promise<Product>
  findBySku(sku: string): Promise<Product | undefined>
  /** Active products with the categories that show them. */
  findWithCategories(page?: CataloguePage): Promise<ProductWithCategories[]>
  /** Active products of one currency by their price. */
  findByPrice(page?: PricePage): Promise<Product[]>
  /**
   * Active products in which all words occur, in any of their forms; those come first in whose names they are. Quotes ask for a phrase,
   * `or` for either, a minus for products without the word. When fewer than three have the words, and none of these signs was used,
   * those follow whose names are similar to what was typed. Any text is safe; of a text over 500 characters the first 500 count.
   */
  search(text: string, options?: SearchOptions): Promise<ProductMatch[]>
  /** Active products that run out, fewest first. */
  findLowStock(options?: LowStockOptions): Promise<Product[]>
  create(product: NewProduct): Promise<Product>
  update(ref: ProductRef, patch: ProductPatch): Promise<Product>
  /** Takes so many pieces, never more than there are: `INSUFFICIENT_STOCK`. `NOT_FOUND` when there is no such product. */
  takeStock(id: string, quantity: number): Promise<Product>
  /** Puts pieces back, or adds new ones. `NOT_FOUND` when there is no such product. */
  putBackStock(id: string, quantity: number): Promise<Product>
  /** False when there was no such product. One that was ever ordered cannot be deleted: `FOREIGN_KEY_VIOLATION`. */
  delete(ref: ProductRef): Promise<boolean>
}

/** Where the tree of categories is kept. */
export interface CategoryStore {
  findById(id: string): Promise<PlacedCategory | undefined>
  findBySlug(slug: string): Promise<PlacedCategory | undefined>
  /**
   * The category with this slug and all below it: each after the one above it, children by their position and name. Empty when there
   * is none. Were the tree ever bent into a ring, each would come once.
   */
  findCategorySubtree(slug: string): Promise<CategoryNode[]>
  create(category: NewCategory): Promise<PlacedCategory>
  update(id: string, patch: Partial<NewCategory>): Promise<PlacedCategory>
  /** Shows a product in a category; again it changes nothing. */
  showProduct(categoryId: string, productId: string): Promise<void>
  /** False when it was not shown there. */
  hideProduct(categoryId: string, productId: string): Promise<boolean>
}

/** What was sold of a product in one currency, as of the last refresh. */
export interface ProductSales {
  readonly productId: string
  readonly currency: string
  readonly orders: number
  readonly pieces: number
  readonly revenueMinor: number
  readonly lastOrderedAt: Date
}

/** When statistics were last refreshed. */
export interface StatisticsAge {
  /** What was committed until then is in them. */
  readonly refreshedAt: Date
  /** How long ago that is. */
  readonly ageMs: number
}

export interface RefreshOptions {
  /** Statistics that are no older need no refresh. @default 0, those from before this call are too old */
  readonly maxAgeMs?: number
}

export interface RefreshResult extends StatisticsAge {
  /** False when they were new enough, or another call refreshed them meanwhile. */
  readonly refreshed: boolean
}

/** Where statistics of sales are kept. They are as old as {@link StatisticsStore.getStatisticsAge} says; cancelled orders do not count. */
export interface StatisticsStore {
  /** What sells best, by pieces. */
  getTopProducts(options?: { readonly limit?: number }): Promise<ProductSales[]>
  /** By currency in alphabetical order; empty when nothing was sold. */
  getProductSales(productId: string): Promise<ProductSales[]>
  /** `undefined` before the first refresh. */
  getStatisticsAge(): Promise<StatisticsAge | undefined>
  refreshStatistics(options?: RefreshOptions): Promise<RefreshResult>
}

const longestSearch = 500

/** As the server takes it: where a word may begin, also with spaces behind it. */
const minus = /(?:^|[\s!&|()])-[\s!&|()-]*[^\s!&|()-]/

/** What is searched for, out of what was typed; and whether it is words only, which may be misspelled, or says how it is meant. */
export function searchFor(typed: string): { readonly text: string; readonly isPlain: boolean } {
  // PostgreSQL has no NUL in texts.
  const text = typed.slice(0, longestSearch).replaceAll('\0', ' ').trim()
  return { text, isPlain: !(minus.test(text) || /"|(?:^|\s)or(?:\s|$)/i.test(text)) }
}

/** With fewer matches by words than this, similar names are looked for. */
export const fewMatches = 3

/** The tree of a category out of its members: each after the one above it, children by their position and name, and each once. */
export function inTreeOrder(members: Iterable<PlacedCategory>, slug: string): CategoryNode[] {
  const children = Map.groupBy(members, ({ parentId }) => parentId)
  const root = [...children.values()].flat().find((category) => category.slug === slug)
  const nodes: CategoryNode[] = []
  const seen = new Set<string>()
  const visit = (category: PlacedCategory, depth: number): void => {
    if (seen.has(category.id)) return
    seen.add(category.id)
    nodes.push({ ...category, depth })
    for (const child of (children.get(category.id) ?? []).toSorted(byPlace)) visit(child, depth + 1)
  }
  if (root !== undefined) visit(root, 0)
  return nodes
}

function byPlace(a: PlacedCategory, b: PlacedCategory): number {
  if (a.position !== b.position) return a.position - b.position
  if (a.name !== b.name) return a.name < b.name ? -1 : 1
  return a.id < b.id ? -1 : 1
}
