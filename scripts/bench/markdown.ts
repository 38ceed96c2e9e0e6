/** Results as the tables of docs/performance.md. */

import { readFileSync, writeFileSync } from 'node:fs'
import { contenderNames } from './contender.ts'
import { curveCallers, curveContenders, pgbenchRatio, speedRatio } from './measure.ts'
import {
  bulkHead,
  bulkTable,
  cacheHead,
  cacheRemark,
  cacheTable,
  formatCount,
  formatRange,
  machineLine,
  methodLine,
  streamHead,
  streamRows,
  typical,
  workHead,
  workTable,
} from './report.ts'
import { judge, type Results } from './results.ts'
import type { Spread } from './statistics.ts'

const begin = '<!-- results: written by npm run bench -- --markdown -->'
const end = '<!-- end of results -->'

/** Puts the results between the markers of a page. Throws if they are not there. */
export function writeMarkdown(file: string, results: Results): void {
  const page = readFileSync(file, 'utf8')
  const from = page.indexOf(begin)
  const to = page.indexOf(end)
  if (from === -1 || to < from) throw new Error(`${file} needs the lines "${begin}" and "${end}" around its results.`)
  writeFileSync(file, `${page.slice(0, from)}${begin}\n\n${formatMarkdown(results)}\n\n${page.slice(to)}`)
}

function formatMarkdown(results: Results): string {
  const { workloads, versions, curve, streams, bulk, work, cache, replicaReads, imports } = results
  const columns = workloads.map(({ workload }) => workload.title)
  const speed = contenderNames
    .filter((name) => workloads.some(({ slices }) => slices.has(name)))
    .map((name) => [`${name} ${versions[name]}`, ...workloads.map((result) => cell(speedRatio(result, name)))])
  const limits = (['plain', 'pipelined'] as const)
    .map((kind) => [
      kind === 'plain' ? '*pgbench, prepared*' : '*pgbench, prepared and pipelined*',
      ...workloads.map((result) => cell(pgbenchRatio(result, kind))),
    ])
    .filter((row) => row.slice(1).some((text) => text !== '–'))
  const cpu = contenderNames
    .filter((name) => workloads.some(({ slices }) => slices.has(name)))
    .map((name) => [name, ...workloads.map(({ slices }) => figure(slices.get(name), 'cpuMicrosPerOperation', 1))])
  const sections = [
    `${machineLine(results)}. ${methodLine(results)}.`,
    'Speed as a multiple of `pg`, with the slowest and the fastest round:',
    table(['', ...columns], [...speed, ...limits]),
    'CPU time of the client process per operation, µs:',
    table(['', ...columns], cpu),
  ]
  if (curve)
    sections.push(
      'Reads by key per second and 99th percentile in ms, by number of callers:',
      table(
        ['callers', ...curveContenders.flatMap((name) => [name, 'p99'])],
        curveCallers.map((callers) => [
          String(callers),
          ...curveContenders.flatMap((name) => {
            const slices = curve.points.get(callers)?.get(name)
            return [figure(slices, 'operationsPerSecond', 0), figure(slices, 'p99Ms', 2)]
          }),
        ]),
      ),
    )
  if (streams)
    sections.push(
      'A million rows, streamed; memory is the most that the process ever had:',
      table(streamHead, streamRows(streams)),
    )
  if (bulk) sections.push('A hundred thousand rows, written:', table(bulkHead, bulkTable(bulk)))
  if (work)
    sections.push(
      'A thousand changes of three tables (400 new, 400 changed, 200 removed) as a unit of work:',
      table(workHead, workTable(work)),
    )
  if (cache)
    sections.push('The cache, values of 450 bytes a row:', table(cacheHead, cacheTable(cache)), cacheRemark(cache))
  if (replicaReads) {
    const { oneServer, twoReplicas, ratio } = replicaReads
    sections.push(
      `Reads by key from two replicas, 32 at once: ${formatCount(twoReplicas.median)} per second, from one server ${formatCount(oneServer.median)}; ` +
        `ratio ${cell(ratio)}. All servers shared the cores of this machine with each other and with the reader.`,
    )
  }
  if (imports)
    sections.push(
      `Import: kanta ${imports.kantaMs.toFixed(0)} ms; kysely, pg and ioredis together ${imports.partsMs.toFixed(0)} ms; ratio ${imports.ratio.toFixed(2)}.`,
    )
  const verdicts = judge(results)
  if (verdicts.length > 0)
    sections.push(
      'Targets:',
      table(
        ['', 'target', 'measured', ''],
        verdicts.map(({ title, wanted, measured, met }) => [title, wanted, measured, met ? '✓' : '✗']),
      ),
    )
  sections.push(...results.remarks)
  return sections.join('\n\n')
}

function cell(ratio: Spread | undefined): string {
  if (ratio === undefined) return '–'
  return `**${ratio.median.toFixed(2)}** ${formatRange(ratio)}`
}

function figure(
  slices: Parameters<typeof typical>[0] | undefined,
  name: Parameters<typeof typical>[1],
  digits: number,
): string {
  if (slices === undefined) return '–'
  const value = typical(slices, name)
  return digits === 0 ? formatCount(value) : value.toFixed(digits)
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`
  return [line(head), `|${head.map((_, column) => (column === 0 ? '---' : '--:')).join('|')}|`, ...rows.map(line)].join(
    '\n',
  )
}
