/** Turns of all contenders, so arranged that what the machine does besides falls on all of them alike. */

import { isDeepStrictEqual } from 'node:util'
import type { Client } from 'pg'
import { baseline, type ContenderName } from './contender.ts'
import type { Pgbench } from './pgbench.ts'
import { seededRandom, shuffled, spread, type Spread } from './statistics.ts'
import type { Slice } from './worker.ts'
import type { Worker } from './worker-process.ts'
import type { Workload } from './workloads.ts'

/** How turns are given. Times are milliseconds. */
export interface Schedule {
  readonly rounds: number
  readonly sliceMs: number
  readonly seed: number
}

/** The turns of everybody in one workload; the same index is the same round. */
export interface WorkloadResult {
  readonly workload: Workload
  readonly slices: ReadonlyMap<ContenderName, readonly Slice[]>
  /** Connections that each had open. */
  readonly connections: ReadonlyMap<ContenderName, number>
  /** Who was left out, and why. */
  readonly problems: ReadonlyMap<ContenderName, string>
  /** Executions per second of pgbench, by kind, in the first rounds. */
  readonly pgbench: Readonly<Record<'pipelined' | 'plain', readonly number[]>>
}

/** A second of pgbench goes into so many rounds. */
const pgbenchRounds = 3

/** Throughput and waiting by number of callers. */
export const curveCallers = [1, 2, 4, 8, 16, 32, 64, 128, 256] as const
export const curveContenders: readonly ContenderName[] = ['kanta', 'pg', 'postgres.js']
const curveRounds = 5

/** The turns by number of callers, for each contender that could. */
export interface CurveResult {
  readonly points: ReadonlyMap<number, ReadonlyMap<ContenderName, readonly Slice[]>>
  readonly problems: ReadonlyMap<ContenderName, string>
}

/**
 * Checks what each contender gives, warms all up, and gives them turns in an order that changes with every round. One
 * that fails or gives something else than the server has is left out, with the reason in `problems`.
 */
export async function measureWorkload(
  workload: Workload,
  workers: readonly Worker[],
  client: Client,
  pgbench: Pgbench | undefined,
  schedule: Schedule,
): Promise<WorkloadResult> {
  const problems = new Map<ContenderName, string>()
  const slices = new Map<ContenderName, Slice[]>()
  const connections = new Map<ContenderName, number>()
  const plain: number[] = []
  const pipelined: number[] = []
  let able: Worker[] = []

  for (const worker of workers) {
    if (!(await worker.can(workload.name))) continue
    const problem = await findProblem(workload, worker, client)
    if (problem === undefined) able.push(worker)
    else problems.set(worker.name, problem)
  }

  async function turn(worker: Worker, durationMs: number, seed: number): Promise<Slice | undefined> {
    try {
      const { name, callers } = workload
      return await worker.slice({ workload: name, callers, seed, durationMs, leadInMs: schedule.sliceMs / 8 })
    } catch (error) {
      problems.set(worker.name, (error as Error).message)
      slices.delete(worker.name)
      able = able.filter((other) => other !== worker)
      return undefined
    }
  }

  for (const worker of able) {
    // So many turns as one, for the compiler of V8 to have seen the hot paths.
    await turn(worker, schedule.sliceMs * 3, schedule.seed)
    connections.set(worker.name, await countConnections(client, worker.name))
  }
  for (let round = 1; round <= schedule.rounds; round++) {
    await workload.reset?.(client)
    const seed = schedule.seed + round
    for (const worker of shuffled(able, seededRandom(seed))) {
      const slice = await turn(worker, schedule.sliceMs, seed)
      if (slice !== undefined) slices.set(worker.name, [...(slices.get(worker.name) ?? []), slice])
    }
    if (pgbench !== undefined && round <= pgbenchRounds) {
      plain.push(await pgbench.run(workload.pgbench))
      if (workload.pgbench.pipelined === true) pipelined.push(await pgbench.runPipelined(workload.pgbench))
    }
  }
  await workload.reset?.(client)
  return { workload, slices, connections, problems, pgbench: { plain, pipelined } }
}

