/** Repositories beside bare `pg`: reads by key that start together, and many rows that come back as stored. */

import { Pool } from 'pg'
import { createDatabase, type QuerySource, Repository } from '../../src/index.ts'
import { type BenchSchema, rowCounts, type User } from './data-set.ts'
import { type DuelResult, hold } from './duel.ts'
import { seededRandom } from './statistics.ts'

const columns = {
  id: 'id',
  email: 'email',
  name: 'name',
  is_active: 'is_active',
  order_count: 'order_count',
  created_at: 'created_at',
} as const

class Users extends Repository<BenchSchema, 'users', User, typeof columns> {
  constructor(database: QuerySource<BenchSchema>) {
    super(database, { table: 'users', columns })
  }
}

interface Written {
  readonly id: number
  readonly kind: string
  readonly body: string
  readonly created_at: Date
}

const writtenColumns = { id: 'id', kind: 'kind', body: 'body', created_at: 'created_at' } as const

class Writings extends Repository<{ writings: Written }, 'writings', Written, typeof writtenColumns> {
  constructor(database: QuerySource<{ writings: Written }>) {
    super(database, { table: 'writings', columns: writtenColumns })
  }
}

/** Reads of one tick. */
const together = 100
const ticks = 40
const manyRows = 10_000

export async function measureRepositories(url: string, connections: number, rounds: number): Promise<DuelResult[]> {
  await using opened = new AsyncDisposableStack()
  const pool = new Pool({ connectionString: url, max: connections })
  opened.defer(() => pool.end())
  const settings = { postgres: { url, pool: { max: connections } }, redis: false } as const
  const database = opened.use(await createDatabase<BenchSchema & { writings: Written }>(settings))
  return [
    await readTogether(new Users(database as never), pool, rounds),
    await createMany(database as never, pool, rounds),
  ]
}

async function readTogether(users: Users, pool: Pool, rounds: number): Promise<DuelResult> {
  const random = seededRandom(1)
  const text = `select ${Object.values(columns).join()} from users where id = $1`
  const readByPg = async (id: number): Promise<User | undefined> => (await pool.query<User>(text, [id])).rows[0]
  const inTicks = (read: (id: number) => Promise<User | undefined>) => async (): Promise<number> => {
    for (let tick = 0; tick < ticks; tick += 1) {
      const ids = Array.from({ length: together }, () => random(rowCounts.users))
      const found = await Promise.all(ids.map(read))
      if (found.some((user, index) => user?.id !== ids[index])) throw new Error('A read gave another row.')
    }
    return ticks * together
  }
  const ways = [
    { name: 'kanta', run: inTicks((id) => users.findById(id)) },
    { name: 'pg', target: 6, run: inTicks(readByPg) },
  ]
  return hold({ work: '100 reads by key in one tick', unit: 'reads', ways }, rounds)
}

async function createMany(
  database: QuerySource<{ writings: Written }>,
  pool: Pool,
  rounds: number,
): Promise<DuelResult> {
  await pool.query(`create table writings (id int primary key, kind text not null, body text not null,
    created_at timestamptz not null) with (autovacuum_enabled = false)`)
  const writings = new Writings(database)
  const rows = Array.from({ length: manyRows }, (_, n) => ({
    id: n,
    kind: `kind ${n % 7}`,
    body: `What happened at step ${n}`,
    created_at: new Date(1_735_689_600_000 + n * 1_003),
  }))
  const prepare = (): Promise<unknown> => pool.query('truncate writings')
  const counted = (stored: readonly Written[]): number => {
    if (stored.length !== manyRows || stored[7]?.body !== rows[7]?.body) throw new Error('Other rows came back.')
    return stored.length
  }
  const places = rows.map((_, row) => `($${row * 4 + 1},$${row * 4 + 2},$${row * 4 + 3},$${row * 4 + 4})`).join()
  const text = `insert into writings (id, kind, body, created_at) values ${places} returning *`
  const byValues = async (): Promise<number> => {
    const values = rows.flatMap((row) => [row.id, row.kind, row.body, row.created_at])
    return counted((await pool.query<Written>(text, values)).rows)
  }
  try {
    const ways = [
      { name: 'kanta', prepare, run: async () => counted(await writings.createMany(rows)) },
      { name: 'pg, many values', target: 2, prepare, run: byValues },
    ]
    return await hold({ work: '10 000 rows created and given back', unit: 'rows', ways }, rounds)
  } finally {
    await pool.query('drop table writings')
  }
}
