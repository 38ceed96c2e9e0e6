-- Up Migration

-- In all tables:
-- * timestamptz(3), because a JavaScript Date holds milliseconds: finer values would come back changed, and a page
--   that goes on after the last Date it saw would skip or repeat rows.
-- * text with a CHECK rather than varchar(n): the limit has a name that the error carries, and changing it rewrites
--   no table.
-- * updated_at and version are written by the statement that changes the row. A trigger would be a second writer
--   that nobody sees in the SQL of the program.

CREATE TYPE user_role AS ENUM ('member', 'staff', 'admin');

CREATE TABLE users (
  id            uuid           NOT NULL DEFAULT uuid_v7() CONSTRAINT users_pkey PRIMARY KEY,
  email         text           NOT NULL
                CONSTRAINT users_email_check CHECK (email ~ '^[^\s@]+@[^\s@]+$' AND length(email) <= 254),
  username      text           NOT NULL
                CONSTRAINT users_username_check CHECK (username ~ '^[A-Za-z0-9][A-Za-z0-9_.-]{1,31}$'),
  name          text           NOT NULL
                CONSTRAINT users_name_check CHECK (length(btrim(name)) BETWEEN 1 AND 200),
  password_hash text           NOT NULL
                CONSTRAINT users_password_hash_check CHECK (length(password_hash) BETWEEN 20 AND 500),
  role          user_role      NOT NULL DEFAULT 'member',
  is_active     boolean        NOT NULL DEFAULT true,
  last_login_at timestamptz(3),
  version       integer        NOT NULL DEFAULT 1
                CONSTRAINT users_version_check CHECK (version > 0),
  created_at    timestamptz(3) NOT NULL DEFAULT now(),
  updated_at    timestamptz(3) NOT NULL DEFAULT now(),
  deleted_at    timestamptz(3)
);

COMMENT ON TABLE users IS 'People who can log in.';
COMMENT ON COLUMN users.email IS 'As the person typed it; unique whatever its case, also among deleted users.';
COMMENT ON COLUMN users.username IS 'The public handle; unique whatever its case, also among deleted users.';
COMMENT ON COLUMN users.password_hash IS 'A self-describing hash ($scrypt$…); never the password.';
COMMENT ON COLUMN users.is_active IS 'False while a member of staff has locked the account; says nothing about deletion.';
COMMENT ON COLUMN users.version IS 'Grows by one with each change; an update that expects an older one finds no row.';
COMMENT ON COLUMN users.deleted_at IS 'Set when the account was deleted; the row stays for the orders that refer to it.';

-- Log in by email or by username: WHERE lower(email) = lower($1).
CREATE UNIQUE INDEX users_email_key ON users (lower(email));
CREATE UNIQUE INDEX users_username_key ON users (lower(username));

-- Active users, newest first, page after page.
CREATE INDEX users_active_idx ON users (created_at DESC, id DESC) WHERE is_active AND deleted_at IS NULL;

CREATE TABLE user_profiles (
  user_id     uuid           NOT NULL CONSTRAINT user_profiles_pkey PRIMARY KEY
              CONSTRAINT user_profiles_user_id_fkey REFERENCES users (id) ON DELETE CASCADE,
  bio         text           CONSTRAINT user_profiles_bio_check CHECK (length(bio) <= 2000),
  location    text           CONSTRAINT user_profiles_location_check CHECK (length(location) <= 200),
  website     text
              CONSTRAINT user_profiles_website_check CHECK (website ~ '^https?://' AND length(website) <= 2000),
  preferences jsonb          NOT NULL DEFAULT '{}'
              CONSTRAINT user_profiles_preferences_check CHECK (jsonb_typeof(preferences) = 'object'),
  created_at  timestamptz(3) NOT NULL DEFAULT now(),
  updated_at  timestamptz(3) NOT NULL DEFAULT now()
);

COMMENT ON TABLE user_profiles IS 'What a user tells about themselves; at most one row for each user.';
COMMENT ON COLUMN user_profiles.preferences IS 'Settings of the user interface; always an object.';

-- Down Migration

DROP TABLE user_profiles;
DROP TABLE users;
DROP TYPE user_role;
