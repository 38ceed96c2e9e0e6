/**
 * What a team tests with: fresh databases, sandboxes, databases in memory, factories, faults. It works with any runner.
 *
 * @module kanta/testing
 */
export { openSandbox, type Sandbox, sandbox, type SandboxOptions } from './testing/sandbox.ts'
export type { SandboxIsolation } from './testing/sandbox-commands.ts'
export { memoryDatabase, type MemoryDatabaseOptions } from './testing/memory-database.ts'
export type { SchemaSource } from './testing/schema-source.ts'
export { type TestServer, testServer, type TestServerOptions } from './testing/test-server.ts'
