import type { Client } from 'pg'
import { settleWithin } from '../core/deadline.ts'

export type { Client }

/** What a connection is for. */
export interface ConnectOptions {
  /** Statements are written without waiting for the answers of those before. */
  readonly pipeline?: boolean
  /** Gives up at once, and leaves nothing open. */
  readonly signal?: AbortSignal
}

/**
 * Where connections to one PostgreSQL come from: a server, or the embedded one. What it hands out is connected,
 * has an error listener (a dying idle connection must not end the process), and belongs to the caller, who ends it
 * with {@link endClient}.
 */
export interface ConnectionSource {
  /** The target without credentials, for messages: `postgres://app@db.example.org:5432/shop`. */
  readonly description: string
  /** How many connections it can give at once; 1 for the embedded PostgreSQL. */
  readonly maxConnections: number
  /** Opens a connection, or rejects within the connect timeout with a `ConnectionError`. */
  connect(options?: ConnectOptions): Promise<Client>
  /**
   * Asks the server to stop what the connection is running. Resolves once the server has passed that on, so that what is
   * sent afterwards is not hit by it, or after a second without an answer. Never rejects.
   */
  cancel(client: Client): Promise<void>
  /**
   * Where there is no socket, as in the embedded PostgreSQL: gives whole messages of the protocol to the session, and what it
   * answers. Only for whoever holds the session.
   */
  readonly exchange?: (messages: Uint8Array) => Promise<Uint8Array>
  /** Where all share one session, as in the embedded PostgreSQL: how that session's notifications are heard. */
  readonly shared?: SharedNotifications
  /** Frees what the source itself holds; connections handed out are not closed by it. */
  close(): Promise<void>
}

/** The notifications of a session that belongs to all. */
export interface SharedNotifications {
  /** Quoted names, to which each new session listens from its beginning. */
  readonly channels: Set<string>
  /** Calls with every notification from now on, and returns a function that stops it. */
  subscribe(onNotification: (channel: string, payload: string) => void): () => void
}

/** What the server has reported of itself on this connection, such as `in_hot_standby`, or was told when it was opened. */
export function parameterOf(client: Client, name: string): string | undefined {
  return parameters.get(client)?.get(name)
}

/** All of it. */
export function parametersOf(client: Client): ReadonlyMap<string, string> {
  return parameters.get(client) ?? new Map()
}

/** Begins to note what the server reports, beside what it was `told`; before the client connects. */
export function noteParameters(client: Client, told: Readonly<Record<string, string>> = {}): void {
  const noted = new Map(Object.entries(told))
  parameters.set(client, noted)
  const { connection } = client as unknown as { connection?: NodeJS.EventEmitter }
  connection?.on('parameterStatus', (message: { parameterName: string; parameterValue: string }) => {
    noted.set(message.parameterName, message.parameterValue)
  })
}

const parameters = new WeakMap<Client, Map<string, string>>()

// A frozen server never answers the farewell.
const farewellMs = 1_000

/** Ends a connection politely, or cuts it when the server does not react. Never rejects. */
export async function endClient(client: Client): Promise<void> {
  try {
    await settleWithin(client.end(), farewellMs, () => new Error('no answer'))
  } catch {
    cutClient(client)
  }
}

/** Closes the socket without a word: what is in flight fails, and the server goes on until it notices. */
export function cutClient(client: Client): void {
  // `pg` keeps the socket in a field that its types do not show.
  const { connection } = client as unknown as { connection?: { stream?: { destroy(): void } } }
  connection?.stream?.destroy()
}

/** Bytes that have come on this connection; 0 where there is no socket. */
export function bytesReadBy(client: Client): number {
  const { connection } = client as unknown as { connection?: { stream?: { bytesRead?: number } } }
  return connection?.stream?.bytesRead ?? 0
}
