/** Who does the thousand changes of work.ts, each as its own guide would write it. */

import { defineEntity, MikroORM, p } from '@mikro-orm/postgresql'
import type { Generated } from 'kysely'
import { Client } from 'pg'
import { DataSource, EntitySchema, type EntitySchemaColumnOptions } from 'typeorm'
import { createDatabase, type QuerySource, Repository, UnitOfWork } from '../../src/index.ts'
import { changes, news, type OpenWorkContender, removedArticles, removedRemarks, upTo } from './work.ts'

interface Writer {
  readonly id: number
  name: string
  readonly version: number
}

interface Article {
  readonly id: number
  readonly writer_id: number
  title: string
  readonly version: number
}

interface Remark {
  readonly id: number
  readonly article_id: number
  body: string
  readonly version: number
}

/** The new ones refer to each other: three articles to a writer, and the remarks to the articles in turn. */
const writerOf = (article: number): number => article % news.writers
const articleOf = (remark: number): number => remark % news.articles

interface Shop {
  writers: { id: Generated<number>; name: string; version: Generated<number> }
  articles: { id: Generated<number>; writer_id: number; title: string; version: Generated<number> }
  remarks: { id: Generated<number>; article_id: number; body: string; version: Generated<number> }
}

class Writers extends Repository<Shop, 'writers'> {
  constructor(database: QuerySource<Shop>) {
    super(database, {
      table: 'writers',
      columns: { id: 'id', name: 'name', version: 'version' },
      version: 'version',
    })
  }
}

class Articles extends Repository<Shop, 'articles'> {
  constructor(database: QuerySource<Shop>) {
    super(database, {
      table: 'articles',
      columns: { id: 'id', writer_id: 'writer_id', title: 'title', version: 'version' },
      version: 'version',
    })
  }
}

class Remarks extends Repository<Shop, 'remarks'> {
  constructor(database: QuerySource<Shop>) {
    super(database, {
      table: 'remarks',
      columns: { id: 'id', article_id: 'article_id', body: 'body', version: 'version' },
      version: 'version',
    })
  }
}

async function openKanta(url: string): Promise<OpenWorkContender> {
  const database = await createDatabase<Shop>({ postgres: { url }, redis: false })
  const [writers, articles, remarks] = [new Writers(database), new Articles(database), new Remarks(database)]
  return {
    name: 'kanta',
    async prepare() {
      const changing = {
        writers: await writers.findMany({ id: upTo(changes.writers) }),
        articles: await articles.findMany({ id: upTo(changes.articles) }),
        remarks: await remarks.findMany({ id: upTo(changes.remarks) }),
      }
      const leaving = {
        articles: await articles.findMany({ id: removedArticles }),
        remarks: await remarks.findMany({ id: removedRemarks }),
      }
      return {
        run() {
          const work = new UnitOfWork(database)
          const made = upTo(news.writers).map((n) => work.create(writers, { name: `New ${n}` }))
          const written = upTo(news.articles).map((n) =>
            work.create(articles, { writer_id: made[writerOf(n)]?.ref('id') ?? 0, title: `New ${n}` }),
          )
          for (const n of upTo(news.remarks)) {
            work.create(remarks, { article_id: written[articleOf(n)]?.ref('id') ?? 0, body: `New ${n}` })
          }
          for (const writer of changing.writers) work.update(writers, writer, { name: `Changed ${writer.id}` })
          for (const article of changing.articles) work.update(articles, article, { title: `Changed ${article.id}` })
          for (const remark of changing.remarks) work.update(remarks, remark, { body: `Changed ${remark.id}` })
          for (const remark of leaving.remarks) work.delete(remarks, remark)
          for (const article of leaving.articles) work.delete(articles, article)
          return work.flush()
        },
      }
    },
    [Symbol.asyncDispose]: () => database.close(),
  }
}

const mikroWriters = defineEntity({
  name: 'writers',
  properties: { id: p.integer().primary().autoincrement(), name: p.text(), version: p.integer().version() },
})

