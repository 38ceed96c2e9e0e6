import { settleWithin } from '../core/deadline.ts'
import { TimeoutError } from '../core/errors.ts'
import { type Client, type ConnectionSource, cutClient, endClient } from '../postgres/connection.ts'

/**
 * A connection for one statement after the other, each of which is waited for only so long: a server that is frozen
 * cannot apply its own limits. After a limit has passed the connection is cut and everything on it fails.
 */
export class BoundedClient {
  readonly #source: ConnectionSource
  readonly #client: Client
  readonly #limitMs: number | false
  #firstFailure: StatementFailure | undefined

  private constructor(source: ConnectionSource, client: Client, limitMs: number | false) {
    this.#source = source
    this.#client = client
    this.#limitMs = limitMs
  }

  /** Fails as {@link ConnectionSource.connect} does. `limitMs` is for statements that have no limit of their own. */
  static async connect(source: ConnectionSource, limitMs: number | false): Promise<BoundedClient> {
    return new BoundedClient(source, await source.connect(), limitMs)
  }

  /** What failed first, and what failed after it for that reason alone is not. */
  get firstFailure(): StatementFailure | undefined {
    return this.#firstFailure
  }

  /** Rejects with what `pg` says, or with `QUERY_TIMEOUT` when no answer has come in time. */
  // oxlint-disable-next-line typescript/no-unnecessary-type-parameters -- as with pg, the caller says what its rows are
  async query<Row extends object>(
    sql: string,
    values?: readonly unknown[],
    limitMs: number | false = this.#limitMs,
  ): Promise<{ readonly rows: Row[] }> {
    try {
      const answer = this.#client.query<Row>(sql, values && [...values])
      return await (limitMs === false ? answer : settleWithin(answer, limitMs, () => this.#giveUp(sql, limitMs)))
    } catch (error) {
      this.#firstFailure ??= { sql, error }
      throw error
    }
  }

  /** Says goodbye, or cuts the connection when there is no answer. Never rejects. */
  async end(): Promise<void> {
    await endClient(this.#client)
  }

  #giveUp(sql: string, limitMs: number): TimeoutError {
    // When the server goes on, it stops and undoes what it did.
    void this.#source.cancel(this.#client)
    cutClient(this.#client)
    return new TimeoutError(
      'QUERY_TIMEOUT',
      `${this.#source.description} gave no answer within ${limitMs} ms, so the connection was cut. The backend may still hold its locks: ` +
        'look for it in pg_stat_activity, and end it with pg_terminate_backend.',
      { limitMs, sql },
    )
  }
}

/** A statement and what became of it. */
interface StatementFailure {
  readonly sql: string
  readonly error: unknown
}
