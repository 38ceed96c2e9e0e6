import { Duplex } from 'node:stream'
import { MessageCutter } from './messages.ts'

/** What a {@link SandboxSocket} is connected to. */
export interface SocketPeer {
  /** What a server says before it takes statements. */
  greeting(): Buffer
  /** Whole messages of the client, and whom to tell when they are taken. */
  messages(messages: readonly { readonly code: string; readonly bytes: Buffer }[], onTaken: () => void): void
  /** The client wants more. */
  read(): void
  /** The client is gone. */
  left(): void
}

/** As a socket is to a driver, but leads to an object of this process. */
export class SandboxSocket extends Duplex {
  /** As a socket counts them. */
  bytesRead = 0
  readonly #peer: SocketPeer
  readonly #cutter = new MessageCutter()
  #isGreeted = false

  constructor(peer: SocketPeer) {
    super()
    this.#peer = peer
  }

  /** Gives bytes to the client, and whether it wants more now. */
  give(bytes: Buffer): boolean {
    this.bytesRead += bytes.length
    return this.push(bytes)
  }

  connect(): this {
    process.nextTick(() => this.emit('connect'))
    return this
  }

  setNoDelay(): this {
    return this
  }

  setKeepAlive(): this {
    return this
  }

  ref(): this {
    return this
  }

  unref(): this {
    return this
  }

  override _read(): void {
    this.#peer.read()
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: () => void): void {
    if (!this.#isGreeted) {
      // The first message has no code: who the client is and what it wants.
      this.#isGreeted = true
      this.give(this.#peer.greeting())
      return callback()
    }
    const messages: { code: string; bytes: Buffer }[] = []
    this.#cutter.read(chunk, (code, bytes) => messages.push({ code, bytes }))
    this.#peer.messages(messages, callback)
  }

  override _final(callback: () => void): void {
    callback()
    this.push(null)
    setImmediate(() => this.destroy())
  }

  override _destroy(error: Error | null, callback: (error: Error | null) => void): void {
    this.#peer.left()
    callback(error)
  }
}
