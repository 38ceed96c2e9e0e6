/**
 * `npm run faults`: every fault with its full count, and a table of what held. Arguments go to vitest:
 * `npm run faults -- durability` runs one file, `npm run faults -- -t 'row 10:'` one row.
 */

import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { FaultRecord } from '../test/faults/record.ts'
import { faultRows } from '../test/faults/rows.ts'
import { runScript, seconds } from './steps.ts'

/** What vitest's JSON reporter writes, as far as it is needed. */
interface VitestReport {
  readonly testResults: readonly {
    readonly name: string
    readonly status: string
    readonly assertionResults: readonly {
      readonly title: string
      readonly status: string
      readonly duration?: number
    }[]
  }[]
}

interface RowResult {
  readonly row: number
  runs: number
  passed: number
  failed: number
  durationMs: number
  readonly saw: string[]
}

const folder = mkdtempSync(join(tmpdir(), 'kanta-faults-'))
const [recordFile, reportFile] = [join(folder, 'records.jsonl'), join(folder, 'report.json')]
process.env['KANTA_FAULTS'] = 'full'
process.env['KANTA_FAULTS_REPORT'] = recordFile
try {
  const { code } = await runScript(
    ['node_modules/vitest/vitest.mjs', 'run', '--project', 'faults', '--reporter=default', '--reporter=json'].concat([
      `--outputFile.json=${reportFile}`,
      ...process.argv.slice(2),
    ]),
    'shown',
  )
  printSummary(collect(readRecords(), readReport()))
  process.exitCode = code
} finally {
  rmSync(folder, { recursive: true, force: true })
}

function readRecords(): FaultRecord[] {
  try {
    const lines = readFileSync(recordFile, 'utf8').split('\n')
    return lines.filter((line) => line !== '').map((line) => JSON.parse(line) as FaultRecord)
  } catch {
    // Not one test came as far as to count.
    return []
  }
}

function readReport(): VitestReport {
  try {
    return JSON.parse(readFileSync(reportFile, 'utf8')) as VitestReport
  } catch {
    return { testResults: [] }
  }
}

function collect(records: readonly FaultRecord[], report: VitestReport): RowResult[] {
  const rows = new Map<number, RowResult>()
  const rowOf = (row: number): RowResult => {
    const known = rows.get(row) ?? { row, runs: 0, passed: 0, failed: 0, durationMs: 0, saw: [] }
    rows.set(row, known)
    return known
  }
  for (const test of report.testResults.flatMap((file) => file.assertionResults)) {
    const number = /^row (\d+):/.exec(test.title)?.[1]
    if (number === undefined || test.status === 'skipped') continue
    const row = rowOf(Number(number))
    if (test.status === 'passed') row.passed += 1
    else row.failed += 1
    row.durationMs += test.duration ?? 0
  }
  for (const { row: number, runs, saw } of records) {
    const row = rowOf(number)
    row.runs += runs
    row.saw.push(saw)
  }
  return [...rows.values()].toSorted((one, other) => one.row - other.row)
}

/** A table that is Markdown too, and below it the figures of each test. */
function printSummary(rows: readonly RowResult[]): void {
  const cells = rows.map((row) => {
    const { fault = 'unknown', bar = '' } = faultRows[row.row] ?? {}
    const result = row.failed > 0 ? 'MISSED' : row.passed > 0 ? 'held' : 'skipped'
    return [String(row.row), fault, row.runs.toLocaleString('en'), bar, result, seconds(row.durationMs)]
  })
  const head = ['#', 'fault', 'runs', 'bar', 'result', 'time']
  const widths = head.map((title, column) => Math.max(title.length, ...cells.map((row) => row[column]?.length ?? 0)))
  const line = (row: readonly string[]): string =>
    `| ${row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(' | ')} |`
  console.log(`\n${line(head)}\n|${widths.map((width) => '-'.repeat(width + 2)).join('|')}|`)
  for (const row of cells) console.log(line(row))
  console.log('\nWhat was seen:')
  for (const { row, saw } of rows) for (const text of saw) console.log(`${String(row).padStart(4)}  ${text}`)
  const missed = rows.filter(({ failed }) => failed > 0).length
  console.log(`\n${rows.length - missed} of ${rows.length} rows held`)
}
