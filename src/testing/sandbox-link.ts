import { ConnectionError, DatabaseError } from '../core/errors.ts'
import { afterText, frame, int32, MessageCutter, queryMessage, syncMessage, textAt } from './messages.ts'
import type { Control, SandboxCommands } from './sandbox-commands.ts'
import { SandboxSocket } from './sandbox-socket.ts'

/** The one connection on which a sandbox runs. */
export interface SandboxBackend {
  onBytes: (bytes: Buffer) => void
  onLost: () => void
  send(bytes: Buffer, onTaken: () => void): void
  pause(): void
  resume(): void
}

/** How a {@link SandboxLink} greets and works. */
export interface SandboxSettings {
  readonly commands: SandboxCommands
  /** What the server says of itself when a connection begins. */
  readonly parameters: Iterable<readonly [string, string]>
  readonly processId: number
  readonly secretKey: number
  /** There are constraints that are checked at COMMIT. */
  readonly hasDeferredConstraints: boolean
}

/** What is awaited from the server, up to its next ReadyForQuery. */
interface Phase {
  /** Of the code under test, and not of the sandbox. */
  readonly isClients: boolean
  readonly onReady?: ((status: string, error: Buffer | undefined) => void) | undefined
  error: Buffer | undefined
}

/** What the code under test sends up to its next Sync. */
interface Cycle {
  readonly isExtended: boolean
  isSynced: boolean
  begins: boolean
  ends: 'commit' | 'rollback' | undefined
}

const namePrefix = 'sandbox.'

// The sandbox is in a transaction between those of the code under test, too.
const limitsIdle = /\bidle_in_transaction_session_timeout\b/i
const unlimited = 'set local idle_in_transaction_session_timeout = 0'

const defers = /\binitially\s+deferred\b/i

// Looked up each time: the code under test may drop them and make others. A name that stands for one that cannot wait is refused.
const deferAgain = `do $kanta$ declare names text; begin
  select string_agg(distinct quote_ident(n.nspname) || '.' || quote_ident(k.conname), ', ') into names
  from pg_constraint k join pg_namespace n on n.oid = k.connamespace
  where k.condeferred and has_schema_privilege(n.oid, 'usage') and not pg_is_other_temp_schema(n.oid) and not exists (
    select from pg_constraint o where o.connamespace = k.connamespace and o.conname = k.conname and not o.condeferrable);
  if names is not null then execute 'set constraints ' || names || ' deferred'; end if; end $kanta$`

/**
 * Stands between a client and a connection that is inside a transaction, so that the client sees what it would see on a connection
 * of its own: BEGIN, COMMIT and ROLLBACK become those of a savepoint, and a statement outside of a transaction has one of its own,
 * so that its failure undoes itself alone. What is to be done behind a statement goes ahead of the next one: nothing costs a
 * round trip of its own, except where constraints are checked at COMMIT.
 */
export class SandboxLink {
  readonly #backend: SandboxBackend
  readonly #settings: SandboxSettings
  readonly #fromServer = new MessageCutter()
  readonly #phases: Phase[] = []
  #socket: SandboxSocket | undefined
  #cycle: Cycle | undefined
  #hasDeferred: boolean
  #limitsIdle = false
  /** The code under test has a transaction open. */
  #isOpen = false
  #isFailed = false
  #isCopying = false
  #isLost = false
  /** Commands to go ahead of the next savepoint. */
  #pending: readonly string[] = []
  /** Closes of statements, which must not come before it is known what begins. */
  #held: Buffer[] = []
  readonly #toServer: Buffer[] = []
  readonly #statements = new Map<string, Control | undefined>()
  readonly #portals = new Map<string, Control | undefined>()
  /** On the server, whatever is rolled back. */
  readonly #prepared = new Set<string>()
  readonly #awaiting = new Set<PromiseWithResolvers<void>>()
  readonly #onChange: (() => void)[] = []
  /** What the client is to hear of an answer to the sandbox's own commands. */
  #report: Buffer | undefined

