/** What holds for the stores of the domain, wherever they keep their rows. */

import { setTimeout as delay } from 'node:timers/promises'
import { expect } from 'vitest'
import type { NewPost, NewProduct, NewUser, OrderWithItems, Product, User } from '../../src/domain.ts'
import type { InMemoryDomain } from '../../src/testing/in-memory-domain.ts'

/** One sentence that is true of every implementation, and how that is seen. */
export interface Fact {
  readonly about: string
  readonly says: string
  readonly holds: (stores: InMemoryDomain) => Promise<void>
}

const nobody = '00000000-0000-7000-8000-000000000000'
const ada: NewUser = { email: 'Ada@example.org', username: 'Ada', name: 'Ada', password: 'a long enough secret' }
const password = ada.password

let made = 0

/** A user of whom nothing matters but that it is another one. */
function someone({ users }: InMemoryDomain, values: Partial<NewUser> = {}): Promise<User> {
  made += 1
  return users.createUser({
    email: `user${made}@example.org`,
    username: `user${made}`,
    name: `User ${made}`,
    password,
    ...values,
  })
}

function product({ products }: InMemoryDomain, values: Partial<NewProduct> = {}): Promise<Product> {
  made += 1
  return products.create({ sku: `P-${made}`, name: `Thing ${made}`, priceMinor: 1_000, stock: 10, ...values })
}

async function published({ posts }: InMemoryDomain, authorId: string, values: Partial<NewPost> = {}) {
  made += 1
  return posts.create({ authorId, title: `Post ${made}`, body: 'Text', publishedAt: at(made), ...values })
}

function at(second: number): Date {
  return new Date(Date.UTC(2026, 0, 1, 0, 0, second))
}

const idsOf = (rows: readonly { readonly id: string }[]): string[] => rows.map(({ id }) => id)

/** All pages, one after the other. */
async function paged<Row>(next: (after: Row | undefined) => Promise<Row[]>): Promise<Row[]> {
  const rows: Row[] = []
  for (let page = await next(undefined); page.length > 0; page = await next(page.at(-1))) rows.push(...page)
  return rows
}

async function refused(call: Promise<unknown>, error: object): Promise<void> {
  await expect(call).rejects.toMatchObject(error)
}

const facts: Fact[] = []
const about =
  (topic: string) =>
  (says: string, holds: Fact['holds']): void =>
    void facts.push({ about: topic, says, holds })

const users = about('users')

users('a created user has an id, the version 1, and no password', async (stores) => {
  const user = await stores.users.createUser(ada)
  expect(user).toMatchObject({ email: 'Ada@example.org', username: 'Ada', role: 'member', isActive: true, version: 1 })
  expect(user).toMatchObject({ lastLoginAt: null, deletedAt: null })
  expect(user.createdAt).toBeInstanceOf(Date)
  expect(user.updatedAt).toEqual(user.createdAt)
  expect(Object.keys(user).filter((key) => /pass/i.test(key))).toEqual([])
  expect(await stores.users.findById(user.id)).toEqual(user)
  expect(await stores.users.findById(user.id.toUpperCase())).toEqual(user)
})

users('email and username are found, and taken, in any case', async (stores) => {
  const user = await stores.users.createUser(ada)
  expect(await stores.users.findByEmail('aDA@EXAMPLE.org')).toEqual(user)
  expect(await stores.users.findByUsername('aDA')).toEqual(user)
  expect(await stores.users.findByEmail('a%')).toBeUndefined()
  const again = stores.users.createUser({ ...ada, email: 'ADA@example.ORG', username: 'other' })
  await refused(again, { code: 'UNIQUE_VIOLATION', constraint: 'users_email_key', table: 'users' })
  const other = await someone(stores)
  await refused(stores.users.update(other.id, { username: 'ADA' }), { constraint: 'users_username_key' })
  expect(await stores.users.getById(other.id)).toEqual(other)
})

users('what breaks a rule of the table is refused with the name of the rule', async (stores) => {
  await refused(someone(stores, { email: 'not an address' }), {
    code: 'CHECK_VIOLATION',
    constraint: 'users_email_check',
  })
  await refused(someone(stores, { username: '-' }), { constraint: 'users_username_check' })
  await refused(someone(stores, { name: '   ' }), { constraint: 'users_name_check' })
  await refused(someone(stores, { name: null as unknown as string }), { code: 'NOT_NULL_VIOLATION' })
  expect(await stores.users.findActiveUsers()).toEqual([])
})

users('a value that its column cannot hold is INVALID_DATA', async (stores) => {
  const user = await stores.users.createUser(ada)
  const wrong = { role: 'king' } as object
  await refused(someone(stores, wrong), { code: 'INVALID_DATA' })
  await refused(stores.users.update(user.id, wrong), { code: 'INVALID_DATA' })
  await refused(stores.users.findManyWithProfiles(wrong), { code: 'INVALID_DATA' })
  await refused(stores.users.update(user.id, { name: 'a\0b' }), { code: 'INVALID_DATA' })
  await refused(published(stores, user.id, { publishedAt: new Date(Number.NaN) }), { code: 'INVALID_DATA' })
  await refused(stores.users.updateWithProfile(user.id, { profile: { preferences: null as never } }), {
    code: 'NOT_NULL_VIOLATION',
  })
  await refused(stores.users.update({ id: user.id, version: '1' as never }, { name: 'x' }), {
    code: 'INVALID_ARGUMENT',
  })
  await refused(stores.users.update(null as never, { name: 'x' }), { code: 'INVALID_ARGUMENT' })
  await refused(stores.posts.getPaginatedPosts({ viewerId: 'x' }), { code: 'INVALID_DATA' })
  expect(await stores.users.findWithProfile(user.id)).toEqual({ ...user, profile: null })
})

users('what is no text is nobody’s email, username or password', async (stores) => {
  await stores.users.createUser(ada)
  for (const value of [null, undefined, { $ne: '' }] as never[]) {
    expect(await stores.users.findByEmail(value)).toBeUndefined()
    expect(await stores.users.findByUsername(value)).toBeUndefined()
    expect(await stores.users.findByCredentials(value, password)).toBeUndefined()
    expect(await stores.users.findByCredentials(ada.email, value)).toBeUndefined()
  }
})

users('a row that is not there: find gives undefined, get and update NOT_FOUND, delete false', async (stores) => {
  expect(await stores.users.findById(nobody)).toBeUndefined()
  expect(await stores.users.findWithProfile(nobody)).toBeUndefined()
  for (const call of [
    () => stores.users.getById(nobody),
    () => stores.users.update(nobody, { name: 'Ada' }),
    () => stores.users.update(nobody, {}),
    () => stores.users.updateWithProfile(nobody, { profile: { bio: 'x' } }),
    () => stores.users.updateLastLogin(nobody),
    () => stores.users.getUserStats(nobody),
    () => stores.users.restore(nobody),
  ]) {
    await refused(call(), { code: 'NOT_FOUND', table: 'users' })
  }
  expect(await stores.users.delete(nobody)).toBe(false)
})

users('an id that is none is INVALID_DATA', async (stores) => {
  await refused(stores.users.findById('42'), { code: 'INVALID_DATA' })
  await refused(stores.products.findById(''), { code: 'INVALID_DATA' })
  await refused(stores.users.findById(null as unknown as string), { code: 'INVALID_ARGUMENT' })
})

