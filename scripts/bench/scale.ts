/**
 * `node scripts/bench/scale.ts`: whether time and memory grow no faster than the result, or the value, does. Each figure is
 * taken in a process of its own, beside bare `pg` doing the same.
 */

import { fork } from 'node:child_process'
import { Client } from 'pg'
import { sql } from 'kysely'
import { startPostgres } from '../../test/support/servers.ts'
import { createDatabase } from '../../src/index.ts'

/** One statement of some size. */
interface Task {
  readonly text: string
  /** Sent as a parameter: so many characters, or so many bytes. */
  readonly parameter?: { readonly kind: 'bytes' | 'text'; readonly size: number }
}

interface Dimension {
  readonly title: string
  readonly sizes: readonly number[]
  task(size: number): Task
}

const megabyte = 1_000_000

const columns = (count: number): string =>
  Array.from({ length: count }, (_, index) => `n + ${index} as c${index}`).join(', ')

const dimensions: readonly Dimension[] = [
  {
    title: 'rows of 5 columns',
    sizes: [1_000, 10_000, 100_000, 1_000_000],
    task: (rows) => ({
      text: `select n as id, 'row ' || n as text, n * 0.25 as amount, n % 2 = 0 as even,
        timestamptz '2026-01-01Z' + n * interval '1 second' as at from generate_series(1, ${rows}) n`,
    }),
  },
  {
    title: 'columns of 1 000 rows',
    sizes: [1, 10, 100, 300],
    task: (count) => ({ text: `select ${columns(count)} from generate_series(1, 1000) n` }),
  },
  {
    title: 'text that comes, MB',
    sizes: [1, 10, 100],
    task: (size) => ({ text: `select repeat('x', ${size * megabyte}) as value` }),
  },
  {
    title: 'bytea that comes, MB',
    sizes: [1, 10, 100],
    task: (size) => ({ text: `select decode(repeat('ab', ${size * megabyte}), 'hex') as value` }),
  },
  {
    title: 'text that goes, MB',
    sizes: [1, 10, 100],
    task: (size) => ({ text: 'select length($1::text) as size', parameter: { kind: 'text', size: size * megabyte } }),
  },
  {
    title: 'bytea that goes, MB',
    sizes: [1, 10, 100],
    task: (size) => ({ text: 'select length($1::bytea) as size', parameter: { kind: 'bytes', size: size * megabyte } }),
  },
]

interface Order extends Task {
  readonly url: string
  readonly by: 'kanta' | 'pg'
}

interface Figures {
  readonly ms: number
  /** How much the process grew at most. */
  readonly peakMb: number
}

const runs = 3

async function measure(order: Order): Promise<Figures> {
  const { run, close } = await openRunner(order)
  // What is compiled and connected on first use is no part of it.
  await run('select 1 as one, $1::text as value', ['a'])
  const value = parameterOf(order)
  const before = process.resourceUsage().maxRSS
  let ms = Number.POSITIVE_INFINITY
  for (let turn = 0; turn < runs; turn += 1) {
    const begun = performance.now()
    await run(order.text, value === undefined ? [] : [value])
    ms = Math.min(ms, performance.now() - begun)
  }
  const peakMb = (process.resourceUsage().maxRSS - before) / 1024
  await close()
  return { ms, peakMb }
}

function parameterOf({ parameter }: Order): Buffer | string | undefined {
  if (parameter === undefined) return undefined
  return parameter.kind === 'text' ? 'x'.repeat(parameter.size) : Buffer.alloc(parameter.size, 7)
}

interface Runner {
  run(text: string, values: readonly unknown[]): Promise<unknown>
  close(): Promise<void>
}

async function openRunner({ by, url }: Order): Promise<Runner> {
  if (by === 'pg') {
    const client = new Client({ connectionString: url })
    await client.connect()
    return { run: (text, values) => client.query(text, [...values]), close: () => client.end() }
  }
  const database = await createDatabase({ postgres: { url }, redis: false })
  return {
    run: (text, parameters) => database.db.executeQuery({ ...sql.raw(text).compile(database.db), parameters }),
    close: () => database.close(),
  }
}

/** Asks a process of its own. */
function measureApart(order: Order): Promise<Figures> {
  return new Promise((resolve, reject) => {
    const child = fork(import.meta.filename, ['measure'])
    child.once('message', (figures: Figures) => resolve(figures))
    child.once('exit', (code) => reject(new Error(`${order.by} ended with ${code} at ${order.text.slice(0, 60)}`)))
    child.send(order)
  })
}

const cell = (value: number): string => (value < 10 ? value.toFixed(1) : value.toFixed(0)).padStart(9)

/** By how much a figure has grown for each time that the size has; 1 is linear. */
function growth(now: number, before: number | undefined, times: number): string {
  return (before === undefined ? '–' : (now / before / times).toFixed(2)).padStart(9)
}

async function main(): Promise<void> {
  const server = await startPostgres()
  try {
    for (const { title, sizes, task } of dimensions) {
      const heads = ['kanta ms', 'growth', 'peak MB', 'growth', 'pg ms', 'growth', 'peak MB', 'growth']
      console.log(`\n${title.padEnd(24)}${heads.map((head) => head.padStart(9)).join('')}`)
      const before: Partial<Record<Order['by'], Figures>> = {}
      let sizeBefore = Number.NaN
      for (const size of sizes) {
        let line = String(size).padEnd(24)
        for (const by of ['kanta', 'pg'] as const) {
          const figures = await measureApart({ ...task(size), url: server.url, by })
          const times = size / sizeBefore
          line += cell(figures.ms) + growth(figures.ms, before[by]?.ms, times)
          line += cell(figures.peakMb) + growth(figures.peakMb, before[by]?.peakMb, times)
          before[by] = figures
        }
        sizeBefore = size
        console.log(line)
      }
    }
  } finally {
    await server.stop()
  }
}

if (process.argv[2] === 'measure') {
  process.once('message', (order: Order) => {
    void measure(order).then((figures) => process.send?.(figures, () => process.exit()))
  })
} else await main()
