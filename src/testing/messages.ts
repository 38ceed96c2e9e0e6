/** Messages of the PostgreSQL protocol: cutting bytes into them, and making those that are of use here. */

/** Cuts a stream of bytes into messages that begin with a code and their length. */
export class MessageCutter {
  #rest: Buffer = Buffer.alloc(0)

  /** Calls with each message that is whole; what is not is kept for the next time. */
  read(chunk: Buffer, each: (code: string, message: Buffer) => void): void {
    let unread = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk])
    for (let next = wholeMessage(unread); next !== undefined; next = wholeMessage(unread)) {
      unread = unread.subarray(next.length)
      each(String.fromCharCode(next[0] ?? 0), next)
    }
    this.#rest = unread
  }
}

/** The first message, if all of it is there. */
export function wholeMessage(bytes: Buffer): Buffer | undefined {
  if (bytes.length < 5) return undefined
  const length = bytes.readInt32BE(1) + 1
  return bytes.length < length ? undefined : bytes.subarray(0, length)
}

/** The text from here to the next NUL. */
export function textAt(bytes: Buffer, start: number): string {
  return bytes.toString('utf8', start, bytes.indexOf(0, start))
}

/** Where the next text begins. */
export function afterText(bytes: Buffer, start: number): number {
  return bytes.indexOf(0, start) + 1
}

/** A message with this code and body. */
export function frame(code: string, ...body: readonly (Buffer | string)[]): Buffer {
  const parts = body.map((part) => (typeof part === 'string' ? Buffer.from(`${part}\0`) : part))
  const head = Buffer.alloc(5)
  head.write(code, 0, 'latin1')
  head.writeInt32BE(4 + parts.reduce((sum, part) => sum + part.length, 0), 1)
  return Buffer.concat([head, ...parts])
}

/** Numbers of 32 bits. */
export function int32(...values: readonly number[]): Buffer {
  const bytes = Buffer.alloc(4 * values.length)
  for (const [index, value] of values.entries()) bytes.writeInt32BE(value | 0, 4 * index)
  return bytes
}

/** Commands without parameters, by the simple protocol. */
export function queryMessage(sql: string): Buffer {
  return frame('Q', sql)
}

export const syncMessage: Buffer = frame('S')

/** What makes the server itself fail with this, in the place of a statement. */
export function raising(sqlState: string, text: string): string {
  const quoted = (value: string): string => `'${value.replaceAll("'", "''")}'`
  return `do ${dollarQuoted(`begin raise exception using errcode = ${quoted(sqlState)}, message = ${quoted(text)}; end`)}`
}

function dollarQuoted(text: string): string {
  return `$kanta$ ${text} $kanta$`
}
