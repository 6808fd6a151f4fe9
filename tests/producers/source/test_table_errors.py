"""A table that cannot be read, or not now, stops or waits alone; the others continue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs

from consumers.testing.waiting import until
from infra.state.positions import Positions, SnapshotState
from producers.session.check import hindrances
from producers.session.loop import Session
from producers.source.schema_changes import TableStopped
from producers.source.table_errors import TableBusy, judged
from tests.conftest import Database
from tests.producers.sources import Source, running, settings_for

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]
NONE = SnapshotState(source="main", table="", topic="")


def state_of(source: Source, table: str) -> SnapshotState:
    return source.state().snapshots.get(f"public.{table}", NONE)


BROKEN = ("damaged", "hidden_type", "hidden_function")
SCHEMA = """
CREATE EXTENSION pg_surgery; CREATE SCHEMA near; CREATE SCHEMA far;
CREATE EXTENSION citext SCHEMA near; CREATE EXTENSION ltree SCHEMA far;
CREATE TABLE damaged (id int PRIMARY KEY, v text STORAGE EXTERNAL);
INSERT INTO damaged SELECT i, repeat(md5(i::text), 400) FROM generate_series(1, 3) i;
CREATE TABLE hidden_type (k far.ltree PRIMARY KEY); INSERT INTO hidden_type VALUES ('a.b');
CREATE TABLE hidden_function (k near.citext PRIMARY KEY);
INSERT INTO hidden_function SELECT 'x' || i FROM generate_series(1, 20) i;
CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (1);
DO $$ DECLARE toast regclass = (SELECT reltoastrelid FROM pg_class WHERE oid = 'damaged'::regclass); first tid;
BEGIN EXECUTE format('SELECT ctid FROM %s LIMIT 1', toast) INTO first;
      EXECUTE format('SELECT heap_force_kill(%L::regclass, ARRAY[%L::tid])', toast, first); END $$;
