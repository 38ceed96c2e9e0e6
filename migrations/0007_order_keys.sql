-- Up Migration

ALTER TABLE orders ADD COLUMN idempotency_key text
  CONSTRAINT orders_idempotency_key_check CHECK (length(idempotency_key) BETWEEN 1 AND 200);

COMMENT ON COLUMN orders.idempotency_key IS
  'What the client calls this order: a repeated request with the same key finds the order instead of making another.';

-- The order of a key; the guard against a second one.
CREATE UNIQUE INDEX orders_idempotency_key_key ON orders (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- Down Migration

DROP INDEX orders_idempotency_key_key;
ALTER TABLE orders DROP COLUMN idempotency_key;
