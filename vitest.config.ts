import { availableParallelism } from 'node:os'
import { defineConfig, type ViteUserConfig } from 'vitest/config'

// Left to itself, vitest keeps one core free, which is half of a small machine.
const cores = availableParallelism()

// These wait for a server, a child process or a time limit most of the time: one more keeps the cores busy.
const maxWorkers = cores + 1

const config: ViteUserConfig = defineConfig({
  test: {
    // A test that was left alone on purpose while writing must not hide the others in CI.
    allowOnly: !process.env['CI'],
    projects: [
      {
        test: {
          name: 'unit',
          maxWorkers,
          include: ['test/unit/**/*.test.ts'],
          // Properties are tried hundreds of times, beside integration tests that take both cores.
          testTimeout: 20_000,
        },
      },
      {
        test: {
          name: 'integration',
          maxWorkers,
          include: ['test/integration/**/*.test.ts'],
          globalSetup: 'test/support/global-setup.ts',
          setupFiles: 'test/support/database.ts',
          testTimeout: 20_000,
          hookTimeout: 60_000,
        },
      },
      {
        test: {
          name: 'faults',
          // One file at a time and nothing beside it: many of these tests have limits of some ten milliseconds.
          fileParallelism: false,
          sequence: { groupOrder: 2 },
          include: ['test/faults/**/*.test.ts'],
          globalSetup: 'test/support/global-setup.ts',
          setupFiles: 'test/support/database.ts',
          testTimeout: 30_000,
          hookTimeout: 60_000,
        },
      },
      {
        test: {
          name: 'types',
          maxWorkers: cores,
          // Compilers and npm keep all cores busy; tests with time limits go before them.
          sequence: { groupOrder: 1 },
          include: ['test/types/**/*.test.ts'],
          testTimeout: 120_000,
          typecheck: { enabled: true, include: ['test/types/**/*.test-d.ts'], tsconfig: 'test/types/tsconfig.json' },
        },
      },
      {
        test: {
          name: 'package',
          maxWorkers: cores,
          sequence: { groupOrder: 1 },
          include: ['test/package/**/*.test.ts'],
          testTimeout: 120_000,
          hookTimeout: 120_000,
        },
      },
    ],
  },
})

export default config
