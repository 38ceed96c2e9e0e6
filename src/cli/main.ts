#!/usr/bin/env node
import { readFileSync } from 'node:fs'
import { styleText } from 'node:util'
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander'
import { resolveConfig } from '../core/config.ts'
import type { ValueTypes } from '../core/options.ts'
import { isDatabaseError } from '../core/errors.ts'
import { createDatabase } from '../database/create-database.ts'
import { createMigrator, type MigrationRun, type MigrationStatus, type Migrator } from '../migrate.ts'
import { checkTypes, type TypesFileOptions, writeTypes } from '../schema/codegen.ts'
import { createMigrationFile } from '../schema/migration-files.ts'
import { ensureOwnTables, type OwnTablesChange, ownTablesSql } from '../schema/own-tables.ts'
import { ownParts } from '../work/own-parts.ts'

/** What a command found, as text for a person and as a value for a program. */
interface Outcome {
  readonly text: string
  readonly json: unknown
  /** 1 tells a script that there is something to do. @default 0 */
  readonly exitCode?: 0 | 1
}

interface CommonOptions {
  readonly json?: true
  readonly migrations: string
}

interface CodegenFlags extends ValueTypes {
  readonly out: string
  readonly check?: true
}

const couldNotRun = 2

process.exitCode = await main(process.argv)

async function main(argv: readonly string[]): Promise<number> {
  let exitCode = 0
  const act =
    <Arguments extends unknown[]>(run: (...args: Arguments) => Promise<Outcome>) =>
    async (...args: Arguments): Promise<void> => {
      const outcome = await run(...args)
      process.stdout.write(`${wantsJson(argv) ? JSON.stringify(outcome.json, undefined, 2) : outcome.text}\n`)
      exitCode = outcome.exitCode ?? 0
    }

  try {
    await commandLine(act).parseAsync(argv)
    return exitCode
  } catch (error) {
    // Commander has already written what it has to say.
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : couldNotRun
    report(error, wantsJson(argv))
    return couldNotRun
  }
}

type Act = <Arguments extends unknown[]>(
  run: (...args: Arguments) => Promise<Outcome>,
) => (...args: Arguments) => Promise<void>

function commandLine(act: Act): Command {
  const program = new Command('kanta')
    .description('Migrations, generated types, and the tables of kanta itself for PostgreSQL.')
    .version(packageVersion())
    .exitOverride()
    .addHelpText(
      'after',
      `
The database is that of DATABASE_DIRECT_URL or DATABASE_URL; without one, the embedded PostgreSQL in .kanta/.
Exit codes: 0 fine, 1 something was found, 2 it could not run.

Examples:
  $ kanta migrate create add invoices   write an empty migration
  $ kanta migrate up                    apply what is pending
  $ kanta codegen                       write the types that follow from the migrations
  $ kanta install                       make the tables that outbox and sagas need`,
    )
  const migrate = program.command('migrate').description('Change the schema; without a command, as `up`.')

  common(migrate.command('up', { isDefault: true }))
    .description('Apply pending migrations, each in a transaction of its own.')
    .option('--to <migration>', 'stop after this one (name or number)')
    .option('--count <number>', 'apply at most so many', positive)
    .action(
      act(async ({ migrations, to, count }: CommonOptions & { to?: string; count?: number }) =>
        describeRuns(
          'applied',
          'Nothing is pending.',
          await withMigrator(migrations, (migrator) => migrator.up({ to, count })),
        ),
      ),
    )
    .addHelpText('after', examples('kanta migrate up', 'kanta migrate up --to 0003', 'kanta migrate up --json'))

  common(migrate.command('down'))
    .description('Undo the migrations that were applied last. What they held is lost.')
    .option('--count <number>', 'undo so many', positive, 1)
    .option('--yes', 'do it in production')
    .action(
      act(async ({ migrations, count, yes }: CommonOptions & { count: number; yes?: true }) => {
        if (!yes && resolveConfig({ redis: false }).environment === 'production') return refuseInProduction()
        return describeRuns(
          'undid',
          'Nothing is applied.',
          await withMigrator(migrations, (migrator) => migrator.down({ count })),
        )
      }),
    )
    .addHelpText('after', examples('kanta migrate down', 'kanta migrate down --count 2'))

  common(migrate.command('status'))
    .description('Show which migrations are applied. Changes nothing.')
    .option('--exit-code', 'exit with 1 unless all are applied')
    .action(
      act(async ({ migrations, exitCode }: CommonOptions & { exitCode?: true }) => {
        const rows = await withMigrator(migrations, (migrator) => migrator.status())
        const isBehind = rows.some((row) => row.state !== 'applied')
        return { text: statusTable(rows), json: rows, exitCode: exitCode && isBehind ? 1 : 0 }
      }),
    )
    .addHelpText('after', examples('kanta migrate status', 'kanta migrate status --exit-code && npm start'))

  common(migrate.command('create'))
    .description('Write an empty migration with the next number.')
    .argument('<name...>', 'what it does, in a few words')
    .action(
      act(async (name: string[], { migrations }: CommonOptions) => {
        const file = await createMigrationFile(migrations, name.join(' '))
        return {
          text: `${file}: write the change below "-- Up Migration" and what undoes it below "-- Down Migration".`,
          json: { file },
        }
      }),
    )
    .addHelpText('after', examples('kanta migrate create add invoices'))

  common(program.command('codegen'))
    .description('Write the TypeScript types of the schema that the migrations make. Needs no server.')
    .option('--out <file>', 'where the types are kept', 'src/generated/schema.ts')
    .option('--check', 'only compare; exit with 1 if they differ')
    .addOption(readAs('int8', ['string', 'number', 'bigint']))
    .addOption(readAs('numeric', ['string', 'number']))
    .addOption(readAs('date', ['Date', 'string']))
    .action(
      act(async ({ migrations, out, check, int8, numeric, date }: CommonOptions & CodegenFlags) => {
        const files = { migrationsDirectory: migrations, outFile: out, types: { int8, numeric, date } }
        return check ? compareTypes(files) : keepTypes(files)
      }),
    )
    .addHelpText('after', examples('kanta codegen', 'kanta codegen --check', 'kanta codegen --int8 bigint'))

  program
    .command('install')
    .description('Make the tables of kanta itself, in the schema `kanta`: outbox and the like. Safe to repeat.')
    .option('--sql', 'only write the SQL that makes them where there are none')
    .option('--json', 'write the result as JSON')
    .action(
      act(async ({ sql: onlySql }: { sql?: true }) => {
        const text = ownTablesSql(ownParts)
        return onlySql ? { text, json: { sql: text } } : describeInstall(await install())
      }),
    )
    .addHelpText('after', examples('kanta install', 'kanta install --json', 'kanta install --sql > kanta.sql'))

  return program
}

