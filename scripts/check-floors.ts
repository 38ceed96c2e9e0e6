/**
 * Checks what may import what in `src/` (type imports count): a file imports only from floors below its own, folders of
 * one floor do not know each other, no files import each other in a circle, and each driver has one folder.
 *
 * Run by `npm run check`; prints one line per problem and exits with 1 if there are any.
 */

import { globSync, readFileSync } from 'node:fs'
import { dirname, join, relative, resolve, sep } from 'node:path'
import { parseSync, Visitor } from 'oxc-parser'

/** From the ground up. A name is a folder of `src/` or a file directly in it. */
const floors: readonly (readonly string[])[] = [
  ['core', 'domain', 'generated'],
  ['resilience', 'observe'],
  ['postgres', 'redis'],
  ['cache', 'schema'],
  ['database'],
  ['repository', 'work', 'security', 'diagnostics'],
  ['repositories', 'testing', 'status', 'default.ts'],
  ['index.ts', 'domain.ts', 'migrate.ts', 'testing.ts'],
  ['cli'],
]

/** Drivers are swapped, wrapped and upgraded in one place each. */
const driverFolders: Readonly<Record<string, string>> = {
  pg: 'postgres',
  'pg-cursor': 'postgres',
  'pg-copy-streams': 'postgres',
  ioredis: 'redis',
}

/** One breach of the rules. */
export interface FloorProblem {
  /** Path below the source folder, with its line: `core/errors.ts:12`. */
  readonly place: string
  readonly message: string
}

interface Import {
  readonly line: number
  readonly specifier: string
}

/** Reads every TypeScript file below `source` and returns what breaks the rules, in the order of the files. */
export function checkFloors(source: string): FloorProblem[] {
  const files = globSync('**/*.{ts,mts,tsx}', { cwd: source }).map((file) => file.split(sep).join('/'))
  const problems: FloorProblem[] = []
  const graph = new Map<string, string[]>()

  for (const file of files.toSorted()) {
    const unit = unitOf(file)
    if (floorOf(unit) === -1) {
      problems.push({ place: `${file}:1`, message: `${unit} has no floor: add it to scripts/check-floors.ts` })
    }
    const targets: string[] = []
    for (const { line, specifier } of importsOf(join(source, file))) {
      const place = `${file}:${line}`
      if (!specifier.startsWith('.')) {
        const driver = Object.keys(driverFolders).find((name) => specifier === name || specifier.startsWith(`${name}/`))
        if (driver !== undefined && driverFolders[driver] !== unit) {
          problems.push({ place, message: `only ${driverFolders[driver]}/ imports ${driver}` })
        }
        continue
      }
      const target = relative(source, resolve(source, dirname(file), specifier))
        .split(sep)
        .join('/')
      if (target.startsWith('../')) problems.push({ place, message: `${specifier} is outside the source folder` })
      else targets.push(target)
      const message = breach(unit, unitOf(target))
      if (message !== undefined) problems.push({ place, message: `${message} (${specifier})` })
    }
    graph.set(file, targets)
  }

  for (const cycle of findCycles(graph)) {
    problems.push({
      place: `${cycle[0] ?? ''}:1`,
      message: `files import each other in a circle: ${cycle.join(' → ')}`,
    })
  }
  return problems
}

function breach(from: string, to: string): string | undefined {
  const [upper, lower] = [floorOf(from), floorOf(to)]
  // A unit without a floor is reported where it is, not again at each import.
  if (from === to || upper === -1 || lower === -1) return undefined
  if (lower > upper) return `${from} (floor ${upper}) imports upwards from ${to} (floor ${lower})`
  if (lower === upper) return `${from} and ${to} are on one floor (${upper}) and must not know each other`
  return undefined
}

function unitOf(file: string): string {
  return file.split('/')[0] ?? file
}

function floorOf(unit: string): number {
  return floors.findIndex((units) => units.includes(unit))
}

/** Everything a file takes from another: imports and re-exports, of values and types, `import()` in both meanings. */
function importsOf(path: string): Import[] {
  const text = readFileSync(path, 'utf8')
  const { program, errors } = parseSync(path, text)
  const [error] = errors
  if (error !== undefined) throw new Error(`${path} cannot be parsed: ${error.message}`)
  const found: Import[] = []
  const add = (source: { type: string; start: number; value?: unknown } | null): void => {
    if (source?.type !== 'Literal' || typeof source.value !== 'string') return
    found.push({ line: text.slice(0, source.start).split('\n').length, specifier: source.value })
  }
  new Visitor({
    ImportDeclaration: (node) => add(node.source),
    ExportNamedDeclaration: (node) => add(node.source),
    ExportAllDeclaration: (node) => add(node.source),
    ImportExpression: (node) => add(node.source),
    TSImportType: (node) => add(node.source),
    TSExternalModuleReference: (node) => add(node.expression),
  }).visit(program)
  return found
}

/** Each import that closes a circle, with the way around. A file is entered once, so not every circle is listed at once. */
function findCycles(graph: ReadonlyMap<string, readonly string[]>): string[][] {
  const cycles: string[][] = []
  const done = new Set<string>()
  const path: string[] = []

  function visit(file: string): void {
    const start = path.indexOf(file)
    if (start !== -1) {
      cycles.push([...path.slice(start), file])
      return
    }
    if (done.has(file)) return
    path.push(file)
    for (const target of graph.get(file) ?? []) visit(target)
    path.pop()
    done.add(file)
  }

  for (const file of graph.keys()) visit(file)
  return cycles
}

if (import.meta.main) {
  const problems = checkFloors(join(import.meta.dirname, '../src'))
  for (const { place, message } of problems) console.log(`src/${place}: ${message}`)
  process.exitCode = problems.length === 0 ? 0 : 1
}
