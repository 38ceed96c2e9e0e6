import { randomBytes } from 'node:crypto'
import { crc32 } from 'node:zlib'
import type { Encoded, EncodedBehind } from './codec.ts'

/** What is known of a cached value beside it. */
export interface EntryFacts {
  /** When its loading began, by the clock of the invalidations: one with a later clock has not seen it. */
  readonly clock: number
  /** When Redis lets go of it, by its own time, in microseconds. */
  readonly expires: number
  /** How many milliseconds before that it counts as stale. */
  readonly graceMs: number
  /** About how many bytes its value takes in memory. */
  readonly size: number
  readonly tags: readonly string[]
}

/** An entry as it was read. */
export interface StoredEntry extends EntryFacts {
  readonly encoded: EncodedBehind
  /** The bytes that tell it from all others, for compare-and-set. */
  readonly header: string
}

// Second and third byte of all that is ours. The first is the kind: V a value, L a lease, T a hold. All of a header is ASCII.
const magic = '\0k'
const version = '\u0001'
const beginning = `V${magic}${version}`
const idSize = 16
/** How many bytes tell an entry from others. */
export const headerSize: number = beginning.length + idSize
// A checksum, flags, clock, end, grace, size, and how long the tags are.
const flagsAt = headerSize + 4
const tagsAt = flagsAt + 1 + 4 * 8 + 4

// Random once, and then counted: no two entries have the same, in whatever process.
const ownId = randomBytes(6).toString('base64')
let entries = 0

function nextHeader(): string {
  entries += 1
  return `${beginning}${ownId}${entries.toString(36).padStart(idSize - ownId.length, '0')}`
}

/** What stands under a key: a lease of whoever loads, or the hold of a transaction that is about to commit. */
export function marker(kind: 'L' | 'T', owner: string): string {
  return `${kind}${magic}${owner}`
}

/** The bytes of an entry, which no other has. */
export function packEntry({ clock, expires, graceMs, size, tags }: EntryFacts, { bytes, flags }: Encoded): Buffer {
  const list = tags.length === 0 ? '' : JSON.stringify(tags)
  const listSize = Buffer.byteLength(list)
  const entry = Buffer.allocUnsafe(tagsAt + listSize + bytes.length)
  const header = nextHeader()
  entry.write(header, 'latin1')
  entry[flagsAt] = flags
  entry.writeDoubleBE(clock, flagsAt + 1)
  entry.writeDoubleBE(expires, flagsAt + 9)
  entry.writeDoubleBE(graceMs, flagsAt + 17)
  entry.writeDoubleBE(size, flagsAt + 25)
  entry.writeUInt32BE(listSize, tagsAt - 4)
  entry.write(list, tagsAt)
  bytes.copy(entry, tagsAt + listSize)
  entry.writeUInt32BE(checksumOf(header, entry), headerSize)
  return entry
}

/** The entry, `damaged` when it is one of ours that cannot be trusted, or `foreign`. */
export function unpackEntry(bytes: Buffer): StoredEntry | 'damaged' | 'foreign' {
  const header = headerOf(bytes)
  if (!header.startsWith(`V${magic}`)) return 'foreign'
  if (bytes.length < tagsAt || !header.startsWith(beginning)) return 'damaged'
  if (bytes.readUInt32BE(headerSize) !== checksumOf(header, bytes)) return 'damaged'
  const listEnd = tagsAt + bytes.readUInt32BE(tagsAt - 4)
  return {
    clock: bytes.readDoubleBE(flagsAt + 1),
    expires: bytes.readDoubleBE(flagsAt + 9),
    graceMs: bytes.readDoubleBE(flagsAt + 17),
    size: bytes.readDoubleBE(flagsAt + 25),
    tags: listEnd === tagsAt ? [] : (JSON.parse(bytes.toString('utf8', tagsAt, listEnd)) as string[]),
    encoded: { bytes, from: listEnd, flags: bytes[flagsAt] as number },
    header,
  }
}

/** What tells an entry from others, also one that is damaged. */
export function headerOf(bytes: Buffer): string {
  return bytes.toString('latin1', 0, headerSize)
}

/** Of the id, and of all behind the checksum. */
function checksumOf(header: string, entry: Buffer): number {
  return crc32(entry.subarray(flagsAt), crc32(header))
}
