/**
 * A bounded map that keeps what is in use. It holds two generations: what is asked for moves to the young one, and when
 * that is full it becomes the old one, whose place it takes with all that nobody has asked for since. So a reader of a
 * young entry pays for one look-up and nothing else, where a list of uses would be rewritten each time.
 */
export class RecentMap<Key, Value> {
  readonly #half: number
  #young = new Map<Key, Value>()
  #old = new Map<Key, Value>()

  /** Keeps at most `max` entries, and surely the last half of that which were asked for. */
  constructor(max: number) {
    this.#half = Math.max(1, Math.floor(max / 2))
  }

  /** At most the `max` of the constructor. */
  get size(): number {
    return this.#young.size + this.#old.size
  }

  get(key: Key): Value | undefined {
    return this.#young.get(key) ?? this.#revive(key)
  }

  set(key: Key, value: Value): void {
    this.#old.delete(key)
    if (this.#young.size >= this.#half && !this.#young.has(key)) {
      this.#old = this.#young
      this.#young = new Map()
    }
    this.#young.set(key, value)
  }

  #revive(key: Key): Value | undefined {
    const value = this.#old.get(key)
    if (value !== undefined) this.set(key, value)
    return value
  }
}
