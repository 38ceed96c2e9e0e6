import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { DatabaseError, MigrationError } from '../core/errors.ts'
import { splitStatements, type Statement } from './statements.ts'

/** One migration as its file has it. */
export interface MigrationFile {
  /** The file's name without `.sql`; what the ledger holds. */
  readonly name: string
  /** The path as the caller's directory gives it, for messages. */
  readonly file: string
  readonly up: readonly MigrationStatement[]
  /** Empty when the file does not say how to undo it. */
  readonly down: readonly MigrationStatement[]
}

/** A statement and where it stands. */
export interface MigrationStatement {
  readonly sql: string
  /** Line of its first character in the file, from 1. */
  readonly line: number
}

const namePattern = /^(\d+)_[A-Za-z0-9][A-Za-z0-9_.-]*\.sql$/
const upMarker = /^--[\s-]*up\s+migration/i
const downMarker = /^--[\s-]*down\s+migration/i

// The migrator's own transaction is what makes a failed file leave nothing behind.
const transactionControl =
  /^(?:begin|commit|end|abort|start\s+transaction|prepare\s+transaction|rollback(?!(?:\s+(?:work|transaction))?\s+to\b))\b/i

/**
 * The migrations of a folder in the order in which they run: by the number that begins their name. Anything that
 * does not begin with a digit and end in `.sql`, such as a README, is left alone.
 *
 * Fails with `MIGRATION_INVALID` when the folder is missing or holds no migration, two files have one number, or a file
 * is not what the runner would take it for; nothing has run then.
 */
export async function readMigrations(directory: string): Promise<readonly MigrationFile[]> {
  const names = (await namesIn(directory)).filter((name) => isMeant(name, directory))
  if (names.length === 0) {
    throw invalid(
      directory,
      'holds no migration',
      'Write one with `kanta migrate create <name>`, or name another folder',
    )
  }
  names.sort((a, b) => compareNumbers(numberOf(a), numberOf(b)))
  for (const [i, name] of names.entries()) {
    const before = names[i - 1]
    if (before !== undefined && numberOf(before) === numberOf(name)) {
      const files = `${join(directory, before)} and ${join(directory, name)}`
      throw new MigrationError(
        'MIGRATION_INVALID',
        `${files} have the same number. Give the one that is not applied yet the next free number.`,
        { file: join(directory, name) },
      )
    }
  }
  return Promise.all(names.map((name) => readMigration(directory, name)))
}

/** The number at the beginning of a migration's name, as the digits say. */
export function numberOf(name: string): bigint {
  return BigInt(/^\d+/.exec(name)?.[0] ?? 0)
}

/** Orders migration names as they run. */
export function compareNumbers(a: bigint, b: bigint): number {
  if (a === b) return 0
  return a < b ? -1 : 1
}

/**
 * Writes a new file with both markers and the next free number, and resolves to its path. Makes the folder if need be.
 * Fails with `INVALID_ARGUMENT` when the name has no letter or digit to make a file name of.
 */
export async function createMigrationFile(directory: string, name: string): Promise<string> {
  const words = name.toLowerCase().match(/[a-z0-9]+/g)
  if (!words) {
    throw new DatabaseError(
      'INVALID_ARGUMENT',
      'The name of a migration needs a letter or digit, as in "add invoices".',
    )
  }
  await mkdir(directory, { recursive: true })
  const numbers = (await namesIn(directory)).flatMap((file) => namePattern.exec(file)?.[1] ?? [])
  const next = numbers.map(BigInt).reduce((highest, number) => (number > highest ? number : highest), 0n) + 1n
  const width = Math.max(4, ...numbers.map((number) => number.length))
  const file = join(directory, `${String(next).padStart(width, '0')}_${words.join('_')}.sql`)
  await writeFile(file, '-- Up Migration\n\n\n-- Down Migration\n\n', { flag: 'wx' })
  return file
}