users('credentials must be right, and the account neither locked nor deleted', async (stores) => {
  const { id } = await stores.users.createUser(ada)
  expect(await stores.users.findByCredentials('ada@EXAMPLE.org', password)).toMatchObject({ id })
  expect(await stores.users.findByCredentials('ada@example.org', 'wrong')).toBeUndefined()
  expect(await stores.users.findByCredentials('eve@example.org', password)).toBeUndefined()
  await stores.users.update(id, { isActive: false })
  expect(await stores.users.findByCredentials('ada@example.org', password)).toBeUndefined()
  await stores.users.update(id, { isActive: true })
  await stores.users.delete(id)
  expect(await stores.users.findByCredentials('ada@example.org', password)).toBeUndefined()
  await refused(stores.users.createUser({ ...ada, email: 'x@example.org', username: 'xx', password: '' }), {
    code: 'INVALID_ARGUMENT',
  })
})

users('a change makes the next version; one that changes nothing does not', async (stores) => {
  const user = await stores.users.createUser(ada)
  const changed = await stores.users.update(user.id, { name: 'Ada L.' })
  expect(changed).toMatchObject({ name: 'Ada L.', version: 2, email: user.email })
  expect(changed.updatedAt.getTime()).toBeGreaterThanOrEqual(user.updatedAt.getTime())
  expect(await stores.users.update(user.id, {})).toEqual(changed)
  expect(await stores.users.update(user.id, { name: undefined } as object)).toEqual(changed)
})

users('what was read before somebody else changed it is a VERSION_CONFLICT with both versions', async (stores) => {
  const read = await stores.users.createUser(ada)
  await stores.users.update(read, { name: 'First' })
  const conflict = { code: 'VERSION_CONFLICT', expectedVersion: 1, actualVersion: 2 }
  await refused(stores.users.update(read, { name: 'Second' }), conflict)
  await refused(stores.users.update(read, {}), conflict)
  await refused(stores.users.updateWithProfile(read, { profile: { bio: 'x' } }), conflict)
  await refused(stores.users.delete(read), conflict)
  expect(await stores.users.findWithProfile(read.id)).toMatchObject({ name: 'First', version: 2, profile: null })
})

users('a property that cannot be set is refused and nothing is changed', async (stores) => {
  const user = await stores.users.createUser(ada)
  for (const patch of [
    { id: nobody },
    { version: 7 },
    { deletedAt: null },
    { password_hash: 'x' },
    { passwordHash: 'x' },
    { nickname: 'x' },
  ]) {
    await refused(stores.users.update(user.id, patch as object), { code: 'INVALID_ARGUMENT' })
  }
  await refused(stores.users.updateWithProfile(user.id, { profile: { userId: nobody } as object }), {
    code: 'INVALID_ARGUMENT',
  })
  expect(await stores.users.findWithProfile(user.id)).toEqual({ ...user, profile: null })
})

users('a deleted user is not found, keeps email and username, and can be restored', async (stores) => {
  const user = await stores.users.createUser(ada)
  expect(await stores.users.delete(user)).toBe(true)
  expect(await stores.users.delete(user.id)).toBe(false)
  expect(await stores.users.findById(user.id)).toBeUndefined()
  expect(await stores.users.findByEmail(user.email)).toBeUndefined()
  expect(await stores.users.findByUsername(user.username)).toBeUndefined()
  expect(await stores.users.findManyWithProfiles()).toEqual([])
  expect(await stores.users.loadUsersWithPosts([user.id])).toEqual([undefined])
  await refused(stores.users.createUser(ada), { constraint: 'users_email_key' })
  await refused(stores.users.updateLastLogin(user.id), { code: 'NOT_FOUND' })
  expect(await stores.users.restore(user.id)).toMatchObject({ id: user.id, deletedAt: null, version: 3 })
  expect(await stores.users.restore(user.id)).toMatchObject({ version: 3 })
})

users('a login changes its time and nothing else', async (stores) => {
  const user = await stores.users.createUser(ada)
  const after = await stores.users.updateLastLogin(user.id)
  expect(after.lastLoginAt).toBeInstanceOf(Date)
  expect({ ...after, lastLoginAt: null }).toEqual(user)
})

users('pages of active users hold each of them once, newest first', async (stores) => {
  const all: User[] = []
  for (let n = 0; n < 7; n++) all.push(await someone(stores))
  await stores.users.update(all[2]?.id ?? '', { isActive: false })
  await stores.users.delete(all[4]?.id ?? '')
  const seen = await paged<User>((after) => stores.users.findActiveUsers({ limit: 2, after }))
  expect(idsOf(seen)).toEqual(idsOf(all.filter((_, index) => index !== 2 && index !== 4).toReversed()))
  await refused(stores.users.findActiveUsers({ limit: -1 }), { code: 'INVALID_ARGUMENT' })
  await refused(stores.users.findActiveUsers({ limit: 0.5 }), { code: 'INVALID_ARGUMENT' })
  expect(await stores.users.findActiveUsers({ limit: 0 })).toEqual([])
})

const profiles = about('profiles')

profiles('user and profile are created together, or neither', async (stores) => {
  const user = await stores.users.createWithProfile(ada, {
    bio: 'Counts',
    preferences: { theme: 'dark', sizes: [1, 2] },
  })
  expect(user).toMatchObject({ version: 1, profile: { bio: 'Counts', location: null, website: null } })
  expect(user.profile?.preferences).toEqual({ theme: 'dark', sizes: [1, 2] })
  expect(user.profile?.createdAt).toBeInstanceOf(Date)
  expect(await stores.users.findWithProfile(user.id)).toEqual(user)
  const wrong = stores.users.createWithProfile(
    { ...ada, email: 'eve@example.org', username: 'eve' },
    { website: 'javascript:alert(1)' },
  )
  await refused(wrong, { code: 'CHECK_VIOLATION', constraint: 'user_profiles_website_check' })
  expect(await stores.users.findByEmail('eve@example.org')).toBeUndefined()
})

profiles('what was given is kept as it was, whatever becomes of it afterwards', async (stores) => {
  const preferences = { sizes: [1, 2] }
  const user = await stores.users.createWithProfile(ada, { preferences })
  preferences.sizes.push(3)
  expect((await stores.users.findWithProfile(user.id))?.profile?.preferences).toEqual({ sizes: [1, 2] })
  const publishedAt = at(1)
  const post = await published(stores, user.id, { publishedAt })
  publishedAt.setFullYear(2030)
  expect((await stores.posts.getById(post.id)).publishedAt).toEqual(at(1))
})

profiles('a change of the profile makes it where it is missing, and is a change of the user', async (stores) => {
  const user = await stores.users.createUser(ada)
  const first = await stores.users.updateWithProfile(user, { profile: { location: 'Turku' } })
  expect(first).toMatchObject({ version: 2, profile: { location: 'Turku', bio: null, preferences: {} } })
  const second = await stores.users.updateWithProfile(first, { name: 'Ada L.', profile: { bio: 'Counts' } })
  expect(second).toMatchObject({ version: 3, name: 'Ada L.', profile: { location: 'Turku', bio: 'Counts' } })
  const third = await stores.users.updateWithProfile(second, { profile: { location: null, bio: undefined } })
  expect(third.profile).toMatchObject({ location: null, bio: 'Counts' })
  expect(await stores.users.updateWithProfile(third, {})).toEqual(third)
  expect(await stores.users.findWithProfile(user.id)).toEqual(third)
})

