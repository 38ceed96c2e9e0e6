import type { Kysely, Transaction } from 'kysely'
import { expectTypeOf, test } from 'vitest'
import type { Category } from '../../src/domain/product.ts'
import type { User } from '../../src/domain/user.ts'
import type { DB, Likes } from '../../src/generated/schema.ts'
import { ProductRepository } from '../../src/repositories/product-repository.ts'
import { UserRepository } from '../../src/repositories/user-repository.ts'
import type { QuerySource } from '../../src/repository/query-source.ts'
import { Repository } from '../../src/repository/repository.ts'
import { op } from '../../src/repository/conditions.ts'
import type { ColumnMap } from '../../src/repository/row-map.ts'

// Nothing in here runs: the compiler is the judge.
declare const database: QuerySource<DB>
const users = new UserRepository(database)
const products = new ProductRepository(database)

const categoryColumns = { id: 'id', parentId: 'parent_id', slug: 'slug', name: 'name' } as const

class CategoryRepository extends Repository<DB, 'categories', Category, typeof categoryColumns> {
  constructor(source: QuerySource<DB>) {
    super(source, { table: 'categories', columns: categoryColumns })
  }
}
const categories = new CategoryRepository(database)

test('reads give entities', () => {
  expectTypeOf(users.findById('1')).resolves.toEqualTypeOf<User | undefined>()
  expectTypeOf(users.getById('1')).resolves.toEqualTypeOf<User>()
  expectTypeOf(users.findMany()).resolves.toEqualTypeOf<User[]>()
  expectTypeOf(users.update('1', { name: 'Ada' })).resolves.toEqualTypeOf<User>()
  expectTypeOf(users.count()).resolves.toEqualTypeOf<number>()
})

test('a condition names properties and has their types', () => {
  users.findMany({ email: 'ada@example.org', role: ['admin', 'staff'], deletedAt: null })
  users.findMany((user) => user('created_at', '>', new Date()))
  // @ts-expect-error: there is no such property
  users.findMany({ mail: 'ada@example.org' })
  // @ts-expect-error: conditions name properties, not columns
  users.findMany({ is_active: true })
  // @ts-expect-error: a flag is not a string
  users.findMany({ isActive: 'yes' })
  // @ts-expect-error: the role is one of an enum
  users.findMany({ role: ['owner'] })
  // @ts-expect-error: an email is never null
  users.findMany({ email: null })
  // @ts-expect-error: undefined would widen the search
  users.findMany({ email: undefined })
  // @ts-expect-error: a condition that is undefined would be none
  users.findMany(undefined)
  // @ts-expect-error: there is no such column
  users.findMany((user) => user('createdAt', '>', new Date()))
})

test('an order names properties and directions', () => {
  users.findMany({}, { orderBy: { createdAt: 'desc', id: 'asc' }, limit: 10, offset: 20 })
  // @ts-expect-error: there is no such property
  users.findMany({}, { orderBy: { created_at: 'desc' } })
  // @ts-expect-error: there is no such direction
  users.findMany({}, { orderBy: { createdAt: 'down' } })
})

test('create wants what has no default, and only what is there', () => {
  categories.create({ slug: 'books', name: 'Books' })
  categories.create({ slug: 'books', name: 'Books', parentId: null })
  // @ts-expect-error: a category needs a slug
  categories.create({ name: 'Books' })
  // @ts-expect-error: there is no such property
  categories.create({ slug: 'books', name: 'Books', parent_id: null })
  // @ts-expect-error: a user needs a password_hash, which no property holds
  users.create({ email: 'ada@example.org', username: 'ada', name: 'Ada' })
})

test('a patch has the types of its columns and leaves the key alone', () => {
  products.update('1', { stock: 3, name: 'Kettle' })
  // @ts-expect-error: the stock is a number
  products.update('1', { stock: '3' })
  // @ts-expect-error: the key of a row stays
  products.update('1', { id: '2' })
})

