import type { Duplex } from 'node:stream'
import { Client as PgClient } from 'pg'
import type { ValueTypes } from '../core/options.ts'
import { type Client, noteParameters } from './connection.ts'
import { readRows } from './row-reader.ts'
import { parsersFor } from './value-parsers.ts'

/** What `pg` does not declare of its clients. */
interface ClientInside {
  readonly connection: { readonly stream: Duplex | { readonly write?: undefined } }
  readonly processID?: number | null
  readonly secretKey?: number | null
}

/** A client that speaks to whatever is at the other end of a stream, which has to greet it as a server does. */
export async function clientOver(stream: Duplex, database: string, types: ValueTypes | undefined): Promise<Client> {
  const parsers = parsersFor(types)
  const client = new PgClient({
    user: 'kanta',
    password: '',
    database,
    ssl: false,
    stream: () => stream,
    ...(parsers && { types: parsers }),
  })
  noteParameters(client)
  readRows(client)
  client.on('error', () => undefined)
  await client.connect()
  return client
}

/** The process that serves a client, and what it takes to cancel there. */
export function backendKeyOf(client: Client): { readonly processId: number; readonly secretKey: number } {
  const { processID, secretKey } = client as unknown as ClientInside
  return { processId: processID ?? 0, secretKey: secretKey ?? 0 }
}

/** The stream of a client that is idle, for someone else to speak on. */
export interface TakenSocket {
  readonly stream: Duplex
  /** The client reads again. To be called when the server owes nothing. */
  giveBack(): void
}

/** Takes the stream of an idle client away from it; nothing where there is none, as in the embedded PostgreSQL. */
export function takeSocket(client: Client): TakenSocket | undefined {
  const { stream } = (client as unknown as ClientInside).connection
  if (stream.write === undefined) return undefined
  const listeners = stream.listeners('data') as ((bytes: Buffer) => void)[]
  for (const listener of listeners) stream.off('data', listener)
  return {
    stream,
    giveBack() {
      for (const listener of listeners) stream.on('data', listener)
    },
  }
}
