/**
 * A service under load, for row 25: `node service.ts <url>` with a leaked transaction, transactions that are under way,
 * single statements, and callers in the queue. It says `ready` when all of that is so, closes its database on SIGTERM,
 * and says what became of everything. Nothing but the end of its own work ends it.
 */

import { sql } from 'kysely'
import { createDatabase, type ErrorCode, isDatabaseError } from '../../src/index.ts'

/** What the service says last. */
export interface ServiceReport {
  readonly closeMs: number
  /** Ids of transactions that were told to be committed. */
  readonly drained: readonly number[]
  /** Of those that were under way: what went wrong. */
  readonly broken: readonly string[]
  /** Of those in the queue: code, and how long after SIGTERM. */
  readonly waiters: readonly { readonly code: ErrorCode | 'done' | 'foreign'; readonly afterMs: number }[]
  readonly singles: { readonly done: number; readonly codes: readonly string[] }
}

interface Tables {
  work: { id: number; kind: string }
}

const [url] = process.argv.slice(2)
const database = await createDatabase<Tables>({
  postgres: { url, pool: { max: 4, acquireTimeoutMs: 60_000, drainTimeoutMs: 2_000 } },
  redis: false,
})

const codeOf = (error: unknown): ErrorCode | 'foreign' => (isDatabaseError(error) ? error.code : 'foreign')
const drained: number[] = []
const broken: string[] = []
const waiters: ServiceReport['waiters'][number][] = []
const singles = { done: 0, codes: [] as string[] }
let termAt = Number.NaN
const over = new AbortController()

async function workFor(id: number, begun: () => void): Promise<void> {
  await database.transaction(async () => {
    await database.db.insertInto('work').values({ id, kind: 'transaction' }).execute()
    begun()
    await database.query(sql`select pg_sleep(0.5)`)
    await database.db.updateTable('work').set({ kind: 'done' }).where('id', '=', id).execute()
  })
}

// One client is never given back.
const leaked = Promise.withResolvers<void>()
database
  .transaction(async () => {
    await database.query(sql`select 'leaked'`)
    leaked.resolve()
    await new Promise(() => {})
  })
  .catch(() => undefined)
await leaked.promise

const pending: Promise<unknown>[] = []
await Promise.all(
  [1, 2, 3].map((id) => {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    pending.push(
      workFor(id, resolve).then(
        () => drained.push(id),
        (error: unknown) => {
          broken.push(codeOf(error))
          reject(error)
        },
      ),
    )
    return promise
  }),
)
for (let id = 100; id < 120; id += 1) {
  pending.push(
    workFor(id, () => undefined).then(
      () => waiters.push({ code: 'done', afterMs: performance.now() - termAt }),
      (error: unknown) => waiters.push({ code: codeOf(error), afterMs: performance.now() - termAt }),
    ),
  )
}
for (let caller = 0; caller < 4; caller += 1) pending.push(singleStatements())

async function singleStatements(): Promise<void> {
  while (!over.signal.aborted) {
    try {
      await database.db.insertInto('work').values({ id: 0, kind: 'single' }).execute()
      singles.done += 1
    } catch (error) {
      singles.codes.push(codeOf(error))
      return
    }
  }
}

process.once('SIGTERM', () => void shutDown())
console.log('ready')

async function shutDown(): Promise<void> {
  termAt = performance.now()
  await database.close()
  const closeMs = performance.now() - termAt
  over.abort()
  await Promise.all(pending)
  const report: ServiceReport = { closeMs, drained, broken, waiters, singles }
  console.log(JSON.stringify(report))
}
