import { randomUUID } from 'node:crypto'
import { hostname } from 'node:os'
import { doneWithin, pauseFor } from '../core/deadline.ts'
import { isDatabaseError } from '../core/errors.ts'
import type { Subscription } from '../core/subscriber.ts'
import { Alarm } from './alarm.ts'
import type { SagaDatabase, SagaLog } from './saga-log.ts'
import { type RunParts, SagaRun } from './saga-run.ts'
import type { SagaDefinition } from './saga.ts'

/** How a {@link SagaWorker} works, resolved. Times are milliseconds. */
export interface WorkerSettings {
  /** 0 runs none. */
  readonly concurrency: number
  readonly leaseMs: number
  readonly pollMs: number
  readonly retainMs: number | false
  readonly drainTimeoutMs: number
  readonly listen: boolean
}

/** What a {@link SagaWorker} works with. */
export interface WorkerParts extends Omit<RunParts, 'leaseUntil'> {
  readonly database: SagaDatabase
  readonly log: SagaLog
  readonly definitions: ReadonlyMap<string, SagaDefinition>
  warn(message: string): void
}

const channel = 'kanta_sagas'
const firstPauseMs = 50
const becomesDueMs = 10
const pruneIntervalMs = 60_000
const longestEndMs = 1_000

/** Under what a definition is known. */
export function definitionKey({ name, version }: Pick<SagaDefinition, 'name' | 'version'>): string {
  return `${version} ${name}`
}

/**
 * Takes sagas that are due, and runs them. Its one lease is its own row, which it renews all the time; a saga is its own as long as
 * that lease is good, and another worker takes those of one whose lease is not.
 */
export class SagaWorker {
  readonly #id = randomUUID()
  readonly #place = `${hostname()}, process ${process.pid}`
  readonly #parts: WorkerParts
  readonly #settings: WorkerSettings
  readonly #runs = new Map<string, { readonly run: SagaRun; readonly done: Promise<void> }>()
  readonly #work: Alarm = new Alarm()
  readonly #renewal: Alarm = new Alarm()
  /** Until when the lease is good for certain: counted from when its renewal was sent. */
  #leaseUntil = Number.NEGATIVE_INFINITY
  #isClosing = false
  #isOver = false
  #setbacks = 0
  #prunedAt = Number.NEGATIVE_INFINITY
  #loops: Promise<unknown> = Promise.resolve()
  #listening: Promise<Subscription | undefined> = Promise.resolve(undefined)
  #telling: Promise<void> = Promise.resolve()
  #hasHint = false

  constructor(parts: WorkerParts, settings: WorkerSettings) {
    this.#parts = parts
    this.#settings = settings
  }

  /** The sagas that it runs now. */
  get running(): readonly string[] {
    return [...this.#runs.keys()]
  }

  get #hasLease(): boolean {
    return performance.now() < this.#leaseUntil
  }

