import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { type AddressInfo, connect, createServer } from 'node:net'
import { join } from 'node:path'
import { type Generated, sql } from 'kysely'
import { Client } from 'pg'
import { describe, expect, inject, onTestFinished, test } from 'vitest'
import { createDatabase, type Database } from '../../src/index.ts'
import type { DB } from '../../src/generated/schema.ts'
import { cacheClock, factories, factory, faultProxy, sandbox } from '../../src/testing.ts'
import { closeAfterTest, freshDatabase, freshDatabaseUrl } from '../support/database.ts'

const root = join(import.meta.dirname, '../..')

describe('factories of the domain', () => {
  test('make valid rows of every table, and what they refer to', async () => {
    const database = await freshDatabase()
    const make = factories(database)
    for (const each of [make.users, make.categories, make.products]) await each.createMany(3)
    for (const each of [make.profiles, make.posts, make.comments, make.likes, make.orders, make.orderItems])
      await each.create()
    const counts = await database.queryOne(sql`
      select (select count(*)::int from users) as users, (select count(*)::int from posts) as posts,
        (select count(*)::int from orders) as orders, (select count(*)::int from products) as products`)
    // A user each for the profile, the post, the order, and the order of the item; two and three more with comment and like.
    expect(counts).toEqual({ users: 11, posts: 3, orders: 2, products: 4 })
  })

  test('give the same values in every run, and others for another seed', () => {
    const rows = (seed?: number) => {
      const make = factories({ db: undefined as never }, { seed })
      return [make.users.build(), make.users.build(), make.products.build(), make.orderItems.build()]
    }
    expect(rows()).toEqual(rows(1))
    const emails = [...rows(), ...rows(2)].flatMap((row) => ('email' in row ? [row.email] : []))
    expect(new Set(emails).size).toBe(4)
  })

  test('take what a test says, and make no more than that needs', async () => {
    const database = await freshDatabase()
    const make = factories(database)
    const { user, profile } = await make.userWithProfile({ name: 'Ada' }, { location: 'London' })
    expect([user.name, profile.user_id, profile.location]).toEqual(['Ada', user.id, 'London'])
    const posts = await make.posts.createMany(3, (index) => ({ author_id: user.id, title: `Title ${index}` }))
    expect(posts.map(({ title }) => title)).toEqual(['Title 0', 'Title 1', 'Title 2'])
    expect(await make.posts.createMany(0)).toEqual([])
    expect((await database.db.selectFrom('users').selectAll().execute()).map(({ id }) => id)).toEqual([user.id])
    const { product, categories } = await make.productInCategories({ price_minor: 700 })
    const { order, items } = await make.orderWithItems({ user_id: user.id }, [
      { product_id: product.id, quantity: 2, unit_price_minor: 700 },
      {},
    ])
    const total = items.reduce((sum, item) => sum + item.quantity * item.unit_price_minor, 0)
    expect([items.length, order.total_minor, categories.length]).toEqual([2, total, 1])
    expect(await make.users.createMany(2_500)).toHaveLength(2_500)
  })

  test('make rows of a table whose columns all have defaults', async () => {
    const url = await freshDatabaseUrl('empty')
    const database = closeAfterTest(
      await createDatabase<{ tickets: { id: Generated<number> } }>({ postgres: { url }, redis: false }),
    )
    await database.query(sql`create table tickets (id int generated always as identity)`)
    const tickets = factory(database, 'tickets', () => ({}))
    expect([await tickets.create(), ...(await tickets.createMany(2))]).toEqual([{ id: 1 }, { id: 2 }, { id: 3 }])
  })

  test('a team writes its own for its own tables', async () => {
    interface Tables {
      tasks: { id: number; title: string; done: boolean }
    }
    const url = await freshDatabaseUrl('empty')
    const database = closeAfterTest(await createDatabase<Tables>({ postgres: { url }, redis: false }))
    await database.query(sql`create table tasks (id int primary key, title text not null, done boolean not null)`)
    const tasks = factory(database, 'tasks', ({ n, unique }) => ({ id: n, title: `Task ${unique}`, done: false }))
    expect(await tasks.create({ done: true })).toEqual({ id: 1, title: 'Task 1-1', done: true })
    await sandbox(database, async (inside) => {
      const inSandbox = factory(inside, 'tasks', ({ n }) => ({ id: 100 + n, title: 'gone', done: false }))
      await inSandbox.createMany(5)
    })
    expect(await database.queryCount(sql`select count(*) from tasks`)).toBe(1)
  })
})

