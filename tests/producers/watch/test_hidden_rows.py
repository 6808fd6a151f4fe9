"""Tables whose rows may temporarily not be read: changes are published, the snapshot waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from psycopg.conninfo import make_conninfo

from consumers.testing.waiting import until
from infra.postgres.connect import connect
from infra.state.positions import Positions
from infra.state.snapshot_requests import SnapshotRequest
from producers.session.check import hindrances
from producers.session.resnapshot_request import ask
from producers.source.tables import UnreadableTable
from schemas.errors import PreflightFailed
from tests.administering import whole_script
from tests.conftest import Database
from tests.producers.between_chunks import ChunkByChunk
from tests.producers.sources import Running, Source, copy_all, database_section, running

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]

HIDES = {
    "may not be read by this role": ("REVOKE SELECT ON t FROM {role}", "GRANT SELECT ON t TO {role}"),
    "may not be read": (
        "REVOKE USAGE ON SCHEMA public FROM PUBLIC, {role}",
        "GRANT USAGE ON SCHEMA public TO PUBLIC, {role}",
    ),
    "has row security": ("ALTER TABLE t ENABLE ROW LEVEL SECURITY", "ALTER TABLE t DISABLE ROW LEVEL SECURITY"),
}
REVOKE, GRANT = HIDES["may not be read by this role"]


@pytest.fixture
def source(new_source: NewSource, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """A source whose role has only the privileges that `headrace init --sql` grants."""
    role = f"r_{database.name}"
    made = new_source(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 30);"
        "CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (1)",
        "public.t",
        "public.u",
        snapshot={"chunk_rows": 10},
    )
    dsn = database_section(make_conninfo(database.dsn, user=role, password="x")).dsn
    section = made.settings.database("main").model_copy(update={"dsn": dsn})
    made.settings = made.settings.model_copy(update={"databases": {"main": section}})
    made.connection.execute(whole_script(made.settings).encode())
    made.connection.execute(f"ALTER ROLE {role} PASSWORD 'x'".encode())
    yield made
    made.drop_slot()
    made.connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def as_administrator(source: Source, statement: str) -> None:
    role = f"r_{source.connection.info.dbname}"
    source.connection.execute(statement.format(role=role).encode())


def problems(source: Source) -> list[str]:
    """Return the problems that `headrace check` reports as the source's role."""
    positions = Positions(source.settings.prefix, source.settings.kafka)
    with connect(source.settings.database("main").dsn.get_secret_value(), name="check main") as connection:
        return [finding.problem for finding in hindrances(connection, source.settings, "main", positions)]


def require_published(source: Source, producer: Running, number: int) -> None:
    source.connection.execute("INSERT INTO t VALUES (%s)", (number,))
    source.passes(producer.check)
    assert number in {record.key["id"] for record in source.records("public.t")}
    assert source.state().snapshots["public.t"].stopped is None


@pytest.mark.long
def test_temporarily_unreadable_rows_stop_no_table(source: Source) -> None:
    copy_all(source)
    for number, (problem, (hide, show)) in enumerate(HIDES.items(), 100):
        as_administrator(source, hide)
        found = problems(source)
        assert found
        assert all(problem in each for each in found)
        with running(source) as producer:
            require_published(source, producer, number)
            with pytest.raises(UnreadableTable, match=r"public\.t"):
                ask(source.settings, "main", SnapshotRequest(table="public.t", from_scratch=True))
        as_administrator(source, show)
    copy_all(source)
    source.require_equal("public.t")


class RevokedBehindTheFirstChunk(ChunkByChunk):
    """Hides the rows of t once a chunk of them is copied."""

    hide: Callable[[], None]
    hidden: threading.Event

    def _add(self, feed, began, copy):  # type: ignore[no-untyped-def]
        lsn = super()._add(feed, began, copy)
        if feed.table.name == "public.t" and not self.hidden.is_set():
            self.hide()
            self.hidden.set()
        return lsn


@pytest.mark.long
def test_snapshot_waits_while_rows_may_not_be_read_and_then_continues(source: Source) -> None:
    hidden = threading.Event()
    kind = type(
        "Revoked",
        (RevokedBehindTheFirstChunk,),
        {"hide": staticmethod(lambda: as_administrator(source, REVOKE)), "hidden": hidden},
    )
    with running(source, kind) as producer:
        until(hidden.is_set, "the first chunk")
        source.passes(producer.check)
        source.connection.execute("INSERT INTO t VALUES (0)")
        source.passes(producer.check)
        state = source.state().snapshots["public.t"]
        assert (state.stopped, state.done, state.rows) == (None, False, 5)
        as_administrator(source, GRANT)
        producer.caught_up()
    assert source.recorded().snapshots["public.t"].rows == 30
    source.require_equal("public.t")


def test_table_without_gitlab_schema_is_refused_and_not_stopped(source: Source) -> None:
    copy_all(source)
    right = source.settings
    section = right.database("main").model_copy(update={"table_schemas": {"public.u": "gitlab_main"}})
    source.settings = right.model_copy(update={"databases": {"main": section}})
    with pytest.raises(PreflightFailed, match=r"no gitlab schema is known for table public\.t"):
        copy_all(source)
    source.settings = right
    source.connection.execute("INSERT INTO t VALUES (100)")
    copy_all(source)
    source.require_equal("public.t")
