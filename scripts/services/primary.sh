#!/usr/bin/env bash
# Run once by the image when it has made the primary's cluster: what a replica and the statistics need.
set -euo pipefail

psql --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<'SQL'
CREATE ROLE replicator WITH REPLICATION LOGIN PASSWORD 'replicator';
CREATE EXTENSION pg_stat_statements;
SQL

# `all` in pg_hba.conf does not include replication.
echo 'host replication replicator all scram-sha-256' >> "$PGDATA/pg_hba.conf"
