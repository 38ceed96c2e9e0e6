import type { OwnTables } from '../schema/own-tables.ts'

/**
 * The table of all outboxes. A claim changes no column of an index, so that it stays on its page (HOT) and adds to none of
 * them; the indexes that relays read hold only what waits.
 */
export const outboxTables: OwnTables = {
  part: 'outbox',
  versions: [
    `create table kanta.outbox (
  id bigint generated always as identity primary key,
  outbox text not null,
  topic text not null,
  key text collate "C",
  payload json not null,
  headers json,
  idempotency_key text,
  state text not null default 'waiting' constraint outbox_state_check check (state in ('waiting', 'dead', 'delivered')),
  published_at timestamptz not null default statement_timestamp(),
  due_at timestamptz not null default statement_timestamp(),
  is_parked boolean not null default false,
  attempts integer not null default 0,
  lease uuid,
  leased_until timestamptz,
  error text,
  ended_at timestamptz,
  expires_at timestamptz
) with (fillfactor = 80, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0.02);
create index outbox_due on kanta.outbox (outbox, due_at, id) where state = 'waiting' and not is_parked;
create index outbox_parked on kanta.outbox (outbox, key, id) where state = 'waiting' and is_parked;
create index outbox_keys on kanta.outbox (outbox, key, id) where state = 'waiting' and key is not null;
create unique index outbox_idempotency on kanta.outbox (outbox, idempotency_key) where idempotency_key is not null;
create index outbox_dead on kanta.outbox (outbox, id) where state = 'dead';
create index outbox_delivered on kanta.outbox (expires_at) where state = 'delivered';
comment on table kanta.outbox is 'Events that were published in transactions and are delivered by relays.';
comment on column kanta.outbox.is_parked is 'Is due, and found by its key: it was in the way while it waited behind an earlier event of that.';`,
  ],
}