profiles('a change of user and profile of which one is refused changes neither', async (stores) => {
  const user = await stores.users.createWithProfile(ada, { bio: 'Before' })
  const refusedChange = stores.users.updateWithProfile(user.id, { name: 'After', profile: { bio: 'x'.repeat(2_001) } })
  await refused(refusedChange, { constraint: 'user_profiles_bio_check' })
  await refused(stores.users.updateWithProfile(user.id, { email: 'none', profile: { bio: 'After' } }), {
    constraint: 'users_email_check',
  })
  expect(await stores.users.findWithProfile(user.id)).toEqual(user)
})

profiles('a filter finds the users that meet all of it, newest first, page after page', async (stores) => {
  const [one, two, three] = [
    await stores.users.createWithProfile({ ...ada, role: 'admin' }, { location: 'Turku' }),
    await someone(stores, { name: '100% Anna_B', role: 'staff' }),
    await someone(stores, { name: 'Adam' }),
  ]
  await stores.users.updateWithProfile(three.id, { profile: { location: 'TURKU' } })
  const find = async (filter: object): Promise<string[]> => idsOf(await stores.users.findManyWithProfiles(filter))
  expect(await find({})).toEqual(idsOf([three, two, one]))
  expect(await find({ role: 'admin' })).toEqual([one.id])
  expect(await find({ role: ['admin', 'staff'] })).toEqual(idsOf([two, one]))
  expect(await find({ role: [] })).toEqual([])
  expect(await find({ location: 'turku' })).toEqual(idsOf([three, one]))
  expect(await find({ hasProfile: false })).toEqual([two.id])
  expect(await find({ text: 'ADA' })).toEqual(idsOf([three, one]))
  expect(await find({ text: '0% A' })).toEqual([two.id])
  expect(await find({ text: '_' })).toEqual([two.id])
  expect(await find({ text: '\\' })).toEqual([])
  expect(await find({ text: 'ada', role: 'member', location: 'Turku' })).toEqual([three.id])
  expect(await find({ createdSince: new Date(Date.now() + 3_600_000) })).toEqual([])
  await stores.users.update(two.id, { isActive: false })
  expect(await find({ isActive: false })).toEqual([two.id])
  const all = await paged<User>((after) => stores.users.findManyWithProfiles({ limit: 1, after }))
  expect(idsOf(all)).toEqual(idsOf([three, two, one]))
})

profiles('a filter that is none is refused and does not find everything', async (stores) => {
  await stores.users.createUser(ada)
  for (const filter of [{ rolle: 'admin' }, { password_hash: 'x' }, { text: { $ne: '' } }, { isActive: 'yes' }]) {
    await refused(stores.users.findManyWithProfiles(filter as object), { code: 'INVALID_ARGUMENT' })
  }
})

const activity = about('activity')

activity('users come with their newest posts in the order of the ids, missing ones as undefined', async (stores) => {
  const [one, two] = [await someone(stores), await someone(stores)]
  const posts = [await published(stores, one.id), await published(stores, one.id), await published(stores, one.id)]
  await stores.posts.create({ authorId: two.id, title: 'Draft', body: '' })
  await stores.posts.delete(posts[1]?.id ?? '')
  const found = await stores.users.loadUsersWithPosts([two.id, nobody, one.id, two.id], { postsPerUser: 2 })
  expect(found.map((user) => user?.id)).toEqual([two.id, undefined, one.id, two.id])
  expect(found[2]).toEqual({ ...one, posts: [posts[2], posts[0]] })
  expect(found[0]?.posts).toEqual([])
  const [newest] = await stores.users.loadUsersWithPosts([one.id], { postsPerUser: 1 })
  expect(newest?.posts).toEqual([posts[2]])
  expect(await stores.users.loadUsersWithPosts([])).toEqual([])
})

activity('the numbers of a user leave out drafts, withdrawn posts and cancelled orders', async (stores) => {
  const [one, two] = [await someone(stores), await someone(stores)]
  const nothing = { posts: 0, comments: 0, likesGiven: 0, likesReceived: 0, orders: 0, spent: [] }
  expect(await stores.users.getUserStats(one.id)).toEqual(nothing)
  const [kept, withdrawn] = [await published(stores, one.id), await published(stores, one.id)]
  await stores.posts.create({ authorId: one.id, title: 'Draft', body: '' })
  await stores.comments.addComment({ postId: kept.id, authorId: one.id, body: 'Hm' })
  await stores.likes.like(kept.id, two.id)
  await stores.likes.like(withdrawn.id, two.id)
  await stores.likes.like(kept.id, one.id)
  await stores.posts.delete(withdrawn.id)
  const [euros, crowns] = [await product(stores), await product(stores, { currency: 'DKK', priceMinor: 700 })]
  await stores.orderService.createOrder(one.id, [{ productId: euros.id, quantity: 2 }])
  await stores.orderService.createOrder(one.id, [{ productId: crowns.id, quantity: 1 }])
  await stores.orderService.cancelOrder(await order(stores, one, euros, 1))
  expect(await stores.users.getUserStats(one.id)).toEqual({
    posts: 1,
    comments: 1,
    likesGiven: 1,
    likesReceived: 2,
    orders: 2,
    spent: [
      { amountMinor: 700, currency: 'DKK' },
      { amountMinor: 2_000, currency: 'EUR' },
    ],
  })
})

const catalogue = about('catalogue')

catalogue('a created product has its defaults, and its sku is unique', async (stores) => {
  const kettle = await stores.products.create({ sku: 'KIT-1', name: 'Kettle', priceMinor: 4_900 })
  expect(kettle).toMatchObject({ description: '', currency: 'EUR', stock: 0, isActive: true, version: 1 })
  expect(await stores.products.findBySku('KIT-1')).toEqual(kettle)
  expect(await stores.products.findBySku('kit-1')).toBeUndefined()
  const again = stores.products.create({ sku: 'KIT-1', name: 'Other', priceMinor: 1 })
  await refused(again, { code: 'UNIQUE_VIOLATION', constraint: 'products_sku_key' })
  await refused(product(stores, { sku: 'lower' }), { constraint: 'products_sku_check' })
  await refused(product(stores, { priceMinor: -1 }), { constraint: 'products_price_minor_check' })
  await refused(product(stores, { currency: 'euro' }), { constraint: 'products_currency_check' })
  await refused(product(stores, { priceMinor: 1.5 }), { code: 'INVALID_DATA' })
  await refused(product(stores, { stock: 3_000_000_000 }), { code: 'INVALID_DATA' })
  await refused(stores.products.update(kettle.id, { stock: -1 }), { constraint: 'products_stock_check' })
})

/** Kitchen with pots (1) and knives (0), pots with lids; and another top. */
async function tree({ categories }: InMemoryDomain) {
  const kitchen = await categories.create({ slug: 'kitchen', name: 'Kitchen' })
  const pots = await categories.create({ slug: 'pots', name: 'Pots', parentId: kitchen.id, position: 1 })
  const knives = await categories.create({ slug: 'knives', name: 'Knives', parentId: kitchen.id })
  const lids = await categories.create({ slug: 'lids', name: 'Lids', parentId: pots.id })
  const home = await categories.create({ slug: 'home', name: 'Home' })
  return { kitchen, pots, knives, lids, home }
}

