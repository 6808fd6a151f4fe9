-- The application's tables of repositories and of the gitserver node that stores each.

CREATE EXTENSION IF NOT EXISTS citext;
CREATE TABLE repo (
    id serial PRIMARY KEY,
    name citext NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE gitserver_repos (
    repo_id integer PRIMARY KEY REFERENCES repo (id) ON DELETE CASCADE,
    clone_status text NOT NULL DEFAULT 'not_cloned',
    last_external_service bigint,
    shard_id text NOT NULL,
    last_error text,
    updated_at timestamptz NOT NULL DEFAULT now()
);
