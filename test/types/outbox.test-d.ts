import { expectTypeOf, test } from 'vitest'
import { type Database, createOutbox, type EventOf, httpSink, type Outbox } from '../../src/index.ts'

interface Topics {
  'order.paid': { orderId: string }
  'user.left': { userId: number }
}

declare const outbox: Outbox<Topics>
declare const database: Database<{ orders: { id: string } }>

test('a topic has its payload and no other', () => {
  void outbox.publish('order.paid', { orderId: '1' })
  // @ts-expect-error -- the payload of another topic
  void outbox.publish('order.paid', { userId: 1 })
  // @ts-expect-error -- no topic
  void outbox.publish('order.lost', { orderId: '1' })
  // @ts-expect-error -- the payload of another topic
  void outbox.publishMany([{ topic: 'user.left', payload: { orderId: '1' } }])
})

test('in a handler the topic tells the type of the payload', () => {
  outbox.relay((event) => {
    if (event.topic === 'order.paid') expectTypeOf(event.payload).toEqualTypeOf<{ orderId: string }>()
    else expectTypeOf(event.payload).toEqualTypeOf<{ userId: number }>()
  })
  outbox.relay((events) => expectTypeOf(events).toEqualTypeOf<readonly EventOf<Topics>[]>() as never, { batch: true })
})

test('any database of createDatabase has an outbox, and sinks fit all topics', async () => {
  const made = await createOutbox<Topics>(database)
  expectTypeOf(made).toEqualTypeOf<Outbox<Topics>>()
  made.relay(httpSink({ url: 'http://127.0.0.1' }))
  made.relay(httpSink<EventOf<Topics>>({ url: 'http://127.0.0.1', body: ({ payload }) => payload }))
})
