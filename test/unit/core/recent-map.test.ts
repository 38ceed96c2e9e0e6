import { expect, test } from 'vitest'
import { RecentMap } from '../../../src/core/recent-map.ts'

test('what is asked for stays, however much else comes and goes', () => {
  const map = new RecentMap<number, string>(10)
  map.set(-1, 'hot')
  for (let key = 0; key < 1_000; key += 1) {
    map.set(key, 'cold')
    expect(map.get(-1)).toBe('hot')
    expect(map.size).toBeLessThanOrEqual(10)
  }
  expect(map.get(0)).toBeUndefined()
})

test('at least the last half of the entries is there', () => {
  const map = new RecentMap<number, number>(10)
  for (let key = 0; key < 100; key += 1) {
    map.set(key, key)
    for (let recent = Math.max(0, key - 4); recent <= key; recent += 1) expect(map.get(recent)).toBe(recent)
  }
})

test('an entry has its last value, and one place', () => {
  const map = new RecentMap<string, number>(4)
  for (let value = 0; value < 20; value += 1) {
    map.set('same', value)
    expect(map.get('same')).toBe(value)
    expect(map.size).toBe(1)
  }
  map.set('b', 1)
  map.set('c', 1)
  map.set('same', 20)
  expect(map.get('same')).toBe(20)
  expect(map.size).toBe(3)
})
