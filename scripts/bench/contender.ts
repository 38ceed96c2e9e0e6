/** What a library must do to take part, and which libraries do. */

import type { Comment, NewComment, Payment, PostWithAuthor, User } from './data-set.ts'

/** How a contender connects. */
export interface ContenderSettings {
  readonly url: string
  /** Connections it may hold, all told. Idle ones are kept, so that nobody reconnects in a round. */
  readonly connections: number
  /** To be set on its connections: the report counts them by it. */
  readonly applicationName: string
}

/**
 * The work, written the way the library's own guide writes it, in as few statements as it can. One that a library
 * cannot do is left out and shows as "–".
 */
export interface Operations {
  /** One user by primary key. */
  readonly readUser?: (id: number) => Promise<User | null | undefined>
  /** The 50 newest posts before a key with the names of their authors, in one statement. */
  readonly readPage?: (before: number) => Promise<readonly PostWithAuthor[]>
  /** The 1 000 payments after a key, one column of each common type. */
  readonly readExport?: (after: number) => Promise<readonly Payment[]>
  /** One insert that gives back the whole row with what the server filled in. */
  readonly addComment?: (comment: NewComment) => Promise<Comment>
  /** Two updates in one transaction. */
  readonly payOrder?: (orderId: number, userId: number) => Promise<void>
  close(): Promise<void>
}

/** Connects, within the limits of the settings. */
export type OpenContender = (settings: ContenderSettings) => Promise<Operations>

interface ContenderEntry {
  /** Whose version the report shows; undefined for this package. */
  readonly package: string | undefined
  load(): Promise<OpenContender>
}

export type ContenderName =
  | 'kanta'
  | 'kanta-prepared'
  | 'pg'
  | 'pg-named'
  | 'postgres.js'
  | 'kysely'
  | 'drizzle'
  | 'knex'
  | 'typeorm'
  | 'sequelize'
  | 'mikro-orm'

/** All contenders in the order of the report. */
export const contenders: Readonly<Record<ContenderName, ContenderEntry>> = {
  kanta: { package: undefined, load: async () => (await import('./contenders/kanta.ts')).openKanta },
  'kanta-prepared': { package: undefined, load: async () => (await import('./contenders/kanta.ts')).openKantaPrepared },
  pg: { package: 'pg', load: async () => (await import('./contenders/pg.ts')).openPg },
  'pg-named': { package: 'pg', load: async () => (await import('./contenders/pg.ts')).openPgNamed },
  'postgres.js': {
    package: 'postgres',
    load: async () => (await import('./contenders/postgres-js.ts')).openPostgresJs,
  },
  kysely: { package: 'kysely', load: async () => (await import('./contenders/kysely.ts')).openKysely },
  drizzle: { package: 'drizzle-orm', load: async () => (await import('./contenders/drizzle.ts')).openDrizzle },
  knex: { package: 'knex', load: async () => (await import('./contenders/knex.ts')).openKnex },
  typeorm: { package: 'typeorm', load: async () => (await import('./contenders/typeorm.ts')).openTypeOrm },
  sequelize: { package: 'sequelize', load: async () => (await import('./contenders/sequelize.ts')).openSequelize },
  'mikro-orm': {
    package: '@mikro-orm/core',
    load: async () => (await import('./contenders/mikro-orm.ts')).openMikroOrm,
  },
}

export const contenderNames: readonly ContenderName[] = Object.keys(contenders) as ContenderName[]

/** What every ratio is taken against. */
export const baseline: ContenderName = 'pg'
