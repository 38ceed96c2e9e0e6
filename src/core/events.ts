import { channel, type Channel } from 'node:diagnostics_channel'

/** Called with what happened; must not throw and should return quickly: it runs on the path of the query. */
export type Listener<Payload> = (payload: Payload) => void

/** What users see of an {@link Emitter}. */
export interface EventSource<Payloads> {
  /** Calls the listener from now on, and returns a function that stops it. */
  on<Name extends keyof Payloads>(name: Name, listener: Listener<Payloads[Name]>): () => void
}

/**
 * Typed events, each also published on the diagnostics channel `kanta:<name>`. Without a listener an event costs one
 * comparison: emitters ask {@link hears} before they build a payload.
 */
export class Emitter<Payloads extends object> implements EventSource<Payloads> {
  /** A list is exchanged, never changed: an event goes to those who were there when it happened. */
  readonly #registrations = new Map<keyof Payloads, readonly Registration[]>()
  readonly #channels = new Map<keyof Payloads, Channel>()

  constructor(names: readonly (keyof Payloads & string)[]) {
    for (const name of names) {
      this.#registrations.set(name, [])
      this.#channels.set(name, channel(`kanta:${name}`))
    }
  }

  on<Name extends keyof Payloads>(name: Name, listener: Listener<Payloads[Name]>): () => void {
    // One that is registered twice is heard twice, and each registration ends by itself.
    const own: Registration = { listener, isOver: false }
    this.#registrations.set(name, [...this.#of(name), own])
    return () => {
      own.isOver = true
      this.#registrations.set(
        name,
        this.#of(name).filter((other) => other !== own),
      )
    }
  }

  /** Whether anyone would learn of it. */
  hears(name: keyof Payloads): boolean {
    return this.#of(name).length > 0 || this.#channels.get(name)?.hasSubscribers === true
  }

  emit<Name extends keyof Payloads>(name: Name, payload: Payloads[Name]): void {
    for (const registration of this.#of(name)) {
      // Ended by one that was called before it.
      if (registration.isOver) continue
      try {
        ;(registration.listener as Listener<Payloads[Name]>)(payload)
      } catch (error) {
        // A listener's mistake is shown, but never becomes the failure of a query.
        process.emitWarning(
          `a listener of ${String(name)} threw: ${error instanceof Error ? error.message : 'not an Error'}`,
        )
      }
    }
    const published = this.#channels.get(name)
    if (published?.hasSubscribers) published.publish(payload)
  }

  #of(name: keyof Payloads): readonly Registration[] {
    return this.#registrations.get(name) ?? none
  }
}

interface Registration {
  readonly listener: Listener<never>
  isOver: boolean
}

const none: readonly Registration[] = []
