import { AsyncLocalStorage } from 'node:async_hooks'
import { dirname } from 'node:path'

/** A read that was made again and again, one after the other. */
export interface RepeatedRead {
  /** SQL text with its placeholders, or what of which table was read. */
  readonly read: string
  readonly times: number
  /** The lines of the program that asked for it, the innermost first. */
  readonly callSites: readonly string[]
}

/** What one line of work has read lately: the newest first. Never changed, since others begin where it was. */
type History = readonly {
  readonly read: string
  readonly times: number
  readonly since: number
  /** In which it was seen last. */
  readonly tick: object
}[]

/** A loop of reads is faster than this for each of them; what is polled is slower. */
const windowMs = 1_000
const remembered = 8
const toldSites = 3
/** Each place of a program is told once, and a program has no more places than this with the same mistake. */
const mostTold = 1_000

const ownFolder = dirname(import.meta.dirname)

/**
 * Notices the loop that reads one row at a time where one statement would read them all: the same read so many times in a second, by one
 * async function or what it calls. What many requests do at the same time is not counted together, since each has a context of its
 * own. For development: it looks at the async context with each read.
 */
export class RepeatedReads {
  readonly #threshold: number
  readonly #report: (found: RepeatedRead) => void
  readonly #context = new AsyncLocalStorage<History>()
  readonly #told = new Set<string>()
  #tick: object | undefined

  constructor(threshold: number, report: (found: RepeatedRead) => void) {
    this.#threshold = threshold
    this.#report = report
  }

  /** To be called where the read is asked for, and not where it is sent. */
  see(read: string): void {
    const now = performance.now()
    const history = this.#context.getStore() ?? []
    const before = history.find((entry) => entry.read === read)
    const tick = this.#thisTick()
    // It started together with the one before, and did not wait for it.
    if (before?.tick === tick) return
    const isRecent = before !== undefined && now - before.since < windowMs
    const entry = isRecent ? { ...before, times: before.times + 1, tick } : { read, times: 1, since: now, tick }
    // The caller goes on in this context, and its next read finds it.
    this.#context.enterWith([entry, ...history.filter((other) => other !== before)].slice(0, remembered))
    if (entry.times === this.#threshold) this.#tell(entry.read, entry.times)
  }

  /** The read shares a statement with others that started with it: whoever asks in this way is no loop. */
  unsee(read: string): void {
    const history = this.#context.getStore() ?? []
    this.#context.enterWith(
      history.map((entry) => (entry.read === read ? { ...entry, times: Math.max(0, entry.times - 1) } : entry)),
    )
  }

  /** The same until everything that is ready to run has run, promises included. */
  #thisTick(): object {
    if (this.#tick === undefined) {
      this.#tick = {}
      queueMicrotask(() => process.nextTick(() => (this.#tick = undefined)))
    }
    return this.#tick
  }

  #tell(read: string, times: number): void {
    const callSites = callersOf()
    const place = `${read} ${callSites.join(' ')}`
    if (callSites.length === 0 || this.#told.has(place) || this.#told.size >= mostTold) return
    this.#told.add(place)
    this.#report({ read, times, callSites })
  }
}

/** Lines of the program, without those of kanta, Kysely and Node. */
function callersOf(): readonly string[] {
  const { stackTraceLimit } = Error
  Error.stackTraceLimit = 30
  const { stack = '' } = new Error('for its stack')
  Error.stackTraceLimit = stackTraceLimit
  const lines = stack.split('\n').slice(1)
  const isTheirs = (line: string): boolean =>
    !line.includes(ownFolder) && !/[\\/]node_modules[\\/]kysely[\\/]|node:|\(<anonymous>\)/.test(line)
  return lines
    .filter(isTheirs)
    .slice(0, toldSites)
    .map((line) => line.trim().replace(/^at (?:async )?/, ''))
}
