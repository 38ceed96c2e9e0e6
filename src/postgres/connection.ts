import type { Client } from 'pg'
import { settleWithin } from '../core/deadline.ts'

export type { Client }

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
  connect(): Promise<Client>
  /** Frees what the source itself holds; connections handed out are not closed by it. */
  close(): Promise<void>
}

// A frozen server never answers the farewell.
const farewellMs = 1_000

/** Ends a connection politely, or cuts it when the server does not react. Never rejects. */
export async function endClient(client: Client): Promise<void> {
  try {
    await settleWithin(client.end(), farewellMs, () => new Error('no answer'))
  } catch {
    socketOf(client)?.destroy()
  }
}

/** `pg` keeps the socket in a field that its types do not show. */
function socketOf(client: Client): { destroy(): void } | undefined {
  return (client as unknown as { connection?: { stream?: { destroy(): void } } }).connection?.stream
}
