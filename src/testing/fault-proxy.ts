/**
 * A TCP proxy for tests of faults that understands the PostgreSQL protocol in both directions. A test strikes at a message
 * (the reply to COMMIT, the third row, the client's Execute of one statement), or at all connections at once. Messages
 * are delivered whole, so that a fault lands exactly where it was asked for, however the bytes were cut into packets.
 */

import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'
import { DatabaseError } from '../core/errors.ts'
import { type ClientMessage, Conversation, type Message, type ServerMessage, type Side } from './conversation.ts'
import { frame, queryMessage, raising } from './messages.ts'

export type { ClientMessage, ServerMessage } from './conversation.ts'

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
  /** Of a client's Execute or Query: the server fails in its place, by itself, with this. */
  | { readonly sqlState: string; readonly text: string }

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

/** Which statement the server is to fail, and how. */
export interface InjectedFailure extends RuleOptions {
  /** What PostgreSQL would say, such as `40001` for a serialization failure. */
  readonly sqlState: string
  /** Of the statement. @default any */
  readonly statement?: RegExp
}

/** A running proxy. Times are milliseconds. */
export interface Proxy extends AsyncDisposable {
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
  /**
   * The server fails the next statement that matches, which does not run: a real error of a real transaction, by whatever connection
   * it comes. Only PostgreSQL without TLS.
   */
  failNext(failure: InjectedFailure): Rule
  /** Resets all connections that are open. */
  cut(): void
  /** Resets connections that are opened from now on, as a server that is not there; `false` ends it. Those that are open stay. */
  refuse(isRefusing?: boolean): void
  /** Resets a connection, each from now on by itself, once the server has sent so many bytes more on it; 0 ends it. */
  resetAfterBytes(bytes: number): void
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

/**
 * Puts a proxy in front of PostgreSQL or Redis, for which the code under test is given {@link Proxy.url}: then connections are cut,
 * freeze, become slow or are refused as the test says, on a real network and with a real server. Closed with `await using` or
 * `close()`. It listens on this machine alone.
 *
 * Rejects with `INVALID_ARGUMENT` for what is no URL of one server.
 *
 * @example
 * ```ts
 * import { createDatabase } from 'kanta'
 * import { faultProxy } from 'kanta/testing'
 *
 * await using proxy = await faultProxy('postgres://app@127.0.0.1:5432/shop')
 * await using database = await createDatabase({ postgres: { url: proxy.url } })
 * proxy.failNext({ sqlState: '40001', statement: /update/i })
 * proxy.cut()
 * ```
 */
export async function faultProxy(url: string, options: Pick<ProxyOptions, 'protocol'> = {}): Promise<Proxy> {
  const scheme = URL.canParse(url) ? new URL(url).protocol : ''
  const kind = /^(?:postgres(?:ql)?|(rediss?)):$/.exec(scheme)
  if (kind === null || new URL(url).hostname === '') {
    throw new DatabaseError(
      'INVALID_ARGUMENT',
      'A fault proxy was given what is no URL of one server. Give postgres://host:port/database or redis://host:port.',
    )
  }
  return startProxy({ to: url, protocol: options.protocol ?? (kind[1] === undefined ? 'postgres' : 'raw') })
}

/** {@link faultProxy} for what is in the tree of kanta itself. */
export async function startProxy(options: ProxyOptions): Promise<Proxy> {
  const target = new URL(options.to)
  const targetPort = Number(target.port || (target.protocol.startsWith('redis') ? 6379 : 5432))
  // An address of IPv6 is in brackets there.
  const targetHost = target.hostname.replace(/^\[(.*)\]$/, '$1')
  const raw = options.protocol === 'raw'
  const shape: Shape = { delayMs: 0, bytesPerSecond: 0, bytesToReset: 0 }
  const counts = new Map<string, number>()
  const rules = new Set<WaitingRule>()
  const links = new Set<Link>()
  const accepted: number[] = []
  const statements = new Set<string>()
  let isFrozen = false
  let isRefusing = false

  function inspect(message: Message): Fault | undefined {
    const key = `${message.from} ${message.name}`
    counts.set(key, (counts.get(key) ?? 0) + 1)
    if (message.sql !== undefined && (message.name === 'Parse' || message.name === 'Query')) statements.add(message.sql)
    // All rules see the message, so that each counts its occurrences by itself.
    return [...rules].map((rule) => rule.meet(message)).find((fault) => fault !== undefined)
  }

  const listener = createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
    accepted.push(performance.now())
    if (isRefusing) {
      client.on('error', () => undefined)
      client.resetAndDestroy()
      return
    }
    const server = connect({ host: targetHost, port: targetPort, allowHalfOpen: true, noDelay: true })
    const link = new Link(client, server, { raw, shape, inspect, onClose: () => links.delete(link) })
    links.add(link)
    if (isFrozen) link.hold()
  })
  listener.listen(0, '127.0.0.1')
  await once(listener, 'listening')
  const address = listener.address()
  if (address === null || typeof address === 'string')
    throw new DatabaseError('CONNECTION_FAILED', 'The system gave the proxy no port.')
  const url = new URL(target)
  url.hostname = '127.0.0.1'
  url.port = String(address.port)

  const addRule = (patterns: readonly MessagePattern[], fault: Fault, when: RuleOptions): Rule => {
    const rule = new WaitingRule(patterns, fault, when)
    rules.add(rule)
    return {
      get hits() {
        return rule.hits
      },
      struck: rule.struck.promise,
      off: () => void rules.delete(rule),
    }
  }

  const close = async (): Promise<void> => {
    if (!listener.listening) return
    const closed = once(listener, 'close')
    listener.close()
    for (const link of [...links]) link.destroy()
    await closed
  }

  return {
    url: url.href,
    port: address.port,
    accepted,
    statements,
    get connections() {
      return links.size
    },
    count: (from, message) => counts.get(`${from} ${message}`) ?? 0,
    on: (pattern, fault, when = {}) => addRule([pattern], fault, when),
    failNext({ sqlState, statement = /(?:)/, ...when }) {
      const patterns = (['Execute', 'Query'] as const).map((message) => ({
        from: 'client' as const,
        message,
        sql: statement,
      }))
      return addRule(patterns, { sqlState, text: 'injected by a fault proxy' }, when)
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
    refuse(refusing = true) {
      isRefusing = refusing
    },
    resetAfterBytes(bytes) {
      shape.bytesToReset = bytes
    },
    close,
    [Symbol.asyncDispose]: close,
  }
}