catalogue('a subtree comes from above to below, children by position and name', async (stores) => {
  const { kitchen, pots } = await tree(stores)
  await stores.categories.create({ slug: 'bowls', name: 'Bowls', parentId: kitchen.id, position: 1 })
  const nodes = await stores.categories.findCategorySubtree('kitchen')
  expect(nodes.map(({ slug, depth }) => `${depth} ${slug}`)).toEqual([
    '0 kitchen',
    '1 knives',
    '1 bowls',
    '1 pots',
    '2 lids',
  ])
  expect(nodes[3]).toEqual({ ...pots, depth: 1 })
  expect(await stores.categories.findCategorySubtree('nowhere')).toEqual([])
  expect(await stores.categories.findBySlug('pots')).toEqual(pots)
})

catalogue('a tree that was bent into a ring is walked once around', async (stores) => {
  const { kitchen, lids, pots } = await tree(stores)
  await stores.categories.update(kitchen.id, { parentId: lids.id })
  const nodes = await stores.categories.findCategorySubtree('pots')
  expect(nodes.map(({ slug, depth }) => `${depth} ${slug}`)).toEqual(['0 pots', '1 lids', '2 kitchen', '3 knives'])
  const shown = await product(stores)
  await stores.categories.showProduct(pots.id, shown.id)
  expect(idsOf(await stores.products.findWithCategories({ category: 'lids' }))).toEqual([shown.id])
})

catalogue('a category has a slug of its own, a parent that exists, and is not its own parent', async (stores) => {
  const { kitchen } = await tree(stores)
  await refused(stores.categories.create({ slug: 'pots', name: 'Pots' }), { constraint: 'categories_slug_key' })
  await refused(stores.categories.create({ slug: 'x', name: 'X', parentId: nobody }), {
    code: 'FOREIGN_KEY_VIOLATION',
    constraint: 'categories_parent_id_fkey',
  })
  await refused(stores.categories.update(kitchen.id, { parentId: kitchen.id }), {
    constraint: 'categories_parent_check',
  })
  await refused(stores.categories.create({ slug: 'No Slug', name: 'X' }), { constraint: 'categories_slug_check' })
})

catalogue('a category knows when it was changed', async (stores) => {
  const { pots } = await tree(stores)
  await delay(5)
  const changed = await stores.categories.update(pots.id, { name: 'Pots and pans' })
  expect(changed.updatedAt.getTime()).toBeGreaterThan(pots.updatedAt.getTime())
  expect(await stores.categories.findBySlug('pots')).toEqual(changed)
})

catalogue('pages of products come by name with their categories, from a category and below it', async (stores) => {
  const { pots, lids, home, kitchen } = await tree(stores)
  const named = (name: string): Promise<Product> => product(stores, { name })
  const [b, a, c, hidden] = [await named('Beta'), await named('Alpha'), await named('Beta'), await named('Aaa')]
  await stores.products.update(hidden.id, { isActive: false })
  for (const [category, shown] of [
    [lids, a],
    [pots, b],
    [home, b],
    [home, c],
    [kitchen, hidden],
  ] as const) {
    await stores.categories.showProduct(category.id, shown.id)
    await stores.categories.showProduct(category.id, shown.id)
  }
  const all = await paged<Product>((after) => stores.products.findWithCategories({ limit: 1, after }))
  expect(idsOf(all)).toEqual([a.id, ...[b.id, c.id].toSorted()])
  const below = await stores.products.findWithCategories({ category: 'kitchen' })
  expect(below).toEqual([
    { ...a, categories: [{ id: lids.id, parentId: pots.id, slug: 'lids', name: 'Lids' }] },
    { ...b, categories: [home, pots].map(({ id, parentId, slug, name }) => ({ id, parentId, slug, name })) },
  ])
  expect(await stores.products.findWithCategories({ category: 'nowhere' })).toEqual([])
  expect(await stores.categories.hideProduct(pots.id, b.id)).toBe(true)
  expect(await stores.categories.hideProduct(pots.id, b.id)).toBe(false)
  expect(idsOf(await stores.products.findWithCategories({ category: 'kitchen' }))).toEqual([a.id])
})

catalogue('products of a range of prices come cheapest first, of one currency', async (stores) => {
  const priced = (priceMinor: number, currency = 'EUR'): Promise<Product> => product(stores, { priceMinor, currency })
  const [ten, five, twenty] = [await priced(10), await priced(5), await priced(20)]
  const crown = await priced(7, 'DKK')
  expect(idsOf(await stores.products.findByPrice())).toEqual(idsOf([five, ten, twenty]))
  expect(idsOf(await stores.products.findByPrice({ minMinor: 10, maxMinor: 20 }))).toEqual(idsOf([ten, twenty]))
  expect(idsOf(await stores.products.findByPrice({ minMinor: 21, maxMinor: 4 }))).toEqual([])
  expect(idsOf(await stores.products.findByPrice({ currency: 'DKK' }))).toEqual([crown.id])
  const all = await stores.products.findByPrice({ minMinor: -(2 ** 40), maxMinor: 2 ** 40 })
  expect(idsOf(all)).toEqual(idsOf([five, ten, twenty]))
  expect(await stores.products.findByPrice({ minMinor: 2 ** 40 })).toEqual([])
  for (const maxMinor of [1.5, Number.NaN, Number.POSITIVE_INFINITY]) {
    await refused(stores.products.findByPrice({ maxMinor }), { code: 'INVALID_DATA' })
  }
  const pages = await paged<Product>((after) => stores.products.findByPrice({ limit: 1, after }))
  expect(idsOf(pages)).toEqual(idsOf([five, ten, twenty]))
})

const search = about('search')

async function shelf(stores: InMemoryDomain) {
  const [kettle, lamp, cup] = [
    await product(stores, { name: 'Copper Kettle', description: 'Boils water for tea.', priceMinor: 4_000 }),
    await product(stores, { name: 'Reading Lamp', description: 'Light beside every kettle.', priceMinor: 2_000 }),
    await product(stores, { name: 'Coffee Cup', description: 'Holds coffee.', priceMinor: 900 }),
  ]
  const find = async (text: string, options = {}): Promise<string[]> =>
    (await stores.products.search(text, options)).map(({ name }) => name)
  return { kettle, lamp, cup, find }
}

search('words are found in any of their forms, those in names first', async (stores) => {
  const { find, kettle, cup } = await shelf(stores)
  expect(await find('kettles')).toEqual(['Copper Kettle', 'Reading Lamp'])
  expect(await find('COPPER kettle')).toEqual(['Copper Kettle'])
  expect(await find('the lamps')).toEqual(['Reading Lamp'])
  expect(await find('kettle lawnmower')).toEqual([])
  const [first] = await stores.products.search('coffee')
  expect(first).toMatchObject({ ...cup, match: 'words' })
  expect(first?.rank).toBeGreaterThan(0)
  await stores.products.update(kettle.id, { isActive: false })
  expect(await find('kettle')).toEqual(['Reading Lamp'])
})

