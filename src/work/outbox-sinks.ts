import { createHash } from 'node:crypto'
import { DatabaseError, DeliveryError, isDatabaseError } from '../core/errors.ts'
import { findSeams } from '../database/seams.ts'
import type { OutboxEvent } from './outbox-event.ts'
import { type HttpTarget, requester, type SinkHandler } from './outbox-http.ts'
import type { BatchReport, DeliveryContext } from './outbox-relay.ts'
import type { OutboxDatabase } from './outbox.ts'

/** A sink that takes many events at once. */
export interface BatchSink<Event extends OutboxEvent> {
  readonly deliver: (events: readonly Event[], context: DeliveryContext) => Promise<BatchReport>
}

/** What {@link redisStreamSink} needs of a client of Redis. Those of `ioredis` have it. */
export interface RedisCommands {
  call(command: string, ...args: string[]): Promise<unknown>
}

/** How {@link redisStreamSink} writes. */
export interface RedisStreamOptions<Event extends OutboxEvent> {
  /** The key of the stream. */
  readonly stream: string | ((event: Event) => string)
  /** About how many entries are kept; older ones go. @default all */
  readonly maxLength?: number | undefined
}

/**
 * A handler that adds each event to a stream of Redis (XADD), with the fields `id`, `topic`, `key`, `publishedAt`, `headers`
 * and `payload`, the last two as JSON. An event that is delivered again is another entry with the same `id`, by which readers know it.
 * `to` is a client, or a database of `createDatabase()` with Redis; else `INVALID_ARGUMENT`.
 *
 * @example
 * ```ts
 * import { createDatabase, createOutbox, redisStreamSink } from 'kanta'
 *
 * const database = await createDatabase()
 * const outbox = await createOutbox<{ 'order.paid': { orderId: string } }>(database)
 * await using relay = outbox.relay(redisStreamSink(database, { stream: 'orders', maxLength: 100_000 }), { concurrency: 100 })
 * ```
 */
export function redisStreamSink<Event extends OutboxEvent = OutboxEvent>(
  to: OutboxDatabase | RedisCommands,
  { stream, maxLength }: RedisStreamOptions<Event>,
): SinkHandler<Event> {
  const redis: RedisCommands | undefined = 'call' in to ? to : findSeams(to)?.redis
  if (redis === undefined) {
    throw new DatabaseError(
      'INVALID_ARGUMENT',
      'redisStreamSink needs a client of Redis, or a database of createDatabase() for which Redis is configured.',
    )
  }
  const limit = maxLength === undefined ? [] : ['MAXLEN', '~', String(maxLength)]
  return async (event) => {
    const name = typeof stream === 'string' ? stream : stream(event)
    try {
      await redis.call('xadd', name, ...limit, '*', ...fieldsOf(event))
    } catch (cause) {
      throw failureOfRedis(cause)
    }
  }
}

function fieldsOf({ id, topic, key, publishedAt, headers, payload }: OutboxEvent): string[] {
  const plain = { id, topic, ...(key !== undefined && { key }), publishedAt: publishedAt.toISOString() }
  return Object.entries({ ...plain, headers: JSON.stringify(headers), payload: JSON.stringify(payload) }).flat()
}

/** The errors of clients hold the arguments of the command, so they are not passed on. */
function failureOfRedis(cause: unknown): DeliveryError {
  if (isDatabaseError(cause)) return new DeliveryError(cause.message)
  const kind = /^[A-Z]+(?= )/.exec(cause instanceof Error ? cause.message : '')?.[0]
  return new DeliveryError(
    `Redis did not take an event${kind === undefined ? '' : ` (${kind})`}. Check that it runs and takes XADD.`,
  )
}

