import * as fc from 'fast-check'
import { type Kysely, type KyselyPlugin, sql } from 'kysely'
import { beforeAll, describe, expect, test } from 'vitest'
import { ProductRepository, scryptPasswordHasher, UserRepository } from '../../src/domain.ts'
import type { DB, NewUser } from '../../src/domain.ts'
import { type Database, type DatabaseError, NotFoundError, type QuerySource, Repository } from '../../src/index.ts'
import { seedDevelopment } from '../../seeds/development.ts'
import { freshDatabase } from '../support/database.ts'

const ada: NewUser = { email: 'Ada@example.org', username: 'Ada', name: 'Ada', password: 'a long enough secret' }
// The cheapest cost that there is: these tests are about users, not about hashing.
const passwordHasher = scryptPasswordHasher({ logCost: 14 })
const nobody = '00000000-0000-7000-8000-000000000000'

async function freshUsers(): Promise<{ users: UserRepository; db: Kysely<DB> }> {
  const { db } = await freshDatabase()
  return { users: new UserRepository({ db }, { passwordHasher }), db }
}

/** Everything that is sent through the Kysely it is given to. */
function statementLog(): { plugin: KyselyPlugin; count: () => number } {
  let statements = 0
  return {
    count: () => statements,
    plugin: {
      transformQuery: ({ node }) => node,
      transformResult: ({ result }) => {
        statements++
        return Promise.resolve(result)
      },
    },
  }
}

describe('users', () => {
  test('a created user is found by email and username in any case', async () => {
    const { users } = await freshUsers()
    const created = await users.createUser(ada)
    expect(created).toMatchObject({ email: 'Ada@example.org', role: 'member', isActive: true, version: 1 })
    expect(created.createdAt).toBeInstanceOf(Date)
    expect(await users.findByEmail('aDA@EXAMPLE.org')).toEqual(created)
    expect(await users.findByUsername('aDa')).toEqual(created)
    expect(await users.findByEmail('grace@example.org')).toBeUndefined()
  })

  test('the same email in another case is refused with the name of the constraint', async () => {
    const { users } = await freshUsers()
    await users.createUser(ada)
    const again = users.createUser({ ...ada, email: 'ADA@EXAMPLE.ORG', username: 'other' })
    await expect(again).rejects.toMatchObject({
      name: 'ConstraintViolationError',
      code: 'UNIQUE_VIOLATION',
      constraint: 'users_email_key',
      table: 'users',
      retry: 'none',
    })
    await expect(users.createUser({ ...ada, email: 'other@example.org' })).rejects.toMatchObject({
      constraint: 'users_username_key',
    })
    expect(await users.count()).toBe(1)
  })

  test('an invalid email is refused with the name of the rule, and without the value', async () => {
    const { users } = await freshUsers()
    const refused = users.createUser({ ...ada, email: 'not an address' })
    await expect(refused).rejects.toMatchObject({ code: 'CHECK_VIOLATION', constraint: 'users_email_check' })
    await expect(refused).rejects.not.toThrow('not an address')
  })

  test('no entity carries the password hash', async () => {
    const { users } = await freshUsers()
    const created = await users.createUser(ada)
    const known = await users.findByCredentials(ada.email, ada.password)
    for (const user of [created, known]) expect(Object.keys(user ?? {}).filter((key) => /pass/i.test(key))).toEqual([])
  })

  test('credentials must be right, and the account neither locked nor deleted', async () => {
    const { users } = await freshUsers()
    const { id } = await users.createUser(ada)
    expect(await users.findByCredentials('ada@EXAMPLE.org', ada.password)).toMatchObject({ id })
    expect(await users.findByCredentials('ada@example.org', 'wrong')).toBeUndefined()
    expect(await users.findByCredentials('grace@example.org', ada.password)).toBeUndefined()
    await users.update(id, { isActive: false })
    expect(await users.findByCredentials('ada@example.org', ada.password)).toBeUndefined()
    await users.update(id, { isActive: true })
    expect(await users.delete(id)).toBe(true)
    expect(await users.findByCredentials('ada@example.org', ada.password)).toBeUndefined()
    expect(await users.findByEmail('ada@example.org')).toBeUndefined()
    expect(await users.findById(id)).toBeUndefined()
  })

  test('an unknown email is as much work as a known one', async () => {
    const { db } = await freshDatabase()
    const verified: string[] = []
    const users = new UserRepository(
      { db },
      {
        passwordHasher: {
          hash: (password) => passwordHasher.hash(password),
          verify: (password, hash) => {
            verified.push(password)
            return passwordHasher.verify(password, hash)
          },
        },
      },
    )
    await users.createUser(ada)
    await users.findByCredentials(ada.email, 'first')
    await users.findByCredentials('nobody@example.org', 'second')
    expect(verified).toEqual(['first', 'second'])
  })

  test('a login changes its time and nothing else', async () => {
    const { users } = await freshUsers()
    const before = await users.createUser(ada)
    const after = await users.updateLastLogin(before.id)
    expect(after.lastLoginAt).toBeInstanceOf(Date)
    expect({ ...after, lastLoginAt: null }).toEqual(before)
    await expect(users.updateLastLogin(nobody)).rejects.toMatchObject({ code: 'NOT_FOUND' })
  })

  test('pages of active users hold each of them once, newest first', async () => {
    const { users, db } = await freshUsers()
    await db
      .insertInto('users')
      .values(
        Array.from({ length: 25 }, (_, index) => ({
          email: `user${index}@example.org`,
          username: `user${index}`,
          name: 'Somebody',
          password_hash: 'x'.repeat(20),
          is_active: index % 5 !== 0,
          // Several at one time: the id decides between them.
          created_at: new Date(Date.UTC(2026, 0, 1 + Math.floor(index / 4))),
        })),
      )
      .execute()
    const seen = []
    for (let page = await users.findActiveUsers({ limit: 3 }); page.length > 0;) {
      seen.push(...page)
      page = await users.findActiveUsers({ limit: 3, after: page.at(-1) })
    }
    expect(new Set(seen.map((user) => user.id)).size).toBe(20)
    expect(seen).toHaveLength(20)
    const times = seen.map((user) => user.createdAt.getTime())
    expect(times).toEqual(times.toSorted((a, b) => b - a))
  })
})

