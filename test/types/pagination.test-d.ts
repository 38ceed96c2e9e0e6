import { sql } from 'kysely'
import { expectTypeOf, test } from 'vitest'
import type { DB, UserRole } from '../../src/generated/schema.ts'
import {
  count,
  type Database,
  exists,
  first,
  groupBy,
  keyBy,
  type KeysetPage,
  type OffsetPage,
  paginate,
  paginateByOffset,
  pluck,
  value,
} from '../../src/index.ts'

// Nothing in here runs: the compiler is the judge.
declare const database: Database<DB>
const { db, cursorSecret: secret } = database
const users = db.selectFrom('users').select(['id', 'role', 'last_login_at'])
interface UserRow {
  id: string
  role: UserRole
  last_login_at: Date | null
}

test('a page has the rows of its query', () => {
  expectTypeOf(paginate(users, { by: [['id', 'asc']], secret })).resolves.toEqualTypeOf<
    KeysetPage<{ id: string; role: UserRole; last_login_at: Date | null }>
  >()
  expectTypeOf(paginateByOffset(users)).resolves.toEqualTypeOf<
    OffsetPage<{ id: string; role: UserRole; last_login_at: Date | null }>
  >()
})

test('an order names columns of the tables of the query', () => {
  void paginate(users, {
    by: [
      ['users.created_at', 'desc'],
      ['users.id', 'desc'],
    ],
    secret,
  })
  const joined = db
    .selectFrom('posts as p')
    .innerJoin('users as author', 'author.id', 'p.author_id')
    .leftJoin('comments', 'comments.post_id', 'p.id')
    .select(['p.title', 'author.name'])
  void paginate(joined, {
    by: [
      ['author.name', 'asc'],
      ['p.id', 'asc'],
    ],
    secret,
  })
  // @ts-expect-error: there is no such column
  void paginate(users, { by: [['users.e_mail', 'asc']], secret })
  // @ts-expect-error: the table is not in the query
  void paginate(users, { by: [['posts.id', 'asc']], secret })
  // @ts-expect-error: in this query the table has another name
  void paginate(joined, { by: [['posts.id', 'asc']], secret })
  // @ts-expect-error: there is no such direction
  void paginate(users, { by: [['id', 'down']], secret })
})

test('a column that may be null says where nulls stand', () => {
  void paginate(users, {
    by: [
      ['last_login_at', 'desc', { nulls: 'last' }],
      ['id', 'asc'],
    ],
    secret,
  })
  void paginate(users, {
    by: [
      // @ts-expect-error: it may be null
      ['last_login_at', 'desc'],
      ['id', 'asc'],
    ],
    secret,
  })
  const outer = db.selectFrom('users').leftJoin('posts', 'posts.author_id', 'users.id').select('users.id')
  void paginate(outer, {
    by: [
      ['posts.id', 'asc', { nulls: 'first' }],
      ['users.id', 'asc'],
    ],
    secret,
  })
  void paginate(outer, {
    by: [
      // @ts-expect-error: an outer join may give nulls
      ['posts.id', 'asc'],
      ['users.id', 'asc'],
    ],
    secret,
  })
  // @ts-expect-error: nulls are nowhere else
  void paginate(users, { by: [['last_login_at', 'desc', { nulls: 'middle' }]], secret })
})

test('an expression has a name, and a type that says whether it may be null', () => {
  void paginate(users, {
    by: [
      [sql<string>`lower(name)`.as('lower'), 'asc'],
      ['id', 'asc'],
    ],
    secret,
  })
  void paginate(users, {
    by: [
      [sql`lower(name)`.as('lower'), 'asc', { nulls: 'none' }],
      ['id', 'asc'],
    ],
    secret,
  })
  void paginate(users, {
    by: [
      // @ts-expect-error: nobody knows whether it may be null
      [sql`lower(name)`.as('lower'), 'asc'],
      ['id', 'asc'],
    ],
    secret,
  })
  void paginate(users, {
    by: [
      // @ts-expect-error: it has no name
      [sql<string>`lower(name)`, 'asc'],
      ['id', 'asc'],
    ],
    secret,
  })
})

test('a page is asked for with text and numbers, and with a secret', () => {
  // @ts-expect-error: a limit is a number
  void paginate(users, { by: [['id', 'asc']], limit: '20', secret })
  // @ts-expect-error: a cursor is text
  void paginate(users, { by: [['id', 'asc']], after: 20, secret })
  // @ts-expect-error: there is no secret
  void paginate(users, { by: [['id', 'asc']] })
  // @ts-expect-error: there is no order
  void paginate(users, { secret })
})

test('what a query gives is typed by the query', () => {
  expectTypeOf(users.$call(first)).resolves.toEqualTypeOf<UserRow | undefined>()
  expectTypeOf(users.$call(pluck('role'))).resolves.toEqualTypeOf<UserRole[]>()
  expectTypeOf(users.$call(keyBy('id'))).resolves.toEqualTypeOf<Map<string, UserRow>>()
  expectTypeOf(users.$call(groupBy('role'))).resolves.toEqualTypeOf<Map<UserRole, UserRow[]>>()
  expectTypeOf(users.$call(exists)).resolves.toEqualTypeOf<boolean>()
  expectTypeOf(users.$call(count)).resolves.toEqualTypeOf<number>()
  expectTypeOf(db.selectFrom('users').select('last_login_at').$call(value)).resolves.toEqualTypeOf<
    Date | null | undefined
  >()
  // @ts-expect-error: the column is not selected
  void users.$call(pluck('name'))
  // @ts-expect-error: a time is an object, which no Map finds again
  void users.$call(keyBy('last_login_at'))
  // @ts-expect-error: which of the columns?
  void users.$call(value)
})

test('so is what a write gives back', () => {
  const update = db.updateTable('users').set({ is_active: false }).returning(['id', 'role'])
  expectTypeOf(update.$call(first)).resolves.toEqualTypeOf<{ id: string; role: UserRole } | undefined>()
  expectTypeOf(update.$call(pluck('id'))).resolves.toEqualTypeOf<string[]>()
  expectTypeOf(db.deleteFrom('users').returning('id').$call(value)).resolves.toEqualTypeOf<string | undefined>()
  // @ts-expect-error: a write is not counted by doing it
  void update.$call(count)
  // @ts-expect-error: nothing is given back
  void db.deleteFrom('users').$call(pluck('id'))
})