const mikroArticles = defineEntity({
  name: 'articles',
  properties: {
    id: p.integer().primary().autoincrement(),
    title: p.text(),
    writer: () => p.manyToOne(mikroWriters).joinColumn('writer_id'),
    version: p.integer().version(),
  },
})

const mikroRemarks = defineEntity({
  name: 'remarks',
  properties: {
    id: p.integer().primary().autoincrement(),
    body: p.text(),
    article: () => p.manyToOne(mikroArticles).joinColumn('article_id'),
    version: p.integer().version(),
  },
})

/** MikroORM with one fork of the entity manager, whose entities are read before. */
async function openMikro(url: string): Promise<OpenWorkContender> {
  const orm = await MikroORM.init({
    clientUrl: url,
    pool: { min: 1, max: 4, idleTimeoutMillis: 0 },
    entities: [mikroWriters, mikroArticles, mikroRemarks],
  })
  return {
    name: 'mikro-orm',
    async prepare() {
      const manager = orm.em.fork()
      const changing = {
        writers: await manager.find(mikroWriters, { id: { $in: upTo(changes.writers) } }),
        articles: await manager.find(mikroArticles, { id: { $in: upTo(changes.articles) } }),
        remarks: await manager.find(mikroRemarks, { id: { $in: upTo(changes.remarks) } }),
      }
      const leaving = {
        articles: await manager.find(mikroArticles, { id: { $in: removedArticles } }),
        remarks: await manager.find(mikroRemarks, { id: { $in: removedRemarks } }),
      }
      return {
        run() {
          const made = upTo(news.writers).map((n) => manager.create(mikroWriters, { name: `New ${n}` }))
          const written = upTo(news.articles).map((n) => {
            const writer = made[writerOf(n)] as (typeof made)[number]
            return manager.create(mikroArticles, { writer, title: `New ${n}` })
          })
          for (const n of upTo(news.remarks)) {
            const article = written[articleOf(n)] as (typeof written)[number]
            manager.create(mikroRemarks, { article, body: `New ${n}` })
          }
          for (const writer of changing.writers) writer.name = `Changed ${writer.id}`
          for (const article of changing.articles) article.title = `Changed ${article.id}`
          for (const remark of changing.remarks) remark.body = `Changed ${remark.id}`
          for (const remark of leaving.remarks) manager.remove(remark)
          for (const article of leaving.articles) manager.remove(article)
          return manager.flush()
        },
      }
    },
    [Symbol.asyncDispose]: () => orm.close(),
  }
}

const key: EntitySchemaColumnOptions = { type: 'int', primary: true, generated: true }
const text: EntitySchemaColumnOptions = { type: 'text' }
// It counts changes, and compares none: TypeORM has optimistic locks for reads only.
const version: EntitySchemaColumnOptions = { type: 'int', version: true }

const typeormWriters = new EntitySchema<Writer>({ name: 'writers', columns: { id: key, name: text, version } })
const typeormArticles = new EntitySchema<Article & { writer: Writer }>({
  name: 'articles',
  columns: { id: key, title: text, version },
  relations: { writer: { type: 'many-to-one', target: 'writers', joinColumn: { name: 'writer_id' } } },
})
const typeormRemarks = new EntitySchema<Remark & { article: Article }>({
  name: 'remarks',
  columns: { id: key, body: text, version },
  relations: { article: { type: 'many-to-one', target: 'articles', joinColumn: { name: 'article_id' } } },
})

