/** A schema with all that matters to the order of writing: versions, soft deletion, trees, and circles of foreign keys. */

import { type Generated, type GeneratedAlways, type Selectable, sql } from 'kysely'
import { createDatabase, type Database, type QuerySource, Repository, type StandardSchema } from '../../src/index.ts'
import { closeAfterTest, freshDatabaseUrl } from './database.ts'

export interface Library {
  authors: {
    id: Generated<string>
    email: string
    name: string
    version: Generated<number>
    updated_at: Generated<Date>
    deleted_at: Date | null
  }
  books: {
    id: GeneratedAlways<number>
    author_id: string
    title: string
    isbn: string | null
    stock: Generated<number>
    tags: Generated<string[]>
    details: Generated<{ readonly pages?: number }>
    version: Generated<number>
  }
  loans: { book_id: number; place: number; reader: string | null }
  categories: { id: Generated<string>; parent_id: string | null; slug: string; position: Generated<number> }
  departments: { id: Generated<number>; name: string; head_id: number | null }
  employees: { id: Generated<number>; name: string; department_id: number }
  lefts: { id: Generated<number>; right_id: number }
  rights: { id: Generated<number>; left_id: number }
  yins: { id: Generated<number>; yang_id: number }
  yangs: { id: Generated<number>; yin_id: number }
  counters: { id: Generated<number> }
}

const librarySchema = `
  create table authors (
    id uuid primary key default gen_random_uuid(), email text not null constraint authors_email_key unique, name text not null,
    version int not null default 1, updated_at timestamptz(3) not null default '2020-01-01Z', deleted_at timestamptz(3));
  create table books (
    id int generated always as identity primary key, author_id uuid not null constraint books_author_id_fkey references authors,
    title text not null, isbn text constraint books_isbn_key unique, stock int not null default 7 check (stock >= 0),
    tags text[] not null default '{}', details jsonb not null default '{}', version int not null default 1);
  create table loans (
    book_id int references books on delete cascade, place int, reader text, primary key (book_id, place));
  create table categories (
    id uuid primary key default gen_random_uuid(), parent_id uuid references categories on delete restrict,
    slug text not null constraint categories_slug_key unique, position int not null default 3);
  create table departments (id serial primary key, name text not null, head_id int);
  create table employees (id serial primary key, name text not null, department_id int not null references departments);
  alter table departments add constraint departments_head_id_fkey foreign key (head_id) references employees;
  create table lefts (id serial primary key, right_id int not null);
  create table rights (id serial primary key, left_id int not null references lefts deferrable);
  alter table lefts add constraint lefts_right_id_fkey foreign key (right_id) references rights deferrable;
  create table yins (id serial primary key, yang_id int not null);
  create table yangs (id serial primary key, yin_id int not null references yins);
  alter table yins add constraint yins_yang_id_fkey foreign key (yang_id) references yangs;
  create table counters (id serial primary key)`

type Source = QuerySource<Library>

const authorColumns = {
  id: 'id',
  email: 'email',
  name: 'name',
  version: 'version',
  updatedAt: 'updated_at',
} as const

export interface Author {
  readonly id: string
  readonly email: string
  readonly name: string
  readonly version: number
  readonly updatedAt: Date
}

export class Authors extends Repository<Library, 'authors', Author, typeof authorColumns> {
  constructor(database: Source, validate: { create?: StandardSchema; update?: StandardSchema } = {}) {
    super(database, { table: 'authors', columns: authorColumns, version: 'version', updatedAt: 'updatedAt', validate })
  }
}

const erasableColumns = {
  id: 'id',
  email: 'email',
  name: 'name',
  version: 'version',
  updatedAt: 'updated_at',
  deletedAt: 'deleted_at',
} as const

/** The authors, for whom deletion is a mark. */
export class ErasableAuthors extends Repository<
  Library,
  'authors',
  Author & { readonly deletedAt: Date | null },
  typeof erasableColumns
> {
  constructor(database: Source) {
    const marks = { version: 'version', updatedAt: 'updatedAt', deletedAt: 'deletedAt' } as const
    super(database, { table: 'authors', columns: erasableColumns, ...marks })
  }
}

const bookColumns = {
  id: 'id',
  authorId: 'author_id',
  title: 'title',
  isbn: 'isbn',
  stock: 'stock',
  tags: 'tags',
  details: 'details',
  version: 'version',
} as const

export interface Book {
  readonly id: number
  readonly authorId: string
  readonly title: string
  readonly isbn: string | null
  readonly stock: number
  readonly tags: string[]
  readonly details: { readonly pages?: number }
  readonly version: number
}

export class Books extends Repository<Library, 'books', Book, typeof bookColumns> {
  constructor(database: Source, validate: { create?: StandardSchema; update?: StandardSchema } = {}) {
    super(database, { table: 'books', columns: bookColumns, version: 'version', validate })
  }
}

const loanColumns = { book_id: 'book_id', place: 'place', reader: 'reader' } as const

export class Loans extends Repository<
  Library,
  'loans',
  Selectable<Library['loans']>,
  typeof loanColumns,
  'book_id' | 'place'
> {
  constructor(database: Source) {
    super(database, { table: 'loans', columns: loanColumns, key: ['book_id', 'place'] })
  }
}

const categoryColumns = { id: 'id', parentId: 'parent_id', slug: 'slug', position: 'position' } as const

export interface LibraryCategory {
  readonly id: string
  readonly parentId: string | null
  readonly slug: string
  readonly position: number
}

export class Categories extends Repository<Library, 'categories', LibraryCategory, typeof categoryColumns> {
  constructor(database: Source, validate: { create?: StandardSchema } = {}) {
    super(database, { table: 'categories', columns: categoryColumns, validate })
  }
}

export class Departments extends Repository<Library, 'departments'> {
  constructor(database: Source) {
    super(database, { table: 'departments', columns: { id: 'id', name: 'name', head_id: 'head_id' } })
  }
}

export class Employees extends Repository<Library, 'employees'> {
  constructor(database: Source) {
    super(database, { table: 'employees', columns: { id: 'id', name: 'name', department_id: 'department_id' } })
  }
}

export class Lefts extends Repository<Library, 'lefts'> {
  constructor(database: Source) {
    super(database, { table: 'lefts', columns: { id: 'id', right_id: 'right_id' } })
  }
}

export class Rights extends Repository<Library, 'rights'> {
  constructor(database: Source) {
    super(database, { table: 'rights', columns: { id: 'id', left_id: 'left_id' } })
  }
}

export class Yins extends Repository<Library, 'yins'> {
  constructor(database: Source) {
    super(database, { table: 'yins', columns: { id: 'id', yang_id: 'yang_id' } })
  }
}

export class Yangs extends Repository<Library, 'yangs'> {
  constructor(database: Source) {
    super(database, { table: 'yangs', columns: { id: 'id', yin_id: 'yin_id' } })
  }
}

export class Counters extends Repository<Library, 'counters'> {
  constructor(database: Source) {
    super(database, { table: 'counters', columns: { id: 'id' } })
  }
}

/** An open database with these tables, closed after the test by itself. */
export async function openLibrary(): Promise<Database<Library>> {
  const url = await freshDatabaseUrl('empty')
  const database = await createDatabase<Library>({ postgres: { url }, redis: false })
  closeAfterTest(database)
  await database.transaction(async () => {
    for (const statement of librarySchema.split(';')) await database.query(sql.raw(statement))
  })
  return database
}
