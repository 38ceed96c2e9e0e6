/**
 * `npm test`: every check and every test, and a summary whose last line is `N passed, N failed`.
 * `npm test -- <filter>` runs just the test files whose path contains the filter; vitest's options work too.
 */

import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, relative, sep } from 'node:path'
import { check } from './check.ts'
import { runScript, seconds } from './steps.ts'

const vitest = ['node_modules/vitest/vitest.mjs', 'run']

/** One line of the summary. */
interface Row {
  readonly name: string
  passed: number
  failed: number
  skipped: number
  durationMs: number
}

/** What vitest's JSON reporter writes, as far as it is needed. */
interface VitestReport {
  readonly success: boolean
  readonly testResults: readonly {
    readonly name: string
    readonly status: string
    readonly startTime: number
    readonly endTime: number
    readonly assertionResults: readonly { readonly status: string }[]
  }[]
}

const filters = process.argv.slice(2)
if (filters.length > 0) {
  process.exitCode = (await runScript([...vitest, ...filters], 'shown')).code
} else {
  const begun = performance.now()
  const checks = await check()
  const rows = checks.map(({ name, passed, durationMs }): Row => {
    return { name, passed: passed ? 1 : 0, failed: passed ? 0 : 1, skipped: 0, durationMs }
  })
  rows.push(...(await runTests()))
  process.exitCode = summarize(rows, performance.now() - begun) === 0 ? 0 : 1
}

async function runTests(): Promise<Row[]> {
  const folder = mkdtempSync(join(tmpdir(), 'kanta-test-'))
  const file = join(folder, 'report.json')
  try {
    const { code } = await runScript(
      [...vitest, '--reporter=default', '--reporter=json', `--outputFile.json=${file}`],
      'shown',
    )
    const rows = rowsOf(readReport(file))
    // Errors outside any test, and servers that cannot be had, fail the run without failing a test.
    if (code !== 0 && rows.every((row) => row.failed === 0)) {
      rows.push({ name: 'test run', passed: 0, failed: 1, skipped: 0, durationMs: 0 })
    }
    return rows
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

function readReport(file: string): VitestReport {
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as VitestReport
  } catch {
    return { success: false, testResults: [] }
  }
}

/** A row for each folder of `test/`. */
function rowsOf(report: VitestReport): Row[] {
  const rows = new Map<string, Row>()
  for (const file of report.testResults) {
    const folder = relative(join(import.meta.dirname, '../test'), file.name).split(sep)[0] ?? file.name
    const name = `${folder} tests`
    const row = rows.get(name) ?? { name, passed: 0, failed: 0, skipped: 0, durationMs: 0 }
    rows.set(name, row)
    const count = (status: string): number => file.assertionResults.filter((test) => test.status === status).length
    row.passed += count('passed')
    row.failed += count('failed')
    row.skipped += file.assertionResults.length - count('passed') - count('failed')
    // A file that cannot be loaded, or whose hooks fail, has no failed test.
    if (file.status === 'failed' && count('failed') === 0) row.failed += 1
    row.durationMs += file.endTime - file.startTime
  }
  return [...rows.values()].toSorted((a, b) => a.name.localeCompare(b.name))
}

/** Prints the table and the line that CI reads; returns the number of failures. */
function summarize(rows: readonly Row[], durationMs: number): number {
  const sum = (key: 'failed' | 'passed' | 'skipped'): number => rows.reduce((total, row) => total + row[key], 0)
  console.log(
    `\n${'step'.padEnd(20)}${'passed'.padStart(8)}${'failed'.padStart(8)}${'skipped'.padStart(9)}${'time'.padStart(10)}`,
  )
  const line = (name: string, row: Omit<Row, 'name'>): string => {
    const mark = row.failed > 0 ? '✗' : '✓'
    const numbers = `${String(row.passed).padStart(8)}${String(row.failed).padStart(8)}${String(row.skipped).padStart(9)}`
    return `${mark} ${name.padEnd(18)}${numbers}${seconds(row.durationMs).padStart(10)}`
  }
  for (const row of rows) console.log(line(row.name, row))
  const total = { passed: sum('passed'), failed: sum('failed'), skipped: sum('skipped'), durationMs }
  console.log(line('all', total))
  console.log(`\n${total.passed} passed, ${total.failed} failed`)
  return total.failed
}
