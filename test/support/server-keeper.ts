/**
 * A process that outlives the test run that started it, even a run ended by SIGKILL: when its standard input closes,
 * it ends the servers and removes the folders that it was told of and not told to forget.
 */

import { execFileSync } from 'node:child_process'
import { rmSync } from 'node:fs'
import { createInterface } from 'node:readline'

/** What the run writes about one server, one JSON object a line. */
export interface KeeperMessage {
  readonly folder: string
  /** The server's process, `null` while it is down, absent when it has been stopped and its folder removed. */
  readonly pid?: number | null
}

const servers = new Map<string, number | null>()

// The pipe is the only sign of life: a signal meant for the run's process group must not end the keeper first.
process.on('SIGINT', () => {})
process.on('SIGTERM', () => {})
process.on('SIGHUP', () => {})

for await (const line of createInterface({ input: process.stdin })) {
  const message = JSON.parse(line) as KeeperMessage
  if (message.pid === undefined) servers.delete(message.folder)
  else servers.set(message.folder, message.pid)
}

for (const [folder, pid] of servers) {
  for (const each of pid === null ? [] : [...childrenOf(pid), pid]) {
    try {
      process.kill(each, 'SIGKILL')
    } catch {
      // It has ended already.
    }
  }
  rmSync(folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 })
}

/** Backends lead process groups of their own, so the group of the server does not reach one that a test has frozen. */
function childrenOf(pid: number): number[] {
  return execFileSync('ps', ['-A', '-o', 'pid=,ppid='], { encoding: 'utf8' })
    .split('\n')
    .map((line) => line.trim().split(/\s+/).map(Number))
    .filter(([, parent]) => parent === pid)
    .map(([child = Number.NaN]) => child)
}