/** How {@link elasticsearchSink} writes. */
export interface ElasticsearchOptions<Event extends OutboxEvent> extends HttpTarget {
  readonly index: string | ((event: Event) => string)
  /**
   * The id of the document. With it, the events of a document have to have one key, and the latest wins: they are written with the
   * number of the event as external version. @default that of the event
   */
  readonly id?: ((event: Event) => string) | undefined
  /** @default the payload */
  readonly document?: ((event: Event) => object) | undefined
}

/**
 * A sink that indexes events by the bulk interface of Elasticsearch and OpenSearch. Each document has its own outcome: those that are
 * refused for their content are dead letters, those that were too many are tried again. A request that is refused as a whole, such as
 * for its size, is sent again in halves. Ids come from the events, so that one that is delivered again overwrites itself. `url` is
 * the root of the server.
 *
 * @example
 * ```ts
 * import { createDatabase, createOutbox, elasticsearchSink, type EventOf } from 'kanta'
 *
 * interface Changes {
 *   'product.changed': { id: string; name: string }
 * }
 *
 * const database = await createDatabase()
 * const outbox = await createOutbox<Changes>(database)
 * const sink = elasticsearchSink<EventOf<Changes>>({
 *   url: 'http://127.0.0.1:9200',
 *   index: 'products',
 *   id: (event) => event.payload.id,
 * })
 * await using relay = outbox.relay(sink, { batchSize: 500 })
 * ```
 */
export function elasticsearchSink<Event extends OutboxEvent = OutboxEvent>(
  options: ElasticsearchOptions<Event>,
): BatchSink<Event> {
  const { index, id, document = (event) => event.payload as object } = options
  const send = requester(options)
  const lines = (event: Event): string => {
    const place = { _index: typeof index === 'string' ? index : index(event), _id: id?.(event) ?? event.id }
    const version = id === undefined ? {} : { version: Number(event.id), version_type: 'external_gte' }
    return `${JSON.stringify({ index: { ...place, ...version } })}\n${JSON.stringify(document(event))}\n`
  }
  const bulk = async (events: readonly Event[], context: DeliveryContext): Promise<BatchReport> => {
    const body = events.map(lines).join('')
    const headers = { 'content-type': 'application/x-ndjson' }
    const answer = await send({ method: 'POST', path: '/_bulk', headers, body }, context, true)
    return bulkReport(events, answer)
  }
  return { deliver: inHalves(bulk) }
}

interface BulkAnswer {
  readonly errors?: boolean
  readonly items?: readonly {
    readonly index?: { readonly status?: number; readonly error?: { readonly type?: unknown } }
  }[]
}

function bulkReport(events: readonly OutboxEvent[], answer: string): BatchReport {
  const { errors, items } = parsedAnswer(answer)
  if (errors === false) return { failed: [] }
  if (items?.length !== events.length) throw new DeliveryError('Elasticsearch gave an answer that is not one of _bulk.')
  return {
    failed: events.flatMap(({ id }, at) => {
      const { status = 0, error } = items[at]?.index ?? {}
      // A conflict of versions: what is there is newer.
      return (status >= 200 && status < 300) || status === 409 ? [] : [{ id, error: itemError(status, error?.type) }]
    }),
  }
}

function parsedAnswer(text: string): BulkAnswer {
  try {
    return (JSON.parse(text) ?? {}) as BulkAnswer
  } catch {
    return {}
  }
}

/** The type of the error and not its reason, which quotes the document. */
function itemError(status: number, type: unknown): DeliveryError {
  const isFinal = status >= 400 && status < 500 && ![401, 403, 404, 408, 429].includes(status)
  const kind = typeof type === 'string' && /^\w+$/.test(type) ? ` (${type})` : ''
  return new DeliveryError(`Elasticsearch refused a document with status ${status}${kind}.`, { isFinal })
}

/** How {@link clickhouseSink} writes. */
export interface ClickhouseOptions<Event extends OutboxEvent> extends HttpTarget {
  readonly table: string
  /** @default that of the user */
  readonly database?: string | undefined
  /** The row, by column. @default the payload */
  readonly row?: ((event: Event) => object) | undefined
  /** Settings of the statement, such as `async_insert`. */
  readonly settings?: Readonly<Record<string, string>> | undefined
}

