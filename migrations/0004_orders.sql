-- Up Migration

CREATE TYPE order_status AS ENUM ('pending', 'paid', 'shipped', 'delivered', 'cancelled');

CREATE TABLE orders (
  id          uuid           NOT NULL DEFAULT uuid_v7() CONSTRAINT orders_pkey PRIMARY KEY,
  -- Books are kept: a user with orders can be marked as deleted, never removed.
  user_id     uuid           NOT NULL CONSTRAINT orders_user_id_fkey REFERENCES users (id) ON DELETE RESTRICT,
  status      order_status   NOT NULL DEFAULT 'pending',
  total_minor integer        NOT NULL CONSTRAINT orders_total_minor_check CHECK (total_minor >= 0),
  currency    text           NOT NULL DEFAULT 'EUR'
              CONSTRAINT orders_currency_check CHECK (currency ~ '^[A-Z]{3}$'),
  version     integer        NOT NULL DEFAULT 1
              CONSTRAINT orders_version_check CHECK (version > 0),
  created_at  timestamptz(3) NOT NULL DEFAULT now(),
  updated_at  timestamptz(3) NOT NULL DEFAULT now()
);

COMMENT ON TABLE orders IS 'What users have ordered; orders are cancelled, not deleted.';
COMMENT ON COLUMN orders.total_minor IS
  'The sum of the items in the smallest unit of the currency; written in the transaction that writes the items.';
COMMENT ON COLUMN orders.currency IS 'ISO 4217, for instance EUR; the same for all items.';
COMMENT ON COLUMN orders.version IS 'Grows by one with each change; an update that expects an older one finds no row.';

-- The order history of a user, newest first.
CREATE INDEX orders_user_id_created_at_idx ON orders (user_id, created_at DESC, id DESC);
-- What is still to be paid or shipped, oldest first.
CREATE INDEX orders_open_idx ON orders (status, created_at, id) WHERE status IN ('pending', 'paid');

CREATE TABLE order_items (
  id               uuid    NOT NULL DEFAULT uuid_v7() CONSTRAINT order_items_pkey PRIMARY KEY,
  order_id         uuid    NOT NULL CONSTRAINT order_items_order_id_fkey REFERENCES orders (id) ON DELETE CASCADE,
  -- A product that was ever sold can be made inactive, never removed.
  product_id       uuid    NOT NULL CONSTRAINT order_items_product_id_fkey REFERENCES products (id) ON DELETE RESTRICT,
  quantity         integer NOT NULL CONSTRAINT order_items_quantity_check CHECK (quantity > 0),
  unit_price_minor integer NOT NULL CONSTRAINT order_items_unit_price_minor_check CHECK (unit_price_minor >= 0),
  CONSTRAINT order_items_order_id_product_id_key UNIQUE (order_id, product_id)
);

COMMENT ON TABLE order_items IS 'The lines of an order: each product once.';
COMMENT ON COLUMN order_items.unit_price_minor IS 'The price of one piece when it was ordered; later prices do not change it.';

-- The orders that hold a product.
CREATE INDEX order_items_product_id_idx ON order_items (product_id);

-- Down Migration

DROP TABLE order_items;
DROP TABLE orders;
DROP TYPE order_status;