search('quotes ask for a phrase, or for either, a minus for products without the word', async (stores) => {
  const { find } = await shelf(stores)
  expect(await find('"copper kettle"')).toEqual(['Copper Kettle'])
  expect((await find('copper or cup')).toSorted()).toEqual(['Coffee Cup', 'Copper Kettle'])
  for (const text of ['kettle -copper', 'kettle - copper', 'kettle (-copper)', 'kettle -"copper kettle"']) {
    expect(await find(text)).toEqual(['Reading Lamp'])
  }
  // Wherever the word is.
  expect(await find('cup -holds')).toEqual([])
  expect(await find('-kettle')).toEqual(['Coffee Cup'])
})

search('typing errors are forgiven where words find too little', async (stores) => {
  const { find } = await shelf(stores)
  expect(await find('ketle')).toEqual(['Copper Kettle'])
  expect(await find('cofee cup')).toEqual(['Coffee Cup'])
  expect(await find('xyzzy')).toEqual([])
  const [found] = await stores.products.search('ketle')
  expect(found).toMatchObject({ match: 'similar' })
})

search('a category and a range of prices narrow it, limit and offset cut it', async (stores) => {
  const { find, kettle } = await shelf(stores)
  const { lids } = await tree(stores)
  await stores.categories.showProduct(lids.id, kettle.id)
  expect(await find('kettle', { category: 'kitchen' })).toEqual(['Copper Kettle'])
  expect(await find('ketle', { category: 'home' })).toEqual([])
  expect(await find('kettle', { price: { maxMinor: 2_000 } })).toEqual(['Reading Lamp'])
  expect(await find('kettle', { price: { currency: 'DKK' } })).toEqual([])
  expect(await find('kettle', { limit: 1 })).toEqual(['Copper Kettle'])
  expect(await find('kettle', { limit: 1, offset: 1 })).toEqual(['Reading Lamp'])
  await refused(stores.products.search('kettle', { offset: -1 }), { code: 'INVALID_ARGUMENT' })
})

search('any text is safe', async (stores) => {
  const { find } = await shelf(stores)
  for (const text of [
    '',
    ' ',
    '\0',
    "'; drop table products; --",
    '%',
    '!&|():*',
    '"',
    '<->',
    'a'.repeat(100_000),
    '\ud800',
  ]) {
    expect(await find(text)).toEqual([])
  }
  await refused(stores.products.search({} as string), { code: 'INVALID_ARGUMENT' })
})

const stock = about('stock')

stock('never more is taken than there is', async (stores) => {
  const { id } = await product(stores, { stock: 3 })
  expect(await stores.products.takeStock(id, 2)).toMatchObject({ stock: 1, version: 2 })
  await refused(stores.products.takeStock(id, 2), {
    code: 'INSUFFICIENT_STOCK',
    name: 'InsufficientStockError',
    retry: 'none',
    shortages: [{ productId: id, requested: 2, available: 1 }],
  })
  for (const quantity of [2 ** 31, 2 ** 53 - 1]) {
    await refused(stores.products.takeStock(id, quantity), { code: 'INSUFFICIENT_STOCK' })
    await refused(stores.products.putBackStock(id, quantity), { code: 'INVALID_DATA' })
  }
  expect(await stores.products.putBackStock(id, 4)).toMatchObject({ stock: 5, version: 3 })
  for (const quantity of [0, -1, 0.5, Number.NaN, '2' as unknown as number]) {
    await refused(stores.products.takeStock(id, quantity), { code: 'INVALID_ARGUMENT' })
    await refused(stores.products.putBackStock(id, quantity), { code: 'INVALID_ARGUMENT' })
  }
  await refused(stores.products.takeStock(nobody, 1), { code: 'NOT_FOUND' })
  await refused(stores.products.putBackStock(nobody, 1), { code: 'NOT_FOUND' })
  await refused(stores.products.putBackStock(id, 2_147_483_647), { code: 'INVALID_DATA' })
})

stock('of ten who take at once as many succeed as there are pieces', async (stores) => {
  const { id } = await product(stores, { stock: 4 })
  const takes = await Promise.allSettled(Array.from({ length: 10 }, () => stores.products.takeStock(id, 1)))
  expect(takes.filter(({ status }) => status === 'fulfilled')).toHaveLength(4)
  expect(await stores.products.getById(id)).toMatchObject({ stock: 0 })
})

stock('what runs out is listed, fewest first', async (stores) => {
  const stocked = (pieces: number): Promise<Product> => product(stores, { stock: pieces })
  const [four, none, five] = [await stocked(4), await stocked(0), await stocked(5)]
  const hidden = await stocked(1)
  await stores.products.update(hidden.id, { isActive: false })
  expect(idsOf(await stores.products.findLowStock())).toEqual(idsOf([none, four]))
  expect(idsOf(await stores.products.findLowStock({ below: 6, limit: 2 }))).toEqual(idsOf([none, four]))
  for (const below of [6, 2 ** 53 - 1]) {
    expect(idsOf(await stores.products.findLowStock({ below }))).toEqual(idsOf([none, four, five]))
  }
})

stock('a product that was ever ordered cannot be deleted', async (stores) => {
  const [user, sold, unsold] = [await someone(stores), await product(stores), await product(stores)]
  await order(stores, user, sold, 1)
  await refused(stores.products.delete(sold.id), {
    code: 'FOREIGN_KEY_VIOLATION',
    constraint: 'order_items_product_id_fkey',
  })
  expect(await stores.products.delete(unsold.id)).toBe(true)
  expect(await stores.products.delete(unsold.id)).toBe(false)
  expect(await stores.products.findById(unsold.id)).toBeUndefined()
})

const posts = about('posts')

posts('a draft is found by its id and not shown in the feed until it is published', async (stores) => {
  const author = await someone(stores)
  const draft = await stores.posts.create({ authorId: author.id, title: 'Title', body: 'Body' })
  expect(draft).toMatchObject({ publishedAt: null, deletedAt: null, version: 1 })
  expect(await stores.posts.getById(draft.id)).toEqual(draft)
  expect(await stores.posts.getPaginatedPosts()).toEqual([])
  await stores.posts.update(draft, { publishedAt: at(1) })
  expect(idsOf(await stores.posts.getPaginatedPosts())).toEqual([draft.id])
  await refused(stores.posts.update(draft, { title: 'Late' }), { code: 'VERSION_CONFLICT' })
  await refused(stores.posts.create({ authorId: nobody, title: 'Title', body: '' }), {
    code: 'FOREIGN_KEY_VIOLATION',
    constraint: 'posts_author_id_fkey',
  })
  await refused(stores.posts.create({ authorId: author.id, title: ' ', body: '' }), { constraint: 'posts_title_check' })
})

posts('the feed has author, comments and likes, and whether the viewer likes it', async (stores) => {
  const [author, reader] = [await someone(stores), await someone(stores)]
  const post = await published(stores, author.id)
  const comments = []
  for (const body of ['First', 'Second', 'Third']) {
    comments.push(await stores.comments.addComment({ postId: post.id, authorId: reader.id, body }))
  }
  await stores.likes.like(post.id, reader.id)
  const [shown] = await stores.posts.getPaginatedPosts({ viewerId: reader.id, commentsPerPost: 2 })
  const { id, username, name } = reader
  expect(shown).toEqual({
    ...post,
    author: { id: author.id, username: author.username, name: author.name },
    commentCount: 3,
    latestComments: [comments[2], comments[1]].map((comment) => ({ ...comment, author: { id, username, name } })),
    likeCount: 1,
    isLiked: true,
  })
  const [toOthers] = await stores.posts.getPaginatedPosts({ viewerId: author.id, commentsPerPost: 0 })
  expect(toOthers).toMatchObject({ isLiked: false, latestComments: [], commentCount: 3 })
  const [toNobody] = await stores.posts.getPaginatedPosts()
  expect(toNobody).toMatchObject({ isLiked: false })
})

