import { type Client, type ConnectionSource, cutClient, endClient, parameterOf } from './connection.ts'
import { type PreparationPolicy, PreparedStatements } from './prepared-statements.ts'
import { noteFarewell, noteStop } from './sqlstate.ts'
import { takeRowsBy } from './row-reader.ts'
import type { Statement } from './statement.ts'

// What was asked to stop says so within milliseconds, or on a busy machine a little later.
const cancelHeardMs = 1_000

/** One open connection as the engine uses it: what it has prepared, what is in flight, and whether it can still be used. */
export class Channel {
  readonly client: Client
  readonly #isPipelined: boolean
  readonly #prepared: PreparedStatements
  readonly #inFlight: Statement[] = []
  readonly #onIdle: (() => void)[] = []
  readonly #onAnswered: { readonly statement: Statement; readonly resolve: () => void }[] = []
  #isOpen = true
  #isHeld = false
  #ending: Promise<void> | undefined
  #lastAnswer = 0
  #cancelAskedAt = Number.NEGATIVE_INFINITY
  /** Why the server ended the connection, where it said so. */
  #farewell: Farewell | undefined

  constructor(client: Client, policy: PreparationPolicy, onEnd: () => void, isPipelined = false) {
    this.client = client
    policy.noteProcess((client as Client & { processID?: number | null }).processID)
    this.#prepared = new PreparedStatements(policy, client)
    this.#isPipelined = isPipelined
    // Elsewhere `pg` would keep the queue, but it warns of that and will stop doing it.
    if (!isPipelined) client.on('drain', () => this.#sendNext())
    const ended = (error?: unknown): void => {
      this.#isOpen = false
      if (isReport(error)) this.#farewell = error
      this.#failUnsent()
      onEnd()
    }
    client.on('error', ended)
    client.on('end', () => ended())
    // Of a crash and of an immediate shutdown PostgreSQL 14 and later only warn, and then hang up.
    client.on('notice', (notice) => {
      if (notice.code === '57P01' || notice.code === '57P02') this.#farewell = notice as Farewell
    })
    takeRowsBy(client, () => this.#inFlight[0]?.rowTaker)
    // `pg` tells a query of this only by name, and one statement may parse several.
    const { connection } = client as unknown as { readonly connection: NodeJS.EventEmitter }
    connection.on('parseComplete', () => this.#inFlight[0]?.handleParseComplete())
  }

  get isOpen(): boolean {
    return this.#isOpen
  }

  get inFlight(): readonly Statement[] {
    return this.#inFlight
  }

  /** Since when the server works on the statement it has, or 0 when it has none. */
  get busySince(): number {
    const [first] = this.#inFlight
    return first === undefined ? 0 : Math.max(first.sentAt, this.#lastAnswer)
  }

  /** Sends a statement, after those before it where the connection takes one at a time. */
  send(statement: Statement): void {
    statement.attach(this.#prepared, this.#answered)
    statement.sentAt = performance.now()
    this.#inFlight.push(statement)
    if (!this.#isOpen) process.nextTick(() => this.#failUnsent())
    else if (this.#isPipelined || (this.#inFlight.length === 1 && this.#isReady && !this.#isHeld))
      this.client.query(statement as never)
  }

  /**
   * Asks the server to stop a statement, as {@link ConnectionSource.cancel} does, and resolves when the request has done what it will;
   * nothing further is sent before, which it could hit instead.
   */
  async cancelOnly(source: ConnectionSource): Promise<void> {
    this.#isHeld = true
    try {
      await this.cancel(source)
    } finally {
      this.#isHeld = false
      if (this.#isReady && this.#inFlight[0]?.isSubmitted === false) this.#sendNext()
    }
  }

  /** Asks the server to stop what runs here, as {@link ConnectionSource.cancel} does, and remembers that it was asked. */
  cancel(source: ConnectionSource): Promise<void> {
    this.#cancelAskedAt = performance.now()
    return source.cancel(this.client)
  }

  /** Resolves when nothing is in flight. */
  whenIdle(): Promise<void> {
    if (this.#inFlight.length === 0) return Promise.resolve()
    return new Promise((resolve) => this.#onIdle.push(resolve))
  }

  /** Resolves when a statement is no longer in flight. */
  whenAnswered(statement: Statement): Promise<void> {
    if (!this.#inFlight.includes(statement)) return Promise.resolve()
    return new Promise((resolve) => this.#onAnswered.push({ statement, resolve }))
  }

  /** Calls when it has ended, by whatever; gives what takes that back. */
  onEnd(listener: (reason: unknown) => void): () => void {
    const tell = (): void => listener(this.#reasonOfUnsent())
    this.client.once('end', tell)
    return () => this.client.off('end', tell)
  }

  /** Ends it politely, or by cutting the socket. What is in flight fails. */
  end(): Promise<void> {
    this.#isOpen = false
    this.#ending ??= endClient(this.client)
    return this.#ending
  }

  /**
   * Ends it under what is in flight, which fails now, and has the server stop that. The socket is cut after the server was
   * told: a pooler forgets with the connection what runs for it, and could not pass the request on.
   */
  abort(source: ConnectionSource): void {
    if (this.#ending !== undefined) return
    this.#isOpen = false
    this.#failUnsent()
    this.#ending = this.cancel(source).then(() => cutClient(this.client))
    for (const statement of [...this.#inFlight]) statement.abandon(new Error('Connection terminated'))
  }

  readonly #answered = (statement: Statement, error?: unknown): void => {
    // What the server says carries a code. Anything else is a message that is not as it must be, and nothing that follows
    // on this connection can be trusted.
    if (error !== undefined && this.#isOpen && typeof (error as { code?: unknown }).code !== 'string') {
      this.#isOpen = false
      cutClient(this.client)
    }
    const now = performance.now()
    const tookMs = now - Math.max(statement.sentAt, this.#lastAnswer)
    if (error !== undefined) {
      const limitMs = Number(parameterOf(this.client, 'statement_timeout')) || undefined
      noteStop(error, { isAsked: now - this.#cancelAskedAt < cancelHeardMs, tookMs, limitMs })
      if (this.#farewell !== undefined) noteFarewell(error, this.#farewell)
    }
    if (statement.isTimed) {
      const { text } = statement
      text.meanMs = text.meanMs === 0 ? tookMs : text.meanMs + (tookMs - text.meanMs) / 8
    }
    this.#lastAnswer = now
    if (this.#prepared.awaitsIdle && this.client.getTransactionStatus() === 'I') this.#prepared.noteIdle()
    this.#remove(statement)
  }

  /** `pg` fails what it was given; what still waited for its turn here was never sent. */
  #failUnsent(): void {
    for (const statement of this.#inFlight.filter((waiting) => !waiting.isSubmitted)) {
      statement.handleError(this.#reasonOfUnsent())
    }
  }

  #reasonOfUnsent(): unknown {
    const farewell = this.#farewell
    // The server, or PgBouncer, ended the transaction to which the statement belongs for its own fault.
    const isTooLong = farewell?.code === '25P03' || farewell?.code === '25P04'
    if (isTooLong || farewell?.message === 'idle transaction timeout') return farewell
    const said = farewell === undefined ? '' : ` (${farewell.message})`
    return Object.assign(new Error(`the connection was closed before the statement was sent${said}`), {
      code: 'ECONNREFUSED',
      cause: farewell,
    })
  }

  /** Whether the server has answered the last statement to its end. */
  get #isReady(): boolean {
    return (this.client as Client & { readyForQuery?: boolean }).readyForQuery === true
  }

  #sendNext(): void {
    while (!this.#isHeld) {
      const [next] = this.#inFlight
      if (next === undefined) return
      // Its caller has given up while it waited for its turn.
      if (next.isSettled) this.#remove(next)
      else {
        next.sentAt = performance.now()
        this.client.query(next as never)
        return
      }
    }
  }

  #remove(statement: Statement): void {
    if (this.#inFlight[0] === statement) this.#inFlight.shift()
    else {
      const index = this.#inFlight.indexOf(statement)
      if (index >= 0) this.#inFlight.splice(index, 1)
    }
    for (const awaited of this.#onAnswered.filter((one) => one.statement === statement)) {
      this.#onAnswered.splice(this.#onAnswered.indexOf(awaited), 1)
      awaited.resolve()
    }
    if (this.#inFlight.length > 0 || this.#onIdle.length === 0) return
    for (const resolve of this.#onIdle.splice(0)) resolve()
  }
}

/** What the server says last, as an error or as a warning. */
interface Farewell {
  readonly code: string
  readonly message: string
}

function isReport(error: unknown): error is Farewell {
  return error instanceof Error && 'severity' in error && typeof (error as { code?: unknown }).code === 'string'
}
