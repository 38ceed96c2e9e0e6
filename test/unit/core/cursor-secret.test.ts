import { inspect } from 'node:util'
import { describe, expect, test } from 'vitest'
import { resolveConfig } from '../../../src/core/config.ts'
import { cursorSecretFrom, cursorSecretOf } from '../../../src/core/cursor-secret.ts'
import type { DatabaseOptions } from '../../../src/index.ts'

const secret = 'a secret of more than sixteen bytes'
const url = 'postgres://app:correct-horse@db.internal/shop'

async function keys(options: DatabaseOptions, env: NodeJS.ProcessEnv = {}): Promise<readonly Buffer[]> {
  const found = await cursorSecretOf(resolveConfig({ redis: false, ...options }, env)).keys()
  return found.map((key) => key.export())
}

describe('the secret of a database', () => {
  test('is what was configured, in code or in the environment', async () => {
    expect(await keys({ cursorSecret: secret })).toEqual([Buffer.from(secret)])
    expect(await keys({ cursorSecret: [`new ${secret}`, secret] })).toEqual([
      Buffer.from(`new ${secret}`),
      Buffer.from(secret),
    ])
    const env = { DATABASE_CURSOR_SECRET: '0123456789abcdef0123 fedcba98765432100123' }
    expect(await keys({}, env)).toEqual(
      ['0123456789abcdef0123', 'fedcba98765432100123'].map((text) => Buffer.from(text)),
    )
  })

  test('else it comes from the password, and is the same for all who have the same', async () => {
    const [key] = await keys({ postgres: { url } })
    expect(key).toHaveLength(32)
    expect(await keys({}, { DATABASE_URL: url, NODE_ENV: 'production' })).toEqual([key])
    expect(await keys({ postgres: { url, password: 'another' } })).not.toEqual([key])
    expect(await keys({ postgres: { url: url.replace('/shop', '/books') } })).not.toEqual([key])
    expect(key?.includes('correct-horse')).toBe(false)
  })

  test('else it is one of the process, and in production an error that says what to set', async () => {
    const none = 'postgres://app@db.internal/shop'
    const [key] = await keys({ postgres: { url: none }, environment: 'test' })
    expect(key).toHaveLength(32)
    expect(await keys({ environment: 'development' })).toEqual([key])
    for (const postgres of [{ url: none }, { url: none, password: () => 'a token' }]) {
      const refused = keys({ postgres, environment: 'production' })
      await expect(refused).rejects.toMatchObject({ code: 'CONFIG_INVALID', problems: [{ key: 'cursorSecret' }] })
      await expect(refused).rejects.toThrow(/^kanta cannot sign cursors.*\n.*DATABASE_CURSOR_SECRET/)
    }
  })

  test.each([
    ['too short', 'fifteen bytes..'],
    ['empty', ''],
    ['an empty list', []],
    ['a list with one that is too short', [secret, 'short']],
    ['a number', 1_234_567_890_123_456],
  ])('that is %s is refused without being shown', (_, cursorSecret) => {
    const resolve = () => resolveConfig({ cursorSecret } as DatabaseOptions, {})
    expect(resolve).toThrow(/cursorSecret: expected text of at least 16 bytes.*got a value that is not shown/)
    expect(() => cursorSecretFrom(cursorSecret)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
  })

  test('is not in what is printed', () => {
    const config = resolveConfig({ cursorSecret: secret }, {})
    for (const printed of [inspect(config, { depth: 9 }), JSON.stringify(config), inspect(cursorSecretFrom(secret))]) {
      expect(printed).not.toContain(secret)
    }
  })
})
