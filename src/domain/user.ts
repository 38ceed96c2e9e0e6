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

/** Which users of a list: the newest come first. */
export interface UserPage {
  /** @default 50 */
  readonly limit?: number
  /** The last user of the page before. */
  readonly after?: Pick<User, 'createdAt' | 'id'> | undefined
}

/** Where users are kept. Deleted users are not found. */
export interface UserStore {
  findById(id: string): Promise<User | undefined>
  /** Whatever the case of the letters. */
  findByEmail(email: string): Promise<User | undefined>
  /** Whatever the case of the letters. */
  findByUsername(username: string): Promise<User | undefined>
  /** The user with this email and password, if the account is neither locked nor deleted. */
  findByCredentials(email: string, password: string): Promise<User | undefined>
  findActiveUsers(page?: UserPage): Promise<User[]>
  createUser(user: NewUser): Promise<User>
  updateLastLogin(id: string): Promise<User>
}
