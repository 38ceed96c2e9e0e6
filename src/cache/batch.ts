interface Waiting<Item, Answer> {
  readonly item: Item
  resolve(answer: Answer | PromiseLike<Answer>): void
  reject(error: unknown): void
}

// A script holds Redis up for as long as it runs.
const maxItems = 32
const maxBytes = 262_144

/** Gathers what is asked for in one tick, since a command costs more than what it does with one key. */
export class Batch<Item, Answer> {
  readonly #send: (items: readonly Item[]) => Promise<readonly (Answer | PromiseLike<Answer>)[]>
  readonly #sizeOf: (item: Item) => number
  #waiting: Waiting<Item, Answer>[] = []
  #bytes = 0

  /** `send` gives the answers in the order of the items; when it rejects, it does so for all of them. */
  constructor(
    send: (items: readonly Item[]) => Promise<readonly (Answer | PromiseLike<Answer>)[]>,
    sizeOf: (item: Item) => number = () => 0,
  ) {
    this.#send = send
    this.#sizeOf = sizeOf
  }

  add(item: Item): Promise<Answer> {
    return new Promise((resolve, reject) => {
      if (this.#waiting.length === 0) process.nextTick(() => this.#flush())
      this.#waiting.push({ item, resolve, reject })
      this.#bytes += this.#sizeOf(item)
      if (this.#waiting.length >= maxItems || this.#bytes >= maxBytes) this.#flush()
    })
  }

  #flush(): void {
    const sent = this.#waiting
    this.#waiting = []
    this.#bytes = 0
    if (sent.length > 0) void this.#settle(sent)
  }

  async #settle(sent: readonly Waiting<Item, Answer>[]): Promise<void> {
    try {
      const answers = await this.#send(sent.map(({ item }) => item))
      sent.forEach((waiting, index) => waiting.resolve(answers[index] as Answer | PromiseLike<Answer>))
    } catch (error) {
      for (const waiting of sent) waiting.reject(error)
    }
  }
}