"""


@contextmanager
def role_of(database: Database, administrator: psycopg.Connection) -> Iterator[str]:
    """A role that owns the tables, and may use the schema `near`."""
    role = f"r_{database.name}"
    administrator.execute(
        f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'x'; GRANT pg_monitor TO {role};"
        f" GRANT CREATE ON DATABASE {database.name} TO {role}; GRANT USAGE ON SCHEMA near TO {role};"
        f" {' '.join(f'ALTER TABLE {name} OWNER TO {role};' for name in (*BROKEN, 'u'))}".encode()
    )
    try:
        yield role
    finally:
        administrator.execute(f"REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_unreadable_table_stops_alone_and_is_read_once_fixed(
    database: Database, bootstrap_servers: str, prefix: str
) -> None:
    administrator = database.connect()
    administrator.execute(SCHEMA.encode())
    administrator.execute("REVOKE EXECUTE ON FUNCTION near.citext_le(near.citext, near.citext) FROM PUBLIC")
    with role_of(database, administrator) as role:
        dsn = make_conninfo(database.dsn, user=role, password="x")
        tables = (f"public.{name}" for name in (*BROKEN, "u"))
        settings = settings_for(bootstrap_servers, prefix, dsn, *tables, snapshot={"chunk_rows": 7})
        source = Source(settings, administrator)
        with running(source) as producer:
            until(lambda: all(state_of(source, name).stopped for name in BROKEN), "the reasons")
            administrator.execute("INSERT INTO u VALUES (2)")
            source.passes(producer.check)
        reasons = {name: state_of(source, name).stopped or "" for name in BROKEN}
        assert "for toast value" in reasons["damaged"]
        assert "permission denied for schema far (SQLSTATE 42501)" in reasons["hidden_type"]
        assert "permission denied for function citext_le" in reasons["hidden_function"]
        source.require_equal("public.u")
        found = hindrances(administrator, settings, "main", Positions(prefix, settings.kafka))
        assert {each.problem for each in found} == {
            f"table public.{name} cannot be read ({reason})" for name, reason in reasons.items()
        }
        administrator.execute(
            f"GRANT USAGE ON SCHEMA far TO {role};"
            f" GRANT EXECUTE ON FUNCTION near.citext_le(near.citext, near.citext) TO {role}".encode()
        )
        with running(source) as producer:
            # Tables with empty topics are read by any start; they lack nothing.
            until(lambda: all(state_of(source, name).done for name in ("hidden_type", "hidden_function")), "them")
            until(lambda: bool(state_of(source, "damaged").stopped), "the reason")
            source.passes(producer.check)
        source.require_equal("public.hidden_type")
        source.require_equal("public.hidden_function")


class CopiesWhenAllowed(Session):
    """Follows the stream, and copies nothing before `allowed` is set."""

    allowed = threading.Event()

    def _copy_phase(self) -> None:
        if self.allowed.is_set():
            super()._copy_phase()


WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'a'::regclass"


@pytest.mark.parametrize("queued", [False, True])
def test_locked_table_is_deferred_and_blocks_no_session(new_source: NewSource, queued: bool) -> None:
    source = new_source(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY);"
        " INSERT INTO a SELECT generate_series(1, 20); INSERT INTO b SELECT generate_series(1, 20)",
        "public.a",
        "public.b",
        snapshot={"chunk_rows": 7},
    )
    dsn = source.settings.database("main").dsn.get_secret_value()
    CopiesWhenAllowed.allowed.clear()
    # The lock's holder is always closed first: the other session waits for it, and the pool for that.
    with ThreadPoolExecutor(1) as pool, psycopg.connect(dsn) as altering, psycopg.connect(dsn) as holder:
        with capture_logs() as lines, running(source, CopiesWhenAllowed) as producer:
            source.passes(producer.check)
            if queued:
                # A lock that another session waits for blocks too: weaker requests queue behind it.
                holder.execute("SELECT FROM a")
                alter = pool.submit(altering.execute, "ALTER TABLE a ADD v text")
                until(lambda: source.connection.execute(WAITING).fetchone() == (1,), "the queue")
            else:
                holder.execute("LOCK TABLE a IN ACCESS EXCLUSIVE MODE")
            CopiesWhenAllowed.allowed.set()
            until(lambda: state_of(source, "b").done, "the other table")
            until(lambda: any("cannot be read now" in line["event"] for line in lines), "the line")
            for row in range(100, 104):
                source.connection.execute("INSERT INTO b VALUES (%s)", (row,))
                source.passes(producer.check)
                assert source.connection.execute(WAITING).fetchone() == (int(queued),)
            assert not state_of(source, "a").rows
            holder.rollback()
            if queued:
                alter.result()
                altering.commit()
            producer.caught_up()
    told = [line for line in lines if "cannot be read now" in line["event"]]
    assert [(line["table"], "lock" in line["reason"]) for line in told] == [("public.a", True)], "told each time"
    source.require_equal("public.a")
    source.require_equal("public.b")


def test_errors_are_classified(database: Database) -> None:
    connection = database.connect()
    connection.execute("CREATE FUNCTION fails(state text, told text) RETURNS int LANGUAGE plpgsql AS"
                       " $$ BEGIN RAISE EXCEPTION '%', told USING ERRCODE = state; END $$")  # fmt: skip

    def outcome(state: str) -> TableBusy | TableStopped | None:
        with pytest.raises(psycopg.Error) as raised:
            connection.execute("SELECT fails(%s, 'the text 4711')", (state,))
        return judged(connection, raised.value)

    assert {type(outcome(state)) for state in ("55P03", "40P01", "57014", "53200", "53400")} == {TableBusy}
    for state in ("XX001", "42501", "0A000", "54000", "58030", "22P05"):
        assert isinstance(error := outcome(state), TableStopped)
        assert "the text 4711" in error.problem
    for state in ("22P02", "22003", "P0001", "23514", "ZZ123"):
        assert isinstance(error := outcome(state), TableStopped)
        assert state in error.problem
        assert "4711" not in error.problem, "a row's value may be in such a message"
    assert outcome("57P01") is None
    connection.close()
    assert judged(connection, psycopg.errors.DataCorrupted()) is None
