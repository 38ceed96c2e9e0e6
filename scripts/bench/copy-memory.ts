/**
 * `node scripts/bench/copy-memory.ts [GB]`: copies a table of so many gigabytes, 5 unless said otherwise, into a file and the file
 * into another table, each in a process of its own, and says how much memory that process had at most. It needs three
 * times as much room for temporary files.
 */

import { fork } from 'node:child_process'
import { createReadStream, createWriteStream, mkdtempSync, rmSync, statfsSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import type { createDatabase } from '../../src/index.ts'

interface Order {
  readonly url: string
  readonly file: string
  readonly direction: 'in' | 'out'
}

interface Figures {
  readonly seconds: number
  /** The most that the process ever had, its program included. */
  readonly peakMb: number
  readonly rows: number
}

interface Schema {
  readonly source: object
  readonly target: object
}

const gigabyte = 1_000_000_000
const bytesPerRow = 120

async function copy({ url, file, direction }: Order): Promise<Figures> {
  // As it is published: to read TypeScript, Node takes some thirty megabytes more.
  const built = new URL('../../dist/index.js', import.meta.url).href
  const kanta = (await import(built)) as { createDatabase: typeof createDatabase }
  await using database = await kanta.createDatabase<Schema>({ postgres: { url }, redis: false })
  const begun = performance.now()
  let rows: number
  if (direction === 'out') {
    const stream = database.copy.to('source')
    await pipeline(stream, createWriteStream(file))
    rows = stream.rowCount
  } else {
    const { count } = await database.copy.from('target', createReadStream(file), { format: 'text' })
    rows = count
  }
  const seconds = (performance.now() - begun) / 1000
  return { seconds, peakMb: (process.resourceUsage().maxRSS * 1024) / 1e6, rows }
}

function copyApart(order: Order): Promise<Figures> {
  return new Promise((resolve, reject) => {
    const child = fork(import.meta.filename, ['copy'])
    child.once('message', (figures: Figures) => resolve(figures))
    child.once('exit', (code) => reject(new Error(`the copy ${order.direction} ended with ${code}`)))
    child.send(order)
  })
}

async function main(gigabytes: number): Promise<void> {
  // Not for the processes that are measured.
  const [{ sql }, { startPostgres }, { createDatabase: open }, { runScript }] = await Promise.all([
    import('kysely'),
    import('../../test/support/servers.ts'),
    import('../../src/index.ts'),
    import('../steps.ts'),
  ])
  const rows = Math.round((gigabytes * gigabyte) / bytesPerRow)
  const { bavail, bsize } = statfsSync(tmpdir())
  if (bavail * bsize < 3 * gigabytes * gigabyte) {
    throw new Error(`${gigabytes} GB need three times as much room in ${tmpdir()}; give a smaller number`)
  }
  await runScript(['scripts/build.ts'], 'captured')
  const server = await startPostgres({ settings: { max_wal_size: '4GB' } })
  const folder = mkdtempSync(join(tmpdir(), 'kanta-copy-'))
  try {
    await using database = await open({ postgres: { url: server.url, queryTimeoutMs: false }, redis: false })
    for (const table of ['source', 'target']) {
      await database.query(
        sql`create unlogged table ${sql.table(table)} (id int, kind text, body text, created_at timestamptz)
          with (autovacuum_enabled = false)`,
      )
    }
    // 120 bytes in the text format, on the average.
    await database.query(
      sql`insert into source select n, md5(n::text), repeat('x', 56), timestamptz '2026-01-01Z' + n * interval '1 second'
        from generate_series(1, ${rows}::int) n`,
      { timeoutMs: false },
    )
    const order = { url: server.url, file: join(folder, 'source.txt') }
    for (const direction of ['out', 'in'] as const) {
      const { seconds, peakMb, rows: copied } = await copyApart({ ...order, direction })
      if (copied !== rows) throw new Error(`${copied} of ${rows} rows were copied ${direction}`)
      const size = statSync(order.file).size / gigabyte
      console.log(
        `${direction.padEnd(4)} ${size.toFixed(2)} GB, ${rows} rows: ${seconds.toFixed(1)} s, ` +
          `${((size * 1000) / seconds).toFixed(0)} MB/s, at most ${peakMb.toFixed(0)} MB of memory`,
      )
    }
  } finally {
    rmSync(folder, { recursive: true, force: true })
    await server.stop()
  }
}

if (process.argv[2] === 'copy') {
  process.once('message', (order: Order) => {
    void copy(order).then((figures) => process.send?.(figures, () => process.exit()))
  })
} else await main(Number(process.argv[2] ?? 5))
