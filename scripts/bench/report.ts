/** Results as a table for a person at a terminal. */

import { stripVTControlCharacters, styleText } from 'node:util'
import { bulkBaseline, bulkRatio, type BulkResults } from './bulk.ts'
import { cacheBaseline, cacheRatio, type CacheResults } from './cache.ts'
import { baseline, type ContenderName } from './contender.ts'
import {
  curveCallers,
  curveContenders,
  type CurveResult,
  pgbenchRatio,
  speedRatio,
  type WorkloadResult,
} from './measure.ts'
import { failures, judge, type Results } from './results.ts'
import { median, type Spread } from './statistics.ts'
import { streamBaseline, streamRatio, type StreamResults, type StreamTurn } from './streaming.ts'
import { workBaseline, workRatio, type WorkResults } from './work.ts'
import type { Slice } from './worker.ts'

const barWidth = 24

/** The whole report. Colours where stdout has them. */
export function formatReport(results: Results): string {
  const sections = [
    formatHead(results),
    ...results.workloads.map((result) => formatWorkload(result, results.options.contenders)),
    ...(results.curve ? [formatCurve(results.curve)] : []),
    ...(results.streams ? [formatStreams(results.streams)] : []),
    ...(results.bulk ? [formatBulk(results.bulk)] : []),
    ...(results.work ? [formatWork(results.work)] : []),
    ...(results.cache ? [formatCache(results.cache)] : []),
    ...(results.replicaReads ? [formatReplicaReads(results.replicaReads)] : []),
    ...(results.imports ? [formatImports(results.imports)] : []),
    ...(judge(results).length > 0 ? [formatVerdicts(results)] : []),
    ...formatProblems(results),
  ]
  return `\n${sections.join('\n\n')}\n`
}

/** One line about the machine, for every place that quotes a figure. */
export function machineLine({ machine }: Results): string {
  const { date, processor, cores, memoryGb, system, node, postgres } = machine
  return `${date}, ${cores} cores of ${processor}, ${memoryGb} GB, ${system}, Node ${node}, PostgreSQL ${postgres}, over loopback`
}

/** One line about how it was measured. */
export function methodLine({ options, workloads }: Results): string {
  const pool = Math.max(0, ...workloads.flatMap(({ connections }) => [...connections.values()]))
  return `${options.rounds} rounds of ${options.seconds} s turns in shuffled order (seed ${options.seed}), at most ${pool} connections each`
}

/** A ratio as `2.41` with its lowest and highest round. */
export function formatRange({ min, max }: Spread): string {
  return `${min.toFixed(2)}–${max.toFixed(2)}`
}

/** `41 032` */
export function formatCount(value: number): string {
  return Math.round(value)
    .toString()
    .replaceAll(/\B(?=(\d{3})+$)/g, ' ')
}

/** The median of one figure over the rounds. */
export function typical(slices: readonly Slice[], figure: keyof Slice): number {
  return median(slices.map((slice) => slice[figure]))
}

function formatHead(results: Results): string {
  return [
    styleText('bold', `What kanta ${results.versions.kanta} costs`),
    machineLine(results),
    methodLine(results),
    `× ${baseline}: median of the ratios to ${baseline} in the same round, and the lowest and highest of them.`,
    'CPU: of the client process, per operation.',
  ].join('\n')
}

