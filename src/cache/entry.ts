import { randomBytes } from 'node:crypto'
import { crc32 } from 'node:zlib'
import type { Encoded } from './codec.ts'

/** What is known of a cached value beside it. Times are milliseconds. */
export interface EntryFacts {
  /** When its loading began, by the clock of the invalidations: one with a later clock has not seen it. */
  readonly clock: number
  /** How long it counts as fresh, from when it was stored. */
  readonly freshMs: number
  /** How long it is kept beyond that. */
  readonly graceMs: number
  /** When Redis lets go of it, by its own time, in microseconds; 0 where that is not known. */
  readonly expires: number
  readonly tags: readonly string[]
}

/** An entry as it was read. */
export interface StoredEntry extends EntryFacts {
  readonly encoded: Encoded
  /** The bytes that tell it from all others, for compare-and-set. */
  readonly header: Buffer
}

// Second and third byte of all that is ours. The first is the kind: V a value, L a lease, T a hold.
const magic = Buffer.from([0, 0x6b])
const version = 1
const idSize = 8
const headerSize = 1 + magic.length + 1 + idSize
const checksumAt = headerSize + 1 + 4 * 8
const fixedSize = checksumAt + 4 + 4

// Random once, and then counted: no two entries have the same, in whatever process.
const ids = randomBytes(idSize)
let entries = ids.readUInt32BE(4)

function nextId(bytes: Buffer, at: number): void {
  entries = (entries + 1) >>> 0
  ids.copy(bytes, at, 0, 4)
  bytes.writeUInt32BE(entries, at + 4)
}

/** What stands under a key: a lease of whoever loads, or the hold of a transaction that is about to commit. */
export function marker(kind: 'L' | 'T', owner: string): Buffer {
  return Buffer.concat([Buffer.from(kind), magic, Buffer.from(owner)])
}

/** The bytes of an entry, which no other has. */
export function packEntry({ clock, freshMs, graceMs, expires, tags }: EntryFacts, { bytes, flags }: Encoded): Buffer {
  const list = Buffer.from(JSON.stringify(tags))
  const entry = Buffer.allocUnsafe(fixedSize + list.length + bytes.length)
  entry[0] = 0x56
  magic.copy(entry, 1)
  entry[1 + magic.length] = version
  nextId(entry, headerSize - idSize)
  entry[headerSize] = flags
  entry.writeDoubleBE(clock, headerSize + 1)
  entry.writeDoubleBE(freshMs, headerSize + 9)
  entry.writeDoubleBE(graceMs, headerSize + 17)
  entry.writeDoubleBE(expires, headerSize + 25)
  entry.writeUInt32BE(list.length, checksumAt + 4)
  list.copy(entry, fixedSize)
  bytes.copy(entry, fixedSize + list.length)
  entry.writeUInt32BE(checksumOf(entry), checksumAt)
  return entry
}

/** The entry, `damaged` when it is one of ours that cannot be trusted, or `foreign`. */
export function unpackEntry(bytes: Buffer): StoredEntry | 'damaged' | 'foreign' {
  if (bytes[0] !== 0x56 || !bytes.subarray(1, 1 + magic.length).equals(magic)) return 'foreign'
  if (bytes.length < fixedSize || bytes[1 + magic.length] !== version) return 'damaged'
  if (bytes.readUInt32BE(checksumAt) !== checksumOf(bytes)) return 'damaged'
  const listEnd = fixedSize + bytes.readUInt32BE(checksumAt + 4)
  return {
    clock: bytes.readDoubleBE(headerSize + 1),
    freshMs: bytes.readDoubleBE(headerSize + 9),
    graceMs: bytes.readDoubleBE(headerSize + 17),
    expires: bytes.readDoubleBE(headerSize + 25),
    tags: JSON.parse(bytes.toString('utf8', fixedSize, listEnd)) as string[],
    encoded: { bytes: bytes.subarray(listEnd), flags: bytes[headerSize] as number },
    header: bytes.subarray(0, headerSize),
  }
}

/** The bytes of an entry that tell it from others, also of one that is damaged. */
export function headerOf(bytes: Buffer): Buffer {
  return bytes.subarray(0, headerSize)
}

/** Of everything but itself. */
function checksumOf(entry: Buffer): number {
  return crc32(entry.subarray(checksumAt + 4), crc32(entry.subarray(0, checksumAt)))
}
