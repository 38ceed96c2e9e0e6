import { isDeepStrictEqual } from 'node:util'
import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { Codec, survey } from '../../../src/cache/codec.ts'
import { headerOf, packEntry, type StoredEntry, unpackEntry } from '../../../src/cache/entry.ts'

/** Everything that a cached value may be made of. */
const anyText = fc.oneof(
  fc.string({ unit: 'binary' }),
  fc.string({ unit: fc.constantFrom('\uD83D', '\uDE00', '$', 'a') }),
)
const simple = fc.oneof(
  anyText,
  fc.double(),
  fc.integer(),
  fc.bigInt(),
  fc.boolean(),
  fc.constantFrom(null, undefined, 0, -0, 2 ** 53, -(2 ** 63)),
  fc.date({ noInvalidDate: false }),
  fc.uint8Array({ maxLength: 20 }).map((bytes) => Buffer.from(bytes)),
  fc.uint8Array({ maxLength: 20 }),
)
const { value: anyValue } = fc.letrec<{ value: unknown }>((tie) => ({
  value: fc.oneof(
    { depthSize: 'small' },
    simple,
    fc.array(tie('value'), { maxLength: 5 }),
    fc.dictionary(fc.oneof(anyText, fc.constantFrom('$', '__proto__', 'constructor', 'toJSON', '0')), tie('value'), {
      maxKeys: 5,
    }),
    fc.array(fc.tuple(tie('value'), tie('value')), { maxLength: 4 }).map((entries) => new Map(entries)),
    fc.array(tie('value'), { maxLength: 4 }).map((items) => new Set(items)),
  ),
}))

describe.each(['json', 'msgpack'] as const)('%s', (name) => {
  test.each([Number.POSITIVE_INFINITY, 0])(
    'gives any value back as it was, what is larger than %d compressed',
    async (above) => {
      const codec = new Codec(name, above)
      await fc.assert(
        fc.asyncProperty(anyValue, async (value) => {
          const back = await codec.decode(await codec.encode(value))
          // Vitest takes a property `constructor` for the class.
          expect(isDeepStrictEqual(back, withPlainPrototypes(value))).toBe(true)
        }),
        { numRuns: 500 },
      )
    },
  )

  test('makes long values shorter, and none longer', async () => {
    const codec = new Codec(name, 100)
    const { bytes } = await codec.encode('abc '.repeat(10_000))
    expect(bytes.length).toBeLessThan(1_000)
    const noise = Buffer.from(Array.from({ length: 1_000 }, (_, n) => (n * n * 7919) % 251))
    expect((await codec.encode(noise)).bytes.length).toBeLessThan(name === 'json' ? 1_400 : 1_010)
  })

  test.each([
    ['a function', { a: [() => 1] }, 'at a.0, a function'],
    ['a symbol', { a: Symbol('x') }, 'at a, a symbol'],
    [
      'an instance of a class',
      new (class Order {
        id = 1
      })(),
      'The value is an instance of Order',
    ],
    ['another kind of bytes', { a: new Float64Array(2) }, 'at a, a'],
    ['a property named by a symbol', { [Symbol('x')]: 1 }, 'a property with a symbol'],
    ['an error', { cause: new Error('secret') }, 'an instance of Error'],
  ])('refuses %s and says where it is', async (_, value, words) => {
    const refused = new Codec(name, 0).encode(value)
    await expect(refused).rejects.toMatchObject({ code: 'CACHE_VALUE_UNSUPPORTED' })
    await expect(refused).rejects.toThrow(words)
  })

  test('refuses circles and what is too deep, but not what comes twice', async () => {
    const codec = new Codec(name, 0)
    const circle: Record<string, unknown> = {}
    circle['self'] = { circle }
    await expect(codec.encode(circle)).rejects.toThrow('at self.circle, itself, in a circle')
    let deep: unknown = 1
    for (let level = 0; level < 1_000; level += 1) deep = [deep]
    await expect(codec.encode(deep)).rejects.toThrow('more than 500 levels')
    const twice = { n: 1 }
    expect(await codec.decode(await codec.encode([twice, twice]))).toEqual([{ n: 1 }, { n: 1 }])
  })

  test('of damaged bytes makes an error or another value, and nothing worse', async () => {
    const codec = new Codec(name, Number.POSITIVE_INFINITY)
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 60 }), fc.nat(255), async (bytes, flags) => {
        const decoding = (async () => codec.decode({ bytes: Buffer.from(bytes), flags }))()
        const error: unknown = await decoding.then(
          () => undefined,
          (cause: unknown) => cause,
        )
        expect(error === undefined || error instanceof Error).toBe(true)
      }),
      { numRuns: 500 },
    )
  })
})

test('the size of a value grows with what is in it', () => {
  expect(survey('x'.repeat(1_000)).size).toBeGreaterThanOrEqual(1_000)
  expect(survey(Buffer.alloc(5_000)).size).toBeGreaterThanOrEqual(5_000)
  expect(survey(Array.from({ length: 100 }, () => ({ a: 1, b: 'text' }))).size).toBeGreaterThan(3_000)
})

describe('an entry', () => {
  const facts = {
    clock: 1_795_000_000_000_001,
    size: 17,
    graceMs: 5.5,
    expires: 1_795_000_060_000_000,
    tags: ['a', 'ü', ''],
  }
  const packed = packEntry(facts, { bytes: Buffer.from('payload'), flags: 1 })

  test('is read as it was written, and no two are the same', () => {
    const read = unpackEntry(packed)
    expect(read).toMatchObject({ ...facts, encoded: { flags: 1 } })
    const { bytes, from } = (read as StoredEntry).encoded
    expect(bytes.toString('utf8', from)).toBe('payload')
    const other = packEntry(facts, { bytes: Buffer.from('payload'), flags: 1 })
    expect(headerOf(other)).not.toBe(headerOf(packed))
  })

  test('of which any bit has changed is damaged or foreign', () => {
    for (let bit = 0; bit < packed.length * 8; bit += 1) {
      const changed = Buffer.from(packed)
      changed[bit >> 3] = (changed[bit >> 3] as number) ^ (1 << (bit & 7))
      expect(['damaged', 'foreign']).toContain(unpackEntry(changed))
    }
  })

  test('that is cut off, of another program or of another version is none', () => {
    for (let length = 0; length < packed.length; length += 1) {
      expect(['damaged', 'foreign']).toContain(unpackEntry(packed.subarray(0, length)))
    }
    expect(unpackEntry(Buffer.from('Value of somebody else'))).toBe('foreign')
    const newer = Buffer.from(packed)
    newer[3] = 2
    expect(unpackEntry(newer)).toBe('damaged')
  })
})

/** What comes back has the usual prototypes. */
function withPlainPrototypes(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withPlainPrototypes)
  if (value instanceof Map)
    return new Map([...value].map(([key, item]) => [withPlainPrototypes(key), withPlainPrototypes(item)]))
  if (value instanceof Set) return new Set([...value].map(withPlainPrototypes))
  const isRecord =
    typeof value === 'object' && value !== null && !(value instanceof Date) && !(value instanceof Uint8Array)
  return isRecord
    ? Object.fromEntries(Object.entries(value).map(([key, item]) => [key, withPlainPrototypes(item)]))
    : value
}
