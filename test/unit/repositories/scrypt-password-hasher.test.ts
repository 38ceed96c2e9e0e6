import * as fc from 'fast-check'
import { expect, test } from 'vitest'
import { scryptPasswordHasher } from '../../../src/repositories/scrypt-password-hasher.ts'

const cheap = scryptPasswordHasher({ logCost: 14 })

test('a password is known by its hash, and no other is', async () => {
  const hash = await cheap.hash('correct horse')
  expect(await cheap.verify('correct horse', hash)).toBe(true)
  expect(await cheap.verify('correct horsf', hash)).toBe(false)
  expect(await cheap.verify('', hash)).toBe(false)
})

test('the hash says how it was made and never twice the same', async () => {
  const [first, second] = await Promise.all([cheap.hash('same'), cheap.hash('same')])
  expect(first).toMatch(/^\$scrypt\$ln=14,r=8,p=1\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$/)
  expect(first).not.toBe(second)
})

test('the default cost is 2^17, and a hasher of another cost still knows the hash', async () => {
  const hash = await scryptPasswordHasher().hash('expensive')
  expect(hash).toContain('$ln=17,r=8,p=1$')
  expect(await cheap.verify('expensive', hash)).toBe(true)
})

test('the test vector of RFC 7914 is verified', async () => {
  // scrypt("pleaseletmein", "SodiumChloride", N=16384, r=8, p=1), its first 32 bytes.
  const key = Buffer.from('7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2', 'hex')
  const salt = Buffer.from('SodiumChloride').toString('base64').replace(/=+$/, '')
  const hash = `$scrypt$ln=14,r=8,p=1$${salt}$${key.toString('base64').replace(/=+$/, '')}`
  expect(await cheap.verify('pleaseletmein', hash)).toBe(true)
})

test('the same letters typed in another Unicode form are the same password', async () => {
  expect(await cheap.verify('cafe\u0301', await cheap.hash('café'))).toBe(true)
})

test('no password, a huge one or one that is not text is refused, not hashed', async () => {
  const hash = await cheap.hash('right')
  for (const password of ['', 'x'.repeat(1025), '€'.repeat(342), '\u{FDFA}'.repeat(200), 5, undefined, ['x']]) {
    await expect(cheap.hash(password as string)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    expect(await cheap.verify(password as string, hash)).toBe(false)
  }
  expect(await cheap.verify('x'.repeat(1024), await cheap.hash('x'.repeat(1024)))).toBe(true)
})

test('a stored text that is no such hash, or asks for too much memory, is refused', async () => {
  const [salt, key] = ['A'.repeat(22), 'A'.repeat(43)]
  const texts = [
    '',
    'secret',
    '$2b$10$abcdefghijklmnopqrstuv',
    `$scrypt$ln=31,r=8,p=1$${salt}$${key}`,
    `$scrypt$ln=14,r=99,p=1$${salt}$${key}`,
    `$scrypt$ln=14,r=8,p=0$${salt}$${key}`,
    `$scrypt$ln=14,r=8,p=1$${salt}$`,
    `$scrypt$ln=14,r=8,p=1$${salt}$${key}\n`,
  ]
  for (const text of texts) {
    await expect(cheap.verify('secret', text)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  }
  await fc.assert(
    fc.asyncProperty(fc.string(), async (text) => {
      await expect(cheap.verify('secret', text)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    }),
  )
})

test('a cost out of bounds is refused', () => {
  for (const logCost of [13, 21, 14.5, Number.NaN]) {
    expect(() => scryptPasswordHasher({ logCost })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
  }
})
