"""On every major version of PostgreSQL that the README names: types, snapshot, stream, kills, switchover."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.stack.postgres import FAILOVER_SLOTS_SINCE, EmbeddedPostgres
from schemas.errors import OwnershipMoved
from tests.conftest import new_database
from tests.producers.crashes import Crashes
from tests.producers.every_type import KEYED
from tests.producers.failpoints import Arming
from tests.producers.folding import states
from tests.producers.pairs import kept, paired
from tests.producers.sources import Running, copy_all, until
from tests.producers.type_table import compare_types
from tests.server_versions import MAJORS, server_or_skip

pytestmark = pytest.mark.stack

KILLS = (Arming("claimed, not reading"), Arming("chunk read", 3), Arming("after Kafka's commit", 9))


@pytest.fixture(scope="module", params=MAJORS, ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    with server_or_skip(request.param) as running:
        yield running


def test_every_type_and_value_is_what_the_table_says(
    server: EmbeddedPostgres, bootstrap_servers: str, prefix: str
) -> None:
    with new_database(server) as database:
        major = database.connect().info.server_version // 10_000
        keyed = KEYED[major - MAJORS[0] :: 3 * len(MAJORS)]
        found = compare_types(bootstrap_servers, prefix, database.dsn, keyed=keyed)
    assert found.different == []
    assert found.columns > 300
    assert found.keys == len(keyed) > 2


def test_killed_in_its_snapshot_and_its_stream_it_resumes(
    server: EmbeddedPostgres, bootstrap_servers: str, prefix: str, tmp_path: Path
) -> None:
    with new_database(server) as database:
        crashes = Crashes(database.connect, bootstrap_servers, prefix, database.dsn, tmp_path)
        with crashes.work(server.port):
            for arming in KILLS:
                crashes.dies_at(arming)
        crashes.settle()
        crashes.prove()


def test_a_switchover_gives_its_stream_to_the_other_server(
    server: EmbeddedPostgres, bootstrap_servers: str, prefix: str
) -> None:
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