async function install(): Promise<readonly OwnTablesChange[]> {
  // As migrations do, past a pooler where there is a way.
  const url = process.env['DATABASE_DIRECT_URL']
  await using database = await createDatabase<never>({ ...(url ? { postgres: { url } } : {}), redis: false })
  const changes: OwnTablesChange[] = []
  for (const part of ownParts) changes.push(await ensureOwnTables(database.db, part))
  return changes
}

function describeInstall(changes: readonly OwnTablesChange[]): Outcome {
  const lines = changes.map(({ part, from, to }) => {
    const done = from === 0 ? 'installed' : from < to ? `brought from version ${from}` : 'was there'
    return `${part.padEnd(12)}version ${to}, ${done}`
  })
  return { text: lines.join('\n'), json: changes }
}

/** The same as an option of `createDatabase` and its variable. */
function readAs(type: keyof ValueTypes, choices: readonly string[]): Option {
  return new Option(`--${type} <type>`, `as what ${type} is read`)
    .choices(choices)
    .env(`DATABASE_TYPES_${type.toUpperCase()}`)
}

function common(command: Command): Command {
  return command
    .option('--migrations <folder>', 'where the SQL files are', 'migrations')
    .option('--json', 'write the result as JSON')
}

async function withMigrator<T>(directory: string, run: (migrator: Migrator) => Promise<T>): Promise<T> {
  await using migrator = await createMigrator({ directory })
  return await run(migrator)
}

function describeRuns(verb: string, nothing: string, runs: readonly MigrationRun[]): Outcome {
  if (runs.length === 0) return { text: nothing, json: runs }
  const totalMs = runs.reduce((sum, run) => sum + run.durationMs, 0)
  return {
    text: `${verb} ${runs.length === 1 ? '1 migration' : `${runs.length} migrations`} in ${totalMs} ms`,
    json: runs,
  }
}

function refuseInProduction(): Outcome {
  const reason =
    'This is production, where undoing a migration loses data. Repeat the command with --yes if you mean it.'
  return { text: reason, json: { refused: reason }, exitCode: 1 }
}

function statusTable(rows: readonly MigrationStatus[]): string {
  const width = Math.max(...rows.map((row) => row.name.length))
  const colors = { applied: 'green', pending: 'yellow', missing: 'red' } as const
  const lines = rows.map((row) => {
    const when = row.appliedAt === undefined ? '' : row.appliedAt.toISOString()
    return `${row.name.padEnd(width)}  ${styleText(colors[row.state], row.state.padEnd(7), { stream: process.stdout })}  ${when}`.trimEnd()
  })
  const count = (state: MigrationStatus['state']): number => rows.filter((row) => row.state === state).length
  const missing = count('missing') > 0 ? `, ${count('missing')} applied without a file` : ''
  return `${lines.join('\n')}\n${count('applied')} applied, ${count('pending')} pending${missing}`
}

async function compareTypes(files: TypesFileOptions): Promise<Outcome> {
  const { upToDate, differences } = await checkTypes(files)
  if (upToDate) return { text: `${files.outFile} is up to date.`, json: { upToDate } }
  const text = `${files.outFile} is not what the migrations say, ${differences}\nRun \`kanta codegen\` and commit the result.`
  return { text, json: { upToDate, differences }, exitCode: 1 }
}

async function keepTypes(files: TypesFileOptions): Promise<Outcome> {
  const { changed } = await writeTypes(files)
  return {
    text: changed ? `${files.outFile} written.` : `${files.outFile} was up to date.`,
    json: { changed, file: files.outFile },
  }
}

function positive(text: string): number {
  if (/^[1-9]\d{0,8}$/.test(text)) return Number(text)
  throw new InvalidArgumentError('It must be a whole number from 1.')
}

function wantsJson(argv: readonly string[]): boolean {
  return argv.includes('--json')
}

function report(error: unknown, asJson: boolean): void {
  // An error of another kind is a defect of ours, and its stack is what finds it.
  const expected = isDatabaseError(error) ? error : undefined
  const text = expected
    ? `${expected.message}\n(${expected.code})`
    : String(error instanceof Error ? error.stack : error)
  if (asJson) {
    const fields = expected?.toJSON() ?? { message: text }
    process.stdout.write(`${JSON.stringify({ error: fields }, undefined, 2)}\n`)
    return
  }
  process.stderr.write(`${styleText('red', 'kanta:', { stream: process.stderr })} ${text}\n`)
}

function examples(...commands: readonly string[]): string {
  return `\nExamples:\n${commands.map((command) => `  $ ${command}`).join('\n')}`
}

function packageVersion(): string {
  const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
    version: string
  }
  return version
}
