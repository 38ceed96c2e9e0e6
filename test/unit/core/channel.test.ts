import * as fc from 'fast-check'
import { expect, test } from 'vitest'
import { channel, channelName, decodePayload, encodePayload } from '../../../src/core/channel.ts'

const orders = channel<unknown>('orders')
const limit = { carrier: 'PostgreSQL', maxBytes: 7_999 }

test('what JSON can hold comes back as it was sent', () => {
  fc.assert(
    fc.property(fc.jsonValue(), (value) => {
      // JSON has no negative zero.
      expect(decodePayload(orders, encodePayload(orders, value, limit))).toEqual(JSON.parse(JSON.stringify(value)))
    }),
  )
})

test('a plain name sends text as it is', () => {
  expect(encodePayload('log', '{"id": 1}', limit)).toBe('{"id": 1}')
  expect(decodePayload('log', '{"id": 1}')).toBe('{"id": 1}')
})

test.each([
  ['nothing', undefined],
  ['a function', () => 1],
  ['a bigint', 1n],
])('%s is no JSON', (_, value) => {
  expect(() => encodePayload(orders, value, limit)).toThrow(
    expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('"orders"') as string }),
  )
})

test('a plain name refuses what is not text', () => {
  expect(() => encodePayload('log', { id: 1 }, limit)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
})

test('the limit counts bytes, not characters', () => {
  expect(encodePayload('log', 'x'.repeat(7_999), limit)).toHaveLength(7_999)
  expect(() => encodePayload('log', 'é'.repeat(4_000), limit)).toThrow(
    expect.objectContaining({
      code: 'NOTIFICATION_TOO_LARGE',
      message: expect.stringMatching(/"log" has 8000 bytes.*7999/) as string,
    }),
  )
})

test('what is no JSON is refused without being quoted', () => {
  const refuse = (): unknown => decodePayload(orders, 'my secret')
  expect(refuse).toThrow(expect.objectContaining({ code: 'INVALID_DATA' }))
  expect(refuse).not.toThrow('secret')
  expect(refuse).not.toThrow(expect.objectContaining({ cause: expect.anything() as unknown }))
})

test('names are counted in bytes', () => {
  expect(channelName('ä'.repeat(31))).toHaveLength(31)
  expect(() => channelName('ä'.repeat(32))).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
})