/** Gives turns in one workload with ever more callers; who fails at some number has no figures from there on. */
export async function measureCurve(
  workload: Workload,
  workers: readonly Worker[],
  schedule: Schedule,
): Promise<CurveResult> {
  const points = new Map<number, ReadonlyMap<ContenderName, readonly Slice[]>>()
  const problems = new Map<ContenderName, string>()
  for (const callers of curveCallers) {
    const slices = new Map<ContenderName, Slice[]>()
    for (let round = 0; round <= curveRounds; round++) {
      const seed = schedule.seed + round
      for (const worker of shuffled(workers, seededRandom(seed))) {
        if (problems.has(worker.name)) continue
        const order = { workload: workload.name, callers, seed, leadInMs: schedule.sliceMs / 8 }
        // The first round warms up.
        const durationMs = round === 0 ? schedule.sliceMs / 4 : schedule.sliceMs
        try {
          const slice = await worker.slice({ ...order, durationMs })
          if (round > 0) slices.set(worker.name, [...(slices.get(worker.name) ?? []), slice])
        } catch (error) {
          problems.set(worker.name, `With ${callers} callers: ${(error as Error).message}`)
          slices.delete(worker.name)
        }
      }
    }
    points.set(callers, slices)
  }
  return { points, problems }
}

/** How many times as fast as another a contender was in the same rounds; undefined where one of them was not there. */
export function speedRatio(
  result: WorkloadResult,
  contender: ContenderName,
  against: ContenderName = baseline,
): Spread | undefined {
  const ours = result.slices.get(contender)
  const theirs = result.slices.get(against)
  if (ours === undefined || theirs === undefined) return undefined
  const speeds = ours.map((slice) => slice.operationsPerSecond)
  return spread(ratios(speeds, theirs))
}

/** How many times as fast as in its slowest round the baseline was in its fastest. */
export function baselineVariation(result: WorkloadResult): number {
  const speeds = (result.slices.get(baseline) ?? []).map((slice) => slice.operationsPerSecond)
  return speeds.length === 0 ? 1 : Math.max(...speeds) / Math.min(...speeds)
}

/** How far the machine goes, as a multiple of the baseline; undefined where pgbench did not run. */
export function pgbenchRatio(result: WorkloadResult, kind: 'pipelined' | 'plain'): Spread | undefined {
  const base = result.slices.get(baseline)
  const speeds = result.pgbench[kind]
  return base === undefined || speeds.length === 0 ? undefined : spread(ratios(speeds, base))
}

function ratios(speeds: readonly number[], base: readonly Slice[]): number[] {
  return speeds.map((speed, round) => speed / (base[round]?.operationsPerSecond ?? Number.NaN))
}

async function findProblem(workload: Workload, worker: Worker, client: Client): Promise<string | undefined> {
  await workload.reset?.(client)
  try {
    const sampled = await worker.sample(workload.name)
    const expected = await workload.expected(client)
    if (isDeepStrictEqual(sampled, expected)) return undefined
    return `It gives other rows than the server has.\ngot      ${brief(sampled)}\nexpected ${brief(expected)}`
  } catch (error) {
    return (error as Error).message
  }
}

function brief(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value)
  return text.length > 600 ? `${text.slice(0, 600)} …` : text
}

async function countConnections(client: Client, contender: ContenderName): Promise<number> {
  const text = 'select count(*)::int as open from pg_stat_activity where application_name = $1'
  const { rows } = await client.query<{ open: number }>(text, [applicationName(contender)])
  return rows[0]?.open ?? 0
}

/** Under which name a contender connects. */
export function applicationName(contender: ContenderName): string {
  return `bench ${contender}`
}
