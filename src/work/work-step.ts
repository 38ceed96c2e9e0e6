import type { ItemState } from './work-item.ts'
import type { WorkGroup, WorkRows } from './work-group.ts'

/** One statement of a flush, as {@link UnitOfWork.plan} tells it. */
export interface WorkStep {
  /**
   * `values`: the server is asked for values of defaults that must be known before. `complete`: new rows of a circle of foreign keys get
   * what had to be null at first; `detach`: rows of such a circle let go of each other before they are deleted. `check`: rows without a
   * change are locked against one, and their versions compared. `defer`, `enforce`: foreign keys are checked later, and now.
   */
  readonly operation:
    | 'check'
    | 'complete'
    | 'defer'
    | 'delete'
    | 'detach'
    | 'enforce'
    | 'insert'
    | 'mark deleted'
    | 'update'
    | 'values'
  /** None where it is about several. */
  readonly table: string | undefined
  readonly rows: number
  /** What it writes, beside what the repository keeps itself; of foreign keys their names. */
  readonly columns: readonly string[]
  /** Why it is there, and at this place. */
  readonly why: string
}

/** A {@link WorkStep} with what it writes. */
export interface Step extends WorkStep {
  /** The rows in the order in which they are sent. */
  readonly items: readonly ItemState[]
  readonly group: WorkGroup | undefined
  /** What is sent of a row. */
  readonly written: WorkRows
}
