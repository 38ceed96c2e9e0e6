-- Up Migration

-- PostgreSQL 18 has uuidv7(), 15 to 17 have not; one function of our own gives every server the same schema.
-- RFC 9562, section 5.7: 48 bits of milliseconds, version 7, 12 bits of the fraction of the millisecond (section 6.2,
-- method 3), then the variant and 62 random bits, which gen_random_uuid() gives from its fourth group on.
-- It is one expression, so the planner puts it into the INSERT in place of a call.
CREATE FUNCTION uuid_v7() RETURNS uuid
  LANGUAGE sql VOLATILE PARALLEL SAFE
  RETURN (
    overlay(
      lpad(to_hex(trunc(extract(epoch FROM clock_timestamp()) * 4096000)::bigint), 15, '0') PLACING '7' FROM 13 FOR 0
    ) || substring(gen_random_uuid()::text FROM 20)
  )::uuid;

COMMENT ON FUNCTION uuid_v7() IS
  'A UUID of version 7: unique, and in the order of creation as finely as the clock goes, so that new rows go to the end of their indexes.';

-- Down Migration

DROP FUNCTION uuid_v7();
