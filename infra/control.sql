-- headrace's own tables in a database that it reads or writes. Every statement may be run again.
-- They are replicated physically with the data, so that a promoted copy goes on exactly where the old one was.

CREATE SCHEMA IF NOT EXISTS headrace;

-- Which database this is. A promoted copy keeps its origin's name until the switchover names it anew.
CREATE TABLE IF NOT EXISTS headrace.database (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    name text NOT NULL
);

-- Which database may write the tables of a gitlab schema. Part of the publication: a change of owner
-- arrives in order with the data.
CREATE TABLE IF NOT EXISTS headrace.schema_ownership (
    gitlab_schema text PRIMARY KEY,
    owner text NOT NULL,
    epoch bigint NOT NULL DEFAULT 1,
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- One row a migration: its current run, and what an operator wants of it.
CREATE TABLE IF NOT EXISTS headrace.migrations (
    name text PRIMARY KEY,
    gitlab_schema text NOT NULL,
    run integer NOT NULL DEFAULT 1,
    run_reason text NOT NULL DEFAULT 'first run',
    started_at timestamptz NOT NULL DEFAULT now(),
    paused boolean NOT NULL DEFAULT false,
    completed_at timestamptz,
    failed text
);

-- The ledger: where each partition stands, moved in the transaction that holds the effects.
CREATE TABLE IF NOT EXISTS headrace.progress (
    migration text NOT NULL REFERENCES headrace.migrations (name),
    run integer NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    topic_id text NOT NULL,
    next_offset bigint NOT NULL DEFAULT 0,
    applied bigint NOT NULL DEFAULT 0,
    skipped bigint NOT NULL DEFAULT 0,
    parked bigint NOT NULL DEFAULT 0,
    skip_reasons jsonb NOT NULL DEFAULT '{}',
    rate double precision NOT NULL DEFAULT 0,
    member text NOT NULL DEFAULT '',
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (migration, run, topic, partition)
) WITH (fillfactor = 50);  -- one hot row a partition: room for its next versions on the same page
