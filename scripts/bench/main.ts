/**
 * `npm run bench`: what kanta costs beside the libraries that a team might take instead. docs/performance.md says what
 * is measured and how.
 */

import { writeFileSync } from 'node:fs'
import { availableParallelism, constants, loadavg } from 'node:os'
import { join } from 'node:path'
import { measureBulk } from './bulk.ts'
import { measureCache } from './cache.ts'
import { baseline, type ContenderName } from './contender.ts'
import type { DuelResult } from './duel.ts'
import { measureImports } from './import-time.ts'
import { writeMarkdown } from './markdown.ts'
import {
  applicationName,
  baselineVariation,
  curveContenders,
  type CurveResult,
  measureCurve,
  measureWorkload,
  type Schedule,
  type WorkloadResult,
} from './measure.ts'
import { type BenchOptions, help, parseOptions, UsageError } from './options.ts'
import { contenderVersions, installPeers } from './peers.ts'
import { measureOrders } from './orders.ts'
import { openPgbench, type Pgbench } from './pgbench.ts'
import { openProgress, type Progress } from './progress.ts'
import { measureReplicaReads } from './replica-reads.ts'
import { formatReport } from './report.ts'
import { measureRepositories } from './repository.ts'
import { describeMachine, failures, judge, type Results, toJson } from './results.ts'
import { type BenchServer, openServer } from './server.ts'
import { measureStreams } from './streaming.ts'
import { measureWork } from './work.ts'
import { startWorker, type Worker } from './worker-process.ts'
import { workloads } from './workloads.ts'

const page = join(import.meta.dirname, '../../docs/performance.md')

/** How far apart two rounds of the baseline may be on a machine that does nothing else. */
const steady = 1.5

/** Connections of each contender, as many as a small service has per process. */
const connections = 8

/** What a run has at hand. `workers` fills as they start. */
interface Stage {
  readonly server: BenchServer
  readonly pgbench: Pgbench | undefined
  readonly workers: Worker[]
}

type Measured = Omit<Results, 'machine' | 'options' | 'remarks' | 'versions'>

/** Each turn takes some seconds, and varies little. */
const mostStreamRounds = 7
const mostDuelRounds = 11

async function run(options: BenchOptions, progress: Progress): Promise<Results> {
  const remarks: string[] = []
  const [load = 0] = loadavg()
  if (load > availableParallelism() / 2)
    remarks.push(`The machine was busy before the run began (load ${load.toFixed(1)}).`)
  await installPeers((line) => progress.note(line))
  const versions = contenderVersions()

  progress.step('a PostgreSQL and its data')
  await using opened = new AsyncDisposableStack()
  const server = opened.use(await openServer())
  const pgbench = openPgbench(server.url)
  if (pgbench === undefined) remarks.push('pgbench was not found, so the limit of the machine is not shown.')
  else opened.use(pgbench)
  const workers: Worker[] = []
  opened.defer(async () => {
    await Promise.all(workers.map((worker) => worker.stop()))
  })
  const work = measureAll(options, { server, pgbench, workers }, remarks, progress)
  const measured = await Promise.race([work, interruption()])
  return { machine: describeMachine(server), options, versions, remarks, ...measured }
}

async function measureAll(
  options: BenchOptions,
  { server, pgbench, workers }: Stage,
  remarks: string[],
  progress: Progress,
): Promise<Measured> {
  for (const name of options.contenders) {
    progress.step(`starting ${name}`)
    try {
      const settings = { url: server.url, connections, applicationName: applicationName(name) }
      workers.push(await startWorker(name, settings))
    } catch (error) {
      throw new Error(`${name} could not be started: ${(error as Error).message}`, { cause: error })
    }
  }

  const schedule: Schedule = { rounds: options.rounds, sliceMs: options.seconds * 1000, seed: options.seed }
  const measured: WorkloadResult[] = []
  for (const workload of workloads.filter(({ name }) => options.parts.has(name))) {
    progress.step(workload.title)
    measured.push(await measureWorkload(workload, workers, server.client, pgbench, schedule))
  }
  for (const { workload, connections: open } of measured) {
    for (const [name, count] of open)
      if (count > connections)
        remarks.push(`${name} had ${count} connections open in "${workload.title}", not ${connections}.`)
  }
  const variation = Math.max(0, ...measured.map(baselineVariation))
  if (variation > steady)
    remarks.push(
      `The machine was not quiet: ${baseline} itself was up to ${variation.toFixed(1)} times as fast in one round as in another.`,
    )
  return {
    workloads: measured,
    curve: options.parts.has('curve') ? await measureReadCurve(workers, schedule, progress) : undefined,
    streams: options.parts.has('stream')
      ? await tryStreams(server, Math.min(options.rounds, mostStreamRounds), remarks, progress)
      : undefined,
    bulk: options.parts.has('bulk')
      ? await tryBulk(server, Math.min(options.rounds, mostStreamRounds), remarks, progress)
      : undefined,
    duels: [
      ...(options.parts.has('repository')
        ? await tryDuels(
            'repositories',
            (rounds) => measureRepositories(server.url, connections, rounds),
            options,
            remarks,
            progress,
          )
        : []),
      ...(options.parts.has('work')
        ? await tryDuels(
            'units of work',
            async (rounds) => [await measureWork(server.url, rounds)],
            options,
            remarks,
            progress,
          )
        : []),
      ...(options.parts.has('orders')
        ? await tryDuels(
            'orders',
            async (rounds) => [await measureOrders(server.url, connections, rounds)],
            options,
            remarks,
            progress,
          )
        : []),
    ],
    cache: options.parts.has('cache') ? await tryCache(Math.min(options.rounds, 9), remarks, progress) : undefined,
    replicaReads: options.parts.has('replicas') ? await tryReplicaReads(schedule, remarks, progress) : undefined,
    imports: options.parts.has('import') ? await tryImports(remarks, progress) : undefined,
  }
}

