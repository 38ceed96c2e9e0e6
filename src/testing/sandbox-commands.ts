/** What becomes of the commands of transactions where all runs inside one transaction. */

import type { IsolationLevel } from 'kysely'
import { splitStatements } from '../schema/statements.ts'
import { raising } from './messages.ts'

/** How isolated a sandbox is. */
export type SandboxIsolation = Exclude<IsolationLevel, 'read uncommitted' | 'snapshot'>

/** A command of transactions. */
export interface Control {
  readonly kind: 'begin' | 'commit' | 'rollback'
  /** Of a transaction that begins. */
  readonly isReadOnly: boolean
}

/** A statement as it is sent instead. */
export interface Rewritten {
  readonly sql: string
  readonly control: Control | undefined
}

/** A text of the simple protocol as it is sent instead. */
export interface RewrittenScript {
  readonly sql: string
  readonly begins: Control | undefined
  readonly ends: 'commit' | 'rollback' | undefined
}

const ranks: Readonly<Record<string, number>> = { 'repeatable read': 1, serializable: 2 }

const suspicious = /\b(?:abort|begin|commit|end|listen|prepare|rollback|start)\b/i

let opened = 0

/** Rewrites what the code under test sends, for a sandbox of one isolation level. */
export class SandboxCommands {
  /** The savepoint that stands for the transaction, or the single statement, of the code under test. */
  readonly savepoint: string
  readonly #isolation: SandboxIsolation

  constructor(isolation: SandboxIsolation) {
    opened += 1
    // A sandbox in a sandbox must not mean the savepoint of the other.
    this.savepoint = `kanta_sandbox_${opened}`
    this.#isolation = isolation
  }

  get #rollback(): string {
    return `rollback to savepoint ${this.savepoint}`
  }

  /** One statement. */
  statement(sql: string): Rewritten {
    const found = suspicious.test(sql) ? splitStatements(sql).statements[0] : undefined
    return found === undefined ? { sql, control: undefined } : this.#rewrite(found.sql, sql)
  }

  /** Any number of statements in one text; `isFailed` when the transaction that is open takes no more. */
  script(sql: string, isFailed: boolean): RewrittenScript {
    if (!suspicious.test(sql)) return { sql, begins: undefined, ends: undefined }
    const sent: string[] = []
    let begins: Control | undefined
    let ends: 'commit' | 'rollback' | undefined
    for (const statement of splitStatements(sql).statements) {
      if (ends !== undefined) return { sql: afterEnd, begins: undefined, ends: undefined }
      const { sql: instead, control } = this.#rewrite(statement.sql, statement.sql)
      if (control?.kind === 'begin') begins ??= control
      else if (control !== undefined) ends = isFailed ? 'rollback' : control.kind === 'commit' ? 'commit' : 'rollback'
      sent.push(control?.kind === 'commit' && isFailed ? this.#rollback : instead)
    }
    return { sql: sent.length === 0 ? sql : sent.join('; '), begins, ends }
  }

  #rewrite(sql: string, whole: string): Rewritten {
    const words = sql.toLowerCase().split(/[\s;]+/, 4)
    const [first, second] = words
    const isTo = /^(?:abort|rollback)\s+(?:(?:work|transaction)\s+)?to\b/i.test(sql)
    if (/^(?:(?:commit|rollback)\s+prepared|prepare\s+transaction)\b/i.test(sql)) return refused(twoPhase)
    if (first === 'listen') return refused(listening)
    if (first === 'begin' || (first === 'start' && second === 'transaction')) return this.#begin(sql)
    if (first === 'commit' || first === 'end') return ending(sql, 'commit', commit)
    if ((first === 'rollback' || first === 'abort') && !isTo) return ending(sql, 'rollback', this.#rollback)
    return { sql: whole, control: undefined }
  }

  #begin(sql: string): Rewritten {
    const [, level] = /isolation\s+level\s+(serializable|repeatable\s+read)/i.exec(sql.toLowerCase()) ?? []
    const asked = level?.replaceAll(/\s+/g, ' ') ?? ''
    if ((ranks[asked] ?? 0) > (ranks[this.#isolation] ?? 0)) return refused(tooIsolated(this.#isolation, asked))
    if (/(?<!not\s)\bdeferrable\b/i.test(sql)) return refused(deferrable)
    // The savepoint itself is made before: this only stands where the command stood.
    return { sql: 'savepoint kanta_begun', control: { kind: 'begin', isReadOnly: /\bread\s+only\b/i.test(sql) } }
  }
}

// What is to be checked at COMMIT is checked, and the savepoint goes with the next command.
const commit = 'set constraints all immediate'

function ending(sql: string, kind: 'commit' | 'rollback', instead: string): Rewritten {
  if (/\band\s+chain\b/i.test(sql) && !/\bno\s+chain\b/i.test(sql)) return refused(chained)
  return { sql: instead, control: { kind, isReadOnly: false } }
}

function refused(reason: string): Rewritten {
  return { sql: raising('25001', `${reason} Use a database of testServer() for this`), control: undefined }
}

const twoPhase = 'a sandbox has no two-phase commit, since nothing in it is ever committed.'
const listening = 'nothing that is sent in a sandbox is ever committed, so no notification arrives in it.'
const chained = 'a sandbox does not know AND CHAIN: end the transaction, and begin another.'
const deferrable = 'a transaction in a sandbox has begun already, so it cannot wait as DEFERRABLE asks.'
const afterEnd = raising(
  '25001',
  'in a sandbox nothing may follow the end of a transaction in one text: send what comes after it by itself',
)

function tooIsolated(isolation: string, asked: string): string {
  return `the sandbox is ${isolation}, so no transaction in it can be ${asked}. Open it with { isolationLevel: '${asked}' }.`
}
