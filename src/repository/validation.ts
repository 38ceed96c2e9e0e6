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
  throw refusalOf(result.issues, table, call)
}

/** {@link validated} for a list; the path of an issue begins with the place in it. */
export async function validatedAll(
  schema: StandardSchema,
  list: readonly object[],
  table: string,
): Promise<readonly object[]> {
  const results = await Promise.all(list.map(async (values) => schema['~standard'].validate(values)))
  const issues = results.flatMap((result, place) =>
    (result.issues ?? []).map(({ message, path = [] }) => ({ message, path: [place, ...path] })),
  )
  if (issues.length > 0) throw refusalOf(issues, table, 'createMany')
  return results.map((result) => ('value' in result ? (result.value as object) : {}))
}

function refusalOf(found: readonly SchemaIssue[], table: string, call: string): ValidationError {
  const issues = found.map(({ message, path = [] }) => ({ message, path: pathText(path) }))
  const places = [...new Set(issues.map(({ path }) => path || 'the values as a whole'))].join(', ')
  const shown = places.length > 300 ? `${places.slice(0, 300)}…` : places
  return new ValidationError(`${table}: ${call} was given values that its schema refuses: ${shown}. See issues.`, {
    table,
    issues,
  })
}

function pathText(path: readonly (PropertyKey | { readonly key: PropertyKey })[]): string {
  return path.map((part) => String(typeof part === 'object' ? part.key : part)).join('.')
}
