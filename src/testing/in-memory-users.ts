import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'
import type { PasswordHasher } from '../domain/password-hasher.ts'
import type { Post } from '../domain/post.ts'
import {
  type Money,
  type NewUser,
  problemOfFilter,
  type Profile,
  type ProfileValues,
  type User,
  type UserFilter,
  type UserPage,
  type UserPatch,
  type UserRef,
  type UserStats,
  type UserStore,
  type UserWithPosts,
  type UserWithProfile,
} from '../domain/user.ts'
import { compareBy, invalidArgument, invalidData, newestFirst, pageOf, rowCount } from './in-memory-table.ts'
import { type InMemoryTables, type UserRow, userRoles } from './in-memory-tables.ts'

/** Users in memory. */
export class InMemoryUsers implements UserStore {
  readonly #tables: InMemoryTables
  readonly #passwords: PasswordHasher

  constructor(tables: InMemoryTables, passwordHasher: PasswordHasher) {
    this.#tables = tables
    this.#passwords = passwordHasher
  }

  async findById(id: string): Promise<User | undefined> {
    const row = this.#users.find(id)
    return row && userOf(row)
  }

  async getById(id: string): Promise<User> {
    return userOf(this.#users.get(id))
  }

  async findByEmail(email: string): Promise<User | undefined> {
    const row = this.#users.alive.find((user) => isSame(user.email, email))
    return row && userOf(row)
  }

  async findByUsername(username: string): Promise<User | undefined> {
    const row = this.#users.alive.find((user) => isSame(user.username, username))
    return row && userOf(row)
  }

  async findByCredentials(email: string, password: string): Promise<User | undefined> {
    const row = this.#users.alive.find((user) => user.isActive && isSame(user.email, email))
    if (row === undefined) return undefined
    return (await this.#passwords.verify(password, row.passwordHash)) ? userOf(row) : undefined
  }

  async findActiveUsers({ limit = 50, after }: UserPage = {}): Promise<User[]> {
    const rows = this.#users.alive.filter((user) => user.isActive)
    return page(rows, after, rowCount('users', 'limit', limit)).map(userOf)
  }

  async findWithProfile(id: string): Promise<UserWithProfile | undefined> {
    const row = this.#users.find(id)
    return row && this.#withProfile(row)
  }

  async findManyWithProfiles(filter: UserFilter = {}): Promise<UserWithProfile[]> {
    const { after, limit = 50, ...wanted } = checked(filter)
    const roles: readonly string[] = [wanted.role ?? []].flat()
    if (!roles.every((role) => userRoles.some((known) => known === role))) {
      throw invalidData('users', 'a role is no such word')
    }
    const rows = this.#users.alive.filter((user) => this.#meets(user, wanted))
    return page(rows, after, rowCount('users', 'limit', limit)).map((user) => this.#withProfile(user))
  }

  async loadUsersWithPosts(
    ids: readonly string[],
    { postsPerUser = 5 }: { readonly postsPerUser?: number } = {},
  ): Promise<(UserWithPosts | undefined)[]> {
    const limit = rowCount('users', 'postsPerUser', postsPerUser)
    return Array.from(ids, (id) => {
      const row = this.#users.find(id)
      return (
        row && {
          ...userOf(row),
          posts: this.#publishedBy(row.id)
            .slice(0, limit)
            .map((post) => ({ ...post })),
        }
      )
    })
  }

  async getUserStats(id: string): Promise<UserStats> {
    const { comments, likes, orders } = this.#tables
    const user = this.#users.get(id)
    const posts = new Set(this.#publishedBy(user.id).map((post) => post.id))
    const valid = orders.alive.filter((order) => order.userId === user.id && order.status !== 'cancelled')
    const spent = Map.groupBy(valid, (order) => order.currency)
    return {
      posts: posts.size,
      comments: comments.alive.filter((comment) => comment.authorId === user.id).length,
      likesGiven: [...likes.values()].filter((like) => like.userId === user.id).length,
      likesReceived: [...likes.values()].filter((like) => posts.has(like.postId)).length,
      orders: valid.length,
      spent: [...spent]
        .map(([currency, group]): Money => ({ amountMinor: sum(group.map((order) => order.totalMinor)), currency }))
        .toSorted(compareBy((money) => money.currency)),
    }
  }

  async createUser(user: NewUser): Promise<User> {
    return userOf(await this.#insert(user))
  }

  async createWithProfile(user: NewUser, profile: ProfileValues): Promise<UserWithProfile> {
    const row = await this.#insert(user)
    try {
      this.#writeProfile(row.id, profile)
    } catch (error) {
      this.#users.forget(row.id)
      throw error
    }
    return this.#withProfile(row)
  }

  async update(ref: UserRef, patch: UserPatch): Promise<User> {
    return userOf(this.#users.update(ref, patch))
  }

  async updateWithProfile(
    ref: UserRef,
    { profile, ...patch }: UserPatch & { readonly profile?: ProfileValues },
  ): Promise<UserWithProfile> {
    const before = this.#users.target(ref)
    if (profile === undefined) return this.#withProfile(this.#users.update(ref, patch))
    const changes = Object.values(patch).some((value) => value !== undefined)
    const row = changes ? this.#users.update(ref, patch) : this.#users.write(before, {})
    try {
      this.#writeProfile(row.id, profile)
    } catch (error) {
      this.#users.replace(before)
      throw error
    }
    return this.#withProfile(row)
  }

  async updateLastLogin(id: string): Promise<User> {
    return userOf(this.#users.replace({ ...this.#users.get(id), lastLoginAt: this.#tables.now() }))
  }

  async delete(ref: UserRef): Promise<boolean> {
    return this.#users.remove(ref)
  }

  async restore(id: string): Promise<User> {
    return userOf(this.#users.restore(id))
  }

  get #users(): InMemoryTables['users'] {
    return this.#tables.users
  }

  async #insert({ email, username, name, role, password }: NewUser): Promise<UserRow> {
    const passwordHash = await this.#passwords.hash(password)
    return this.#users.insert({ email, username, name, role, passwordHash })
  }

  #writeProfile(userId: string, values: ProfileValues): Profile {
    const now = this.#tables.now()
    const empty: Profile = { bio: null, location: null, website: null, preferences: {}, createdAt: now, updatedAt: now }
    const given = Object.entries(values).filter(([, value]) => value !== undefined)
    const unknown = given.find(([name]) => !['bio', 'location', 'website', 'preferences'].includes(name))
    if (unknown !== undefined) throw invalidArgument('user_profiles', `${JSON.stringify(unknown[0])} cannot be set`)
    const before = this.#tables.profiles.get(userId) ?? empty
    return this.#tables.writeProfile(userId, { ...before, ...Object.fromEntries(given), updatedAt: now })
  }

  #withProfile(row: UserRow): UserWithProfile {
    const profile = this.#tables.profiles.get(row.id)
    return { ...userOf(row), profile: profile === undefined ? null : structuredClone(profile) }
  }

  #publishedBy(userId: string): Post[] {
    return this.#tables.posts.alive
      .filter((post) => post.authorId === userId)
      .filter((post) => this.#tables.isVisible(post))
      .toSorted(newestFirst((post) => post.publishedAt))
  }

  #meets(user: UserRow, { role, isActive, text, location, hasProfile, createdSince }: UserFilter): boolean {
    const profile = this.#tables.profiles.get(user.id)
    const roles: readonly string[] = role === undefined ? [user.role] : [role].flat()
    const texts = [user.email, user.username, user.name].map((value) => value.toLowerCase())
    return (
      roles.includes(user.role) &&
      (isActive === undefined || user.isActive === isActive) &&
      (text === undefined || texts.some((value) => value.includes(text.toLowerCase()))) &&
      (location === undefined || (typeof profile?.location === 'string' && isSame(profile.location, location))) &&
      (hasProfile === undefined || hasProfile === (profile !== undefined)) &&
      (createdSince === undefined || user.createdAt >= createdSince)
    )
  }
}

/** Hashes that cost nothing, for tests only. */
export const testPasswordHasher: PasswordHasher = {
  async hash(password) {
    if (typeof password !== 'string' || password === '' || Buffer.byteLength(password) > 1_024) {
      throw invalidArgument('users', 'a password must be text of 1 to 1024 bytes')
    }
    const salt = randomBytes(8).toString('hex')
    return `$test$${salt}$${digest(salt, password)}`
  },
  async verify(password, hash) {
    const [, , salt = '', kept = ''] = hash.split('$')
    if (typeof password !== 'string') return false
    return timingSafeEqual(Buffer.from(digest(salt, password)), Buffer.from(kept))
  },
}

function digest(salt: string, password: string): string {
  return createHash('sha256').update(salt).update(password).digest('hex')
}

function userOf({ passwordHash: _, ...user }: UserRow): User {
  return user
}

function isSame(a: string, b: unknown): boolean {
  return typeof b === 'string' && a.toLowerCase() === b.toLowerCase()
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0)
}

function page(rows: readonly UserRow[], after: UserPage['after'], limit: number): UserRow[] {
  return pageOf(rows, (row) => row.createdAt, after && { time: after.createdAt, id: after.id }, limit)
}

function checked(filter: UserFilter): UserFilter {
  const problem = problemOfFilter(filter)
  if (problem === undefined) return filter
  throw invalidArgument('users', problem)
}
