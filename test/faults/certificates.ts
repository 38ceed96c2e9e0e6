/** Certificates for servers that speak TLS, made for the test and gone with it. */

import { execFileSync } from 'node:child_process'
import { chownSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { type OwnServer, startPostgres } from '../support/servers.ts'
import { witness } from './witness.ts'

/** A certificate that vouches for itself, and its key, as PEM. */
export interface Certificate {
  readonly certificate: string
  readonly key: string
}

/** Makes a certificate for a host name or address. Needs the `openssl` program. */
export function makeCertificate(host: string): Certificate {
  const folder = mkdtempSync(join(tmpdir(), 'kanta-certificate-'))
  const [key, certificate] = [join(folder, 'key.pem'), join(folder, 'certificate.pem')]
  const name = /^[\d.]+$/.test(host) ? `IP:${host}` : `DNS:${host}`
  try {
    execFileSync(
      'openssl',
      ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'].concat([
        '-subj',
        `/CN=${host}`,
        '-addext',
        `subjectAltName=${name}`,
        '-keyout',
        key,
        '-out',
        certificate,
      ]),
      { stdio: 'pipe' },
    )
    return { certificate: readFileSync(certificate, 'utf8'), key: readFileSync(key, 'utf8') }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** A PostgreSQL that speaks TLS with this certificate, and plain text too: what is refused, the client refuses. */
export async function startTlsPostgres({ certificate, key }: Certificate): Promise<OwnServer> {
  const server = await startPostgres()
  try {
    const { uid, gid } = statSync(server.dataDir)
    for (const [name, content] of [
      ['server.crt', certificate],
      ['server.key', key],
    ] as const) {
      const file = join(server.dataDir, name)
      writeFileSync(file, content, { mode: 0o600 })
      chownSync(file, uid, gid)
    }
    await using admin = await witness(server.url)
    await admin.rows('alter system set ssl = on')
    await admin.rows('select pg_reload_conf()')
    while ((await admin.value('show ssl')) !== 'on') await delay(5)
    return server
  } catch (error) {
    await server.stop()
    throw error
  }
}
