import { types } from 'pg'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { PreparationPolicy, PreparedStatements } from '../../../src/postgres/prepared-statements.ts'
import { type StatementText, StatementTexts } from '../../../src/postgres/statement-text.ts'
import type { Wire } from '../../../src/postgres/wire.ts'

const texts = new StatementTexts()
const used = (sql: string): StatementText => Object.assign(texts.command(sql), { uses: 10 })
const text = used('select 1')

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['performance'] })
})
afterEach(() => {
  vi.useRealTimers()
})

function policy(): { readonly policy: PreparationPolicy; readonly givenUp: () => boolean } {
  let isGivenUp = false
  return {
    policy: new PreparationPolicy({ threshold: 3, max: 10 }, () => {
      isGivenUp = true
    }),
    givenUp: () => isGivenUp,
  }
}

test('names that are lost now and then over a long life do not end preparing', () => {
  const { policy: own, givenUp } = policy()
  for (let lost = 0; lost < 200; lost += 1) {
    own.noteLost('26000')
    vi.advanceTimersByTime(10_000)
  }
  expect(givenUp()).toBe(false)
  expect(own.allows(text)).toBe(true)
})

test('twenty names lost within a minute end it, and so does one that exists already', () => {
  const often = policy()
  for (let lost = 0; lost < 20; lost += 1) {
    expect(often.givenUp()).toBe(false)
    often.policy.noteLost('26000')
    vi.advanceTimersByTime(1_000)
  }
  expect(often.givenUp()).toBe(true)
  expect(often.policy.allows(text)).toBe(false)

  const taken = policy()
  taken.policy.noteLost('42P05')
  expect(taken.givenUp()).toBe(true)
})

test.each([
  ['a number that a process can have', 4_711, false],
  ['the highest of Linux', 4_194_304, false],
  ['no number at all', null, false],
  ['one that only a pooler invents', 1_234_567_890, true],
  ['one below zero', -7, true],
])('with %s as its process, what a connection learned of columns is certain or not', (_, id, isShared) => {
  const { policy: own } = policy()
  own.noteProcess(4_711)
  own.noteProcess(id)
  own.noteProcess(4_712)
  const prepared = new PreparedStatements(own, types)
  prepared.prepare(text, { parse: () => undefined } as unknown as Wire)
  prepared.describe(text, [{ name: 'a', dataTypeID: 25 }])
  expect(prepared.shapeOf(text) === undefined).toBe(isShared)
})

test('behind a pooler a text whose tables changed is not prepared any more, elsewhere it is prepared anew', () => {
  const names = [4_711, 1_234_567_890].map((id) => {
    const { policy: own } = policy()
    own.noteProcess(id)
    const parsed: string[] = []
    const wire = { parse: (name: string) => parsed.push(name), close: () => undefined } as unknown as Wire
    const prepared = new PreparedStatements(own, types)
    prepared.prepare(text, wire)
    prepared.notePlanChanged(text)
    prepared.prepare(text, wire)
    return parsed
  })
  expect(names).toEqual([
    [text.name, text.name],
    [text.name, ''],
  ])
})

test('a connection that lost all its names at once has lost once, with everything that was in flight', () => {
  const { policy: own, givenUp } = policy()
  const wire = { parse: () => undefined, close: () => undefined } as unknown as Wire
  const prepared = new PreparedStatements(own, types)
  const many = Array.from({ length: 9 }, (_, n) => used(`select ${n}`))
  for (let round = 0; round < 3; round += 1) {
    for (const each of many) prepared.prepare(each, wire)
    // All of these were sent before the first answer came.
    const { epoch } = prepared
    for (const each of [...many, ...many]) prepared.noteLost(each, '26000', epoch)
    expect(many.some((each) => prepared.has(each))).toBe(false)
  }
  expect(givenUp()).toBe(false)
})
