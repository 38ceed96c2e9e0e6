import { type Field, type Shape, shapeOf } from './row-shape.ts'
import type { StatementText } from './statement-text.ts'
import type { ParserSource } from './value-parsers.ts'
import type { Wire } from './wire.ts'

/** How connections prepare statements. */
export interface PreparedStatementSettings {
  /** A text gets a name when it is asked for the so-manieth time; `false` prepares nothing. */
  readonly threshold: number | false
  /** Most names on one connection; the one that was used least recently goes. */
  readonly max: number
}

// A name that is lost now and then was deallocated by someone; names that keep being lost are not ours to have.
const maxLost = 20
const lostWithinMs = 60_000
// Linux gives no process a higher number, and other systems stay far below.
const highestProcess = 4_194_304

/**
 * Whether names can be used at all, for all connections of an engine. A pooler that gives each transaction another
 * server connection, and does not know prepared statements, shows by a name that exists although this connection never
 * made it; from then on nothing is prepared.
 */
export class PreparationPolicy {
  readonly settings: PreparedStatementSettings
  readonly #onGivenUp: () => void
  #isGivenUp = false
  /** How many were lost since the first of this minute. */
  #lost = 0
  #lostSince = 0
  #isShared = false
  #schemaChanges = 0
  readonly #changed = new WeakSet<StatementText>()

  constructor(settings: PreparedStatementSettings, onGivenUp: () => void = () => undefined) {
    this.settings = settings
    this.#onGivenUp = onGivenUp
  }

  /**
   * A pooler is in between, so that a name may be another connection's next time, which was prepared before or after its
   * tables changed: what was learned of its columns is not to be relied on.
   */
  get isShared(): boolean {
    return this.#isShared
  }

  allows(text: StatementText): boolean {
    const { threshold } = this.settings
    const isAllowed = threshold !== false && !this.#isGivenUp && text.uses >= threshold && !text.isRefused
    return isAllowed && !(this.#isShared && this.#changed.has(text))
  }

  /** What a connection was told to be its process on the server: a pooler invents a number of 32 bits. */
  noteProcess(id: number | null | undefined): void {
    if (typeof id === 'number' && (id < 0 || id > highestProcess)) this.#isShared = true
  }

  /** Counts what a connection of this process has changed that others may have prepared. */
  get schemaChanges(): number {
    return this.#schemaChanges
  }

  noteSchemaChange(): void {
    this.#schemaChanges += 1
  }

  /**
   * The tables of a text have changed. A pooler that keeps names apart has it prepared on connections of its own, which
   * would say so again and again: there it is not prepared any more.
   */
  notePlanChanged(text: StatementText): void {
    this.#changed.add(text)
  }

  /** The server said 26000 (unknown name) or 42P05 (name exists). */
  noteLost(sqlState: string): void {
    const now = performance.now()
    if (now - this.#lostSince > lostWithinMs) {
      this.#lostSince = now
      this.#lost = 0
    }
    this.#lost += 1
    if (this.#isGivenUp || (sqlState !== '42P05' && this.#lost < maxLost)) return
    this.#isGivenUp = true
    this.#onGivenUp()
  }
}

/** What one connection has prepared, and which columns each text gives. */
export class PreparedStatements {
  readonly #policy: PreparationPolicy
  readonly #parsers: ParserSource
  readonly #prepared = new Map<string, Shape | undefined>()
  /** Names that the server may hold with another meaning; they are closed before they are parsed again. */
  readonly #stale = new Set<string>()
  #epoch = 0
  #hasNewSchema = false
  #knownChanges: number

  /** `parsers` are those of the connection. */
  constructor(policy: PreparationPolicy, parsers: ParserSource) {
    this.#policy = policy
    this.#parsers = parsers
    this.#knownChanges = policy.schemaChanges
  }

  /** Changes when names are lost: what was sent before can only tell the same again. */
  get epoch(): number {
    return this.#epoch
  }

  /** Whether the connection has the text under its name. */
  has(text: StatementText): boolean {
    if (this.#knownChanges !== this.#policy.schemaChanges) {
      this.#knownChanges = this.#policy.schemaChanges
      this.#forgetAll()
    }
    return this.#prepared.has(text.name)
  }

  /** Its columns, where they are certain: without them the server is to be asked. */
  shapeOf(text: StatementText): Shape | undefined {
    return this.#policy.isShared ? undefined : this.#prepared.get(text.name)
  }

  /** The server has described the columns; those of a prepared text are known from now on. */
  describe(text: StatementText, fields: readonly Field[]): Shape {
    const shape = shapeOf(fields, this.#parsers)
    if (this.#prepared.has(text.name)) this.#prepared.set(text.name, shape)
    return shape
  }

  /**
   * Makes the statement ready to be bound, and returns the name to bind it by; it is empty while the text is not used
   * often enough to keep it.
   */
  prepare(text: StatementText, wire: Wire): string {
    if (this.#prepared.has(text.name)) {
      this.#touch(text)
      return text.name
    }
    if (this.#hasNewSchema || !this.#policy.allows(text)) {
      wire.parse('', text.sql)
      return ''
    }
    if (this.#stale.delete(text.name)) wire.close(text.name)
    if (this.#prepared.size >= this.#policy.settings.max) {
      const [oldest] = this.#prepared.keys()
      if (oldest !== undefined) {
        this.#prepared.delete(oldest)
        wire.close(oldest)
      }
    }
    this.#prepared.set(text.name, undefined)
    wire.parse(text.name, text.sql)
    return text.name
  }

  /** The name is not to be trusted any more: the server lost it, or its tables changed. */
  forget(text: StatementText): void {
    this.#prepared.delete(text.name)
    this.#stale.add(text.name)
  }

  /** The tables of a prepared text have changed so that its result has other columns. */
  notePlanChanged(text: StatementText): void {
    this.forget(text)
    this.#policy.notePlanChanged(text)
  }

  /**
   * A command of this connection may have changed tables: inside its transaction, a name that was prepared before would fail and
   * take the transaction with it; and one that is prepared now would, if the change is undone. So nothing is prepared until
   * {@link noteIdle}. Other connections forget their names as well, if the command `changes` what they may know.
   */
  noteSchemaChange(changes: boolean): void {
    this.#hasNewSchema = true
    if (changes) this.#policy.noteSchemaChange()
    this.#forgetAll()
  }

  /** Whether {@link noteIdle} is to be called when no transaction is open. */
  get awaitsIdle(): boolean {
    return this.#hasNewSchema
  }

  noteIdle(): void {
    this.#hasNewSchema = false
  }

  /**
   * The server did not know a name, or knew it already, for a statement that was written in this epoch. Names go
   * together (DISCARD ALL, another server connection of a pooler), so that none is trusted any more.
   */
  noteLost(text: StatementText, sqlState: string, epoch: number): void {
    if (epoch !== this.#epoch) return
    this.#epoch += 1
    this.forget(text)
    this.#forgetAll()
    this.#policy.noteLost(sqlState)
  }

  #forgetAll(): void {
    for (const name of this.#prepared.keys()) this.#stale.add(name)
    this.#prepared.clear()
  }

  /** Keeps a text that is in use from being the oldest; only worth its cost where names may run out. */
  #touch(text: StatementText): void {
    if (this.#prepared.size < this.#policy.settings.max / 2) return
    const shape = this.#prepared.get(text.name)
    this.#prepared.delete(text.name)
    this.#prepared.set(text.name, shape)
  }
}
