import { execFile } from 'node:child_process'
import { cp, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'
import { writeTypes } from '../../src/migrate.ts'

const run = promisify(execFile)

/** What the compiler says of the sources in a copy of the repository; empty when it is content. */
async function compile(copy: string): Promise<string> {
  const { stdout } = await run(process.execPath, ['node_modules/typescript/bin/tsc', '-p', copy]).catch(
    (error: { stdout: string }) => error,
  )
  return stdout
}

test('a renamed column does not compile in the repository that uses it', { timeout: 120_000 }, async () => {
  const copy = await mkdtemp(join(tmpdir(), 'kanta-type-guard-'))
  try {
    for (const name of ['src', 'migrations', 'package.json']) await cp(name, join(copy, name), { recursive: true })
    await symlink(resolve('node_modules'), join(copy, 'node_modules'))
    const settings = { extends: resolve('tsconfig.json'), compilerOptions: { rootDir: '.' }, include: ['src'] }
    await writeFile(join(copy, 'tsconfig.json'), JSON.stringify(settings))
    expect(await compile(copy)).toBe('')

    await writeFile(
      join(copy, 'migrations', '9999_rename_email.sql'),
      '-- Up Migration\nalter table users rename column email to mail;\nalter index users_email_key rename to users_mail_key;\n',
    )
    const files = { migrationsDirectory: join(copy, 'migrations'), outFile: join(copy, 'src/generated/schema.ts') }
    expect(await writeTypes(files)).toEqual({ changed: true })
    const complaints = await compile(copy)
    expect(complaints).toMatch(/src\/repositories\/user-repository\.ts\(\d+,\d+\): error TS/)
  } finally {
    await rm(copy, { recursive: true })
  }
})