function formatWorkload(result: WorkloadResult, contenders: readonly ContenderName[]): string {
  const rows = [...result.slices].map(([name, slices]) => ({
    name: name as string,
    ours: name.startsWith('kanta'),
    speed: typical(slices, 'operationsPerSecond'),
    ratio: speedRatio(result, name),
    rest: [
      typical(slices, 'cpuMicrosPerOperation').toFixed(1),
      typical(slices, 'p50Ms').toFixed(2),
      typical(slices, 'p99Ms').toFixed(2),
      String(result.connections.get(name) ?? '–'),
    ],
  }))
  for (const kind of ['plain', 'pipelined'] as const) {
    const ratio = pgbenchRatio(result, kind)
    if (ratio === undefined) continue
    const name = kind === 'plain' ? 'pgbench' : 'pgbench, pipelined'
    const rest = ['–', '–', '–', String(result.workload.pgbench.clients)]
    rows.push({ name, ours: false, speed: median(result.pgbench[kind]), ratio, rest })
  }
  rows.sort((a, b) => b.speed - a.speed)
  const fastest = Math.max(...[...result.slices.values()].map((slices) => typical(slices, 'operationsPerSecond')))
  const absent = contenders.filter((name) => !result.slices.has(name))
  const table = align([
    ['', 'per second', `× ${baseline}`, 'range', 'CPU µs', 'p50 ms', 'p99 ms', 'conns', ''],
    ...rows.map(({ name, ours, speed, ratio, rest }) => [
      ours ? styleText('bold', name) : name.startsWith('pgbench') ? styleText('dim', name) : name,
      formatCount(speed),
      ratio ? ratio.median.toFixed(2) : '–',
      ratio ? formatRange(ratio) : '–',
      ...rest,
      name.startsWith('pgbench') ? '' : bar(speed / fastest, ours),
    ]),
    ...absent.map((name) => [name, '–', '–', '–', '–', '–', '–', '–', '']),
  ])
  return `${styleText('bold', result.workload.title)}\n${table}`
}

function bar(share: number, ours: boolean): string {
  const eighths = Math.max(1, Math.round(share * barWidth * 8))
  const text = '█'.repeat(Math.floor(eighths / 8)) + ['', '▏', '▎', '▍', '▌', '▋', '▊', '▉'][eighths % 8]
  return styleText(ours ? 'green' : 'dim', text)
}

function formatCurve({ points }: CurveResult): string {
  const rows = curveCallers.map((callers) => [
    String(callers),
    ...curveContenders.flatMap((name) => {
      const slices = points.get(callers)?.get(name)
      if (slices === undefined) return ['–', '–']
      return [formatCount(typical(slices, 'operationsPerSecond')), typical(slices, 'p99Ms').toFixed(2)]
    }),
  ])
  const head = ['callers', ...curveContenders.flatMap((name) => [`${name}/s`, 'p99 ms'])]
  return `${styleText('bold', 'Read by key, from 1 to 256 callers')}\n${align([head, ...rows])}`
}

/** What is said of one who streams: rows per second, how many times the baseline's, CPU per row in µs, memory in MB. */
export function streamRows(results: StreamResults): string[][] {
  return [...results].map(([name, turns]) => {
    const ratio = streamRatio(results, name)
    const middle = (figure: keyof StreamTurn): number => median(turns.map((turn) => turn[figure]))
    return [
      name,
      formatCount(middle('rowsPerSecond')),
      ratio.median.toFixed(2),
      formatRange(ratio),
      middle('cpuMicrosPerRow').toFixed(2),
      Math.max(...turns.map(({ peakMb }) => peakMb)).toFixed(0),
    ]
  })
}

export const streamHead: readonly string[] = ['', 'rows/s', `× ${streamBaseline}`, 'range', 'CPU µs', 'peak MB']

function formatStreams(results: StreamResults): string {
  return `${styleText('bold', 'A million rows, streamed')}\n${align([streamHead, ...streamRows(results)])}`
}

/** What is said of a way to write: rows per second, and how many times as fast it is as the baseline. */
export function bulkTable(results: BulkResults): string[][] {
  return [...results].map(([name, speeds]) => {
    const ratio = bulkRatio(results, name, bulkBaseline)
    return [name, formatCount(median(speeds)), ratio.median.toFixed(2), formatRange(ratio)]
  })
}

export const bulkHead: readonly string[] = ['', 'rows/s', `× ${bulkBaseline}`, 'range']

function formatBulk(results: BulkResults): string {
  return `${styleText('bold', 'A hundred thousand rows, written')}\n${align([bulkHead, ...bulkTable(results)])}`
}

/** What is said of one who writes a unit of work: how long it took, and how many times as fast it was as the baseline. */
export function workTable(results: WorkResults): string[][] {
  return [...results].map(([name, took]) => {
    const ratio = workRatio(results, name, workBaseline)
    return [name, median(took).toFixed(1), ratio.median.toFixed(2), formatRange(ratio)]
  })
}

