"""The tables of a round: the application's, the copies', and a history that triggers keep of every write to them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import psycopg

from tests.chaos.path.histories import Effect, Write
from tests.consumers import container_repositories

TABLE: Final = "container_repositories"
VALUE: Final = ("name", "migration_state", "migration_skipped_reason")
"""The columns that make up a row's value in the history; every write of the application changes `name`."""

_OWNERSHIP: Final = """
    SELECT d.name, o.owner
      FROM (SELECT) AS always
      LEFT JOIN headrace.database d ON true
      LEFT JOIN headrace.schema_ownership o ON o.gitlab_schema = 'gitlab_main'
"""

TABLES: Final = f"""
    {container_repositories.TABLE.partition("CREATE TABLE public.writes")[0]}
    CREATE TABLE public.copies (id bigint PRIMARY KEY, op text, lsn bigint, ordinal bigint, xid bigint);
    CREATE SCHEMA history;
    CREATE TABLE history.transactions (name text PRIMARY KEY);
    CREATE TABLE history.marks (name text);
    CREATE TABLE history.writes (
        sequence bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
        xid bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint, op text NOT NULL, id bigint, old text, new text,
        application text NOT NULL DEFAULT current_setting('application_name'), name text, owner text,
        began timestamptz NOT NULL DEFAULT transaction_timestamp()
    );
    CREATE FUNCTION history.value_of(r public.container_repositories) RETURNS text LANGUAGE sql IMMUTABLE
        RETURN format('%s/%s/%s', r.name, r.migration_state, r.migration_skipped_reason);
    CREATE FUNCTION history.log_write() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            ownership record;
        BEGIN
            IF current_setting('application_name') LIKE 'headrace%' THEN
                {
    _OWNERSHIP.replace(
        "SELECT d.name, o.owner",
        "SELECT d.name, o.owner INTO ownership",
    )
};
            ELSE
                SELECT NULL::text AS name, NULL::text AS owner INTO ownership;
            END IF;
            IF TG_OP = 'DELETE' OR TG_OP = 'UPDATE' AND OLD.id <> NEW.id THEN
                INSERT INTO history.writes (op, id, old, name, owner)
                VALUES ('d', OLD.id, history.value_of(OLD), ownership.name, ownership.owner);
            END IF;
            IF TG_OP = 'INSERT' OR TG_OP = 'UPDATE' AND OLD.id <> NEW.id THEN
                INSERT INTO history.writes (op, id, new, name, owner)
                VALUES ('c', NEW.id, history.value_of(NEW), ownership.name, ownership.owner);
            ELSIF TG_OP = 'UPDATE' THEN
                INSERT INTO history.writes (op, id, old, new, name, owner)
                VALUES ('u', NEW.id, history.value_of(OLD), history.value_of(NEW),
                        ownership.name, ownership.owner);
            END IF;
            RETURN NULL;
        END $$;
    CREATE FUNCTION history.log_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO history.writes (op) VALUES ('t');
            RETURN NULL;
        END $$;
    CREATE TRIGGER log_write AFTER INSERT OR UPDATE OR DELETE ON public.container_repositories
        FOR EACH ROW EXECUTE FUNCTION history.log_write();
    CREATE TRIGGER log_truncate AFTER TRUNCATE ON public.container_repositories
        FOR EACH STATEMENT EXECUTE FUNCTION history.log_truncate();
    CREATE TABLE history.effects (
        sequence bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
        xid bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint, id bigint NOT NULL, op text, lsn bigint,
        ordinal bigint, visible boolean NOT NULL, name text, owner text,
        began timestamptz NOT NULL DEFAULT transaction_timestamp()
    );
    CREATE FUNCTION history.log_effect() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO history.effects (id, op, lsn, ordinal, visible, name, owner)
            SELECT NEW.id, NEW.op, NEW.lsn, NEW.ordinal,
                   NEW.xid IS NULL OR pg_visible_in_snapshot(NEW.xid::text::xid8, pg_current_snapshot()),
                   ownership.*
              FROM ({_OWNERSHIP}) AS ownership;
            RETURN NULL;
        END $$;
    CREATE TRIGGER log_effect AFTER INSERT OR UPDATE ON public.copies
        FOR EACH ROW EXECUTE FUNCTION history.log_effect();
"""


def make(connection: psycopg.Connection[Any]) -> None:
    """Create everything in an empty database."""
    connection.execute(TABLES.encode())


def writes(connection: psycopg.Connection[Any]) -> list[Write]:
    """Return the history of the application's table."""
    rows = connection.execute(
        "SELECT sequence, xid, op, id, old, new, extract(epoch FROM at)::float8, application, name, owner,"
        " extract(epoch FROM began)::float8 FROM history.writes ORDER BY sequence"
    )
    return [Write(*row) for row in rows]


def effects(connection: psycopg.Connection[Any]) -> list[Effect]:
    """Return the history of the copies."""
    rows = connection.execute(
        "SELECT sequence, xid, id, op, lsn, ordinal, extract(epoch FROM at)::float8, visible, name, owner,"
        " extract(epoch FROM began)::float8 FROM history.effects ORDER BY sequence"
    )
    return [Effect(*row) for row in rows]


def transactions(connection: psycopg.Connection[Any]) -> set[str]:
    """Return the application's names for the transactions that the database has."""
    return {name for (name,) in connection.execute("SELECT name FROM history.transactions")}


def ledger(connection: psycopg.Connection[Any]) -> dict[str, dict[int, int]]:
    """Return migration → partition → the next offset in the ledger."""
    found: dict[str, dict[int, int]] = defaultdict(dict)
    for migration, partition, offset in connection.execute(
        "SELECT migration, partition, next_offset FROM headrace.progress"
    ):
        found[migration][partition] = offset
    return found
