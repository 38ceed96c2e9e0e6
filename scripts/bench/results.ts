/** Everything that a run has found, and what it says of the targets. */

import { cpus, release, totalmem, type } from 'node:os'
import { bulkRatio, type BulkResults, bulkRows } from './bulk.ts'
import { cacheBaseline, cacheRatio, type CacheResults } from './cache.ts'
import type { ContenderName } from './contender.ts'
import type { ImportTimes } from './import-time.ts'
import { type CurveResult, speedRatio, type WorkloadResult } from './measure.ts'
import type { BenchOptions } from './options.ts'
import type { ReplicaReads } from './replica-reads.ts'
import { streamBaseline, streamRatio, type StreamResults } from './streaming.ts'
import { bulkTargets, cacheTargets, importAtMost, streamAtLeast, targets, workTargets } from './targets.ts'
import { workRatio, type WorkResults } from './work.ts'

/** Where and when it was measured. */
export interface Machine {
  readonly date: string
  readonly processor: string
  readonly cores: number
  readonly memoryGb: number
  readonly system: string
  readonly node: string
  readonly postgres: string
}

export interface Results {
  readonly machine: Machine
  readonly options: BenchOptions
  readonly versions: Readonly<Record<ContenderName, string>>
  readonly workloads: readonly WorkloadResult[]
  readonly curve: CurveResult | undefined
  readonly streams: StreamResults | undefined
  readonly bulk: BulkResults | undefined
  readonly work: WorkResults | undefined
  readonly cache: CacheResults | undefined
  readonly replicaReads: ReplicaReads | undefined
  readonly imports: ImportTimes | undefined
  /** What could not be measured at all, and what makes the figures doubtful. */
  readonly remarks: readonly string[]
}

/** A target beside what was measured. */
export interface Verdict {
  readonly title: string
  readonly wanted: string
  readonly measured: string
  readonly met: boolean
}

/** This machine, now. `server` says what PostgreSQL it was. */
export function describeMachine(server: { readonly version: string; readonly description: string }): Machine {
  return {
    date: new Date().toISOString().slice(0, 10),
    processor: cpus()[0]?.model.trim() ?? 'unknown processor',
    cores: cpus().length,
    memoryGb: Math.round(totalmem() / 2 ** 30),
    system: `${type()} ${release().split('-')[0]}`,
    node: process.versions.node,
    postgres: `${server.version} (${server.description})`,
  }
}

/** The targets that this run was to measure. One whose contender could not do the work is missed. */
export function judge(results: Results): Verdict[] {
  const verdicts: Verdict[] = []
  for (const { part, contender, against, atLeast } of targets) {
    const result = results.workloads.find(({ workload }) => workload.name === part)
    const { contenders } = results.options
    if (result === undefined || !contenders.includes(contender) || !contenders.includes(against)) continue
    const ratio = speedRatio(result, contender, against)
    verdicts.push({
      title: `${result.workload.title}: ${contender}`,
      wanted: `≥ ${atLeast.toFixed(1)} × ${against}`,
      measured: ratio?.median.toFixed(2) ?? '–',
      met: ratio !== undefined && ratio.median >= atLeast,
    })
  }
  if (results.options.parts.has('stream')) {
    const ratio = results.streams && streamRatio(results.streams, 'kanta').median
    verdicts.push({
      title: 'A million rows, streamed: kanta',
      wanted: `≥ ${streamAtLeast.toFixed(1)} × ${streamBaseline}`,
      measured: ratio?.toFixed(2) ?? '–',
      met: ratio !== undefined && ratio >= streamAtLeast,
    })
  }
  if (results.options.parts.has('bulk')) {
    for (const { contender, against, atLeast } of bulkTargets) {
      const ratio = results.bulk && bulkRatio(results.bulk, contender, against).median
      verdicts.push({
        title: `${bulkRows.toLocaleString('en')} rows written: ${contender}`,
        wanted: `≥ ${atLeast} × ${against}`,
        measured: ratio?.toFixed(2) ?? '–',
        met: ratio !== undefined && ratio >= atLeast,
      })
    }
  }
  if (results.options.parts.has('work')) {
    for (const { against, atLeast } of workTargets) {
      const ratio = results.work && workRatio(results.work, 'kanta', against).median
      verdicts.push({
        title: 'A thousand changes of three tables: kanta',
        wanted: `≥ ${atLeast} × ${against}`,
        measured: ratio?.toFixed(2) ?? '–',
        met: ratio !== undefined && ratio >= atLeast,
      })
    }
  }
  if (results.options.parts.has('cache')) {
    for (const { work, atLeast } of cacheTargets) {
      const speeds = results.cache?.speeds.get(work)
      const ratio = speeds && cacheRatio(speeds).median
      verdicts.push({
        title: `The cache, ${work}`,
        wanted: `≥ ${atLeast} × ${cacheBaseline}`,
        measured: ratio?.toFixed(2) ?? '–',
        met: ratio !== undefined && ratio >= atLeast,
      })
    }
  }
  if (results.options.parts.has('import'))
    verdicts.push({
      title: 'Importing the package',
      wanted: `≤ ${importAtMost.toFixed(1)} × kysely, pg and ioredis`,
      measured: results.imports?.ratio.toFixed(2) ?? '–',
      met: results.imports !== undefined && results.imports.ratio <= importAtMost,
    })
  return verdicts
}

/** Every contender that failed or gave wrong rows, and in what. */
export function failures(
  results: Results,
): { readonly where: string; readonly contender: string; readonly reason: string }[] {
  const places = [
    ...results.workloads.map(({ workload, problems }) => ({ where: workload.title, problems })),
    ...(results.curve ? [{ where: 'Callers', problems: results.curve.problems }] : []),
  ]
  return places.flatMap(({ where, problems }) =>
    [...problems].map(([contender, reason]) => ({ where, contender, reason })),
  )
}

/** The figures of every turn, for other programs. */
export function toJson(results: Results): string {
  const { workloads, curve, streams, bulk, work, cache, options, ...rest } = results
  const plain = {
    ...rest,
    options: { ...options, parts: [...options.parts] },
    workloads: workloads.map(({ workload, slices, connections, problems, pgbench }) => ({
      name: workload.name,
      title: workload.title,
      callers: workload.callers,
      slices: Object.fromEntries(slices),
      connections: Object.fromEntries(connections),
      problems: Object.fromEntries(problems),
      pgbench,
    })),
    curve: curve && {
      points: Object.fromEntries([...curve.points].map(([callers, slices]) => [callers, Object.fromEntries(slices)])),
      problems: Object.fromEntries(curve.problems),
    },
    streams: streams && Object.fromEntries(streams),
    bulk: bulk && Object.fromEntries(bulk),
    work: work && Object.fromEntries(work),
    cache: cache && { ...cache, speeds: Object.fromEntries(cache.speeds) },
    verdicts: judge(results),
  }
  return `${JSON.stringify(plain, null, 2)}\n`
}
