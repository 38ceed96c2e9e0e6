import { randomUUID } from 'node:crypto'
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { Kysely } from 'kysely'
import type { ValueTypes } from '../core/options.ts'
import { DatabaseError, isDatabaseError } from '../core/errors.ts'
import type { ConnectionSource } from '../postgres/connection.ts'
import { sourceDialect } from '../postgres/dialect.ts'
import { openEmbedded } from '../postgres/embedded.ts'
import { readCatalogFacts } from './catalog-facts.ts'
import { Migrator } from './migrator.ts'

/** Where types come from. */
export interface CodegenOptions {
  /** The folder of the migrations. */
  readonly migrationsDirectory: string
  /** As what values are read: the same as `postgres.types` of the program. @default strings, and Date for date */
  readonly types?: ValueTypes | undefined
}

/** Where types come from and where they are kept. */
export interface TypesFileOptions extends CodegenOptions {
  readonly outFile: string
}

/**
 * The TypeScript types of the schema that the migrations make: the interface `DB` for Kysely and the union
 * `ConstraintName`. It applies all migrations to an embedded PostgreSQL in memory, so it needs no server, reads no
 * configuration and gives the same text for the same migrations.
 *
 * bigint and numeric are strings and date is Date unless `types` says otherwise, timestamps are Date; what PostgreSQL always computes itself and
 * the columns of views cannot be written.
 *
 * Fails with `CODEGEN_FAILED` when a development dependency is missing, and as {@link Migrator.up} does when a
 * migration is wrong. Migrations that need an extension which the embedded PostgreSQL lacks fail.
 */
export async function generateTypes(options: CodegenOptions): Promise<string> {
  const describeTables = await loadSerializer()
  const source = await openScratch()
  try {
    await new Migrator({ source, directory: options.migrationsDirectory }).up()
    const db = new Kysely<unknown>({ dialect: sourceDialect(source) })
    try {
      const facts = await readCatalogFacts(db)
      const tables = await describeTables(db, facts, options.types)
      return `${headerFor(options.types)}${tables}\n${constraintUnion(facts.constraintNames)}`
    } finally {
      await db.destroy()
    }
  } finally {
    await source.close()
  }
}

/**
 * Generates the types and keeps them in `outFile`, which is replaced at once or not at all, and left alone when it
 * already says the same.
 */
export async function writeTypes(options: TypesFileOptions): Promise<{ readonly changed: boolean }> {
  const generated = await generateTypes(options)
  const { outFile } = options
  if ((await readTypes(outFile)) === generated) return { changed: false }
  const draft = `${outFile}.${randomUUID()}.tmp`
  try {
    await mkdir(dirname(outFile), { recursive: true })
    await writeFile(draft, generated)
    await rename(draft, outFile)
  } catch (cause) {
    await rm(draft, { force: true })
    throw codegenFailed(
      `${outFile} cannot be written (${reasonOf(cause)})`,
      'Name a file in a folder that this user may write',
      cause,
    )
  }
  return { changed: true }
}

/** Whether `outFile` holds what the migrations say; `differences` shows the first lines where it does not. */
export async function checkTypes(
  options: TypesFileOptions,
): Promise<{ readonly upToDate: boolean; readonly differences: string }> {
  const generated = await generateTypes(options)
  const kept = await readTypes(options.outFile)
  if (kept === generated) return { upToDate: true, differences: '' }
  const differences = kept === undefined ? 'The file does not exist.' : firstDifference(kept, generated)
  return { upToDate: false, differences }
}

const header = `/**
 * The types of the database schema, written by \`kanta codegen\` from the migrations. Do not edit: change the schema by
 * a migration and generate them again.
 */
`

/** Says what was chosen, so that a check that fails for it can be understood. */
function headerFor(types: ValueTypes = {}): string {
  const chosen = Object.entries(types).flatMap(([type, read]) => (read === undefined ? [] : [`${type}: ${read}`]))
  return chosen.length === 0
    ? header
    : header.replace(' */', ` *\n * Values are read with postgres.types ${chosen.toSorted().join(', ')}.\n */`)
}

function constraintUnion(names: readonly string[]): string {
  const members = names.map((name) => `\n  | '${name.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`)
  return `/** What a violation may name as its constraint: constraints of all kinds and unique indexes. */
export type ConstraintName =${members.join('') || ' never'}
`
}

/** Loaded on use: kysely-codegen needs `typescript`, which programs in production do without. */
async function loadSerializer(): Promise<typeof import('./type-serializer.ts').describeTables> {
  try {
    return (await import('./type-serializer.ts')).describeTables
  } catch (cause) {
    throw codegenFailed('kysely-codegen could not be loaded', 'Run `npm install --save-dev typescript`', cause)
  }
}

async function openScratch(): Promise<ConnectionSource> {
  try {
    return await openEmbedded({ kind: 'embedded', dataDir: 'memory' }, { info: () => undefined, warn: () => undefined })
  } catch (cause) {
    if (!isDatabaseError(cause) || cause.code !== 'EMBEDDED_UNAVAILABLE') throw cause
    throw codegenFailed(
      'The embedded PostgreSQL, in which the migrations are tried, did not start',
      'Run `npm install --save-dev @electric-sql/pglite`',
      cause,
    )
  }
}

async function readTypes(file: string): Promise<string | undefined> {
  try {
    // Git may have checked it out with the line ends of Windows.
    return (await readFile(file, 'utf8')).replaceAll('\r\n', '\n')
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw codegenFailed(`${file} cannot be read (${reasonOf(cause)})`, 'Name a file that this user may read', cause)
  }
}

const shownLines = 8

/** The first place where two texts part, as the lines there (`-`) and the lines that belong there (`+`). */
function firstDifference(kept: string, generated: string): string {
  const before = kept.split('\n')
  const after = generated.split('\n')
  const start = before.findIndex((line, i) => line !== after[i])
  const first = start < 0 ? before.length : start
  let common = 0
  while (common < Math.min(before.length, after.length) - first && before.at(-1 - common) === after.at(-1 - common)) {
    common += 1
  }
  return [
    `from line ${first + 1}:`,
    ...excerpt('-', before.slice(first, before.length - common)),
    ...excerpt('+', after.slice(first, after.length - common)),
  ].join('\n')
}

function excerpt(sign: string, lines: readonly string[]): readonly string[] {
  const shown = lines.slice(0, shownLines).map((line) => `${sign} ${line}`)
  const rest = lines.length - shown.length
  return rest > 0 ? [...shown, `${sign} … (${rest} more lines)`] : shown
}

function reasonOf(cause: unknown): string {
  return (cause as NodeJS.ErrnoException).code ?? 'no reason given'
}

function codegenFailed(what: string, remedy: string, cause: unknown): DatabaseError {
  return new DatabaseError('CODEGEN_FAILED', `${what}. ${remedy}.`, { cause })
}
