import { execFile } from 'node:child_process'
import { globSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, expect, test } from 'vitest'

const root = join(import.meta.dirname, '../..')
mkdirSync(join(root, '.cache'), { recursive: true })
const folder = mkdtempSync(join(root, '.cache/examples-'))
afterAll(() => rmSync(folder, { recursive: true }))

interface Example {
  readonly source: string
  readonly code: string
}

/** The examples of the documentation. That of the README has a schema of its own and runs in the test of the tarball. */
function examples(): Example[] {
  const pages = globSync('docs/*.md', { cwd: root }).flatMap((page) =>
    blocks(page, readFileSync(join(root, page), 'utf8')),
  )
  const comments = globSync('src/**/*.ts', { cwd: root }).flatMap((file) => {
    const text = readFileSync(join(root, file), 'utf8')
    return [...text.matchAll(/^ *\/\*\*\n(?: *\*.*\n)+? *\*\//gm)].flatMap(([comment]) =>
      blocks(file, comment.replace(/^ *\* ?/gm, '')),
    )
  })
  return [...pages, ...comments]
}

function blocks(file: string, text: string): Example[] {
  return [...text.matchAll(/```ts\n([\s\S]*?)```/g)].map((match) => {
    const line = text.slice(0, match.index).split('\n').length
    return { source: `${file}, block at line ${line}`, code: match[1] ?? '' }
  })
}

test('every example in docs/ and in doc comments compiles', async () => {
  const all = examples()
  expect(all.length).toBeGreaterThan(20)
  const files = all.map(({ source, code }, index) => {
    const file = `example-${index}.ts`
    writeFileSync(join(folder, file), `// ${source}\n${code}\nexport {}\n`)
    return file
  })
  mkdirSync(join(folder, 'generated'))
  writeFileSync(join(folder, 'generated/schema.ts'), `export type * from '${join(root, 'src/generated/schema.ts')}'\n`)
  const config = {
    extends: join(root, 'tsconfig.json'),
    compilerOptions: {
      rootDir: '/',
      // Examples show one thing and leave the rest out.
      noUnusedLocals: false,
      noUnusedParameters: false,
      isolatedDeclarations: false,
      declaration: false,
      paths: {
        kanta: [join(root, 'src/index.ts')],
        'kanta/domain': [join(root, 'src/domain.ts')],
        'kanta/migrate': [join(root, 'src/migrate.ts')],
        'kanta/testing': [join(root, 'src/testing.ts')],
      },
    },
    include: [],
    files,
  }
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(config))
  const tsc = join(root, 'node_modules/typescript/bin/tsc')
  const { stdout } = await promisify(execFile)(process.execPath, [tsc, '-p', folder]).catch(
    (error: unknown) => error as { stdout: string },
  )
  const named = stdout.replace(/\S*example-(\d+)\.ts/g, (_, index: string) => all[Number(index)]?.source ?? '')
  expect(named).toBe('')
})
