/**
 * `node scripts/bench/pages.ts`: what a page of 20 costs at some depth of a list of 1 000 000 rows with an index in its order, by
 * cursor and by offset. Both are kanta's, and have to give the same rows.
 */

import { deepStrictEqual } from 'node:assert'
import { sql } from 'kysely'
import { startPostgres } from '../../test/support/servers.ts'
import { createDatabase, paginate, paginateByOffset } from '../../src/index.ts'

interface Tables {
  posts: { id: number; title: string; created_at: Date }
}

const rows = 1_000_000
const perPage = 20
const turns = 101

const server = await startPostgres()
const database = await createDatabase<Tables>({ postgres: { url: server.url }, redis: false })
try {
  await database.query(
    sql`create table posts (id int primary key, title text not null, created_at timestamptz not null)`,
  )
  await database.query(sql`insert into posts select n, 'Post ' || n, timestamptz '2026-01-01Z' + n / 2 * interval '1 second'
    from generate_series(1, ${rows}::int) n`)
  await database.query(sql`create index on posts (created_at desc, id desc)`)
  await database.query(sql`vacuum analyze posts`)
  const query = database.db.selectFrom('posts').select(['id', 'title', 'created_at'])
  const ordered = query.orderBy('created_at', 'desc').orderBy('id', 'desc')
  const by = [
    ['created_at', 'desc'],
    ['id', 'desc'],
  ] as const
  const secret = 'a secret of the benchmark'

  console.log('| rows before the page | by cursor, ms | by offset, ms | |\n|---|---|---|---|')
  for (const depth of [0, 1_000, 10_000, 100_000, 900_000]) {
    // The row before the page; ids and times grow together.
    const before = query.where('id', '=', rows - depth + 1)
    const after = depth === 0 ? undefined : (await paginate(before, { by, secret })).endCursor
    const [cursor, offset] = await fastest(
      () => paginate(query, { by, after, limit: perPage, secret }),
      () => paginateByOffset(ordered, { page: depth / perPage + 1, perPage, maxRows: rows }),
    )
    console.log(`| ${depth} | ${cursor.toFixed(2)} | ${offset.toFixed(2)} | ${(offset / cursor).toFixed(1)} × |`)
  }
} finally {
  await database.close()
  await server.stop()
}

interface Page {
  readonly items: readonly unknown[]
}

async function fastest(first: () => Promise<Page>, second: () => Promise<Page>): Promise<[number, number]> {
  deepStrictEqual((await first()).items, (await second()).items)
  return [await fastestOf(first), await fastestOf(second)]
}

/** Whatever else the machine does only makes a turn slower. */
async function fastestOf(work: () => Promise<unknown>): Promise<number> {
  let fastest = Number.POSITIVE_INFINITY
  for (let turn = 0; turn < turns; turn++) fastest = Math.min(fastest, await timed(work))
  return fastest
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const began = performance.now()
  await work()
  return performance.now() - began
}
