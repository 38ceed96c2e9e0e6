import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { expect, test } from 'vitest'
import { freshDatabaseUrl } from '../support/database.ts'
import { isFull, quantile, record, tally, times } from './record.ts'
import type { ServiceReport } from './service.ts'
import { witness } from './witness.ts'

const drainTimeoutMs = 2_000

test(
  'row 25: on SIGTERM work under way is finished, the queue is told, and a leaked client does not hold up the exit',
  async () => {
    const url = await freshDatabaseUrl('empty')
    await using admin = await witness(url)
    await admin.rows('create table work (id int, kind text)')
    const runs = times(20, 1)
    const exits: string[] = []
    const exitMs: number[] = []
    const reports: ServiceReport[] = []
    for (let run = 0; run < runs; run += 1) {
      await admin.rows('truncate work')
      const child = spawn(process.execPath, [join(import.meta.dirname, 'service.ts'), url], {
        stdio: ['ignore', 'pipe', 'pipe'],
      })
      const lines: string[] = []
      let complaints = ''
      child.stderr.on('data', (chunk: Buffer) => (complaints += chunk.toString()))
      try {
        for await (const line of createInterface({ input: child.stdout })) {
          lines.push(line)
          if (line !== 'ready') continue
          const start = performance.now()
          child.kill('SIGTERM')
          child.once('exit', () => exitMs.push(performance.now() - start))
        }
        if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
      } finally {
        child.kill('SIGKILL')
      }
      exits.push(child.exitCode === 0 ? 'exit 0' : `exit ${child.exitCode ?? child.signalCode}: ${complaints.trim()}`)
      if (lines.length < 2) throw new Error(`The service ended without a report (${exits.at(-1)}).`)
      const report = JSON.parse(lines.at(-1) ?? '') as ServiceReport
      reports.push(report)
      expect(await admin.value(`select count(*)::int from work where id between 1 and 3 and kind = 'done'`)).toBe(
        report.drained.length,
      )
      expect(await admin.value('select count(*)::int from work where id = 0')).toBe(report.singles.done)
      expect(await admin.value('select count(*)::int from work where id >= 100')).toBe(0)
    }
    const waiters = reports.flatMap((report) => report.waiters)
    const latestMs = quantile(
      waiters.map(({ afterMs }) => afterMs),
      1,
    )
    record(
      25,
      runs,
      `${reports.flatMap(({ drained }) => drained).length} of ${3 * runs} transactions drained; waiters: ${tally(waiters.map(({ code }) => code))} after ${latestMs.toFixed(0)} ms at most; exit after ${quantile(exitMs, 1).toFixed(0)} ms at most (${tally(exits)})`,
    )
    expect(tally(exits)).toBe(`${runs} exit 0`)
    expect(reports.flatMap(({ broken }) => broken)).toEqual([])
    expect(reports.flatMap(({ drained }) => drained)).toHaveLength(3 * runs)
    expect(tally(waiters.map(({ code }) => code))).toBe(`${20 * runs} DATABASE_CLOSED`)
    expect(latestMs).toBeLessThan(200)
    expect(new Set(reports.flatMap(({ singles }) => singles.codes))).toEqual(new Set(['DATABASE_CLOSED']))
    expect(quantile(exitMs, 1)).toBeLessThan(drainTimeoutMs + 1_000)
  },
  isFull ? 180_000 : 30_000,
)