test('a query of first has the columns of the table and gives an entity', () => {
  expectTypeOf(users.first((query) => query.where('is_active', '=', true))).resolves.toEqualTypeOf<User | undefined>()
  // @ts-expect-error: there is no such column
  users.first((query) => query.where('isActive', '=', true))
})

test('on a transaction a repository stays what it is', () => {
  expectTypeOf(users.withTransaction({} as Transaction<DB>)).toEqualTypeOf<UserRepository>()
  // @ts-expect-error: a database is not a transaction
  users.withTransaction({} as Kysely<DB>)
})

test('a column map names each property and a column of its type', () => {
  ;({ id: 'id', slug: 'slug' }) satisfies ColumnMap<DB, 'categories', Pick<Category, 'id' | 'slug'>>
  // @ts-expect-error: the slug has no column
  ;({ id: 'id' }) satisfies ColumnMap<DB, 'categories', Pick<Category, 'id' | 'slug'>>
  // @ts-expect-error: there is no such column
  ;({ id: 'id', slug: 'slag' }) satisfies ColumnMap<DB, 'categories', Pick<Category, 'id' | 'slug'>>
  // @ts-expect-error: the column is a number
  ;({ id: 'id', slug: 'position' }) satisfies ColumnMap<DB, 'categories', Pick<Category, 'id' | 'slug'>>
})

test('a column that was renamed does not compile where the repository names it', () => {
  type Renamed = Omit<DB, 'categories'> & {
    categories: Omit<DB['categories'], 'parent_id'> & { above_id: DB['categories']['parent_id'] }
  }
  class Stale extends Repository<Renamed, 'categories', Category, typeof categoryColumns> {
    constructor(source: QuerySource<Renamed>) {
      // @ts-expect-error: parent_id is called above_id now
      super(source, { table: 'categories', columns: categoryColumns })
    }
  }
  expectTypeOf<Stale>().not.toBeAny()
})

test('without an entity of its own a repository gives the rows', () => {
  const columns = { user_id: 'user_id', post_id: 'post_id', created_at: 'created_at' } as const
  class LikeRepository extends Repository<DB, 'likes'> {
    constructor(source: QuerySource<DB>) {
      super(source, { table: 'likes', columns })
    }
  }
  const likes = new LikeRepository(database)
  expectTypeOf(likes.findMany({ user_id: '1' })).resolves.toEqualTypeOf<
    { user_id: string; post_id: string; created_at: Date }[]
  >()
  expectTypeOf<Likes>().toHaveProperty('user_id')
})

test('op compares with values of the property', () => {
  products.findMany({ priceMinor: op.between(1, 5), name: op.like('K%'), createdAt: op.gt(new Date()) })
  users.findMany({ role: op.not(['admin', 'staff']), lastLoginAt: op.not(null), deletedAt: op.not(op.lt(new Date())) })
  // @ts-expect-error: a price is no text
  products.findMany({ priceMinor: op.gt('5') })
  // @ts-expect-error: a pattern is for text
  products.findMany({ priceMinor: op.like('5%') })
  // @ts-expect-error: the role is one of an enum
  users.findMany({ role: op.not('owner') })
  // @ts-expect-error: made by op, and not as an object
  products.findMany({ priceMinor: { gt: 5 } })
})

test('select gives a part of the entity', () => {
  expectTypeOf(users.findMany({}, { select: ['id', 'name'] })).resolves.toEqualTypeOf<Pick<User, 'id' | 'name'>[]>()
  // @ts-expect-error: there is no such property
  users.findMany({}, { select: ['password'] })
  expectTypeOf(users.findAll()).resolves.toEqualTypeOf<User[]>()
  expectTypeOf(users.first({ role: 'admin' })).resolves.toEqualTypeOf<User | undefined>()
})