describe('a repository', () => {
  test('update gives the stored row back and notes the change', async () => {
    const { users } = await freshUsers()
    const { id, updatedAt } = await users.createUser(ada)
    const updated = await users.update(id, { name: 'Ada L.', lastLoginAt: null })
    expect(updated).toMatchObject({ id, name: 'Ada L.', version: 2 })
    expect(updated.updatedAt.getTime()).toBeGreaterThanOrEqual(updatedAt.getTime())
    expect(await users.getById(id)).toEqual(updated)
  })

  test('a patch without changes reads the row and changes nothing', async () => {
    const { users } = await freshUsers()
    const user = await users.createUser(ada)
    expect(await users.update(user.id, {})).toEqual(user)
    expect(await users.update(user.id, { name: undefined } as object)).toEqual(user)
    await expect(users.update(nobody, {})).rejects.toMatchObject({ code: 'NOT_FOUND' })
  })

  test('a row that is not there: find gives undefined, get and update throw, delete says false', async () => {
    const { users } = await freshUsers()
    expect(await users.findById(nobody)).toBeUndefined()
    await expect(users.getById(nobody)).rejects.toMatchObject({
      name: 'NotFoundError',
      code: 'NOT_FOUND',
      table: 'users',
    })
    await expect(users.update(nobody, { name: 'Ada' })).rejects.toMatchObject({ code: 'NOT_FOUND' })
    expect(await users.delete(nobody)).toBe(false)
    const { id } = await users.createUser(ada)
    expect(await users.delete(id)).toBe(true)
    expect(await users.findById(id)).toBeUndefined()
  })

  test('a created row comes back with its defaults', async () => {
    const products = new ProductRepository(await freshDatabase())
    const created = await products.create({ sku: 'KIT-1', name: 'Kettle', priceMinor: 4_900 })
    expect(created).toMatchObject({ sku: 'KIT-1', currency: 'EUR', stock: 0, isActive: true, version: 1 })
    expect(await products.findBySku('KIT-1')).toEqual(created)
    await expect(products.update(created.id, { stock: -1 })).rejects.toMatchObject({
      code: 'CHECK_VIOLATION',
      constraint: 'products_stock_check',
    })
  })

  test('on a transaction it sees and undoes what the transaction does', async () => {
    const { users, db } = await freshUsers()
    const undone = db.transaction().execute(async (trx) => {
      const inside = users.withTransaction(trx)
      expect(inside).toBeInstanceOf(UserRepository)
      const { id } = await inside.createUser(ada)
      expect(await inside.findById(id)).toMatchObject({ id })
      expect(await inside.findActiveUsers()).toHaveLength(1)
      // Without being told, it joins the transaction of its caller.
      expect(await users.findById(id)).toMatchObject({ id })
      throw new Error('changed my mind')
    })
    await expect(undone).rejects.toThrow('changed my mind')
    expect(await users.count()).toBe(0)
  })
})

