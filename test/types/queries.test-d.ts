import { type Kysely, sql } from 'kysely'
import { expectTypeOf, test } from 'vitest'
import { type Database, isViolation } from '../../src/index.ts'
import type { ConstraintName, DB, UserRole } from '../../src/generated/schema.ts'

// Nothing in here runs: the compiler is the judge.
declare const database: Database<DB>
const { db } = database

test('a database gives Kysely on the generated schema', () => {
  expectTypeOf(database.db).toEqualTypeOf<Kysely<DB>>()
})

test('a row has exactly the selected columns, with their types and nulls', async () => {
  const row = await db.selectFrom('users').select(['id', 'role', 'last_login_at']).executeTakeFirst()
  expectTypeOf(row).toEqualTypeOf<{ id: string; role: UserRole; last_login_at: Date | null } | undefined>()
})

test('columns of an outer join may be null', async () => {
  const [row] = await db
    .selectFrom('users')
    .leftJoin('posts', 'posts.author_id', 'users.id')
    .select(['users.id', 'posts.id as post_id'])
    .execute()
  expectTypeOf(row).toEqualTypeOf<{ id: string; post_id: string | null } | undefined>()
})

test('a stream gives the rows of its query, one by one or many at once', async () => {
  const stream = database.stream(db.selectFrom('users').select(['id', 'role']))
  for await (const row of stream) expectTypeOf(row).toEqualTypeOf<{ id: string; role: UserRole }>()
  for await (const rows of stream.chunks()) expectTypeOf(rows).toEqualTypeOf<{ id: string; role: UserRole }[]>()
  for await (const { n } of database.stream(sql<{ n: number }>`select 1 as n`)) expectTypeOf(n).toEqualTypeOf<number>()
  // @ts-expect-error: a chunk is a number of rows
  database.stream(db.selectFrom('users').select('id'), { chunkSize: '10' })
})

test('a column or table that does not exist does not compile', () => {
  // @ts-expect-error: users have no such column
  db.selectFrom('users').select('e_mail')
  // @ts-expect-error: the column belongs to another table
  db.selectFrom('users').where('products.sku', '=', 'A-1')
  // @ts-expect-error: there is no such table
  db.selectFrom('user')
})

test('a value of the wrong type does not compile', () => {
  // @ts-expect-error: a flag is not a string
  db.selectFrom('users').where('is_active', '=', 'yes')
  // @ts-expect-error: the status is one of an enum
  db.updateTable('orders').set({ status: 'lost' })
})

test('an insert must give the columns that have no default, and only them', () => {
  // @ts-expect-error: a category needs a name and a slug
  db.insertInto('categories').values({ name: 'Books' })
  db.insertInto('categories').values({ name: 'Books', slug: 'books' })
})

test('a column that the server computes cannot be written', () => {
  // @ts-expect-error: the search vector is generated
  db.updateTable('products').set({ search_vector: 'x' })
})

test('a violation names a constraint that exists', () => {
  const error: unknown = undefined
  isViolation<ConstraintName>(error, 'users_email_key')
  // @ts-expect-error: no constraint has this name
  isViolation<ConstraintName>(error, 'users_e_mail_key')
})

test('many rows are typed by their table', async () => {
  const categories = [{ name: 'Books', slug: 'books' }]
  const inserted = await database.insertMany('categories', categories, { returning: ['id', 'slug'] })
  expectTypeOf(inserted.rows).toEqualTypeOf<{ id: string; slug: string }[]>()
  const updated = await database.updateMany('categories', [{ slug: 'books', name: 'Book' }], { key: ['slug'] })
  expectTypeOf(updated.rows).toEqualTypeOf<{}[]>()
  await database.upsertMany('categories', categories, { conflict: ['slug'], update: ['name'] })
  // @ts-expect-error: a category needs a slug
  await database.insertMany('categories', [{ name: 'Books' }])
  // @ts-expect-error: there is no such column to give back
  await database.insertMany('categories', categories, { returning: ['title'] })
  // @ts-expect-error: there is no such key
  await database.updateMany('categories', categories, { key: ['title'] })
  // @ts-expect-error: nothing says what makes two rows the same
  await database.upsertMany('categories', categories, {})
})

test('a copy takes rows of its table, or bytes with their format', async () => {
  const { count } = await database.copy.from('categories', [{ name: 'Books', slug: 'books' }], {
    columns: ['name', 'slug'],
  })
  expectTypeOf(count).toEqualTypeOf<number>()
  await database.copy.from('categories', ['Books,books'], { format: 'csv', columns: ['name', 'slug'] })
  // @ts-expect-error: without a format these are no rows
  await database.copy.from('categories', ['Books,books'])
  // @ts-expect-error: a category needs a slug
  await database.copy.from('categories', [{ name: 'Books' }])
  // @ts-expect-error: there is no such column
  await database.copy.from('categories', ['Books'], { format: 'csv', columns: ['title'] })
  for await (const piece of database.copy.to('categories', { columns: ['name'] }))
    expectTypeOf(piece).toEqualTypeOf<Buffer>()
  database.copy.to(db.selectFrom('users').select('id'), { format: 'csv', replica: true })
  // @ts-expect-error: there is no such table
  database.copy.to('category')
  // @ts-expect-error: the columns of a query are the query's
  database.copy.to(db.selectFrom('users').select('id'), { columns: ['id'] })
})
