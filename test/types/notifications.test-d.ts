import { expectTypeOf, test } from 'vitest'
import { z } from 'zod'
import { channel, type Database, type NotificationChannel } from '../../src/index.ts'

// Nothing in here runs: the compiler is the judge.
declare const database: Database<unknown>

const orders = channel<{ id: string }>('orders')
const order = z.object({ id: z.string(), total: z.int() })
const checked = channel('checked', (received) => order.parse(received))

test('a handler gets the payload of its channel', async () => {
  await database.listen(orders, (payload) => expectTypeOf(payload).toEqualTypeOf<{ id: string }>())
  await database.listen(checked, (payload) => expectTypeOf(payload).toEqualTypeOf<{ id: string; total: number }>())
  await database.listen('log', (payload) => expectTypeOf(payload).toEqualTypeOf<string>())
})

test('so does a loop', async () => {
  for await (const payload of await database.listen(orders)) expectTypeOf(payload).toEqualTypeOf<{ id: string }>()
  for await (const payload of await database.listen('log', { bufferSize: 10 })) {
    expectTypeOf(payload).toEqualTypeOf<string>()
  }
})

test('parse says the type of the payload', () => {
  expectTypeOf(checked).toEqualTypeOf<NotificationChannel<{ id: string; total: number }>>()
})

test('another payload cannot be sent', () => {
  database.notify(orders, { id: '1' })
  database.notify('log', 'text')
  // @ts-expect-error: the id is missing
  database.notify(orders, {})
  // @ts-expect-error: an id is a string
  database.notify(orders, { id: 1 })
  // @ts-expect-error: a plain name takes text
  database.notify('log', { id: '1' })
})

test('a handler of another type does not compile', () => {
  // @ts-expect-error: payloads of this channel are objects
  database.listen(orders, (payload: string) => payload)
  // @ts-expect-error: a plain name gives text
  database.listen('log', (payload: number) => payload)
})