posts('pages of the feed hold each post once, newest first, also those of one moment', async (stores) => {
  const [one, two] = [await someone(stores), await someone(stores)]
  const all = []
  for (let n = 0; n < 9; n++) {
    all.push(await published(stores, (n % 3 === 0 ? one : two).id, { publishedAt: at(Math.floor(n / 4)) }))
  }
  const seen = await paged((after: { publishedAt: Date; id: string } | undefined) =>
    stores.posts.getPaginatedPosts({ limit: 2, after }),
  )
  const expected = all.toSorted((a, b) => Number(b.publishedAt) - Number(a.publishedAt) || (a.id < b.id ? 1 : -1))
  expect(idsOf(seen as never)).toEqual(idsOf(expected))
  expect(idsOf(await stores.posts.getPaginatedPosts({ authorId: one.id }))).toEqual(
    idsOf(expected.filter((post) => post.authorId === one.id)),
  )
})

posts('what was withdrawn, and what deleted users wrote, is neither shown nor counted', async (stores) => {
  const [author, leaver, reader] = [await someone(stores), await someone(stores), await someone(stores)]
  const [kept, withdrawn] = [await published(stores, author.id), await published(stores, author.id)]
  await published(stores, leaver.id)
  await stores.comments.addComment({ postId: kept.id, authorId: leaver.id, body: 'Gone' })
  const said = await stores.comments.addComment({ postId: kept.id, authorId: reader.id, body: 'Here' })
  await stores.posts.delete(withdrawn)
  await stores.users.delete(leaver.id)
  const feed = await stores.posts.getPaginatedPosts()
  expect(idsOf(feed)).toEqual([kept.id])
  expect(feed[0]).toMatchObject({ commentCount: 1, latestComments: [{ id: said.id }] })
  expect(idsOf(await stores.comments.findByPost(kept.id))).toEqual([said.id])
  expect(await stores.posts.findById(withdrawn.id)).toBeUndefined()
  expect(await stores.posts.restore(withdrawn.id)).toMatchObject({ deletedAt: null, version: 3 })
  expect(idsOf(await stores.posts.getPaginatedPosts())).toEqual([withdrawn.id, kept.id])
})

posts('comments of a post come oldest first, page after page', async (stores) => {
  const author = await someone(stores)
  const post = await published(stores, author.id)
  const all = []
  for (const body of ['1', '2', '3', '4', '5']) {
    all.push(await stores.comments.addComment({ postId: post.id, authorId: author.id, body }))
  }
  const seen = await paged((after: { createdAt: Date; id: string } | undefined) =>
    stores.comments.findByPost(post.id, { limit: 2, after }),
  )
  expect(idsOf(seen as never)).toEqual(idsOf(all))
  expect(await stores.comments.findById(all[0]?.id ?? '')).toEqual(all[0])
  expect(await stores.comments.delete(all[0]?.id ?? '')).toBe(true)
  expect(await stores.comments.delete(all[0]?.id ?? '')).toBe(false)
  expect(await stores.comments.findByPost(nobody)).toEqual([])
})

posts('nobody says or likes anything about a draft, a withdrawn post, or none', async (stores) => {
  const author = await someone(stores)
  const draft = await stores.posts.create({ authorId: author.id, title: 'Draft', body: '' })
  const withdrawn = await published(stores, author.id)
  await stores.posts.delete(withdrawn.id)
  for (const postId of [draft.id, withdrawn.id, nobody]) {
    await refused(stores.comments.addComment({ postId, authorId: author.id, body: 'Hm' }), {
      code: 'NOT_FOUND',
      table: 'posts',
    })
    await refused(stores.likes.like(postId, author.id), { code: 'NOT_FOUND', table: 'posts' })
  }
  const post = await published(stores, author.id)
  await refused(stores.comments.addComment({ postId: post.id, authorId: author.id, body: '  ' }), {
    constraint: 'comments_body_check',
  })
  await refused(stores.comments.addComment({ postId: post.id, authorId: nobody, body: 'Hm' }), {
    constraint: 'comments_author_id_fkey',
  })
  await refused(stores.likes.like(post.id, nobody), { constraint: 'likes_user_id_fkey' })
})

posts('a like counts once, however often and by however many calls at once', async (stores) => {
  const [author, reader] = [await someone(stores), await someone(stores)]
  const post = await published(stores, author.id)
  const likes = await Promise.all(Array.from({ length: 5 }, () => stores.likes.like(post.id, reader.id)))
  expect(likes.filter(Boolean)).toHaveLength(1)
  expect(await stores.likes.like(post.id, reader.id)).toBe(false)
  expect(await stores.likes.countByPost(post.id)).toBe(1)
  expect(await stores.likes.findById({ postId: post.id, userId: reader.id })).toMatchObject({ postId: post.id })
  expect(await stores.likes.unlike(post.id, reader.id)).toBe(true)
  expect(await stores.likes.unlike(post.id, reader.id)).toBe(false)
  expect(await stores.likes.countByPost(post.id)).toBe(0)
  expect(await stores.likes.findById({ postId: post.id, userId: reader.id })).toBeUndefined()
})

posts('top contributors are those with most posts and comments, of equals the most liked', async (stores) => {
  const [one, two, three, silent] = [
    await someone(stores),
    await someone(stores),
    await someone(stores),
    await someone(stores),
  ]
  const first = await published(stores, one.id, { publishedAt: at(1) })
  const second = await published(stores, two.id, { publishedAt: at(50) })
  await published(stores, three.id, { publishedAt: at(50) })
  await stores.posts.create({ authorId: silent.id, title: 'Draft', body: '' })
  await stores.comments.addComment({ postId: first.id, authorId: one.id, body: 'Mine' })
  await stores.likes.like(second.id, one.id)
  const of = ({ id, username, name }: User, written: number, said: number, likesReceived: number) => ({
    id,
    username,
    name,
    posts: written,
    comments: said,
    likesReceived,
  })
  const all = [of(one, 1, 1, 0), of(two, 1, 0, 1), of(three, 1, 0, 0)]
  expect(await stores.posts.getTopContributors()).toEqual(all)
  expect(await stores.posts.getTopContributors({ limit: 1 })).toEqual(all.slice(0, 1))
  const since = await stores.posts.getTopContributors({ since: at(40) })
  expect(since).toEqual([
    of(two, 1, 0, 1),
    ...[of(three, 1, 0, 0), of(one, 0, 1, 0)].toSorted((a, b) => (a.id < b.id ? -1 : 1)),
  ])
  expect(await stores.posts.getTopContributors({ since: new Date(Date.now() + 3_600_000) })).toEqual([])
})

const orders = about('orders')

function order(stores: InMemoryDomain, user: User, { id }: Product, quantity: number): Promise<OrderWithItems> {
  return stores.orderService.createOrder(user.id, [{ productId: id, quantity }])
}

const stockOf = async ({ products }: InMemoryDomain, { id }: Product): Promise<number> =>
  (await products.getById(id)).stock

