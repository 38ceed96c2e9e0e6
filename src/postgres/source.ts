import type { Client } from 'pg'

/**
 * Where connections to one PostgreSQL come from: a server, or the embedded one. What it hands out is connected,
 * has an error listener (a dying idle connection must not end the process), and belongs to the caller, who ends it.
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
