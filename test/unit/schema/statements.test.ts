import { array, assert, constantFrom, property } from 'fast-check'
import { expect, test } from 'vitest'
import { splitStatements } from '../../../src/schema/statements.ts'

const sqlOf = (script: string): string[] => splitStatements(script).statements.map((statement) => statement.sql)

test('semicolons end statements; empty ones and comments around them are nothing', () => {
  expect(sqlOf('select 1; select 2')).toEqual(['select 1', 'select 2'])
  expect(sqlOf(';; select 1 ;\n-- end\n;')).toEqual(['select 1'])
  expect(sqlOf('/* a; /* nested; */ b; */ select 1; -- c;\nselect 2 -- d;')).toEqual(['select 1', 'select 2'])
  expect(sqlOf(' \n\t')).toEqual([])
})

test.each([
  ["insert into t values ('a;b', 'it''s; fine')", 'strings'],
  [String.raw`select E'\';', e'\\', ';'`, 'escape strings'],
  [String.raw`select 'C:\', 'a'`, 'a backslash in a standard string'],
  ['select 1 as "a;""b"', 'quoted names'],
  ['do $$ begin perform 1; end $$', 'dollar quotes'],
  ['do $body$ select $$;$$; $body$', 'tagged dollar quotes'],
  ['select a$b, 1 as c$d$, 2', 'dollar signs in names'],
  ['create rule r as on insert to t do (select 1; select 2)', 'parentheses'],
  ['create function f() returns int begin atomic select 1; select case when true then 1 else 2 end; end', 'SQL bodies'],
  ['create or replace procedure p() language sql begin atomic select 1; select 2; end', 'SQL bodies of procedures'],
  ['create table t (a int); '.trim().slice(0, -1), 'names and types'],
  ['select 1e5, 0x1F, 10_000, $1, \'é;\', "ü;"', 'numbers, parameters and letters beyond ASCII'],
])('%s is one statement (%s)', (statement) => {
  expect(sqlOf(`${statement};\nselect 1`)).toEqual([statement, 'select 1'])
})

test('words like "begin" outside a function body do not hide the end of a statement', () => {
  expect(sqlOf('create table begin_atomic (a int); select 1')).toHaveLength(2)
  expect(
    sqlOf("create function f() returns int language sql as 'select 1'; select case when true then 1 end; select 2"),
  ).toHaveLength(3)
})

test('positions are those of the script', () => {
  const script = '-- première\n  select 1;\n\nselect\n  2 ;'
  for (const { sql, start } of splitStatements(script).statements)
    expect(script.slice(start, start + sql.length)).toBe(sql)
})

test('a given position ends a statement that has no semicolon', () => {
  const script = 'create table t (a int)\n-- Down Migration\ndrop table t'
  const at = script.indexOf('-- Down')
  expect(splitStatements(script, [at]).statements.map(({ sql }) => sql)).toEqual([
    'create table t (a int)',
    'drop table t',
  ])
})

test.each([
  ["select 1;\nselect 'abc", 'a string', 17],
  ['select "abc', 'a quoted name', 7],
  ['do $x$ begin end $y$', 'a body quoted by $x$', 3],
  ['select 1 /* /* */', 'a comment', 9],
])('%s is unclosed', (script, what, start) => {
  expect(splitStatements(script).unclosed).toEqual({ what, start })
})

test('whatever the text, statements are in order, do not overlap, and nothing but space and comments is lost', () => {
  const piece = constantFrom(
    "'",
    '"',
    '$$',
    '$a$',
    ';',
    '--',
    '\n',
    '/*',
    '*/',
    '(',
    ')',
    'create',
    'function',
    'begin',
    'end',
    'case',
    ' ',
    'e',
    '\\',
    'x',
    '1',
    '😀',
  )
  assert(
    property(array(piece, { maxLength: 40 }), (pieces) => {
      const script = pieces.join('')
      const { statements, unclosed } = splitStatements(script)
      let end = 0
      for (const { sql, start } of statements) {
        expect(start).toBeGreaterThanOrEqual(end)
        expect(script.slice(start, start + sql.length)).toBe(sql)
        const between = script
          .slice(end, start)
          .replaceAll(/--[^\n]*/g, '')
          .replaceAll(';', '')
          .trim()
        expect(script.includes('/*') ? '' : between).toBe('')
        end = start + sql.length
      }
      expect(unclosed?.start ?? -1).toBeLessThan(script.length)
    }),
    { numRuns: 2_000 },
  )
})

test('a long script takes time in proportion to its length', () => {
  const script = `insert into t values ('${"it''s ".repeat(200_000)}');\n`.repeat(2)
  expect(sqlOf(script)).toHaveLength(2)
})