describe('conditions', () => {
  let database: Database<DB>
  let users: UserRepository
  beforeAll(async () => {
    database = await freshDatabase()
    users = new UserRepository(database, { passwordHasher })
    await database.db
      .insertInto('users')
      .values(
        Array.from({ length: 12 }, (_, index) => ({
          email: `user${index}@example.org`,
          username: `user${index}`,
          name: `Somebody ${index % 3}`,
          password_hash: 'x'.repeat(20),
          role: index === 0 ? ('admin' as const) : ('member' as const),
          last_login_at: index < 4 ? new Date(Date.UTC(2026, 0, index + 1)) : null,
        })),
      )
      .execute()
  })

  test('a value, a list, null and an expression find what they say', async () => {
    expect(await users.count({})).toBe(12)
    expect(await users.count({ name: 'Somebody 1' })).toBe(4)
    expect(await users.count({ name: ['Somebody 1', 'Somebody 2'], role: 'member' })).toBe(8)
    expect(await users.count({ lastLoginAt: null })).toBe(8)
    expect(await users.count({ lastLoginAt: [new Date(Date.UTC(2026, 0, 1)), new Date(Date.UTC(2026, 0, 2))] })).toBe(2)
    expect(await users.count((user) => user.or([user('role', '=', 'admin'), user('name', 'like', '% 2')]))).toBe(5)
    expect(await users.exists({ role: ['staff', 'admin'] })).toBe(true)
    expect(await users.exists({ role: 'staff' })).toBe(false)
  })

  test('an empty list finds nothing', async () => {
    expect(await users.findMany({ email: [] })).toEqual([])
    expect(await users.exists({ email: [] })).toBe(false)
    expect(await users.count({ isActive: true, email: [] })).toBe(0)
  })

  test('a list may be longer than the number of parameters that the protocol allows', async () => {
    const emails = Array.from({ length: 100_000 }, (_, index) => `user${index}@example.org`)
    expect(await users.count({ email: emails })).toBe(12)
  })

  test('order, limit and offset give the part that was asked for', async () => {
    const [first, second] = await users.findMany(
      {},
      { orderBy: { name: 'desc', username: 'asc' }, limit: 2, offset: 1 },
    )
    expect([first?.username, second?.username]).toEqual(['user2', 'user5'])
    expect(await users.findMany({}, { limit: 0 })).toEqual([])
  })

  test.each([
    ['an unknown property', { mail: 'x' }],
    ['the name of a column', { is_active: true }],
    ['a column that no property holds', { password_hash: 'x' }],
    ['__proto__ as a key', JSON.parse('{"__proto__": {"isActive": true}}')],
    ['constructor as a key', { constructor: 'x' }],
    ['inherited properties', Object.create({ email: 'x' })],
    [
      'a class instance',
      new (class {
        email = 'x'
      })(),
    ],
    ['an operator object', { email: { $ne: '' } }],
    ['an object that brings SQL', { email: sql`'x' or true` }],
    ['undefined', { email: undefined }],
    ['null in a list', { email: ['x', null] }],
    ['a list in a list', { email: [['x']] }],
    ['a list with a hole', { email: Array(2) }],
    ['a symbol', { email: Symbol('x') }],
    ['a list as the whole', ['email']],
    ['text as the whole', 'true'],
    ['null as the whole', null],
    ['undefined as the whole', undefined],
  ])('%s is refused before anything is sent', async (_, where) => {
    const log = statementLog()
    const watched = new UserRepository({ db: database.db.withPlugin(log.plugin) }, { passwordHasher })
    for (const call of [watched.findMany(where), watched.count(where), watched.exists(where)]) {
      await expect(call).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', table: 'users' })
    }
    expect(log.count()).toBe(0)
  })

  test.each([
    ['an unknown order', { orderBy: { 'id; drop table users': 'asc' } }],
    ['an unknown direction', { orderBy: { id: 'asc; drop table users' } }],
    ['a direction that is an object', { orderBy: { id: { toString: () => 'asc' } } }],
    ['an order as text', { orderBy: 'id' }],
    ['__proto__ as order', { orderBy: JSON.parse('{"__proto__": "asc"}') }],
    ['a negative limit', { limit: -1 }],
    ['half a row', { limit: 0.5 }],
    ['a limit as text', { limit: '10' }],
    ['no number', { offset: Number.NaN }],
    ['an offset without end', { offset: Number.POSITIVE_INFINITY }],
  ])('%s is refused', async (_, options) => {
    await expect(users.findMany({}, options as object)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })

  test.each([
    ['an unknown property', { nickname: 'x' }],
    ['the column of the password', { password_hash: 'x' }],
    ['the key', { id: nobody }],
    ['a function', { name: () => 'x' }],
    ['an object that brings SQL', { name: sql`'x'` }],
    ['__proto__', JSON.parse('{"__proto__": {"role": "admin"}}')],
    ['inherited properties', Object.create({ role: 'admin' })],
  ])('a patch with %s is refused and changes nothing', async (_, patch) => {
    const before = await users.findMany({}, { orderBy: { id: 'asc' } })
    const id = before[0]?.id ?? ''
    await expect(users.update(id, patch)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    expect(await users.findMany({}, { orderBy: { id: 'asc' } })).toEqual(before)
  })

  test('an id that is an object or a list is refused', async () => {
    for (const id of [{ $gt: '' }, ['x'], undefined, null, sql`id`]) {
      await expect(users.findById(id as unknown as string)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    }
  })

  test('an id that is no UUID is the typed error of its type', async () => {
    await expect(users.findById("' or true --")).rejects.toMatchObject({ code: 'INVALID_DATA' })
  })

  test('whatever keys and values a request has, the SQL has the known shape or is not sent', async () => {
    const shapes = new Set<string>()
    const plugin: KyselyPlugin = {
      transformQuery: ({ node, queryId }) => {
        shapes.add(database.db.getExecutor().compileQuery(node, queryId).sql)
        return node
      },
      transformResult: ({ result }) => Promise.resolve(result),
    }
    const watched = new UserRepository({ db: database.db.withPlugin(plugin) }, { passwordHasher })
    const key = fc.oneof(fc.constantFrom('name', 'username', '__proto__', 'is_active', 'toString'), fc.string())
    const value = fc.oneof(fc.string(), fc.jsonValue(), fc.array(fc.string()), fc.constant(undefined))
    const codes = new Set<unknown>()
    await fc.assert(
      fc.asyncProperty(fc.dictionary(key, value, { maxKeys: 2 }), async (where) => {
        await watched.count(where as object).catch((error: DatabaseError) => codes.add(error.code))
      }),
      { numRuns: 300 },
    )
    // Besides our own refusal the server's, of a bound value: a NUL in text, or a number where there is text.
    expect(codes).toContain('INVALID_ARGUMENT')
    for (const code of codes) expect(['INVALID_ARGUMENT', 'INVALID_DATA', 'UNDEFINED_OBJECT']).toContain(code)
    const condition = String.raw`"users"\."(name|username)" (= \$\d|is null|= any\(\$\d\))`
    const known = new RegExp(
      String.raw`^select count\(\*\) as "count" from "users" where (${condition} and ){0,2}"users"\."deleted_at" is null$`,
    )
    expect([...shapes].filter((shape) => !known.test(shape))).toEqual([])
    expect(shapes.size).toBeGreaterThan(3)
  })
})

describe('products', () => {
  let database: Database<DB>
  beforeAll(async () => {
    database = await freshDatabase()
    await seedDevelopment(database)
  })

  test('a page of products with all their categories is one statement', async () => {
    const log = statementLog()
    const products = new ProductRepository({ db: database.db.withPlugin(log.plugin) })
    const page = await products.findWithCategories({ limit: 50 })
    expect(page).toHaveLength(50)
    expect(log.count()).toBe(1)
    const links = await database.db
      .selectFrom('product_categories')
      .innerJoin('categories', 'categories.id', 'category_id')
      .where(
        'product_id',
        'in',
        page.map((product) => product.id),
      )
      .select(['product_id', 'category_id', 'categories.name', 'slug', 'parent_id'])
      .orderBy('categories.name')
      .execute()
    for (const product of page) {
      const expected = links.filter((link) => link.product_id === product.id)
      expect(product.categories).toEqual(
        expected.map(({ category_id: id, parent_id: parentId, slug, name }) => ({ id, parentId, slug, name })),
      )
    }
  })

  test('a category shows what is in it and below it, page after page, each product once', async () => {
    const products = new ProductRepository(database)
    const seen: string[] = []
    for (let page = await products.findWithCategories({ category: 'kitchen', limit: 60 }); page.length > 0;) {
      seen.push(...page.map((product) => product.sku))
      page = await products.findWithCategories({ category: 'kitchen', limit: 60, after: page.at(-1) })
    }
    const expected = await products.count((product) =>
      product.and([product('sku', 'like', 'KIT-%'), product('is_active', '=', true)]),
    )
    expect(seen).toHaveLength(expected)
    expect(new Set(seen).size).toBe(expected)
    expect(await products.findWithCategories({ category: 'no-such-category' })).toEqual([])
  })

  test('a product in no category has an empty list', async () => {
    const products = new ProductRepository(database)
    await products.create({ sku: 'ZZZ-1', name: '  !first of all', priceMinor: 1 })
    const [first] = await products.findWithCategories({ limit: 1 })
    expect(first).toMatchObject({ sku: 'ZZZ-1', categories: [] })
  })
})

test('pages of active users and of the catalogue are read from their indexes, also by a generic plan', async () => {
  const { db } = await freshDatabase()
  await seedDevelopment({ db })
  const texts: string[] = []
  const plugin: KyselyPlugin = {
    transformQuery: ({ node, queryId }) => {
      texts.push(db.getExecutor().compileQuery(node, queryId).sql)
      return node
    },
    transformResult: ({ result }) => Promise.resolve(result),
  }
  const source = { db: db.withPlugin(plugin) }
  await new UserRepository(source).findActiveUsers({ limit: 10 })
  await new ProductRepository(source).findWithCategories({ limit: 10 })
  const plans: string[] = []
  await db.connection().execute(async (connection) => {
    await sql`set plan_cache_mode = force_generic_plan`.execute(connection)
    for (const [index, text] of texts.entries()) {
      await sql`prepare ${sql.raw(`page_${index} as ${text}`)}`.execute(connection)
      const plan = await sql<Record<'QUERY PLAN', string>>`explain execute ${sql.raw(`page_${index}(10)`)}`.execute(
        connection,
      )
      plans.push(plan.rows.map((row) => row['QUERY PLAN']).join('\n'))
      await sql`deallocate ${sql.raw(`page_${index}`)}`.execute(connection)
    }
    await sql`reset plan_cache_mode`.execute(connection)
  })
  expect(plans[0]).toContain('users_active_idx')
  expect(plans[1]).toContain('products_catalogue_idx')
})

describe('a repository that is cached', () => {
  interface Category {
    readonly id: string
    readonly slug: string
    readonly name: string
  }
  const columns = { id: 'id', slug: 'slug', name: 'name' } as const

  class Categories extends Repository<DB, 'categories', Category, typeof columns> {
    constructor(database: QuerySource<DB>) {
      super(database, { table: 'categories', columns, cache: { ttlMs: 60_000 } })
    }
  }

  test('reads a row by its key once, until it is written', async () => {
    const database = await freshDatabase()
    const categories = new Categories(database)
    const absent = '00000000-0000-4000-8000-000000004711'
    const { loads } = database.cache.stats()
    const read = async (): Promise<number> => database.cache.stats().loads - loads
    expect(await categories.findById(absent)).toBeUndefined()
    expect(await categories.findById(absent)).toBeUndefined()
    expect(await read()).toBe(1)
    const { id } = await categories.create({ slug: 'kitchen', name: 'Kitchen' })
    const other = await categories.create({ slug: 'garden', name: 'Garden' })
    const found = await categories.getById(id)
    expect(found).toEqual({ id, slug: 'kitchen', name: 'Kitchen' })
    await categories.update(other.id, { name: 'Outside' })
    expect(await categories.getById(id)).toBe(found)
    expect(await read()).toBe(2)
    await categories.update(id, { name: 'Cooking' })
    expect((await categories.getById(id)).name).toBe('Cooking')
    expect(await read()).toBe(3)
    await database.db.transaction().execute(async (trx) => {
      await categories.withTransaction(trx).update(id, { name: 'Baking' })
      expect((await categories.withTransaction(trx).getById(id)).name).toBe('Baking')
    })
    expect((await categories.getById(id)).name).toBe('Baking')
    await categories.delete(id)
    expect(await categories.findById(id)).toBeUndefined()
    await expect(categories.getById(id)).rejects.toBeInstanceOf(NotFoundError)
  })

  test('needs a cache', async () => {
    const { db } = await freshDatabase()
    expect(() => new Categories({ db })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
  })
})
