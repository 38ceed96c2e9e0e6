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
export {
  type ClientMessage,
  type Fault,
  faultProxy,
  type InjectedFailure,
  type MessagePattern,
  type Proxy,
  type ProxyOptions,
  type Rule,
  type RuleOptions,
  type ServerMessage,
} from './testing/fault-proxy.ts'
export { factory, type Factory, type FactoryOptions, type FactorySource, type Sequence } from './testing/factory.ts'
export { type DomainFactories, factories, testPassword } from './testing/domain-factories.ts'
export { cacheClock, type CacheClock } from './testing/cache-clock.ts'
export { type InMemoryDomain, inMemoryDomain, type InMemoryDomainOptions } from './testing/in-memory-domain.ts'