/** What applies to all connections of a proxy. */
interface Shape {
  delayMs: number
  bytesPerSecond: number
  bytesToReset: number
}

class WaitingRule {
  hits = 0
  readonly struck: PromiseWithResolvers<void> = Promise.withResolvers()
  readonly #patterns: readonly MessagePattern[]
  readonly #fault: Fault
  readonly #nth: number
  readonly #times: number
  #met = 0

  constructor(patterns: readonly MessagePattern[], fault: Fault, { nth = 1, times = 1 }: RuleOptions) {
    this.#patterns = patterns
    this.#fault = fault
    this.#nth = nth
    this.#times = times
  }

  meet(message: Message): Fault | undefined {
    if (!this.#patterns.some((pattern) => isMeant(pattern, message))) return undefined
    this.#met += 1
    if (this.#met < this.#nth || this.hits >= this.#times) return undefined
    this.hits += 1
    this.struck.resolve()
    return this.#fault
  }
}

function isMeant(pattern: MessagePattern, message: Message): boolean {
  if (pattern.from !== message.from || pattern.message !== message.name) return false
  // Not test(), which goes on where it was when the pattern has the flag g.
  if (pattern.from === 'client') return pattern.sql === undefined || (message.sql ?? '').search(pattern.sql) !== -1
  return !pattern.tag || message.tag?.startsWith(pattern.tag) === true
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
  /** From the server, since the limit was set. */
  #received = 0

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
      if (from === 'server' && this.#isSpent(chunk.length)) return this.reset()
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

  #isSpent(bytes: number): boolean {
    const { bytesToReset } = this.#settings.shape
    this.#received = bytesToReset === 0 ? 0 : this.#received + bytes
    return bytesToReset > 0 && this.#received >= bytesToReset
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
    if ('sqlState' in fault) return outlet.push(failing(message, fault), 0)
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

/** What makes the server fail where the message stood. Its further answers come before the error, and say nothing to the client. */
function failing({ name }: Message, { sqlState, text }: { sqlState: string; text: string }): Buffer {
  const sql = raising(sqlState, text)
  if (name === 'Query') return queryMessage(sql)
  const nothing = Buffer.alloc(2)
  const parse = frame('P', '', sql, nothing)
  const bind = frame('B', '', '', nothing, nothing, nothing)
  return Buffer.concat([parse, bind, frame('E', '', Buffer.alloc(4))])
}
