import { expectTypeOf, test } from 'vitest'
import type { FlushResult, NewItem, QuerySource, Reference, WorkItem } from '../../src/index.ts'
import type { Database } from '../../src/database/database.ts'
import type { Category } from '../../src/domain/product.ts'
import type { Product } from '../../src/domain/product.ts'
import type { DB } from '../../src/generated/schema.ts'
import { ProductRepository } from '../../src/repositories/product-repository.ts'
import { UserRepository } from '../../src/repositories/user-repository.ts'
import { Repository } from '../../src/repository/repository.ts'
import { UnitOfWork } from '../../src/work/unit-of-work.ts'

// Nothing in here runs: the compiler is the judge.
declare const database: Database<DB>
const products = new ProductRepository(database)
const users = new UserRepository(database)

const categoryColumns = { id: 'id', parentId: 'parent_id', slug: 'slug', name: 'name' } as const

class CategoryRepository extends Repository<DB, 'categories', Category, typeof categoryColumns> {
  constructor(source: QuerySource<DB>) {
    super(source, { table: 'categories', columns: categoryColumns })
  }
}
const categories = new CategoryRepository(database)

const memberColumns = { productId: 'product_id', categoryId: 'category_id' } as const

interface Member {
  readonly productId: string
  readonly categoryId: string
}

class MemberRepository extends Repository<
  DB,
  'product_categories',
  Member,
  typeof memberColumns,
  'categoryId' | 'productId'
> {
  constructor(source: QuerySource<DB>) {
    super(source, { table: 'product_categories', columns: memberColumns, key: ['productId', 'categoryId'] })
  }
}
const members = new MemberRepository(database)
const work = new UnitOfWork(database)

test('what is registered has the types of its repository', () => {
  const books = work.create(categories, { slug: 'books', name: 'Books' })
  expectTypeOf(books).toEqualTypeOf<NewItem<Category>>()
  expectTypeOf(books.entity).toEqualTypeOf<Category>()
  expectTypeOf(books.ref('slug')).toEqualTypeOf<Reference<string>>()
  expectTypeOf(books.ref('parentId')).toEqualTypeOf<Reference<string>>()
  expectTypeOf(work.update(products, '1', { stock: 3 })).toEqualTypeOf<WorkItem<Product>>()
  expectTypeOf(work.flush()).resolves.toEqualTypeOf<FlushResult>()
})

test('new rows want what has no default, and only what is there', () => {
  const kettle = work.create(products, { sku: 'KIT-1', name: 'Kettle', priceMinor: 4_900 })
  const kitchen = work.create(categories, { slug: 'kitchen', name: 'Kitchen', parentId: null })
  work.create(members, { productId: kettle.ref('id'), categoryId: kitchen.ref('id') })
  // @ts-expect-error: a category needs a slug
  work.create(categories, { name: 'Books' })
  // @ts-expect-error: there is no such property
  work.create(categories, { slug: 'books', name: 'Books', parent_id: null })
  // @ts-expect-error: the stock is a number
  work.create(products, { sku: 'KIT-1', name: 'Kettle', priceMinor: 4_900, stock: '3' })
  // @ts-expect-error: a user needs a password_hash, which no property holds
  work.create(users, { email: 'ada@example.org', username: 'ada', name: 'Ada' })
})

test('a reference has the type of its property', () => {
  const kettle = work.create(products, { sku: 'KIT-1', name: 'Kettle', priceMinor: 4_900 })
  work.create(categories, { slug: 'books', name: kettle.ref('name') })
  // @ts-expect-error: a price is no name
  work.create(categories, { slug: 'books', name: kettle.ref('priceMinor') })
  // @ts-expect-error: there is no such property
  kettle.ref('price')
  // @ts-expect-error: a row is not its key
  work.create(categories, { slug: 'books', name: 'Books', parentId: kettle })
})

test('changes and removals take a key, an entity, or what was registered', () => {
  const kitchen = work.create(categories, { slug: 'kitchen', name: 'Kitchen' })
  work.update(categories, kitchen, { name: 'Cooking' })
  work.delete(categories, kitchen)
  work.delete(members, { productId: '1', categoryId: '2' })
  work.update(products, {} as Product, { stock: 1 })
  work.update(categories, '1', { parentId: kitchen.ref('id') })
  // @ts-expect-error: the stock is a number
  work.update(products, '1', { stock: '3' })
  // @ts-expect-error: the key of a row stays
  work.update(products, '1', { id: '2' })
  // @ts-expect-error: there is no such property
  work.update(products, '1', { price: 2 })
  // @ts-expect-error: a key of two columns is no string
  work.delete(members, '1')
  // @ts-expect-error: a category is no product
  work.update(products, kitchen, { stock: 3 })
})