test('a page is ordered by properties, of which those with nulls say where they stand', () => {
  expectTypeOf(users.findPage({}, { orderBy: { createdAt: 'desc' } })).resolves.toHaveProperty('items')
  users.findPage({ isActive: true }, { orderBy: { lastLoginAt: 'desc nulls last' }, after: 'cursor', limit: 5 })
  // @ts-expect-error: it may be null
  users.findPage({}, { orderBy: { lastLoginAt: 'desc' } })
  // @ts-expect-error: there is no such property
  users.findPage({}, { orderBy: { created_at: 'desc' } })
})

test('a row is changed by its key, or by what was read', () => {
  const user = {} as User
  expectTypeOf(users.update(user, { name: 'Ada' })).resolves.toEqualTypeOf<User>()
  users.delete({ id: '1', version: 3 })
  // @ts-expect-error: without its key it is no row
  users.update({ version: 3 }, { name: 'Ada' })
  // @ts-expect-error: the version is a number
  users.update({ id: '1', version: '3' }, { name: 'Ada' })
  // @ts-expect-error: there is no such property
  users.upsert({} as never, { conflict: ['mail'] })
})

test('a key of several properties is an object of all', () => {
  const columns = { userId: 'user_id', postId: 'post_id' } as const
  interface Like {
    readonly userId: string
    readonly postId: string
  }
  class LikeRepository extends Repository<DB, 'likes', Like, typeof columns, 'userId' | 'postId'> {
    constructor(source: QuerySource<DB>) {
      super(source, { table: 'likes', columns, key: ['userId', 'postId'] })
    }
  }
  const likes = new LikeRepository(database)
  likes.findById({ userId: '1', postId: '2' })
  likes.loadMany('postId', '2', { limit: 3, where: { userId: '1' } })
  // @ts-expect-error: half a key
  likes.findById({ userId: '1' })
  // @ts-expect-error: no key of one value
  likes.findById('1')
})

test('a mapped property is what its functions say, of the column that they name', () => {
  interface Priced {
    readonly id: string
    readonly price: { readonly minor: number }
  }
  const price = {
    column: 'price_minor',
    fromColumn: (minor: number) => ({ minor }),
    toColumn: ({ minor }: { minor: number }) => minor,
  } as const
  const columns = { id: 'id', price } as const
  class PricedRepository extends Repository<DB, 'products', Priced, typeof columns> {
    constructor(source: QuerySource<DB>) {
      super(source, { table: 'products', columns })
    }
  }
  const priced = new PricedRepository(database)
  expectTypeOf(priced.getById('1')).resolves.toEqualTypeOf<Priced>()
  priced.update('1', { price: { minor: 5 } })
  // @ts-expect-error: the property is an amount, and not the number of its column
  priced.update('1', { price: 5 })
  const wrongColumn = { id: 'id', price: { ...price, column: 'price' } } as const
  class Wrong extends Repository<DB, 'products', Priced, typeof wrongColumn> {
    constructor(source: QuerySource<DB>) {
      // @ts-expect-error: there is no such column
      super(source, { table: 'products', columns: wrongColumn })
    }
  }
  const wrongType = { id: 'id', price: { ...price, column: 'name' } } as const
  class WrongType extends Repository<DB, 'products', Priced, typeof wrongType> {
    constructor(source: QuerySource<DB>) {
      // @ts-expect-error: the column holds text, and the functions take a number
      super(source, { table: 'products', columns: wrongType })
    }
  }
  expectTypeOf<Wrong | WrongType>().not.toBeAny()
})

test('a version is counted in a property that is a number', () => {
  class Versioned extends Repository<DB, 'categories', Category, typeof categoryColumns> {
    constructor(source: QuerySource<DB>) {
      // @ts-expect-error: a text, as int8 is read, is no number to compare versions by
      super(source, { table: 'categories', columns: categoryColumns, version: 'slug' })
    }
  }
  expectTypeOf(new Versioned(database)).toExtend<Repository<DB, 'categories', Category, typeof categoryColumns>>()
})
