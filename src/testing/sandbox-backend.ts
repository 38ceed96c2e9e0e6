import type { Duplex } from 'node:stream'
import { frame, MessageCutter, textAt } from './messages.ts'
import type { SandboxBackend } from './sandbox-link.ts'

/** The connection of a sandbox over a socket. */
export class SocketBackend implements SandboxBackend {
  onBytes: (bytes: Buffer) => void = () => undefined
  onLost: () => void = () => undefined
  readonly #stream: Duplex
  readonly #take = (bytes: Buffer): void => this.onBytes(bytes)
  readonly #lose = (): void => this.onLost()

  constructor(stream: Duplex) {
    this.#stream = stream
    stream.on('data', this.#take)
    stream.on('close', this.#lose)
  }

  send(bytes: Buffer, onTaken: () => void): void {
    // What fails here is told by the end of the stream.
    this.#stream.write(bytes, () => onTaken())
  }

  pause(): void {
    this.#stream.pause()
  }

  resume(): void {
    this.#stream.resume()
  }

  /** Hears of nothing more. */
  detach(): void {
    this.#stream.off('data', this.#take)
    this.#stream.off('close', this.#lose)
    this.#stream.resume()
  }
}

const copiesIn = /\bcopy\b[^;]*\bfrom\s+stdin\b/i
/** Says that bytes may come, as text, of an unknown number of columns. */
const takesCopy = frame('G', Buffer.from([0, 0, 0]))

/** The connection of a sandbox into the embedded PostgreSQL, which takes a COPY only with all its bytes. */
export class EmbeddedBackend implements SandboxBackend {
  onBytes: (bytes: Buffer) => void = () => undefined
  onLost: () => void = () => undefined
  readonly #exchange: (messages: Uint8Array) => Promise<Uint8Array>
  readonly #cutter = new MessageCutter()
  #turn: Promise<void> = Promise.resolve()
  #copied: Buffer[] | undefined

  constructor(exchange: (messages: Uint8Array) => Promise<Uint8Array>) {
    this.#exchange = exchange
  }

  send(bytes: Buffer, onTaken: () => void): void {
    let batch: Buffer[] = []
    this.#cutter.read(bytes, (code, each) => {
      if (this.#copied !== undefined) {
        this.#copied.push(each)
        if (code !== 'c' && code !== 'f') return
        const all = this.#copied
        this.#copied = undefined
        this.#run(all, true)
      } else if (code === 'Q' && copiesIn.test(textAt(each, 5))) {
        this.#run(batch, false)
        batch = []
        this.#copied = [each]
        this.#turn = this.#turn.then(() => this.onBytes(takesCopy))
      } else batch.push(each)
    })
    this.#run(batch, false)
    process.nextTick(onTaken)
  }

  pause(): void {
    // All of an answer is in memory before any of it can be given.
  }

  resume(): void {
    // As above.
  }

  #run(messages: readonly Buffer[], isCopy: boolean): void {
    if (messages.length === 0) return
    this.#turn = this.#turn.then(async () => {
      try {
        const answer = Buffer.from(await this.#exchange(Buffer.concat(messages)))
        this.onBytes(isCopy ? withoutCopyResponse(answer) : answer)
      } catch {
        this.onLost()
      }
    })
  }
}

/** The client has been told already. */
function withoutCopyResponse(answer: Buffer): Buffer {
  const kept: Buffer[] = []
  new MessageCutter().read(answer, (code, each) => {
    if (code !== 'G') kept.push(each)
  })
  return Buffer.concat(kept)
}
