import { createSecretKey, type KeyObject, randomBytes } from 'node:crypto'
import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { openCursor, sealCursor } from '../../../src/repository/cursor.ts'

const anyKey = (): KeyObject => createSecretKey(randomBytes(32))
const key = anyKey()
const list = JSON.stringify([['posts'], [['"posts"."id"', [], 'asc', 'none']]])
const place = JSON.stringify(['2026-01-02 03:04:05.123456+00', 'a \ufffd', null])
const refused = expect.objectContaining({ code: 'CURSOR_INVALID', retry: 'none', transient: false })

function opening(cursor: unknown, of = list, keys: readonly KeyObject[] = [key]): unknown {
  try {
    return openCursor(keys, of, cursor)
  } catch (error) {
    return error
  }
}

describe('a cursor', () => {
  test('gives back any place, and is fit for a URL', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', minLength: 1, maxLength: 50 }), (text) => {
        const given = JSON.stringify([text])
        const cursor = sealCursor([key], list, given)
        expect(cursor).toMatch(/^[\w-]+$/)
        expect(openCursor([key], list, cursor)).toBe(given)
      }),
    )
  })

  test('is refused with any bit changed', () => {
    const bytes = Buffer.from(sealCursor([key], list, place), 'base64url')
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      const changed = Buffer.from(bytes)
      changed[bit >> 3] = (changed[bit >> 3] as number) ^ (1 << (bit & 7))
      expect(opening(changed.toString('base64url'))).toEqual(refused)
    }
  })

  test('is refused with any characters changed, put in or taken out', () => {
    const cursor = sealCursor([key], list, place)
    fc.assert(
      fc.property(
        fc.nat({ max: cursor.length }),
        fc.nat({ max: 3 }),
        fc.oneof(fc.string({ maxLength: 3 }), fc.base64String({ maxLength: 8 }), fc.constant('=')),
        (at, taken, put) => {
          const changed = cursor.slice(0, at) + put + cursor.slice(at + taken)
          fc.pre(changed !== cursor)
          expect(opening(changed)).toEqual(refused)
        },
      ),
      { numRuns: 2_000 },
    )
  })

  test('is refused by any other list, and by another key', () => {
    const cursor = sealCursor([key], list, place)
    for (const other of ['', '[]', `${list} `, list.replace('asc', 'desc'), list.replace('posts', 'users')]) {
      expect(opening(cursor, other)).toEqual(refused)
    }
    expect(opening(cursor, list, [anyKey()])).toEqual(refused)
  })

  test('of an old key is good as long as that key is known, and new ones are made with the first', () => {
    const next = anyKey()
    const old = sealCursor([key], list, place)
    expect(opening(old, list, [next, key])).toBe(place)
    expect(opening(old, list, [next])).toEqual(refused)
    expect(opening(sealCursor([next, key], list, place), list, [next])).toBe(place)
  })

  test.each([
    ['nothing', ''],
    ['a word', 'first'],
    ['a number', 17],
    ['a list', [sealCursor([key], list, place)]],
    ['an object', { toString: () => sealCursor([key], list, place) }],
    ['__proto__', '__proto__'],
    ['100 kB', 'A'.repeat(100_000)],
    ['base64 of the other kind', Buffer.from([1, ...randomBytes(60)]).toString('base64')],
    ['only a signature', Buffer.from([1, ...randomBytes(16)]).toString('base64url')],
    ['SQL', "' or true --"],
    ['a cursor and a blank', `${sealCursor([key], list, place)} `],
  ])('that is %s is refused with the same words', (_, cursor) => {
    const error = opening(cursor)
    expect(error).toEqual(refused)
    expect((error as Error).message).toBe(
      'The cursor is not one of this list. Start again at the first page, without a cursor.',
    )
  })

  test('is not made of a place that is too long for a URL', () => {
    const long = JSON.stringify(['x'.repeat(7_000)])
    expect(() => sealCursor([key], list, long)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
  })
})