/**
 * A sink that inserts events into a table of ClickHouse (`JSONEachRow`), each batch as one insert with a deduplication token made of its
 * ids. The same batch is inserted once; but what comes again may come in another batch, so give the row the id of the event and the
 * table an engine that knows it (`ReplacingMergeTree`). A batch that is refused for its content is sent again in halves,
 * until the rows are found that are refused: those are dead letters.
 *
 * @example
 * ```ts
 * import { clickhouseSink, createDatabase, createOutbox, type EventOf } from 'kanta'
 *
 * interface Pages {
 *   'page.seen': { page: string }
 * }
 *
 * const database = await createDatabase()
 * const outbox = await createOutbox<Pages>(database)
 * const sink = clickhouseSink<EventOf<Pages>>({
 *   url: 'http://127.0.0.1:8123',
 *   headers: { 'x-clickhouse-user': 'events', 'x-clickhouse-key': process.env['CLICKHOUSE_KEY'] ?? '' },
 *   table: 'pages',
 *   row: (event) => ({ event_id: event.id, page: event.payload.page }),
 * })
 * await using relay = outbox.relay(sink, { batchSize: 5_000 })
 * ```
 */
export function clickhouseSink<Event extends OutboxEvent = OutboxEvent>(
  options: ClickhouseOptions<Event>,
): BatchSink<Event> {
  const { table, database, row = (event) => event.payload as object, settings = {} } = options
  const name = [...(database === undefined ? [] : [database]), table].map(quoted).join('.')
  const send = requester(options)
  const insert = async (events: readonly Event[], context: DeliveryContext): Promise<BatchReport> => {
    const query = {
      ...settings,
      // An error that comes after the first line of the answer would not be seen else.
      wait_end_of_query: '1',
      insert_deduplication_token: tokenOf(events),
      query: `INSERT INTO ${name} FORMAT JSONEachRow`,
    }
    const body = events.map((event) => `${JSON.stringify(row(event))}\n`).join('')
    const headers = { 'content-type': 'application/x-ndjson' }
    await send({ method: 'POST', headers, body, query }, context, false)
    return { failed: [] }
  }
  return { deliver: inHalves(insert) }
}

/** Sends what is refused as a whole again in halves, until the events are found that are refused. */
function inHalves<Event extends OutboxEvent>(send: BatchSink<Event>['deliver']): BatchSink<Event>['deliver'] {
  const deliver: BatchSink<Event>['deliver'] = async (events, context) => {
    try {
      return await send(events, context)
    } catch (error) {
      const [first] = events
      const isContent = error instanceof DeliveryError && error.isFinal
      if (first === undefined || !isContent) throw error
      if (events.length === 1) return { failed: [{ id: first.id, error }] }
      return joined(events, deliver, Math.ceil(events.length / 2), context)
    }
  }
  return deliver
}

async function joined<Event extends OutboxEvent>(
  events: readonly Event[],
  deliver: BatchSink<Event>['deliver'],
  half: number,
  context: DeliveryContext,
): Promise<BatchReport> {
  const report = async (part: readonly Event[]): Promise<BatchReport['failed']> => {
    try {
      return (await deliver(part, context)).failed
    } catch (error) {
      // The other half is there or not for itself.
      return part.map(({ id }) => ({ id, error }))
    }
  }
  const first = await report(events.slice(0, half))
  return { failed: [...first, ...(await report(events.slice(half)))] }
}

function tokenOf(events: readonly OutboxEvent[]): string {
  return createHash('sha256')
    .update(events.map(({ id }) => id).join(','))
    .digest('hex')
}

function quoted(name: string): string {
  return `\`${name.replaceAll('\\', '\\\\').replaceAll('`', '\\`')}\``
}
