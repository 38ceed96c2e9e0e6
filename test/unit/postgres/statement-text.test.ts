import { array, assert, property, string, uniqueArray } from 'fast-check'
import {
  type Compilable,
  DummyDriver,
  type Generated,
  Kysely,
  PostgresAdapter,
  PostgresIntrospector,
  PostgresQueryCompiler,
  sql,
} from 'kysely'
import { expect, test } from 'vitest'
import { StatementTexts, type StatementText } from '../../../src/postgres/statement-text.ts'

interface Tables {
  readonly users: { id: Generated<number>; email: string; name: string; team_id: number | null; tags: string[] }
  readonly teams: { id: Generated<number>; name: string }
}

const db = new Kysely<Tables>({
  dialect: {
    createAdapter: () => new PostgresAdapter(),
    createDriver: () => new DummyDriver(),
    createIntrospector: (of) => new PostgresIntrospector(of),
    createQueryCompiler: () => new PostgresQueryCompiler(),
  },
})

/** What is known of a query that nobody has asked for before. */
function textOf(query: Compilable, texts: StatementTexts = new StatementTexts()): StatementText {
  const compiled = query.compile()
  return texts.get(compiled.sql, compiled.query)
}

const raw = (text: string): Compilable => ({ compile: () => sql.raw(text).compile(db) })

const reads: readonly (readonly [string, Compilable])[] = [
  ['a select', db.selectFrom('users').selectAll()],
  [
    'a select with conditions',
    db.selectFrom('users').select(['id', 'email']).where('id', '=', 1).where('name', 'is', null),
  ],
  ['a select of nothing', db.selectNoFrom((eb) => eb.val(1).as('one'))],
  ['a list of values', db.selectFrom('users').select('id').where('id', 'in', [1, 2, 3])],
  [
    'joins',
    db
      .selectFrom('users')
      .innerJoin('teams', 'teams.id', 'users.team_id')
      .leftJoin('teams as t', (join) => join.onRef('t.id', '=', 'users.team_id').on('t.name', 'like', 'a%'))
      .select(['users.id', 'teams.name']),
  ],
  [
    'a lateral join on a condition',
    db
      .selectFrom('users')
      .innerJoinLateral(
        (eb) => eb.selectFrom('teams').select('teams.id as team').as('x'),
        (join) => join.onRef('x.team', '=', 'users.team_id'),
      )
      .select('team'),
  ],
  ['a subquery', db.selectFrom((eb) => eb.selectFrom('users').select('id').as('u')).select('u.id')],
  [
    'exists',
    db
      .selectFrom('teams')
      .select('id')
      .where((eb) => eb.exists(eb.selectFrom('users').select('users.id'))),
  ],
  [
    'a CTE that reads',
    db
      .with('ids', (w) => w.selectFrom('users').select('id'))
      .selectFrom('ids')
      .selectAll(),
  ],
  [
    'a recursive CTE',
    db
      .withRecursive('tree', (w) => w.selectFrom('teams').select('id').unionAll(w.selectFrom('teams').select('id')))
      .selectFrom('tree')
      .selectAll(),
  ],
  ['a union', db.selectFrom('users').select('name').union(db.selectFrom('teams').select('name'))],
  [
    'an intersection and a difference',
    db
      .selectFrom('users')
      .select('name')
      .intersect(db.selectFrom('teams').select('name'))
      .except(db.selectFrom('teams').select('name')),
  ],
  [
    'grouping',
    db
      .selectFrom('users')
      .select('team_id')
      .groupBy('team_id')
      .having((eb) => eb.fn.countAll(), '>', 1),
  ],
  ['order without direction, limit and offset', db.selectFrom('users').select('id').orderBy('id').limit(10).offset(20)],
  ['distinct on', db.selectFrom('users').distinctOn('team_id').selectAll()],
  ['case', db.selectFrom('users').select((eb) => eb.case().when('id', '>', 1).then('a').else('b').end().as('kind'))],
  ['a cast', db.selectFrom('users').select((eb) => eb.cast('id', 'text').as('id'))],
  [
    'known functions',
    db.selectFrom('users').select((eb) => [eb.fn('lower', ['email']).as('a'), eb.fn.coalesce('name', 'email').as('b')]),
  ],
  [
    'aggregates',
    db
      .selectFrom('users')
      .select((eb) => [
        eb.fn.countAll().as('n'),
        eb.fn.count('id').distinct().as('d'),
        eb.fn.max('id').as('max'),
        eb.fn.min('id').as('min'),
        eb.fn.sum('id').as('sum'),
        eb.fn.avg('id').filterWhere('name', '=', 'x').as('avg'),
      ]),
  ],
  [
    'a window',
    db.selectFrom('users').select((eb) =>
      eb.fn
        .count('id')
        .over((over) => over.partitionBy('team_id'))
        .as('n'),
    ),
  ],
]

