import { createRequire } from 'node:module'
import {
  type Arbitrary,
  anything,
  array,
  assert,
  asyncProperty,
  bigInt,
  boolean,
  constant,
  constantFrom,
  date,
  dictionary,
  double,
  integer,
  letrec,
  oneof,
  property,
  record,
  string,
  tuple,
  uint8Array,
} from 'fast-check'
import { expect, test } from 'vitest'
import { convertValues, type DriverConnection, type Wire, wireOf } from '../../../src/postgres/wire.ts'

// What `pg` itself would write; found from there, so that it is the copy that belongs to it.
const fromPg = createRequire(createRequire(import.meta.url).resolve('pg'))
const { serialize } = fromPg('pg-protocol') as {
  serialize: {
    query(sql: string): Buffer
    parse(message: { name: string; text: string }): Buffer
    bind(message: { statement: string; values: readonly unknown[]; valueMapper: (value: unknown) => unknown }): Buffer
    describe(message: { type: 'P' }): Buffer
    execute(message?: { rows: number }): Buffer
    close(message: { type: 'P' | 'S'; name: string }): Buffer
    flush(): Buffer
    sync(): Buffer
  }
}
const { prepareValue } = fromPg('./utils') as { prepareValue: (value: unknown) => unknown }

/** A connection that keeps what is written to its socket. */
class Recorder {
  readonly writes: Buffer[] = []
  isWritable = true
  readonly wire: Wire

  constructor() {
    const refuse = (): never => {
      throw new Error('a method of pg was used to write on a socket')
    }
    const isWritable = (): boolean => this.isWritable
    const connection: DriverConnection = {
      stream: {
        // A socket may keep what it is given for as long as it likes, so the bytes are looked at only at the end.
        write: (bytes) => this.writes.push(bytes as Buffer),
        get writable() {
          return isWritable()
        },
      },
      parsedStatements: {},
      query: refuse,
      parse: refuse,
      bind: refuse,
      describe: refuse,
      execute: refuse,
      close: refuse,
      flush: refuse,
      sync: refuse,
      sendCopyFail: refuse,
    }
    this.wire = wireOf(connection)
  }

  get bytes(): Buffer {
    return Buffer.concat(this.writes)
  }
}

const nextTick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

type Message =
  | { readonly kind: 'parse'; readonly name: string; readonly sql: string }
  | { readonly kind: 'bind'; readonly name: string; readonly values: readonly unknown[] }
  | { readonly kind: 'close'; readonly name: string }
  | { readonly kind: 'query'; readonly sql: string }
  | { readonly kind: 'execute'; readonly limit: number }
  | { readonly kind: 'closePortal' | 'describe' | 'flush' | 'sync' }

function write(wire: Wire, message: Message): void {
  if (message.kind === 'parse') wire.parse(message.name, message.sql)
  else if (message.kind === 'bind') wire.bind(message.name, message.values)
  else if (message.kind === 'close') wire.close(message.name)
  else if (message.kind === 'query') wire.query(message.sql)
  else if (message.kind === 'execute') wire.execute(message.limit)
  else wire[message.kind]()
}

function bytesOfDriver(message: Message): Buffer {
  if (message.kind === 'parse') return serialize.parse({ name: message.name, text: message.sql })
  if (message.kind === 'bind') {
    return serialize.bind({ statement: message.name, values: message.values, valueMapper: prepareValue })
  }
  if (message.kind === 'close') return serialize.close({ type: 'S', name: message.name })
  if (message.kind === 'query') return serialize.query(message.sql)
  if (message.kind === 'execute') return serialize.execute({ rows: message.limit })
  if (message.kind === 'closePortal') return serialize.close({ type: 'P', name: '' })
  if (message.kind === 'describe') return serialize.describe({ type: 'P' })
  return serialize[message.kind]()
}

const text: Arbitrary<string> = oneof(
  string(),
  string({ unit: 'grapheme' }),
  // Lone surrogates, NUL and all that no one means to send.
  string({ unit: integer({ min: 0, max: 0xffff }).map((code) => String.fromCharCode(code)) }),
  tuple(string({ unit: 'binary', minLength: 1, maxLength: 4 }), integer({ min: 20_000, max: 40_000 })).map(
    ([piece, times]) => piece.repeat(times),
  ),
)
const name = oneof(constant(''), string({ unit: 'grapheme-ascii', maxLength: 63 }))

