import { DatabaseError } from './errors.ts'

/** A channel whose payloads are JSON of one type; {@link channel} makes it. */
export interface NotificationChannel<Payload> {
  readonly name: string
  /** Turns what was received into a payload, or throws. */
  readonly parse: (received: unknown) => Payload
}

/** What `listen`, `notify`, `subscribe` and `publish` take: a typed channel, or a name, whose payloads are plain text. */
export type AnyChannel = NotificationChannel<unknown> | string

/** The type of a channel's payloads. */
export type PayloadOf<Channel extends AnyChannel> =
  Channel extends NotificationChannel<infer Payload> ? Payload : string

/** PostgreSQL's limit, `NAMEDATALEN - 1`: LISTEN would cut a longer name and pg_notify refuse it. */
const maxNameBytes = 63

/** Who carries a payload, and how large it may be. */
export interface PayloadLimit {
  readonly carrier: string
  readonly maxBytes: number
}

/**
 * A channel whose payloads are JSON. With `parse`, for instance a schema's, each payload that comes in goes through it, and
 * one that it refuses reaches no handler; without, the type is what the senders keep to. It holds no connection: make it
 * once and share it between those who send and those who listen.
 *
 * Throws `INVALID_ARGUMENT` for a name that is empty, holds a NUL or has more than 63 bytes.
 *
 * @example
 * ```ts
 * import { channel } from 'kanta'
 * import { z } from 'zod'
 *
 * export const orderPaid = channel<{ orderId: string }>('order_paid')
 *
 * const stock = z.object({ sku: z.string(), left: z.int() })
 * export const stockChanged = channel('stock_changed', (received) => stock.parse(received))
 * ```
 */
export function channel<Payload>(
  name: string,
  parse: (received: unknown) => Payload = (received) => received as Payload,
): NotificationChannel<Payload> {
  assertChannelName(name)
  return Object.freeze({ name, parse })
}

/** The name of a channel; throws `INVALID_ARGUMENT` where PostgreSQL would cut or refuse it. */
export function channelName(of: AnyChannel): string {
  const name = typeof of === 'string' ? of : of.name
  assertChannelName(name)
  return name
}

/** The text to send. Throws `INVALID_ARGUMENT` for what is no JSON, and `NOTIFICATION_TOO_LARGE`. */
export function encodePayload(to: AnyChannel, payload: unknown, { carrier, maxBytes }: PayloadLimit): string {
  const text = typeof to === 'string' ? payload : toJson(to.name, payload)
  if (typeof text !== 'string') {
    throw new DatabaseError(
      'INVALID_ARGUMENT',
      `A notification on the channel "${channelName(to)}" is plain text, and was given something else. ` +
        'Give a string, or make a typed channel with channel().',
    )
  }
  const size = Buffer.byteLength(text)
  if (size <= maxBytes) return text
  throw new DatabaseError(
    'NOTIFICATION_TOO_LARGE',
    `A notification on the channel "${channelName(to)}" has ${size} bytes, and ${carrier} takes ${maxBytes}. ` +
      'Nothing was sent. Store what it tells in a row, and send the key of the row.',
  )
}

/** The payload that a text stands for. Throws `INVALID_DATA` when it is none of this channel. */
export function decodePayload(of: AnyChannel, text: string): unknown {
  if (typeof of === 'string') return text
  let received: unknown
  try {
    received = JSON.parse(text)
  } catch {
    // The parser's own error quotes the payload, which belongs into no log.
    throw refused(of.name, 'it is not JSON')
  }
  try {
    return of.parse(received)
  } catch (cause) {
    throw refused(of.name, 'the parse function of the channel refused it (see cause)', cause)
  }
}

function toJson(name: string, payload: unknown): string {
  let json: string | undefined
  let cause: unknown
  try {
    json = JSON.stringify(payload)
  } catch (error) {
    cause = error
  }
  if (json !== undefined) return json
  throw new DatabaseError(
    'INVALID_ARGUMENT',
    `A notification on the channel "${name}" cannot be written as JSON. Give an object, list, text, number, flag or null.`,
    cause === undefined ? {} : { cause },
  )
}

function refused(name: string, reason: string, cause?: unknown): DatabaseError {
  return new DatabaseError(
    'INVALID_DATA',
    `A notification on the channel "${name}" was left out: ${reason}. See who sends on this channel, and what.`,
    cause === undefined ? {} : { cause },
  )
}

function assertChannelName(name: string): void {
  const problem = problemOfName(name)
  if (problem === undefined) return
  throw new DatabaseError(
    'INVALID_ARGUMENT',
    `The name of a channel ${problem}. Give one of 1 to ${maxNameBytes} bytes.`,
  )
}

function problemOfName(name: unknown): string | undefined {
  if (typeof name !== 'string') return `must be a string, and is of type ${typeof name}`
  if (name === '') return 'must not be empty'
  if (name.includes('\0')) return 'must not hold a NUL character'
  const size = Buffer.byteLength(name)
  return size > maxNameBytes ? `has ${size} bytes, more than PostgreSQL takes: ${name.slice(0, 63)}…` : undefined
}
