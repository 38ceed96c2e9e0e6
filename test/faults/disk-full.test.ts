import { execFileSync } from 'node:child_process'
import { chownSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { sql } from 'kysely'
import { expect, onTestFinished, test } from 'vitest'
import { startPostgres } from '../support/servers.ts'
import { open } from './open.ts'
import { isFull, record, tally, times } from './record.ts'
import { attempt, witness } from './witness.ts'

interface Tables {
  kept: { id: number }
  filler: { body: string }
}

test(
  'row 20: a full disk fails writes as such, lets reads go on, and is over when space is freed',
  async ({ skip }) => {
    const small = mountSmallDisk()
    if (typeof small === 'string') {
      record(20, 0, `skipped: ${small}`)
      skip(small)
      return
    }
    onTestFinished(() => small.unmount())
    const server = await startPostgres()
    onTestFinished(() => server.stop())
    const { uid, gid } = statSync(server.dataDir)
    chownSync(small.folder, uid, gid)
    await using admin = await witness(server.url)
    await admin.rows(`create tablespace small location '${small.folder}'`)
    await admin.rows('create table kept (id int) tablespace small')
    await admin.rows('insert into kept select generate_series(1, 1000)')
    await admin.rows('create table filler (body text) tablespace small')
    await admin.rows('alter table filler alter column body set storage external')

    await using database = await open<Tables>(server.url, { retry: false, pool: { max: 4 } })
    const rounds = times(20, 2)
    const ballast = join(small.folder, '..', 'ballast')
    const body = 'x'.repeat(500_000)
    const codes: string[] = []
    let reads = 0
    for (let round = 0; round < rounds; round += 1) {
      writeFileSync(ballast, Buffer.alloc(8_000_000))
      for (let write = 0; write < 200 && codes.length < (round + 1) * 20; write += 1) {
        const { error } = await attempt(() => database.db.insertInto('filler').values({ body }).execute())
        if (error === undefined) continue
        codes.push(`${error.code} ${error.sqlState ?? ''}`.trim())
        const { value } = await attempt(() =>
          database.db
            .selectFrom('kept')
            .select(sql<string>`count(*)`.as('count'))
            .execute(),
        )
        if (Number(value?.[0]?.count) === 1_000) reads += 1
      }
      rmSync(ballast)
      const again = await attempt(() => database.db.insertInto('filler').values({ body }).execute())
      if (again.error) codes.push(`${again.error.code} after space was freed`)
      await admin.rows('truncate filler')
      // Until then the server keeps the files of what was truncated.
      await admin.rows('checkpoint')
    }
    record(
      20,
      rounds,
      `${tally(codes)}; ${reads} of ${codes.length} reads in between answered; writes go on after each`,
    )
    expect(new Set(codes)).toEqual(new Set(['DISK_FULL 53100']))
    expect(reads).toBe(codes.length)
  },
  isFull ? 180_000 : 30_000,
)

/** A file system of a few megabytes, or why there can be none. */
function mountSmallDisk(): string | { readonly folder: string; unmount(): void } {
  if (process.platform !== 'linux' || process.getuid?.() !== 0)
    return 'only root on Linux can mount the small tmpfs that this test fills'
  const mountPoint = mkdtempSync(join(tmpdir(), 'kanta-small-disk-'))
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=16m,mode=755', 'tmpfs', mountPoint], { stdio: 'pipe' })
  } catch (error) {
    rmSync(mountPoint, { recursive: true })
    return `the small tmpfs that this test fills could not be mounted (${error instanceof Error ? error.message.trim().split('\n').at(-1) : 'no reason given'})`
  }
  const folder = join(mountPoint, 'data')
  mkdirSync(folder)
  return {
    folder,
    unmount() {
      execFileSync('umount', ['--lazy', mountPoint])
      rmSync(mountPoint, { recursive: true, force: true })
    },
  }
}
