import { sql } from 'kysely'
import { expect, test, vi } from 'vitest'
import { freshDatabaseUrl } from '../support/database.ts'
import { open } from './open.ts'
import { isFull, record, tally, times } from './record.ts'
import { attempt, witness } from './witness.ts'

interface Tables {
  goods: { id: number; name: string; price: number }
}

const changes: readonly string[] = [
  'alter table goods add column extra int',
  'alter table goods alter column price type bigint',
  'alter table goods drop column extra',
  'alter table goods alter column price type int',
  'alter table goods rename column name to title; alter table goods rename column title to name',
]

test(
  'row 22: statements go on while their tables change under them',
  async () => {
    const url = await freshDatabaseUrl('empty')
    await using admin = await witness(url)
    await admin.rows('create table goods (id int primary key, name text not null, price int not null)')
    await admin.rows(`insert into goods select id, 'name ' || id, id from generate_series(1, 20) id`)
    await using database = await open<Tables>(url, { preparedStatements: { threshold: 2 }, pool: { max: 4 } })
    const alters = times(500, 25)
    const failures: string[] = []
    const over = new AbortController()
    const seen = { calls: 0, wrong: 0 }
    const caller = async (_: unknown, number: number): Promise<void> => {
      while (!over.signal.aborted) {
        seen.calls += 1
        const id = 1 + (seen.calls % 20)
        const { value, error } = await attempt(() =>
          number % 3 === 0
            ? database.query(sql<{ id: number; name: string }>`select * from goods where id = ${id}`)
            : number % 3 === 1
              ? database.db.selectFrom('goods').selectAll().where('id', '=', id).execute()
              : database.db
                  .updateTable('goods')
                  .set({ name: `name ${id}` })
                  .where('id', '=', id)
                  .returningAll()
                  .execute(),
        )
        if (error !== undefined) failures.push(`${error.code} ${error.sqlState ?? ''}`)
        else if (value?.length !== 1 || value[0]?.id !== id || value[0].name !== `name ${id}`) seen.wrong += 1
      }
    }
    const callers = Array.from({ length: 6 }, caller)
    for (let alter = 0; alter < alters; alter += 1) {
      const before = seen.calls
      await admin.rows(changes[alter % changes.length] ?? '')
      await vi.waitUntil(() => seen.calls >= before + 30, { timeout: 10_000, interval: 1 })
    }
    over.abort()
    await Promise.all(callers)
    record(
      22,
      alters,
      `${seen.calls} statements, ${failures.length} failed (${tally(failures)}), ${seen.wrong} wrong answers`,
    )
    expect(tally(failures)).toBe('none')
    expect(seen.wrong).toBe(0)
  },
  isFull ? 180_000 : 30_000,
)
