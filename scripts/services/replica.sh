#!/usr/bin/env bash
# The entry point of the replica: the first time it copies the primary, then it follows it.
set -euo pipefail

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  # A copy that was cut short would be taken for a cluster the next time, so it is made beside its place.
  copy="$(dirname "$PGDATA")/copy"
  rm -rf "$copy" "$PGDATA"
  install --directory --owner=postgres --mode=0700 "$copy"
  # The slot keeps what the replica has not read yet. One of an earlier replica, whose volume is gone, is in the way.
  PGPASSWORD=kanta psql --host=primary --username=kanta --dbname=kanta --quiet --command="
    SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'replica' AND NOT active"
  PGPASSWORD=replicator gosu postgres pg_basebackup --host=primary --username=replicator --pgdata="$copy" \
    --wal-method=stream --checkpoint=fast --create-slot --slot=replica --write-recovery-conf
  mv "$copy" "$PGDATA"
fi

exec docker-entrypoint.sh "$@"
