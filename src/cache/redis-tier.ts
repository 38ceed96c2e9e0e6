import { randomBytes } from 'node:crypto'
import type { RedisClient, RedisReply, Script } from '../redis/client.ts'
import { Batch } from './batch.ts'
import { headerOf, headerSize, marker, type StoredEntry, unpackEntry } from './entry.ts'
import type { Invalidation } from './invalidation-log.ts'

/** What was found under a key, or put there. */
export type Found =
  | { readonly kind: 'value'; readonly entry: StoredEntry; readonly leftMs: number }
  /** Nothing was there. Whoever got this may {@link RedisTier.fill} it with what it loads from now on. */
  | { readonly kind: 'lease'; readonly lease: string }
  /** Another loads. */
  | { readonly kind: 'leased' }
  /** A transaction is about to commit. */
  | { readonly kind: 'held' }
  /** What was there could not be trusted, and is gone. */
  | { readonly kind: 'gone' }
  /** Something of another program, or nothing where no lease was asked for. */
  | { readonly kind: 'none' }

/** A value, and how long Redis keeps it. */
export interface FreshEntry {
  readonly entry: StoredEntry
  readonly leftMs: number
}

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
  /** Of tags: later than `clock` where they are held. */
  readonly tagClock: number
  /** Of each check: it was invalidated by another. */
  readonly changed: readonly boolean[]
}

/** An invalidation as others hear of it. */
export interface TickMessage extends Omit<Tick, 'changed'> {
  readonly what: Invalidation
}

/** Asks whether a tag was invalidated after a clock. */
export interface TagCheck {
  readonly tag: string
  readonly since: number
}

