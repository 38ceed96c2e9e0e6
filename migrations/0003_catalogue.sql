-- Up Migration

CREATE TABLE categories (
  id         uuid           NOT NULL DEFAULT uuid_v7() CONSTRAINT categories_pkey PRIMARY KEY,
  -- A category with children stays until they are moved: deleting it must not take a part of the tree along.
  parent_id  uuid           CONSTRAINT categories_parent_id_fkey REFERENCES categories (id) ON DELETE RESTRICT,
  slug       text           NOT NULL CONSTRAINT categories_slug_key UNIQUE
             CONSTRAINT categories_slug_check CHECK (slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$' AND length(slug) <= 100),
  name       text           NOT NULL
             CONSTRAINT categories_name_check CHECK (length(btrim(name)) BETWEEN 1 AND 200),
  position   integer        NOT NULL DEFAULT 0,
  created_at timestamptz(3) NOT NULL DEFAULT now(),
  updated_at timestamptz(3) NOT NULL DEFAULT now(),
  CONSTRAINT categories_parent_check CHECK (parent_id <> id)
);

COMMENT ON TABLE categories IS 'The tree by which the catalogue is browsed.';
COMMENT ON COLUMN categories.parent_id IS 'The category above; null at the top.';
COMMENT ON COLUMN categories.slug IS 'The name in addresses; unique in the whole tree.';
COMMENT ON COLUMN categories.position IS 'The order among the children of one parent; equal positions are ordered by name.';

-- The children of a category in their order.
CREATE INDEX categories_parent_id_idx ON categories (parent_id, position, name);

CREATE TABLE products (
  id            uuid           NOT NULL DEFAULT uuid_v7() CONSTRAINT products_pkey PRIMARY KEY,
  sku           text           NOT NULL CONSTRAINT products_sku_key UNIQUE
                CONSTRAINT products_sku_check CHECK (sku ~ '^[A-Z0-9]+(-[A-Z0-9]+)*$' AND length(sku) <= 40),
  name          text           NOT NULL
                CONSTRAINT products_name_check CHECK (length(btrim(name)) BETWEEN 1 AND 200),
  description   text           NOT NULL DEFAULT ''
                CONSTRAINT products_description_check CHECK (length(description) <= 20000),
  -- integer, not bigint: JavaScript numbers hold it exactly, and what does not fit is refused by the server.
  price_minor   integer        NOT NULL CONSTRAINT products_price_minor_check CHECK (price_minor >= 0),
  currency      text           NOT NULL DEFAULT 'EUR'
                CONSTRAINT products_currency_check CHECK (currency ~ '^[A-Z]{3}$'),
  stock         integer        NOT NULL DEFAULT 0 CONSTRAINT products_stock_check CHECK (stock >= 0),
  is_active     boolean        NOT NULL DEFAULT true,
  search_vector tsvector       NOT NULL GENERATED ALWAYS AS (
                  setweight(to_tsvector('english', name), 'A') || setweight(to_tsvector('english', description), 'B')
                ) STORED,
  version       integer        NOT NULL DEFAULT 1
                CONSTRAINT products_version_check CHECK (version > 0),
  created_at    timestamptz(3) NOT NULL DEFAULT now(),
  updated_at    timestamptz(3) NOT NULL DEFAULT now()
);

COMMENT ON TABLE products IS 'What can be bought.';
COMMENT ON COLUMN products.sku IS 'The stock keeping unit: the key that the warehouse knows.';
COMMENT ON COLUMN products.price_minor IS 'The price of one piece in the smallest unit of the currency (cents).';
COMMENT ON COLUMN products.currency IS 'ISO 4217, for instance EUR.';
COMMENT ON COLUMN products.stock IS 'Pieces that can still be sold; what orders have taken is already gone from it.';
COMMENT ON COLUMN products.is_active IS 'False hides the product from the catalogue; old orders still refer to it.';
COMMENT ON COLUMN products.search_vector IS 'Full text of name (weight A) and description (weight B), in English.';
COMMENT ON COLUMN products.version IS 'Grows by one with each change; an update that expects an older one finds no row.';

-- The catalogue in alphabetical order, page after page.
CREATE INDEX products_catalogue_idx ON products (name, id) WHERE is_active;
-- Search in the catalogue: search_vector @@ websearch_to_tsquery('english', $1).
CREATE INDEX products_search_idx ON products USING gin (search_vector);

CREATE TABLE product_categories (
  product_id  uuid           NOT NULL
              CONSTRAINT product_categories_product_id_fkey REFERENCES products (id) ON DELETE CASCADE,
  category_id uuid           NOT NULL
              CONSTRAINT product_categories_category_id_fkey REFERENCES categories (id) ON DELETE CASCADE,
  created_at  timestamptz(3) NOT NULL DEFAULT now(),
  CONSTRAINT product_categories_pkey PRIMARY KEY (product_id, category_id)
);

COMMENT ON TABLE product_categories IS 'Which products are shown in which categories.';

-- The products of a category.
CREATE INDEX product_categories_category_id_idx ON product_categories (category_id, product_id);

-- Down Migration

DROP TABLE product_categories;
DROP TABLE products;
DROP TABLE categories;
