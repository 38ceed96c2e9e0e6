/** Where a run stands, on stderr: one line that changes in a terminal, one line per step elsewhere. */
export interface Progress {
  step(text: string): void
  /** A line that stays. */
  note(text: string): void
  /** Takes the changing line away. */
  clear(): void
}

export function openProgress(): Progress {
  const { stderr } = process
  const begun = performance.now()
  const clear = (): void => {
    if (stderr.isTTY) stderr.write('\r\u001B[2K')
  }
  return {
    step(text) {
      const line = `${((performance.now() - begun) / 1000).toFixed(0).padStart(4)} s  ${text}`
      clear()
      stderr.write(stderr.isTTY ? line : `${line}\n`)
    },
    note(text) {
      clear()
      stderr.write(`${text}\n`)
    },
    clear,
  }
}
