/**
 * `npm run demo`: kanta's main job on real data, from an empty database to pages of a feed. With `DATABASE_URL` it runs
 * on that server, otherwise on an embedded PostgreSQL whose data stays in `.kanta/demo`. A second run goes on with what
 * is there. It never changes or removes anything that it did not make.
 */

import { readFileSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import { sql } from 'kysely'
import { resolveConfig } from '../src/core/config.ts'
import type { DatabaseOptions } from '../src/core/options.ts'
import { type DB, ProductRepository, type User, UserRepository } from '../src/domain.ts'
import { createDatabase, type Database, type Health, isDatabaseError, type ServerHealth } from '../src/index.ts'
import { checkTypes, createMigrator } from '../src/migrate.ts'
import { seedDevelopment } from '../seeds/development.ts'
import { heading, say, showCode, showFields, showTable, styled, withProgress } from './demo-screen.ts'

const root = join(import.meta.dirname, '..')
const embeddedFolder = '.kanta/demo'

// What stands between these two lines is printed as it is, then run.
// #region shown
function bestCustomers({ db }: Database<DB>) {
  return db
    .selectFrom('users')
    .innerJoin('orders', 'orders.user_id', 'users.id')
    .where('orders.status', '<>', 'cancelled')
    .groupBy('users.id')
    .select((row) => ['users.name', row.fn.countAll().as('orders'), row.fn.sum('total_minor').as('spent')])
    .orderBy('spent', 'desc')
    .limit(5)
}

async function findInKitchen(database: Database<DB>) {
  const users = new UserRepository(database)
  const products = new ProductRepository(database)
  const user = await users.findByEmail('ADA@Example.org')
  const page = await products.findWithCategories({ category: 'kitchen', limit: 5 })
  return { user, page }
}

async function registerAgain(database: Database<DB>) {
  const ada = { email: 'Ada@Example.ORG', username: 'ada-again', name: 'Ada', password: 'correct horse battery' }
  return await new UserRepository(database).createUser(ada)
}

async function placeOrder(database: Database<DB>, user: User, productIds: readonly string[], quantity: number) {
  const { db } = database
  const products = new ProductRepository(database)
  return await database.transaction(async () => {
    const shelf = db.selectFrom('products').where('id', 'in', productIds).select(['id', 'stock', 'price_minor'])
    // Everybody locks in the order of the ids, so no two orders wait for each other.
    const locked = await shelf.orderBy('id').forUpdate().execute()
    for (const { id, stock } of locked) await products.update(id, { stock: stock - quantity })

    const total_minor = locked.reduce((sum, product) => sum + quantity * product.price_minor, 0)
    const order = db.insertInto('orders').values({ user_id: user.id, total_minor }).returningAll()
    const { id: order_id } = await order.executeTakeFirstOrThrow()
    const items = locked.map((p) => ({ order_id, product_id: p.id, quantity, unit_price_minor: p.price_minor }))
    await db.insertInto('order_items').values(items).execute()
    return { order_id, total_minor }
  })
}

async function feedPage({ db }: Database<DB>, after?: { published_at: Date | null; id: string }) {
  let posts = db
    .selectFrom('posts')
    .innerJoin('users', 'users.id', 'author_id')
    .where('published_at', 'is not', null)
    .where('posts.deleted_at', 'is', null)
    .select(['published_at', 'title', 'users.name as author', 'posts.id'])
    .orderBy('published_at', 'desc')
    .orderBy('posts.id', 'desc')
  if (after) posts = posts.where(sql<boolean>`(published_at, posts.id) < (${after.published_at}, ${after.id})`)
  return await posts.limit(4).execute()
}
// #endregion shown

type OurTable = keyof DB & string

/** Also the order in which their rows are counted. */
const ourTables: Readonly<Record<OurTable, true>> = {
  users: true,
  user_profiles: true,
  categories: true,
  products: true,
  product_categories: true,
  orders: true,
  order_items: true,
  posts: true,
  comments: true,
  likes: true,
  product_sales: true,
  statistics_refreshes: true,
}

async function main(): Promise<void> {
  const begun = performance.now()
  const options = demoOptions()
  const target = resolveConfig(options).postgres

  console.log(styled('bold', 'kanta: the main job, on real data'))
  if (target.kind === 'embedded') {
    say(`No DATABASE_URL is set, so this runs on an embedded PostgreSQL in ${embeddedFolder}.`)
  } else {
    say(`On PostgreSQL at ${target.hosts[0]?.host}, database ${target.database}.`)
    await refuseForeignDatabase(options)
  }

  heading('1  From an empty database to typed rows')
  await migrate(options)
  await compareTypes()
  await using database = await withProgress(
    'Connection',
    () => createDatabase<DB>(options),
    () => 'one pool, checked',
  )
  await seed(database)

  await showQuery(database)
  const user = await showRepositories(database)
  await showRefusal(database)
  await showTransactions(database, user)
  await showPages(database)
  await showHealth(database)

  heading('What next')
  showFields({
    'README.md': 'your first migration, its types and a repository in five minutes',
    'npm test': 'everything that is promised here, proved on real servers',
    'npm run migrate -- status': 'the migrations of the database that you configure',
    'scripts/demo.ts': 'the code above',
  })
  if (target.kind === 'embedded') say(`The data stays in ${embeddedFolder}; remove that folder to start afresh.`)
  console.log(`\n${styled('bold', `Done in ${((performance.now() - begun) / 1000).toFixed(1)} s.`)}`)
}

/** What the environment says; without a server the demo has a folder of its own. */
function demoOptions(): DatabaseOptions {
  const logger = { info: () => undefined, warn: say }
  const { postgres } = resolveConfig({ logger })
  if (postgres.kind === 'server' || process.env['DATABASE_EMBEDDED_DATA_DIR']) return { logger }
  return { logger, postgres: { embedded: { dataDir: embeddedFolder } } }
}

/** A server may hold anything: the demo goes on only where there is nothing, or what a demo has left. */
async function refuseForeignDatabase(options: DatabaseOptions): Promise<void> {
  await using database = await createDatabase<DB>(options)
  const { rows: tables } = await sql<{ name: string }>`
    select case when n.nspname = 'public' then c.relname else n.nspname || '.' || c.relname end as name
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
      and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
    order by 1`.execute(database.db)
  const names = tables.map((table) => table.name)
  if (names.length === 0) return

  const foreign = names.filter((name) => name !== 'pgmigrations' && !Object.hasOwn(ourTables, name))
  if (foreign.length > 0) throw new RefusedDatabase(`has tables that are not of this demo: ${listed(foreign)}`)
  if (!names.includes('pgmigrations')) throw new RefusedDatabase('has these tables, but no record of their migrations')
  if (!names.includes('users')) return
  const anybody = await database.db.selectFrom('users').select('id').limit(1).executeTakeFirst()
  const ada = await new UserRepository(database).findByEmail('ada@example.org')
  if (anybody && !ada) throw new RefusedDatabase('has users of its own, to whom the demo would add thousands')
}

class RefusedDatabase extends Error {
  constructor(problem: string) {
    super(
      `The database ${problem}.\nNothing was changed. Create an empty one for the demo, for instance: createdb kanta_demo`,
    )
  }
}

async function migrate(options: DatabaseOptions): Promise<void> {
  await withProgress(
    'Migrations',
    async (report) => {
      const logger = { info: report, warn: report }
      await using migrator = await createMigrator({ ...options, logger, directory: join(root, 'migrations') })
      const applied = await migrator.up()
      return { applied: applied.length, all: (await migrator.status()).length }
    },
    ({ applied, all }) => (applied === 0 ? `all ${all} are applied already` : `${applied} of ${all} SQL files applied`),
  )
}

async function compareTypes(): Promise<void> {
  await withProgress(
    'Types',
    () => checkTypes({ migrationsDirectory: join(root, 'migrations'), outFile: join(root, 'src/generated/schema.ts') }),
    ({ upToDate }) =>
      upToDate
        ? `generated from the migrations for ${Object.keys(ourTables).length} tables; src/generated/schema.ts is the same`
        : 'generated from the migrations; src/generated/schema.ts is out of date, run npm run codegen',
  )
}

async function seed(database: Database<DB>): Promise<void> {
  const { rows } = await withProgress(
    'Data',
    (report) => {
      let reported = ''
      return seedDevelopment(database, {
        onProgress: ({ table, rows: written, totalRows }) => {
          const percent = `${Math.floor((written / totalRows) * 4) * 25} %`
          // A log needs only the quarters; a terminal shows the table that is being filled, too.
          if (process.stdout.isTTY)
            report(`${table}, ${written.toLocaleString('en')} of ${totalRows.toLocaleString('en')} rows,`)
          else if (percent !== reported) report(percent)
          reported = percent
        },
      })
    },
    ({ inserted, rows: counts }) => {
      const sum = Object.values(counts).reduce((total, count) => total + count, 0)
      return inserted ? `${sum.toLocaleString('en')} rows of a shop and its community written` : 'there already'
    },
  )
  const counts = Object.entries(rows).map(
    ([table, count]) => `${count.toLocaleString('en')} ${table.replace('_', ' ')}`,
  )
  showFields({ Contents: counts.join(', ') })
}

async function showQuery(database: Database<DB>): Promise<void> {
  heading('2  A typed query: who buys most?')
  showCode(sourceOf(bestCustomers))
  const query = bestCustomers(database)
  say('The SQL that runs is the SQL that you read:')
  showCode(broken(query.compile().sql))
  const { result, took } = await timed(() => query.execute())
  showTable(result.map((row) => ({ ...row, spent: money(Number(row.spent)) })))
  say(styled('dim', took))
}

async function showRepositories(database: Database<DB>): Promise<User> {
  heading('3  Repositories: entities instead of rows')
  showCode(sourceOf(findInKitchen))
  const { result, took } = await timed(() => findInKitchen(database))
  const { user, page } = result
  if (user === undefined) throw new Error('The development data has no ada@example.org.')
  showFields({
    user: `${user.name} <${user.email}>, ${user.role}, since ${user.createdAt.toISOString().slice(0, 10)}`,
    page: `${page.length} products with their categories, in one statement`,
  })
  showTable(
    page.map(({ sku, name, priceMinor, stock, categories }) => ({
      sku,
      name,
      price: money(priceMinor),
      stock,
      categories: categories.map((category) => category.name).join(', '),
    })),
  )
  say(styled('dim', took))
  return user
}

async function showRefusal(database: Database<DB>): Promise<void> {
  heading('4  A refused insert: the same email in other letters')
  showCode(sourceOf(registerAgain))
  showFields(await refusalOf(() => registerAgain(database)))
}

async function showTransactions(database: Database<DB>, user: User): Promise<void> {
  heading('5  A transaction: lock, take from stock, write the order')
  showCode(sourceOf(placeOrder))
  const products = new ProductRepository(database)
  const wanted = await products.findMany({ isActive: true }, { orderBy: { stock: 'desc', id: 'asc' }, limit: 2 })
  const ids = wanted.map((product) => product.id)
  const state = async (): Promise<string> => {
    const stocks = await products.findMany({ id: ids }, { orderBy: { id: 'asc' } })
    const orders = await database.db
      .selectFrom('orders')
      .select((row) => row.fn.countAll().as('count'))
      .executeTakeFirstOrThrow()
    return `${stocks.map(({ sku, stock }) => `${sku} ${stock} in stock`).join(', ')}; ${orders.count} orders`
  }
  const before = await state()
  const { result: order, took } = await timed(() => placeOrder(database, user, ids, 1))
  showFields({
    before,
    order: `${order.order_id} over ${money(order.total_minor)}`,
    after: await state(),
  })
  say(styled('dim', took))

  say('')
  say('The same with a thousand pieces of each: the rule of the table refuses, and nothing of it stays.')
  const untouched = await state()
  const refusal = await refusalOf(() => placeOrder(database, user, ids, 1_000))
  const now = await state()
  showFields({ ...refusal, after: now === untouched ? `${now}: unchanged` : `${now}: CHANGED` })
}

async function showPages(database: Database<DB>): Promise<void> {
  heading('6  Pages of a feed: each goes on after the last row of the one before')
  showCode(sourceOf(feedPage))
  const { result: first, took: firstTook } = await timed(() => feedPage(database))
  const { result: second, took: secondTook } = await timed(() => feedPage(database, first.at(-1)))
  const middle = await database.db
    .selectFrom('posts')
    .select(['published_at', 'id'])
    .where('published_at', 'is not', null)
    .orderBy('published_at', 'desc')
    .orderBy('id', 'desc')
    .offset(1_999)
    .executeTakeFirst()
  const { result: deep, took: deepTook } = await timed(() => feedPage(database, middle))
  for (const [title, rows, took] of [
    ['Page 1', first, firstTook],
    ['Page 2', second, secondTook],
    ['Page 501: as quick, because nothing is skipped', deep, deepTook],
  ] as const) {
    say(`${title} ${styled('dim', `(${took})`)}`)
    showTable(rows.map(({ id: _, ...row }) => row))
  }
}

async function showHealth(database: Database<DB>): Promise<void> {
  heading('7  Health')
  const health = await database.health()
  const { pool } = database.stats()
  showFields({
    status: health.status,
    PostgreSQL: describeServer(health.postgres),
    Redis: describeRedis(health),
    pool: `${pool.total} of at most ${pool.max} connections open, ${pool.idle} idle, ${pool.waiting} callers waiting`,
  })
}

function describeServer({ status, target, version, latencyMs, error }: ServerHealth): string {
  if (error) return `${status}, ${target}: ${error.code}, ${error.message}`
  return `${status}, ${version ?? 'version unknown'}, ${target}, answered in ${latencyMs?.toFixed(1) ?? '?'} ms`
}

function describeRedis({ redis }: Health): string {
  return redis === undefined ? 'not configured; set REDIS_URL to see it here' : describeServer(redis)
}

async function refusalOf(call: () => Promise<unknown>): Promise<Record<string, string>> {
  try {
    await call()
  } catch (error) {
    if (!isDatabaseError(error)) throw error
    return {
      error: `${error.name}, code ${error.code}`,
      constraint: `${error.constraint} of table ${error.table}`,
      message: error.message,
      retry: error.retry === 'none' ? 'none: it would fail again' : error.retry,
    }
  }
  throw new Error('The database accepted what it has to refuse.')
}

/** The function as it stands in this file: what is shown is what runs. */
function sourceOf(step: { readonly name: string }): string {
  const lines = readFileSync(import.meta.filename, 'utf8').split('\n')
  const start = lines.findIndex((line) => new RegExp(`^(async )?function ${step.name}\\(`).test(line))
  const end = lines.indexOf('}', start)
  return lines.slice(start, end + 1).join('\n')
}

/** One clause a line. */
function broken(text: string): string {
  return text.replace(/ (from|inner join|where|group by|order by|limit) /g, '\n$1 ')
}

async function timed<Result>(work: () => Promise<Result>): Promise<{ result: Result; took: string }> {
  const begun = performance.now()
  const result = await work()
  return { result, took: `${(performance.now() - begun).toFixed(1)} ms` }
}

function money(minor: number): string {
  return `${(minor / 100).toLocaleString('en', { minimumFractionDigits: 2 })} €`
}

function listed(names: readonly string[]): string {
  return names.length > 6 ? `${names.slice(0, 6).join(', ')} and ${names.length - 6} more` : names.join(', ')
}

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    // Whatever is half done is in a transaction that now never commits.
    console.log('\n  Stopped. Nothing is half done; run it again whenever you like.')
    process.exit(128 + constants.signals[signal])
  })
}

// The folder of the data is the same wherever this is started.
process.chdir(root)
try {
  await main()
} catch (error) {
  if (isDatabaseError(error)) console.error(`\n${error.message}\n(${error.code})`)
  else if (error instanceof RefusedDatabase) console.error(`\n${error.message}`)
  else throw error
  process.exitCode = 2
}
