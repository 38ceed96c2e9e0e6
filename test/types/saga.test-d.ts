import { expectTypeOf, test } from 'vitest'
import { createSagas, type Database, saga, type SagaHandle } from '../../src/index.ts'

// Nothing in here runs: the compiler is the judge.
declare const database: Database<unknown>

interface Charge {
  paymentId: string
  cents: number
}

interface Order {
  orderId: string
  cents?: number
}

const placeOrder = saga<Order>('place-order')
  .step('reserve', {
    transaction: true,
    run: ({ input, results }) => {
      expectTypeOf(input).toEqualTypeOf<Order>()
      expectTypeOf(results).not.toHaveProperty('charge')
      return [{ sku: input.orderId, quantity: 1 }]
    },
    compensate: ({ result }) => expectTypeOf(result).toEqualTypeOf<{ sku: string; quantity: number }[]>(),
  })
  .step('charge', {
    run: async ({ results, idempotencyKey, signal, attempt }): Promise<Charge> => {
      expectTypeOf(results.reserve).toEqualTypeOf<{ sku: string; quantity: number }[]>()
      expectTypeOf(idempotencyKey).toEqualTypeOf<string>()
      expectTypeOf(signal).toEqualTypeOf<AbortSignal>()
      expectTypeOf(attempt).toEqualTypeOf<number>()
      return { paymentId: 'p', cents: 1 }
    },
    compensate: ({ result, results, stepKey }) => {
      // It may have happened without anyone knowing its result.
      expectTypeOf(result).toEqualTypeOf<Charge | undefined>()
      expectTypeOf(results.reserve).toEqualTypeOf<{ sku: string; quantity: number }[]>()
      expectTypeOf(stepKey).toEqualTypeOf<string>()
    },
  })
  .step('mail', {
    transaction: { isolationLevel: 'serializable' },
    run: async ({ results }) => {
      expectTypeOf(results.charge).toEqualTypeOf<Charge>()
      // @ts-expect-error: a step does not see its own result
      expectTypeOf(results.mail).toBeNever()
    },
    compensate: ({ result }) => expectTypeOf(result).toEqualTypeOf<void>(),
  })

test('later steps, and who waits, have the results of all steps by their names', async () => {
  const sagas = await createSagas(database, [placeOrder])
  const handle = await sagas.start(placeOrder, { orderId: '1' })
  const results = await handle.result()
  expectTypeOf(results.charge.paymentId).toEqualTypeOf<string>()
  expectTypeOf(results.reserve).toEqualTypeOf<{ sku: string; quantity: number }[]>()
  expectTypeOf(results.mail).toEqualTypeOf<void>()
  expectTypeOf(await sagas.run(placeOrder, { orderId: '1' })).toEqualTypeOf<typeof results>()
  expectTypeOf(handle).toEqualTypeOf<SagaHandle<typeof results>>()
  expectTypeOf(results).not.toHaveProperty('ship')
})

test('a saga takes only its own input', async () => {
  const sagas = await createSagas(database, [placeOrder])
  // @ts-expect-error: the id is missing
  sagas.start(placeOrder, {})
  // @ts-expect-error: an id is a string
  sagas.run(placeOrder, { orderId: 1 })
})

test('what JSON does not keep is neither input nor result', () => {
  // @ts-expect-error: a date comes back as text
  saga<{ at: Date }>('with a date')
  // @ts-expect-error: a bigint is no JSON
  saga<{ ids: bigint[] }>('with a bigint')
  const begun = saga<{ id: string }>('plain')
  // @ts-expect-error: a date comes back as text
  begun.step('date', { run: () => ({ at: new Date() }) })
  // @ts-expect-error: a map comes back empty
  begun.step('map', { run: async () => new Map([['a', 1]]) })
  // @ts-expect-error: nobody knows what it is
  begun.step('unknown', { run: (): unknown => 1 })
  // @ts-expect-error: a bigint is no JSON
  begun.step('bigint', { run: async () => 1n })
  // @ts-expect-error: neither is a function
  begun.step('function', { run: () => () => 1 })
  // @ts-expect-error: a date is a date
  begun.step('nested', { run: async ({ input }) => ({ at: [{ id: input.id, when: new Date() }] }) })
  begun.step('nothing', { run: async () => {} })
  begun.step('fine', { run: (): { list: readonly (string | null)[]; more?: { deep: boolean } } => ({ list: ['a'] }) })
})

test('a step has no options that are none', () => {
  // @ts-expect-error: there is no such option
  saga('some').step('one', { run: () => 1, attempts: 3 })
  // @ts-expect-error: a step has to do something
  saga('some').step('one', { transaction: true })
  // @ts-expect-error: there is no such level
  saga('some').step('one', { transaction: { isolationLevel: 'strict' }, run: () => 1 })
})
