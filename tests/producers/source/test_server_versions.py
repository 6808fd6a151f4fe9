"""On every major version of PostgreSQL that the README names: types, snapshot, stream, kills, switchover."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from consumers.testing.waiting import until
from infra.stack.postgresql.server import FAILOVER_SLOTS_SINCE, EmbeddedPostgres
from infra.state.snapshot_requests import SnapshotRequest
from producers.session.resnapshot_request import ask
from schemas.errors import OwnershipMoved
from tests.conftest import new_database
from tests.producers.crashes.failpoints import Arming
from tests.producers.crashes.killing import Crashes
from tests.producers.every_type import KEYED
from tests.producers.folding import states
from tests.producers.pairs import kept, paired
from tests.producers.sources import OFTEN, Running, Source, copy_all, running, settings_for
from tests.producers.type_table import compare_types
from tests.server_versions import MAJORS, server_or_skip

pytestmark = pytest.mark.stack

KILLS = (Arming("claimed, not reading"), Arming("chunk read", 3), Arming("after Kafka's commit", 9))


@pytest.fixture(
    scope="module", params=[MAJORS[0], *(pytest.param(major, marks=pytest.mark.long) for major in MAJORS[1:])], ids=str
)
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    with server_or_skip(request.param) as started:
        yield started


@pytest.mark.long
def test_every_type_and_value_matches_documented_table(
    server: EmbeddedPostgres, bootstrap_servers: str, prefix: str
) -> None:
    with new_database(server) as database:
        major = database.connect().info.server_version // 10_000
        keyed = KEYED[major - MAJORS[0] :: 3 * len(MAJORS)]
        found = compare_types(bootstrap_servers, prefix, database.dsn, keyed=keyed)
    assert found.different == []
    assert found.columns > 300
    assert found.keys == len(keyed) > 2


def test_producer_resumes_after_kills_in_snapshot_and_stream(
    server: EmbeddedPostgres, bootstrap_servers: str, prefix: str, tmp_path: Path
) -> None:
    with new_database(server) as database:
        crashes = Crashes(database.connect, bootstrap_servers, prefix, database.dsn, tmp_path)
        with crashes.work(server.port):
            for arming in KILLS:
                crashes.dies_at(arming)
        crashes.settle()
        crashes.prove()


@pytest.mark.long
def test_switchover_moves_stream_to_other_server(server: EmbeddedPostgres, bootstrap_servers: str, prefix: str) -> None:
    with paired(server, bootstrap_servers, prefix) as pair:
        synchronized = pair.first.connection.info.server_version >= FAILOVER_SLOTS_SINCE
        old = Running(pair.first)
        if synchronized:  # before that the new owner has a fresh slot
            until(lambda: kept(pair.first, pair.standby), "the slot is on the standby")
        old.caught_up()
        pair.switch()
        assert isinstance(old.ended(), OwnershipMoved)
        pair.second.connection.execute("INSERT INTO t VALUES (3)")
        copy_all(pair.second)
        assert states(pair.second.require_equal("public.t")) == {"r": 2, "c": 1}
        assert pair.second.slot_state().failover == synchronized


@pytest.mark.long
def test_changes_of_a_partition_that_was_written_before_it_was_attached_are_published(
    server: EmbeddedPostgres, bootstrap_servers: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL 14 continues to treat it as the unpublished table that the stream first decoded."""
    with new_database(server) as database:
        settings = settings_for(bootstrap_servers, prefix, database.dsn, "public.t")
        source = Source(settings, database.connect(), timing=OFTEN)
        source.connection.execute(
            "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id);"
            "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (100); CREATE TABLE t_2 (LIKE t INCLUDING ALL)"
        )
        with running(source) as runs:
            runs.caught_up()
            source.connection.execute("INSERT INTO t_2 VALUES (101), (102)")
            source.passes(runs.check)
            source.connection.execute("ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES FROM (100) TO (200)")
            until(lambda: len(source.records("public.t")) == 2, "the rows of the partition")
            source.connection.execute("DELETE FROM t WHERE id = 101; INSERT INTO t VALUES (103)")
            runs.caught_up()
            source.require_equal("public.t")
            # The same for a re-snapshotted table, while the stream is still before the attach.
            source.connection.execute("CREATE TABLE t_3 (LIKE t INCLUDING ALL)")
        # The edit of its publication stops it; the re-snapshot is recorded for its next start directly.
        source.connection.execute("ALTER PUBLICATION headrace DROP TABLE t; ALTER PUBLICATION headrace ADD TABLE t")
        source.connection.execute("INSERT INTO t_3 VALUES (201)")
        source.connection.execute("ALTER TABLE t ATTACH PARTITION t_3 FOR VALUES FROM (200) TO (300)")
        ask(source.settings, "main", SnapshotRequest(table="public.t", from_scratch=True))
        with running(source) as runs:
            runs.caught_up()
            source.connection.execute("DELETE FROM t WHERE id = 201")
            runs.caught_up()
            source.require_equal("public.t")