const bytes = uint8Array({ maxLength: 300 })
const scalar: Arbitrary<unknown> = oneof(
  text,
  double(),
  integer(),
  bigInt(),
  boolean(),
  constantFrom<unknown>(null, undefined, '', Symbol('s'), (): number => 1),
  date({ noInvalidDate: true }),
  bytes.map((data) => Buffer.from(data)),
  bytes,
  // A view into the middle of a larger buffer: what is around it must not be sent.
  tuple(bytes, integer({ min: 0, max: 64 })).map(
    ([data, offset]) => new Uint8Array(Uint8Array.of(...Array(64).fill(7), ...data, 7, 7).buffer, offset, data.length),
  ),
  bytes.map((data) => new Float64Array([...data])),
  bytes.map((data) => new DataView(Uint8Array.from(data).buffer)),
)
const { value } = letrec<{ value: unknown; leaf: unknown }>((tie) => ({
  leaf: scalar,
  value: oneof(
    { maxDepth: 4, depthIdentifier: 'value' },
    { arbitrary: scalar, weight: 6 },
    array(tie('value').filter(isElement), { maxLength: 4, depthIdentifier: 'value' }),
    dictionary(string(), tie('value').filter(isJson), { maxKeys: 4, depthIdentifier: 'value' }),
    tie('value').map((inner) => ({ toPostgres: (): unknown => inner })),
    tie('value').map((inner) => ({ toPostgres: (prepare: (of: unknown) => unknown): unknown => prepare(inner) })),
    tie('value')
      .filter(isJson)
      .map((inner) => ({ toJSON: (): unknown => inner })),
  ),
}))

/** Whether `pg` can write it as an element of an array; it takes some values only by themselves. */
function isElement(candidate: unknown): boolean {
  try {
    prepareValue([candidate])
    return true
  } catch {
    return false
  }
}

/** Whether JSON has a form for it. */
function isJson(candidate: unknown): boolean {
  try {
    JSON.stringify({ candidate })
    return true
  } catch {
    return false
  }
}

const message: Arbitrary<Message> = oneof(
  record({ kind: constant('parse'), name, sql: text }),
  { arbitrary: record({ kind: constant('bind'), name, values: array(value, { maxLength: 12 }) }), weight: 4 },
  record({ kind: constant('close'), name }),
  record({ kind: constant('query'), sql: text }),
  record({ kind: constant('execute'), limit: integer({ min: 0, max: 2_147_483_647 }) }),
  record({ kind: constantFrom('closePortal', 'describe', 'sync') }),
)

test('every message has the bytes that pg would write, and those of one tick are one write', async () => {
  const recorder = new Recorder()
  await assert(
    asyncProperty(array(message, { minLength: 1, maxLength: 12 }), async (messages) => {
      recorder.writes.length = 0
      for (const each of messages) write(recorder.wire, each)
      expect(recorder.writes).toHaveLength(0)
      await nextTick()
      expect(recorder.writes).toHaveLength(1)
      expect(recorder.bytes.equals(Buffer.concat(messages.map(bytesOfDriver)))).toBe(true)
    }),
    { numRuns: 500 },
  )
})

test('any value at all is written as pg writes it, or refused as pg refuses it', async () => {
  const any = anything({
    withBigInt: true,
    withDate: true,
    withTypedArray: true,
    withNullPrototype: true,
    withMap: true,
  })
  const recorder = new Recorder()
  await assert(
    asyncProperty(array(any, { maxLength: 5 }), async (values) => {
      recorder.writes.length = 0
      const refusals = [
        refusalOf(() => bytesOfDriver({ kind: 'bind', name: 's', values })),
        refusalOf(() => recorder.wire.bind('s', values)),
      ]
      recorder.wire.sync()
      await nextTick()
      expect(refusals[1]).toEqual(refusals[0])
      const bind = refusals[0] === undefined ? bytesOfDriver({ kind: 'bind', name: 's', values }) : Buffer.alloc(0)
      expect(recorder.bytes.equals(Buffer.concat([bind, serialize.sync()]))).toBe(true)
    }),
    { numRuns: 1_000 },
  )
})

function refusalOf(action: () => void): string | undefined {
  try {
    action()
    return undefined
  } catch (error) {
    return (error as Error).message
  }
}

