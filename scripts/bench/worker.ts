/**
 * The process of one contender. It connects, then does what it is told and nothing in between, so that the others have
 * the machine to themselves.
 */

import { contenders, type ContenderName, type ContenderSettings, type Operations } from './contender.ts'
import { seededRandom } from './statistics.ts'
import { type Workload, workloads } from './workloads.ts'

/** How long a slice is, and what is done in it. Times are milliseconds. */
export interface SliceOrder {
  readonly workload: string
  readonly callers: number
  /** The same for all contenders of a round: the same rows are asked for. */
  readonly seed: number
  readonly durationMs: number
  /** What goes before it unmeasured: caches and connections have gone cold while others had their turn. */
  readonly leadInMs: number
}

/** What one contender did in one slice. */
export interface Slice {
  readonly operationsPerSecond: number
  /** Of this process, all threads, collecting garbage included; not of the server. */
  readonly cpuMicrosPerOperation: number
  readonly p50Ms: number
  readonly p99Ms: number
}

/** What a worker is asked. */
export type Request =
  | { readonly ask: 'open'; readonly contender: ContenderName; readonly settings: ContenderSettings }
  | { readonly ask: 'can'; readonly workload: string }
  | { readonly ask: 'sample'; readonly workload: string }
  | { readonly ask: 'slice'; readonly order: SliceOrder }
  | { readonly ask: 'close' }

/** What it answers. */
export type Reply = { readonly value: unknown } | { readonly error: string }

let operations: Operations | undefined

process.on('message', (request: Request) => {
  void answer(request).then(
    (value) => send({ value }),
    (error: unknown) => send({ error: describe(error) }),
  )
})
// The run was ended from outside.
process.on('disconnect', () => process.exit())

function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  const { message, stack = '' } = error
  // Sequelize's stacks are those of another error.
  return stack.includes(message) ? stack : `${error.name}: ${message}\n${stack}`
}

function send(reply: Reply): void {
  process.send?.(reply)
}

async function answer(request: Request): Promise<unknown> {
  if (request.ask === 'open') {
    const open = await contenders[request.contender].load()
    operations = await open(request.settings)
    return undefined
  }
  if (operations === undefined) throw new Error('Not open yet.')
  if (request.ask === 'close') return operations.close()
  if (request.ask === 'slice') return runSlice(operations, request.order)
  const workload = findWorkload(request.workload)
  if (request.ask === 'sample') return workload.sample(operations)
  return workload.bind(operations, seededRandom(0)) !== undefined
}

function findWorkload(name: string): Workload {
  const workload = workloads.find((candidate) => candidate.name === name)
  if (workload === undefined) throw new Error(`No workload is named ${name}.`)
  return workload
}

async function runSlice(bound: Operations, order: SliceOrder): Promise<Slice> {
  const call = findWorkload(order.workload).bind(bound, seededRandom(order.seed))
  if (call === undefined) throw new Error(`No operation for ${order.workload}.`)

  const latencies: number[] = []
  const opened = performance.now()
  let begun: number | undefined
  let ended: number | undefined
  let cpuBefore = process.cpuUsage()
  let cpu = cpuBefore

  async function caller(work: () => Promise<unknown>): Promise<void> {
    for (let last = performance.now(); ended === undefined;) {
      await work()
      const now = performance.now()
      if (ended !== undefined) return
      if (begun !== undefined) {
        latencies.push(now - last)
        if (now - begun >= order.durationMs) {
          ended = now
          cpu = process.cpuUsage(cpuBefore)
        }
      } else if (now - opened >= order.leadInMs) {
        begun = now
        cpuBefore = process.cpuUsage()
      }
      last = now
    }
  }
  await Promise.all(Array.from({ length: order.callers }, () => caller(call)))

  const seconds = ((ended ?? Number.NaN) - (begun ?? Number.NaN)) / 1000
  const sorted = latencies.toSorted((a, b) => a - b)
  return {
    operationsPerSecond: latencies.length / seconds,
    cpuMicrosPerOperation: (cpu.user + cpu.system) / latencies.length,
    p50Ms: sorted[Math.floor(sorted.length * 0.5)] ?? Number.NaN,
    p99Ms: sorted[Math.floor(sorted.length * 0.99)] ?? Number.NaN,
  }
}
