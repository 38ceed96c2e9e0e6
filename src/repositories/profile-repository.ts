import { DatabaseError } from '../core/errors.ts'
import type { Profile, ProfileValues } from '../domain/user.ts'
import type { DB, JsonObject, JsonValue } from '../generated/schema.ts'
import type { QuerySource } from '../repository/query-source.ts'
import { Repository } from '../repository/repository.ts'

type OwnedProfile = Profile & { readonly userId: string }

const profileColumns = {
  userId: 'user_id',
  bio: 'bio',
  location: 'location',
  website: 'website',
  preferences: {
    column: 'preferences',
    // A CHECK of the table says that it is an object.
    fromColumn: (stored: JsonValue): Readonly<Record<string, unknown>> => stored as Record<string, unknown>,
    toColumn: (preferences: Readonly<Record<string, unknown>>): JsonObject => preferences as JsonObject,
  },
  createdAt: 'created_at',
  updatedAt: 'updated_at',
} as const

const writable: ReadonlySet<string> = new Set<keyof ProfileValues>(['bio', 'location', 'website', 'preferences'])

/** The profiles of users, as part of them. */
export class ProfileRepository extends Repository<DB, 'user_profiles', OwnedProfile, typeof profileColumns, 'userId'> {
  constructor(database: QuerySource<DB>) {
    super(database, { table: 'user_profiles', columns: profileColumns, key: 'userId', updatedAt: 'updatedAt' })
  }

  async findFor(userId: string): Promise<Profile | undefined> {
    const found = await this.findById(userId)
    return found && withoutOwner(found)
  }

  async createFor(userId: string, values: ProfileValues): Promise<Profile> {
    return withoutOwner(await this.create({ ...given(values), userId }))
  }

  async writeFor(userId: string, values: ProfileValues): Promise<Profile> {
    return withoutOwner(await this.upsert({ ...given(values), userId }, { conflict: ['userId'] }))
  }
}

type Given = { readonly [Property in keyof ProfileValues]?: Exclude<ProfileValues[Property], undefined> }

function given(values: ProfileValues): Given {
  const entries = Object.entries(values).filter(([, value]) => value !== undefined)
  const unknown = entries.find(([name]) => !writable.has(name))
  if (unknown === undefined) return Object.fromEntries(entries)
  throw new DatabaseError(
    'INVALID_ARGUMENT',
    `user_profiles: ${JSON.stringify(unknown[0].slice(0, 60))} cannot be set; there are ${[...writable].join(', ')}.`,
    { table: 'user_profiles' },
  )
}

function withoutOwner({ userId: _, ...profile }: OwnedProfile): Profile {
  return profile
}
