-- headrace's own tables in a database that it reads or writes. Every statement may be run again.
-- They are replicated physically with the data, so that a promoted copy continues exactly where the old one stopped.

CREATE SCHEMA IF NOT EXISTS headrace;

-- Which database this is. A promoted copy keeps its origin's name until the switchover renames it.
CREATE TABLE IF NOT EXISTS headrace.database (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    name text NOT NULL,
    prefix text,  -- of the topics in the ledger below: one database, one prefix
    opened_lsn pg_lsn,  -- the end of WAL in the transaction of the switchover that gave it this name; else null
    -- The format of all tables here, and the version of headrace that set it. No format changes these two columns.
    format integer NOT NULL DEFAULT 1,
    format_by text
);

-- The database that may write the tables of a gitlab schema. In the publication, so that a change of owner arrives in
-- order with the data.
CREATE TABLE IF NOT EXISTS headrace.schema_ownership (
    gitlab_schema text PRIMARY KEY,
    owner text NOT NULL,
    epoch bigint NOT NULL DEFAULT 1,
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- Requests to re-snapshot a table, each inserted and deleted in one transaction. In the publication, so that a request
-- arrives in order with the data, and waits in the slot while no producer runs. A role that may insert here can empty a
-- topic.
CREATE TABLE IF NOT EXISTS headrace.snapshot_requests (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    "table" text NOT NULL,
    first_key text[],
    last_key text[],
    from_scratch boolean NOT NULL DEFAULT false
);

-- Written every few seconds, so that the slot of an idle database has a commit to confirm. In the publication: a logical
-- message would work too, but any role may write those, of up to a gigabyte, and a stream has all or none.
CREATE TABLE IF NOT EXISTS headrace.heartbeat (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    beaten_at timestamptz NOT NULL
) WITH (fillfactor = 50);  -- room for the next version on the same page

-- The last switchover of each gitlab schema, written in the transaction that changes its owner. schema_ownership decides
-- who may write; this row, what a switchover may still do. `id` identifies a change of owner, even from one of the same
-- epoch that a failover lost. 'closed' can be taken back; 'released' cannot: only then may the new owner be opened, and
-- only the copy that made the `claim`, since others may have the same rows.
CREATE TABLE IF NOT EXISTS headrace.switchovers (
    gitlab_schema text PRIMARY KEY,
    id uuid NOT NULL,
    source text NOT NULL,
    destination text NOT NULL,
    epoch bigint NOT NULL,
    claim uuid,
    stage text NOT NULL CHECK (stage IN ('closed', 'taken back', 'released', 'opened')),
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- A random value that a switchover writes on one side and reads on the other.
CREATE TABLE IF NOT EXISTS headrace.switchover_probe (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    value uuid NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now()
);

-- One row per migration: its current run, the gitlab schema it was started for, and what the operator requested. No
-- foreign key refers to it: each check would lock its row, and several at once need a multixact.
CREATE TABLE IF NOT EXISTS headrace.migrations (
    name text PRIMARY KEY,
    gitlab_schema text NOT NULL,
    run integer NOT NULL DEFAULT 1,
    run_reason text NOT NULL DEFAULT 'first run',
    started_at timestamptz NOT NULL DEFAULT now(),
    paused boolean NOT NULL DEFAULT false,
    completed_at timestamptz,
    failed text,
    declared jsonb  -- the version and the options that the run started with: a consumer with others is refused
);

-- The ledger: the next offset of each partition, written in the transaction that contains the effects.
CREATE TABLE IF NOT EXISTS headrace.progress (
    migration text NOT NULL,
    run integer NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    topic_id text NOT NULL,
    next_offset bigint NOT NULL DEFAULT 0,
    applied bigint NOT NULL DEFAULT 0,
    skipped bigint NOT NULL DEFAULT 0,
    dead_letters bigint NOT NULL DEFAULT 0,
    skip_reasons jsonb NOT NULL DEFAULT '{}',
    rate double precision NOT NULL DEFAULT 0,
    member text NOT NULL DEFAULT '',
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (migration, run, topic, partition)
) WITH (fillfactor = 50);  -- one hot row per partition: room for its next versions on the same page

-- The selection of a run: columns of the message key, each with its values as text; no row: everything.
CREATE TABLE IF NOT EXISTS headrace.selections (
    migration text NOT NULL,
    run integer NOT NULL,
    selection jsonb NOT NULL,
    PRIMARY KEY (migration, run)
);

-- Dead letters: the events that a run could not apply, each written in the transaction that moved the ledger past it.
-- The events themselves are in the dead_letters topic from before that transaction until a day after `settled_at`, when a
-- retry applied one, or an operator discarded it, in the same transaction: a failover takes back both or neither.
CREATE TABLE IF NOT EXISTS headrace.dead_letters (
    migration text NOT NULL,
    run integer NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    event_offset bigint NOT NULL,
    topic_id text NOT NULL,
    database text NOT NULL,
    reason text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    settled_at timestamptz,
    PRIMARY KEY (migration, run, topic, partition, event_offset)
);

-- Consumers throttled by a health indicator; a row with an old seen_at belongs to a consumer that is gone.
CREATE TABLE IF NOT EXISTS headrace.throttles (
    migration text NOT NULL,
    member text NOT NULL,
    reason text NOT NULL,
    since timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (migration, member)
);

-- The failures of a run, with the counts at that time: a resumed run counts from there.
CREATE TABLE IF NOT EXISTS headrace.failures (
    migration text NOT NULL,
    run integer NOT NULL,
    failed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    tried bigint NOT NULL,
    dead_letters bigint NOT NULL,
    reason text NOT NULL,
    PRIMARY KEY (migration, run, failed_at)
);

-- The progress of a run over time: one row a minute while events are applied, older ones one an hour. For reports only.
CREATE TABLE IF NOT EXISTS headrace.samples (
    migration text NOT NULL,
    run integer NOT NULL,
    at timestamptz NOT NULL,
    events bigint NOT NULL,
    applied bigint NOT NULL,
    skipped bigint NOT NULL,
    dead_letters bigint NOT NULL,
    rate double precision NOT NULL,
    PRIMARY KEY (migration, run, at)
);

-- When a health indicator throttled a consumer, written when it no longer does. For reports only.
CREATE TABLE IF NOT EXISTS headrace.throttle_periods (
    migration text NOT NULL,
    member text NOT NULL,
    reason text NOT NULL,
    since timestamptz NOT NULL,
    until timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS throttle_periods_until ON headrace.throttle_periods (migration, until);

-- What operators did, and why: written in the transaction of the action where that is one here. Never updated or deleted.
-- A physical copy has its primary's rows; they have the same `id`. `request` is one command or request, which
-- may have several transactions.
CREATE TABLE IF NOT EXISTS headrace.history (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    request uuid NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    action text NOT NULL,
    subject text NOT NULL,  -- a migration, table, source or gitlab schema
    actor text NOT NULL,
    via text NOT NULL,
    reason text,
    details jsonb NOT NULL DEFAULT '{}',
    role text NOT NULL DEFAULT session_user
);
CREATE INDEX IF NOT EXISTS history_at ON headrace.history (at);

-- The pace of a migration that an operator wants in place of the one in the settings; null: as in the settings. Running
-- consumers follow it within a second.
CREATE TABLE IF NOT EXISTS headrace.paces (
    migration text PRIMARY KEY,
    max_rate double precision CHECK (max_rate >= 0),
    transaction_ms integer CHECK (transaction_ms >= 1),
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- headrace trusts these tables: revoke what default privileges may have granted to every role.
REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA headrace FROM PUBLIC;
-- Not even their owner changes what is recorded, unless it grants itself the right to.
REVOKE UPDATE, DELETE, TRUNCATE ON headrace.history FROM CURRENT_USER;
