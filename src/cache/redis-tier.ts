import { randomBytes } from 'node:crypto'
import { DatabaseError } from '../core/errors.ts'
import type { RedisClient, RedisReply, Script } from '../redis/client.ts'
import { headerOf, marker, type StoredEntry, unpackEntry } from './entry.ts'
import type { Invalidation } from './invalidation-log.ts'

/** What was found under a key, or put there. */
export type Found =
  | { readonly kind: 'value'; readonly entry: StoredEntry; readonly leftMs: number }
  /** Nothing was there. Whoever got this may {@link RedisTier.fill} it with what it loads from now on. */
  | { readonly kind: 'lease'; readonly lease: Buffer }
  /** Another loads. */
  | { readonly kind: 'leased' }
  /** A transaction is about to commit. */
  | { readonly kind: 'held' }
  /** What was there could not be trusted, and is gone. */
  | { readonly kind: 'gone' }
  /** Something of another program, or nothing where no lease was asked for. */
  | { readonly kind: 'none' }

/** What a read finds, and by what clock. */
export interface Reading {
  readonly found: Found
  readonly now: ClockReading
}

/** The clock of the invalidations. */
export interface ClockReading {
  /** Of the last invalidation. */
  readonly clock: number
  /** Now: later than all that was invalidated. An entry whose loading begins now has this clock. */
  readonly present: number
  readonly floor: number
}

/** What {@link RedisTier.since} gives. */
export interface Replay extends Omit<ClockReading, 'present'> {
  readonly tags: ReadonlyMap<string, number>
}

/** An invalidation that Redis has. */
export interface Tick {
  readonly last: number
  readonly clock: number
  readonly floor: number
}

/** An invalidation as others hear of it. */
export interface TickMessage extends Tick {
  /** Of tags: later than `clock` where they are held. */
  readonly tagClock: number
  readonly what: Invalidation
}

// The clock is Redis' own time in microseconds, or one more than the last. When the set is lost, all that is older is invalid:
// a loss means an empty cache, never one that has come back.
const readClock = `
local t = redis.call('TIME')
local time = t[1] * 1000000 + t[2]
local function clockOf(inv)
  local clock = redis.call('ZSCORE', inv, '__clock')
  if not clock then
    clock = string.format('%.0f', time)
    redis.call('ZADD', inv, clock, '__clock', clock, '__floor')
  end
  return clock
end
local function reading(inv)
  local clock = clockOf(inv)
  local present = string.format('%.0f', math.max(time, tonumber(clock)))
  return clock, present, redis.call('ZSCORE', inv, '__floor') or clock
end
`

const magic = '\\0k'

/** KEYS: inv. */
const nowScript: Script = {
  name: 'kantaNow',
  lua: `${readClock} return {reading(KEYS[1])}`,
}

/**
 * KEYS: entry, and inv where it is on the same node and is wanted. ARGV: the lease to put there, or nothing, and its time. Without
 * inv, the present is the time alone: where that was set back, entries count as older than they are.
 */
const readScript: Script = {
  name: 'kantaRead',
  lua: `${readClock}
local clock, present, floor = '0', string.format('%.0f', time), '0'
if KEYS[2] then clock, present, floor = reading(KEYS[2]) end
local value = redis.pcall('GET', KEYS[1])
if type(value) == 'table' then return {'F', '', 0, clock, present, floor} end
if value then
  if string.sub(value, 2, 3) ~= '${magic}' then return {'F', '', 0, clock, present, floor} end
  local kind = string.sub(value, 1, 1)
  if kind == 'V' then return {'V', value, redis.call('PTTL', KEYS[1]), clock, present, floor} end
  return {kind, '', 0, clock, present, floor}
end
if ARGV[1] ~= '' then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return {'', '', 0, clock, present, floor}`,
}

/** KEYS: entry. ARGV: the beginning of what must be there, what takes its place or nothing, and its time. */
const swapScript: Script = {
  name: 'kantaSwap',
  lua: `
local value = redis.pcall('GET', KEYS[1])
if type(value) ~= 'string' or string.sub(value, 1, #ARGV[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('UNLINK', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1`,
}

