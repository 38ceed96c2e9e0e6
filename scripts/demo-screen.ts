/** How the demo writes: colours and moving lines in a terminal, plain lines anywhere else. */

import { styleText } from 'node:util'

const { stdout } = process
const moving = stdout.isTTY

type Style = Parameters<typeof styleText>[0]

/** Text in a style, where the output is a terminal and NO_COLOR is not set. */
export function styled(style: Style, text: string): string {
  return styleText(style, text)
}

/** Starts a numbered section. */
export function heading(title: string): void {
  console.log(`\n${styled(['bold', 'cyan'], title)}`)
}

/** A paragraph of the demo's own voice. */
export function say(text: string): void {
  console.log(`  ${text}`)
}

/** The lines of a program or of SQL. */
export function showCode(text: string): void {
  for (const line of text.split('\n')) console.log(styled('dim', `  │ ${line}`.trimEnd()))
}

/** Names and values, one pair a line. */
export function showFields(fields: Readonly<Record<string, string>>): void {
  const width = Math.max(...Object.keys(fields).map((name) => name.length))
  for (const [name, value] of Object.entries(fields)) {
    const [first = '', ...rest] = folded(value, 96 - width)
    say(`${styled('green', name.padEnd(width))}  ${first}`)
    for (const line of rest) say(`${' '.repeat(width)}  ${line}`)
  }
}

/** Rows under the names of their columns; numbers stand right. Long text is cut. */
export function showTable(rows: readonly Readonly<Record<string, unknown>>[]): void {
  const [first] = rows
  if (first === undefined) return say('(no rows)')
  const cells = rows.map((row) => Object.values(row).map((value) => cut(cell(value))))
  const columns = Object.entries(first).map(([name, value], index) => ({
    name,
    width: Math.max(name.length, ...cells.map((row) => row[index]?.length ?? 0)),
    right: /^-?[\d., €]+$/.test(cell(value)),
  }))
  const line = (row: readonly string[]): string =>
    columns
      .map(({ width, right }, index) => (right ? row[index]?.padStart(width) : row[index]?.padEnd(width)))
      .join('   ')
      .trimEnd()
  say(styled('green', line(columns.map(({ name }) => name))))
  for (const row of cells) say(line(row))
}

function cell(value: unknown): string {
  if (value === null) return '–'
  if (value instanceof Date) return value.toISOString().slice(0, 16).replace('T', ' ')
  return typeof value === 'string' ? value : JSON.stringify(value)
}

function cut(text: string): string {
  return text.length > 48 ? `${text.slice(0, 47)}…` : text
}

function folded(text: string, width: number): string[] {
  const lines: string[] = []
  let line = ''
  for (const word of text.split(/\s+/)) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line)
      line = word
    } else {
      line = line === '' ? word : `${line} ${word}`
    }
  }
  return [...lines, line]
}

/** Says what is going on while `work` runs, and how long it took. `report` changes what is said. */
export async function withProgress<Result>(
  title: string,
  work: (report: (state: string) => void) => Promise<Result>,
  summary: (result: Result) => string,
): Promise<Result> {
  const begun = performance.now()
  const seconds = (): string => `${((performance.now() - begun) / 1000).toFixed(1)} s`
  let state = ''
  const draw = (): void => {
    // A line that wraps cannot be taken back.
    const room = (stdout.columns || 80) - title.length - 16
    const shown = state.length > room ? `${state.slice(0, Math.max(0, room - 1))}…` : state
    stdout.write(`\r\x1b[2K  ${styled('yellow', '…')} ${title} ${styled('dim', `${shown} ${seconds()}`)}`)
  }
  const ticker = moving ? setInterval(draw, 200) : undefined
  if (moving) draw()
  else console.log(`  … ${title}`)
  try {
    const result = await work((next) => {
      if (moving) {
        state = next
        draw()
      } else {
        console.log(`    ${next}`)
      }
    })
    if (moving) stdout.write('\r\x1b[2K')
    console.log(`  ${styled('green', '✓')} ${title}: ${summary(result)} ${styled('dim', `(${seconds()})`)}`)
    return result
  } catch (error) {
    if (moving) stdout.write('\r\x1b[2K')
    console.log(`  ${styled('red', '✗')} ${title}`)
    throw error
  } finally {
    clearInterval(ticker)
  }
}
