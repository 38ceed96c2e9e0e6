import { CamelCasePlugin, type Generated, sql } from 'kysely'
import { beforeAll, describe, expect, inject, test } from 'vitest'
import { createDatabase, type Database, Repository, UnitOfWork } from '../../src/index.ts'
import { freshDatabase, freshDatabaseUrl } from '../support/database.ts'
import {
  type Author,
  Authors,
  Books,
  Categories,
  Counters,
  Departments,
  Employees,
  ErasableAuthors,
  Lefts,
  type Library,
  Loans,
  openLibrary,
  Rights,
  Yangs,
  Yins,
} from '../support/library.ts'
import { startProxy } from '../../src/testing/fault-proxy.ts'

const nobody = '00000000-0000-7000-8000-000000000000'

let made = 0
const newAuthor = (name = 'Ada'): { email: string; name: string } => ({
  email: `${name}${(made += 1)}@example.org`,
  name,
})

/** What is sent while `work` runs, but for the words that begin and end transactions and the look at the catalog. */
async function statementsOf(database: Database<Library>, work: () => Promise<unknown>): Promise<string[]> {
  const statements: string[] = []
  const stop = database.events.on('query', ({ sql: text }) => statements.push(text.trim().replaceAll(/\s+/g, ' ')))
  try {
    await work()
  } finally {
    stop()
  }
  return statements.filter((text) => !/^(?:begin|commit|rollback|savepoint|release|with recursive wanted)/i.test(text))
}

/** The words by which each statement begins. */
const heads = (statements: readonly string[]): string[] =>
  statements.map((text) => text.split(' ').slice(0, 3).join(' ').replaceAll('"', ''))

