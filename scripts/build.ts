/** `npm run build`: `dist/` from `src/`, from scratch, so that nothing of an older build is packed. */

import { chmodSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { runScript } from './steps.ts'

const dist = join(import.meta.dirname, '../dist')

rmSync(dist, { recursive: true, force: true })
const { code } = await runScript(['node_modules/typescript/bin/tsc', '-p', 'tsconfig.build.json'], 'shown')
// npm makes a `bin` executable when it installs it; this is for those who run the build where it lies.
if (code === 0) chmodSync(join(dist, 'cli/main.js'), 0o755)
process.exitCode = code
