import { type Expression, type ExpressionBuilder, type SqlBool, sql } from 'kysely'
import { jsonArrayFrom, jsonObjectFrom } from 'kysely/helpers/postgres'
import { DatabaseError } from '../core/errors.ts'
import type { PasswordHasher } from '../domain/password-hasher.ts'
import {
  type NewUser,
  problemOfFilter,
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
import type { DB } from '../generated/schema.ts'
import type { QuerySource } from '../repository/query-source.ts'
import { Repository } from '../repository/repository.ts'
import { withDates } from './post-repository.ts'
import { ProfileRepository } from './profile-repository.ts'
import { scryptPasswordHasher } from './scrypt-password-hasher.ts'

const userColumns = {
  id: 'id',
  email: 'email',
  username: 'username',
  name: 'name',
  role: 'role',
  isActive: 'is_active',
  lastLoginAt: 'last_login_at',
  version: 'version',
  createdAt: 'created_at',
  updatedAt: 'updated_at',
  deletedAt: 'deleted_at',
} as const

/**
 * Users on PostgreSQL. A taken email or username is a `ConstraintViolationError` of `users_email_key` or
 * `users_username_key`, whatever the case of its letters. `create` is not for users, who need a password:
 * see {@link createUser}.
 *
 * @example
 * ```ts
 * import { createDatabase } from 'kanta'
 * import { type DB, UserRepository } from 'kanta/domain'
 *
 * await using database = await createDatabase<DB>()
 * const users = new UserRepository(database)
 * const ada = await users.findByEmail('Ada@example.org')
 * ```
 */
export class UserRepository extends Repository<DB, 'users', User, typeof userColumns> implements UserStore {
  private readonly passwords: PasswordHasher
  private decoyHash: string | undefined

  constructor(database: QuerySource<DB>, dependencies: { readonly passwordHasher?: PasswordHasher } = {}) {
    super(database, {
      table: 'users',
      columns: userColumns,
      version: 'version',
      updatedAt: 'updatedAt',
      deletedAt: 'deletedAt',
    })
    this.passwords = dependencies.passwordHasher ?? scryptPasswordHasher()
  }

  findByEmail(email: string): Promise<User | undefined> {
    return this.first((users) =>
      users
        .where((user) => sameLetters(user.fn('lower', ['users.email']), email))
        .where('users.deleted_at', 'is', null),
    )
  }

  findByUsername(username: string): Promise<User | undefined> {
    return this.first((users) =>
      users
        .where((user) => sameLetters(user.fn('lower', ['users.username']), username))
        .where('users.deleted_at', 'is', null),
    )
  }

  /** Does the work of a hash for unknown emails too, so that the time tells nobody which emails have accounts. */
  async findByCredentials(email: string, password: string): Promise<User | undefined> {
    const found = await this.select()
      .select('password_hash')
      .where((user) => sameLetters(user.fn('lower', ['users.email']), email))
      .where('is_active', '=', true)
      .where('deleted_at', 'is', null)
      .executeTakeFirst()
    if (found === undefined) {
      this.decoyHash ??= await this.passwords.hash('nobody has this password')
      await this.passwords.verify(password, this.decoyHash)
      return undefined
    }
    const { password_hash, ...user } = found
    return (await this.passwords.verify(password, password_hash)) ? user : undefined
  }

  /** Neither locked nor deleted, newest first. Pass the last one as `after` for the next page. */
  async findActiveUsers({ limit = 50, after }: UserPage = {}): Promise<User[]> {
    let query = this.select()
      // Not a parameter: the generic plan of a prepared statement could not use the index of active users only.
      .where('is_active', '=', sql.lit(true))
      .where('deleted_at', 'is', null)
      .orderBy('created_at', 'desc')
      .orderBy('id', 'desc')
      .limit(this.rowCount('limit', limit))
    if (after !== undefined) {
      query = query.where(
        (user) => sql<boolean>`${user.refTuple('created_at', 'id')} < (${after.createdAt}, ${after.id})`,
      )
    }
    return await query.execute()
  }

  /** One statement. */
  async findWithProfile(id: string): Promise<UserWithProfile | undefined> {
    const found = await this.select().select(profileOf).where(this.hasKey(id)).executeTakeFirst()
    return found && { ...found, profile: found.profile && withDates(found.profile) }
  }

  /** One statement. `INVALID_ARGUMENT` for a filter of another name. */
  async findManyWithProfiles(filter: UserFilter = {}): Promise<UserWithProfile[]> {
    const { role, isActive, text, location, hasProfile, createdSince, after, limit = 50 } = this.checked(filter)
    let query = this.select()
      .select(profileOf)
      .orderBy('users.created_at', 'desc')
      .orderBy('users.id', 'desc')
      .limit(this.rowCount('limit', limit))
    if (role !== undefined) {
      query = query.where(sql<SqlBool>`users.role = any(${Array.isArray(role) ? role : [role]}::user_role[])`)
    }
    if (isActive !== undefined) query = query.where('users.is_active', '=', isActive)
    if (text !== undefined) {
      const pattern = `%${text.replaceAll(/[\\%_]/g, '\\$&')}%`
      query = query.where((user) =>
        user.or((['email', 'username', 'name'] as const).map((name) => user(`users.${name}`, 'ilike', pattern))),
      )
    }
    if (location !== undefined) {
      query = query.where((user) =>
        user.exists(
          ofUser(user).where((profile) => sameLetters(profile.fn('lower', ['user_profiles.location']), location)),
        ),
      )
    }
    if (hasProfile !== undefined) {
      query = query.where((user) => (hasProfile ? user.exists(ofUser(user)) : user.not(user.exists(ofUser(user)))))
    }
    if (createdSince !== undefined) query = query.where('users.created_at', '>=', createdSince)
    if (after !== undefined) {
      query = query.where(
        (user) => sql<SqlBool>`${user.refTuple('users.created_at', 'users.id')} < (${after.createdAt}, ${after.id})`,
      )
    }
    const found = await query.execute()
    return found.map((user) => ({ ...user, profile: user.profile && withDates(user.profile) }))
  }

  /** One statement, however many users. */
  async loadUsersWithPosts(
    ids: readonly string[],
    { postsPerUser = 5 }: { readonly postsPerUser?: number } = {},
  ): Promise<(UserWithPosts | undefined)[]> {
    const limit = this.rowCount('postsPerUser', postsPerUser)
    const wanted = sql<{ id: string; place: string }>`unnest(${Array.from(ids)}::uuid[]) with ordinality`
    const rows = await this.select()
      .innerJoin(wanted.as<'wanted'>(sql`wanted(id, place)`), 'wanted.id', 'users.id')
      .select((user) => [
        user.cast<number>('wanted.place', 'integer').as('place'),
        jsonArrayFrom(
          publishedBy(user)
            .select(['posts.id', 'author_id as authorId', 'title', 'body', 'published_at as publishedAt'])
            .select(['posts.version', 'posts.created_at as createdAt', 'posts.updated_at as updatedAt'])
            .select('posts.deleted_at as deletedAt')
            .orderBy('posts.published_at', 'desc')
            .orderBy('posts.id', 'desc')
            .limit(limit),
        ).as('posts'),
      ])
      .execute()
    const users: (UserWithPosts | undefined)[] = ids.map(() => undefined)
    for (const { place, posts, ...user } of rows) {
      users[place - 1] = {
        ...user,
        // Published ones have that time, and none is deleted.
        posts: posts.map((post) => ({
          ...withDates(post),
          publishedAt: new Date(String(post.publishedAt)),
          deletedAt: null,
        })),
      }
    }
    return users
  }

  /** One statement. */
  async getUserStats(id: string): Promise<UserStats> {
    const found = await this.db
      .selectFrom('users')
      .where(this.hasKey(id))
      .where('users.deleted_at', 'is', null)
      .select((user) => [
        publishedBy(user).select(asCount).as('posts'),
        user.selectFrom('comments').whereRef('comments.author_id', '=', 'users.id').select(asCount).as('comments'),
        user.selectFrom('likes').whereRef('likes.user_id', '=', 'users.id').select(asCount).as('likesGiven'),
        publishedBy(user).innerJoin('likes', 'likes.post_id', 'posts.id').select(asCount).as('likesReceived'),
        validOrders(user).select(asCount).as('orders'),
        jsonArrayFrom(
          validOrders(user)
            .groupBy('orders.currency')
            .select((order) => [order.fn.sum<number>('orders.total_minor').as('amountMinor'), 'orders.currency'])
            .orderBy('orders.currency'),
        ).as('spent'),
      ])
      .executeTakeFirst()
    if (found === undefined) return this.missing()
    // A count always gives a row.
    return found as { [Property in keyof typeof found]: NonNullable<(typeof found)[Property]> }
  }

  async createUser(user: NewUser): Promise<User> {
    return this.insertUser(user, await this.passwords.hash(user.password))
  }

  async createWithProfile(user: NewUser, profile: ProfileValues): Promise<UserWithProfile> {
    // Before the transaction: hashing takes long, and a connection waits for nobody.
    const hash = await this.passwords.hash(user.password)
    return this.transaction(async (users) => {
      const created = await users.insertUser(user, hash)
      return { ...created, profile: await users.profiles().createFor(created.id, profile) }
    })
  }

  updateWithProfile(ref: UserRef, patch: UserPatch & { readonly profile?: ProfileValues }): Promise<UserWithProfile> {
    const { profile, ...changes } = patch
    return this.transaction(async (users) => {
      const changesUser = Object.values(changes).some((value) => value !== undefined)
      const user =
        changesUser || profile === undefined ? await users.update(ref, changes) : await users.countChange(ref)
      if (profile !== undefined) return { ...user, profile: await users.profiles().writeFor(user.id, profile) }
      return { ...user, profile: (await users.profiles().findFor(user.id)) ?? null }
    })
  }

  /** A login is not an edit: `version` and `updatedAt` stay. `NotFoundError` when there is no such user. */
  async updateLastLogin(id: string): Promise<User> {
    const user = await this.db
      .updateTable('users')
      .set({ last_login_at: sql<Date>`now()` })
      .where(this.hasKey(id))
      .where('users.deleted_at', 'is', null)
      .returning(this.selection)
      .executeTakeFirst()
    return user ?? this.missing()
  }

  private async insertUser(user: NewUser, password_hash: string): Promise<User> {
    const { email, username, name, role = 'member' } = user
    const insert = this.db.insertInto('users').values({ email, username, name, role, password_hash })
    return this.inserted(await insert.returning(this.selection).executeTakeFirst())
  }

  /** A change of what belongs to the user, and of no column: the next version, if nobody else has made it. */
  private async countChange(ref: UserRef): Promise<User> {
    const { id, version } = typeof ref === 'object' ? ref : { id: ref }
    let query = this.db
      .updateTable('users')
      .set({ version: sql<number>`users.version + 1`, updated_at: sql<Date>`now()` })
      .where(this.hasKey(id))
      .where('users.deleted_at', 'is', null)
    if (version !== undefined) query = query.where('users.version', '=', version)
    const user = await query.returning(this.selection).executeTakeFirst()
    if (user !== undefined) return user
    // Says why: there is no such user, or not of this version.
    await this.update(ref, {})
    return this.countChange(ref)
  }

  private profiles(): ProfileRepository {
    return new ProfileRepository({ db: this.db })
  }

  private checked(filter: UserFilter): UserFilter {
    const problem = problemOfFilter(filter)
    if (problem === undefined) return filter
    throw new DatabaseError('INVALID_ARGUMENT', `users: ${problem}.`, { table: 'users' })
  }
}

type OfUser = ExpressionBuilder<DB, 'users'>

function ofUser(user: OfUser) {
  return user.selectFrom('user_profiles').whereRef('user_profiles.user_id', '=', 'users.id').select('user_id')
}

function profileOf(user: OfUser) {
  return jsonObjectFrom(
    user
      .selectFrom('user_profiles as own')
      .whereRef('own.user_id', '=', 'users.id')
      .select(['own.bio', 'own.location', 'own.website'])
      .select(sql<Record<string, unknown>>`own.preferences`.as('preferences'))
      .select(['own.created_at as createdAt', 'own.updated_at as updatedAt']),
  ).as('profile')
}

function publishedBy(user: OfUser) {
  return user
    .selectFrom('posts')
    .whereRef('posts.author_id', '=', 'users.id')
    .where('posts.published_at', 'is not', null)
    .where('posts.deleted_at', 'is', null)
}

function validOrders(user: OfUser) {
  return user.selectFrom('orders').whereRef('orders.user_id', '=', 'users.id').where('orders.status', '<>', 'cancelled')
}

const asCount = sql<number>`count(*)::integer`.as('count')

/** As the unique indexes compare: PostgreSQL lowers both sides, by its own rules for letters. */
function sameLetters(lowered: Expression<unknown>, text: string): Expression<SqlBool> {
  return sql<SqlBool>`${lowered} = lower(${text})`
}
