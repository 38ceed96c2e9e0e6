import type { Invalidation } from '../cache/invalidation-log.ts'
import type { InvalidationJournal } from '../cache/open-cache.ts'
import type { Database } from '../database/database.ts'
import type { DatabaseSeams } from '../database/seams.ts'
import type { Scope } from '../postgres/transaction.ts'
import { OutboxStore } from './outbox-store.ts'

/** What there is in the outbox of a journal. */
export interface JournalTopics {
  readonly invalidation: Invalidation
}

const topic: keyof JournalTopics = 'invalidation'
/** What is more than that ends everything instead. */
const maxBytes = 100_000
const eraseEveryMs = 20
const everything: Invalidation = { keys: [], tags: [], patterns: [], all: true }

/** Writes what is to be ended, and takes back what has been. */
export class OutboxJournal implements InvalidationJournal {
  readonly #database: Database<unknown>
  readonly #store: OutboxStore
  readonly #delayMs: number
  readonly #outside: <T>(work: () => T) => T
  #done: string[] = []
  #timer: NodeJS.Timeout | undefined
  #erasing: Promise<void> = Promise.resolve()

  constructor(database: Database<unknown>, seams: DatabaseSeams, name: string, delayMs: number) {
    this.#database = database
    this.#store = new OutboxStore(database, name, { retainMs: 0, idempotencyMs: 0 })
    this.#delayMs = delayMs
    this.#outside = seams.context()
  }

  /** In the scope itself: its own queries would be refused so close to its end. */
  async write(what: Invalidation, scope: Scope): Promise<string> {
    const text = JSON.stringify(what)
    const payload = Buffer.byteLength(text) > maxBytes ? JSON.stringify(everything) : text
    const event = { topic, payload, key: null, headers: null, idempotencyKey: null, delayMs: this.#delayMs }
    const query = this.#store.insert([event]).compile(this.#database.db)
    const { rows } = await scope.execute<{ readonly id: string }>(query)
    return rows[0]?.id ?? ''
  }

  erase(id: string): void {
    this.#done.push(id)
    this.#timer ??= setTimeout(() => this.#eraseSoon(), eraseEveryMs).unref()
  }

  async close(): Promise<void> {
    this.#eraseSoon()
    await this.#erasing
  }

  #eraseSoon(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    const ids = this.#done
    this.#done = []
    if (ids.length === 0) return
    const erase = this.#outside(() => this.#store.erase(ids))
    // Then it is ended once more.
    this.#erasing = Promise.all([this.#erasing, erase.catch(() => undefined)]).then(() => undefined)
  }
}