describe('a unit of work', () => {
  let database: Database<Library>
  let authors: Authors
  let books: Books
  let loans: Loans
  let categories: Categories
  beforeAll(async () => {
    database = await openLibrary()
    authors = new Authors(database)
    books = new Books(database)
    loans = new Loans(database)
    categories = new Categories(database)
  })

  test('new rows refer to each other by keys that the database makes, whatever the order in which they are registered', async () => {
    const work = new UnitOfWork(database)
    const author = work.create(authors, newAuthor('Ursula'))
    const book = work.create(books, {
      authorId: author.ref('id'),
      title: 'The Dispossessed',
      tags: ['a "quoted", one'],
      details: { pages: 341 },
    })
    work.create(loans, { book_id: book.ref('id'), place: 1, reader: null })
    const { created, updated, deleted } = await work.flush()
    expect(created).toEqual([author.entity, book.entity, { book_id: book.entity.id, place: 1, reader: null }])
    expect([updated, deleted]).toEqual([[], 0])
    expect(await authors.getById(author.entity.id)).toEqual(author.entity)
    expect(await books.getById(book.entity.id)).toEqual(book.entity)
    expect(book.entity).toMatchObject({
      authorId: author.entity.id,
      stock: 7,
      tags: ['a "quoted", one'],
      details: { pages: 341 },
    })
  })

  test('hundreds of changes of three tables are one statement for each table and kind, and one for the keys', async () => {
    const before = await authors.createMany(Array.from({ length: 30 }, () => newAuthor('Before')))
    const [first] = before
    const shelf = await books.createMany(
      Array.from({ length: 40 }, (_, n) => ({ authorId: first?.id ?? '', title: `Old ${n}` })),
    )
    const work = new UnitOfWork(database)
    const counts = await statementsOf(database, async () => {
      for (let n = 0; n < 100; n += 1) {
        const author = work.create(authors, newAuthor('New'))
        const book = work.create(books, { authorId: author.ref('id'), title: `New ${n}` })
        work.create(loans, { book_id: book.ref('id'), place: n, reader: 'Bo' })
      }
      for (const author of before) work.update(authors, author, { name: 'After' })
      for (const book of shelf.slice(0, 20)) work.update(books, book, { stock: 1 })
      for (const book of shelf.slice(20)) work.delete(books, book)
      const { created, updated, deleted } = await work.flush()
      expect([created.length, updated.length, deleted]).toEqual([300, 50, 20])
      expect(updated[3]).toMatchObject({ id: before[3]?.id, name: 'After', version: 2 })
    })
    expect(heads(counts)).toEqual([
      'select case when',
      'insert into authors',
      'insert into books',
      'insert into loans',
      'update authors as',
      'update books as',
      'delete from books',
    ])
    expect(await authors.count({ name: 'After', version: 2 })).toBe(30)
    expect(await books.count({ stock: 1, version: 2 })).toBe(20)
  })

  test('what it will do can be looked at before, and nothing is written by that', async () => {
    const author = await authors.create(newAuthor())
    const work = new UnitOfWork(database)
    const book = work.create(books, { authorId: author.id, title: 'Planned' })
    work.create(loans, { book_id: book.ref('id'), place: 1, reader: 'Bo' })
    work.update(authors, author, { name: 'Planned' })
    const plan = await work.plan()
    expect(plan).toEqual([
      { operation: 'values', table: 'books', rows: 1, columns: ['books.id'], why: expect.any(String) as string },
      {
        operation: 'insert',
        table: 'books',
        rows: 1,
        columns: ['id', 'author_id', 'title'],
        why: 'refers to no other new rows',
      },
      {
        operation: 'insert',
        table: 'loans',
        rows: 1,
        columns: ['book_id', 'place', 'reader'],
        why: 'after books, which it refers to',
      },
      { operation: 'update', table: 'authors', rows: 1, columns: ['name'], why: expect.any(String) as string },
    ])
    expect(structuredClone(plan)).toEqual(plan)
    expect(await books.count({ title: 'Planned' })).toBe(0)
    await work.flush()
    expect(await books.count({ title: 'Planned' })).toBe(1)
  })

  test('nothing registered is nothing sent', async () => {
    const work = new UnitOfWork(database)
    work.delete(authors, work.create(authors, newAuthor()))
    const sent = await statementsOf(database, async () => {
      expect(await work.plan()).toEqual([])
      expect(await work.flush()).toEqual({ created: [], updated: [], deleted: 0 })
    })
    expect(sent).toEqual([])
  })

  test('rows of one table with different columns are one statement, and each gets its defaults', async () => {
    const author = await authors.create(newAuthor())
    const work = new UnitOfWork(database)
    const authorId = author.id
    const plain = work.create(books, { authorId, title: 'Plain' })
    const stocked = work.create(books, { authorId, title: 'Stocked', stock: 2 })
    const tagged = work.create(books, { authorId, title: 'Tagged', tags: ['x'], isbn: 'tagged-1' })
    const sent = await statementsOf(database, () => work.flush())
    expect(heads(sent)).toEqual(['select case when', 'insert into books'])
    expect(plain.entity).toMatchObject({ stock: 7, tags: [], isbn: null })
    expect(stocked.entity).toMatchObject({ stock: 2, tags: [], isbn: null })
    expect(tagged.entity).toMatchObject({ stock: 7, tags: ['x'], isbn: 'tagged-1' })
  })

  test('rows without any value get all of their defaults', async () => {
    const counters = new Counters(database)
    const work = new UnitOfWork(database)
    const items = [work.create(counters, {}), work.create(counters, {}), work.create(counters, {})]
    const sent = await statementsOf(database, () => work.flush())
    expect(sent).toHaveLength(1)
    expect(new Set(items.map(({ entity }) => entity.id)).size).toBe(3)
  })

  test('a tree is one statement, leaves first or not, and is deleted in one', async () => {
    const work = new UnitOfWork(database)
    const root = work.create(categories, { slug: 'root', position: 9 })
    let parent = root
    const slugs = Array.from({ length: 50 }, (_, n) => `level-${n}`)
    for (const slug of slugs) parent = work.create(categories, { slug, parentId: parent.ref('id') })
    const sent = await statementsOf(database, () => work.flush())
    expect(heads(sent)).toEqual(['select case when', 'select case when', 'insert into categories'])
    expect(parent.entity).toMatchObject({ slug: 'level-49', position: 3 })
    const removal = new UnitOfWork(database)
    for (const category of await categories.findAll()) removal.delete(categories, category.id)
    expect(heads(await statementsOf(database, () => removal.flush()))).toEqual(['delete from categories'])
    expect(await categories.count()).toBe(0)
  })

  test('a change can refer to a new row', async () => {
    const [old, other] = [await authors.create(newAuthor()), await authors.create(newAuthor())]
    const book = await books.create({ authorId: old.id, title: 'Handed on' })
    const work = new UnitOfWork(database)
    const heir = work.create(authors, newAuthor('Heir'))
    const changed = work.update(books, book, { authorId: heir.ref('id') })
    work.delete(authors, old)
    work.delete(authors, other.id)
    expect((await work.flush()).deleted).toBe(2)
    expect(changed.entity).toMatchObject({ authorId: heir.entity.id, version: 2 })
  })

  describe('several registrations for one row', () => {
    test('of a new row become its insert, or nothing', async () => {
      const work = new UnitOfWork(database)
      const author = work.create(authors, newAuthor('First'))
      work.update(authors, author, { name: 'Second' })
      const gone = work.create(authors, newAuthor('Gone'))
      work.delete(authors, gone)
      expect(heads(await statementsOf(database, () => work.flush()))).toEqual(['insert into authors'])
      expect(author.entity).toMatchObject({ name: 'Second', version: 1 })
      expect(() => gone.entity).toThrow('no stored entity')
      expect(await authors.count({ name: 'Gone' })).toBe(0)
    })

    test('of a key that was given are the same row as its new one', async () => {
      const id = '019a0000-0000-7000-8000-00000000000a'
      const work = new UnitOfWork(database)
      const author = work.create(authors, { id, ...newAuthor() })
      expect(work.update(authors, id.toUpperCase(), { name: 'By key' })).toBe(author)
      await work.flush()
      expect(await authors.getById(id)).toMatchObject({ name: 'By key', version: 1 })
    })

    test('become one change, in which the later value counts', async () => {
      const author = await authors.create(newAuthor())
      const work = new UnitOfWork(database)
      const email = `moved${author.email}`
      work.update(authors, author.id, { name: 'One', email })
      const item = work.update(authors, author, { name: 'Two' })
      expect(heads(await statementsOf(database, () => work.flush()))).toEqual(['update authors as'])
      expect(item.entity).toMatchObject({ name: 'Two', email, version: 2 })
    })

    test('that end in a deletion are a deletion, after which nothing can be changed', async () => {
      const author = await authors.create(newAuthor())
      const work = new UnitOfWork(database)
      work.update(authors, author, { name: 'Nobody sees it' })
      work.delete(authors, author)
      work.delete(authors, author.id)
      expect(() => work.update(authors, author, { name: 'Too late' })).toThrow('registered to be deleted')
      expect(heads(await statementsOf(database, () => work.flush()))).toEqual(['delete from authors'])
    })
  })

  describe('versions', () => {
    test('a row that was changed since is a conflict, each such row is told, and nothing is written', async () => {
      const [kept, changed, gone] = await authors.createMany([
        newAuthor('Kept'),
        newAuthor('Changed'),
        newAuthor('Gone'),
      ])
      await authors.update(changed as Author, { name: 'Somebody else' })
      await authors.delete(gone as Author)
      const work = new UnitOfWork(database)
      const fresh = newAuthor('Fresh')
      const created = work.create(authors, fresh)
      const items = [kept, changed, gone].map((author) => work.update(authors, author as Author, { name: 'Mine' }))
      const failure = await work.flush().catch((error: unknown) => error)
      expect(items[0]?.failure).toBeUndefined()
      expect(items[1]?.failure).toMatchObject({
        code: 'VERSION_CONFLICT',
        expectedVersion: 1,
        actualVersion: 2,
        table: 'authors',
      })
      expect(items[2]?.failure).toMatchObject({ name: 'NotFoundError', code: 'NOT_FOUND' })
      expect(items.map((item) => item.failure)).toContain(failure)
      expect((failure as Error).message).toContain('the first of 2 such rows')
      expect(() => created.entity).toThrow('no stored entity')
      expect(await authors.count({ email: fresh.email })).toBe(0)
      expect(await authors.getById(kept?.id ?? '')).toEqual(kept)
    })

    test('after a failed flush it is as before, and can be mended and flushed again', async () => {
      const author = await authors.create(newAuthor())
      const now = await authors.update(author, { name: 'Meanwhile' })
      const work = new UnitOfWork(database)
      const book = work.create(books, { authorId: author.id, title: 'Again' })
      const stale = work.update(authors, author, { name: 'Mine' })
      const plan = await work.plan()
      await expect(work.flush()).rejects.toMatchObject({ code: 'VERSION_CONFLICT' })
      expect(await work.plan()).toEqual(plan)
      await expect(work.flush()).rejects.toMatchObject({ code: 'VERSION_CONFLICT' })
      expect(() => work.update(authors, now, { name: 'Mine' })).toThrow('discard the older registration')
      work.discard(stale)
      work.update(authors, now, { name: 'Mine' })
      await work.flush()
      expect(await books.getById(book.entity.id)).toMatchObject({ title: 'Again' })
      expect(await authors.getById(author.id)).toMatchObject({ name: 'Mine', version: 3 })
    })

    test('of rows that are deleted are compared, and one that is gone is not counted', async () => {
      const [first, second, third] = await authors.createMany([newAuthor(), newAuthor(), newAuthor()])
      await authors.delete(second as Author)
      const work = new UnitOfWork(database)
      for (const author of [first, second]) work.delete(authors, author as Author)
      expect((await work.flush()).deleted).toBe(1)
      await authors.update(third as Author, { name: 'Changed' })
      const other = new UnitOfWork(database)
      other.delete(authors, third as Author)
      await expect(other.flush()).rejects.toMatchObject({ code: 'VERSION_CONFLICT', actualVersion: 2 })
      expect(await authors.count({ id: third?.id ?? '' })).toBe(1)
    })

    test('of a row that is not changed can be made sure of until the commit', async () => {
      const author = await authors.create(newAuthor())
      await database.transaction(async () => {
        const work = new UnitOfWork(database)
        const item = work.update(authors, author, {})
        expect((await work.plan())[0]).toMatchObject({ operation: 'check', rows: 1 })
        await work.flush()
        expect(item.entity).toEqual(author)
        const { rows } = await sql`
          select from pg_locks where relation = 'authors'::regclass and mode = 'RowShareLock'`.execute(database.db)
        expect(rows).not.toHaveLength(0)
      })
      await authors.update(author, { name: 'Changed' })
      const work = new UnitOfWork(database)
      work.update(authors, author, {})
      await expect(work.flush()).rejects.toMatchObject({ code: 'VERSION_CONFLICT' })
    })

    test('two units of work that change one row at the same time: one of them has it', async () => {
      const author = await authors.create(newAuthor())
      const results = await Promise.allSettled(
        Array.from({ length: 8 }, (_, n) => {
          const work = new UnitOfWork(database)
          work.update(authors, author, { name: `Writer ${n}` })
          return work.flush()
        }),
      )
      expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(1)
      const failures = results.flatMap((result): unknown[] => (result.status === 'rejected' ? [result.reason] : []))
      expect(failures).toEqual(Array(7).fill(expect.objectContaining({ code: 'VERSION_CONFLICT' })))
      expect(await authors.getById(author.id)).toMatchObject({ version: 2 })
    })
  })

  describe('transactions', () => {
    test('a flush that fails inside one is undone alone', async () => {
      const fresh = newAuthor('Outer')
      await database.transaction(async () => {
        await authors.create(fresh)
        const work = new UnitOfWork(database)
        work.create(authors, newAuthor('Inner'))
        work.create(authors, { ...fresh })
        await expect(work.flush()).rejects.toMatchObject({ code: 'UNIQUE_VIOLATION', constraint: 'authors_email_key' })
        expect(await authors.count({ name: 'Outer' })).toBe(1)
      })
      expect(await authors.count({ email: fresh.email })).toBe(1)
      expect(await authors.count({ name: 'Inner' })).toBe(0)
    })

    test('one that is repeated flushes again, with the same result', async () => {
      const work = new UnitOfWork(database)
      const author = work.create(authors, newAuthor('Repeated'))
      work.create(books, { authorId: author.ref('id'), title: 'Repeated' })
      let attempts = 0
      const { created } = await database.transaction(async () => {
        attempts += 1
        const result = await work.flush()
        expect(author.entity.name).toBe('Repeated')
        if (attempts < 3) await database.query(sql`do $$ begin raise sqlstate '40001'; end $$`)
        return result
      })
      expect(attempts).toBe(3)
      expect(created).toHaveLength(2)
      expect(await authors.findMany({ name: 'Repeated' })).toEqual([author.entity])
      await expect(work.flush()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    })

    test('a connection that is lost within a flush makes it run again, and nothing is there twice', async () => {
      const own = await openLibrary()
      const [{ url } = { url: '' }] = await own.query(sql<{ url: string }>`select current_database() as url`)
      const direct = Object.assign(new URL(inject('postgresUrl')), { pathname: `/${url}` }).href
      const proxy = await startProxy({ to: direct })
      {
        await using shaky = await createDatabase<Library>({ postgres: { url: proxy.url }, redis: false })
        const ownAuthors = new Authors(shaky)
        const author = await ownAuthors.create(newAuthor('Old'))
        const lost = proxy.on({ from: 'client', message: 'Bind', sql: /update "authors" as t/ }, 'reset')
        const work = new UnitOfWork(shaky)
        const fresh = work.create(ownAuthors, newAuthor('New'))
        work.create(new Books(shaky), { authorId: fresh.ref('id'), title: 'Once' })
        work.update(ownAuthors, author, { name: 'Older' })
        await work.flush()
        expect(await ownAuthors.findAll({ orderBy: { name: 'asc' } })).toEqual([
          fresh.entity,
          expect.objectContaining({ name: 'Older', version: 2 }),
        ])
        expect(await new Books(shaky).count()).toBe(1)
        await lost.struck
      }
      await proxy.close()
    })

    test('one that is rolled back later leaves the work to be done', async () => {
      const work = new UnitOfWork(database)
      const author = work.create(authors, newAuthor('Later'))
      const undone = database.transaction(async () => {
        await database.transaction(() => work.flush())
        expect(author.entity.name).toBe('Later')
        throw new Error('changed my mind')
      })
      await expect(undone).rejects.toThrow('changed my mind')
      expect(() => author.entity).toThrow('no stored entity')
      expect(await authors.count({ name: 'Later' })).toBe(0)
      await work.flush()
      expect(await authors.count({ name: 'Later' })).toBe(1)
    })

    test('a deadlock between two units of work is repeated, and both are written', async () => {
      const [one, two] = await authors.createMany([newAuthor(), newAuthor()])
      const barrier = Promise.withResolvers<void>()
      let waiting = 0
      const run = (first: Author, second: Author, name: string): Promise<void> => {
        let isFirst = true
        return database.transaction(async () => {
          await authors.update(first.id, { name })
          if (isFirst && (waiting += 1) === 2) barrier.resolve()
          isFirst = false
          await barrier.promise
          const work = new UnitOfWork(database)
          work.update(authors, second.id, { name })
          await work.flush()
        })
      }
      await Promise.all([run(one as Author, two as Author, 'x'), run(two as Author, one as Author, 'y')])
      expect(await authors.getById(one?.id ?? '')).toMatchObject({ version: 3 })
    })
  })

  describe('values that are unique', () => {
    test('can pass from a deleted row to a new one', async () => {
      const author = await authors.create(newAuthor())
      const book = await books.create({ authorId: author.id, title: 'Old edition', isbn: 'pass-1' })
      await loans.create({ book_id: book.id, place: 1, reader: null })
      const work = new UnitOfWork(database)
      work.delete(books, book)
      work.delete(loans, { book_id: book.id, place: 1 })
      const edition = work.create(books, { authorId: author.id, title: 'New edition', isbn: 'pass-1' })
      expect((await work.plan()).map(({ operation, table }) => `${operation} ${table}`)).toEqual([
        'delete loans',
        'delete books',
        'insert books',
      ])
      expect((await work.flush()).deleted).toBe(2)
      expect(await books.first({ isbn: 'pass-1' })).toEqual(edition.entity)
    })

    test('can pass from a changed row to a new one, and from a deleted to a changed', async () => {
      const [first, second] = await authors.createMany([newAuthor(), newAuthor()])
      const work = new UnitOfWork(database)
      work.update(authors, first as Author, { email: `new${first?.email}` })
      work.create(authors, { email: first?.email ?? '', name: 'Takes it' })
      work.delete(authors, second as Author)
      await work.flush()
      const next = new UnitOfWork(database)
      next.update(authors, first?.id ?? '', { email: second?.email ?? '' })
      await next.flush()
      expect(await authors.first({ email: first?.email ?? '' })).toMatchObject({ name: 'Takes it' })
    })

    test('can be those of an exclusion constraint', async () => {
      const own = await openLibrary()
      await own.query(
        sql`create table seats (id int primary key generated by default as identity, place int, exclude (place with =))`,
      )
      class Seats extends Repository<{ seats: { id: Generated<number>; place: number } }, 'seats'> {
        constructor() {
          super(own as never, { table: 'seats', columns: { id: 'id', place: 'place' } })
        }
      }
      const seats = new Seats()
      const taken = await seats.create({ place: 1 })
      const work = new UnitOfWork(own)
      work.delete(seats, taken)
      work.create(seats, { place: 1 })
      expect(await work.flush()).toMatchObject({ created: [{ place: 1 }], deleted: 1 })
    })

    test('the same key is deleted and inserted anew', async () => {
      const author = await authors.create(newAuthor('Replaced'))
      const work = new UnitOfWork(database)
      work.delete(authors, author)
      work.create(authors, { id: author.id, email: author.email, name: 'Replacement' })
      await work.flush()
      expect(await authors.getById(author.id)).toMatchObject({ name: 'Replacement', version: 1 })
    })
  })

  test('two rows that exchange a unique value are refused as a whole', async () => {
    const [first, second] = await authors.createMany([newAuthor(), newAuthor()])
    const work = new UnitOfWork(database)
    work.update(authors, first as Author, { email: second?.email ?? '' })
    work.update(authors, second as Author, { email: first?.email ?? '' })
    await expect(work.flush()).rejects.toMatchObject({ code: 'UNIQUE_VIOLATION', constraint: 'authors_email_key' })
    expect(await authors.getById(first?.id ?? '')).toEqual(first)
  })

  test('a row that a trigger suppresses is told, and nothing is written', async () => {
    const own = await openLibrary()
    await own.query(sql`create function suppress() returns trigger language plpgsql as
      $$ begin if coalesce(new.name, old.name) = 'Suppressed' then return null; end if; return new; end $$`)
    await own.query(
      sql`create trigger suppressing before insert or update on authors for each row execute function suppress()`,
    )
    const ownAuthors = new Authors(own)
    const author = await ownAuthors.create(newAuthor('Seen'))
    for (const register of [
      (work: UnitOfWork) => work.create(ownAuthors, newAuthor('Suppressed')),
      (work: UnitOfWork) => work.update(ownAuthors, author, { name: 'Suppressed' }),
    ]) {
      const work = new UnitOfWork(own)
      work.create(ownAuthors, newAuthor('Beside'))
      register(work)
      await expect(work.flush()).rejects.toMatchObject({ code: 'QUERY_FAILED', table: 'authors' })
    }
    expect(await ownAuthors.findAll()).toEqual([author])
  })

  test('what was taken back can be registered again', async () => {
    const work = new UnitOfWork(database)
    const values = newAuthor('Taken back')
    work.discard(work.create(authors, values))
    work.create(authors, values)
    const author = await authors.create(newAuthor('Deleted all the same'))
    work.delete(authors, author)
    const again = work.create(authors, { ...newAuthor(), id: author.id })
    work.discard(again)
    expect(() => work.delete(authors, again)).toThrow('not registered')
    expect(() => work.create(books, { authorId: again.ref('id'), title: 'x' })).toThrow('not registered')
    expect(() => work.update(authors, author, { name: 'x' })).toThrow('registered to be deleted')
    expect(await work.flush()).toMatchObject({ created: [{ name: 'Taken back' }], deleted: 1 })
  })

  describe('circles of foreign keys', () => {
    test('that can be null are closed by an update, and opened by one for deletion', async () => {
      const [departments, employees] = [new Departments(database), new Employees(database)]
      const work = new UnitOfWork(database)
      const department = work.create(departments, { name: 'Research' })
      const head = work.create(employees, { name: 'Grace', department_id: department.ref('id') })
      work.update(departments, department, { head_id: head.ref('id') })
      work.create(departments, { name: 'Empty' })
      const sent = await statementsOf(database, () => work.flush())
      expect(heads(sent)).toEqual([
        'select case when',
        'insert into departments',
        'insert into employees',
        'update departments as',
      ])
      expect(department.entity).toEqual({ id: department.entity.id, name: 'Research', head_id: head.entity.id })
      const removal = new UnitOfWork(database)
      removal.delete(departments, department.entity)
      removal.delete(employees, head.entity)
      expect((await removal.plan()).map(({ operation, table }) => `${operation} ${table}`)).toEqual([
        'detach departments',
        'delete employees',
        'delete departments',
      ])
      expect((await removal.flush()).deleted).toBe(2)
    })

    test('no circle is seen where the rows have none', async () => {
      const [departments, employees] = [new Departments(database), new Employees(database)]
      const research = await departments.create({ name: 'Research' })
      const grace = await employees.create({ name: 'Grace', department_id: research.id })
      const work = new UnitOfWork(database)
      const department = work.create(departments, { name: 'Compilers', head_id: grace.id })
      work.create(employees, { name: 'Betty', department_id: department.ref('id') })
      expect((await work.plan()).map(({ operation }) => operation)).toEqual(['values', 'insert', 'insert'])
      await work.flush()
    })

    test('that can be checked later are, and the flush itself tells of what is wrong', async () => {
      const [lefts, rights] = [new Lefts(database), new Rights(database)]
      const work = new UnitOfWork(database)
      const left = work.create(lefts, { id: 1, right_id: 1 })
      const right = work.create(rights, { id: 1, left_id: left.ref('id') })
      expect((await work.plan()).map(({ operation }) => operation)).toEqual(['defer', 'insert', 'insert', 'enforce'])
      await work.flush()
      expect([left.entity, right.entity]).toEqual([
        { id: 1, right_id: 1 },
        { id: 1, left_id: 1 },
      ])
      await database.transaction(async () => {
        const wrong = new UnitOfWork(database)
        wrong.create(lefts, { id: 2, right_id: 2 })
        wrong.create(rights, { id: 2, left_id: 2 })
        wrong.create(rights, { id: 3, left_id: 99 })
        await expect(wrong.flush()).rejects.toMatchObject({ code: 'FOREIGN_KEY_VIOLATION' })
        expect(await lefts.count()).toBe(1)
      })
    })

    test('are opened for deletion where they can be null, and not at one that restricts whenever it is checked', async () => {
      const own = await openLibrary()
      await own.query(sql`alter table employees drop constraint employees_department_id_fkey`)
      await own.query(
        sql`alter table employees add foreign key (department_id) references departments on delete restrict deferrable`,
      )
      const [ownDepartments, ownEmployees] = [new Departments(own), new Employees(own)]
      const department = await ownDepartments.create({ name: 'Sales' })
      const head = await ownEmployees.create({ name: 'Ada', department_id: department.id })
      await ownDepartments.update(department.id, { head_id: head.id })
      const work = new UnitOfWork(own)
      work.delete(ownDepartments, department.id)
      work.delete(ownEmployees, head.id)
      expect((await work.flush()).deleted).toBe(2)
    })

    test('that nothing can open are refused by name before anything is written', async () => {
      const work = new UnitOfWork(database)
      const yin = work.create(new Yins(database), { yang_id: 1 })
      const yang = work.create(new Yangs(database), { yin_id: yin.ref('id') })
      work.update(new Yins(database), yin, { yang_id: yang.ref('id') })
      const circle = /yangs → yins → yangs|yins → yangs → yins/
      await expect(work.plan()).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringMatching(circle) as string,
      })
      await expect(work.flush()).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringMatching(circle) as string,
      })
    })
  })

  test('rows that are only marked as deleted are, with their version and time, and come before what takes their place', async () => {
    const erasable = new ErasableAuthors(database)
    const author = await erasable.create(newAuthor('Marked'))
    const work = new UnitOfWork(database)
    work.delete(erasable, author)
    work.update(erasable, (await erasable.create(newAuthor())).id, { name: 'Still there' })
    expect((await work.plan()).map(({ operation }) => operation)).toEqual(['mark deleted', 'update'])
    expect((await work.flush()).deleted).toBe(1)
    expect(await erasable.findById(author.id)).toBeUndefined()
    const marked = await erasable.withDeleted().getById(author.id)
    expect(marked).toMatchObject({ version: 2, deletedAt: expect.any(Date) as Date })
    expect(marked.updatedAt.getTime()).toBeGreaterThan(author.updatedAt.getTime())
    const again = new UnitOfWork(database)
    again.delete(erasable.withDeleted(), author.id)
    expect((await again.flush()).deleted).toBe(0)
    const late = new UnitOfWork(database)
    late.update(erasable, author.id, { name: 'Too late' })
    await expect(late.flush()).rejects.toMatchObject({ code: 'NOT_FOUND' })
  })

  describe('bad input', () => {
    const refusing = (name: string) => ({
      '~standard': {
        version: 1 as const,
        vendor: 'test',
        validate: (value: unknown) =>
          (value as { name?: string }).name === name
            ? { issues: [{ message: 'not this one', path: ['name'] }] }
            : { value: { ...(value as object), name: (value as { name?: string }).name?.trim() } },
      },
    })

    test('a schema that refuses does so before anything is sent, and what it makes of values is stored', async () => {
      const strict = new Authors(database, { create: refusing('Bad'), update: refusing('Worse') })
      const work = new UnitOfWork(database)
      const good = work.create(strict, newAuthor('  Trimmed '))
      const bad = work.create(strict, newAuthor('Bad'))
      const sent = await statementsOf(database, () =>
        expect(work.flush()).rejects.toMatchObject({ code: 'VALIDATION_FAILED', table: 'authors' }),
      )
      expect(sent).toEqual([])
      work.discard(bad)
      await work.flush()
      expect(good.entity.name).toBe('Trimmed')
      const change = new UnitOfWork(database)
      change.update(strict, good.entity, { name: 'Worse' })
      await expect(change.flush()).rejects.toMatchObject({ code: 'VALIDATION_FAILED' })
    })

    test('a schema sees the values that references stand for, before anything is written', async () => {
      const seen: unknown[] = []
      const watching = {
        '~standard': {
          version: 1 as const,
          vendor: 'test',
          validate: (value: unknown) => {
            seen.push(value)
            return { value }
          },
        },
      }
      const work = new UnitOfWork(database)
      const author = work.create(authors, newAuthor())
      const book = work.create(new Books(database, { create: watching }), { authorId: author.ref('id'), title: 'Seen' })
      await work.flush()
      expect(seen).toEqual([{ authorId: author.entity.id, title: 'Seen' }])
      expect(book.entity.authorId).toBe(author.entity.id)
    })

    test('what a schema makes of a row is what others refer to, and what the server would make is not', async () => {
      let keys = 0
      const key = (): string => `00000000-0000-4000-8000-${String((keys += 1)).padStart(12, '0')}`
      const making = {
        '~standard': {
          version: 1 as const,
          vendor: 'test',
          validate: (value: unknown) => ({ value: { id: key(), ...(value as object) } }),
        },
      }
      const keyed = new Categories(database, { create: making })
      const work = new UnitOfWork(database)
      const root = work.create(keyed, { slug: 'made-1' })
      const middle = work.create(keyed, { slug: 'made-2', parentId: root.ref('id') })
      const leaf = work.create(keyed, { slug: 'made-3', parentId: middle.ref('id') })
      await work.flush()
      expect([root, middle, leaf].map(({ entity }) => entity.id.slice(0, 8))).toEqual(Array(3).fill('00000000'))
      expect([middle.entity.parentId, leaf.entity.parentId]).toEqual([root.entity.id, middle.entity.id])
      const circle = new UnitOfWork(database)
      const one = circle.create(keyed, { slug: 'made-4' })
      circle.update(keyed, one, { parentId: one.ref('id') })
      await expect(circle.flush()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    })

    test('a key that only the server makes is not taken from the caller', async () => {
      const { id } = await authors.create(newAuthor())
      const given = { id: 5_000, authorId: id, title: 'Mine' }
      const work = new UnitOfWork(database)
      work.create(books, given)
      await expect(work.flush()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', table: 'books' })
    })

    test('what cannot be a registration is refused at once', async () => {
      const work = new UnitOfWork(database)
      const values = newAuthor()
      const author = work.create(authors, values)
      const invalid = expect.objectContaining({ code: 'INVALID_ARGUMENT' }) as Error
      const elsewhere = new UnitOfWork(database).create(authors, newAuthor())
      const other = await openLibrary()
      const calls: readonly (() => unknown)[] = [
        () => work.create(authors, values),
        () => work.create(new Authors(other), newAuthor()),
        () => work.update(authors, elsewhere, { name: 'x' }),
        () => work.create(books, { authorId: elsewhere.ref('id'), title: 'x' }),
        () => work.discard(elsewhere),
        () => work.update(authors, author, { id: nobody } as object),
        () => work.update(authors, { $gt: '' } as unknown as string, { name: 'x' }),
        () => work.delete(authors, null as unknown as string),
        () => work.create(authors, ['x'] as unknown as { email: string; name: string }),
        () => work.update(authors, nobody, null as unknown as object),
        () => author.ref('nickname' as 'name'),
      ]
      for (const call of calls) expect(call).toThrow(invalid)
      await database.db.transaction().execute((transaction) => {
        expect(() => work.create(authors.withTransaction(transaction), newAuthor())).toThrow(invalid)
        return Promise.resolve()
      })
      expect((await work.flush()).created).toHaveLength(1)
      expect(() => work.create(authors, newAuthor())).toThrow(invalid)
    })

    test('what cannot be written is refused with the flush, which writes nothing', async () => {
      const author = await authors.create(newAuthor())
      const cases: readonly ((work: UnitOfWork) => unknown)[] = [
        (work) => work.create(authors, { ...newAuthor(), nickname: 'x' } as { email: string; name: string }),
        (work) => work.update(authors, author, { version: 5 }),
        (work) => work.update(authors, author, { id: nobody } as object),
        (work) => work.update(authors, author, { name: sql`'x'` as unknown as string }),
        (work) => work.create(authors, { ...newAuthor(), name: 'a\0b' }),
        (work) => {
          const gone = work.create(authors, newAuthor())
          work.create(books, { authorId: gone.ref('id'), title: 'x' })
          work.delete(authors, gone)
        },
        (work) => {
          const loan = work.create(loans, { book_id: 1, place: 1, reader: null })
          work.create(authors, { ...newAuthor(), name: loan.ref('reader') })
        },
      ]
      const before = await authors.count()
      for (const register of cases) {
        const work = new UnitOfWork(database)
        work.create(authors, newAuthor())
        register(work)
        await expect(work.flush()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
      }
      expect(await authors.count()).toBe(before)
    })

    test('a second flush at the same time, and a registration during one, are refused', async () => {
      const work = new UnitOfWork(database)
      work.create(authors, newAuthor())
      const flushing = work.flush()
      await expect(work.flush()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
      expect(() => work.create(authors, newAuthor())).toThrow('being flushed')
      await expect(work.plan()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
      expect((await flushing).created).toHaveLength(1)
    })

    test('a table that is not there is told by its name, also within a transaction, which goes on', async () => {
      const empty = await openLibrary()
      await empty.query(sql`drop table counters`)
      await empty.transaction(async () => {
        const work = new UnitOfWork(empty)
        work.create(new Counters(empty), {})
        await expect(work.flush()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', table: 'counters' })
        await new Authors(empty).create(newAuthor())
      })
      expect(await new Authors(empty).count()).toBe(1)
    })
  })

  test('a column that a migration has changed is written after one failure at most', async () => {
    const own = await openLibrary()
    const ownCategories = new Categories(own)
    const first = new UnitOfWork(own)
    first.create(ownCategories, { slug: 'a', position: 1 })
    await first.flush()
    await own.query(sql`alter table categories alter column position type text using position::text`)
    const work = new UnitOfWork(own)
    const item = work.create(ownCategories, { slug: 'b', position: 'high' as unknown as number })
    await work.flush().catch(() => work.flush())
    expect(item.entity.position).toBe('high')
  })

  test('tens of thousands of rows are the same few statements', async () => {
    const author = await authors.create(newAuthor())
    const work = new UnitOfWork(database)
    for (let n = 0; n < 20_000; n += 1) work.create(books, { authorId: author.id, title: `Book ${n}` })
    expect(await statementsOf(database, () => work.flush())).toHaveLength(1)
    expect(await books.count({ authorId: author.id })).toBe(20_000)
    expect(
      (await books.findMany({ authorId: author.id }, { orderBy: { id: 'asc' }, limit: 2 })).map(({ title }) => title),
    ).toEqual(['Book 0', 'Book 1'])
  })

  test('a default that a migration has changed is the new one at once', async () => {
    const own = await openLibrary()
    const ownCategories = new Categories(own)
    let rounds = 0
    const position = async (): Promise<number> => {
      const work = new UnitOfWork(own)
      work.create(ownCategories, { slug: `given-${(rounds += 1)}`, position: 1 })
      const other = work.create(ownCategories, { slug: `made-${rounds}` })
      await work.flush()
      return other.entity.position
    }
    expect(await position()).toBe(3)
    await own.query(sql`alter table categories alter position set default 9`)
    expect(await position()).toBe(9)
  })

  test('rows of a view get the defaults of its table', async () => {
    const own = await openLibrary()
    await own.query(sql`alter table categories rename to stored_categories`)
    await own.query(sql`create view categories as select * from stored_categories`)
    const work = new UnitOfWork(own)
    work.create(new Categories(own), { slug: 'given', position: 1 })
    const other = work.create(new Categories(own), { slug: 'other' })
    expect((await work.flush()).created).toHaveLength(2)
    expect(other.entity.position).toBe(3)
  })

  test('thousands of rows may refer to one another in a chain, the last of them first', async () => {
    const work = new UnitOfWork(database)
    const key = (n: number): string => `00000000-0000-4000-9000-${String(n).padStart(12, '0')}`
    let next = work.create(categories, { id: key(0), slug: 'chain-0' })
    for (let n = 1; n < 10_000; n += 1) {
      const one = work.create(categories, { id: key(n), slug: `chain-${n}` })
      work.update(categories, next, { parentId: one.ref('id') })
      next = one
    }
    expect((await work.flush()).created).toHaveLength(10_000)
  })

  test('what it writes ends what is cached of the tables, with the commit and not before', async () => {
    const reading = database.db.selectFrom('authors').select('name').where('name', 'like', 'Cached%')
    const [one, two] = await authors.createMany([newAuthor('Cached 1'), newAuthor('Cached 2')])
    expect(await database.cached(reading)).toHaveLength(2)
    await database.transaction(async () => {
      const work = new UnitOfWork(database)
      work.create(authors, newAuthor('Cached 3'))
      work.update(authors, one as Author, { name: 'Cached anew' })
      work.delete(authors, two as Author)
      await work.flush()
    })
    expect((await database.cached(reading)).map(({ name }) => name).toSorted()).toEqual(['Cached 3', 'Cached anew'])
  })
})

test('it works on the embedded PostgreSQL', async () => {
  await using database = await createDatabase<Library>({ redis: false })
  await database.query(sql`create table categories (id uuid primary key default gen_random_uuid(),
    parent_id uuid references categories, slug text not null unique, position int not null default 3)`)
  const categories = new Categories(database)
  const work = new UnitOfWork(database)
  const root = work.create(categories, { slug: 'root' })
  const leaf = work.create(categories, { slug: 'leaf', parentId: root.ref('id') })
  await work.flush()
  expect(leaf.entity).toMatchObject({ parentId: root.entity.id, position: 3 })
})

test('names that plugins change are found', async () => {
  const url = await freshDatabaseUrl('empty')
  await using database = await createDatabase<{ bookShelves: { id: Generated<number>; shelfName: string } }>({
    postgres: { url },
    redis: false,
    plugins: [new CamelCasePlugin()],
  })
  await database.query(sql`create table book_shelves (id serial primary key, shelf_name text not null)`)
  class Shelves extends Repository<{ bookShelves: { id: Generated<number>; shelfName: string } }, 'bookShelves'> {
    constructor() {
      super(database, { table: 'bookShelves', columns: { id: 'id', shelfName: 'shelfName' } })
    }
  }
  const shelves = new Shelves()
  const work = new UnitOfWork(database)
  const shelf = work.create(shelves, { shelfName: 'top' })
  await work.flush()
  expect(shelf.entity).toEqual({ id: 1, shelfName: 'top' })
  const next = new UnitOfWork(database)
  next.update(shelves, shelf.entity, { shelfName: 'bottom' })
  await next.flush()
  expect(await shelves.getById(1)).toEqual({ id: 1, shelfName: 'bottom' })
})

test('it works through the repositories of the domain', async () => {
  const { ProductRepository } = await import('../../src/domain.ts')
  const database = await freshDatabase()
  const products = new ProductRepository(database)
  const work = new UnitOfWork(database)
  const kettle = work.create(products, { sku: 'KIT-1', name: 'Kettle', priceMinor: 4_900 })
  await work.flush()
  expect(await products.findBySku('KIT-1')).toEqual(kettle.entity)
})

test('a mapped value that is written otherwise than it is read can be referred to', async () => {
  interface Numbered {
    parents: { id: string }
    children: { id: string; parent_id: string }
  }
  const url = await freshDatabaseUrl('empty')
  await using database = await createDatabase<Numbered>({ postgres: { url }, redis: false })
  await database.query(sql`create table parents (id bigint primary key)`)
  await database.query(sql`create table children (id bigint primary key, parent_id bigint references parents)`)
  const numbered = <Column extends string>(column: Column) =>
    ({
      column,
      fromColumn: (digits: string) => ({ number: Number(digits.trim()) }),
      toColumn: ({ number }: { number: number }) => number as unknown as string,
    }) as const
  const parentColumns = { id: numbered('id') }
  const childColumns = { id: numbered('id'), parentId: numbered('parent_id') }
  type Id = { readonly number: number }
  class Parents extends Repository<Numbered, 'parents', { readonly id: Id }, typeof parentColumns> {
    constructor() {
      super(database, { table: 'parents', columns: parentColumns })
    }
  }
  class Children extends Repository<
    Numbered,
    'children',
    { readonly id: Id; readonly parentId: Id },
    typeof childColumns
  > {
    constructor() {
      super(database, { table: 'children', columns: childColumns })
    }
  }
  const work = new UnitOfWork(database)
  const parent = work.create(new Parents(), { id: { number: 5 } })
  const child = work.create(new Children(), { id: { number: 6 }, parentId: parent.ref('id') })
  await work.flush()
  expect(child.entity).toEqual({ id: { number: 6 }, parentId: { number: 5 } })
})
