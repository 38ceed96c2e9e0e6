/** Databases that share a cache, and what is loaded into it. */

import { AsyncResource } from 'node:async_hooks'
import { randomBytes } from 'node:crypto'
import { sql } from 'kysely'
import { inject, vi } from 'vitest'
import { type CacheOptions, createDatabase, type Database } from '../../src/index.ts'
import { closeAfterTest, freshDatabaseUrl } from './database.ts'

/** One table with a row for each of two items. */
export interface Tables {
  items: { id: number; version: number }
}

/** The tiers and codecs on which the same has to hold. */
export const kinds = {
  'memory alone': { redis: false, cache: {} },
  'memory and Redis': { redis: true, cache: { codec: 'msgpack' } },
  'memory and Redis, in JSON, all of it compressed': { redis: true, cache: { codec: 'json', compressAboveBytes: 0 } },
} as const

/** What a cache is made of. */
export interface Setting {
  readonly redis: boolean | string
  readonly cache: CacheOptions
}

/** Opens databases that share a cache; resolves when each hears of what the others invalidate. */
export async function open({ redis, cache }: Setting, count = 1, url?: string): Promise<Database<Tables>[]> {
  const postgresUrl = url ?? (await freshDatabaseUrl('empty'))
  const namespace = `test-${randomBytes(6).toString('hex')}`
  const databases = await Promise.all(
    Array.from({ length: count }, () =>
      createDatabase<Tables>({
        postgres: { url: postgresUrl, pipeline: false, pool: { max: 3 } },
        redis: redis === false ? false : { url: redis === true ? inject('redisUrl') : redis, commandTimeoutMs: 300 },
        cache: { namespace, ...cache },
        logger: { info: () => undefined, warn: () => undefined },
      }),
    ),
  )
  for (const database of databases) closeAfterTest(database)
  const [first] = databases
  await first?.query(sql`create table if not exists items (id int primary key, version int not null)`)
  await first?.query(sql`insert into items values (1, 1), (2, 1) on conflict do nothing`)
  await vi.waitUntil(() => databases.every((database) => database.cache.stats().isTrusted))
  return databases
}

/** {@link open} for one. */
export async function one(setting: Setting): Promise<Database<Tables>> {
  const [database] = await open(setting)
  return database as Database<Tables>
}

/** {@link open} for two. */
export async function two(setting: Setting): Promise<readonly [Database<Tables>, Database<Tables>]> {
  return (await open(setting, 2)) as unknown as readonly [Database<Tables>, Database<Tables>]
}

const root = new AsyncResource('outside')
/** Runs a call as another request would make it, outside the transaction that surrounds it. */
export const outside = <T>(work: () => T): T => root.runInAsyncScope(work)

/** The usual one. */
export const inRedis: Setting = kinds['memory and Redis']

/** A function to load with, and how often it was called. */
export function loader<T>(...values: readonly T[]): { (): Promise<T>; calls: number } {
  const load = async (): Promise<T> => {
    const value = values[Math.min(load.calls, values.length - 1)] as T
    load.calls += 1
    return value
  }
  load.calls = 0
  return load
}

/** One that waits until it is told what to give. */
export function waitingLoader<T>(): {
  readonly load: () => Promise<T>
  readonly began: Promise<void>
  give(value: T): void
  fail(error: Error): void
} {
  const began = Promise.withResolvers<void>()
  const value = Promise.withResolvers<T>()
  return {
    load() {
      began.resolve()
      return value.promise
    },
    began: began.promise,
    give: value.resolve,
    fail: value.reject,
  }
}
