/** A pause that can be cut short. What rings while nobody waits is heard by the next who does. */
export class Alarm {
  #wake: (() => void) | undefined
  #hasRung = false

  /** Waits so long, or until it rings. By one at a time. `ref: false` keeps no process alive. */
  async wait(ms: number, { ref = true }: { readonly ref?: boolean } = {}): Promise<void> {
    if (!this.#hasRung) {
      const { promise, resolve } = Promise.withResolvers<void>()
      const timer = setTimeout(resolve, ms)
      if (!ref) timer.unref()
      this.#wake = resolve
      await promise
      clearTimeout(timer)
      this.#wake = undefined
    }
    this.#hasRung = false
  }

  ring(): void {
    this.#hasRung = true
    this.#wake?.()
  }
}