/** KEYS: entries. ARGV: the hold of whoever invalidates, or nothing. What is another's hold, or not ours, stays. */
const dropScript: Script = {
  name: 'kantaDrop',
  lua: `
for _, key in ipairs(KEYS) do
  local value = redis.pcall('GET', key)
  if type(value) == 'string' and string.sub(value, 2, 3) == '${magic}' then
    if string.sub(value, 1, 1) ~= 'T' or value == ARGV[1] then redis.call('UNLINK', key) end
  end
end
return 1`,
}

/** KEYS: entries. ARGV: what to put there, and its time. What is not ours stays. */
const putScript: Script = {
  name: 'kantaPut',
  lua: `
for _, key in ipairs(KEYS) do
  local value = redis.pcall('GET', key)
  if not value or (type(value) == 'string' and string.sub(value, 2, 3) == '${magic}') then
    redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
  end
end
return 1`,
}

// Entries live no longer than that, so what was invalidated before need not be remembered.
const pruneEvery = 256

/** KEYS: inv. ARGV: channel, hold in µs, whether the floor rises, the longest life of an entry in µs, the message, tags. */
const tickScript: Script = {
  name: 'kantaTick',
  lua: `${readClock}
local last = clockOf(KEYS[1])
local clock = string.format('%.0f', math.max(tonumber(last) + 1, time))
local tagClock = string.format('%.0f', tonumber(clock) + ARGV[2])
redis.call('ZADD', KEYS[1], clock, '__clock')
if ARGV[3] == '1' then redis.call('ZADD', KEYS[1], clock, '__floor') end
for i = 6, #ARGV do redis.call('ZADD', KEYS[1], 'GT', tagClock, ARGV[i]) end
local floor = redis.call('ZSCORE', KEYS[1], '__floor')
if clock % ${pruneEvery} == 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. string.format('%.0f', time - ARGV[4]))
  redis.call('ZADD', KEYS[1], clock, '__clock', floor, '__floor')
end
redis.call('PUBLISH', ARGV[1], last .. ' ' .. clock .. ' ' .. tagClock .. ' ' .. floor .. ' ' .. ARGV[5])
return {last, clock, floor, tagClock}`,
}

/** KEYS: inv. ARGV: a clock. */
const sinceScript: Script = {
  name: 'kantaSince',
  lua: `${readClock}
local clock, present, floor = reading(KEYS[1])
return {clock, present, floor, redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. ARGV[1], '+inf', 'WITHSCORES')}`,
}

/** Told apart from those of all other processes, without asking for randomness each time. */
const leaseOwner = `${randomBytes(12).toString('base64')} `

// A script holds Redis up for as long as it runs, and its stack takes only so many arguments.
const keysAtOnce = 1_000

/** The values that all processes of a namespace share, in Redis. */
export class RedisTier {
  /** Where invalidations are told. */
  readonly channel: string
  readonly #client: RedisClient
  readonly #prefix: string
  readonly #locks: string
  readonly #inv: string
  readonly #leaseMs: number
  readonly #maxLifeMs: number
  /** By how much the time of Redis is ahead of that of this process. */
  #aheadUs: number | undefined = undefined
  #leases = 0

  constructor(
    client: RedisClient,
    namespace: string,
    settings: { readonly leaseMs: number; readonly maxLifeMs: number },
  ) {
    this.#client = client
    this.#prefix = `${namespace}:e:`
    this.#locks = `${namespace}:r:`
    this.#inv = `${namespace}:inv`
    this.channel = `${namespace}:invalidations`
    this.#leaseMs = settings.leaseMs
    this.#maxLifeMs = settings.maxLifeMs
    for (const script of [nowScript, readScript, swapScript, dropScript, putScript, tickScript, sinceScript]) {
      client.define(script)
    }
  }

  get isReady(): boolean {
    return this.#client.isReady
  }

  async now(): Promise<ClockReading> {
    return this.#noted(clockIn(await this.#client.call(nowScript.name, 1, this.#inv)))
  }

  /**
   * About what time it is in Redis, in microseconds: for ends of times, not for what was before what. It is behind by no more than
   * an answer takes. `undefined` before Redis was ever asked.
   */
  get time(): number | undefined {
    return this.#aheadUs === undefined ? undefined : performance.now() * 1_000 + this.#aheadUs
  }

