import { DatabaseError, DeliveryError } from '../core/errors.ts'
import type { OutboxEvent } from './outbox-event.ts'
import type { DeliveryContext } from './outbox-relay.ts'

/** Where HTTP sinks send to. */
export interface HttpTarget {
  /** Credentials in it are sent as basic authentication. They, its path and its query are in no error. */
  readonly url: string | URL
  /** Sent with every request, such as `authorization`; in no error. */
  readonly headers?: Readonly<Record<string, string>> | undefined
  /** How long one request may take, in milliseconds; the relay's own `timeoutMs` holds, too. @default 10000 */
  readonly timeoutMs?: number | undefined
  /**
   * Whether an answer means that the same request will never be accepted, so that the event is a dead letter at once.
   * @default 3xx, and 400, 405, 406, 410, 411, 413, 414, 415, 422, 431 and 451
   */
  readonly isFinal?: ((status: number) => boolean) | undefined
}

/** A handler of a relay, made by a sink. */
export type SinkHandler<Event extends OutboxEvent> = (event: Event, context: DeliveryContext) => Promise<void>

/** How {@link httpSink} sends an event. */
export interface HttpSinkOptions<Event extends OutboxEvent> extends HttpTarget {
  /** @default 'POST' */
  readonly method?: string | undefined
  /** What is sent as JSON. @default id, topic, key, headers, publishedAt and payload */
  readonly body?: ((event: Event) => unknown) | undefined
  /** The header that has the id of the event, the same each time it is sent; `false` for none. @default 'idempotency-key' */
  readonly idempotencyHeader?: string | false | undefined
}

/**
 * A handler that sends each event as one HTTP request. An answer of 2xx is a delivery; final ones make a dead letter; all others,
 * timeouts and lost connections are tried again, not before the time that `retry-after` names. What an answer says beside its status does not matter.
 *
 * `INVALID_ARGUMENT` for a URL that is none.
 *
 * @example
 * ```ts
 * import { createDatabase, createOutbox, httpSink } from 'kanta'
 *
 * const database = await createDatabase()
 * const outbox = await createOutbox<{ 'order.paid': { orderId: string } }>(database)
 * await using relay = outbox.relay(
 *   httpSink({ url: 'http://127.0.0.1:8080/events', headers: { authorization: `Bearer ${process.env['EVENTS_TOKEN']}` } }),
 * )
 * ```
 */
export function httpSink<Event extends OutboxEvent = OutboxEvent>(options: HttpSinkOptions<Event>): SinkHandler<Event> {
  const { method = 'POST', idempotencyHeader = 'idempotency-key' } = options
  const send = requester(options)
  const body = options.body ?? withoutAttempt
  return async (event, context) => {
    const headers = { 'content-type': 'application/json', ...(idempotencyHeader && { [idempotencyHeader]: event.id }) }
    await send({ method, headers, body: JSON.stringify(body(event)) }, context, false)
  }
}

/** The same each time: a receiver that knows the id may refuse it with another body. */
function withoutAttempt({ attempt: _attempt, ...event }: OutboxEvent): unknown {
  return event
}

/** One request of a sink. */
export interface SinkRequest {
  readonly method: string
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
  /** Added to the URL. */
  readonly path?: string
  readonly query?: Readonly<Record<string, string>>
}

/** Sends a request, and gives the text of an answer of 2xx if that is wanted. Rejects with a {@link DeliveryError}. */
export type Requester = (request: SinkRequest, context: DeliveryContext, isRead: boolean) => Promise<string>

const finalStatuses: ReadonlySet<number> = new Set([400, 405, 406, 410, 411, 413, 414, 415, 422, 431, 451])
const longestUnread = 65_536
const longestRetryAfterMs = 86_400_000

/** Requests to one target. */
export function requester({ url, headers = {}, timeoutMs = 10_000, isFinal = isFinalStatus }: HttpTarget): Requester {
  const base = parsedUrl(url)
  const own = { ...authorizationOf(base), ...headers }
  base.username = ''
  base.password = ''
  return async ({ method, headers: further, body, path = '', query = {} }, { signal }, isRead) => {
    const to = new URL(base)
    if (path !== '') to.pathname = `${to.pathname.replace(/\/$/, '')}${path}`
    for (const [name, value] of Object.entries(query)) to.searchParams.set(name, value)
    const limit = AbortSignal.timeout(timeoutMs)
    let response: Response
    let text = ''
    try {
      const init = { method, body }
      response = await fetch(to, {
        ...init,
        headers: { ...further, ...own },
        // A receiver that has moved is for somebody to look at: it may be sent what is not meant for it.
        redirect: 'manual',
        signal: AbortSignal.any([signal, limit]),
      })
      if (response.ok && isRead) text = await response.text()
      else await letGo(response)
    } catch (error) {
      signal.throwIfAborted()
      throw unreachable(base.origin, limit.aborted ? timeoutMs : undefined, error)
    }
    if (response.ok) return text
    throw refusal(base.origin, response, isFinal(response.status))
  }
}

/** A connection can be used again when its answer was read to the end, which is worth it where that is near. */
async function letGo(response: Response): Promise<void> {
  const length = response.headers.get('content-length')
  if (length !== null && Number(length) <= longestUnread) await response.arrayBuffer()
  else await response.body?.cancel()
}

function parsedUrl(url: string | URL): URL {
  const parsed = URL.parse(String(url))
  if (parsed !== null && /^https?:$/.test(parsed.protocol)) return parsed
  // It is not quoted: credentials may be in it.
  throw new DatabaseError('INVALID_ARGUMENT', 'The url of a sink is not one of http or https. Correct it.')
}

function authorizationOf({ username, password }: URL): Readonly<Record<string, string>> {
  if (username === '' && password === '') return {}
  const pair = `${decodeURIComponent(username)}:${decodeURIComponent(password)}`
  return { authorization: `Basic ${Buffer.from(pair).toString('base64')}` }
}

function isFinalStatus(status: number): boolean {
  return (status >= 300 && status < 400) || finalStatuses.has(status)
}

/** Only the code: what else is in the error of `fetch` may be the URL. */
function unreachable(origin: string, timeoutMs: number | undefined, error: unknown): DeliveryError {
  const { cause } = error as { readonly cause?: { readonly code?: unknown } }
  const code = typeof cause?.code === 'string' ? ` (${cause.code})` : ''
  const what = timeoutMs === undefined ? `could not be reached${code}` : `did not answer within ${timeoutMs} ms`
  return new DeliveryError(`${origin} ${what}. Check that it runs.`)
}

function refusal(origin: string, { status, headers }: Response, isFinal: boolean): DeliveryError {
  const remedy = isFinal ? 'It will not accept this event; see what it expects.' : 'See its log.'
  const retryAfterMs = retryAfterOf(headers.get('retry-after'))
  return new DeliveryError(`${origin} answered with status ${status}. ${remedy}`, { isFinal, retryAfterMs })
}

function retryAfterOf(header: string | null): number | undefined {
  if (header === null) return undefined
  const ms = /^\d+$/.test(header) ? Number(header) * 1_000 : Date.parse(header) - Date.now()
  return ms > 0 ? Math.min(ms, longestRetryAfterMs) : undefined
}
