import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { createDatabase } from '../../src/index.ts'
import type { DB } from '../../src/domain.ts'
import { factories } from '../../src/testing.ts'
import { closeAfterTest, freshDatabaseUrl } from '../support/database.ts'

interface Bank {
  charge(key: string, cents: number): Promise<{ readonly receipt: string } | 'declined'>
  refund(key: string): Promise<void>
}

interface Shop extends AsyncDisposable {
  readonly server: { listen(port: number, host: string, ready: () => void): unknown; address(): AddressInfo }
}

const root = join(import.meta.dirname, '../..')
mkdirSync(join(root, '.cache'), { recursive: true })
const folder = mkdtempSync(join(root, '.cache/service-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** The program of docs/service.md as it stands there, but for where kanta is. */
async function theProgram(): Promise<{ openShop(bank: Bank, options: object): Promise<Shop> }> {
  const [, program] = /```ts\n([\s\S]*?)```/.exec(readFileSync(join(root, 'docs/service.md'), 'utf8')) ?? []
  if (program === undefined) throw new Error('docs/service.md has no program')
  const file = join(folder, 'shop.ts')
  const placed = program
    .replace("from 'kanta/domain'", `from '${join(root, 'src/domain.ts')}'`)
    .replace("from 'kanta'", `from '${join(root, 'src/index.ts')}'`)
  writeFileSync(file, placed)
  return (await import(file)) as { openShop(bank: Bank, options: object): Promise<Shop> }
}

test('the service of the documentation sells, declines, shows its catalogue and its feed', async () => {
  const charged = new Map<string, number>()
  let isBroke = false
  const bank: Bank = {
    charge(key, cents) {
      if (isBroke) return Promise.resolve('declined')
      charged.set(key, cents)
      return Promise.resolve({ receipt: `receipt of ${cents}` })
    },
    refund: (key) => Promise.resolve(void charged.delete(key)),
  }
  const url = await freshDatabaseUrl()
  const database = closeAfterTest(await createDatabase<DB>({ postgres: { url }, redis: false }))
  const make = factories(database)
  const user = await make.users.create()
  const product = await make.products.create({ stock: 3, price_minor: 500 })
  for (let n = 0; n < 25; n += 1)
    await make.posts.create({ author_id: user.id, published_at: new Date(2026, 0, 1 + n) })

  const program = await theProgram()
  await using shop = await program.openShop(bank, {
    postgres: { url, password: 'for the cursors' },
    redis: false,
    logger: { info: () => undefined, warn: () => undefined },
  })
  await new Promise<void>((resolve) => void shop.server.listen(0, '127.0.0.1', resolve))
  const call = async (path: string, body?: unknown): Promise<{ status: number; body: Record<string, never> }> => {
    const given = body === undefined ? {} : { method: 'POST', body: JSON.stringify(body) }
    const response = await fetch(`http://127.0.0.1:${shop.server.address().port}${path}`, given)
    return { status: response.status, body: (await response.json()) as Record<string, never> }
  }

  const wanted = { userId: user.id, lines: [{ productId: product.id, quantity: 2 }], key: 'first' }
  const bought = await call('/orders', wanted)
  expect(bought).toMatchObject({ status: 200, body: { receipt: 'receipt of 1000' } })
  // The same request again, as of a client that did not hear the answer.
  expect(await call('/orders', wanted)).toEqual(bought)
  expect([...charged.values()]).toEqual([1_000])

  isBroke = true
  const declined = await call('/orders', { ...wanted, lines: [{ productId: product.id, quantity: 1 }], key: 'second' })
  expect(declined).toMatchObject({ status: 409, body: { code: 'SAGA_COMPENSATED' } })
  const left = await database.db.selectFrom('products').select('stock').executeTakeFirstOrThrow()
  expect(left.stock).toBe(1)

  const catalogue = await call('/products')
  expect(catalogue).toMatchObject({ status: 200, body: [{ id: product.id }] })

  const first = await call('/feed')
  expect(first.body['items']).toHaveLength(20)
  const second = await call(`/feed?after=${String(first.body['endCursor'])}`)
  expect(second.body).toMatchObject({ hasNextPage: false })
  expect(second.body['items']).toHaveLength(5)
  expect(await call('/feed?after=forged')).toMatchObject({ status: 400, body: { code: 'CURSOR_INVALID' } })
  expect(await call('/nowhere')).toMatchObject({ status: 404 })
  expect(await call('/health')).toMatchObject({ status: 200, body: { status: 'up' } })
})
