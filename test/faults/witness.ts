/** A second pair of eyes: a bare connection past kanta and past the proxy, and calls with what became of them. */

import { Client } from 'pg'
import { type DatabaseError, isDatabaseError } from '../../src/index.ts'

/** A connection that looks at what is really in the database. */
export interface Witness extends AsyncDisposable {
  rows<Row extends object>(sql: string, values?: readonly unknown[]): Promise<Row[]>
  /** The first column of the first row. */
  value<T>(sql: string, values?: readonly unknown[]): Promise<T>
}

/** Connects; a witness that has lost its server is replaced by a new one. */
export async function witness(url: string): Promise<Witness> {
  const client = new Client({ connectionString: url, application_name: 'witness' })
  client.on('error', () => {})
  await client.connect()
  return {
    async rows<Row extends object>(sql: string, values: readonly unknown[] = []) {
      return (await client.query<Row>(sql, [...values])).rows
    },
    async value<T>(sql: string, values: readonly unknown[] = []) {
      const { rows } = await client.query<T[]>({ text: sql, values: [...values], rowMode: 'array' })
      return rows[0]?.[0] as T
    },
    [Symbol.asyncDispose]: () => client.end(),
  }
}

/** What became of a call. */
export interface Attempt<T> {
  readonly tookMs: number
  readonly value?: T
  readonly error?: DatabaseError
}

/** Waits for a call to settle. An error that is not one of kanta's is thrown on: that alone is a failure. */
export async function attempt<T>(call: () => Promise<T>): Promise<Attempt<T>> {
  const start = performance.now()
  try {
    const value = await call()
    return { value, tookMs: performance.now() - start }
  } catch (error) {
    if (!isDatabaseError(error)) throw error
    return { error, tookMs: performance.now() - start }
  }
}
