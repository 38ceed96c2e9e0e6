/** How much a fault test runs, and where it says what it saw. */

import { appendFileSync } from 'node:fs'

/** Whether the whole counts were asked for (`npm run faults`) or the selection that `npm test` runs. */
export const isFull: boolean = process.env['KANTA_FAULTS'] === 'full'

/** One line of the report that the summary of `npm run faults` is made from. */
export interface FaultRecord {
  /** The number in `rows.ts`. */
  readonly row: number
  readonly runs: number
  /** What was seen, in figures. */
  readonly saw: string
}

/** How often a fault is provoked: `full` times in the whole run, `quick` times in the selection. */
export function times(full: number, quick: number): number {
  return isFull ? full : quick
}

/** Adds a line to the report, if there is one. Call it before the assertions, so that a failed run tells its counts too. */
export function record(row: number, runs: number, saw: string): void {
  const file = process.env['KANTA_FAULTS_REPORT']
  if (file) appendFileSync(file, `${JSON.stringify({ row, runs, saw } satisfies FaultRecord)}\n`)
}

/** How often each value occurs, most frequent first: `12 CONNECTION_LOST, 3 SERVER_SHUTDOWN`. */
export function tally(values: Iterable<string | undefined>): string {
  const counts = new Map<string, number>()
  for (const value of values) if (value !== undefined) counts.set(value, (counts.get(value) ?? 0) + 1)
  const parts = [...counts].toSorted((one, other) => other[1] - one[1]).map(([value, count]) => `${count} ${value}`)
  return parts.join(', ') || 'none'
}

/** The value below which this share of the numbers lies. */
export function quantile(numbers: readonly number[], share: number): number {
  const sorted = numbers.toSorted((one, other) => one - other)
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN
}
