/** One SQL statement of a script, without the semicolon. */
export interface Statement {
  readonly sql: string
  /** Where it begins in the script, in UTF-16 units. */
  readonly start: number
}

/** A comment of the form `-- …` outside any statement's strings and bodies. */
export interface LineComment {
  readonly text: string
  readonly start: number
}

/** A script taken apart. */
export interface Script {
  readonly statements: readonly Statement[]
  readonly lineComments: readonly LineComment[]
  /** A string, comment or body that the script opens and never closes. */
  readonly unclosed: { readonly what: string; readonly start: number } | undefined
}

/**
 * Cuts a script into statements where psql would: at semicolons outside strings, quoted names, comments, dollar
 * quotes, parentheses and the `BEGIN ATOMIC … END` bodies of SQL functions. Each position in `endsBefore` ends a
 * statement as well.
 */
export function splitStatements(script: string, endsBefore: readonly number[] = []): Script {
  const statements: Statement[] = []
  const lineComments: LineComment[] = []
  let unclosed: Script['unclosed']
  let start: number | undefined
  let depth = 0
  let body = new BodyTracker()

  const finish = (end: number): void => {
    if (start !== undefined) statements.push({ sql: script.slice(start, end).trimEnd(), start })
    start = undefined
    depth = 0
    body = new BodyTracker()
  }

  let at = 0
  let lastToken = 0
  while (at < script.length) {
    if (endsBefore.includes(at)) finish(lastToken)
    const token = nextToken(script, at)
    const text = script.slice(at, token.end)
    if (token.unclosed) unclosed ??= { what: token.unclosed, start: at }
    if (token.kind === 'comment' && text.startsWith('--')) lineComments.push({ text, start: at })
    if (token.kind === 'end' && depth === 0 && !body.open) {
      finish(at)
    } else if (token.kind !== 'space' && token.kind !== 'comment') {
      if (token.kind !== 'end') start ??= at
      if (text === '(') depth += 1
      if (text === ')') depth = Math.max(0, depth - 1)
      if (token.kind === 'word') body.see(text.toLowerCase(), depth)
      lastToken = token.end
    }
    at = token.end
  }
  finish(lastToken)
  return { statements, lineComments, unclosed }
}

/** Knows whether a CREATE FUNCTION or PROCEDURE is inside its `BEGIN … END`, by psql's rule. */
class BodyTracker {
  readonly #words: string[] = []
  #blocks = 0

  get open(): boolean {
    return this.#blocks > 0
  }

  see(word: string, parentheses: number): void {
    if (this.#words.length < 4) this.#words.push(word)
    const [first, second, third, fourth] = this.#words
    if (first !== 'create' || parentheses > 0) return
    const kind = second === 'or' && third === 'replace' ? fourth : second
    if (kind !== 'function' && kind !== 'procedure') return
    if (word === 'begin' || (word === 'case' && this.open)) this.#blocks += 1
    if (word === 'end' && this.open) this.#blocks -= 1
  }
}

interface Token {
  readonly kind: 'comment' | 'end' | 'other' | 'space' | 'word'
  readonly end: number
  readonly unclosed?: string
}

function nextToken(script: string, at: number): Token {
  const character = script[at] ?? ''
  const next = script[at + 1]
  if (/\s/.test(character)) return { kind: 'space', end: match(script, at, /\s+/y) }
  if (character === ';') return { kind: 'end', end: at + 1 }
  if (character === '-' && next === '-') return { kind: 'comment', end: match(script, at, /--[^\n\r]*/y) }
  if (character === '/' && next === '*') return blockComment(script, at)
  if (character === "'") return quoted(script, at, /'[^']*(?:''[^']*)*'/y, 'a string')
  if (character === '"') return quoted(script, at, /"[^"]*(?:""[^"]*)*"/y, 'a quoted name')
  if ((character === 'e' || character === 'E') && next === "'") {
    return quoted(script, at, /[eE]'[^'\\]*(?:(?:\\[^]|'')[^'\\]*)*'/y, 'a string')
  }
  if (character === '$') return dollarQuoted(script, at)
  const word = match(script, at, /[A-Za-z_\u0080-\uffff][\w$\u0080-\uffff]*/y)
  if (word > at) return { kind: 'word', end: word }
  // A number takes its letters along, so that none of them begins a word or a dollar quote.
  return { kind: 'other', end: Math.max(at + 1, match(script, at, /\d[\w.]*/y)) }
}

function match(script: string, at: number, pattern: RegExp): number {
  pattern.lastIndex = at
  return pattern.test(script) ? pattern.lastIndex : at
}

function quoted(script: string, at: number, pattern: RegExp, what: string): Token {
  const end = match(script, at, pattern)
  return end > at ? { kind: 'other', end } : { kind: 'other', end: script.length, unclosed: what }
}

function dollarQuoted(script: string, at: number): Token {
  const bodyStart = match(script, at, /\$(?:[A-Za-z_\u0080-\uffff][\w\u0080-\uffff]*)?\$/y)
  if (bodyStart === at) return { kind: 'other', end: at + 1 }
  const tag = script.slice(at, bodyStart)
  const close = script.indexOf(tag, bodyStart)
  if (close < 0) return { kind: 'other', end: script.length, unclosed: `a body quoted by ${tag}` }
  return { kind: 'other', end: close + tag.length }
}

/** PostgreSQL's block comments nest. */
function blockComment(script: string, at: number): Token {
  const edge = /\/\*|\*\//g
  edge.lastIndex = at
  let depth = 0
  for (let found = edge.exec(script); found; found = edge.exec(script)) {
    depth += found[0] === '/*' ? 1 : -1
    if (depth === 0) return { kind: 'comment', end: edge.lastIndex }
  }
  return { kind: 'comment', end: script.length, unclosed: 'a comment' }
}
