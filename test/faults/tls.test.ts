import { inspect } from 'node:util'
import { sql } from 'kysely'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { SslMode } from '../../src/index.ts'
import { startProxy } from '../../src/testing/fault-proxy.ts'
import { type OwnServer, startPostgres } from '../support/servers.ts'
import { type Certificate, makeCertificate, startTlsPostgres } from './certificates.ts'
import { open } from './open.ts'
import { record, tally, times } from './record.ts'
import { attempt } from './witness.ts'

const password = 'hunter2!correct horse'

let ours: Certificate
let foreign: Certificate
let elsewhere: Certificate
let tls: OwnServer
let misnamed: OwnServer
let plaintext: OwnServer

beforeAll(async () => {
  ours = makeCertificate('127.0.0.1')
  foreign = makeCertificate('127.0.0.1')
  elsewhere = makeCertificate('db.example.org')
  ;[tls, misnamed, plaintext] = await Promise.all([
    startTlsPostgres(ours),
    startTlsPostgres(elsewhere),
    startPostgres(),
  ])
}, 60_000)

afterAll(() => Promise.all([tls.stop(), misnamed.stop(), plaintext.stop()]))

interface Setting {
  readonly server: () => OwnServer
  readonly ssl: SslMode
  readonly sslCa?: () => string
}

const refused: readonly (readonly [string, Setting])[] = [
  ['a certificate of another authority', { server: () => tls, ssl: 'verify-full', sslCa: () => foreign.certificate }],
  ['a certificate that nobody vouches for', { server: () => tls, ssl: 'verify-full' }],
  [
    'a certificate for another host',
    { server: () => misnamed, ssl: 'verify-full', sslCa: () => elsewhere.certificate },
  ],
  ['a plaintext server where the certificate is to be checked', { server: () => plaintext, ssl: 'verify-full' }],
  ['a plaintext server where encryption is wanted', { server: () => plaintext, ssl: 'no-verify' }],
]

test.each(refused)(
  'row 23: %s is refused always, without fall-back and without the password in the error',
  async (name, setting) => {
    const url = Object.assign(new URL(setting.server().url), { password }).href
    const proxy = await startProxy({ to: url })
    try {
      const runs = times(100, 5)
      const codes: string[] = []
      const shown: string[] = []
      for (let run = 0; run < runs; run += 1) {
        const sslCa = setting.sslCa?.()
        const { error } = await attempt(() =>
          open<never>(proxy.url, { ssl: setting.ssl, ...(sslCa !== undefined && { sslCa }) }),
        )
        codes.push(error?.code ?? 'connected')
        shown.push(
          inspect(error, { depth: 10, showHidden: true }),
          JSON.stringify(error),
          String(error),
          String(error?.stack),
        )
      }
      const secrets = shown.filter((text) => text.includes('hunter2') || text.includes(encodeURIComponent(password)))
      record(
        23,
        runs,
        `${name}: ${tally(codes)}; ${proxy.count('client', 'Startup')} in plain text; ${secrets.length} with a secret`,
      )
      expect(new Set(codes)).toEqual(new Set(['TLS_FAILED']))
      expect(proxy.count('client', 'SslRequest')).toBeGreaterThanOrEqual(runs)
      expect(proxy.count('client', 'Startup')).toBe(0)
      expect(secrets).toEqual([])
    } finally {
      await proxy.close()
    }
  },
)

test('row 23: the right certificate is accepted, and every byte is encrypted', async () => {
  const proxy = await startProxy({ to: tls.url })
  try {
    await using database = await open<never>(proxy.url, { ssl: 'verify-full', sslCa: ours.certificate })
    expect(await database.query(sql`select ssl from pg_stat_ssl where pid = pg_backend_pid()`)).toEqual([{ ssl: true }])
    expect([proxy.count('client', 'Startup'), proxy.statements.size]).toEqual([0, 0])
  } finally {
    await proxy.close()
  }
})
