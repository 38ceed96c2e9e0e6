import { createDatabase, isViolation } from 'kanta'
import type { ConstraintName, DB } from './generated/schema.ts'

await using database = await createDatabase<DB>()
const { db } = database

await db.insertInto('notes').values({ title: 'Buy milk' }).execute()
const notes = await db.selectFrom('notes').select(['title', 'done']).where('done', '=', false).execute()
console.log(`${notes.length} note: ${notes.map((note) => note.title).join(', ')}`)

try {
  await db.insertInto('notes').values({ title: 'Buy milk' }).execute()
} catch (error) {
  if (!isViolation<ConstraintName>(error, 'notes_title_key')) throw error
  console.log(error.code, error.constraint)
}