describe('the clock of the cache', () => {
  test('is not put forward by what is no number, from which it could not come back', () => {
    using clock = cacheClock()
    expect(() => clock.advance(Number.NaN)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }) as Error)
    expect(clock.aheadMs).toBe(0)
  })

  test('put forward, it ends what is in memory, and put back it does not', async () => {
    const database = closeAfterTest(
      await createDatabase({ postgres: { url: await freshDatabaseUrl('empty') }, redis: false }),
    )
    let loads = 0
    const read = (key: string): Promise<number> =>
      database.cache.getOrSet(key, () => (loads += 1), { ttlMs: 60_000, jitter: 0 })
    await read('kept')
    {
      using clock = cacheClock()
      clock.advance(30_000)
      await read('kept')
      expect(loads).toBe(1)
      clock.advance(30_001)
      expect(database.cache.peek('kept')).toBeUndefined()
      expect([await read('kept'), clock.aheadMs]).toEqual([2, 60_001])
      await database.cache.set('set', 7, { ttlMs: 1_000 })
      expect(database.cache.peek('set')).toBe(7)
      clock.advance(1_001)
      expect(database.cache.peek('set')).toBeUndefined()
    }
    expect(await read('kept')).toBe(2)
  })
})

describe('a fault proxy', () => {
  const open = async (): Promise<[Awaited<ReturnType<typeof faultProxy>>, Database<DB>]> => {
    const proxy = await faultProxy(await freshDatabaseUrl())
    onTestFinished(() => proxy.close())
    const database = await createDatabase<DB>({
      postgres: { url: proxy.url, retry: false, breaker: false, pool: { max: 1 }, pipeline: false },
      redis: false,
    })
    return [proxy, closeAfterTest(database)]
  }

  test('has the server fail a statement of a transaction, which runs again as a whole', async () => {
    const [proxy, database] = await open()
    const make = factories(database)
    const rule = proxy.failNext({ sqlState: '40001', statement: /insert into "products"/ })
    let attempts = 0
    await database.transaction(async () => {
      attempts += 1
      await make.users.create()
      await make.products.create()
    })
    expect([attempts, rule.hits]).toEqual([2, 1])
    expect(await database.queryCount(sql`select count(*) from users`)).toBe(1)
  })

  test('fails the so-manieth statement by itself, and those of several commands in one text', async () => {
    const [proxy, database] = await open()
    proxy.failNext({ sqlState: '53100', statement: /users/, nth: 2 })
    const read = (): Promise<unknown> => database.db.selectFrom('users').selectAll().execute()
    expect(await read()).toEqual([])
    await expect(read()).rejects.toMatchObject({ code: 'DISK_FULL' })
    expect(await read()).toEqual([])
    proxy.failNext({ sqlState: '40P01' })
    await expect(database.query(sql.raw('select 1; select 2'))).rejects.toMatchObject({ code: 'DEADLOCK' })
  })

  test('fails as many statements as it is told, whatever way they are sent and the pattern is written', async () => {
    await using proxy = await faultProxy(await freshDatabaseUrl('empty'))
    const client = new Client({ connectionString: proxy.url })
    await client.connect()
    const send = (...query: [text: string, values?: unknown[]]): Promise<string> =>
      client.query(...query).then(
        () => 'done',
        () => 'failed',
      )
    const rule = proxy.failNext({ sqlState: '53100', nth: 2 })
    const both = [await send('select 1'), await send('select $1::int', [1])]
    expect([...both, await send('select 1'), await send('select $1::int', [1])]).toEqual([
      'done',
      'failed',
      'done',
      'done',
    ])
    expect(rule.hits).toBe(1)
    proxy.failNext({ sqlState: '53100', statement: /select/g, times: 2 })
    expect([await send('select 1'), await send('select 1'), await send('select 1')]).toEqual([
      'failed',
      'failed',
      'done',
    ])
    await client.end()
  })

  test('leads to a server at an address of IPv6', async () => {
    const server = createServer((socket) => socket.end('reached'))
    server.listen(0, '::1')
    await once(server, 'listening')
    onTestFinished(() => void server.close())
    const { port } = server.address() as AddressInfo
    await using proxy = await faultProxy(`redis://[::1]:${port}`)
    const socket = connect(proxy.port, '127.0.0.1')
    expect(String(...(await once(socket, 'data')))).toBe('reached')
    socket.destroy()
  })

  test('refuses, cuts, and resets after so many bytes', async () => {
    const [proxy, database] = await open()
    const read = (count: number): Promise<unknown> =>
      database.query(sql`select repeat('x', 1000) from generate_series(1, ${count}::int)`)
    await read(1)
    proxy.resetAfterBytes(50_000)
    await read(10)
    await expect(read(100)).rejects.toMatchObject({ code: 'CONNECTION_LOST' })
    proxy.resetAfterBytes(0)
    await read(100)
    proxy.refuse()
    // What is open stays.
    await read(1)
    proxy.cut()
    await expect(read(1)).rejects.toMatchObject({ code: expect.stringMatching(/^CONNECTION_(FAILED|LOST)$/) as string })
    await expect(read(1)).rejects.toMatchObject({ code: 'CONNECTION_FAILED' })
    proxy.refuse(false)
    await expect
      .poll(() =>
        read(1).then(
          () => true,
          () => false,
        ),
      )
      .toBe(true)
  })

  test('stands before Redis, too, and refuses what is no URL of a server', async () => {
    await using proxy = await faultProxy(inject('redisUrl'))
    const url = await freshDatabaseUrl('empty')
    const database = closeAfterTest(
      await createDatabase({ postgres: { url }, redis: { url: proxy.url, commandTimeoutMs: 100 } }),
    )
    await expect.poll(async () => (await database.health()).status).toBe('up')
    proxy.freeze()
    expect((await database.health()).status).toBe('degraded')
    proxy.thaw()
    await expect.poll(async () => (await database.health()).status).toBe('up')
    await expect(faultProxy('mysql://here')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await expect(faultProxy('nonsense')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })
})

test('it works with the test runner of Node, and lets its process end', () => {
  mkdirSync(join(root, '.cache'), { recursive: true })
  const folder = mkdtempSync(join(root, '.cache/user-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  const file = join(folder, 'orders.test.ts')
  writeFileSync(
    file,
    `import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { factories, sandbox, testServer } from '${join(root, 'src/testing.ts')}'

const server = await testServer({ name: '${inject('databasePrefix')}', migrations: '${join(root, 'migrations')}' })
const database = await server.database()
after(async () => {
  await database.close()
  await server.close()
})

for (const name of ['one test', 'another test']) {
  test(name, () =>
    sandbox(database, async (inside) => {
      const { order, items } = await factories(inside).orderWithItems({}, 2)
      assert.equal(items.length, 2)
      assert.deepEqual(await inside.db.selectFrom('orders').select('id').execute(), [{ id: order.id }])
    }),
  )
}
`,
  )
  const env = { ...process.env, TEST_DATABASE_URL: inject('postgresUrl'), NODE_OPTIONS: '', VITEST: '' }
  const { stdout, status } = spawnSync(process.execPath, ['--test', '--test-reporter=tap', file], {
    env,
    encoding: 'utf8',
    timeout: 30_000,
  })
  expect(stdout).toMatch(/# pass 2/)
  expect(status).toBe(0)
})
