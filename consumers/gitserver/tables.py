"""The tables of `rehash_moves`: repositories, states of their moves, routing cursors, and runs.

rehash_repositories   row of the application → the name of its repository on the disks
rehash_moves          one row per name, with its state (states.py)
rehash_cursors        by partition: names up to and including `upto` are read at their new home; read by routing
rehash_runs           the direction of the moves, and the run that set it
"""

from __future__ import annotations

from typing import Final

OWN_TABLES: Final = """
-- rehash_moves: a repository's row, with its name as the application and as gitserver's disks have it.
CREATE TABLE IF NOT EXISTS headrace.rehash_repositories (
    repo_id bigint PRIMARY KEY,
    raw text NOT NULL,
    name text COLLATE "C" NOT NULL
);
CREATE INDEX IF NOT EXISTS rehash_repositories_name ON headrace.rehash_repositories (name);

-- rehash_moves: how far each name is moved.
CREATE TABLE IF NOT EXISTS headrace.rehash_moves (
    name text COLLATE "C" PRIMARY KEY,
    raw text NOT NULL,
    partition integer NOT NULL,
    state text NOT NULL DEFAULT 'wanted'
        CHECK (state IN ('wanted', 'copied', 'passed', 'leaving', 'settled', 'failed')),
    from_node text,
    to_node text,
    tries integer NOT NULL DEFAULT 0,
    failure text,
    remarks text,
    not_before timestamptz NOT NULL DEFAULT '-infinity',
    leave_at timestamptz NOT NULL DEFAULT '-infinity',
    changed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS rehash_moves_order ON headrace.rehash_moves (partition, name);
CREATE INDEX IF NOT EXISTS rehash_moves_open ON headrace.rehash_moves (partition, state, name)
    WHERE state NOT IN ('settled', 'failed');
CREATE INDEX IF NOT EXISTS rehash_moves_told ON headrace.rehash_moves (name)
    WHERE state = 'failed' OR remarks IS NOT NULL;

-- rehash_moves: readers find a name up to and with `upto` at its new home, all names once it is finished.
CREATE TABLE IF NOT EXISTS headrace.rehash_cursors (
    partition integer PRIMARY KEY,
    upto text COLLATE "C",
    finished boolean NOT NULL DEFAULT false,
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- rehash_moves: which way the moves go, between which nodes, with what pins (by normalised name), as the run began.
CREATE TABLE IF NOT EXISTS headrace.rehash_runs (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    run integer NOT NULL,
    direction text NOT NULL,
    nodes text[] NOT NULL,
    pins jsonb NOT NULL
);
"""
