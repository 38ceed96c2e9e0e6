/** The faults and what has to hold under each. The numbers are those of the tests' names and of docs/faults.md. */

/** One fault. */
export interface FaultRow {
  readonly fault: string
  readonly bar: string
}

/** By number. Numbers that are missing are faults that no test here provokes. */
export const faultRows: Readonly<Record<number, FaultRow>> = {
  1: {
    fault: 'transfers while backends and the server are killed',
    bar: 'sum unchanged; each success there once, each failure absent, only Unknown may be either; no duplicate',
  },
  2: { fault: 'COMMIT reply lost', bar: 'all Unknown, or resolved rightly; nothing replayed' },
  3: { fault: 'cut before and after an INSERT', bar: 'no duplicate row' },
  4: {
    fault: 'backends terminated while idle, held, active',
    bar: 'no uncaught error; pool back to size; next query works',
  },
  5: {
    fault: 'backends and server frozen',
    bar: 'fails within deadline + 50 ms; breaker opens; back after one probe',
  },
  6: { fault: 'black hole at connect, in TLS, in mid-row', bar: 'fails within deadline + 50 ms; no slot lost' },
  7: { fault: 'half a message, wrong byte, wrong length', bar: 'rejects in time; connection discarded' },
  8: { fault: 'one byte per second', bar: "the whole deadline holds; others' p99 under 2 ×" },
  9: {
    fault: 'read timeout on pg_sleep',
    bar: 'backend gone within 1 s; next borrower clean, every time',
  },
  10: { fault: 'cancel after random microseconds', bar: 'no wrong query canceled' },
  11: { fault: 'callback throws at each step of a transaction', bar: 'no leak; original error kept' },
  12: { fault: 'full restart', bar: 'back within 2 s of readiness; connects spread out' },
  13: {
    fault: 'failover: standby promoted, old primary killed or demoted',
    bar: 'writes reach the new primary within 5 s; nothing that was committed is lost',
  },
  14: { fault: 'replica killed, frozen, or in recovery conflict', bar: 'reads go elsewhere, under 0.1 % errors' },
  15: { fault: 'max_connections used up', bar: 'typed error; recovers; no storm' },
  16: { fault: 'ten times the load', bar: 'everything settles within the acquire timeout; queue bounded' },
  17: { fault: 'crossed updates (deadlocks)', bar: 'all commit within the retries' },
  18: { fault: 'serialization storm, ten workers on one row', bar: 'no lost update' },
  19: { fault: 'lock timeout', bar: '55P03 in time; savepoint usable' },
  20: { fault: 'disk full', bar: 'DISK_FULL; reads work; recovers when freed' },
  21: { fault: 'PgBouncer in transaction mode', bar: 'no 26000 and no 42P05; no SET leaks' },
  22: { fault: 'ALTER TABLE in a loop under load', bar: '0A000 never surfaces outside a transaction' },
  23: {
    fault: 'wrong certificate or host, plaintext server',
    bar: 'refused always; no fall-back; no secret in an error',
  },
  24: {
    fault: 'Redis killed, restarted, emptied, its messages cut off',
    bar: 'no read is stale beyond its bound, and none fails or waits',
  },
  25: {
    fault: 'SIGTERM under load, one leaked client',
    bar: 'in-flight work drains; exits in time; all waiters rejected',
  },
  26: {
    fault: 'hostile values, identifiers, JSON paths, sort keys',
    bar: 'no change of SQL structure',
  },
  27: { fault: 'breaker against a model', bar: 'state equals the model over 1 M steps' },
  28: { fault: 'soak under everything at once', bar: 'flat heap, handles and backends; no uncaught error' },
  29: {
    fault: 'sagas whose process is killed at each boundary or frozen, and whose server is restarted',
    bar: 'each completed or wholly undone, none forgotten; transactions once, outside effects under one key',
  },
  30: {
    fault: 'publishers and relays of the outbox killed, the server crashed',
    bar: 'each committed event delivered, none of a rolled-back transaction, order per key kept',
  },
}