test.each<[string, unknown, string | null]>([
  ['a string', 'grün', 'grün'],
  ['the empty string', '', ''],
  ['a lone surrogate', 'a\ud800b', 'a\ufffdb'],
  ['a number', 1.5, '1.5'],
  ['a bigint', 2n ** 63n - 1n, '9223372036854775807'],
  ['null', null, null],
  ['undefined', undefined, null],
  ['bytes', Buffer.from('raw'), 'raw'],
  ['an object', { a: [1, null] }, '{"a":[1,null]}'],
  [
    'nested lists',
    [
      [1, 2],
      [null, 'a"b\\'],
    ],
    '{{"1","2"},{NULL,"a\\"b\\\\"}}',
  ],
  ['an object with toPostgres', { toPostgres: () => 'itself' }, 'itself'],
  ['an object that is nothing in JSON', { toJSON: () => undefined }, null],
])('%s is bound as its text', async (_what, parameter, expected) => {
  const { wire, writes } = new Recorder()
  wire.bind('', [parameter])
  await nextTick()
  const [written] = writes
  // Code, length, two empty names, two counts and one format stand before the value.
  const length = written?.readInt32BE(1 + 4 + 2 + 2 + 2 + 2)
  const from = 1 + 4 + 2 + 2 + 2 + 2 + 4
  expect(length).toBe(expected === null ? -1 : Buffer.byteLength(expected))
  expect(expected === null ? null : written?.toString('utf8', from, from + (length ?? 0))).toBe(expected)
})

const inconvertible: readonly (readonly [string, () => unknown, string])[] = [
  ['toPostgres throws', () => ({ toPostgres: () => explode() }), 'no form'],
  ['toJSON throws', () => ({ toJSON: () => explode() }), 'no form'],
  ['an object contains itself', ring, 'circular'],
  ['JSON has no bigint', () => ({ amount: 1n }), 'BigInt'],
  ['toPostgres returns itself', () => circular, 'circular reference'],
  ['there is no way to text', () => Object.assign(() => 1, { toString: undefined }), 'toString'],
]
const circular = { toPostgres: (): unknown => circular }

function explode(): never {
  throw new Error('no form')
}

function ring(): object {
  const first: { next?: object } = {}
  first.next = first
  return first
}

test.each(inconvertible)('where %s nothing is half written and what follows is intact', async (_what, make, reason) => {
  const before: Message[] = [{ kind: 'parse', name: 'a', sql: 'select $1, $2, $3' }]
  const after: Message[] = [
    { kind: 'bind', name: 'b', values: ['x', 7] },
    { kind: 'execute', limit: 0 },
    { kind: 'sync' },
  ]
  // Small, and so large that the buffer grows before the value that fails.
  for (const size of [3, 20_000, 200_000]) {
    for (const preceding of [[], before]) {
      const recorder = new Recorder()
      for (const each of preceding) write(recorder.wire, each)
      expect(() => recorder.wire.bind('a', ['x'.repeat(size), Buffer.alloc(size), make()])).toThrow(reason)
      for (const each of after) write(recorder.wire, each)
      await nextTick()
      expect(recorder.writes).toHaveLength(1)
      expect(recorder.bytes).toEqual(Buffer.concat([...preceding, ...after].map(bytesOfDriver)))
    }
  }
})

test('a refused value alone in its tick writes nothing', async () => {
  const recorder = new Recorder()
  expect(() => recorder.wire.bind('', [{ toJSON: () => explode() }])).toThrow('no form')
  await nextTick()
  expect(recorder.writes).toHaveLength(0)
})

test('messages of any size after one another are intact while the buffer grows and is exchanged', async () => {
  const recorder = new Recorder()
  const sizes = [0, 1, 100, 8_150, 8_192, 8_193, 65_535, 65_536, 70_000, 300_000, 2_000_000, 5, 40_000, 1]
  const expected: Buffer[] = []
  for (const [index, size] of sizes.entries()) {
    for (const piece of ['x', 'é', '🙂']) {
      const each: Message = {
        kind: 'bind',
        name: `s${index}`,
        values: [piece.repeat(size), null, Buffer.alloc(size, 1)],
      }
      write(recorder.wire, each)
      expected.push(bytesOfDriver(each))
    }
    if (index % 3 === 0) await nextTick()
  }
  await nextTick()
  // Looked at only now: what was handed over must not have been overwritten by later messages.
  expect(recorder.bytes.equals(Buffer.concat(expected))).toBe(true)
})