test.each(reads)('%s only reads', (_what, query) => {
  expect(textOf(query)).toMatchObject({ isRead: true, isSingle: true })
})

test.each<[string, Compilable]>([
  ['descending order', db.selectFrom('users').select('id').orderBy('id', 'desc').limit(10)],
  [
    'nulls last',
    db
      .selectFrom('users')
      .select('id')
      .orderBy('id', (order) => order.desc().nullsLast()),
  ],
  ['distinct', db.selectFrom('users').select('name').distinct()],
  [
    'a join on true',
    db
      .selectFrom('users')
      .innerJoin('teams', (join) => join.onTrue())
      .select('email'),
  ],
])('%s only reads, although Kysely makes a fragment of it', (_what, query) => {
  expect(textOf(query)).toMatchObject({ isRead: true, isSingle: true })
})

const insert = db.insertInto('teams').values({ name: 'a' }).returning('id')
const merge = db.mergeInto('teams').using('users', 'users.team_id', 'teams.id').whenMatched().thenDelete()
const mergeReturning = merge.returning('teams.id')

test.each<[string, Compilable]>([
  ['an insert', insert],
  [
    'an insert from a select',
    db.insertInto('teams').columns(['name']).expression(db.selectFrom('users').select('name')),
  ],
  ['an update', db.updateTable('users').set({ name: 'a' }).where('id', '=', 1)],
  ['a delete', db.deleteFrom('users').where('id', '=', 1)],
  ['a delete that returns', db.deleteFrom('users').returningAll()],
  ['a merge', merge],
  [
    'a select from a CTE that inserts',
    db
      .with('new', () => insert)
      .selectFrom('new')
      .selectAll(),
  ],
  [
    '… that updates',
    db
      .with('new', (w) => w.updateTable('teams').set({ name: 'b' }).returning('id'))
      .selectFrom('new')
      .selectAll(),
  ],
  [
    '… that deletes',
    db
      .with('gone', (w) => w.deleteFrom('teams').returning('id'))
      .selectFrom('gone')
      .selectAll(),
  ],
  [
    '… that merges',
    db
      // Kysely's types do not know that a CTE may merge.
      .with('merged', () => mergeReturning as never)
      .selectFrom('merged')
      .selectAll(),
  ],
  [
    '… that nobody reads',
    db
      .with('new', () => insert)
      .selectFrom('users')
      .select('id'),
  ],
  [
    'a CTE that inserts inside a subquery',
    db
      .selectFrom('users')
      .select('id')
      .where(
        'id',
        'in',
        db
          .with('new', () => insert)
          .selectFrom('new')
          .select('new.id'),
      ),
  ],
  [
    'a union with a CTE that inserts',
    db
      .selectFrom('teams')
      .select('id')
      .union(
        db
          .with('new', () => insert)
          .selectFrom('new')
          .select('id'),
      ),
  ],
  ['for update', db.selectFrom('users').selectAll().forUpdate()],
  ['for no key update', db.selectFrom('users').selectAll().forNoKeyUpdate()],
  ['for share, skipping what is locked', db.selectFrom('users').selectAll().forShare().skipLocked()],
  ['for key share', db.selectFrom('users').selectAll().forKeyShare().noWait()],
  [
    'for update in a subquery',
    db.selectFrom((eb) => eb.selectFrom('users').select('id').forUpdate().as('u')).selectAll(),
  ],
  ['an unknown function', db.selectNoFrom((eb) => eb.fn('pg_advisory_lock', [eb.val(1)]).as('locked'))],
  [
    'an unknown function in a condition',
    db
      .selectFrom('users')
      .select('id')
      .where((eb) => eb(eb.fn('f', ['id']), '=', 1)),
  ],
  ['an unknown function inside a known one', db.selectNoFrom((eb) => eb.fn('lower', [eb.fn('f', [])]).as('x'))],
  [
    'an unknown function as a table',
    db.selectFrom((eb) => eb.fn<{ id: number }>('take_jobs', [eb.val(1)]).as('job')).selectAll(),
  ],
  ['an unknown aggregate', db.selectFrom('teams').select((eb) => eb.fn.agg('nextval', ['name']).as('next'))],
  ['a fragment in the list', db.selectFrom('users').select(sql`nextval('s')`.as('next'))],
  [
    'a fragment in a condition',
    db
      .selectFrom('users')
      .select('id')
      .where(sql<boolean>`f(id)`),
  ],
  [
    'a fragment as the order',
    db
      .selectFrom('users')
      .select('id')
      .orderBy(sql`f(id)`),
  ],
  [
    'a fragment at the end',
    db
      .selectFrom('users')
      .select('id')
      .modifyEnd(sql`for update`),
  ],
  [
    'a fragment at the front',
    db
      .selectFrom('users')
      .select('id')
      .modifyFront(sql`/*+ x */`),
  ],
  [
    'a fragment among joins',
    db
      .selectFrom('users')
      .innerJoin(sql<{ id: number }>`f()`.as('f'), 'f.id', 'users.id')
      .select('f.id'),
  ],
])('%s is not taken for a read', (_what, query) => {
  expect(textOf(query)).toMatchObject({ isRead: false, isSingle: true })
})