orders('an order takes the stock and holds its items, prices and total', async (stores) => {
  const user = await someone(stores)
  const [kettle, cup] = [await product(stores), await product(stores, { priceMinor: 250, stock: 4 })]
  const placed = await stores.orderService.createOrder(user.id, [
    { productId: cup.id, quantity: 1 },
    { productId: kettle.id, quantity: 2 },
    { productId: cup.id.toUpperCase(), quantity: 3 },
  ])
  expect(placed).toMatchObject({ userId: user.id, status: 'pending', totalMinor: 3_000, currency: 'EUR', version: 1 })
  expect(placed.idempotencyKey).toBeNull()
  expect(placed.createdAt).toBeInstanceOf(Date)
  const lines = placed.items.map(({ productId, quantity, unitPriceMinor }) => ({ productId, quantity, unitPriceMinor }))
  const expected = [
    { productId: kettle.id, quantity: 2, unitPriceMinor: 1_000 },
    { productId: cup.id, quantity: 4, unitPriceMinor: 250 },
  ]
  expect(lines).toEqual(expected.toSorted((a, b) => (a.productId < b.productId ? -1 : 1)))
  expect([await stockOf(stores, kettle), await stockOf(stores, cup)]).toEqual([8, 0])
  expect((await stores.products.getById(cup.id)).version).toBe(2)
  await stores.products.update(kettle.id, { priceMinor: 9_999 })
  expect(await stores.orders.findWithItems(placed.id)).toEqual(placed)
  const { items: _, ...bare } = placed
  expect(await stores.orders.getById(placed.id)).toEqual(bare)
  expect(await stores.orders.findWithItems(nobody)).toBeUndefined()
})

orders('where there is too little nothing is taken, and the error says what is left of each', async (stores) => {
  const user = await someone(stores)
  const [few, enough, none] = [
    await product(stores, { stock: 1 }),
    await product(stores),
    await product(stores, { stock: 0 }),
  ]
  const lines = [few, enough, none].map(({ id }) => ({ productId: id, quantity: 2 }))
  const shortages = [
    { productId: few.id, requested: 2, available: 1 },
    { productId: none.id, requested: 2, available: 0 },
  ]
  await refused(stores.orderService.createOrder(user.id, lines), {
    name: 'InsufficientStockError',
    code: 'INSUFFICIENT_STOCK',
    shortages: shortages.toSorted((a, b) => (a.productId < b.productId ? -1 : 1)),
  })
  // Each line alone could be had.
  const twice = [
    { productId: enough.id, quantity: 6 },
    { productId: enough.id, quantity: 5 },
  ]
  await refused(stores.orderService.createOrder(user.id, twice), { code: 'INSUFFICIENT_STOCK' })
  expect(await stockOf(stores, enough)).toBe(10)
  expect(await stores.orders.findByUser(user.id)).toEqual([])
})

orders('products that do not exist or are not for sale are named', async (stores) => {
  const user = await someone(stores)
  const [fine, hidden] = [await product(stores), await product(stores)]
  await stores.products.update(hidden.id, { isActive: false })
  const lines = [fine.id, hidden.id, nobody].map((productId) => ({ productId, quantity: 1 }))
  await refused(stores.orderService.createOrder(user.id, lines), {
    name: 'ProductUnavailableError',
    code: 'PRODUCT_UNAVAILABLE',
    productIds: [hidden.id, nobody].toSorted(),
  })
  expect(await stockOf(stores, fine)).toBe(10)
})

orders('a user who is locked, deleted or not there orders nothing', async (stores) => {
  const [locked, gone, thing] = [await someone(stores), await someone(stores), await product(stores)]
  await stores.users.update(locked.id, { isActive: false })
  await stores.users.delete(gone.id)
  for (const userId of [locked.id, gone.id, nobody]) {
    const call = stores.orderService.createOrder(userId, [{ productId: thing.id, quantity: 1 }])
    await refused(call, { name: 'CustomerUnavailableError', code: 'CUSTOMER_UNAVAILABLE', userId })
  }
  expect(await stockOf(stores, thing)).toBe(10)
})

orders('an order has one currency, and a total that its column holds', async (stores) => {
  const user = await someone(stores)
  const [euros, crowns] = [await product(stores), await product(stores, { currency: 'DKK' })]
  const both = [euros, crowns].map(({ id }) => ({ productId: id, quantity: 1 }))
  await refused(stores.orderService.createOrder(user.id, both), {
    code: 'MIXED_CURRENCIES',
    currencies: ['DKK', 'EUR'],
  })
  const dear = await product(stores, { priceMinor: 2_147_483_647, stock: 2 })
  await refused(order(stores, user, dear, 2), { code: 'ORDER_TOO_LARGE' })
  expect(await order(stores, user, dear, 1)).toMatchObject({ totalMinor: 2_147_483_647 })
  expect(await order(stores, user, crowns, 1)).toMatchObject({ currency: 'DKK' })
})

orders('what makes no order is refused with all that is wrong', async (stores) => {
  const [user, thing] = [await someone(stores), await product(stores)]
  const place = (lines: unknown, options = {}): Promise<unknown> =>
    stores.orderService.createOrder(user.id, lines as never, options)
  await refused(place([]), { name: 'InvalidOrderError', code: 'INVALID_ORDER' })
  await refused(stores.orderService.createOrder(null as unknown as string, []), { problems: { length: 2 } })
  await refused(place('x'), { code: 'INVALID_ORDER' })
  await refused(place(Array(2)), { code: 'INVALID_ORDER', problems: { length: 4 } })
  for (const quantity of [0, -1, 1.5, Number.NaN, '1', null, 2 ** 53]) {
    await refused(place([{ productId: thing.id, quantity }]), {
      code: 'INVALID_ORDER',
      problems: ['lines[0].quantity must be a whole number from 1'],
    })
  }
  await refused(place([{ productId: { $ne: '' }, quantity: 1 }]), { code: 'INVALID_ORDER' })
  await refused(place([{ productId: 'x', quantity: 1 }]), { code: 'INVALID_DATA' })
  for (const idempotencyKey of ['', 'x'.repeat(201), 5, 'a\0b']) {
    await refused(place([{ productId: thing.id, quantity: 1 }], { idempotencyKey }), { code: 'INVALID_ORDER' })
  }
  await refused(place([{ productId: thing.id, quantity: 2 ** 53 - 1 }]), { code: 'INSUFFICIENT_STOCK' })
  expect(await stockOf(stores, thing)).toBe(10)
})

orders('a repeated call with the same key gives the same order and takes nothing again', async (stores) => {
  const [user, other, thing] = [await someone(stores), await someone(stores), await product(stores, { stock: 3 })]
  const lines = [{ productId: thing.id, quantity: 3 }]
  const place = (userId: string, wanted = lines): Promise<OrderWithItems> =>
    stores.orderService.createOrder(userId, wanted, { idempotencyKey: 'cart 1' })
  const placed = await place(user.id)
  expect(placed.idempotencyKey).toBe('cart 1')
  const split = [1, 2].map((quantity) => ({ productId: thing.id.toUpperCase(), quantity }))
  expect(await place(user.id)).toEqual(placed)
  expect(await place(user.id, split)).toEqual(placed)
  expect(await stockOf(stores, thing)).toBe(0)
  await refused(place(user.id, [{ productId: thing.id, quantity: 1 }]), {
    name: 'IdempotencyKeyReusedError',
    code: 'IDEMPOTENCY_KEY_REUSED',
  })
  // The key is that of one user.
  await refused(place(other.id), { code: 'INSUFFICIENT_STOCK' })
  await stores.orderService.cancelOrder(placed.id)
  expect(await place(user.id)).toMatchObject({ id: placed.id, status: 'cancelled' })
})