  /** A fresh entry, by the cheapest command there is; whatever else there is, is for {@link acquire} to say. */
  async getFresh(key: string): Promise<{ readonly entry: StoredEntry; readonly leftMs: number } | undefined> {
    const { time } = this
    if (time === undefined) return undefined
    const bytes = await this.#client.call('get', this.#keyOf(key)).catch(unlessRefused)
    const entry = Buffer.isBuffer(bytes) ? unpackEntry(bytes) : 'foreign'
    if (typeof entry === 'string') return undefined
    const leftMs = (entry.expires - time) / 1_000
    return leftMs > entry.graceMs ? { entry, leftMs } : undefined
  }

  /**
   * Reads an entry, and where there is none leaves a lease. Who hears of all invalidations need not be told of the last and of
   * the floor.
   */
  async acquire(key: string, hearsAll: boolean): Promise<Reading> {
    this.#leases += 1
    return this.#read(key, marker('L', `${leaseOwner}${this.#leases}`), !hearsAll)
  }

  /** Reads an entry. */
  async look(key: string): Promise<Reading> {
    return this.#read(key, Buffer.alloc(0), true)
  }

  /** Puts a value in the place of its lease, or of the entry with this header. False when that is no longer there. */
  async swap(key: string, expected: Buffer, entry: Buffer, lifeMs: number): Promise<boolean> {
    return (await this.#client.call(swapScript.name, 1, this.#keyOf(key), expected, entry, whole(lifeMs))) === 1
  }

  /** Takes away exactly that entry or lease: something else may have come in its place. */
  async discard(key: string, expected: Buffer): Promise<void> {
    await this.#client.call(swapScript.name, 1, this.#keyOf(key), expected, '', 0)
  }

  /** Puts a value there, whatever there was. */
  async put(key: string, entry: Buffer, lifeMs: number): Promise<void> {
    await this.#client.call(putScript.name, 1, this.#keyOf(key), entry, whole(lifeMs))
  }

  /** Takes what may be done by one only; false when another has it. */
  async lock(key: string, holdMs: number): Promise<boolean> {
    return (await this.#client.call('set', this.#locks + key, '', 'PX', whole(holdMs), 'NX')) !== null
  }

  async unlock(key: string): Promise<void> {
    await this.#client.call('unlink', this.#locks + key)
  }

  /**
   * Ends what the invalidation names, in all processes. Both parts go out together: an entry that is read in between is older
   * than the message says, and a lease that is given in between is taken away.
   */
  async invalidate(what: Invalidation, owner = ''): Promise<Tick> {
    const drop = owner === '' ? '' : marker('T', owner)
    const [tick] = await Promise.all([
      this.#tick(what, 0),
      ...this.#batches(what.keys).map((keys) => this.#client.call(dropScript.name, keys.length, ...keys, drop)),
      ...what.patterns.map((pattern) => this.#dropMatching(pattern)),
    ])
    return tick
  }

  /** Nothing of it is cached for so long: what is read meanwhile may be what a transaction is about to change. */
  async hold(what: Invalidation, owner: string, holdMs: number): Promise<void> {
    const held = marker('T', owner)
    await Promise.all([
      this.#tick(what, holdMs),
      ...this.#batches(what.keys).map((keys) =>
        this.#client.call(putScript.name, keys.length, ...keys, held, whole(holdMs)),
      ),
    ])
  }

  /** The invalidations after a clock. Of keys there is no record: their entries are gone. */
  async since(clock: number): Promise<Replay> {
    const [clockNow, present, floor, list] = (await this.#client.call(
      sinceScript.name,
      1,
      this.#inv,
      String(clock),
    )) as RedisReply[]
    this.#noted(clockIn([clockNow, present, floor] as RedisReply))
    const tags = new Map<string, number>()
    const flat = list as RedisReply[]
    for (let index = 0; index < flat.length; index += 2) {
      const name = String(flat[index])
      if (name.startsWith('t:')) tags.set(name.slice(2), Number(flat[index + 1]))
    }
    return { clock: Number(clockNow), floor: Number(floor), tags }
  }

  /** The latest clock of any of these tags, for whoever does not hear of invalidations. */
  async latestOf(tags: readonly string[]): Promise<number> {
    const scores = (await this.#client.call('zmscore', this.#inv, ...tags.map(memberOf))) as RedisReply[]
    return Math.max(0, ...scores.map((score) => (score === null ? 0 : Number(score))))
  }

  async #read(key: string, lease: Buffer, withClock: boolean): Promise<Reading> {
    const entry = this.#keyOf(key)
    const isSplit = withClock && this.#client.isCluster
    const keys = withClock && !isSplit ? [entry, this.#inv] : [entry]
    const [reply, clock] = await Promise.all([
      this.#client.call(readScript.name, keys.length, ...keys, lease, whole(this.#leaseMs)),
      isSplit ? this.now() : undefined,
    ])
    const [kind, bytes, leftMs, ...reading] = reply as [Buffer, Buffer, number, ...RedisReply[]]
    const now = clock ?? this.#noted(clockIn(reading))
    switch (kind.toString()) {
      case 'V':
        return { found: await this.#unpacked(key, bytes, leftMs), now }
      case 'L':
        return { found: { kind: 'leased' }, now }
      case 'T':
        return { found: { kind: 'held' }, now }
      case '':
        return { found: lease.length === 0 ? { kind: 'none' } : { kind: 'lease', lease }, now }
      default:
        return { found: { kind: 'none' }, now }
    }
  }

  #noted(reading: ClockReading): ClockReading {
    this.#aheadUs = reading.present - performance.now() * 1_000
    return reading
  }

  async #unpacked(key: string, bytes: Buffer, leftMs: number): Promise<Found> {
    const entry = unpackEntry(bytes)
    if (typeof entry !== 'string') return { kind: 'value', entry, leftMs }
    if (entry === 'foreign') return { kind: 'none' }
    // Of another version of kanta, or changed on its way.
    await this.discard(key, headerOf(bytes))
    return { kind: 'gone' }
  }

  async #tick(what: Invalidation, holdMs: number): Promise<Tick & { readonly tagClock: number }> {
    const { keys, tags, patterns, all = false } = what
    const message = JSON.stringify({ keys, tags, patterns, all })
    const [last, clock, floor, tagClock] = (await this.#client.call(
      tickScript.name,
      1,
      this.#inv,
      this.channel,
      Math.ceil(holdMs * 1_000),
      all ? '1' : '0',
      whole(this.#maxLifeMs * 1_000),
      message,
      ...tags.map(memberOf),
    )) as RedisReply[]
    return { last: Number(last), clock: Number(clock), floor: Number(floor), tagClock: Number(tagClock) }
  }

