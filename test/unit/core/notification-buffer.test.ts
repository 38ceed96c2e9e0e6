import * as fc from 'fast-check'
import { expect, test } from 'vitest'
import { type BufferEntry, NotificationBuffer } from '../../../src/core/notification-buffer.ts'

function drain(buffer: NotificationBuffer): BufferEntry[] {
  const entries: BufferEntry[] = []
  for (let entry = buffer.take(); entry !== undefined; entry = buffer.take()) entries.push(entry)
  return entries
}

test('what fits comes out as it went in, empty texts included', () => {
  const buffer = new NotificationBuffer(3)
  for (const text of ['a', '', 'c']) buffer.push(text)
  expect(buffer.waiting).toBe(3)
  expect(drain(buffer)).toEqual(['a', '', 'c'])
  expect(buffer).toMatchObject({ waiting: 0, dropped: 0 })
})

test('one too many drops the oldest, and the notice stands where it was', () => {
  const buffer = new NotificationBuffer(2)
  for (const text of ['a', 'b', 'c', 'd']) buffer.push(text)
  expect(drain(buffer)).toEqual([{ dropped: 2, disconnected: false }, 'c', 'd'])
  expect(buffer.dropped).toBe(2)
})

test('a lost connection is noted between what came before and after', () => {
  const buffer = new NotificationBuffer(5)
  buffer.push('before')
  buffer.interrupt()
  buffer.interrupt()
  buffer.push('after')
  expect(drain(buffer)).toEqual(['before', { dropped: 0, disconnected: true }, 'after'])
})

test('a notice that is in the way of what is dropped is not lost', () => {
  const buffer = new NotificationBuffer(1)
  buffer.push('a')
  buffer.interrupt()
  buffer.push('b')
  buffer.push('c')
  expect(drain(buffer)).toEqual([{ dropped: 2, disconnected: true }, 'c'])
})

type Step = 'interrupt' | 'push' | 'take'

test('in any order of events it holds no more than its size, loses nothing silently, and keeps the order', () => {
  const steps = fc.array(fc.constantFrom<Step>('push', 'push', 'take', 'interrupt'), { maxLength: 200 })
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 5 }), steps, (size, sequence) => {
      const buffer = new NotificationBuffer(size)
      const taken: BufferEntry[] = []
      let pushed = 0
      let interruptions = 0
      for (const step of sequence) {
        if (step === 'push') buffer.push(String((pushed += 1)))
        else if (step === 'interrupt') {
          buffer.interrupt()
          interruptions += 1
        } else {
          const entry = buffer.take()
          if (entry !== undefined) taken.push(entry)
        }
        expect(buffer.waiting).toBeLessThanOrEqual(size)
      }
      taken.push(...drain(buffer))

      // Each text is the number of its push: one more than all that was taken or dropped before it.
      let accounted = 0
      const isInOrder = taken.every((entry) => {
        accounted += typeof entry === 'string' ? 1 : entry.dropped
        return typeof entry !== 'string' || Number(entry) === accounted
      })
      expect(isInOrder).toBe(true)
      expect(accounted).toBe(pushed)
      const noted = taken.filter((entry) => typeof entry !== 'string' && entry.disconnected).length
      expect(noted > 0).toBe(interruptions > 0)
      expect(noted).toBeLessThanOrEqual(interruptions)
    }),
  )
})
