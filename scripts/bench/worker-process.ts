import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import type { ContenderName, ContenderSettings } from './contender.ts'
import type { Reply, Request, Slice, SliceOrder } from './worker.ts'

/** The process of one contender, seen from the one that gives the turns. One question at a time. */
export interface Worker {
  readonly name: ContenderName
  can(workload: string): Promise<boolean>
  sample(workload: string): Promise<unknown>
  slice(order: SliceOrder): Promise<Slice>
  /** Closes its connections, or kills it if that takes longer than two seconds. Never rejects. */
  stop(): Promise<void>
}

/** Starts a contender in a process of its own and resolves when it has connected. */
export async function startWorker(name: ContenderName, settings: ContenderSettings): Promise<Worker> {
  const child = fork(join(import.meta.dirname, 'worker.ts'), [], {
    env: workerEnvironment(),
    // Dates arrive as dates.
    serialization: 'advanced',
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  })
  const worker: Worker = {
    name,
    can: async (workload) => (await ask(child, name, { ask: 'can', workload })) === true,
    sample: (workload) => ask(child, name, { ask: 'sample', workload }),
    slice: async (order) => (await ask(child, name, { ask: 'slice', order })) as Slice,
    async stop() {
      if (child.exitCode !== null || child.signalCode !== null) return
      const force = setTimeout(() => child.kill('SIGKILL'), 2_000)
      const exited = new Promise((resolve) => child.once('exit', resolve))
      await ask(child, name, { ask: 'close' }).catch(() => undefined)
      if (child.connected) child.disconnect()
      await exited
      clearTimeout(force)
    },
  }
  try {
    await ask(child, name, { ask: 'open', contender: name, settings })
  } catch (error) {
    await worker.stop()
    throw error
  }
  return worker
}

/** Settings of the shell must not reach some contenders and not others. */
function workerEnvironment(): NodeJS.ProcessEnv {
  const entries = Object.entries(process.env).filter(([name]) => !/^(?:DATABASE_|REDIS_|PG|NODE_)/.test(name))
  return { ...Object.fromEntries(entries), NODE_ENV: 'production' }
}

async function ask(child: ChildProcess, name: string, request: Request): Promise<unknown> {
  if (!child.connected) throw new Error(`The process of ${name} has ended.`)
  const settled = new AbortController()
  const { signal } = settled
  try {
    const answered = once(child, 'message', { signal })
    const ended = once(child, 'exit', { signal }).then(([code, killedBy]) => {
      throw new Error(`The process of ${name} ended (${code ?? killedBy}).`)
    })
    child.send(request)
    const [reply] = (await Promise.race([answered, ended])) as [Reply]
    if ('error' in reply) throw new Error(reply.error)
    return reply.value
  } finally {
    settled.abort()
  }
}