/** TypeORM with `save` and `remove` of lists in one transaction, parents first. */
async function openTypeOrm(url: string): Promise<OpenWorkContender> {
  const source = await new DataSource({
    type: 'postgres',
    url,
    poolSize: 4,
    entities: [typeormWriters, typeormArticles, typeormRemarks],
  }).initialize()
  const { manager } = source
  const read = async <Entity extends object>(
    schemaOf: EntitySchema<Entity>,
    ids: readonly number[],
  ): Promise<Entity[]> => manager.createQueryBuilder(schemaOf, 'one').where('one.id = any(:ids)', { ids }).getMany()
  return {
    name: 'typeorm',
    async prepare() {
      const changing = {
        writers: await read(typeormWriters, upTo(changes.writers)),
        articles: await read(typeormArticles, upTo(changes.articles)),
        remarks: await read(typeormRemarks, upTo(changes.remarks)),
      }
      const leaving = {
        articles: await read(typeormArticles, removedArticles),
        remarks: await read(typeormRemarks, removedRemarks),
      }
      return {
        run() {
          const writers = upTo(news.writers).map((n) => manager.create(typeormWriters, { name: `New ${n}` }))
          // `create` copies what it is given, and a copy of a writer would have no key.
          const articles = upTo(news.articles).map((n) =>
            Object.assign(manager.create(typeormArticles, { title: `New ${n}` }), { writer: writers[writerOf(n)] }),
          )
          const remarks = upTo(news.remarks).map((n) =>
            Object.assign(manager.create(typeormRemarks, { body: `New ${n}` }), { article: articles[articleOf(n)] }),
          )
          for (const writer of changing.writers) writer.name = `Changed ${writer.id}`
          for (const article of changing.articles) article.title = `Changed ${article.id}`
          for (const remark of changing.remarks) remark.body = `Changed ${remark.id}`
          return source.transaction(async (transaction) => {
            await transaction.save(typeormWriters, [...writers, ...changing.writers])
            await transaction.save(typeormArticles, [...articles, ...changing.articles])
            await transaction.save(typeormRemarks, [...remarks, ...changing.remarks])
            await transaction.remove(typeormRemarks, leaving.remarks)
            await transaction.remove(typeormArticles, leaving.articles)
          })
        },
      }
    },
    [Symbol.asyncDispose]: () => source.destroy(),
  }
}

/** One prepared statement for each row, each after the answer to the one before, with versions, in one transaction. */
async function openPg(url: string): Promise<OpenWorkContender> {
  const client = new Client({ connectionString: url })
  await client.connect()
  async function one(name: string, sql: string, values: unknown[]): Promise<number> {
    const { rows: answered, rowCount } = await client.query<{ id: number }>({ name, text: sql, values })
    if (rowCount !== 1) throw new Error(`${name} met ${rowCount} rows.`)
    return answered[0]?.id ?? 0
  }
  const insert = (table: string, parent: string, title: string, values: unknown[]): Promise<number> =>
    one(
      `insert ${table}`,
      `insert into ${table} (${title}${parent}) values (${values.map((_, n) => `$${n + 1}`).join()}) returning *`,
      values,
    )
  const change = (table: string, title: string, id: number): Promise<number> =>
    one(
      `update ${table}`,
      `update ${table} set ${title} = $1, version = version + 1 where id = $2 and version = $3 returning *`,
      [`Changed ${id}`, id, 1],
    )
  const remove = (table: string, id: number): Promise<number> =>
    one(`delete ${table}`, `delete from ${table} where id = $1 and version = $2`, [id, 1])
  return {
    name: 'pg, row by row',
    prepare: () =>
      Promise.resolve({
        async run() {
          await client.query('begin')
          const writers: number[] = []
          for (const n of upTo(news.writers)) writers.push(await insert('writers', '', 'name', [`New ${n}`]))
          const articles: number[] = []
          for (const n of upTo(news.articles))
            articles.push(await insert('articles', ', writer_id', 'title', [`New ${n}`, writers[writerOf(n)]]))
          for (const n of upTo(news.remarks))
            await insert('remarks', ', article_id', 'body', [`New ${n}`, articles[articleOf(n)]])
          for (const id of upTo(changes.writers)) await change('writers', 'name', id)
          for (const id of upTo(changes.articles)) await change('articles', 'title', id)
          for (const id of upTo(changes.remarks)) await change('remarks', 'body', id)
          for (const id of removedRemarks) await remove('remarks', id)
          for (const id of removedArticles) await remove('articles', id)
          await client.query('commit')
        },
      }),
    [Symbol.asyncDispose]: () => client.end(),
  }
}

/** All, in the order of the report. */
export const workContenders: readonly ((url: string) => Promise<OpenWorkContender>)[] = [
  openKanta,
  openPg,
  openMikro,
  openTypeOrm,
]
