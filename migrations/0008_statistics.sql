-- Up Migration

CREATE MATERIALIZED VIEW product_sales AS
  SELECT i.product_id,
         o.currency,
         count(*)                                          AS orders,
         sum(i.quantity)                                   AS pieces,
         sum(i.quantity::bigint * i.unit_price_minor)      AS revenue_minor,
         max(o.created_at)                                 AS last_ordered_at
    FROM order_items i
    JOIN orders o ON o.id = i.order_id
   WHERE o.status <> 'cancelled'
   GROUP BY i.product_id, o.currency;

COMMENT ON MATERIALIZED VIEW product_sales IS
  'What was sold of each product, without cancelled orders, as of the last refresh.';

-- A refresh beside readers compares rows by this key.
CREATE UNIQUE INDEX product_sales_key ON product_sales (product_id, currency);
-- What sells best, by pieces.
CREATE INDEX product_sales_pieces_idx ON product_sales (pieces DESC, product_id);

CREATE TABLE statistics_refreshes (
  view_name    text           NOT NULL CONSTRAINT statistics_refreshes_pkey PRIMARY KEY,
  refreshed_at timestamptz(3) NOT NULL,
  duration_ms  integer        NOT NULL
               CONSTRAINT statistics_refreshes_duration_ms_check CHECK (duration_ms >= 0)
);

COMMENT ON TABLE statistics_refreshes IS 'When each materialized view was refreshed for the last time.';
COMMENT ON COLUMN statistics_refreshes.refreshed_at IS
  'The server''s time just before the refresh: what was committed until then is in it.';

-- Down Migration

DROP TABLE statistics_refreshes;
DROP MATERIALIZED VIEW product_sales;