test('a short message after a long one that was refused does not keep the memory of the long one', async () => {
  const recorder = new Recorder()
  const long = 'x'.repeat(4_000_000)
  expect(() => recorder.wire.bind('', [long, { toJSON: () => explode() }])).toThrow('no form')
  recorder.wire.sync()
  await nextTick()
  recorder.wire.parse('', 'y'.repeat(8_000))
  await nextTick()
  // The large one went to the socket with the first write, and the second needs one of its own size.
  expect(recorder.writes.map((written) => written.buffer.byteLength > 1_000_000)).toEqual([true, false])
  expect(recorder.bytes).toEqual(
    Buffer.concat([serialize.sync(), serialize.parse({ name: '', text: 'y'.repeat(8_000) })]),
  )
})

test('each tick has a write of its own, and a tick without messages none', async () => {
  const recorder = new Recorder()
  for (let tick = 1; tick <= 5; tick += 1) {
    recorder.wire.execute()
    recorder.wire.sync()
    await nextTick()
    await nextTick()
    expect(recorder.writes).toHaveLength(tick)
  }
})

test('as many parameters as the protocol counts are written', async () => {
  const recorder = new Recorder()
  const each: Message = { kind: 'bind', name: '', values: Array.from({ length: 65_535 }, (_, index) => index) }
  write(recorder.wire, each)
  await nextTick()
  expect(recorder.bytes.equals(bytesOfDriver(each))).toBe(true)
})

test('nothing is written to a socket that has ended, and nothing of it comes later', async () => {
  const recorder = new Recorder()
  recorder.isWritable = false
  recorder.wire.query('select 1')
  await nextTick()
  recorder.isWritable = true
  recorder.wire.sync()
  await nextTick()
  expect(recorder.bytes).toEqual(serialize.sync())
})

/** A connection without a socket, such as that to the embedded PostgreSQL, and what was asked of it. */
function methodRecorder(): { readonly wire: Wire; readonly messages: Buffer[] } {
  const messages: Buffer[] = []
  const connection: DriverConnection = {
    stream: {},
    parsedStatements: {},
    query: (sql) => void messages.push(serialize.query(sql)),
    parse: (each) => void messages.push(serialize.parse(each)),
    bind: (each) => void messages.push(serialize.bind(each)),
    describe: (each) => void messages.push(serialize.describe(each)),
    execute: (each) => void messages.push(serialize.execute(each as { rows: number })),
    close: (each) => void messages.push(serialize.close(each)),
    flush: () => void messages.push(serialize.flush()),
    sync: () => void messages.push(serialize.sync()),
    sendCopyFail: () => undefined,
    sendMessages: (sent) => void messages.push(Buffer.from(sent)),
  }
  return { wire: wireOf(connection), messages }
}

test('where there is no socket the methods of pg write the same', () => {
  assert(
    property(message, (each) => {
      const { wire, messages } = methodRecorder()
      write(wire, each)
      expect(messages).toHaveLength(1)
      expect(messages[0]?.equals(bytesOfDriver(each))).toBe(true)
    }),
  )
})

test('where there is no socket a refused value writes nothing either', () => {
  const { wire, messages } = methodRecorder()
  expect(() => wire.bind('', ['a', { toJSON: () => explode() }])).toThrow('no form')
  expect(messages).toHaveLength(0)
})

test('a flush writes at once, and what comes behind it at the end of the tick', async () => {
  const recorder = new Recorder()
  recorder.wire.execute(7)
  recorder.wire.flush()
  expect(recorder.bytes).toEqual(Buffer.concat([serialize.execute({ rows: 7 }), serialize.flush()]))
  recorder.wire.sync()
  expect(recorder.writes).toHaveLength(1)
  await nextTick()
  expect(recorder.bytes.subarray(-serialize.sync().length)).toEqual(serialize.sync())
})

test('values are converted where their own conversion runs, and others are left as they are', () => {
  const plain = ['a', 1, null, undefined, true, 5n]
  expect(convertValues(plain)).toBe(plain)
  const order: string[] = []
  const own = { toPostgres: () => order.push('asked') && 'own' }
  expect(convertValues([own, new Date(0), { toJSON: () => undefined }, 7])).toEqual([
    'own',
    prepareValue(new Date(0)),
    null,
    '7',
  ])
  expect(order).toEqual(['asked'])
  expect(() => convertValues([{ toJSON: () => explode() }])).toThrow('no form')
})

test('a connection has one wire', () => {
  const connection = { stream: {} } as DriverConnection
  expect(wireOf(connection)).toBe(wireOf(connection))
})
