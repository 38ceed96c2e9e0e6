/** What a subscriber has missed, and so may want to read again. */
export interface NotificationGap {
  /** How many came while the buffer was full, and were dropped. 0 when the connection was the reason. */
  readonly dropped: number
  /** The connection was away: nobody knows how many were sent meanwhile. */
  readonly disconnected: boolean
}

/** What comes out of a {@link NotificationBuffer}: the text of a notification, or the notice that some are missing. */
export type BufferEntry = NotificationGap | string

/**
 * Notifications that wait for their subscriber, in order, with a notice at each place where some are missing. It holds at
 * most `size` of them: one more drops the oldest. Notices that meet become one, so it is bounded whatever happens.
 */
export class NotificationBuffer {
  readonly #size: number
  #entries: (BufferEntry | undefined)[] = []
  /** Where the entries begin: `shift` moves all that follow. */
  #head = 0
  #waiting = 0
  #dropped = 0
  /** What is missing before the first entry. */
  #missing: NotificationGap | undefined

  constructor(size: number) {
    this.#size = size
  }

  /** Notifications that wait. */
  get waiting(): number {
    return this.#waiting
  }

  /** Notifications that were dropped since the beginning. */
  get dropped(): number {
    return this.#dropped
  }

  push(payload: string): void {
    this.#entries.push(payload)
    this.#waiting += 1
    if (this.#waiting > this.#size) this.#dropOldest()
  }

  /** Notes that the connection was away until now. */
  interrupt(): void {
    const gap = { dropped: 0, disconnected: true }
    const last = this.#entries.length - 1
    const before = last >= this.#head ? this.#entries[last] : undefined
    if (typeof before === 'string') this.#entries.push(gap)
    else if (before !== undefined) this.#entries[last] = merged(before, gap)
    else this.#missing = merged(this.#missing, gap)
  }

  take(): BufferEntry | undefined {
    const missing = this.#missing
    if (missing !== undefined) {
      this.#missing = undefined
      return missing
    }
    const entry = this.#shift()
    if (typeof entry === 'string') this.#waiting -= 1
    return entry
  }

  clear(): void {
    this.#entries = []
    this.#head = 0
    this.#waiting = 0
    this.#missing = undefined
  }

  #dropOldest(): void {
    let missing = merged(this.#missing, { dropped: 1, disconnected: false })
    for (let entry = this.#shift(); typeof entry !== 'string'; entry = this.#shift()) {
      if (entry === undefined) break
      missing = merged(missing, entry)
    }
    this.#waiting -= 1
    this.#dropped += 1
    this.#missing = missing
  }

  #shift(): BufferEntry | undefined {
    const entry = this.#entries[this.#head]
    if (entry === undefined) return undefined
    this.#entries[this.#head] = undefined
    this.#head += 1
    if (this.#head === this.#entries.length) {
      this.#entries.length = 0
      this.#head = 0
    } else if (this.#head > this.#size) {
      this.#entries.splice(0, this.#head)
      this.#head = 0
    }
    return entry
  }
}

function merged(one: NotificationGap | undefined, other: NotificationGap): NotificationGap {
  if (one === undefined) return other
  return { dropped: one.dropped + other.dropped, disconnected: one.disconnected || other.disconnected }
}