async function namesIn(directory: string): Promise<string[]> {
  try {
    return (await readdir(directory, { withFileTypes: true }))
      .filter((entry) => !entry.isDirectory())
      .map((entry) => entry.name)
  } catch (cause) {
    const reason = (cause as NodeJS.ErrnoException).code === 'ENOENT' ? 'does not exist' : 'cannot be read'
    throw invalid(directory, reason, 'Name the folder that holds the migrations', cause)
  }
}

function isMeant(name: string, directory: string): boolean {
  if (namePattern.test(name)) return true
  const file = join(directory, name)
  if (/^\d/.test(name) && /\.(?:[cm]?[jt]s)$/.test(name)) {
    throw invalid(file, 'is not SQL', 'Write the migration as a .sql file; programs are not run')
  }
  if (!name.startsWith('.') && name.endsWith('.sql')) {
    throw invalid(
      file,
      'has no number',
      'Name it like 0007_add_invoices.sql: digits, an underscore, then letters, digits, _ . or -',
    )
  }
  return false
}

async function readMigration(directory: string, fileName: string): Promise<MigrationFile> {
  const file = join(directory, fileName)
  const text = await readText(file)
  const { lineComments } = splitStatements(text)
  const ups = lineComments.filter((comment) => upMarker.test(comment.text))
  const downs = lineComments.filter((comment) => downMarker.test(comment.text))
  const { statements, unclosed } = splitStatements(
    text,
    [...ups, ...downs].map((comment) => comment.start),
  )
  if (unclosed) {
    throw invalid(file, `opens ${unclosed.what} that never ends`, 'Close it', undefined, lineAt(text, unclosed.start))
  }
  const [up] = ups
  const [down] = downs
  if (!up) throw invalid(file, 'has no line `-- Up Migration`', 'Put it before the SQL that makes the change')
  const again = ups[1] ?? downs[1]
  if (again) throw invalid(file, 'has a section twice', 'Keep one of each', undefined, lineAt(text, again.start))
  if (down && down.start < up.start) {
    throw invalid(
      file,
      'has its Down section first',
      'Put `-- Up Migration` and its SQL first',
      undefined,
      lineAt(text, down.start),
    )
  }
  const [first] = statements
  if (first && first.start < up.start) {
    throw invalid(file, 'has SQL before `-- Up Migration`', 'Move it below', undefined, lineAt(text, first.start))
  }
  const placed = statements.map((statement) => place(statement, text, file))
  const upEnd = down?.start ?? text.length
  const sections = {
    up: placed.filter((_, i) => (statements[i]?.start ?? 0) < upEnd),
    down: placed.filter((_, i) => (statements[i]?.start ?? 0) >= upEnd),
  }
  if (sections.up.length === 0) {
    throw invalid(
      file,
      'has no SQL under `-- Up Migration`',
      'Write it, or remove the file',
      undefined,
      lineAt(text, up.start),
    )
  }
  return { name: fileName.slice(0, -'.sql'.length), file, ...sections }
}

function place(statement: Statement, text: string, file: string): MigrationStatement {
  const line = lineAt(text, statement.start)
  if (transactionControl.test(statement.sql)) {
    const [word] = statement.sql.split(/\s/, 1)
    throw invalid(
      file,
      `says ${word?.toUpperCase()}`,
      'Remove it: each file runs in a transaction of its own',
      undefined,
      line,
    )
  }
  return { sql: statement.sql, line }
}

async function readText(file: string): Promise<string> {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(await readFile(file))
  } catch (cause) {
    const reason = cause instanceof TypeError ? 'is not UTF-8' : 'cannot be read'
    throw invalid(file, reason, 'Save it as UTF-8 text that this user may read', cause)
  }
}

/** The line on which a position stands, from 1. */
export function lineAt(text: string, position: number): number {
  return text.slice(0, position).split('\n').length
}

function invalid(file: string, what: string, remedy: string, cause?: unknown, line?: number): MigrationError {
  const where = line === undefined ? file : `${file}:${line}`
  const init = cause === undefined ? {} : { cause }
  return new MigrationError('MIGRATION_INVALID', `${where} ${what}. ${remedy}.`, { ...init, file, line })
}