test.each([
  'select 1',
  'SELECT * FROM users',
  'select 1; drop table users',
  'insert into users default values',
  'begin; delete from users; commit',
  '',
])('%j was written by hand: neither one command nor a read', (text) => {
  expect(textOf(raw(text))).toMatchObject({ isRead: false, isSingle: false })
})

test.each([
  "'; delete from users; --",
  'insert into users default values',
  'for update',
  JSON.stringify({ kind: 'RawNode' }),
])('a parameter that looks like SQL (%j) changes nothing', (parameter) => {
  const select = db.selectFrom('users').select('id')
  expect(textOf(select.where('name', '=', parameter))).toMatchObject({ isRead: true })
  expect(textOf(select.where('name', 'in', [parameter, parameter]))).toMatchObject({ isRead: true })
})

test('a parameter that looks like a node changes nothing, and may contain itself', () => {
  const node: Record<string, unknown> = { kind: 'DeleteQueryNode', toOperationNode: 1 }
  node['self'] = node
  const select = db.selectFrom('users').select('id')
  expect(textOf(select.where('tags', '=', node as never)).isRead).toBe(true)
  expect(textOf(select.where('id', 'in', [node, node] as never)).isRead).toBe(true)
})

test('a command of our own is one command and no read', () => {
  expect(new StatementTexts().command('BEGIN')).toMatchObject({ sql: 'BEGIN', isRead: false, isSingle: true, uses: 0 })
})

test('a name depends on the text alone, and fits into 63 bytes', () => {
  assert(
    property(string({ unit: 'binary', maxLength: 200 }), (text) => {
      const { name } = textOf(raw(text))
      expect(name).toBe(new StatementTexts().command(text).name)
      expect(Buffer.byteLength(name)).toBeLessThanOrEqual(63)
      expect(name).toMatch(/^k_[\w-]+$/)
    }),
  )
  // Two releases of a service side by side behind one pooler must mean the same by it.
  expect(new StatementTexts().command('select 1').name).toBe('k_girgfUeDFYvBkSu2I-UQfMkA')
})

test('different texts have different names', () => {
  const similar = array(string({ maxLength: 3 }), { maxLength: 3 }).map((parts) => `select ${parts.join(' ')}`)
  assert(
    property(uniqueArray(similar, { minLength: 2 }), (texts) => {
      const known = new StatementTexts()
      expect(new Set(texts.map((text) => known.command(text).name)).size).toBe(texts.length)
    }),
  )
})

test('a text is known again, with what was noted of it', () => {
  const texts = new StatementTexts()
  const first = textOf(db.selectFrom('users').select('id').where('id', '=', 1), texts)
  first.uses += 1
  expect(textOf(db.selectFrom('users').select('id').where('id', '=', 2), texts)).toBe(first)
  expect(textOf(db.selectFrom('users').select('id').where('id', '>', 2), texts)).not.toBe(first)
  expect(new StatementTexts().command(first.sql)).not.toBe(first)
})

test('2500 texts are surely kept, and one in use for as long as it is', () => {
  const texts = new StatementTexts()
  const hot = texts.command('begin')
  const kept = Array.from({ length: 2_499 }, (_, index) => texts.command(`select ${index}`))
  expect(kept.every((text) => texts.command(text.sql) === text)).toBe(true)
  for (let index = 0; index < 20_000; index += 1) {
    texts.command(`select ${index} + 1`)
    expect(texts.command('begin')).toBe(hot)
  }
  expect(texts.command('select 0')).not.toBe(kept[0])
})
