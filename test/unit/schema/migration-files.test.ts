import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { createMigrationFile, readMigrations } from '../../../src/schema/migration-files.ts'

const good = '-- Up Migration\ncreate table t (a int);\n-- Down Migration\ndrop table t;\n'

async function folderWith(files: Readonly<Record<string, string | Uint8Array>>): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'kanta-migrations-'))
  onTestFinished(() => rm(folder, { recursive: true }))
  for (const [name, content] of Object.entries(files)) await writeFile(join(folder, name), content)
  return folder
}

test('files run in the order of their numbers, whatever their width; other files are left alone', async () => {
  const folder = await folderWith({
    '10_c.sql': good,
    '2_b.sql': good,
    '0001_a.sql': good,
    'README.md': '# Migrations',
    '.keep.sql': '',
    'notes.txt': '',
  })
  expect((await readMigrations(folder)).map((file) => file.name)).toEqual(['0001_a', '2_b', '10_c'])
})

test('sections hold their statements with the lines on which they stand', async () => {
  const text =
    '\uFEFF-- Why: so.\r\n-- Up Migration\r\ncreate table t (a int);\r\n\r\n-- more\r\ncreate index on t (a)\r\n---- Down migration ----\r\ndrop table t;'
  const [file] = await readMigrations(await folderWith({ '1_a.sql': text }))
  expect(file?.up).toEqual([
    { sql: 'create table t (a int)', line: 3 },
    { sql: 'create index on t (a)', line: 6 },
  ])
  expect(file?.down).toEqual([{ sql: 'drop table t', line: 8 }])
})

test('markers inside strings and bodies are text', async () => {
  const text = "-- Up Migration\ndo $$ begin\n-- Down Migration\nend $$;\nselect '\n-- Up Migration\n';"
  const [file] = await readMigrations(await folderWith({ '1_a.sql': text }))
  expect(file?.up).toHaveLength(2)
  expect(file?.down).toEqual([])
})

test.each([
  ['create table t (a int);', 'has no line `-- Up Migration`', undefined],
  ['-- Up Migration\n\n-- Down Migration\ndrop table t;', 'has no SQL under `-- Up Migration`', 1],
  ['-- Down Migration\ndrop table t;\n-- Up Migration\ncreate table t ();', 'has its Down section first', 1],
  ['create table t ();\n-- Up Migration\nselect 1;', 'has SQL before `-- Up Migration`', 1],
  ['-- Up Migration\nselect 1;\n-- Up Migration\nselect 2;', 'has a section twice', 3],
  ["-- Up Migration\nselect 1;\nselect 'abc;\n-- Down Migration\nselect 2;", 'opens a string that never ends', 3],
  ['-- Up Migration\nselect 1;\ncommit;', 'says COMMIT', 3],
  ['-- Up Migration\nBegin;\nselect 1;', 'says BEGIN', 2],
  ['-- Up Migration\nselect 1;\n-- Down Migration\nrollback;', 'says ROLLBACK', 4],
  ['-- Up Migration\nstart  transaction;', 'says START', 2],
])('%j is refused: %s', async (text, what, line) => {
  const folder = await folderWith({ '1_a.sql': text })
  await expect(readMigrations(folder)).rejects.toMatchObject({
    code: 'MIGRATION_INVALID',
    message: expect.stringContaining(what),
    file: join(folder, '1_a.sql'),
    line,
  })
})

test('what only looks like transaction control is allowed', async () => {
  const text =
    '-- Up Migration\nsavepoint a;\nrollback to savepoint a;\nrollback work to a;\ndo $$ begin end $$;\ncreate table beginning ();'
  const [file] = await readMigrations(await folderWith({ '1_a.sql': text }))
  expect(file?.up).toHaveLength(5)
})

test.each([
  [{ '0001_a.sql': good, '01_b.sql': good }, 'have the same number'],
  [{ '0001_a.sql': good, 'add_users.sql': good }, 'has no number'],
  [{ '0001_a.sql': good, "0002_o'brien.sql": good }, 'has no number'],
  [{ '0001_a.sql': good, '0002_b.ts': '' }, 'is not SQL'],
  [{ '0001_a.sql': new Uint8Array([0x2d, 0x2d, 0xff, 0xfe]) }, 'is not UTF-8'],
  [{ 'README.md': '' }, 'holds no migration'],
])('the folder %j is refused: it %s', async (files, what) => {
  const folder = await folderWith(files)
  await expect(readMigrations(folder)).rejects.toMatchObject({
    code: 'MIGRATION_INVALID',
    message: expect.stringContaining(what),
  })
})

test('a folder that does not exist is named', async () => {
  await expect(readMigrations('no/such/folder')).rejects.toMatchObject({
    code: 'MIGRATION_INVALID',
    message: 'no/such/folder does not exist. Name the folder that holds the migrations.',
  })
})

test('a new migration has both markers and the next number in the width that is used', async () => {
  const folder = await folderWith({ '0009_a.sql': good })
  const file = await createMigrationFile(folder, 'Add  Invoices/Öre!')
  expect(file).toBe(join(folder, '0010_add_invoices_re.sql'))
  expect(await readFile(file, 'utf8')).toMatch(/^-- Up Migration\n[^]*^-- Down Migration\n/m)
  expect(await createMigrationFile(join(folder, 'new'), 'first')).toBe(join(folder, 'new', '0001_first.sql'))
  await expect(createMigrationFile(folder, '../?')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
})
