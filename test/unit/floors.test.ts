import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { checkFloors } from '../../scripts/check-floors.ts'

function problemsOf(files: Record<string, string>): string[] {
  const root = mkdtempSync(join(tmpdir(), 'kanta-floors-'))
  onTestFinished(() => rmSync(root, { recursive: true }))
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, path)), { recursive: true })
    writeFileSync(join(root, path), text)
  }
  return checkFloors(root).map(({ place, message }) => `${place} ${message}`)
}

const target = { 'postgres/pool.ts': 'export const size = 1\nexport type Size = number\n' }

test.each([
  ['a value import', `import { size } from '../postgres/pool.ts'`],
  ['a type import', `import type { Size } from '../postgres/pool.ts'`],
  ['an inline type import', `import { type Size } from '../postgres/pool.ts'`],
  ['an import for effect', `import '../postgres/pool.ts'`],
  ['a re-export', `export { size } from '../postgres/pool.ts'`],
  ['a type re-export', `export type { Size } from '../postgres/pool.ts'`],
  ['a star export', `export * from '../postgres/pool.ts'`],
  ['a dynamic import', `export const load = () => import('../postgres/pool.ts')`],
  ['a type in import()', `export type Size = import('../postgres/pool.ts').Size`],
  ['a typeof import()', `export type Pool = typeof import('../postgres/pool.ts')`],
])('%s from a higher floor is found', (_name, line) => {
  expect(problemsOf({ ...target, 'core/errors.ts': `// first line\n${line}\n` })).toEqual([
    'core/errors.ts:2 core (floor 0) imports upwards from postgres (floor 2) (../postgres/pool.ts)',
  ])
})

test('a name in a comment or a string is not an import', () => {
  expect(
    problemsOf({
      ...target,
      'core/errors.ts': `// import '../postgres/pool.ts'\nexport const a = "import '../postgres/pool.ts'"`,
    }),
  ).toEqual([])
})

test('an import from a lower floor and from the same folder is right', () => {
  expect(
    problemsOf({
      ...target,
      'postgres/source.ts': `import './pool.ts'`,
      'database/open-database.ts': `import '../postgres/source.ts'`,
    }),
  ).toEqual([])
})

test('two folders of one floor that know each other are found', () => {
  expect(problemsOf({ ...target, 'redis/client.ts': `import type { Size } from '../postgres/pool.ts'` })).toEqual([
    'redis/client.ts:1 redis and postgres are on one floor (2) and must not know each other (../postgres/pool.ts)',
  ])
})

test('files directly in src have floors of their own', () => {
  expect(problemsOf({ 'default.ts': `import './index.ts'`, 'index.ts': '' })).toEqual([
    'default.ts:1 default.ts (floor 6) imports upwards from index.ts (floor 7) (./index.ts)',
  ])
})

test('a circle of files is found, types included', () => {
  expect(
    problemsOf({
      'core/a.ts': `import './b.ts'\nexport type A = 1`,
      'core/b.ts': `import './c.ts'`,
      'core/c.ts': `import type { A } from './a.ts'`,
    }),
  ).toEqual(['core/a.ts:1 files import each other in a circle: core/a.ts → core/b.ts → core/c.ts → core/a.ts'])
})

test('a file that imports itself is a circle', () => {
  expect(problemsOf({ 'core/a.ts': `import './a.ts'` })).toEqual([
    'core/a.ts:1 files import each other in a circle: core/a.ts → core/a.ts',
  ])
})

test('a driver outside its folder is found, types included', () => {
  expect(
    problemsOf({
      'postgres/pool.ts': `import { Pool } from 'pg'`,
      'schema/migrator.ts': `import type { Client } from 'pg'\nimport Cursor from 'pg-cursor'`,
      'cache/tier.ts': `import { Redis } from 'ioredis'\nimport 'pg-something-else'`,
    }),
  ).toEqual([
    'cache/tier.ts:1 only redis/ imports ioredis',
    'schema/migrator.ts:1 only postgres/ imports pg',
    'schema/migrator.ts:2 only postgres/ imports pg-cursor',
  ])
})

test('a folder that has no floor is found', () => {
  expect(problemsOf({ 'utils/strings.ts': '' })).toEqual([
    'utils/strings.ts:1 utils has no floor: add it to scripts/check-floors.ts',
  ])
})

test('an import that leaves the source folder is found', () => {
  expect(problemsOf({ 'core/a.ts': `import '../../test/b.ts'` })).toEqual([
    'core/a.ts:1 ../../test/b.ts is outside the source folder',
  ])
})

test('the sources of kanta keep the rules', () => {
  expect(checkFloors(join(import.meta.dirname, '../../src'))).toEqual([])
})