async function measureReadCurve(
  workers: readonly Worker[],
  schedule: Schedule,
  progress: Progress,
): Promise<CurveResult | undefined> {
  const [reads] = workloads
  if (reads === undefined) return undefined
  progress.step('from 1 to 256 callers')
  const names: ReadonlySet<ContenderName> = new Set(curveContenders)
  const taking = workers.filter(({ name }) => names.has(name))
  return measureCurve(reads, taking, schedule)
}

async function tryStreams(
  server: BenchServer,
  rounds: number,
  remarks: string[],
  progress: Progress,
): Promise<Results['streams']> {
  progress.step('a million rows, streamed')
  try {
    return await measureStreams(server.client, server.url, rounds)
  } catch (error) {
    remarks.push(`Streams were not measured. ${(error as Error).message.trim()}`)
    return undefined
  }
}

async function tryBulk(
  server: BenchServer,
  rounds: number,
  remarks: string[],
  progress: Progress,
): Promise<Results['bulk']> {
  progress.step('many rows, written')
  try {
    return await measureBulk(server.url, rounds)
  } catch (error) {
    remarks.push(`Writing many rows was not measured. ${(error as Error).message.trim()}`)
    return undefined
  }
}

async function tryDuels(
  name: string,
  measure: (rounds: number) => Promise<readonly DuelResult[]>,
  options: BenchOptions,
  remarks: string[],
  progress: Progress,
): Promise<readonly DuelResult[]> {
  progress.step(name)
  try {
    return await measure(Math.min(options.rounds, mostDuelRounds))
  } catch (error) {
    remarks.push(`There are no figures for ${name}. ${(error as Error).message.trim()}`)
    return []
  }
}

async function tryCache(rounds: number, remarks: string[], progress: Progress): Promise<Results['cache']> {
  progress.step('the cache')
  try {
    return await measureCache(rounds)
  } catch (error) {
    remarks.push(`The cache was not measured. ${(error as Error).message.trim()}`)
    return undefined
  }
}

async function tryReplicaReads(
  { rounds, sliceMs }: Schedule,
  remarks: string[],
  progress: Progress,
): Promise<Results['replicaReads']> {
  progress.step('reads from two replicas')
  try {
    return await measureReplicaReads(rounds, sliceMs)
  } catch (error) {
    remarks.push(`Reads from replicas were not measured. ${(error as Error).message.trim()}`)
    return undefined
  }
}

async function tryImports(remarks: string[], progress: Progress): Promise<Results['imports']> {
  progress.step('import times')
  try {
    return await measureImports()
  } catch (error) {
    remarks.push(`The import was not measured. ${(error as Error).message.trim()}`)
    return undefined
  }
}

class Interruption extends Error {
  readonly signal: 'SIGINT' | 'SIGTERM'

  constructor(signal: 'SIGINT' | 'SIGTERM') {
    super(`Ended by ${signal}.`)
    this.signal = signal
  }
}

/** Rejects when somebody has had enough, so that the server and the database are still removed. */
function interruption(): Promise<never> {
  return new Promise((_, reject) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => reject(new Interruption(signal)))
  })
}

async function main(): Promise<number> {
  const progress = openProgress()
  try {
    const options = parseOptions(process.argv.slice(2))
    if (options === undefined) {
      console.log(help)
      return 0
    }
    const results = await run(options, progress)
    progress.clear()
    console.log(formatReport(results))
    if (options.json !== undefined) writeFileSync(options.json, toJson(results))
    if (options.markdown) writeMarkdown(page, results)
    const missed = options.floor && judge(results).some(({ met }) => !met)
    return failures(results).length > 0 || missed ? 1 : 0
  } catch (error) {
    // What was being measured is still under way, and would keep the process.
    if (error instanceof Interruption) process.exit(128 + constants.signals[error.signal])
    progress.note(
      error instanceof UsageError ? `${error.message}\n\n${help}` : ((error as Error).stack ?? String(error)),
    )
    return 2
  }
}

process.exitCode = await main()
