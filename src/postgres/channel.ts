import { type Client, cutClient, endClient } from './connection.ts'
import { type PreparationPolicy, PreparedStatements } from './prepared-statements.ts'
import type { Statement } from './statement.ts'

/** One open connection as the engine uses it: what it has prepared, what is in flight, and whether it can still be used. */
export class Channel {
  readonly client: Client
  readonly #isPipelined: boolean
  readonly #prepared: PreparedStatements
  readonly #inFlight: Statement[] = []
  readonly #onIdle: (() => void)[] = []
  #isOpen = true
  #lastAnswer = 0

  constructor(client: Client, policy: PreparationPolicy, onEnd: () => void, isPipelined = false) {
    this.client = client
    this.#prepared = new PreparedStatements(policy)
    this.#isPipelined = isPipelined
    // Elsewhere `pg` would keep the queue, but it warns of that and will stop doing it.
    if (!isPipelined) client.on('drain', () => this.#sendNext())
    const ended = (): void => {
      this.#isOpen = false
      this.#failUnsent()
      onEnd()
    }
    client.on('error', ended)
    client.on('end', ended)
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
    else if (this.#isPipelined || (this.#inFlight.length === 1 && this.#isReady)) this.client.query(statement as never)
  }

  /** Resolves when nothing is in flight. */
  whenIdle(): Promise<void> {
    if (this.#inFlight.length === 0) return Promise.resolve()
    return new Promise((resolve) => this.#onIdle.push(resolve))
  }

  /** Ends it politely, or by cutting the socket. What is in flight fails. */
  end(): Promise<void> {
    this.#isOpen = false
    return endClient(this.client)
  }

  readonly #answered = (statement: Statement, error?: unknown): void => {
    // What the server says carries a code. Anything else is a message that is not as it must be, and nothing that follows
    // on this connection can be trusted.
    if (error !== undefined && this.#isOpen && typeof (error as { code?: unknown }).code !== 'string') {
      this.#isOpen = false
      cutClient(this.client)
    }
    const now = performance.now()
    const { text } = statement
    const tookMs = now - Math.max(statement.sentAt, this.#lastAnswer)
    text.meanMs = text.meanMs === 0 ? tookMs : text.meanMs + (tookMs - text.meanMs) / 8
    this.#lastAnswer = now
    this.#remove(statement)
  }

  /** `pg` fails what it was given; what still waited for its turn here was never sent. */
  #failUnsent(): void {
    for (const statement of this.#inFlight.filter((waiting) => !waiting.isSubmitted)) {
      statement.handleError(
        Object.assign(new Error('the connection was closed before the statement was sent'), { code: 'ECONNREFUSED' }),
      )
    }
  }

  /** Whether the server has answered the last statement to its end. */
  get #isReady(): boolean {
    return (this.client as Client & { readyForQuery?: boolean }).readyForQuery === true
  }

  #sendNext(): void {
    for (;;) {
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
    if (this.#inFlight.length > 0 || this.#onIdle.length === 0) return
    for (const resolve of this.#onIdle.splice(0)) resolve()
  }
}
