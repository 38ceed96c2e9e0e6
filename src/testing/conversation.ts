import { DatabaseError } from '../core/errors.ts'
import { textAt, wholeMessage } from './messages.ts'

/** What a client of PostgreSQL can send. `Bytes` is whatever comes after TLS has begun, or in raw mode. */
export type ClientMessage =
  | 'Bind'
  | 'Bytes'
  | 'CancelRequest'
  | 'Close'
  | 'CopyData'
  | 'CopyDone'
  | 'CopyFail'
  | 'Describe'
  | 'Execute'
  | 'Flush'
  | 'FunctionCall'
  | 'GssRequest'
  | 'Parse'
  | 'Password'
  | 'Query'
  | 'SslRequest'
  | 'Startup'
  | 'Sync'
  | 'Terminate'

/** What PostgreSQL can send. `SslAnswer` is the single byte that answers an SslRequest. */
export type ServerMessage =
  | 'Authentication'
  | 'BackendKeyData'
  | 'BindComplete'
  | 'Bytes'
  | 'CloseComplete'
  | 'CommandComplete'
  | 'CopyBothResponse'
  | 'CopyData'
  | 'CopyDone'
  | 'CopyInResponse'
  | 'CopyOutResponse'
  | 'DataRow'
  | 'EmptyQueryResponse'
  | 'ErrorResponse'
  | 'FunctionCallResponse'
  | 'NegotiateProtocolVersion'
  | 'NoData'
  | 'NoticeResponse'
  | 'NotificationResponse'
  | 'ParameterDescription'
  | 'ParameterStatus'
  | 'ParseComplete'
  | 'PortalSuspended'
  | 'ReadyForQuery'
  | 'RowDescription'
  | 'SslAnswer'

/** Who sends. */
export type Side = 'client' | 'server'

/** One message on its way. */
export interface Message {
  readonly from: Side
  readonly name: ClientMessage | ServerMessage
  readonly bytes: Buffer
  readonly sql?: string | undefined
  readonly tag?: string | undefined
}

const clientMessages: Readonly<Record<string, ClientMessage>> = {
  B: 'Bind',
  C: 'Close',
  D: 'Describe',
  E: 'Execute',
  F: 'FunctionCall',
  H: 'Flush',
  P: 'Parse',
  Q: 'Query',
  S: 'Sync',
  X: 'Terminate',
  c: 'CopyDone',
  d: 'CopyData',
  f: 'CopyFail',
  p: 'Password',
}

const serverMessages: Readonly<Record<string, ServerMessage>> = {
  '1': 'ParseComplete',
  '2': 'BindComplete',
  '3': 'CloseComplete',
  A: 'NotificationResponse',
  C: 'CommandComplete',
  D: 'DataRow',
  E: 'ErrorResponse',
  G: 'CopyInResponse',
  H: 'CopyOutResponse',
  I: 'EmptyQueryResponse',
  K: 'BackendKeyData',
  N: 'NoticeResponse',
  R: 'Authentication',
  S: 'ParameterStatus',
  T: 'RowDescription',
  V: 'FunctionCallResponse',
  W: 'CopyBothResponse',
  Z: 'ReadyForQuery',
  c: 'CopyDone',
  d: 'CopyData',
  n: 'NoData',
  s: 'PortalSuspended',
  t: 'ParameterDescription',
  v: 'NegotiateProtocolVersion',
}

/** The messages without a type byte that may open a connection, by the number in the place of the version. */
const openings: Readonly<Record<number, ClientMessage>> = {
  80_877_102: 'CancelRequest',
  80_877_103: 'SslRequest',
  80_877_104: 'GssRequest',
}

/** Cuts the bytes of one connection into messages, and knows which statement each is about. */
export class Conversation {
  #unread: Record<Side, Buffer> = { client: Buffer.alloc(0), server: Buffer.alloc(0) }
  #isRaw: boolean
  #isOpening = true
  /** An SslRequest or GssRequest is on its way; the answer is one byte. */
  #isAsking = false
  readonly #statements = new Map<string, string>()
  readonly #portals = new Map<string, string>()

