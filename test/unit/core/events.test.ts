import { channel } from 'node:diagnostics_channel'
import { expect, test, vi } from 'vitest'
import { Emitter } from '../../../src/core/events.ts'

interface Moments {
  opened: { readonly at: number }
  shut: string
}

const emitter = (): Emitter<Moments> => new Emitter<Moments>(['opened', 'shut'])

test('listeners hear what they asked for, in the order in which they asked', () => {
  const events = emitter()
  const heard: unknown[] = []
  events.on('opened', ({ at }) => heard.push(['first', at]))
  events.on('shut', (why) => heard.push(['shut', why]))
  events.on('opened', ({ at }) => heard.push(['second', at]))
  events.emit('opened', { at: 1 })
  events.emit('shut', 'night')
  expect(heard).toEqual([
    ['first', 1],
    ['second', 1],
    ['shut', 'night'],
  ])
})

test('the function that on returns ends just that, however often it is called', () => {
  const events = emitter()
  const heard: string[] = []
  const stopFirst = events.on('shut', () => heard.push('first'))
  events.on('shut', () => heard.push('second'))
  stopFirst()
  stopFirst()
  events.emit('shut', '')
  expect(heard).toEqual(['second'])
})

test('one listener registered by two parts of a program is heard twice, and ends for each by itself', () => {
  const events = emitter()
  const heard: string[] = []
  const listener = (why: string): void => void heard.push(why)
  const stopFirst = events.on('shut', listener)
  const stopSecond = events.on('shut', listener)
  events.emit('shut', 'a')
  stopFirst()
  events.emit('shut', 'b')
  stopSecond()
  events.emit('shut', 'c')
  expect(heard).toEqual(['a', 'a', 'b'])
})

test('a listener may end itself or another while it is called', () => {
  const events = emitter()
  const heard: string[] = []
  const stopSelf = events.on('shut', () => {
    heard.push('once')
    stopSelf()
    stopOther()
  })
  const stopOther = events.on('shut', () => heard.push('other'))
  events.on('shut', () => heard.push('last'))
  events.emit('shut', '')
  events.emit('shut', '')
  expect(heard).toEqual(['once', 'last', 'last'])
})

test('whether anyone hears is known before a payload is built', () => {
  const events = emitter()
  expect(events.hears('opened')).toBe(false)
  const stop = events.on('opened', () => undefined)
  expect(events.hears('opened')).toBe(true)
  expect(events.hears('shut')).toBe(false)
  stop()
  expect(events.hears('opened')).toBe(false)
})

test('every event is published on its diagnostics channel as well', () => {
  const events = emitter()
  const published: unknown[] = []
  const subscriber = (message: unknown, name: unknown): void => void published.push([name, message])
  channel('kanta:opened').subscribe(subscriber)
  try {
    expect(events.hears('opened')).toBe(true)
    expect(events.hears('shut')).toBe(false)
    const payload = { at: 7 }
    events.emit('opened', payload)
    expect(published).toEqual([['kanta:opened', payload]])
  } finally {
    channel('kanta:opened').unsubscribe(subscriber)
  }
  expect(events.hears('opened')).toBe(false)
  events.emit('opened', { at: 8 })
  expect(published).toHaveLength(1)
})

test.each([
  [new Error('a bug of mine'), 'a listener of shut threw: a bug of mine'],
  [undefined, 'a listener of shut threw: not an Error'],
])("a listener's mistake (%s) is a warning, and the others hear the event", (mistake, message) => {
  const warn = vi.spyOn(process, 'emitWarning').mockReturnValue()
  const events = emitter()
  const heard: string[] = []
  events.on('shut', () => {
    throw mistake
  })
  events.on('shut', (why) => heard.push(why))
  expect(() => events.emit('shut', 'night')).not.toThrow()
  expect(heard).toEqual(['night'])
  expect(warn.mock.calls).toEqual([[message]])
  warn.mockRestore()
})

test('two emitters do not hear each other', () => {
  const [one, other] = [emitter(), emitter()]
  const heard: string[] = []
  one.on('shut', (why) => heard.push(why))
  other.emit('shut', 'elsewhere')
  expect(heard).toEqual([])
})

test('a listener that registers another while it is called is not called without end', () => {
  const events = emitter()
  let calls = 0
  const again = (): void => {
    calls += 1
    if (calls < 1_000) events.on('shut', again)
  }
  events.on('shut', again)
  events.emit('shut', '')
  expect(calls).toBe(1)
  events.emit('shut', '')
  expect(calls).toBe(3)
})
