/** `npm run check`: everything that can be said about the sources without running them. */

import { runSteps, type Step, type StepResult } from './steps.ts'

// The slow ones first, so that two cores end at about the same time.
const steps: readonly Step[] = [
  {
    name: 'lint',
    command: ['node_modules/oxlint/bin/oxlint', '--deny-warnings', '--report-unused-disable-directives'],
  },
  { name: 'generated types', command: ['src/cli/main.ts', 'codegen', '--check'] },
  { name: 'types', command: ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.json'] },
  { name: 'dead code', command: ['node_modules/knip/bin/knip.js', '--no-progress'] },
  { name: 'format', command: ['node_modules/oxfmt/bin/oxfmt', '--check'] },
  { name: 'floors', command: ['scripts/check-floors.ts'] },
]

/** Runs all checks and prints a line for each. */
export async function check(): Promise<StepResult[]> {
  return runSteps(steps)
}

if (import.meta.main) {
  const results = await check()
  process.exitCode = results.every((result) => result.passed) ? 0 : 1
}