orders('ten calls at once with one key make one order', async (stores) => {
  const [user, thing] = [await someone(stores), await product(stores, { stock: 2 })]
  const lines = [{ productId: thing.id, quantity: 2 }]
  const placed = await Promise.all(
    Array.from({ length: 10 }, () => stores.orderService.createOrder(user.id, lines, { idempotencyKey: 'k' })),
  )
  expect(new Set(idsOf(placed)).size).toBe(1)
  expect(await stockOf(stores, thing)).toBe(0)
  expect(await stores.orders.findByUser(user.id)).toHaveLength(1)
})

orders('an order is paid, shipped, delivered, in this order and once each', async (stores) => {
  const [user, thing] = [await someone(stores), await product(stores)]
  const { orderService: service } = stores
  const placed = await order(stores, user, thing, 1)
  await refused(service.shipOrder(placed.id), { code: 'ILLEGAL_ORDER_CHANGE', from: 'pending', to: 'shipped' })
  const paid = await service.payOrder(placed)
  expect(paid).toMatchObject({ status: 'paid', version: 2 })
  await refused(service.payOrder(placed.id), {
    name: 'IllegalOrderChangeError',
    code: 'ILLEGAL_ORDER_CHANGE',
    from: 'paid',
    to: 'paid',
  })
  await refused(service.shipOrder(placed), { code: 'VERSION_CONFLICT', expectedVersion: 1, actualVersion: 2 })
  expect(await service.shipOrder(paid)).toMatchObject({ status: 'shipped', version: 3 })
  await refused(service.cancelOrder(placed.id), { code: 'ILLEGAL_ORDER_CHANGE', from: 'shipped', to: 'cancelled' })
  expect(await service.deliverOrder(placed.id)).toMatchObject({ status: 'delivered', version: 4 })
  await refused(service.payOrder(nobody), { code: 'NOT_FOUND', table: 'orders' })
  expect(await stockOf(stores, thing)).toBe(9)
})

orders('a cancelled order puts its stock back exactly once, however often it is cancelled', async (stores) => {
  const [user, thing] = [await someone(stores), await product(stores)]
  const placed = await order(stores, user, thing, 4)
  const paid = await stores.orderService.payOrder(placed.id)
  await refused(stores.orderService.cancelOrder(placed), { code: 'VERSION_CONFLICT' })
  expect(await stockOf(stores, thing)).toBe(6)
  const cancelled = await Promise.all(Array.from({ length: 5 }, () => stores.orderService.cancelOrder(paid.id)))
  for (const each of cancelled) expect(each).toMatchObject({ status: 'cancelled', version: 3 })
  expect(await stockOf(stores, thing)).toBe(10)
  await refused(stores.orderService.payOrder(placed.id), { code: 'ILLEGAL_ORDER_CHANGE', from: 'cancelled' })
  await refused(stores.orderService.cancelOrder(nobody), { code: 'NOT_FOUND' })
})

orders('an order whose stock cannot be put back is not cancelled', async (stores) => {
  const [user, one, two] = [await someone(stores), await product(stores), await product(stores)]
  const lines = [one, two].map(({ id }) => ({ productId: id, quantity: 2 }))
  const placed = await stores.orderService.createOrder(user.id, lines)
  await stores.products.update(two.id, { stock: 2_147_483_647 })
  await refused(stores.orderService.cancelOrder(placed.id), { code: 'INVALID_DATA' })
  expect(await stores.orders.getById(placed.id)).toMatchObject({ status: 'pending', version: 1 })
  expect(await stores.products.getById(one.id)).toMatchObject({ stock: 8, version: 2 })
})

orders('of paying and cancelling at once both are told the truth', async (stores) => {
  const [user, thing] = [await someone(stores), await product(stores)]
  const placed = await order(stores, user, thing, 1)
  await Promise.allSettled([stores.orderService.payOrder(placed.id), stores.orderService.cancelOrder(placed.id)])
  // Paid and then cancelled, or cancelled at once; never cancelled and then paid.
  expect(await stores.orders.getById(placed.id)).toMatchObject({ status: 'cancelled' })
  expect(await stockOf(stores, thing)).toBe(10)
})

orders('the orders of a user come newest first with their items, page after page', async (stores) => {
  const [user, other, thing] = [await someone(stores), await someone(stores), await product(stores)]
  const all = [
    await order(stores, user, thing, 1),
    await order(stores, user, thing, 2),
    await order(stores, user, thing, 3),
  ]
  await order(stores, other, thing, 1)
  const seen = await paged<OrderWithItems>((after) => stores.orders.findByUser(user.id, { limit: 2, after }))
  expect(seen).toEqual(all.toReversed())
  expect(await stores.orders.findByUser(nobody)).toEqual([])
})

const statistics = about('statistics')

statistics('sales are as of the last refresh, without cancelled orders', async (stores) => {
  const [user, one, two] = [await someone(stores), await product(stores), await product(stores, { priceMinor: 5 })]
  expect(await stores.statistics.getStatisticsAge()).toBeUndefined()
  await order(stores, user, one, 1)
  await order(stores, user, two, 2)
  const last = await order(stores, user, two, 1)
  await stores.orderService.cancelOrder((await order(stores, user, one, 5)).id)
  expect(await stores.statistics.getTopProducts()).toEqual([])
  const refresh = await stores.statistics.refreshStatistics()
  expect(refresh.refreshed).toBe(true)
  expect(refresh.refreshedAt).toBeInstanceOf(Date)
  const sales = await stores.statistics.getTopProducts()
  expect(sales).toMatchObject([
    { productId: two.id, currency: 'EUR', orders: 2, pieces: 3, revenueMinor: 15, lastOrderedAt: last.createdAt },
    { productId: one.id, orders: 1, pieces: 1, revenueMinor: 1_000 },
  ])
  expect(await stores.statistics.getTopProducts({ limit: 1 })).toEqual(sales.slice(0, 1))
  expect(await stores.statistics.getProductSales(two.id)).toEqual(sales.slice(0, 1))
  await order(stores, user, one, 3)
  expect(await stores.statistics.getTopProducts()).toEqual(sales)
})

statistics('a refresh is left out when what is there is new enough, and says how old it is', async (stores) => {
  const first = await stores.statistics.refreshStatistics()
  const second = await stores.statistics.refreshStatistics({ maxAgeMs: 3_600_000 })
  expect(second).toMatchObject({ refreshed: false, refreshedAt: first.refreshedAt })
  expect(second.ageMs).toBeGreaterThanOrEqual(0)
  expect(second.ageMs).toBeLessThan(3_600_000)
  expect(await stores.statistics.getStatisticsAge()).toMatchObject({ refreshedAt: first.refreshedAt })
  await refused(stores.statistics.refreshStatistics({ maxAgeMs: -1 }), { code: 'INVALID_ARGUMENT' })
})

export const domainFacts: readonly Fact[] = facts
