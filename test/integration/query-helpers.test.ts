import { CamelCasePlugin, type Generated, Kysely, PostgresDialect, sql } from 'kysely'
import { Pool } from 'pg'
import { beforeAll, describe, expect, test } from 'vitest'
import {
  count,
  createDatabase,
  type Database,
  exists,
  first,
  groupBy,
  keyBy,
  pluck,
  postgresDialect,
  value,
} from '../../src/index.ts'
import { closeAfterTest, freshDatabaseUrl } from '../support/database.ts'

interface Tables {
  books: { id: Generated<number>; title: string; author_name: string | null; printed_at: Date | null }
}

const wrong = { code: 'INVALID_ARGUMENT' }
let database: Database<Tables>
let db: Kysely<Tables>
let url = ''
const sent: string[] = []

beforeAll(async () => {
  url = await freshDatabaseUrl('empty')
  database = await createDatabase<Tables>({
    postgres: { url },
    redis: false,
    log: ({ query }) => void sent.push(query.sql),
  })
  closeAfterTest(database)
  db = database.db
  await database.query(sql`create table books
    (id int generated always as identity primary key, title text not null, author_name text, printed_at timestamptz)`)
  await db
    .insertInto('books')
    .values([
      { title: 'Emma', author_name: 'Austen', printed_at: new Date(0) },
      { title: 'Persuasion', author_name: 'Austen', printed_at: null },
      { title: 'Beowulf', author_name: null, printed_at: null },
      { title: 'Villette', author_name: '__proto__', printed_at: null },
    ])
    .execute()
})

const books = () => db.selectFrom('books').orderBy('id')
const nothing = () => books().where('id', '<', 0)

describe('what a query gives', () => {
  test('first: the first row, of a statement with a limit', async () => {
    sent.length = 0
    expect(await books().select('title').$call(first)).toEqual({ title: 'Emma' })
    expect(sent[0]).toMatch(/limit \$1$/)
    expect(await books().select('title').limit(2).offset(1).$call(first)).toEqual({ title: 'Persuasion' })
    expect(await books().select('title').limit(0).$call(first)).toBeUndefined()
    expect(await nothing().select('title').$call(first)).toBeUndefined()
    const either = books().clearOrderBy().select('title').union(db.selectFrom('books').select('title')).orderBy('title')
    expect(await either.$call(first)).toEqual({ title: 'Beowulf' })
  })

  test('value: that of the only column', async () => {
    expect(await books().select('title').$call(value)).toBe('Emma')
    expect(await books().select('author_name').where('title', '=', 'Beowulf').$call(value)).toBeNull()
    expect(await nothing().select('title').$call(value)).toBeUndefined()
    const two = books().select(['id', 'title']) as unknown as Parameters<typeof value<{ id: number }>>[0]
    await expect(value(two)).rejects.toMatchObject(wrong)
  })

  test('pluck: the values of one column', async () => {
    expect(await books().select(['id', 'author_name']).$call(pluck('author_name'))).toEqual([
      'Austen',
      'Austen',
      null,
      '__proto__',
    ])
    expect(await nothing().select('title').$call(pluck('title'))).toEqual([])
    const unknown = pluck('__proto__' as 'title')
    await expect(books().select('title').$call(unknown)).rejects.toMatchObject(wrong)
  })

  test('keyBy: a Map of rows, also by a key that plain objects cannot have', async () => {
    const byTitle = await books().select(['id', 'title']).$call(keyBy('title'))
    expect([...byTitle.keys()]).toEqual(['Emma', 'Persuasion', 'Beowulf', 'Villette'])
    expect(byTitle.get('Emma')).toEqual({ id: 1, title: 'Emma' })
    const byAuthor = await books().select(['title', 'author_name']).where('id', '>', 2).$call(keyBy('author_name'))
    expect(byAuthor.get('__proto__')).toEqual({ title: 'Villette', author_name: '__proto__' })
    expect(byAuthor.get(null)).toEqual({ title: 'Beowulf', author_name: null })
    expect(byAuthor.has('constructor')).toBe(false)
    expect(await nothing().select('id').$call(keyBy('id'))).toEqual(new Map())
  })

  test('keyBy refuses what would lose rows', async () => {
    await expect(books().select('author_name').$call(keyBy('author_name'))).rejects.toThrow(/Use groupBy/)
    const byTime = keyBy('printed_at' as 'title')
    const printed = books().select(['title', 'printed_at']) as unknown as { execute(): Promise<{ title: string }[]> }
    await expect(byTime(printed)).rejects.toMatchObject(wrong)
  })

  test('groupBy: a Map of lists, in the order of the rows', async () => {
    const groups = await books().select(['title', 'author_name']).$call(groupBy('author_name'))
    expect([...groups].map(([author, rows]) => [author, rows.map(({ title }) => title)])).toEqual([
      ['Austen', ['Emma', 'Persuasion']],
      [null, ['Beowulf']],
      ['__proto__', ['Villette']],
    ])
    expect(await nothing().select('id').$call(groupBy('id'))).toEqual(new Map())
  })

  test('exists: whether there is a row, of which none is fetched', async () => {
    sent.length = 0
    expect(await books().selectAll().$call(exists)).toBe(true)
    expect(sent).toEqual(['select exists (select * from "books") as "found"'])
    expect(await nothing().$call(exists)).toBe(false)
    expect(await books().select('id').offset(4).$call(exists)).toBe(false)
    expect(await books().select('id').limit(0).$call(exists)).toBe(false)
  })

  test('count: the rows, whatever makes them', async () => {
    expect(await books().selectAll().$call(count)).toBe(4)
    expect(await books().$call(count)).toBe(4)
    expect(await nothing().$call(count)).toBe(0)
    expect(await db.selectFrom('books').select('author_name').distinct().$call(count)).toBe(3)
    expect(await db.selectFrom('books').select('author_name').groupBy('author_name').$call(count)).toBe(3)
    expect(
      await db
        .selectFrom('books')
        .distinctOn('author_name')
        .selectAll()
        .orderBy('author_name')
        .orderBy('id', 'desc')
        .$call(count),
    ).toBe(3)
    expect(await books().select('id').limit(3).$call(count)).toBe(3)
    expect(await books().select('id').limit(3).offset(2).$call(count)).toBe(2)
    expect(await books().clearOrderBy().select('id').unionAll(db.selectFrom('books').select('id')).$call(count)).toBe(8)
    const joined = db
      .selectFrom('books as a')
      .innerJoin('books as b', 'a.author_name', 'b.author_name')
      .select(['a.id', 'b.id'])
    expect(await joined.$call(count)).toBe(5)
  })

  test('what a write gives back, which is done once', async () => {
    const titled = (title: string) => db.insertInto('books').values({ title, author_name: null, printed_at: null })
    expect(await titled('Middlemarch').returning('title').$call(first)).toEqual({ title: 'Middlemarch' })
    const renamed = db
      .updateTable('books')
      .set({ title: 'Romola' })
      .where('title', '=', 'Middlemarch')
      .returning('title')
    expect(await renamed.$call(value)).toBe('Romola')
    const deleted = db.deleteFrom('books').where('title', 'in', ['Romola', 'none']).returning('title')
    expect(await deleted.$call(pluck('title'))).toEqual(['Romola'])
    expect(await deleted.$call(pluck('title'))).toEqual([])
  })

  test('common table expressions that write, which have to be outermost', async () => {
    const moved = db
      .with('gone', (inner) => inner.deleteFrom('books').where('id', '<', 0).returning('id'))
      .selectFrom('gone')
      .selectAll()
    expect(await moved.$call(count)).toBe(0)
    expect(await moved.$call(exists)).toBe(false)
  })
})

