import type { Client } from 'pg'
import type { Operations } from './contender.ts'
import {
  commentColumns,
  exportSize,
  pageSize,
  paymentColumns,
  postColumns,
  rowCounts,
  statements,
  userColumns,
} from './data-set.ts'
import type { Random } from './statistics.ts'

/** One kind of work, done by every contender that has the operation for it. */
export interface Workload {
  readonly name: string
  readonly title: string
  /** Calls under way at any time. */
  readonly callers: number
  /** One call with random arguments; undefined where the contender cannot do it. */
  bind(operations: Operations, random: Random): (() => Promise<unknown>) | undefined
  /** Does the work once with fixed arguments, and takes from its results what they must hold. */
  sample(operations: Operations): Promise<unknown>
  /** What `sample` must have given, asked of the server after it. */
  expected(client: Client): Promise<unknown>
  /** Brings the tables back to how the next round must find them. */
  reset?(client: Client): Promise<void>
  /** The same work as a script of pgbench, to show how far the machine goes. */
  readonly pgbench: PgbenchScript
}

/** A script of pgbench and how it is run. */
export interface PgbenchScript {
  readonly script: string
  readonly clients: number
  /** Show it with eight executions in one pipeline as well. */
  readonly pipelined?: boolean
}

const sampleIds = [1, 4711, rowCounts.users, -1]

const readByKey = {
  bind: ({ readUser }, random) => readUser && (() => readUser(random(rowCounts.users))),
  async sample({ readUser }) {
    const users = await Promise.all(sampleIds.map(async (id) => readUser?.(id)))
    // Some say null for a row that is not there.
    return users.map((user) => (user ? pick(user, userColumns) : undefined))
  },
  async expected(client) {
    const users: unknown[] = []
    for (const id of sampleIds) users.push((await client.query(statements.readUser, [id])).rows[0])
    return users
  },
} satisfies Partial<Workload>

const pgbenchRead = `\\set id random(1, ${rowCounts.users})\n${statements.readUser.replace('$1', ':id')};\n`

/** All workloads in the order of the report. */
export const workloads: readonly Workload[] = [
  {
    ...readByKey,
    name: 'reads',
    title: 'Read by key, 32 at once',
    callers: 32,
    pgbench: { script: pgbenchRead, clients: 8, pipelined: true },
  },
  {
    ...readByKey,
    name: 'lone-read',
    title: 'Read by key, one at a time',
    callers: 1,
    pgbench: { script: pgbenchRead, clients: 1 },
  },
  {
    name: 'page',
    title: `Page of ${pageSize} joined rows, 8 at once`,
    callers: 8,
    bind: ({ readPage }, random) => readPage && (() => readPage(pageSize + random(rowCounts.posts - pageSize))),
    async sample({ readPage }) {
      return (await readPage?.(30_000))?.map((row) => pick(row, postColumns))
    },
    expected: async (client) => (await client.query(statements.readPage, [30_000])).rows,
    pgbench: {
      script: `\\set before random(${pageSize + 1}, ${rowCounts.posts})\n${oneLine(statements.readPage).replace('$1', ':before')};\n`,
      clients: 8,
    },
  },
  {
    name: 'rows-1000',
    title: `Result of ${exportSize} rows, 8 at once`,
    callers: 8,
    bind: ({ readExport }, random) => readExport && (() => readExport(random(rowCounts.payments - exportSize))),
    async sample({ readExport }) {
      return (await readExport?.(12_345))?.map((row) => pick(row, paymentColumns))
    },
    expected: async (client) => (await client.query(statements.readExport, [12_345])).rows,
    pgbench: {
      script: `\\set after random(1, ${rowCounts.payments - exportSize})\n${statements.readExport.replace('$1', ':after')};\n`,
      clients: 8,
    },
  },
  {
    name: 'insert',
    title: 'Insert returning the row, 16 at once',
    callers: 16,
    bind: ({ addComment }, random) =>
      addComment &&
      (() =>
        addComment({
          post_id: random(rowCounts.posts),
          author_id: random(rowCounts.users),
          body: 'A remark of the usual length about the matter at hand.',
        })),
    async sample({ addComment }) {
      const added = await addComment?.({ post_id: 7, author_id: 11, body: 'It\'s "quoted", \\ and 雪.' })
      return added && pick(added, commentColumns)
    },
    async expected(client) {
      const { rows } = await client.query(`select ${commentColumns.join(', ')} from comments order by id desc limit 1`)
      return rows[0]
    },
    async reset(client) {
      await client.query('truncate comments')
    },
    pgbench: {
      script: [
        `\\set post_id random(1, ${rowCounts.posts})`,
        `\\set author_id random(1, ${rowCounts.users})`,
        `${statements.addComment.replace('$1, $2, $3', `:post_id, :author_id, 'A remark of the usual length about the matter at hand.'`)};\n`,
      ].join('\n'),
      clients: 8,
    },
  },
  {
    name: 'transaction',
    title: 'Transaction of two updates, 8 at once',
    callers: 8,
    bind: ({ payOrder }, random) => payOrder && (() => payOrder(random(rowCounts.orders), random(rowCounts.users))),
    async sample({ payOrder }) {
      await payOrder?.(7, 11)
      return { status: 'paid', order_count: 1, in_one_transaction: true }
    },
    async expected(client) {
      const { rows } = await client.query(`
        select orders.status, users.order_count, orders.xmin = users.xmin as in_one_transaction
        from orders, users where orders.id = 7 and users.id = 11`)
      return rows[0]
    },
    async reset(client) {
      await client.query(`update orders set status = 'open' where id = 7`)
      await client.query('update users set order_count = 0 where id = 11')
      await client.query('vacuum orders, users')
    },
    pgbench: {
      script: [
        `\\set order_id random(1, ${rowCounts.orders})`,
        `\\set user_id random(1, ${rowCounts.users})`,
        'begin;',
        `${statements.payOrder.replace('$1', ':order_id')};`,
        `${statements.countOrder.replace('$1', ':user_id')};`,
        'commit;\n',
      ].join('\n'),
      clients: 8,
    },
  },
]

/** Entities have more to them than their columns. */
function pick<Row extends object, Column extends keyof Row>(row: Row, columns: readonly Column[]): Pick<Row, Column> {
  return Object.fromEntries(columns.map((column) => [column, row[column]])) as Pick<Row, Column>
}

function oneLine(text: string): string {
  return text.replaceAll(/\s+/g, ' ')
}
