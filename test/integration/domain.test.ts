import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import {
  CategoryRepository,
  CommentRepository,
  LikeRepository,
  OrderRepository,
  OrderService,
  PostRepository,
  ProductRepository,
  SalesStatistics,
  UserRepository,
} from '../../src/domain.ts'
import { type InMemoryDomain, inMemoryDomain } from '../../src/testing/in-memory-domain.ts'
import { testPasswordHasher } from '../../src/testing/in-memory-users.ts'
import { freshDatabase } from '../support/database.ts'
import { domainFacts } from '../support/domain-facts.ts'

const implementations: Readonly<Record<string, () => Promise<InMemoryDomain>>> = {
  PostgreSQL: async () => {
    const database = await freshDatabase()
    return {
      users: new UserRepository(database, { passwordHasher: testPasswordHasher }),
      categories: new CategoryRepository(database),
      products: new ProductRepository(database),
      posts: new PostRepository(database),
      comments: new CommentRepository(database),
      likes: new LikeRepository(database),
      orders: new OrderRepository(database),
      orderService: new OrderService(database),
      statistics: new SalesStatistics(database),
    }
  },
  'in memory': async () => inMemoryDomain(),
}

const held = new Set<string>()

describe.each(Object.entries(implementations))('%s:', (name, open) => {
  test.each(domainFacts)('$about: $says', async ({ says, holds }) => {
    await holds(await open())
    held.add(`${name}: ${says}`)
  })
})

// `npm test -- integration/domain -u` writes it anew.
test('the table in docs/domain.md is what the suite has found', async () => {
  const page = readFileSync('docs/domain.md', 'utf8')
  const [, before = '', after = ''] =
    /^([\s\S]*<!-- facts -->\n)[\s\S]*(\n<!-- end of facts -->[\s\S]*)$/.exec(page) ?? []
  await expect(`${before}${table()}${after}`).toMatchFileSnapshot('../../docs/domain.md')
})

function table(): string {
  const names = Object.keys(implementations)
  const head = ['', 'what holds', ...names]
  const rows = domainFacts.map(({ about, says }, index) => {
    const isFirst = domainFacts[index - 1]?.about !== about
    return [isFirst ? `**${about}**` : '', says, ...names.map((name) => (held.has(`${name}: ${says}`) ? '✓' : '✗'))]
  })
  const lines = [head, head.map(() => '---'), ...rows].map((cells) =>
    `| ${cells.join(' | ')} |`.replaceAll('|  |', '| |'),
  )
  return lines.join('\n')
}
