import { DatabaseError } from '../core/errors.ts'

/** An event as a handler gets it. The same one may come more than once: recognise it by its `id`. */
export interface OutboxEvent<Topic extends string = string, Payload = unknown> {
  /** A whole number as text. Of two events of one key, the one published later has the larger number. */
  readonly id: string
  readonly topic: Topic
  readonly key: string | undefined
  readonly payload: Payload
  readonly headers: Readonly<Record<string, string>>
  /** 1 for the first; every claim counts, also one whose process has died. */
  readonly attempt: number
  readonly publishedAt: Date
}

/** The events of topics: their payload has a type as soon as the topic is known. */
export type EventOf<Topics> = {
  [Topic in keyof Topics & string]: OutboxEvent<Topic, Topics[Topic]>
}[keyof Topics & string]

/** How an event is published. */
export interface PublishOptions {
  /**
   * Events of one key are delivered one after the other in the order of their commits, whatever their topic; for that, transactions
   * that publish for the same key wait for one another's end. 1 to 500 bytes. @default none: in no order
   */
  readonly key?: string | undefined
  /** Not delivered before. From the time of the server at this call. Later events of its key wait for it. @default 0 */
  readonly availableAfterMs?: number | undefined
  /**
   * An event with the same one in this outbox is published once only, as long as the first is kept: until it was delivered,
   * and `idempotencyMs` longer. 1 to 500 bytes. @default none
   */
  readonly idempotencyKey?: string | undefined
  /** Texts that travel with it, such as the trace. */
  readonly headers?: Readonly<Record<string, string>> | undefined
}

/** One event of {@link Outbox.publishMany}. */
export type NewEvent<Topics> = PublishOptions &
  {
    readonly [Topic in keyof Topics & string]: { readonly topic: Topic; readonly payload: Topics[Topic] }
  }[keyof Topics & string]

/** An event as it is written. */
export interface EncodedEvent {
  readonly topic: string
  readonly payload: string
  readonly key: string | null
  readonly headers: string | null
  readonly idempotencyKey: string | null
  readonly delayMs: number
}

const maxNameBytes = 500
// Ten years: beyond that it is a mistake, and far beyond it no timestamp.
const maxDelayMs = 315_576_000_000

/** Throws `INVALID_ARGUMENT` for what cannot be written, and `EVENT_TOO_LARGE`. */
export function encodeEvent(
  topic: string,
  payload: unknown,
  { key, availableAfterMs = 0, idempotencyKey, headers }: PublishOptions,
  maxPayloadBytes: number,
): EncodedEvent {
  assertName('A topic', topic)
  const named = `An event of the topic "${topic}"`
  if (key !== undefined) assertName(`The key of an event of the topic "${topic}"`, key)
  if (idempotencyKey !== undefined) assertName(`The idempotencyKey of an event of the topic "${topic}"`, idempotencyKey)
  if (typeof availableAfterMs !== 'number' || !(availableAfterMs >= 0 && availableAfterMs <= maxDelayMs)) {
    throw refused(`availableAfterMs of ${named} is ${String(availableAfterMs)}. Give milliseconds from 0 to ten years.`)
  }
  const text = toJson(named, payload)
  const head = headers === undefined ? null : toJson(`The headers of ${named}`, checkedHeaders(named, headers))
  const size = Buffer.byteLength(text) + (head === null ? 0 : Buffer.byteLength(head))
  if (size > maxPayloadBytes) {
    throw new DatabaseError(
      'EVENT_TOO_LARGE',
      `${named} has ${size} bytes of payload and headers, and may have ${maxPayloadBytes} (maxPayloadBytes). Nothing was ` +
        'written. Store what it tells in a row, and publish the key of the row.',
    )
  }
  return {
    topic,
    payload: text,
    key: key ?? null,
    headers: head,
    idempotencyKey: idempotencyKey ?? null,
    delayMs: availableAfterMs,
  }
}

/** Text of 1 to 500 bytes, as which it can be in an index. Throws `INVALID_ARGUMENT`. */
export function assertName(what: string, name: unknown): void {
  const problem =
    typeof name !== 'string'
      ? `is of type ${typeof name}`
      : name === ''
        ? 'is empty'
        : Buffer.byteLength(name) > maxNameBytes
          ? `has ${Buffer.byteLength(name)} bytes`
          : name.includes('\0') || !name.isWellFormed()
            ? 'holds a NUL or half a character'
            : undefined
  if (problem !== undefined) throw refused(`${what} ${problem}. Give text of 1 to ${maxNameBytes} bytes.`)
}

function checkedHeaders(named: string, headers: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  const isRight =
    typeof headers === 'object' &&
    headers !== null &&
    Object.values(headers).every((value) => typeof value === 'string')
  if (!isRight) throw refused(`The headers of ${named} are not an object whose values are texts.`)
  return headers
}

function toJson(named: string, value: unknown): string {
  let text: string | undefined
  let cause: unknown
  try {
    text = JSON.stringify(value, assertPlain)
  } catch (error) {
    cause = error
  }
  if (text !== undefined) return text
  const reason = cause instanceof LossError ? `: it holds ${cause.message}` : ''
  throw refused(
    `${named} cannot be written as JSON${reason}. Give objects, lists, texts, finite numbers, flags and null.`,
    cause instanceof LossError ? undefined : cause,
  )
}

class LossError extends Error {}

/** What JSON would replace by something else without a word. */
function assertPlain(_key: string, value: unknown): unknown {
  const type = typeof value
  if (type === 'function' || type === 'symbol' || type === 'bigint') throw new LossError(`a ${type}`)
  if (type === 'number' && !Number.isFinite(value)) throw new LossError('a number that is not finite')
  if (value instanceof Map || value instanceof Set) throw new LossError('a Map or a Set')
  return value
}

function refused(message: string, cause?: unknown): DatabaseError {
  return new DatabaseError('INVALID_ARGUMENT', message, cause === undefined ? {} : { cause })
}