  constructor(backend: SandboxBackend, settings: SandboxSettings) {
    this.#backend = backend
    this.#settings = settings
    this.#hasDeferred = settings.hasDeferredConstraints
    backend.onBytes = (bytes) => this.#read(bytes)
    backend.onLost = () => this.#lose()
  }

  /** Runs commands of the sandbox's own. Rejects when one of them fails. */
  command(...commands: readonly string[]): Promise<void> {
    return this.#awaited((onReady) => this.#ask(commands, onReady))
  }

  /** Forgets what was prepared, which no rollback does. */
  forgetStatements(): Promise<void> {
    return this.#awaited((onReady) => {
      this.#phases.push({ isClients: false, onReady, error: undefined })
      for (const name of this.#prepared) this.#toServer.push(frame('C', Buffer.from('S'), name))
      this.#toServer.push(syncMessage)
    })
  }

  /** Resolves when no client is there any more, and what the last one left is undone. */
  async whenFree(): Promise<void> {
    while (!this.#isLost && (this.#socket !== undefined || this.#phases.length > 0)) {
      await new Promise<void>((resolve) => this.#onChange.push(resolve))
    }
    if (this.#isLost) throw connectionLost()
  }

  /** A socket for the next client. There must be none. */
  open(): SandboxSocket {
    const socket = new SandboxSocket({
      greeting: () => this.#greeting(),
      messages: (messages, onTaken) => {
        for (const { code, bytes } of messages) this.#fromClient(code, bytes)
        this.#flush(onTaken)
      },
      read: () => this.#backend.resume(),
      left: () => this.#leave(socket),
    })
    this.#socket = socket
    // It may give its statements the same names. When that fails, the connection is lost, which it hears.
    if (this.#prepared.size > 0) void this.forgetStatements().catch(() => undefined)
    this.#prepared.clear()
    this.#statements.clear()
    this.#portals.clear()
    return socket
  }

  #greeting(): Buffer {
    const { parameters, processId, secretKey } = this.#settings
    return Buffer.concat([
      frame('R', int32(0)),
      ...[...parameters].map(([name, value]) => frame('S', name, value)),
      frame('K', int32(processId, secretKey)),
      frame('Z', Buffer.from('I')),
    ])
  }

  #fromClient(code: string, bytes: Buffer): void {
    switch (code) {
      case 'X':
        this.#socket?.end()
        return
      case 'Q':
        return this.#query(textAt(bytes, 5))
      case 'C':
        if (this.#cycle === undefined) this.#held.push(this.#named(code, bytes))
        else this.#toServer.push(this.#named(code, bytes))
        return
      case 'P':
        return this.#parse(bytes)
      case 'B':
        return this.#bind(bytes)
      case 'E':
        return this.#execute(bytes)
      case 'c':
      case 'f':
        this.#isCopying = false
        this.#toServer.push(bytes)
        return
      case 'd':
        this.#toServer.push(bytes)
        return
      default:
        this.#inCycle()
        if (code === 'S' && this.#cycle !== undefined) this.#cycle.isSynced = true
        this.#toServer.push(code === 'D' ? this.#named(code, bytes) : bytes)
    }
  }

  #query(sql: string): void {
    this.#note(sql)
    const { sql: sent, begins, ends } = this.#settings.commands.script(sql, this.#isOpen && this.#isFailed)
    this.#start(begins?.isReadOnly ?? false, false)
    this.#cycle = { isExtended: false, isSynced: true, begins: begins !== undefined, ends }
    this.#toServer.push(queryMessage(sent))
  }

  #note(sql: string): void {
    this.#hasDeferred ||= defers.test(sql)
    this.#limitsIdle ||= limitsIdle.test(sql)
  }

  #parse(bytes: Buffer): void {
    const name = textAt(bytes, 5)
    const sqlStart = afterText(bytes, 5)
    const given = textAt(bytes, sqlStart)
    this.#note(given)
    const { sql, control } = this.#settings.commands.statement(given)
    this.#statements.set(name, control)
    this.#inCycle(control)
    const inner = innerName(name)
    if (name !== '') this.#prepared.add(inner)
    this.#toServer.push(frame('P', inner, sql, bytes.subarray(afterText(bytes, sqlStart))))
  }

  #bind(bytes: Buffer): void {
    const portal = textAt(bytes, 5)
    const nameStart = afterText(bytes, 5)
    const name = textAt(bytes, nameStart)
    const control = this.#statements.get(name)
    this.#portals.set(portal, control)
    this.#inCycle(control)
    this.#toServer.push(frame('B', portal, innerName(name), bytes.subarray(afterText(bytes, nameStart))))
  }

  #execute(bytes: Buffer): void {
    const control = this.#portals.get(textAt(bytes, 5))
    const cycle = this.#inCycle(control)
    if (control?.kind === 'begin') cycle.begins = true
    else if (control !== undefined) cycle.ends = control.kind
    this.#toServer.push(bytes)
  }

  /** A Describe or Close, of which the name of a statement is another for the server. */
  #named(code: string, bytes: Buffer): Buffer {
    if (bytes[5] !== 'S'.charCodeAt(0)) return bytes
    const name = textAt(bytes, 6)
    return frame(code, Buffer.from('S'), innerName(name))
  }

  #inCycle(first?: Control): Cycle {
    if (this.#cycle !== undefined) return this.#cycle
    this.#start(first?.kind === 'begin' && first.isReadOnly, true)
    this.#cycle = { isExtended: true, isSynced: false, begins: false, ends: undefined }
    return this.#cycle
  }

  #start(isReadOnly: boolean, isExtended: boolean): void {
    if (!this.#isOpen) {
      this.#ask([
        ...this.#pending,
        `savepoint ${this.#settings.commands.savepoint}`,
        ...(isReadOnly ? ['set transaction read only'] : []),
      ])
      this.#pending = []
    }
    if (isExtended) this.#toServer.push(...this.#held.splice(0))
    this.#phases.push({ isClients: true, error: undefined })
  }

  #ask(commands: readonly string[], onReady?: Phase['onReady']): void {
    this.#phases.push({ isClients: false, onReady, error: undefined })
    this.#toServer.push(queryMessage(commands.join('; ')))
  }

  #flush(onTaken: () => void = () => undefined): void {
    const [first, ...rest] = this.#toServer.splice(0)
    if (first === undefined) return onTaken()
    this.#backend.send(rest.length === 0 ? first : Buffer.concat([first, ...rest]), onTaken)
  }

  #read(chunk: Buffer): void {
    const toClient: Buffer[] = []
    this.#fromServer.read(chunk, (code, bytes) => {
      const answer = this.#route(code, bytes)
      if (answer !== undefined) toClient.push(answer)
    })
    this.#flush()
    if (toClient.length > 0 && this.#socket?.give(Buffer.concat(toClient)) === false) this.#backend.pause()
    this.#noteChange()
  }

  /** What the client is to see of a message. */
  #route(code: string, bytes: Buffer): Buffer | undefined {
    const [phase] = this.#phases
    // Settings that come and go with a rollback are the client's as well.
    if (code === 'S') return bytes
    if (code === 'A') return undefined
    if (phase === undefined) return bytes
    if (code === 'Z') {
      this.#phases.shift()
      const status = textOf(bytes)
      if (phase.isClients) return this.#clientIsReady(status)
      return this.#reported(() => phase.onReady?.(status, phase.error))
    }
    if (phase.isClients) {
      if (code === 'G') this.#isCopying = true
      return bytes
    }
    if (code === 'E') phase.error ??= bytes
    return undefined
  }

  #awaited(send: (onReady: Phase['onReady']) => void): Promise<void> {
    if (this.#isLost) return Promise.reject(connectionLost())
    const done = Promise.withResolvers<void>()
    this.#awaiting.add(done)
    send((_status, error) => {
      this.#awaiting.delete(done)
      if (error === undefined) done.resolve()
      else done.reject(commandFailed(error))
    })
    this.#flush()
    return done.promise
  }

  #reported(work: () => void): Buffer | undefined {
    work()
    const report = this.#report
    this.#report = undefined
    return report
  }

  #clientIsReady(status: string): Buffer | undefined {
    const { begins = false, ends } = this.#cycle ?? {}
    this.#cycle = undefined
    this.#isCopying = false
    const isFailed = status === 'E'
    if (status === 'I') {
      // Nothing that is known of ends it, and what is not known of must not go on outside of it.
      this.#lose()
      return undefined
    }
    const wasOpen = this.#isOpen
    this.#isOpen = ends === undefined && (wasOpen || begins)
    this.#isFailed = this.#isOpen && isFailed
    if (this.#socket === undefined) this.#undo()
    else if (this.#isOpen) return ready(isFailed ? 'E' : 'T')
    else if (isFailed) this.#undo()
    else if (ends === 'rollback') this.#pending = [this.#release]
    else if (ends === 'commit') this.#pending = this.#afterCommit
    else if (!this.#hasDeferred) this.#pending = [this.#release]
    else {
      this.#checkDeferred()
      return undefined
    }
    this.#liftLimit()
    return ready('I')
  }

  /** A statement by itself commits as well. */
  #checkDeferred(): void {
    this.#ask(['set constraints all immediate'], (_status, error) => {
      if (error === undefined) this.#pending = this.#afterCommit
      else this.#undo()
      this.#liftLimit()
      this.#report = error === undefined ? ready('I') : Buffer.concat([error, ready('I')])
    })
  }

  #liftLimit(): void {
    if (this.#limitsIdle) this.#ask([unlimited])
  }

  get #release(): string {
    return `release savepoint ${this.#settings.commands.savepoint}`
  }

  get #afterCommit(): readonly string[] {
    return this.#hasDeferred ? [deferAgain, this.#release] : [this.#release]
  }

  #undo(): void {
    this.#isOpen = false
    this.#isFailed = false
    this.#pending = []
    this.#ask([`rollback to savepoint ${this.#settings.commands.savepoint}`, this.#release])
  }

  /** The client is gone, whatever it was doing. */
  #leave(socket: SandboxSocket): void {
    if (this.#socket !== socket) return
    this.#socket = undefined
    this.#held = []
    this.#backend.resume()
    if (this.#cycle !== undefined) {
      if (this.#isCopying) this.#toServer.push(frame('f', 'given up by the client'))
      if (this.#cycle.isExtended && !this.#cycle.isSynced) this.#toServer.push(syncMessage)
    } else if (this.#isOpen) this.#undo()
    this.#flush()
    this.#noteChange()
  }

  #lose(): void {
    if (this.#isLost) return
    this.#isLost = true
    this.#phases.length = 0
    this.#socket?.destroy(Object.assign(new Error('Connection terminated unexpectedly'), { code: 'ECONNRESET' }))
    this.#noteChange()
  }

  #noteChange(): void {
    if (this.#isLost) for (const done of this.#awaiting) done.reject(connectionLost())
    for (const tell of this.#onChange.splice(0)) tell()
  }
}

function ready(status: 'E' | 'I' | 'T'): Buffer {
  return frame('Z', Buffer.from(status))
}

function textOf(bytes: Buffer): string {
  return bytes.toString('latin1', 5)
}

/** Names of the code under test do not meet those of the connection's owner. */
function innerName(name: string): string {
  return name === '' ? '' : `${namePrefix}${name}`
}

function connectionLost(): ConnectionError {
  return new ConnectionError(
    'CONNECTION_FAILED',
    'The connection of the sandbox is gone, and all that was done in it with it. Open another sandbox.',
  )
}

/** The fields of an error are texts, each behind a letter. */
function commandFailed(error: Buffer): DatabaseError {
  const fields = new Map(
    error
      .toString('utf8', 5)
      .split('\0')
      .map((field) => [field[0], field.slice(1)]),
  )
  return new DatabaseError('QUERY_FAILED', `A sandbox could not go on: ${fields.get('M') ?? 'no reason given'}.`, {
    sqlState: fields.get('C'),
  })
}
