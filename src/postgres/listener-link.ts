import { settleWithin } from '../core/deadline.ts'
import { ConnectionError, type DatabaseError } from '../core/errors.ts'
import { type Client, type ConnectionSource, cutClient, endClient, type SharedNotifications } from './connection.ts'
import { toDatabaseError } from './sqlstate.ts'

/** Called with each notification that comes in. */
export type OnNotification = (channel: string, payload: string) => void

/** A connection that listens. */
export interface ListenerLink {
  /** Those that the server has confirmed. */
  readonly channels: ReadonlySet<string>
  /** Resolves, to the reason, when the connection has ended by itself. */
  readonly ended: Promise<DatabaseError>
  /** Listens to these channels and to no others. Rejects when the server does not confirm it in time. */
  follow(wanted: Iterable<string>): Promise<void>
  /** Ends it politely, or by cutting it. Never rejects. */
  end(): Promise<void>
}

/** Times are milliseconds. */
export interface ServerLinkOptions {
  readonly answerTimeoutMs: number
  readonly heartbeatMs: number | false
  readonly signal: AbortSignal
}

/** A connection of its own to a server. Rejects with a `ConnectionError`. */
export async function openServerLink(
  source: ConnectionSource,
  options: ServerLinkOptions,
  onNotification: OnNotification,
): Promise<ListenerLink> {
  const client = await source.connect({ signal: options.signal })
  return new ServerLink(client, source.description, options, onNotification)
}

class ServerLink implements ListenerLink {
  readonly ended: Promise<DatabaseError>
  readonly #client: Client
  readonly #target: string
  readonly #answerTimeoutMs: number
  readonly #channels = new Set<string>()
  readonly #heart: NodeJS.Timeout | undefined
  /** Whether the server was heard since the last heartbeat. */
  #isAlive = true
  #isBusy = false
  /** The heartbeat under way. */
  #beating: Promise<void> = Promise.resolve()
  #fail: (error: DatabaseError) => void = () => undefined

  constructor(client: Client, target: string, options: ServerLinkOptions, onNotification: OnNotification) {
    this.#client = client
    this.#target = target
    this.#answerTimeoutMs = options.answerTimeoutMs
    this.ended = new Promise((resolve) => {
      this.#fail = resolve
    })
    client.on('error', (error) => this.#hasEnded(error))
    client.on('end', () => this.#hasEnded(new Error('Connection terminated unexpectedly')))
    client.on('notification', ({ channel, payload = '' }) => {
      this.#isAlive = true
      onNotification(channel, payload)
    })
    const { heartbeatMs } = options
    if (heartbeatMs === false) return
    this.#heart = setInterval(() => this.#beat(heartbeatMs), heartbeatMs)
    this.#heart.unref()
  }

  get channels(): ReadonlySet<string> {
    return this.#channels
  }

  async follow(wanted: Iterable<string>): Promise<void> {
    const names = new Set(wanted)
    const surplus = [...this.#channels].filter((name) => !names.has(name))
    const missing = [...names].filter((name) => !this.#channels.has(name))
    // From here on they are not confirmed: who comes back to one of them meanwhile has to ask again.
    for (const name of surplus) this.#channels.delete(name)
    const commands = [
      ...surplus.map((name) => `unlisten ${quoted(name)}`),
      ...missing.map((name) => `listen ${quoted(name)}`),
    ]
    if (commands.length === 0) return
    await this.#run(commands.join('; '))
    for (const name of missing) this.#channels.add(name)
  }

  async end(): Promise<void> {
    clearInterval(this.#heart)
    await endClient(this.#client)
  }

  async #run(sql: string): Promise<void> {
    // `pg` takes one statement at a time.
    const answered = this.#beating.then(() => this.#query(sql))
    try {
      await settleWithin(answered, this.#answerTimeoutMs, () => this.#silence('to LISTEN', this.#answerTimeoutMs))
    } catch (error) {
      throw toDatabaseError(error, { sql, target: this.#target })
    }
  }

  async #query(sql: string): Promise<void> {
    this.#isBusy = true
    try {
      await this.#client.query(sql)
      this.#isAlive = true
    } finally {
      this.#isBusy = false
    }
  }

  #beat(heartbeatMs: number): void {
    if (this.#isAlive) {
      this.#isAlive = false
      // The answer to what is under way says as much.
      if (!this.#isBusy) this.#beating = this.#query('select 1').catch(() => undefined)
      return
    }
    // Where this process was busy, the answer may lie there unread: that is done before what is set here runs.
    setImmediate(() => {
      if (this.#isAlive) return
      this.#hasEnded(this.#silence('to a heartbeat', heartbeatMs))
      cutClient(this.#client)
    })
  }

  #silence(what: string, limitMs: number): ConnectionError {
    return new ConnectionError(
      'CONNECTION_LOST',
      `${this.#target} gave no answer ${what} within ${limitMs} ms on the connection that listens. ` +
        'Check the server and the network in between.',
    )
  }

  #hasEnded(error: unknown): void {
    clearInterval(this.#heart)
    this.#fail(toDatabaseError(error, { target: this.#target }))
  }
}

/** The one session of the embedded PostgreSQL, which is never lost while it is open. */
export function openSharedLink(
  shared: SharedNotifications,
  run: (sql: string) => Promise<unknown>,
  onNotification: OnNotification,
): ListenerLink {
  const stop = shared.subscribe(onNotification)
  const channels = new Set<string>()
  return {
    channels,
    ended: new Promise(() => undefined),
    async follow(wanted) {
      const names = new Set(wanted)
      for (const name of [...channels].filter((known) => !names.has(known))) {
        channels.delete(name)
        shared.channels.delete(quoted(name))
        await run(`unlisten ${quoted(name)}`)
      }
      for (const name of [...names].filter((wantedName) => !channels.has(wantedName))) {
        shared.channels.add(quoted(name))
        await run(`listen ${quoted(name)}`)
        channels.add(name)
      }
    },
    async end() {
      stop()
      shared.channels.clear()
    },
  }
}

function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}