  constructor(raw: boolean) {
    this.#isRaw = raw
  }

  fromClient(chunk: Buffer): Message[] {
    return this.#read('client', chunk, (bytes) => {
      if (this.#isOpening) return bytes.length < 8 ? undefined : this.#opening(bytes)
      const typed = typedMessage(bytes)
      if (typed === undefined) return undefined
      const name = clientMessages[typed.type]
      if (name === undefined) throw unknownMessage('A client', typed.type)
      return { from: 'client', name, bytes: typed.bytes, sql: this.#sqlOf(name, typed.bytes) }
    })
  }

  fromServer(chunk: Buffer): Message[] {
    return this.#read('server', chunk, (bytes) => {
      if (this.#isAsking) {
        this.#isAsking = false
        // From here on both sides speak TLS, and the client waits for this byte before it does.
        this.#isRaw = bytes[0] !== 'N'.charCodeAt(0)
        return { from: 'server', name: 'SslAnswer', bytes: bytes.subarray(0, 1) }
      }
      const typed = typedMessage(bytes)
      if (typed === undefined) return undefined
      const name = serverMessages[typed.type]
      if (name === undefined) throw unknownMessage('The server', typed.type)
      const tag = name === 'CommandComplete' ? textAt(typed.bytes, 5) : undefined
      return { from: 'server', name, bytes: typed.bytes, tag }
    })
  }

  #read(side: Side, chunk: Buffer, next: (unread: Buffer) => Message | undefined): Message[] {
    let unread = this.#unread[side].length === 0 ? chunk : Buffer.concat([this.#unread[side], chunk])
    const messages: Message[] = []
    while (unread.length > 0) {
      const message: Message | undefined = this.#isRaw ? { from: side, name: 'Bytes', bytes: unread } : next(unread)
      if (message === undefined) break
      messages.push(message)
      unread = unread.subarray(message.bytes.length)
    }
    this.#unread[side] = unread
    return messages
  }

  #opening(bytes: Buffer): Message | undefined {
    const length = bytes.readInt32BE(0)
    if (bytes.length < length) return undefined
    const name = openings[bytes.readInt32BE(4)] ?? 'Startup'
    if (name === 'Startup') this.#isOpening = false
    if (name === 'SslRequest' || name === 'GssRequest') this.#isAsking = true
    return { from: 'client', name, bytes: bytes.subarray(0, length) }
  }

  #sqlOf(name: ClientMessage, bytes: Buffer): string | undefined {
    if (name === 'Query') return textAt(bytes, 5)
    if (name === 'Parse') {
      const statement = textAt(bytes, 5)
      const sql = textAt(bytes, 5 + Buffer.byteLength(statement) + 1)
      this.#statements.set(statement, sql)
      return sql
    }
    if (name === 'Bind') {
      const portal = textAt(bytes, 5)
      const sql = this.#statements.get(textAt(bytes, 5 + Buffer.byteLength(portal) + 1)) ?? ''
      this.#portals.set(portal, sql)
      return sql
    }
    if (name === 'Execute') return this.#portals.get(textAt(bytes, 5))
    if (name === 'Describe' || name === 'Close') {
      const known = bytes[5] === 'S'.charCodeAt(0) ? this.#statements : this.#portals
      return known.get(textAt(bytes, 6))
    }
    return undefined
  }
}

function typedMessage(bytes: Buffer): { type: string; bytes: Buffer } | undefined {
  const whole = wholeMessage(bytes)
  return whole && { type: String.fromCharCode(whole[0] ?? 0), bytes: whole }
}

function unknownMessage(who: string, type: string): DatabaseError {
  return new DatabaseError(
    'PROTOCOL_VIOLATION',
    `${who} sent a message of the unknown type ${JSON.stringify(type)} through a fault proxy. For another protocol than PostgreSQL's give { protocol: 'raw' }.`,
  )
}