  begin(): void {
    if (this.#settings.concurrency === 0 || this.#isClosing) return
    if (this.#settings.listen) this.#listening = this.#listen()
    this.#loops = Promise.all([this.#takeSagas(), this.#keepLease()])
  }

  /** There is something to do, here or elsewhere. */
  wake(): void {
    this.#work.ring()
    if (this.#runs.size >= this.#settings.concurrency) this.tellOthers()
  }

  /** The other processes look for work now, or for the saga that was canceled. Only a hint: they look by themselves, too. */
  tellOthers(canceled = ''): void {
    // One that is not sent yet says the same.
    if (this.#parts.database.isClosed || (canceled === '' && this.#hasHint)) return
    if (canceled === '') this.#hasHint = true
    this.#telling = this.#telling.then(async () => {
      if (canceled === '') this.#hasHint = false
      await this.#parts.database.notify(channel, canceled, { idempotent: true }).catch(() => undefined)
    })
  }

  /** The saga was canceled: if it runs here, its step is told now. */
  lookAt(id: string): void {
    this.#work.ring()
    if (this.#runs.has(id)) this.#renewal.ring()
  }

  /** Lets steps that run come to their end for a while, and gives back all that it has. Never rejects. */
  async close(): Promise<void> {
    this.#isClosing = true
    this.#work.ring()
    for (const { run } of this.#runs.values()) run.close()
    const listening = this.#listening.then((subscription) => subscription?.close())
    await this.#drain()
    this.#isOver = true
    this.#renewal.ring()
    await doneWithin(Promise.all([listening, this.#loops]), longestEndMs)
    if (this.#settings.concurrency > 0 && !this.#parts.database.isClosed) {
      // What cannot be given back is taken when the lease has run out.
      await this.#parts.log.release(this.#id).catch(() => undefined)
      this.tellOthers()
    }
    await doneWithin(this.#telling, longestEndMs)
  }

  async #drain(): Promise<void> {
    const drained = (async () => {
      // One may just be about to be begun.
      while (this.#runs.size > 0) await Promise.all(Array.from(this.#runs.values(), ({ done }) => done))
    })()
    if (await doneWithin(drained, this.#settings.drainTimeoutMs)) return
    for (const { run } of this.#runs.values()) run.abandon()
    // What they had just sent may get no answer for long; nothing is sent after it.
    await doneWithin(drained, longestEndMs)
  }

  async #takeSagas(): Promise<void> {
    let idleMs = firstPauseMs
    while (!this.#isClosing) {
      let pauseMs = this.#settings.pollMs
      try {
        await this.#prune()
        const taken = await this.#take()
        idleMs = taken > 0 ? firstPauseMs : Math.min(idleMs * 2, this.#settings.pollMs)
        pauseMs = await this.#untilNext(idleMs)
        // The log can be used again, and nothing runs that would show it.
        if (this.#hasLease && this.#runs.size === 0 && taken === 0) this.#setbacks = 0
        if (this.#setbacks > 0)
          await pauseFor(Math.min(firstPauseMs * 2 ** Math.min(this.#setbacks, 10), this.#settings.pollMs))
      } catch (error) {
        if (this.#parts.database.isClosed) return this.#renewal.ring()
        this.#setBack(error)
        idleMs = Math.min(idleMs * 2, this.#settings.pollMs)
        pauseMs = idleMs
      }
      if (!this.#isClosing) await this.#work.wait(pauseMs)
    }
  }

  async #take(): Promise<number> {
    const room = this.#settings.concurrency - this.#runs.size
    // Without a row of its own, others would take at once what it takes.
    if (room <= 0 || !this.#hasLease) return 0
    const { log, definitions } = this.#parts
    const claimed = await log.claim(this.#id, definitions.values(), this.running, room)
    for (const saga of claimed) {
      const definition = definitions.get(definitionKey(saga))
      if (definition === undefined) continue
      const run = new SagaRun(saga, definition, { ...this.#parts, leaseUntil: () => this.#leaseUntil })
      this.#runs.set(saga.id, { run, done: this.#drive(run) })
      if (this.#isClosing) run.close()
    }
    return claimed.length
  }

  async #drive(run: SagaRun): Promise<void> {
    try {
      await run.drive()
      this.#setbacks = 0
    } catch (error) {
      this.#setBack(error)
    } finally {
      this.#runs.delete(run.lease.id)
      this.#work.ring()
    }
  }

  #setBack(error: unknown): void {
    this.#setbacks += 1
    if (this.#isClosing || this.#parts.database.isClosed) return
    // The first of an outage is enough.
    if (this.#setbacks > 1) return
    const what = isDatabaseError(error) ? `${error.code}: ${error.message}` : 'something that is not one of its errors'
    this.#parts.warn(`sagas wait, since their log could not be used: ${what}`)
  }

  /** How long there is nothing to do, as far as is known. */
  async #untilNext(idleMs: number): Promise<number> {
    // The end of a run, or the lease once it is good, rings.
    if (this.#runs.size >= this.#settings.concurrency || !this.#hasLease) return this.#settings.pollMs
    const dueMs = await this.#parts.log.nextDueMs(this.#parts.definitions.values())
    if (dueMs === undefined) return idleMs
    // One that has become due since, or that another worker is just taking.
    return Math.min(idleMs, dueMs > 0 ? Math.ceil(dueMs) : becomesDueMs)
  }

  async #prune(): Promise<void> {
    const { retainMs } = this.#settings
    const intervalMs = retainMs === false ? pruneIntervalMs : Math.min(pruneIntervalMs, Math.max(1_000, retainMs))
    if (retainMs === false || performance.now() - this.#prunedAt < intervalMs) return
    this.#prunedAt = performance.now()
    while ((await this.#parts.log.prune(retainMs)) === 1_000 && !this.#isClosing);
  }

  async #keepLease(): Promise<void> {
    const { leaseMs } = this.#settings
    while (!this.#isOver) {
      const isRenewed = await this.#renew()
      if (this.#parts.database.isClosed) this.#loseAll()
      else if (!isRenewed && performance.now() >= this.#leaseUntil) this.#loseAll()
      if (!this.#isOver) await this.#renewal.wait(isRenewed ? leaseMs / 3 : leaseMs / 10, { ref: false })
      if (this.#parts.database.isClosed && this.#runs.size === 0) return
    }
  }

  async #renew(): Promise<boolean> {
    const { leaseMs } = this.#settings
    const sentAt = performance.now()
    const hadLease = this.#hasLease
    // Those that are taken while this is under way are in no answer to it.
    const runs = Array.from(this.#runs.values(), ({ run }) => run)
    try {
      await this.#parts.log.renew(this.#id, this.#place, leaseMs)
      this.#leaseUntil = sentAt + leaseMs
      if (!hadLease) this.#work.ring()
      if (runs.length > 0) await this.#compare(runs)
      return true
    } catch (error) {
      if (!this.#hasLease) this.#setBack(error)
      return false
    }
  }

  async #compare(runs: readonly SagaRun[]): Promise<void> {
    const held = new Map((await this.#parts.log.held(this.#id, this.#settings.leaseMs)).map((saga) => [saga.id, saga]))
    for (const run of runs) {
      const saga = held.get(run.lease.id)
      if (saga?.fence !== run.lease.fence) run.lose()
      else if (saga.canceled) run.cancel()
    }
  }

  #loseAll(): void {
    if (this.#runs.size > 0) {
      this.#parts.warn(
        `the lease on ${this.#runs.size} sagas could not be renewed in time: they are left to other processes`,
      )
    }
    for (const { run } of this.#runs.values()) run.lose()
  }

  async #listen(): Promise<Subscription | undefined> {
    const onGap = (): void => this.#work.ring()
    try {
      return await this.#parts.database.listen(channel, (id) => this.lookAt(id), { onGap })
    } catch (error) {
      if (!this.#isClosing && !this.#parts.database.isClosed) {
        const why = isDatabaseError(error) ? ` (${error.code})` : ''
        this.#parts.warn(`sagas hear of work by polling alone, since notifications do not arrive${why}`)
      }
      return undefined
    }
  }
}
