/** Commands as steps: run two at a time, one line each, the output only of those that fail. */

import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { stripVTControlCharacters } from 'node:util'

const root = join(import.meta.dirname, '..')

/** One command of a run. The first word is a script for this Node, relative to the root of the repository. */
export interface Step {
  readonly name: string
  readonly command: readonly string[]
}

/** What became of a step. */
export interface StepResult {
  readonly name: string
  readonly passed: boolean
  readonly durationMs: number
}

/**
 * Runs all steps, `concurrency` at a time, also after one has failed. Prints a line for each as it ends, with its
 * output below it if it failed. Results are in the order of the steps.
 */
export async function runSteps(steps: readonly Step[], concurrency = 2): Promise<StepResult[]> {
  const results: StepResult[] = []
  const queue = [...steps.entries()]
  async function work(): Promise<void> {
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
      const [index, step] = next
      const begun = performance.now()
      const { code, output } = await runScript(step.command, 'captured')
      const durationMs = performance.now() - begun
      results[index] = { name: step.name, passed: code === 0, durationMs }
      console.log(`${code === 0 ? '✓' : '✗'} ${step.name.padEnd(18)} ${seconds(durationMs)}`)
      if (code !== 0) console.log(`${indent(output.trim() || `exit code ${code}, no output`)}\n`)
    }
  }
  await Promise.all(Array.from({ length: concurrency }, work))
  return results
}

/**
 * Runs one script on this Node from the root of the repository and resolves with its exit code; signals sent to this
 * process reach it. Output goes to the terminal, or into `output`.
 */
export async function runScript(
  command: readonly string[],
  output: 'captured' | 'shown',
): Promise<{ code: number; output: string }> {
  const [script = '', ...args] = command
  const child = spawn(process.execPath, [join(root, script), ...args], {
    cwd: root,
    env: { ...process.env, ...(process.stdout.isTTY ? { FORCE_COLOR: '1' } : {}) },
    stdio: ['ignore', output === 'shown' ? 'inherit' : 'pipe', output === 'shown' ? 'inherit' : 'pipe'],
  })
  let text = ''
  child.stdout?.setEncoding('utf8').on('data', (chunk: string) => (text += chunk))
  child.stderr?.setEncoding('utf8').on('data', (chunk: string) => (text += chunk))
  const forward = (signal: NodeJS.Signals): void => {
    // A terminal sends Ctrl-C to every process of the group by itself.
    if (signal !== 'SIGINT' || !process.stdin.isTTY) child.kill(signal)
  }
  const signals: readonly NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGHUP']
  for (const signal of signals) process.on(signal, forward)
  try {
    return await new Promise((resolve, reject) => {
      child.once('error', reject)
      child.once('close', (code) => {
        // Some tools colour their output in CI even where it is captured.
        resolve({ code: code ?? 1, output: process.stdout.isTTY ? text : stripVTControlCharacters(text) })
      })
    })
  } finally {
    for (const signal of signals) process.off(signal, forward)
  }
}

/** `1234` as `1.2 s`. */
export function seconds(durationMs: number): string {
  return `${(durationMs / 1000).toFixed(1)} s`
}

function indent(text: string): string {
  return text.replaceAll(/^(?=.)/gm, '    ')
}