  /** By SCAN, a little at a time: KEYS would hold Redis up. */
  async #dropMatching(pattern: string): Promise<void> {
    await this.#client.scan(escapeGlob(this.#prefix) + pattern, async (keys) => {
      for (const batch of this.#client.isCluster ? keys.map((key) => [key]) : [keys]) {
        await this.#client.call(dropScript.name, batch.length, ...batch, '')
      }
    })
  }

  #batches(keys: readonly string[]): string[][] {
    const names = keys.map((key) => this.#keyOf(key))
    const size = this.#client.isCluster ? 1 : keysAtOnce
    return Array.from({ length: Math.ceil(names.length / size) }, (_, index) =>
      names.slice(index * size, (index + 1) * size),
    )
  }

  #keyOf(key: string): string {
    return this.#prefix + key
  }
}

/** What another program has under a key is no failure. */
function unlessRefused(error: unknown): undefined {
  if (error instanceof DatabaseError) throw error
}

/** What a message says; nothing for one that is none of ours. */
export function readTickMessage(message: Buffer): TickMessage | undefined {
  const [, last, clock, tagClock, floor, body] = /^(\d+) (\d+) (\d+) (\d+) (\{.*)$/s.exec(message.toString()) ?? []
  if (body === undefined) return undefined
  try {
    const what = JSON.parse(body) as Invalidation
    return { last: Number(last), clock: Number(clock), tagClock: Number(tagClock), floor: Number(floor), what }
  } catch {
    return undefined
  }
}

function clockIn(reply: RedisReply): ClockReading {
  const [clock, present, floor] = reply as RedisReply[]
  return { clock: Number(clock), present: Number(present), floor: Number(floor) }
}

/** Beside the two that are ours. */
function memberOf(tag: string): string {
  return `t:${tag}`
}

function escapeGlob(text: string): string {
  return text.replaceAll(/[\\*?[\]]/g, '\\$&')
}

function whole(milliseconds: number): string {
  return String(Math.max(1, Math.ceil(milliseconds)))
}