describe('it runs where its query runs', () => {
  test('in the transaction around it, and in one that is passed by hand', async () => {
    const add = { title: 'Silas Marner', author_name: null, printed_at: null }
    const undone = database.transaction(async () => {
      await db.insertInto('books').values(add).execute()
      expect(await books().$call(count)).toBe(5)
      expect(await books().where('title', '=', add.title).$call(exists)).toBe(true)
      throw new Error('undone')
    })
    await expect(undone).rejects.toThrow('undone')
    const alsoUndone = db.transaction().execute(async (trx) => {
      await trx.insertInto('books').values(add).execute()
      expect(await trx.selectFrom('books').$call(count)).toBe(5)
      expect(await trx.selectFrom('books').where('title', '=', add.title).$call(exists)).toBe(true)
      expect(await trx.selectFrom('books').select('title').orderBy('id', 'desc').$call(value)).toBe(add.title)
      throw new Error('undone')
    })
    await expect(alsoUndone).rejects.toThrow('undone')
    expect(await books().$call(count)).toBe(4)
  })

  test.each([
    ['the dialect of kanta', () => postgresDialect({ url })],
    ['that of Kysely on pg', () => new PostgresDialect({ pool: new Pool({ connectionString: url }) })],
  ])('on a Kysely of one’s own with %s, its plugins and its schema', async (_, dialect) => {
    await database.query(sql`create schema if not exists shop`)
    await database.query(sql`create table if not exists shop.books as select * from public.books where id > 1`)
    const own = new Kysely<{ books: { id: number; authorName: string | null } }>({
      dialect: dialect(),
      plugins: [new CamelCasePlugin()],
    })
    try {
      const inShop = own.withSchema('shop').selectFrom('books').select(['id', 'authorName']).orderBy('id')
      expect(await inShop.$call(count)).toBe(3)
      expect(await inShop.where('id', '=', 1).$call(exists)).toBe(false)
      expect(await own.selectFrom('books').where('id', '=', 1).$call(exists)).toBe(true)
      expect(await inShop.$call(pluck('authorName'))).toEqual(['Austen', null, '__proto__'])
      expect(await inShop.$call(first)).toEqual({ id: 2, authorName: 'Austen' })
      expect((await inShop.$call(keyBy('id'))).get(3)).toEqual({ id: 3, authorName: null })
    } finally {
      await own.destroy()
    }
  })
})
