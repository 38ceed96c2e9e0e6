import { spread, type Spread } from './statistics.ts'

/** One piece of work, done by kanta and in the ways that it is compared with, in turns. */
export interface Duel {
  readonly work: string
  /** What is counted: `reads`, `orders`. */
  readonly unit: string
  /** The first is kanta's. Each does so many at once, and gives what it counted. */
  readonly ways: readonly Way[]
}

export interface Way {
  readonly name: string
  /** How many times as fast as this kanta has to be. */
  readonly target?: number
  prepare?(): Promise<unknown>
  /** How many it has done. */
  run(): Promise<number>
  /** Rejects when what it did is not there. */
  check?(): Promise<unknown>
}

/** Operations per second of each way, by round. */
export interface DuelResult {
  readonly work: string
  readonly unit: string
  readonly speeds: readonly {
    readonly name: string
    readonly target: number | undefined
    readonly speeds: readonly number[]
  }[]
}

/** Lets the ways take turns; the first round is for the compiler of V8 and the caches of the server. */
export async function hold({ work, unit, ways }: Duel, rounds: number): Promise<DuelResult> {
  const speeds = ways.map(({ name, target }) => ({ name, target, speeds: [] as number[] }))
  for (let round = 0; round <= rounds; round += 1) {
    // What one leaves behind for the collector of garbage falls on another in each round.
    for (let turn = 0; turn < ways.length; turn += 1) {
      const index = (round + turn) % ways.length
      const way = ways[index] as Way
      await way.prepare?.()
      const began = performance.now()
      const count = await way.run()
      const seconds = (performance.now() - began) / 1_000
      await way.check?.()
      if (round > 0) speeds[index]?.speeds.push(count / seconds)
    }
  }
  return { work, unit, speeds }
}

/** How many times as fast as another way kanta was, round by round. */
export function duelRatio({ speeds }: DuelResult, other: string): Spread {
  const theirs = speeds.find(({ name }) => name === other)?.speeds ?? []
  return spread((speeds[0]?.speeds ?? []).map((ours, round) => ours / (theirs[round] ?? Number.NaN)))
}
