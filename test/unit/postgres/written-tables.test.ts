import { expect, test } from 'vitest'
import { writtenTables } from '../../../src/postgres/statement-text.ts'

test.each([
  ['select * from a', []],
  ['insert into a values (1)', ['a']],
  ['INSERT\n INTO "Odd ""Name""" values (1)', ['Odd "Name"']],
  ['update only Shop . "Items" set x = 1', ['shop.Items']],
  ['delete from a using b', ['a']],
  ['merge into a using b on true when matched then delete', ['a']],
  ['truncate table only a', ['a']],
  ['with x as (update a set n = 1 returning *) insert into b select * from x', ['a', 'b']],
  ['copy a (x) from stdin', ['a']],
  ['copy (select 1) to stdout', []],
  ['refresh materialized view concurrently m', ['m']],
  ['insert into bücher values (1)', ['bücher']],
  ['insert into a values (1); delete from a; update b set n = 1', ['a', 'b']],
  ['select 1 for update', []],
  ['select updated from deletes', []],
  ['with x as (delete from kanta.outbox returning *) insert into a select * from x', ['a']],
])('%s writes %j', (sql, tables) => {
  expect(writtenTables(sql)).toEqual(tables)
})
