import * as fc from 'fast-check'
import { CamelCasePlugin, type Generated, Kysely, ParseJSONResultsPlugin, sql } from 'kysely'
import { Client } from 'pg'
import { beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import {
  createDatabase,
  type Database,
  type KeysetPage,
  type OrderTerm,
  type PageRequest,
  paginate,
  paginateByOffset,
  postgresDialect,
} from '../../src/index.ts'
import { closeAfterTest, freshDatabaseUrl } from '../support/database.ts'

interface Row {
  id: number
  small: number | null
  word: string | null
  at: Date | null
  amount: string | null
  big: string | null
  uid: string | null
  ratio: number | null
  mood: 'calm' | 'glad' | 'zany' | null
  raw: Buffer | null
  flag: boolean | null
  day: Date | null
  tags: string[] | null
  span: string | null
}

interface Tables {
  things: Row
  authors: { id: Generated<number>; name: string; born_at: Date | null }
  posts: { id: Generated<number>; author_id: number; title: string; created_at: Generated<Date>; score: number }
}

const schema = `
  create type mood as enum ('zany', 'calm', 'glad');
  create table things (
    id int primary key, small int, word text, at timestamptz, amount numeric, big bigint, uid uuid, ratio float8,
    mood mood, raw bytea, flag boolean, day date, tags text[], span interval
  );
  create table authors (id int generated always as identity primary key, name text not null, born_at timestamptz);
  create table posts (
    id int generated always as identity primary key, author_id int not null references authors, title text not null,
    created_at timestamptz not null default now(), score int not null default 0
  );
  create index posts_newest on posts (created_at desc, id desc);
  create index posts_mixed on posts (created_at desc, id);
`

const isFull = process.env['KANTA_FAULTS'] === 'full'
const patienceMs = isFull ? 300_000 : 20_000

const secret = 'a secret of the tests, and of nothing else'
const refused = { code: 'CURSOR_INVALID' }
const wrong = { code: 'INVALID_ARGUMENT' }

let url = ''
let database: Database<Tables>
/** What is sent, in order. */
const sent: { sql: string; parameters: readonly unknown[] }[] = []

async function open(): Promise<Database<Tables>> {
  return closeAfterTest(
    await createDatabase<Tables>({ postgres: { url }, redis: false, log: ({ query }) => void sent.push(query) }),
  )
}

beforeAll(async () => {
  url = await freshDatabaseUrl('empty')
  database = await open()
  await database.query(sql.raw(schema))
})

async function replaceThings(rows: readonly Partial<Row>[]): Promise<void> {
  await database.query(sql`truncate things`)
  if (rows.length > 0) await database.insertMany('things', rows as Row[])
}

/** All pages one after the other, each asked for with the cursor of the one before. */
async function walk<Item>(
  read: (page: PageRequest) => Promise<KeysetPage<Item>>,
  direction: 'backward' | 'forward',
  between: () => Promise<unknown> = () => Promise.resolve(),
): Promise<Item[]> {
  const isForward = direction === 'forward'
  const items: Item[] = []
  let request: PageRequest = { from: isForward ? 'start' : 'end' }
  for (let pages = 0; ; pages++) {
    expect(pages).toBeLessThan(500)
    const page = await read(request)
    expect(isForward ? page.hasPreviousPage : page.hasNextPage).toBe(pages > 0)
    if (isForward) items.push(...page.items)
    else items.unshift(...page.items)
    if (!(isForward ? page.hasNextPage : page.hasPreviousPage)) return items
    request = isForward ? { after: page.endCursor } : { before: page.startCursor }
    await between()
  }
}

const columns = [
  'small',
  'word',
  'at',
  'amount',
  'big',
  'uid',
  'ratio',
  'mood',
  'raw',
  'flag',
  'day',
  'tags',
  'span',
] as const satisfies readonly (keyof Row)[]

/** Few different values of each, so that there are ties, and those that text could lose. */
const values: Readonly<Record<(typeof columns)[number], readonly unknown[]>> = {
  small: [0, -1, 2_147_483_647, 7],
  word: ['', 'a', 'B', 'null', '"', "'; drop table things; --", 'ä', '["x",null]', '\u0001 \\ %'],
  at: ['2026-01-02 03:04:05.123456+00', '2026-01-02 03:04:05.123457+00', 'infinity', '0044-03-15 00:00:00 BC'],
  amount: ['1', '1.0000000000000000000000000001', '-0.5', 'NaN', '12345678901234567890.5'],
  big: ['9007199254740993', '9007199254740992', '-1'],
  uid: ['00000000-0000-7000-8000-000000000000', 'ffffffff-ffff-4fff-8fff-ffffffffffff'],
  ratio: [0.1, 0.30000000000000004, 0.3, 'Infinity', 'NaN', 5e-324],
  mood: ['zany', 'calm', 'glad'],
  raw: [Buffer.of(), Buffer.of(0), Buffer.of(0, 255), Buffer.from('\\')],
  flag: [true, false],
  day: ['2026-02-28', '-infinity'],
  tags: [[], ['a,b', '"', 'null'], ['']],
  span: ['1 day', '24 hours 1 microsecond', '-3 months'],
}

const anyRow = fc.record(
  Object.fromEntries(columns.map((name) => [name, fc.constantFrom(null, ...values[name])])),
) as fc.Arbitrary<Partial<Row>>
const anyRule = fc.record({ nulls: fc.constantFrom('first' as const, 'last' as const) })
const anyDirection = fc.constantFrom('asc' as const, 'desc' as const)
const anyOrder = fc
  .tuple(
    fc.uniqueArray(fc.tuple(fc.constantFrom(...columns), anyDirection, anyRule), {
      selector: ([name]) => name,
      maxLength: 3,
    }),
    anyDirection,
  )
  .map(([terms, last]): OrderTerm<Tables, 'things'>[] => [...terms, ['things.id', last]])

/** The same order, in words of our own. */
function orderText(order: readonly OrderTerm<Tables, 'things'>[]): string {
  return order
    .map(([name, direction, rule]) => `${name as string} ${direction}${rule ? ` nulls ${rule.nulls}` : ''}`)
    .join(', ')
}

describe('walking through the pages', () => {
  test(
    'gives each row once and in order, forward and backward, whatever the columns, directions and nulls',
    { timeout: patienceMs },
    async () => {
      const { db, cursorSecret } = database
      await fc.assert(
        fc.asyncProperty(
          fc.array(anyRow, { maxLength: 14 }),
          anyOrder,
          fc.integer({ min: 1, max: 6 }),
          async (rows, by, limit) => {
            await replaceThings(rows.map((row, id) => ({ ...row, id })))
            const query = db.selectFrom('things').select('id')
            const read = (page: PageRequest) => paginate(query, { ...page, by, limit, secret: cursorSecret })
            const sorted = await database.query<{ id: number }>(
              sql.raw(`select id from things order by ${orderText(by)}`),
            )
            expect(await walk(read, 'forward')).toEqual(sorted)
            expect(await walk(read, 'backward')).toEqual(sorted)
          },
        ),
        { numRuns: isFull ? 2_000 : 60 },
      )
    },
  )

  test.each(columns)('by %s keeps every value exactly', async (name) => {
    const all = [...values[name], null]
    await replaceThings(all.flatMap((given, index) => [0, 1].map((n) => ({ id: index * 2 + n, [name]: given }))))
    for (const direction of ['asc', 'desc'] as const) {
      const by: OrderTerm<Tables, 'things'>[] = [
        [name, direction, { nulls: 'last' }],
        ['id', direction],
      ]
      const query = database.db.selectFrom('things').select('id')
      const read = (page: PageRequest) => paginate(query, { ...page, by, limit: 1, secret })
      const sorted = await database.query<{ id: number }>(sql.raw(`select id from things order by ${orderText(by)}`))
      expect(await walk(read, 'forward')).toEqual(sorted)
      expect(await walk(read, 'backward')).toEqual(sorted)
    }
  })

  test(
    'neither loses nor doubles a row that is there all the while, whatever is inserted and deleted between pages',
    { timeout: patienceMs },
    async () => {
      const { db } = database
      const change = fc.record({ deleted: fc.nat({ max: 40 }), inserted: fc.array(anyRow, { maxLength: 4 }) })
      await fc.assert(
        fc.asyncProperty(
          fc.array(fc.record({ row: anyRow, stays: fc.boolean() }), { minLength: 1, maxLength: 20 }),
          fc.array(change, { maxLength: 12 }),
          anyOrder,
          fc.integer({ min: 1, max: 4 }),
          fc.constantFrom('backward' as const, 'forward' as const),
          async (rows, changes, by, limit, direction) => {
            await replaceThings(rows.map(({ row }, id) => ({ ...row, id })))
            const staying = rows.flatMap(({ stays }, id) => (stays ? [id] : []))
            let next = rows.length
            const between = async (): Promise<void> => {
              const { deleted, inserted } = changes.shift() ?? { deleted: 0, inserted: [] }
              await db
                .deleteFrom('things')
                .where('id', '>=', deleted)
                .where('id', '<', deleted + 5)
                .where('id', 'not in', [...staying, -1])
                .execute()
              if (inserted.length > 0) {
                await database.insertMany('things', inserted.map((row) => ({ ...row, id: next++ })) as Row[])
              }
            }
            const query = db.selectFrom('things').select('id')
            const read = (page: PageRequest) => paginate(query, { ...page, by, limit, secret })
            const seen = (await walk(read, direction, between)).map(({ id }) => id)
            expect(new Set(seen).size).toBe(seen.length)
            expect(staying.filter((id) => !seen.includes(id))).toEqual([])
          },
        ),
        { numRuns: isFull ? 2_000 : 50 },
      )
    },
  )

  test('goes on where it was after the row of the cursor is gone', async () => {
    await replaceThings([1, 2, 3, 4].map((id) => ({ id })))
    const query = database.db.selectFrom('things').select('id')
    const read = (page: PageRequest) => paginate(query, { ...page, by: [['id', 'asc']], limit: 2, secret })
    const { endCursor } = await read({})
    await database.db.deleteFrom('things').where('id', '<=', 2).execute()
    const page = await read({ after: endCursor })
    expect(page.items).toEqual([{ id: 3 }, { id: 4 }])
    expect(page).toMatchObject({ hasNextPage: false, hasPreviousPage: true })
    expect((await read({ before: page.startCursor })).items).toEqual([])
  })

  test('a page without rows has no cursors', async () => {
    await replaceThings([])
    const page = await paginate(database.db.selectFrom('things').selectAll(), { by: [['id', 'asc']], secret })
    expect(page).toEqual({
      items: [],
      hasNextPage: false,
      hasPreviousPage: false,
      startCursor: undefined,
      endCursor: undefined,
    })
  })
})

describe('any typed query', () => {
  beforeAll(async () => {
    await database.query(sql`insert into authors (name, born_at)
      select 'Author ' || n, case when n % 2 = 0 then timestamptz '1980-01-01' + n * interval '1 day' end
        from generate_series(1, 5) n`)
    await database.query(sql`insert into posts (author_id, title, created_at, score)
      select 1 + n % 5, 'Post ' || n, timestamptz '2026-01-01' + n / 3 * interval '1 microsecond', n % 7
        from generate_series(1, 20000) n`)
    await database.query(sql`analyze posts`)
  })

  test('a join under other names, with a condition, pages to items that are just what was selected', async () => {
    const query = database.db
      .selectFrom('posts as p')
      .innerJoin('authors as a', 'a.id', 'p.author_id')
      .select(['p.title', 'a.name as author'])
      .where((eb) => eb.or([eb('p.score', '=', 3), eb('p.score', '=', 4)]))
      .where('p.id', '<=', 70)
    const by = [
      ['a.name', 'asc'],
      ['p.created_at', 'desc'],
      ['p.id', 'desc'],
    ] as const
    const items = await walk((page) => paginate(query, { ...page, by, limit: 3, secret }), 'forward')
    expect(items).toEqual(
      await query.orderBy('a.name').orderBy('p.created_at', 'desc').orderBy('p.id', 'desc').execute(),
    )
    expect(items).toHaveLength(20)
    expect(Object.keys(items[0] ?? {})).toEqual(['title', 'author'])
  })

  test('an outer join with columns that are null for want of a row', async () => {
    const query = database.db
      .selectFrom('authors')
      .leftJoin('posts', (join) => join.onRef('posts.author_id', '=', 'authors.id').on('posts.id', 'in', [1, 2, 6]))
      .select(['authors.id', 'posts.title'])
    const by = [
      ['posts.title', 'desc', { nulls: 'first' }],
      ['authors.id', 'asc'],
    ] as const
    const read = (page: PageRequest) => paginate(query, { ...page, by, limit: 1, secret })
    const sorted = await query
      .orderBy(sql`posts.title desc nulls first`)
      .orderBy('authors.id')
      .execute()
    expect(await walk(read, 'forward')).toEqual(sorted)
    expect(await walk(read, 'backward')).toEqual(sorted)
  })

  test('an order by an expression, and a cursor of it only where its parameters are the same', async () => {
    const query = database.db.selectFrom('posts').select('id').where('id', '<', 30)
    const read = (divisor: number, page: PageRequest) =>
      paginate(query, {
        ...page,
        by: [
          [sql<number>`posts.id % ${divisor}::int`.as('rest'), 'asc'],
          ['id', 'desc'],
        ],
        limit: 4,
        secret,
      })
    const sorted = await query
      .orderBy(sql`id % 5`)
      .orderBy('id', 'desc')
      .execute()
    expect(await walk((page) => read(5, page), 'forward')).toEqual(sorted)
    const { endCursor } = await read(5, {})
    await expect(read(6, { after: endCursor })).rejects.toMatchObject(refused)
  })

  test('a selected column of the same name as one of the order does not change the order', async () => {
    const query = database.db
      .selectFrom('posts')
      .select(sql<number>`-posts.id`.as('id'))
      .where('posts.id', '<', 9)
    const items = await walk((page) => paginate(query, { ...page, by: [['id', 'asc']], limit: 3, secret }), 'forward')
    expect(items.map(({ id }) => id)).toEqual([-1, -2, -3, -4, -5, -6, -7, -8])
  })

  test('a condition written by hand stays a condition of its own', async () => {
    const query = database.db
      .selectFrom('posts')
      .select('id')
      .where(sql<boolean>`id < 3 or id > 19998`)
      .where('score', '>=', 0)
    const items = await walk((page) => paginate(query, { ...page, by: [['id', 'asc']], limit: 1, secret }), 'forward')
    expect(items.map(({ id }) => id)).toEqual([1, 2, 19_999, 20_000])
  })

  test('groups, distinct rows, and what is wrapped', async () => {
    const { db } = database
    const grouped = db
      .selectFrom('posts')
      .select(({ fn }) => ['author_id', fn.max('score').as('best')])
      .groupBy('author_id')
    const byAuthor = await walk(
      (page) => paginate(grouped, { ...page, by: [['author_id', 'desc']], limit: 2, secret }),
      'forward',
    )
    expect(byAuthor.map(({ author_id }) => author_id)).toEqual([5, 4, 3, 2, 1])
    const distinct = db.selectFrom('posts').select('score').distinct()
    const scores = await walk(
      (page) => paginate(distinct, { ...page, by: [['score', 'asc']], limit: 2, secret }),
      'forward',
    )
    expect(scores.map(({ score }) => score)).toEqual([0, 1, 2, 3, 4, 5, 6])
    const wrapped = db.selectFrom(grouped.as('page')).selectAll()
    const by = [
      ['page.best', 'asc'],
      ['page.author_id', 'asc'],
    ] as const
    const byBest = await walk((page) => paginate(wrapped, { ...page, by, limit: 2, secret }), 'backward')
    expect(byBest).toHaveLength(5)
  })

  test('in a transaction it sees what the transaction has done', async () => {
    const query = database.db.selectFrom('authors').select('name')
    const last = () => paginate(query, { by: [['id', 'asc']], from: 'end', limit: 1, secret })
    const undone = database.transaction(async () => {
      await database.db.insertInto('authors').values({ name: 'Newcomer', born_at: null }).execute()
      expect((await last()).items).toEqual([{ name: 'Newcomer' }])
      throw new Error('changed my mind')
    })
    await expect(undone).rejects.toThrow('changed my mind')
    expect((await last()).items).toEqual([{ name: 'Author 5' }])
  })

  test('on a Kysely of one’s own, with a schema and with plugins', async () => {
    const db = new Kysely<{ posts: { id: number; authorId: number; createdAt: Date } }>({
      dialect: postgresDialect({ url }),
      plugins: [new CamelCasePlugin(), new ParseJSONResultsPlugin()],
    })
    onTestFinished(() => db.destroy())
    const query = db.withSchema('public').selectFrom('posts').select(['id', 'authorId']).where('id', '<=', 10)
    const by = [
      ['posts.authorId', 'asc'],
      ['id', 'desc'],
    ] as const
    const read = (page: PageRequest) => paginate(query, { ...page, by, limit: 3, secret })
    const sorted = await query.orderBy('authorId').orderBy('id', 'desc').execute()
    expect(await walk(read, 'forward')).toEqual(sorted)
    expect(await walk(read, 'backward')).toEqual(sorted)
    const { endCursor } = await read({})
    const elsewhere = paginate(db.selectFrom('posts').select('id'), { by, after: endCursor, secret })
    await expect(elsewhere).rejects.toMatchObject(refused)
  })

  const orders: readonly { readonly name: string; readonly by: readonly OrderTerm<Tables, 'posts'>[] }[] = [
    {
      name: 'all in one direction',
      by: [
        ['created_at', 'desc'],
        ['id', 'desc'],
      ],
    },
    {
      name: 'the same from the end',
      by: [
        ['created_at', 'asc'],
        ['id', 'asc'],
      ],
    },
    {
      name: 'mixed directions',
      by: [
        ['created_at', 'desc'],
        ['id', 'asc'],
      ],
    },
    {
      name: 'mixed directions from the end',
      by: [
        ['created_at', 'asc'],
        ['id', 'desc'],
      ],
    },
  ]
  test.each(orders)('a deep page is read from the index: $name', async ({ by }) => {
    const query = database.db.selectFrom('posts').select(['id', 'title'])
    const { endCursor } = await paginate(query.where('id', '=', 5_000), { by, limit: 1, secret })
    sent.length = 0
    await paginate(query, { by, limit: 10, after: endCursor, secret })
    const plan = nodes(await explain(sent[0]))
    const scan = plan.find((node) => node['Node Type'] === 'Index Scan')
    expect(plan.map((node) => node['Node Type'])).toEqual(['Limit', 'Index Scan'])
    expect(scan).toMatchObject({ 'Actual Rows': 11, 'Index Cond': expect.stringMatching(/created_at/) as string })
    // At most those of the same time.
    expect(Number(scan?.['Rows Removed by Filter'] ?? 0)).toBeLessThanOrEqual(3)
  })
})

describe('what cannot be paged', () => {
  const by = [['id', 'asc']] as const

  test('a null where none was declared is told with what to declare, and no value', async () => {
    await replaceThings([{ id: 1, word: 'secret' }, { id: 2 }, { id: 3, word: 'secret' }])
    const query = database.db.selectFrom('things').select('id')
    const read = (nulls?: 'first' | 'last' | 'none') => {
      const order = [
        ['word', 'asc', nulls && { nulls }],
        ['id', 'asc'],
      ] as unknown as OrderTerm<Tables, 'things'>[]
      return paginate(query, { by: order, limit: 2, secret })
    }
    for (const nulls of [undefined, 'none' as const]) {
      await expect(read(nulls)).rejects.toMatchObject({
        ...wrong,
        message: `paginate: "word" has a null. Declare where nulls stand: { nulls: 'last' } or { nulls: 'first' }.`,
      })
    }
    expect((await read('last')).items).toEqual([{ id: 1 }, { id: 3 }])
    expect((await read('first')).items).toEqual([{ id: 2 }, { id: 1 }])
  })

  test('the word null is no null', async () => {
    await replaceThings([{ id: 1, word: 'null' }])
    const order = [['word', 'asc', { nulls: 'none' }]] as const
    const page = await paginate(database.db.selectFrom('things').select('word'), { by: order, secret })
    expect(page.items).toEqual([{ word: 'null' }])
  })

  test('an order in which two rows are the same, since one of them would be lost at the end of a page', async () => {
    await replaceThings([1, 2, 3].map((id) => ({ id, small: 7 })))
    const order = [['small', 'asc', { nulls: 'none' }]] as const
    const page = paginate(database.db.selectFrom('things').select('id'), { by: order, limit: 2, secret })
    await expect(page).rejects.toMatchObject(wrong)
    await expect(page).rejects.toThrow(/unique column at the end/)
  })

  const things = () => database.db.selectFrom('things').select('id')

  test.each([
    ['an order of its own', () => things().orderBy('id')],
    ['a limit', () => things().limit(3)],
    ['an offset', () => things().offset(3)],
    ['a fetch clause', () => things().fetch(3)],
    ['a union', () => things().union(things())],
    ['distinct on', () => things().distinctOn('small')],
    ['a window', () => things().select(({ fn }) => fn.countAll().over().as('all'))],
  ])('a query with %s is refused before anything is sent', async (_, query) => {
    sent.length = 0
    await expect(paginate(query(), { by, secret })).rejects.toMatchObject(wrong)
    expect(sent).toEqual([])
  })

  test.each([
    ['a limit of 0', { limit: 0 }],
    ['a limit that is negative', { limit: -1 }],
    ['half a row', { limit: 1.5 }],
    ['a limit as text', { limit: '20' }],
    ['no number', { limit: Number.NaN }],
    ['a limit without end', { limit: Number.POSITIVE_INFINITY }],
    ['a limit over the usual most', { limit: 101 }],
    ['a limit over its own most', { limit: 6, maxLimit: 5 }],
    ['both cursors', { after: 'x', before: 'x' }],
    ['a cursor, and where to begin', { after: 'x', from: 'start' }],
    ['a beginning in the middle', { from: 'middle' }],
    ['an option that does not exist', { afterr: 'x' }],
    ['__proto__ as an option', JSON.parse('{"__proto__": {"limit": 1}}')],
    ['no order', { by: [] }],
    ['an order as text', { by: 'id' }],
    ['a column that is no name', { by: [['', 'asc']] }],
    ['a column of too many parts', { by: [['a.b.c.d', 'asc']] }],
    ['a column that is an object', { by: [[{ toString: () => 'id' }, 'asc']] }],
    ['an expression without a name', { by: [[sql`id`, 'asc']] }],
    ['a name by hand that could be another', { by: [[sql`id`.as('x'), 'asc']] }],
    ['a number, which is the place of a column', { by: [[sql`1`.as('x'), 'asc']] }],
    [
      'the same by another way',
      {
        by: [
          [sql.lit(1).as('x'), 'asc'],
          ['id', 'asc'],
        ],
      },
    ],
    ['a direction with more in it', { by: [['id', 'asc; drop table things']] }],
    ['a rule that is none', { by: [['id', 'asc', { nulls: 'middle' }]] }],
    [
      'a column twice',
      {
        by: [
          ['id', 'asc'],
          ['id', 'desc'],
        ],
      },
    ],
    ['no secret', { secret: undefined }],
    ['a secret that is too short', { secret: 'short' }],
    ['no secret in the list', { secret: [] }],
  ])('%s is refused before anything is sent', async (_, options: object) => {
    sent.length = 0
    await expect(paginate(things(), { by, secret, ...options })).rejects.toMatchObject(wrong)
    expect(sent).toEqual([])
  })

  test('of several tables, a column without a table', async () => {
    const query = database.db.selectFrom('posts').innerJoin('authors', 'authors.id', 'posts.author_id').select('title')
    await expect(paginate(query, { by: [['title', 'asc']], secret })).rejects.toThrow(/Say which/)
  })

  test('an expression over rows that are grouped', async () => {
    const query = database.db.selectFrom('posts').select('author_id').groupBy('author_id')
    const order = [[sql<number>`count(*)`.as('posts'), 'desc']] as const
    await expect(paginate(query, { by: order, secret })).rejects.toThrow(/db.selectFrom\(query.as\('page'\)\)/)
  })
})

describe('cursors from a query string', () => {
  const by = [['id', 'asc']] as const
  const page = (after: unknown) =>
    paginate(database.db.selectFrom('things').select('id'), { by, after: after as string, limit: 1, secret })

  test.each([
    ['empty', ''],
    ['a word', 'abc'],
    ['SQL', "' or 1=1 --"],
    ['__proto__', '__proto__'],
    ['a number', 17],
    ['true', true],
    ['a list', ['a', 'b']],
    ['an object', { gt: '' }],
    ['100 kB long', 'A'.repeat(100_000)],
    ['unsigned', Buffer.from('["1"]').toString('base64url')],
  ])('that are %s are refused before anything is sent', async (_, after) => {
    sent.length = 0
    await expect(page(after)).rejects.toMatchObject(refused)
    expect(sent).toEqual([])
  })

  test('that are cut, or of another order, direction, rule, table, name or secret, are refused', async () => {
    await replaceThings([1, 2, 3].map((id) => ({ id, small: id })))
    const { db } = database
    const cursor = (await page(undefined)).endCursor ?? ''
    expect((await page(cursor)).items).toEqual([{ id: 2 }])
    const things = db.selectFrom('things').select('id')
    const all = { after: cursor, secret }
    const others = [
      page(cursor.slice(0, -1)),
      page(cursor.slice(1)),
      page(`${cursor}A`),
      paginate(things, { ...all, by: [['id', 'desc']] }),
      paginate(things, { ...all, by: [['id', 'asc', { nulls: 'last' }]] }),
      paginate(things, { ...all, by: [['small', 'asc', { nulls: 'none' }]] }),
      paginate(things, { ...all, by: [...by, ['small', 'asc', { nulls: 'none' }]] }),
      paginate(db.selectFrom('posts').select('id'), { ...all, by }),
      paginate(db.selectFrom('things as t').select('id'), { ...all, by }),
      paginate(things, { ...all, by, secret: `another, and ${secret}` }),
      paginate(things, { ...all, by, secret: database.cursorSecret }),
    ]
    const outcomes = await Promise.allSettled(others)
    expect(outcomes.map((outcome) => 'reason' in outcome && (outcome.reason as Error))).toEqual(
      others.map(() => expect.objectContaining(refused) as unknown),
    )
    const rotated = paginate(things, { ...all, by, limit: 1, secret: [`another, and ${secret}`, secret] })
    expect((await rotated).items).toEqual([{ id: 2 }])
  })

  test('reach the server as parameters and nothing else', async () => {
    await replaceThings([
      { id: 1, word: "x'); drop table things; --" },
      { id: 2, word: 'y' },
    ])
    const order = [
      ['word', 'asc', { nulls: 'none' }],
      ['id', 'asc'],
    ] as const
    const read = (request: PageRequest) =>
      paginate(database.db.selectFrom('things').select('id'), { ...request, by: order, limit: 1, secret })
    const { endCursor } = await read({})
    sent.length = 0
    expect((await read({ after: endCursor })).items).toEqual([{ id: 2 }])
    expect(sent[0]?.sql).not.toContain('drop')
    expect(sent[0]?.parameters).toEqual(["x'); drop table things; --", '1', 2])
  })
})

describe('pages by number', () => {
  beforeAll(async () => {
    await replaceThings(Array.from({ length: 25 }, (_, id) => ({ id, small: id % 4 })))
  })
  const things = () => database.db.selectFrom('things').select('id').orderBy('id')

  test('are parts of the list, and say whether there are more and how many in all', async () => {
    expect(await paginateByOffset(things(), { page: 2, perPage: 10 })).toEqual({
      items: Array.from({ length: 10 }, (_, index) => ({ id: 10 + index })),
      page: 2,
      perPage: 10,
      hasNextPage: true,
    })
    const last = await paginateByOffset(things(), { page: 3, perPage: 10, total: true })
    expect(last).toMatchObject({ hasNextPage: false, total: 25, items: [20, 21, 22, 23, 24].map((id) => ({ id })) })
    expect(await paginateByOffset(things())).toMatchObject({ page: 1, perPage: 20, hasNextPage: true })
  })

  test('after the last and of nothing have no items and the right total', async () => {
    expect(await paginateByOffset(things(), { page: 9, total: true })).toMatchObject({ items: [], total: 25 })
    const nothing = things().where('id', '<', 0)
    expect(await paginateByOffset(nothing, { total: true })).toMatchObject({ items: [], total: 0, hasNextPage: false })
  })

  test('the total is of groups and of distinct rows where the query gives those', async () => {
    const { db } = database
    const groups = db.selectFrom('things').select('small').groupBy('small').orderBy('small')
    expect(await paginateByOffset(groups, { perPage: 3, total: true })).toMatchObject({ total: 4, hasNextPage: true })
    const distinct = db.selectFrom('things').select('small').distinct().orderBy('small')
    expect(await paginateByOffset(distinct, { perPage: 3, total: true })).toMatchObject({ total: 4 })
    const union = things().clearOrderBy().union(things().clearOrderBy()).orderBy('id')
    expect(await paginateByOffset(union, { perPage: 3 })).toMatchObject({ items: [{ id: 0 }, { id: 1 }, { id: 2 }] })
    await expect(paginateByOffset(union, { perPage: 3, total: true })).rejects.toMatchObject(wrong)
  })

  test('the total is counted in the statement of the page', async () => {
    sent.length = 0
    await paginateByOffset(things(), { page: 2, perPage: 5, total: true })
    expect(sent).toHaveLength(1)
  })

  test.each([
    ['page 0', { page: 0 }],
    ['a page as text', { page: '2' }],
    ['half a page', { page: 1.5 }],
    ['a page without end', { page: 1e308 }],
    ['nothing on a page', { perPage: 0 }],
    ['too much on a page', { perPage: 101 }],
    ['a page that is too deep', { page: 501 }],
    ['an option that does not exist', { limit: 3 }],
  ])('%s is refused before anything is sent', async (_, options: object) => {
    sent.length = 0
    await expect(paginateByOffset(things(), options)).rejects.toMatchObject(wrong)
    expect(sent).toEqual([])
  })

  test.each([
    ['without order', () => things().clearOrderBy()],
    ['with a limit', () => things().limit(3)],
    ['with an offset', () => things().offset(3)],
  ])('a query %s is refused', async (_, query) => {
    await expect(paginateByOffset(query())).rejects.toMatchObject(wrong)
  })
})

type PlanNode = Readonly<Record<string, unknown>> & { readonly Plans?: readonly PlanNode[] }

/** The plan of a statement as it was sent, with what running it took. */
async function explain(query: { sql: string; parameters: readonly unknown[] } | undefined): Promise<PlanNode> {
  const client = new Client({ connectionString: url })
  await client.connect()
  try {
    await client.query('set plan_cache_mode = force_generic_plan')
    const text = `explain (analyze, format json, costs off, timing off) ${query?.sql}`
    const { rows } = await client.query<{ 'QUERY PLAN': [{ Plan: PlanNode }] }>({
      name: 'page',
      text,
      values: [...(query?.parameters ?? [])],
    })
    return rows[0]?.['QUERY PLAN'][0].Plan as PlanNode
  } finally {
    await client.end()
  }
}

function nodes(plan: PlanNode): readonly PlanNode[] {
  return [plan, ...(plan.Plans ?? []).flatMap(nodes)]
}