export const workHead: readonly string[] = ['', 'ms', `× ${workBaseline}`, 'range']

function formatWork(results: WorkResults): string {
  return `${styleText('bold', 'A thousand changes of three tables: 400 new, 400 changed, 200 removed')}\n${align([workHead, ...workTable(results)])}`
}

/** What is said of a work of the cache: operations per second of both, and how many times as fast kanta is. */
export function cacheTable({ speeds }: CacheResults): string[][] {
  return [...speeds].map(([work, both]) => {
    const ratio = cacheRatio(both)
    const middles = [both.kanta, both.bentocache].map((of) => formatCount(median(of)))
    return [work, ...middles, ratio.median.toFixed(2), formatRange(ratio)]
  })
}

export const cacheHead: readonly string[] = ['', 'kanta/s', `${cacheBaseline}/s`, '×', 'range']

/** What else was measured of the cache. */
export function cacheRemark({ bytesPerEntry, invalidationsPerSecond, readsAfterwardsPerSecond }: CacheResults): string {
  return (
    `An entry of two fields and two tags takes ${Math.round(bytesPerEntry)} bytes in memory; 100 000 tags are invalidated at ` +
    `${formatCount(invalidationsPerSecond)} per second, and then read past at ${formatCount(readsAfterwardsPerSecond)}.`
  )
}

function formatCache(results: CacheResults): string {
  const title = styleText('bold', 'The cache')
  return `${title}\n${align([cacheHead, ...cacheTable(results)])}\n${cacheRemark(results)}`
}

function formatReplicaReads({ oneServer, twoReplicas, ratio }: NonNullable<Results['replicaReads']>): string {
  const rows = [
    ['one server', formatCount(oneServer.median), '1.00', ''],
    ['two replicas', formatCount(twoReplicas.median), ratio.median.toFixed(2), formatRange(ratio)],
  ]
  return `${styleText('bold', 'Reads by key per second, 32 at once, servers all on this machine')}\n${align(rows)}`
}

function formatImports({ kantaMs, partsMs, ratio }: NonNullable<Results['imports']>): string {
  const rows = [
    ['kanta', `${kantaMs.toFixed(0)} ms`, ratio.toFixed(2)],
    ['kysely, pg, ioredis', `${partsMs.toFixed(0)} ms`, '1.00'],
  ]
  return `${styleText('bold', 'Import, in a fresh process')}\n${align(rows)}`
}

function formatVerdicts(results: Results): string {
  const rows = judge(results).map(({ title, wanted, measured, met }) => [
    `${met ? styleText('green', '✓') : styleText('red', '✗')} ${title}`,
    measured,
    ` ${wanted}`,
  ])
  const width = Math.max(...rows.map(([, , wanted = '']) => wanted.length))
  return `${styleText('bold', 'Targets')}\n${align(rows.map(([title = '', measured = '', wanted = '']) => [title, measured, wanted.padEnd(width)]))}`
}

function formatProblems(results: Results): string[] {
  const failed = failures(results).map(
    ({ where, contender, reason }) =>
      `${styleText('red', '✗')} ${contender} in "${where}": ${reason.replaceAll('\n', '\n    ')}`,
  )
  return [...failed, ...results.remarks.map((remark) => `! ${remark}`)]
}

/** Columns as wide as their widest cell; the first to the left, the others to the right, a last bar as it is. */
function align(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => widthOf(row[column] ?? ''))))
  return rows
    .map((row) =>
      row
        .map((cell, column) => {
          const padding = ' '.repeat((widths[column] ?? 0) - widthOf(cell))
          const left = column === 0 || /[█▏▎▍▌▋▊▉]/.test(cell)
          return left ? cell + padding : padding + cell
        })
        .join('  ')
        .trimEnd(),
    )
    .map((line) => `  ${line}`)
    .join('\n')
}

function widthOf(cell: string): number {
  return stripVTControlCharacters(cell).length
}
