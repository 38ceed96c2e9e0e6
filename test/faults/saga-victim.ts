/**
 * A process that runs sagas until it is killed, for row 29: `node saga-victim.ts <options as JSON>`. Every place at which a saga may
 * be left is a boundary: before and after each of its statements, and before and after what its steps do.
 */

import { createDatabase, createSagas } from '../../src/index.ts'
import { inTurn, orderSaga, type OrderTables, stockSaga } from './saga-orders.ts'
import { witness } from './witness.ts'

/** What it is started with. */
export interface VictimOptions {
  readonly url: string
  /**
   * `halt`: the nth saga stops at its nth boundary, for the process to be killed when all have stopped. `kill`: one saga, and the
   * process kills itself at the boundary of this number. `freeze`: one saga, which waits in its step.
   */
  readonly mode: 'freeze' | 'halt' | 'kill'
  readonly isRefused: boolean
  /** Of `halt`: how many sagas; of `kill`: at which boundary. */
  readonly count: number
  /** Sagas of other versions are left alone. */
  readonly firstVersion: number
}

/** What it says. */
export type VictimMessage =
  | { readonly kind: 'ended'; readonly saga: string; readonly boundaries: number }
  | { readonly kind: 'begun'; readonly saga: string }
  | { readonly kind: 'halted'; readonly saga: string }
  | { readonly kind: 'in step' }
  | { readonly kind: 'transaction'; readonly outcome: string }

const options = JSON.parse(process.argv[2] ?? '') as VictimOptions
const tell = (message: VictimMessage): void => void process.send?.(message)

const database = await createDatabase<OrderTables>({
  postgres: { url: options.url, pool: { max: 80 } },
  redis: false,
})
const outside = inTurn(await witness(options.url))

/** The boundary at which each saga is left, and how many it has passed. */
const targets = new Map<string, number>()
const passed = new Map<string, number>()

async function boundary(saga: string): Promise<void> {
  const target = targets.get(saga)
  if (target === undefined) return
  const number = (passed.get(saga) ?? 0) + 1
  passed.set(saga, number)
  if (number !== target) return
  if (options.mode === 'kill') process.kill(process.pid, 'SIGKILL')
  tell({ kind: 'halted', saga })
  await new Promise(() => {})
}

/** The saga that a statement of the log is about; looking for work is about none. */
function sagaOf(parameters: readonly unknown[]): string | undefined {
  return parameters.find((value): value is string => typeof value === 'string' && targets.has(value))
}

const watched = new Proxy(database, {
  get(target, name) {
    if (name === 'queryOne') {
      return async (query: Parameters<typeof target.queryOne>[0], call: Parameters<typeof target.queryOne>[1]) => {
        const { parameters } = (query as { compile(by: unknown): { parameters: readonly unknown[] } }).compile(
          target.db,
        )
        const saga = sagaOf(parameters)
        if (saga !== undefined) await boundary(saga)
        const row = await target.queryOne(query, call)
        if (saga !== undefined) await boundary(saga)
        return row
      }
    }
    const value: unknown = Reflect.get(target, name, target)
    return typeof value === 'function' ? (value.bind(target) as unknown) : value
  },
})

if (options.mode === 'freeze') await freeze()
else await runOrders()

async function runOrders(): Promise<void> {
  const versions = Array.from(
    { length: options.mode === 'halt' ? options.count : 1 },
    (_, n) => options.firstVersion + n,
  )
  const place = { database, outside, boundary }
  const definitions = versions.map((version) => orderSaga(version, place))
  const sagas = await createSagas(watched, definitions, { concurrency: 500, leaseMs: 60_000, pollMs: 20 })
  // None runs before it is known where it is to stop.
  const handles = await database.transaction(async () => {
    const begun = []
    for (const [n, definition] of definitions.entries()) {
      const handle = await sagas.start(definition, { isRefused: options.isRefused })
      targets.set(handle.id, options.mode === 'halt' ? n + 1 : options.count)
      tell({ kind: 'begun', saga: handle.id })
      begun.push(handle)
    }
    return begun
  })
  for (const handle of handles) {
    void handle
      .result()
      .catch(() => undefined)
      .then(() => tell({ kind: 'ended', saga: handle.id, boundaries: passed.get(handle.id) ?? 0 }))
  }
}

async function freeze(): Promise<void> {
  database.events.on('transaction', ({ outcome }) => tell({ kind: 'transaction', outcome }))
  const definition = stockSaga(database, async () => {
    tell({ kind: 'in step' })
    await new Promise((resolve) => process.once('message', resolve))
  })
  const sagas = await createSagas(database, [definition], { leaseMs: 300, pollMs: 20 })
  const { id } = await sagas.start(definition, undefined)
  tell({ kind: 'begun', saga: id })
}
