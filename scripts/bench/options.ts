import { parseArgs } from 'node:util'
import { baseline, type ContenderName, contenderNames } from './contender.ts'
import { targets } from './targets.ts'
import { workloads } from './workloads.ts'

/** What is measured beside the workloads. */
const extras = ['curve', 'stream', 'bulk', 'repository', 'work', 'orders', 'cache', 'replicas', 'import'] as const

/** Everything that `--only` knows. */
const parts: readonly string[] = [...workloads.map(({ name }) => name), ...extras]

export interface BenchOptions {
  readonly parts: ReadonlySet<string>
  readonly contenders: readonly ContenderName[]
  readonly rounds: number
  /** Length of one slice. */
  readonly seconds: number
  readonly seed: number
  /** The file for the figures of every slice. */
  readonly json: string | undefined
  /** Write the results into docs/performance.md. */
  readonly markdown: boolean
  /** Fail when a target is missed. */
  readonly floor: boolean
}

export const help: string = `npm run bench -- [options]

  --only <parts>          ${parts.join(', ')}
  --contenders <names>    ${contenderNames.join(', ')}
                          (${baseline} always takes part: the ratios are to it)
  --rounds <n>            turns of each contender in each workload (15)
  --seconds <n>           length of one turn (0.2)
  --seed <n>              of the order of turns and of the rows asked for (1)
  --floor                 only what has a target, and exit code 1 if one is missed
  --json <file>           the figures of every turn
  --markdown              write the results of a whole run into docs/performance.md
  --help

Exit codes: 0 measured, 1 a contender failed or gave wrong rows (with --floor: or a target was missed), 2 could not run.
Uses a PostgreSQL of its own, or a new database on the server of TEST_DATABASE_URL.`

/** Thrown for arguments that make no sense, with what to do instead. */
export class UsageError extends Error {}

/** Reads the command line; undefined when help was asked for. Throws {@link UsageError}. */
export function parseOptions(args: readonly string[]): BenchOptions | undefined {
  const values = parse(args)
  if (values.help) return undefined
  if (values.markdown && (values.floor || values.only !== undefined || values.contenders !== undefined))
    throw new UsageError('--markdown writes a whole run; leave out --only, --contenders and --floor.')
  const withTarget = new Set<string>([
    'import',
    'stream',
    'bulk',
    'repository',
    'work',
    'orders',
    'cache',
    ...targets.flatMap(({ part, contender, against }) => [part, contender, against]),
  ])
  const wanted = <Name extends string>(names: readonly Name[], given: string | undefined, option: string) =>
    given === undefined ? names.filter((name) => !values.floor || withTarget.has(name)) : chosen(names, given, option)
  const names = wanted(contenderNames, values.contenders, '--contenders')
  return {
    parts: new Set(wanted(parts, values.only, '--only')),
    contenders: contenderNames.filter((name) => name === baseline || names.includes(name)),
    rounds: numberFrom(values.rounds, '--rounds', 1, 1_000, true),
    seconds: numberFrom(values.seconds, '--seconds', 0.01, 600, false),
    seed: numberFrom(values.seed, '--seed', 0, 2 ** 31 - 1, true),
    json: values.json,
    markdown: values.markdown,
    floor: values.floor,
  }
}

function parse(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      options: {
        only: { type: 'string' },
        contenders: { type: 'string' },
        rounds: { type: 'string', default: '15' },
        seconds: { type: 'string', default: '0.2' },
        seed: { type: 'string', default: '1' },
        json: { type: 'string' },
        markdown: { type: 'boolean', default: false },
        floor: { type: 'boolean', default: false },
        help: { type: 'boolean', default: false },
      },
    }).values
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error), { cause: error })
  }
}

function chosen<Name extends string>(names: readonly Name[], given: string, option: string): Name[] {
  const asked = given.split(',').map((name) => name.trim())
  const unknown = asked.filter((name) => !(names as readonly string[]).includes(name))
  if (unknown.length > 0)
    throw new UsageError(`${option} does not know ${unknown.join(', ')}. It knows ${names.join(', ')}.`)
  return names.filter((name) => asked.includes(name))
}

function numberFrom(given: string, option: string, min: number, max: number, whole: boolean): number {
  const value = Number(given)
  if (given.trim() !== '' && value >= min && value <= max && (!whole || Number.isInteger(value))) return value
  throw new UsageError(`${option} takes a ${whole ? 'whole ' : ''}number from ${min} to ${max}, not "${given}".`)
}
