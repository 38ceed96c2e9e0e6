import type { OwnTables } from '../schema/own-tables.ts'

/**
 * The log of sagas. A saga belongs to the worker in `owner` as long as that worker's row says that it is alive; `fence` counts how
 * often it was taken, and whoever writes says which count he knows.
 */
export const sagaTables: OwnTables = {
  part: 'sagas',
  versions: [
    `create table kanta.saga_workers (
       id uuid primary key,
       place text not null,
       alive_until timestamptz not null);
     comment on table kanta.saga_workers is 'Processes that run sagas. Each counts as alive until the time in its row.';

     create table kanta.sagas (
       id uuid primary key,
       name text not null,
       version integer not null,
       shape text not null,
       idempotency_key text not null,
       input json,
       state text not null default 'running'
         check (state in ('running', 'completed', 'compensating', 'compensated', 'stuck')),
       owner uuid,
       fence integer not null default 0,
       run_at timestamptz not null default clock_timestamp(),
       canceled_at timestamptz,
       failed_step text,
       error_code text,
       error_message text,
       created_at timestamptz not null default clock_timestamp(),
       changed_at timestamptz not null default clock_timestamp(),
       ended_at timestamptz,
       constraint sagas_name_idempotency_key_key unique (name, idempotency_key)
     ) with (fillfactor = 70);
     comment on column kanta.sagas.shape is 'The names of the steps as JSON, those in transactions in brackets. A process with other steps leaves it alone.';
     comment on column kanta.sagas.run_at is 'When it may go on: the pauses after failures are here.';
     create index sagas_run_at_idx on kanta.sagas (run_at) where state in ('running', 'compensating');
     create index sagas_owner_idx on kanta.sagas (owner) where owner is not null;
     create index sagas_ended_at_idx on kanta.sagas (ended_at) where ended_at is not null;
     create index sagas_stuck_idx on kanta.sagas (created_at) where state = 'stuck';

     create table kanta.saga_steps (
       saga_id uuid not null references kanta.sagas on delete cascade,
       position integer not null,
       name text not null,
       state text not null check (state in ('running', 'done', 'failed', 'refused')),
       attempts integer not null,
       result json,
       compensation text check (compensation in ('running', 'done', 'failed', 'stuck', 'skipped')),
       compensation_attempts integer not null default 0,
       error_code text,
       error_message text,
       started_at timestamptz not null default clock_timestamp(),
       ended_at timestamptz,
       primary key (saga_id, position)
     ) with (fillfactor = 70);
     comment on column kanta.saga_steps.state is
       'running may also mean that its process ended; failed and running of a step outside a transaction may have happened.';`,
  ],
}
