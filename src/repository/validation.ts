import { ValidationError } from '../core/errors.ts'

/**
 * A schema of any validator that follows Standard Schema, version 1: zod, valibot, arktype and others.
 *
 * @see https://standardschema.dev
 */
export interface StandardSchema {
  readonly '~standard': {
    readonly version: 1
    readonly vendor: string
    // As the specification has it, a type that is there for the compiler only.
    readonly types?: { readonly input: unknown; readonly output: unknown } | undefined
    validate(value: unknown): SchemaResult | Promise<SchemaResult>
  }
}

type SchemaResult =
  | { readonly value: unknown; readonly issues?: undefined }
  | { readonly issues: readonly SchemaIssue[] }

interface SchemaIssue {
  readonly message: string
  readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[] | undefined
}

/** What a schema makes of values: they may be trimmed, completed, converted. `VALIDATION_FAILED` when it refuses them. */
export async function validated(schema: StandardSchema, values: object, table: string, call: string): Promise<object> {
  const result = await schema['~standard'].validate(values)
  if (result.issues === undefined) return result.value as object
  const issues = result.issues.map(({ message, path = [] }) => ({ message, path: pathText(path) }))
  const places = [...new Set(issues.map(({ path }) => path || 'the values as a whole'))].join(', ')
  throw new ValidationError(`${table}: ${call} was given values that its schema refuses: ${places}. See issues.`, {
    table,
    issues,
  })
}

function pathText(path: readonly (PropertyKey | { readonly key: PropertyKey })[]): string {
  return path.map((part) => String(typeof part === 'object' ? part.key : part)).join('.')
}
