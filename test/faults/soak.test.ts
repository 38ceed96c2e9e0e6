import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'
import type { SoakResult } from '../../scripts/soak.ts'
import { record } from './record.ts'

test('row 28: after ten seconds of everything at once nothing is left over', async () => {
  const script = join(import.meta.dirname, '../../scripts/soak.ts')
  // What it misses is in its result; a failure to run at all is thrown.
  const { stdout } = await promisify(execFile)(process.execPath, [script, '--minutes', '0.17', '--json']).catch(
    (error: Error & { stdout?: string }) => {
      if (!error.stdout) throw error
      return { stdout: error.stdout }
    },
  )
  const result = JSON.parse(stdout.trimEnd().split('\n').at(-1) ?? '') as SoakResult
  record(
    28,
    result.calls,
    `${result.calls} calls, ${result.kills} backends killed, ${result.restarts} restarts, counted ${result.samples} times at rest: ${result.missed.length} missed`,
  )
  expect(result.missed).toEqual([])
  expect(result.calls).toBeGreaterThan(500)
}, 120_000)
