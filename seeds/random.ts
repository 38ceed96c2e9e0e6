/** A source of numbers that gives the same ones for the same seed, on every machine. */
export interface Random {
  /** From 0 up to, but not, 1. */
  next(): number
  /** A whole number from `low` to `high`, both possible. */
  between(low: number, high: number): number
  /** True with this probability. */
  chance(probability: number): boolean
  pick<Item>(items: readonly Item[]): Item
  /** Like `pick`, but the first items are picked far more often than the last: a few do most of everything. */
  pickSkewed<Item>(items: readonly Item[]): Item
  /** A moment between two others. */
  date(from: Date, to: Date): Date
  /** A UUID of version 7 for a row created at that time. */
  uuid(createdAt: Date): string
}

/** The sfc32 generator: small, fast, and good enough for anything but secrets. */
export function seededRandom(seed: number): Random {
  let [a, b, c, counter] = [0x9e3779b9, 0x243f6a88, seed | 0, 1]

  const bits = (): number => {
    const sum = (((a + b) | 0) + counter) | 0
    counter = (counter + 1) | 0
    a = b ^ (b >>> 9)
    b = (c + (c << 3)) | 0
    c = (((c << 21) | (c >>> 11)) + sum) | 0
    return sum >>> 0
  }
  const next = (): number => bits() / 2 ** 32
  const at = <Item>(items: readonly Item[], position: number): Item => {
    const item = items[Math.floor(position * items.length)]
    if (item === undefined) throw new RangeError('Cannot pick from an empty list.')
    return item
  }
  const hex = (digits: number): string => bits().toString(16).padStart(8, '0').slice(0, digits)

  // The first numbers still show the seed.
  for (let round = 0; round < 12; round++) bits()

  return {
    next,
    between: (low, high) => low + Math.floor(next() * (high - low + 1)),
    chance: (probability) => next() < probability,
    pick: (items) => at(items, next()),
    pickSkewed: (items) => at(items, next() ** 2.5),
    date: (from, to) => new Date(Math.floor(from.getTime() + next() * (to.getTime() - from.getTime()))),
    uuid: (createdAt) => {
      const time = createdAt.getTime().toString(16).padStart(12, '0')
      const variant = '89ab'[bits() & 3]
      return `${time.slice(0, 8)}-${time.slice(8)}-7${hex(3)}-${variant}${hex(3)}-${hex(8)}${hex(4)}`
    },
  }
}
