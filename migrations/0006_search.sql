-- Up Migration

-- Search forgives typing errors by trigrams. Where the extension cannot be had (a server without contrib modules, a role
-- that may not create extensions) the schema is complete without it, and search finds whole words only.
DO $$
BEGIN
  CREATE EXTENSION IF NOT EXISTS pg_trgm;
EXCEPTION
  WHEN insufficient_privilege OR undefined_file OR feature_not_supported THEN
    RAISE NOTICE 'pg_trgm is not available: search will not forgive typing errors (%)', SQLERRM;
END
$$;

-- Names that are like what was typed: $1 <% name. Sales do not change names, so this costs them nothing.
DO $$
BEGIN
  IF to_regtype('gtrgm') IS NOT NULL THEN
    CREATE INDEX products_name_trigram_idx ON products USING gin (name gin_trgm_ops) WHERE is_active;
  END IF;
END
$$;

-- The catalogue by price, cheapest first.
CREATE INDEX products_price_idx ON products (currency, price_minor, id) WHERE is_active;

-- Down Migration

DROP INDEX products_price_idx;
-- The extension stays: others may use it by now.
DROP INDEX IF EXISTS products_name_trigram_idx;
