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

/** A node of the tree by which the catalogue is browsed. */
export interface Category {
  readonly id: string
  /** The category above; null at the top. */
  readonly parentId: string | null
  /** The name in addresses. */
  readonly slug: string
  readonly name: string
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

/** Where products are kept. */
export interface ProductStore {
  findById(id: string): Promise<Product | undefined>
  findBySku(sku: string): Promise<Product | undefined>
  /** Active products with the categories that show them. */
  findWithCategories(page?: CataloguePage): Promise<ProductWithCategories[]>
}
