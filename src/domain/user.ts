import type { Post } from './post.ts'

export type UserRole = 'member' | 'staff' | 'admin'

/** Somebody who can log in. The password's hash is not part of it, so that it is never sent along by accident. */
export interface User {
  readonly id: string
  /** As typed by its owner; unique whatever its case. */
  readonly email: string
  /** The public handle; unique whatever its case. */
  readonly username: string
  readonly name: string
  readonly role: UserRole
  /** False while the account is locked. */
  readonly isActive: boolean
  readonly lastLoginAt: Date | null
  readonly version: number
  readonly createdAt: Date
  readonly updatedAt: Date
  readonly deletedAt: Date | null
}

export interface NewUser {
  readonly email: string
  readonly username: string
  readonly name: string
  readonly password: string
  /** @default 'member' */
  readonly role?: UserRole
}

/** What of a user may be changed. What is left out stays. */
export interface UserPatch {
  readonly email?: string
  readonly username?: string
  readonly name?: string
  readonly role?: UserRole
  readonly isActive?: boolean
}

/** A user by id, or as it was read: then only if nobody has changed it since. */
export type UserRef = string | (Pick<User, 'id'> & Partial<User>)

/** What users tell about themselves. */
export interface Profile {
  readonly bio: string | null
  readonly location: string | null
  /** An address that begins with http:// or https://. */
  readonly website: string | null
  /** Settings of the user interface. */
  readonly preferences: Readonly<Record<string, unknown>>
  readonly createdAt: Date
  readonly updatedAt: Date
}

/** What of a profile can be written. What is left out stays, or is empty in a new one; `preferences` are replaced as a whole. */
export interface ProfileValues {
  readonly bio?: string | null | undefined
  readonly location?: string | null | undefined
  readonly website?: string | null | undefined
  readonly preferences?: Readonly<Record<string, unknown>> | undefined
}

export interface UserWithProfile extends User {
  /** Null until there is one. */
  readonly profile: Profile | null
}

/** Which users of a list: the newest come first. */
export interface UserPage {
  /** @default 50 */
  readonly limit?: number
  /** The last user of the page before. */
  readonly after?: Pick<User, 'createdAt' | 'id'> | undefined
}

/** Which users: those that meet all that is given. Deleted ones never do. */
export interface UserFilter extends UserPage {
  readonly role?: UserRole | readonly UserRole[] | undefined
  readonly isActive?: boolean | undefined
  /** A part of the email, username or name, whatever its case; no character has a meaning of its own. */
  readonly text?: string | undefined
  /** Of the profile, whatever its case. */
  readonly location?: string | undefined
  readonly hasProfile?: boolean | undefined
  /** This moment is part of it. */
  readonly createdSince?: Date | undefined
}

export interface UserWithPosts extends User {
  /** Published ones, newest first. */
  readonly posts: readonly Post[]
}

/** An amount in the smallest unit of a currency. */
export interface Money {
  readonly amountMinor: number
  /** ISO 4217, for instance EUR. */
  readonly currency: string
}

/** What a user has done so far. */
export interface UserStats {
  /** Published ones that were not withdrawn. */
  readonly posts: number
  readonly comments: number
  readonly likesGiven: number
  /** On the posts that are counted. */
  readonly likesReceived: number
  /** Without cancelled ones. */
  readonly orders: number
  /** What these orders were worth, by currency in alphabetical order. */
  readonly spent: readonly Money[]
}

/** Where users are kept. Users that were deleted are not found, and their email and username stay taken. */
export interface UserStore {
  findById(id: string): Promise<User | undefined>
  getById(id: string): Promise<User>
  /** Whatever the case of the letters. */
  findByEmail(email: string): Promise<User | undefined>
  /** Whatever the case of the letters. */
  findByUsername(username: string): Promise<User | undefined>
  /** The user with this email and password, if the account is neither locked nor deleted. */
  findByCredentials(email: string, password: string): Promise<User | undefined>
  findActiveUsers(page?: UserPage): Promise<User[]>
  findWithProfile(id: string): Promise<UserWithProfile | undefined>
  findManyWithProfiles(filter?: UserFilter): Promise<UserWithProfile[]>
  /** For each id, in the order of the ids, the user with the newest posts; `undefined` where there is no such user. */
  loadUsersWithPosts(
    ids: readonly string[],
    options?: { readonly postsPerUser?: number },
  ): Promise<(UserWithPosts | undefined)[]>
  /** `NOT_FOUND` when there is no such user. */
  getUserStats(id: string): Promise<UserStats>
  createUser(user: NewUser): Promise<User>
  /** Both or none. */
  createWithProfile(user: NewUser, profile: ProfileValues): Promise<UserWithProfile>
  update(ref: UserRef, patch: UserPatch): Promise<User>
  /**
   * Changes user and profile together, and makes the profile where there is none. The version of the user counts changes of the
   * profile too. `NOT_FOUND`; `VERSION_CONFLICT` for a user who was read and has changed since.
   */
  updateWithProfile(ref: UserRef, patch: UserPatch & { readonly profile?: ProfileValues }): Promise<UserWithProfile>
  /** A login is not an edit: `version` and `updatedAt` stay. `NOT_FOUND` when there is no such user. */
  updateLastLogin(id: string): Promise<User>
  /** False when there was no such user. */
  delete(ref: UserRef): Promise<boolean>
  restore(id: string): Promise<User>
}

const filterNames: ReadonlySet<string> = new Set<keyof UserFilter>([
  'role',
  'isActive',
  'text',
  'location',
  'hasProfile',
  'createdSince',
  'limit',
  'after',
])

/** What is wrong with a filter as it may come out of a request: one that is misspelled must not find everything. */
export function problemOfFilter(filter: UserFilter): string | undefined {
  if (typeof filter !== 'object' || filter === null) return 'a filter must be a plain object'
  const unknown = Object.keys(filter).some((name) => !filterNames.has(name))
  if (unknown) return `a filter has a name that is none; there are ${[...filterNames].join(', ')}`
  const isText = [filter.text, filter.location].every((value) => value === undefined || typeof value === 'string')
  if (!isText) return 'text and location must be strings'
  const isSwitch = [filter.isActive, filter.hasProfile].every((on) => on === undefined || typeof on === 'boolean')
  return isSwitch ? undefined : 'isActive and hasProfile must be true or false'
}