/** How {@link RedisTier.invalidate} goes about it. */
export interface InvalidateSettings {
  /** Whose hold may be taken away, too. */
  readonly owner?: string | undefined
  /** Keys whose entries stay, since what comes in their place is up to date. */
  readonly kept?: ReadonlySet<string> | undefined
  readonly checks?: readonly TagCheck[] | undefined
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

/** Without memory for more, Redis still has what it has; every other error is one. */
const refusedBy = (answer: string): string =>
  `if ${answer}.err and not string.find(${answer}.err, 'OOM', 1, true) then return ${answer} end`

/** KEYS: inv. */
const nowScript: Script = {
  name: 'kantaNow',
  lua: `${readClock} return {reading(KEYS[1])}`,
}

/**
 * KEYS: entries, and inv last where ARGV[1] is 1: in a cluster it may be on another node. ARGV: that, the lease to leave where there
 * is nothing, or nothing, and its time. Gives the clock, and of each entry what it is: the value, or one letter.
 */
const readScript: Script = {
  name: 'kantaRead',
  lua: `${readClock}
local count, clock, present, floor = #KEYS, '0', '0', '0'
if ARGV[1] == '1' then
  clock, present, floor = reading(KEYS[count])
  count = count - 1
end
local found = {clock, present, floor}
local values = redis.call('MGET', unpack(KEYS, 1, count))
for index = 1, count do
  local value = values[index]
  local kind = ''
  if value then
    local first, second, third = string.byte(value, 1, 3)
    if second ~= 0 or third ~= 107 then kind = 'F' elseif first == 86 then kind = value else kind = string.char(first) end
  elseif ARGV[2] ~= '' then
    -- What is no string of another program is there and is not given.
    local answer = redis.pcall('SET', KEYS[index], ARGV[2], 'PX', ARGV[3], 'NX')
    if answer and answer.err then ${refusedBy('answer')} end
    if not answer or answer.err then kind = 'F' end
  end
  found[index + 3] = kind
end
return found`,
}

/** KEYS: entries. ARGV of each: the beginning of what must be there, what takes its place or nothing, and its time. */
const swapScript: Script = {
  name: 'kantaSwap',
  lua: `
local done = {}
for index, key in ipairs(KEYS) do
  local expected, entry, life = ARGV[3 * index - 2], ARGV[3 * index - 1], ARGV[3 * index]
  local value = redis.pcall('GET', key)
  done[index] = 0
  if type(value) == 'string' and string.sub(value, 1, #expected) == expected then
    local answer = entry == '' and {ok = redis.call('UNLINK', key)} or redis.pcall('SET', key, entry, 'PX', life)
    ${refusedBy('answer')}
    if answer.ok then done[index] = 1 end
  end
end
return done`,
}

/** Takes an entry away, or a lease. What is the hold of another than `owner`, or not ours, stays. */
const dropOne = `
local function drop(key, owner)
  local value = redis.pcall('GET', key)
  if type(value) ~= 'string' or string.sub(value, 2, 3) ~= '${magic}' then return end
  if string.sub(value, 1, 1) ~= 'T' or value == owner then redis.call('UNLINK', key) end
end
`

/** KEYS: entries. ARGV: the hold of whoever invalidates, or nothing. */
const dropScript: Script = {
  name: 'kantaDrop',
  lua: `${dropOne}
for _, key in ipairs(KEYS) do drop(key, ARGV[1]) end
return 1`,
}

/**
 * KEYS: entry. ARGV: a lease, and its time. Gives the clock, and the beginning of the entry that is there; or leaves the lease where
 * there is none, also in the place of another's, and gives that.
 */
const reserveScript: Script = {
  name: 'kantaReserve',
  lua: `
local value = redis.pcall('GET', KEYS[1])
if value then
  if type(value) ~= 'string' or string.sub(value, 2, 3) ~= '${magic}' then return '' end
  local kind = string.sub(value, 1, 1)
  if kind == 'V' then return string.sub(value, 1, ${headerSize}) end
  if kind == 'T' then return '' end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]`,
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

/**
 * KEYS: inv, and entries to take away. ARGV: channel, hold in µs, whether the floor rises, the longest life of an entry in µs, the
 * message, whose hold may be taken away, how many tags, those, and pairs of a tag and a clock: whether it was invalidated
 * later than that is told of each.
 */
const tickScript: Script = {
  name: 'kantaTick',
  lua: `${readClock}${dropOne}
for index = 2, #KEYS do drop(KEYS[index], ARGV[6]) end
local last = clockOf(KEYS[1])
local clock = string.format('%.0f', math.max(tonumber(last) + 1, time))
local tagClock = string.format('%.0f', tonumber(clock) + ARGV[2])
local behindTags = 8 + ARGV[7]
local changed = {}
for index = behindTags, #ARGV, 2 do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[index])
  changed[#changed + 1] = score and tonumber(score) > tonumber(ARGV[index + 1]) and 1 or 0
end
redis.call('ZADD', KEYS[1], clock, '__clock')
if ARGV[3] == '1' then redis.call('ZADD', KEYS[1], clock, '__floor') end
for index = 8, behindTags - 1 do redis.call('ZADD', KEYS[1], 'GT', tagClock, ARGV[index]) end
local floor = redis.call('ZSCORE', KEYS[1], '__floor')
if clock % ${pruneEvery} == 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. string.format('%.0f', time - ARGV[4]))
  redis.call('ZADD', KEYS[1], clock, '__clock', floor, '__floor')
end
redis.call('PUBLISH', ARGV[1], last .. ' ' .. clock .. ' ' .. tagClock .. ' ' .. floor .. ' ' .. ARGV[5])
return {last, clock, floor, tagClock, changed}`,
}

/** KEYS: inv. ARGV: a clock. */
const sinceScript: Script = {
  name: 'kantaSince',
  lua: `${readClock}
local clock, present, floor = reading(KEYS[1])
return {clock, present, floor, redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. ARGV[1], '+inf', 'WITHSCORES')}`,
}

const scripts = [nowScript, readScript, swapScript, dropScript, reserveScript, putScript, tickScript, sinceScript]

// Told apart from those of all other processes, without asking for randomness each time.
const leaseOwner = randomBytes(12).toString('base64')
// Of this process: two databases in it may have the same namespace.
let leases = 0
// As many digits for each: they are compared by their beginnings, and 12 begins with 1.
const leaseDigits = 11

function nextLease(): string {
  leases += 1
  return marker('L', `${leaseOwner} ${leases.toString(36).padStart(leaseDigits, '0')}`)
}

// A script holds Redis up for as long as it runs, and its stack takes only so many arguments.
const keysAtOnce = 1_000

interface Swap {
  readonly key: string
  readonly expected: string
  readonly entry: Buffer | string
  readonly lifeMs: number
}

/** What {@link RedisTier} is to its callers. */
export type SharedTier = { readonly [Member in keyof RedisTier]: RedisTier[Member] }

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
  // A command costs more than all that is done with one entry: what is asked for in one tick goes in one.
  readonly #getting: Batch<string, FreshEntry | undefined>
  readonly #acquiring: Batch<string, Reading>
  readonly #looking: Batch<string, Reading>
  readonly #swapping: Batch<Swap, boolean>
  /** By how much the time of Redis is ahead of that of this process. */
  #aheadUs: number | undefined = undefined
  /** How much of what was asked for lately was there. */
  #hitShare = 0

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
    this.#getting = new Batch((keys) => this.#getFresh(keys))
    this.#acquiring = new Batch((keys) => this.#read(keys, nextLease()))
    this.#looking = new Batch((keys) => this.#read(keys, ''))
    this.#swapping = new Batch(
      (swaps) => this.#swap(swaps),
      ({ entry }) => entry.length,
    )
    for (const script of scripts) {
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

  /**
   * A fresh entry, by the cheapest command there is, as long as most of what is asked for is there; whatever else there is, is for
   * {@link acquire} to say. For those who hear of all that is ended.
   */
  getFresh(key: string): Promise<FreshEntry | undefined> | undefined {
    // A command takes the keys of one node only.
    return this.#hitShare < 0.5 || this.#client.isCluster ? undefined : this.#getting.add(key)
  }

  /** Reads an entry, and where there is none leaves a lease. */
  acquire(key: string): Promise<Reading> {
    return this.#acquiring.add(key)
  }

  /** Reads an entry. */
  look(key: string): Promise<Reading> {
    return this.#looking.add(key)
  }

  /** Puts a value in the place of its lease, or of the entry with this header. False when that is no longer there. */
  swap(key: string, expected: string, entry: Buffer, lifeMs: number): Promise<boolean> {
    return this.#swapping.add({ key, expected, entry, lifeMs })
  }

  /** Takes away exactly that entry or lease: something else may have come in its place. */
  async discard(key: string, expected: string): Promise<void> {
    await this.#swapping.add({ key, expected, entry: '', lifeMs: 0 })
  }

  /**
   * Takes the right to {@link swap} a value in once what it was made of is committed: gives what must still be there then, or
   * nothing. Who loads it meanwhile loses that right.
   */
  async reserve(key: string): Promise<string | undefined> {
    const lease = nextLease()
    const leaseMs = whole(this.#leaseMs)
    const expected = await this.#client.call(reserveScript.name, 1, this.#keyOf(key), lease, leaseMs)
    return String(expected) || undefined
  }

  /** Puts a lease in the place of an entry, and gives it; nothing when that is no longer there. */
  async claim(key: string, header: string): Promise<string | undefined> {
    const lease = nextLease()
    const isSwapped = await this.#swapping.add({ key, expected: header, entry: lease, lifeMs: this.#leaseMs })
    return isSwapped ? lease : undefined
  }

  /** Takes what may be done by one only; false when another has it. */
  async lock(key: string, holdMs: number): Promise<boolean> {
    return (await this.#client.call('set', this.#locks + key, '', 'PX', whole(holdMs), 'NX')) !== null
  }

  async unlock(key: string): Promise<void> {
    await this.#client.call('unlink', this.#locks + key)
  }

  /**
   * Ends what the invalidation names, in all processes. Entries go before it is told or together with that: so whoever finds by
   * the clock that nothing was told knows that nothing was taken away either. Of the keys in `kept` the entries stay.
   */
  async invalidate(what: Invalidation, { owner, kept, checks = [] }: InvalidateSettings = {}): Promise<Tick> {
    const held = owner === undefined ? '' : marker('T', owner)
    const keys = kept === undefined ? what.keys : what.keys.filter((key) => !kept.has(key))
    const batches = this.#batches(keys)
    // In a cluster they are on other nodes than what tells of them.
    const last = this.#client.isCluster ? [] : (batches.pop() ?? [])
    await Promise.all(batches.map((batch) => this.#client.call(dropScript.name, batch.length, ...batch, held)))
    const tick = await this.#tick(what, 0, last, held, checks)
    if (what.patterns.length === 0) return tick
    // To find them takes its time, for which nobody waits with what is in memory; and then both have to be told again.
    await Promise.all(what.patterns.map((pattern) => this.#dropMatching(pattern)))
    return { ...(await this.#tick({ ...what, keys: [], tags: [] }, 0)), changed: tick.changed }
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

  async #getFresh(keys: readonly string[]): Promise<(FreshEntry | undefined)[]> {
    const reply = (await this.#client.call('mget', ...keys.map((key) => this.#keyOf(key)))) as readonly RedisReply[]
    return reply.map((bytes) => {
      const entry = Buffer.isBuffer(bytes) ? unpackEntry(bytes) : 'foreign'
      const leftMs = typeof entry === 'string' ? 0 : (entry.expires - (this.time ?? entry.expires)) / 1_000
      const isFresh = typeof entry !== 'string' && leftMs > entry.graceMs
      this.#noteHit(isFresh)
      return isFresh ? { entry, leftMs } : undefined
    })
  }

  #noteHit(isHit: boolean): void {
    this.#hitShare += ((isHit ? 1 : 0) - this.#hitShare) / 64
  }

  async #read(keys: readonly string[], lease: string): Promise<(Promise<Reading> | Reading)[]> {
    const names = keys.map((key) => this.#keyOf(key))
    const leaseMs = whole(this.#leaseMs)
    if (this.#client.isCluster) {
      // Its nodes have clocks of their own: only one counts.
      const now = this.now()
      return names.map(async (name, index) => {
        const [reply, clock] = await Promise.all([
          this.#client.call(readScript.name, 1, name, '0', lease, leaseMs),
          now,
        ])
        return this.#readingOf(keys[index] as string, (reply as RedisReply[])[3] as Buffer, lease, clock)
      })
    }
    const count = names.length + 1
    const reply = await this.#client.call(readScript.name, count, ...names, this.#inv, '1', lease, leaseMs)
    const now = this.#noted(clockIn(reply))
    return keys.map((key, index) => this.#readingOf(key, (reply as RedisReply[])[index + 3] as Buffer, lease, now))
  }

  #readingOf(key: string, found: Buffer, lease: string, now: ClockReading): Reading {
    this.#noteHit(found.length > 1)
    if (found.length > 1) return { found: this.#unpacked(key, found, now), now }
    return { found: foundBy(found.toString(), lease), now }
  }

  async #swap(swaps: readonly Swap[]): Promise<(Promise<boolean> | boolean)[]> {
    const names = swaps.map(({ key }) => this.#keyOf(key))
    const parts = swaps.map(({ expected, entry, lifeMs }) => [expected, entry, whole(lifeMs)])
    if (this.#client.isCluster) {
      return names.map(async (name, index) =>
        isDone(await this.#client.call(swapScript.name, 1, name, ...(parts[index] as string[])), 0),
      )
    }
    const reply = await this.#client.call(swapScript.name, names.length, ...names, ...parts.flat())
    return names.map((_, index) => isDone(reply, index))
  }

  #noted(reading: ClockReading): ClockReading {
    this.#aheadUs = reading.present - performance.now() * 1_000
    return reading
  }

  #unpacked(key: string, bytes: Buffer, { present }: ClockReading): Found {
    const entry = unpackEntry(bytes)
    if (typeof entry !== 'string') return { kind: 'value', entry, leftMs: (entry.expires - present) / 1_000 }
    if (entry === 'foreign') return { kind: 'none' }
    // Of another version of kanta, or changed on its way: what reads it next comes behind this.
    void this.discard(key, headerOf(bytes)).catch(() => undefined)
    return { kind: 'gone' }
  }

  async #tick(
    what: Invalidation,
    holdMs: number,
    entries: readonly string[] = [],
    held = '',
    checks: readonly TagCheck[] = [],
  ): Promise<Tick> {
    const { keys, tags, patterns, all = false } = what
    const message = JSON.stringify({ keys, tags, patterns, all })
    const [last, clock, floor, tagClock, changed] = (await this.#client.call(
      tickScript.name,
      1 + entries.length,
      this.#inv,
      ...entries,
      this.channel,
      Math.ceil(holdMs * 1_000),
      all ? '1' : '0',
      whole(this.#maxLifeMs * 1_000),
      message,
      held,
      tags.length,
      ...tags.map(memberOf),
      ...checks.flatMap(({ tag, since }) => [memberOf(tag), String(since)]),
    )) as RedisReply[]
    return {
      last: Number(last),
      clock: Number(clock),
      floor: Number(floor),
      tagClock: Number(tagClock),
      changed: (changed as RedisReply[]).map((one) => one === 1),
    }
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

function foundBy(letter: string, lease: string): Found {
  switch (letter) {
    case 'L':
      return { kind: 'leased' }
    case 'T':
      return { kind: 'held' }
    case '':
      return lease === '' ? { kind: 'none' } : { kind: 'lease', lease }
    default:
      return { kind: 'none' }
  }
}

function isDone(reply: RedisReply, index: number): boolean {
  return (reply as RedisReply[])[index] === 1
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
