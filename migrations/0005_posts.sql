-- Up Migration

CREATE TABLE posts (
  id           uuid           NOT NULL DEFAULT uuid_v7() CONSTRAINT posts_pkey PRIMARY KEY,
  author_id    uuid           NOT NULL CONSTRAINT posts_author_id_fkey REFERENCES users (id) ON DELETE CASCADE,
  title        text           NOT NULL CONSTRAINT posts_title_check CHECK (length(btrim(title)) BETWEEN 1 AND 300),
  body         text           NOT NULL CONSTRAINT posts_body_check CHECK (length(body) <= 100000),
  published_at timestamptz(3),
  version      integer        NOT NULL DEFAULT 1 CONSTRAINT posts_version_check CHECK (version > 0),
  created_at   timestamptz(3) NOT NULL DEFAULT now(),
  updated_at   timestamptz(3) NOT NULL DEFAULT now(),
  deleted_at   timestamptz(3)
);

COMMENT ON TABLE posts IS 'What users write; they go with their author.';
COMMENT ON COLUMN posts.published_at IS 'Null while the post is a draft that only its author sees.';
COMMENT ON COLUMN posts.version IS 'Grows by one with each change; an update that expects an older one finds no row.';
COMMENT ON COLUMN posts.deleted_at IS 'Set when the post was withdrawn; its comments stay with it.';

-- The feed: published posts, newest first, page after page.
CREATE INDEX posts_feed_idx ON posts (published_at DESC, id DESC)
  WHERE published_at IS NOT NULL AND deleted_at IS NULL;
-- The posts of one author, drafts too, newest first.
CREATE INDEX posts_author_id_created_at_idx ON posts (author_id, created_at DESC, id DESC);

CREATE TABLE comments (
  id         uuid           NOT NULL DEFAULT uuid_v7() CONSTRAINT comments_pkey PRIMARY KEY,
  post_id    uuid           NOT NULL CONSTRAINT comments_post_id_fkey REFERENCES posts (id) ON DELETE CASCADE,
  author_id  uuid           NOT NULL CONSTRAINT comments_author_id_fkey REFERENCES users (id) ON DELETE CASCADE,
  body       text           NOT NULL CONSTRAINT comments_body_check CHECK (length(btrim(body)) BETWEEN 1 AND 10000),
  created_at timestamptz(3) NOT NULL DEFAULT now(),
  updated_at timestamptz(3) NOT NULL DEFAULT now()
);

COMMENT ON TABLE comments IS 'What users say about a post.';

-- The comments of a post in the order in which they were written.
CREATE INDEX comments_post_id_created_at_idx ON comments (post_id, created_at, id);
-- The comments of one author, newest first.
CREATE INDEX comments_author_id_created_at_idx ON comments (author_id, created_at DESC, id DESC);

CREATE TABLE likes (
  post_id    uuid           NOT NULL CONSTRAINT likes_post_id_fkey REFERENCES posts (id) ON DELETE CASCADE,
  user_id    uuid           NOT NULL CONSTRAINT likes_user_id_fkey REFERENCES users (id) ON DELETE CASCADE,
  created_at timestamptz(3) NOT NULL DEFAULT now(),
  CONSTRAINT likes_pkey PRIMARY KEY (post_id, user_id)
);

COMMENT ON TABLE likes IS 'Which users like which posts; each at most once.';

-- What a user likes, newest first.
CREATE INDEX likes_user_id_created_at_idx ON likes (user_id, created_at DESC, post_id);

-- Down Migration

DROP TABLE likes;
DROP TABLE comments;
DROP TABLE posts;
