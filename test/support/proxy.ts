/**
 * A TCP proxy for fault tests that understands the PostgreSQL protocol in both directions. A test strikes at a message
 * (the reply to COMMIT, the third row, the client's Execute of one statement), or at all connections at once. Messages
 * are delivered whole, so that a fault lands exactly where it was asked for, however the bytes were cut into packets.
 */

import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'

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

/** Which messages a fault strikes. */
export type MessagePattern =
  | {
      readonly from: 'client'
      readonly message: ClientMessage
      /** The statement that a Query, Parse, Bind, Describe, Execute or Close is about, also where it has a name. */
      readonly sql?: RegExp
    }
  | {
      readonly from: 'server'
      readonly message: ServerMessage
      /** How the tag of a CommandComplete begins. */
      readonly tag?: string
    }

/** What happens to a connection when a message matches. */
export type Fault =
  /** The message is lost and both sides see the connection reset. */
  | 'reset'
  /** The message is lost and both sides see the connection closed in order. */
  | 'close'
  /** From this message on nothing is delivered either way; what comes is read and thrown away, farewells included. */
  | 'black-hole'
  /** From this message on nothing is read or delivered either way, until {@link Proxy.thaw}. */
  | 'stall'
  /** The first half is delivered, then the connection closes in order. */
  | 'halve'
  /** This byte of the message is inverted; 0 is its type, 1 to 4 its length. */
  | { readonly corruptByte: number }
  /** The length word says what this makes of the right one. */
  | { readonly length: (right: number) => number }
  /** This message, and with it what follows in its direction, comes later. */
  | { readonly delayMs: number }
  /** From this message on its direction gives one byte per interval. */
  | { readonly trickleMs: number }

/** When a rule strikes. */
export interface RuleOptions {
  /** At which occurrence it strikes first. @default 1 */
  readonly nth?: number
  /** How often it strikes; `Infinity` for always. @default 1 */
  readonly times?: number
}

/** A fault that waits for its message. */
export interface Rule {
  /** How often it struck. */
  readonly hits: number
  /** Resolves when it strikes for the first time. */
  readonly struck: Promise<void>
  off(): void
}

/** A running proxy. Times are milliseconds. */
export interface Proxy {
  /** The target's URL with the proxy's address in it. */
  readonly url: string
  readonly port: number
  /** Connections that are open now. */
  readonly connections: number
  /** When each connection was accepted, as `performance.now()`; its length is how many there were. */
  readonly accepted: readonly number[]
  /** Every SQL text that a client sent in a Query or Parse. */
  readonly statements: ReadonlySet<string>
  /** How many messages of a kind came, whether they were delivered or not. */
  count(from: 'client', message: ClientMessage): number
  count(from: 'server', message: ServerMessage): number
  /** Strikes at messages of a kind. Of several rules that want the same message the oldest has it. */
  on(pattern: MessagePattern, fault: Fault, options?: RuleOptions): Rule
  /** Resets all connections that are open. */
  cut(): void
  /** Stops delivery on all connections, also on those to come: they are accepted and hear nothing. */
  freeze(): void
  /** Goes on after {@link freeze} and after `stall`; nothing is lost. */
  thaw(): void
  /** Lets everything from now on arrive so much later, in each direction; 0 ends it. */
  delay(ms: number): void
  /** Lets each direction of each connection carry so much; 0 ends it. */
  throttle(bytesPerSecond: number): void
  /** Ends all connections and gives the port back. */
  close(): Promise<void>
}

/** Where a proxy leads. */
export interface ProxyOptions {
  /** The URL of the server. */
  readonly to: string
  /** `raw` takes each packet for one message `Bytes`, for other protocols. @default 'postgres' */
  readonly protocol?: 'postgres' | 'raw'
}

/** Starts a proxy on a free port of this machine. */
export async function startProxy(options: ProxyOptions): Promise<Proxy> {
  const target = new URL(options.to)
  const targetPort = Number(target.port || (target.protocol.startsWith('redis') ? 6379 : 5432))
  const raw = options.protocol === 'raw'
  const shape: Shape = { delayMs: 0, bytesPerSecond: 0 }
  const counts = new Map<string, number>()
  const rules = new Set<WaitingRule>()
  const links = new Set<Link>()
  const accepted: number[] = []
  const statements = new Set<string>()
  let isFrozen = false

  function inspect(message: Message): Fault | undefined {
    const key = `${message.from} ${message.name}`
    counts.set(key, (counts.get(key) ?? 0) + 1)
    if (message.sql !== undefined && (message.name === 'Parse' || message.name === 'Query')) statements.add(message.sql)
    // All rules see the message, so that each counts its occurrences by itself.
    return [...rules].map((rule) => rule.meet(message)).find((fault) => fault !== undefined)
  }

  const listener = createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
    accepted.push(performance.now())
    const server = connect({ host: target.hostname, port: targetPort, allowHalfOpen: true, noDelay: true })
    const link = new Link(client, server, { raw, shape, inspect, onClose: () => links.delete(link) })
    links.add(link)
    if (isFrozen) link.hold()
  })
  listener.listen(0, '127.0.0.1')
  await once(listener, 'listening')
  const address = listener.address()
  if (address === null || typeof address === 'string') throw new Error('The system gave the proxy no port.')
  const url = new URL(target)
  url.hostname = '127.0.0.1'
  url.port = String(address.port)

  return {
    url: url.href,
    port: address.port,
    accepted,
    statements,
    get connections() {
      return links.size
    },
    count: (from, message) => counts.get(`${from} ${message}`) ?? 0,
    on(pattern, fault, when = {}) {
      const rule = new WaitingRule(pattern, fault, when)
      rules.add(rule)
      return {
        get hits() {
          return rule.hits
        },
        struck: rule.struck.promise,
        off: () => void rules.delete(rule),
      }
    },
    cut() {
      for (const link of [...links]) link.reset()
    },
    freeze() {
      isFrozen = true
      for (const link of links) link.hold()
    },
    thaw() {
      isFrozen = false
      for (const link of links) link.resume()
    },
    delay(ms) {
      shape.delayMs = ms
    },
    throttle(bytesPerSecond) {
      shape.bytesPerSecond = bytesPerSecond
    },
    async close() {
      const closed = once(listener, 'close')
      listener.close()
      for (const link of [...links]) link.destroy()
      await closed
    },
  }
}

