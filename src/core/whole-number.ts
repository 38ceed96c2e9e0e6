/** The largest of 32 bits: the most milliseconds of a timer of Node, and of a setting of PostgreSQL, and rows of a portal. */
export const largestInt32 = 2_147_483_647

/** Whether something given is a whole number within bounds, which are both included. */
export function isWhole(value: unknown, least: number, most: number = Number.MAX_SAFE_INTEGER): value is number {
  return Number.isSafeInteger(value) && (value as number) >= least && (value as number) <= most
}
