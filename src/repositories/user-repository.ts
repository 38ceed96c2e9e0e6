import { type Expression, type SqlBool, sql } from 'kysely'
import type { PasswordHasher } from '../domain/password-hasher.ts'
import type { NewUser, User, UserPage, UserStore } from '../domain/user.ts'
import type { DB } from '../generated/schema.ts'
import type { QuerySource } from '../repository/query-source.ts'
import { Repository } from '../repository/repository.ts'
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

  async createUser(user: NewUser): Promise<User> {
    const password_hash = await this.passwords.hash(user.password)
    const { email, username, name, role = 'member' } = user
    const insert = this.db.insertInto('users').values({ email, username, name, role, password_hash })
    return this.inserted(await insert.returning(this.selection).executeTakeFirst())
  }

  /** A login is not an edit: `version` and `updatedAt` stay. `NotFoundError` when there is no such user. */
  async updateLastLogin(id: string): Promise<User> {
    const user = await this.db
      .updateTable('users')
      .set({ last_login_at: sql<Date>`now()` })
      .where(this.hasKey(id))
      .returning(this.selection)
      .executeTakeFirst()
    return user ?? this.missing()
  }
}

/** As the unique indexes compare: PostgreSQL lowers both sides, by its own rules for letters. */
function sameLetters(lowered: Expression<unknown>, text: string): Expression<SqlBool> {
  return sql<SqlBool>`${lowered} = lower(${text})`
}
