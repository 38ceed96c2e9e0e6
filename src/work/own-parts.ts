import type { OwnTables } from '../schema/own-tables.ts'
import { outboxTables } from './outbox-tables.ts'
import { sagaTables } from './saga-tables.ts'

/** All tables of kanta itself that this version knows, for `kanta install`. */
export const ownParts: readonly OwnTables[] = [outboxTables, sagaTables]
