import { expect, test } from 'vitest'
import { errorCatalog, type ErrorCode, retryScope } from '../../../src/core/errors.ts'

// `npm test -- errors-page -u` writes the page anew.
test('docs/errors.md is the catalog', async () => {
  await expect(page()).toMatchFileSnapshot('../../../docs/errors.md')
})

function page(): string {
  const rows = (Object.keys(errorCatalog) as ErrorCode[]).map((code) => {
    const advice = errorCatalog[code]
    const cells = [
      `\`${code}\``,
      `${advice.meaning} ${advice.remedy}`,
      advice.transient ? 'yes' : 'no',
      retryScope(advice),
      retryScope(advice, true),
    ]
    return `| ${cells.join(' | ')} |`
  })
  return `# Errors

Everything that kanta throws is a \`DatabaseError\` with a literal \`code\`. Compare codes, not messages.

- \`transient\`: waiting may help, nothing in the program or its data has to change.
- \`retry\`: what may be run again without running anything twice. \`statement\`: the same statement, even a write, because it
  never ran or was undone. \`transaction\`: only the whole transaction, from its first statement. \`none\`: nothing, because it
  would fail again or because it may already have happened.
- \`sql\`, \`sqlState\`, \`schema\`, \`table\`, \`column\`, \`constraint\` where they apply. Parameters and credentials are in no message
  and no field. The driver's error is in \`cause\`; what PostgreSQL quotes of a row (\`cause.detail\`) can be read there but is not
  enumerable, so that loggers do not print it.

\`isDatabaseError(error)\` recognises them, also across two copies of the package; \`isViolation<ConstraintName>(error, 'users_email_key')\`
recognises the violation of one constraint, and stops compiling when the constraint is renamed.

| code | what it means, what to do | transient | \`retry\` outside a transaction | inside one |
|---|---|---|---|---|
${rows.join('\n')}
`
}