/** What applies to all connections of a proxy. */
interface Shape {
  delayMs: number
  bytesPerSecond: number
}

type Side = 'client' | 'server'

interface Message {
  readonly from: Side
  readonly name: ClientMessage | ServerMessage
  readonly bytes: Buffer
  readonly sql?: string | undefined
  readonly tag?: string | undefined
}

class WaitingRule {
  hits = 0
  readonly struck: PromiseWithResolvers<void> = Promise.withResolvers()
  readonly #pattern: MessagePattern
  readonly #fault: Fault
  readonly #nth: number
  readonly #times: number
  #met = 0

  constructor(pattern: MessagePattern, fault: Fault, { nth = 1, times = 1 }: RuleOptions) {
    this.#pattern = pattern
    this.#fault = fault
    this.#nth = nth
    this.#times = times
  }

  meet(message: Message): Fault | undefined {
    const pattern = this.#pattern
    if (pattern.from !== message.from || pattern.message !== message.name) return undefined
    if (pattern.from === 'client' && pattern.sql && !pattern.sql.test(message.sql ?? '')) return undefined
    if (pattern.from === 'server' && pattern.tag && message.tag?.startsWith(pattern.tag) !== true) return undefined
    this.#met += 1
    if (this.#met < this.#nth || this.hits >= this.#times) return undefined
    this.hits += 1
    this.struck.resolve()
    return this.#fault
  }
}

interface LinkSettings {
  readonly raw: boolean
  readonly shape: Shape
  inspect(message: Message): Fault | undefined
  onClose(): void
}

/** One client and its own connection to the server. */
class Link {
  readonly #client: Socket
  readonly #server: Socket
  readonly #toClient: Outlet
  readonly #toServer: Outlet
  readonly #settings: LinkSettings
  #isHeld = false
  #isBlackHole = false
  #isClosed = false

  constructor(client: Socket, server: Socket, settings: LinkSettings) {
    this.#client = client
    this.#server = server
    this.#settings = settings
    this.#toClient = new Outlet(client, settings.shape)
    this.#toServer = new Outlet(server, settings.shape)
    const conversation = new Conversation(settings.raw)
    this.#listen('client', client, this.#toServer, (chunk) => conversation.fromClient(chunk))
    this.#listen('server', server, this.#toClient, (chunk) => conversation.fromServer(chunk))
  }

  hold(): void {
    this.#isHeld = true
    this.#toClient.hold()
    this.#toServer.hold()
    this.#client.pause()
    this.#server.pause()
  }

