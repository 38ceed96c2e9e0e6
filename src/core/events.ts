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
  readonly #listeners = new Map<keyof Payloads, Set<Listener<never>>>()
  readonly #channels = new Map<keyof Payloads, Channel>()

  constructor(names: readonly (keyof Payloads & string)[]) {
    for (const name of names) {
      this.#listeners.set(name, new Set())
      this.#channels.set(name, channel(`kanta:${name}`))
    }
  }

  on<Name extends keyof Payloads>(name: Name, listener: Listener<Payloads[Name]>): () => void {
    const listeners = this.#listeners.get(name)
    // One that is registered twice is heard twice, and each registration ends by itself.
    const own: Listener<Payloads[Name]> = (payload) => listener(payload)
    listeners?.add(own)
    return () => void listeners?.delete(own)
  }

  /** Whether anyone would learn of it. */
  hears(name: keyof Payloads): boolean {
    return this.#listeners.get(name)?.size !== 0 || this.#channels.get(name)?.hasSubscribers === true
  }

  emit<Name extends keyof Payloads>(name: Name, payload: Payloads[Name]): void {
    for (const listener of this.#listeners.get(name) ?? []) {
      try {
        ;(listener as Listener<Payloads[Name]>)(payload)
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
}
