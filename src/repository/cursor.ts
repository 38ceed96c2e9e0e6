import { createHmac, type KeyObject, timingSafeEqual } from 'node:crypto'
import { DatabaseError } from '../core/errors.ts'

/**
 * A cursor is a version, a signature and the place in the list, in base64url. The signature is HMAC-SHA256, cut to 128 bits, over
 * the list that it belongs to and the place; the list itself is not in the cursor.
 */
const version = 1
const signatureBytes = 16
const headBytes = 1 + signatureBytes

/** The most characters of a cursor: with all else of a request it has to fit into a URL. */
const maxCursorLength = 8_192

/** A cursor for a place in a list. `INVALID_ARGUMENT` when the place is too long for one. */
export function sealCursor(keys: readonly KeyObject[], list: string, place: string): string {
  const [key] = keys
  if (key === undefined) throw new TypeError('there is no key to sign a cursor with')
  const bytes = Buffer.from(place)
  const cursor = Buffer.concat([Buffer.of(version), signature(key, list, bytes), bytes]).toString('base64url')
  if (cursor.length <= maxCursorLength) return cursor
  throw new DatabaseError(
    'INVALID_ARGUMENT',
    `paginate: the values by which a row is ordered are too long for a cursor of ${maxCursorLength} characters. Order by something shorter.`,
  )
}

/** The place that a cursor stands for. `CURSOR_INVALID` for whatever was not made by {@link sealCursor} for this list. */
export function openCursor(keys: readonly KeyObject[], list: string, cursor: unknown): string {
  // Looked at before any work is done for it.
  if (typeof cursor !== 'string' || cursor.length > maxCursorLength) throw invalid()
  const bytes = Buffer.from(cursor, 'base64url')
  // Node skips what is not base64url, so that many texts would stand for one cursor.
  if (bytes.length <= headBytes || bytes[0] !== version || bytes.toString('base64url') !== cursor) throw invalid()
  const signed = bytes.subarray(1, headBytes)
  // Before it is decoded: several byte sequences that are no UTF-8 would be one text.
  const place = bytes.subarray(headBytes)
  if (!keys.some((key) => timingSafeEqual(signed, signature(key, list, place)))) throw invalid()
  return place.toString()
}

function signature(key: KeyObject, list: string, place: Buffer): Buffer {
  // The list is JSON, in which NUL never stands as such.
  const mac = createHmac('sha256', key).update(`kanta cursor ${version}\0`).update(list).update('\0').update(place)
  return mac.digest().subarray(0, signatureBytes)
}

/** One error for all that can be wrong: whoever forges cursors learns nothing from it. */
function invalid(): DatabaseError {
  return new DatabaseError(
    'CURSOR_INVALID',
    'The cursor is not one of this list. Start again at the first page, without a cursor.',
  )
}