  resume(): void {
    if (!this.#isHeld) return
    this.#isHeld = false
    this.#client.resume()
    this.#server.resume()
    if (this.#isBlackHole) return
    this.#toClient.resume()
    this.#toServer.resume()
  }

  reset(): void {
    this.#close((socket) => socket.resetAndDestroy())
  }

  destroy(): void {
    this.#close((socket) => socket.destroy())
  }

  #listen(from: Side, source: Socket, outlet: Outlet, read: (chunk: Buffer) => Message[]): void {
    source.on('data', (chunk) => {
      if (this.#isBlackHole || this.#isClosed) return
      outlet.cork()
      for (const message of read(chunk)) {
        if (this.#isBlackHole || this.#isClosed) break
        this.#deliver(message, outlet)
      }
      outlet.uncork()
    })
    source.on('end', () => {
      if (!this.#isBlackHole) outlet.push('end', 0)
    })
    source.on('error', () => {})
    source.on('close', (wasReset) => {
      if (this.#isBlackHole || this.#isClosed) return
      // What was sent before a reset may be lost to it, as on a real network.
      if (wasReset) return this.reset()
      const other = from === 'client' ? this.#server : this.#client
      if (other.destroyed) this.destroy()
    })
  }

  #deliver(message: Message, outlet: Outlet): void {
    const fault = this.#settings.inspect(message)
    if (fault === undefined) return outlet.push(message.bytes, 0)
    if (fault === 'reset') return this.reset()
    if (fault === 'close') return this.#finish()
    if (fault === 'black-hole') return this.#swallow()
    if (fault === 'stall') {
      this.hold()
      return outlet.push(message.bytes, 0)
    }
    if (fault === 'halve') {
      outlet.push(message.bytes.subarray(0, Math.ceil(message.bytes.length / 2)), 0)
      return this.#finish()
    }
    if ('delayMs' in fault) return outlet.push(message.bytes, fault.delayMs)
    if ('trickleMs' in fault) {
      outlet.trickle(fault.trickleMs)
      return outlet.push(message.bytes, 0)
    }
    const changed = Buffer.from(message.bytes)
    if ('length' in fault) changed.writeInt32BE(fault.length(changed.readInt32BE(1)), 1)
    else changed[fault.corruptByte] = (changed[fault.corruptByte] ?? 0) ^ 0xff
    outlet.push(changed, 0)
  }

  #finish(): void {
    this.#isClosed = true
    this.#toClient.push('end', 0)
    this.#toServer.push('end', 0)
    const gone = (): void => {
      if (this.#client.destroyed && this.#server.destroyed) this.#settings.onClose()
    }
    this.#client.once('close', gone)
    this.#server.once('close', gone)
    // Half-closed sockets wait for the other side; both have been told.
    this.#client.once('end', () => this.#client.destroySoon())
    this.#server.once('end', () => this.#server.destroySoon())
  }

  #swallow(): void {
    this.#isBlackHole = true
    this.#toClient.hold()
    this.#toServer.hold()
  }

  #close(end: (socket: Socket) => void): void {
    this.#isClosed = true
    this.#toClient.hold()
    this.#toServer.hold()
    end(this.#client)
    end(this.#server)
    this.#settings.onClose()
  }
}

interface Parcel {
  bytes: Buffer | 'end'
  readonly due: number
}

const maxUnsentBytes = 1_048_576

/** What goes to one socket: in order, as late and as slowly as the faults want it. */
class Outlet {
  readonly #to: Socket
  readonly #shape: Shape
  readonly #queue: Parcel[] = []
  #isHeld = false
  #trickleMs = 0
  #timer: NodeJS.Timeout | undefined

  constructor(to: Socket, shape: Shape) {
    this.#to = to
    this.#shape = shape
    to.on('drain', () => this.#pump())
  }

  push(bytes: Buffer | 'end', delayMs: number): void {
    this.#queue.push({ bytes, due: performance.now() + delayMs + this.#shape.delayMs })
    this.#pump()
  }

  trickle(intervalMs: number): void {
    this.#trickleMs = intervalMs
  }

  cork(): void {
    this.#to.cork()
  }

  uncork(): void {
    this.#to.uncork()
  }

  hold(): void {
    this.#isHeld = true
    clearTimeout(this.#timer)
    this.#timer = undefined
  }

  resume(): void {
    this.#isHeld = false
    this.#pump()
  }

  #pump(): void {
    while (!this.#isHeld && this.#timer === undefined && this.#to.writableLength < maxUnsentBytes) {
      if (this.#to.destroyed) this.#queue.length = 0
      const [head] = this.#queue
      if (head === undefined) return
      const waitMs = head.due - performance.now()
      if (waitMs > 0) return this.#pumpLater(waitMs)
      if (head.bytes === 'end') {
        this.#queue.shift()
        if (this.#to.writable) this.#to.end()
        continue
      }
      const { bytesPerSecond } = this.#shape
      const portion = this.#trickleMs > 0 ? 1 : bytesPerSecond > 0 ? Math.ceil(bytesPerSecond / 50) : head.bytes.length
      const bytes = head.bytes.subarray(0, portion)
      if (portion >= head.bytes.length) this.#queue.shift()
      else head.bytes = head.bytes.subarray(portion)
      if (this.#to.writable) this.#to.write(bytes)
      if (this.#trickleMs > 0) return this.#pumpLater(this.#trickleMs)
      if (bytesPerSecond > 0) return this.#pumpLater((bytes.length / bytesPerSecond) * 1_000)
    }
  }

  #pumpLater(waitMs: number): void {
    this.#timer = setTimeout(() => {
      this.#timer = undefined
      this.#pump()
    }, waitMs)
  }
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
class Conversation {
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
      if (name === undefined) throw new Error(`A client sent a message of unknown type ${JSON.stringify(typed.type)}.`)
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
      if (name === undefined)
        throw new Error(`The server sent a message of unknown type ${JSON.stringify(typed.type)}.`)
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
  if (bytes.length < 5) return undefined
  const length = bytes.readInt32BE(1) + 1
  return bytes.length < length
    ? undefined
    : { type: String.fromCharCode(bytes[0] ?? 0), bytes: bytes.subarray(0, length) }
}

/** The text from here to the next NUL. */
function textAt(bytes: Buffer, start: number): string {
  return bytes.toString('utf8', start, bytes.indexOf(0, start))
}
