"""The remedies of docs/how-to/switchover.md for a lost database or producer, on real servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from consumers.testing.waiting import until
from infra.postgres.control import database_name, owners
from infra.stack.postgresql.server import EmbeddedPostgres
from producers.session.start_over import start_over
from producers.source import slots
from producers.switchover.endpoints import NotMovable
from schemas.errors import HeadraceError, OwnershipMoved
from tests.producers.servers import own_server
from tests.producers.sources import Running, Source, copy_all, running
from tests.producers.switchover.ends import CI, MAIN, SHARED, Ends

pytestmark = pytest.mark.stack


@pytest.fixture
def published(ends_server: EmbeddedPostgres, bootstrap_servers: str, prefix: str, tmp_path: Path) -> Iterator[Ends]:
    """The two ends, and two rows of `first` in the topic of public.projects."""
    with Ends(ends_server, prefix, tmp_path, kafka=bootstrap_servers) as made:
        write(made.first, 1, 2)
        copy_all(source(made, "first"))
        yield made


def source(ends: Ends, name: str) -> Source:
    return Source(ends.settings, ends.first if name == "first" else ends.second, name)


def write(connection: psycopg.Connection, *keys: int) -> None:
    for key in keys:
        connection.execute("INSERT INTO public.projects VALUES (%s)", (key,))


def move_main(ends: Ends) -> None:
    """Move gitlab_main, and remove the standby from the old database, as after every move."""
    assert ends.run(MAIN)
    ends.forget_second()


def test_new_database_is_restored_from_a_standby_of_it(published: Ends) -> None:
    move_main(published)
    assert isinstance(Running(source(published, "first")).ended(), OwnershipMoved)
    copy_all(source(published, "second"))
    spare = published.standby_of("second", "backup")
    write(published.second, 3)
    with psycopg.connect(spare.dsn(published.name), autocommit=True) as restored:
        until(lambda: restored.execute("SELECT max(id) FROM projects").fetchone() == (3,), "the row on the standby")
        published.standby.abandon()
        spare.promote()
        published.lead("second", spare.dsn(published.name))
        assert published.states(MAIN) == ["named", "open"]
        assert published.run(MAIN)
        assert database_name(restored) == owners(restored)[MAIN].name == "second"


@pytest.mark.long
def test_new_database_is_lost_with_all_that_it_wrote(published: Ends) -> None:
    move_main(published)
    assert isinstance(Running(source(published, "first")).ended(), OwnershipMoved)
    published.second.execute("DELETE FROM projects WHERE id = 1")
    published.second.execute("SELECT pg_switch_wal()")  # so that its positions are ahead of those of first
    write(published.second, 1, 3)
    copy_all(source(published, "second"))
    published.standby.abandon()
    published.follow("give back", published.first, MAIN)
    assert database_name(published.first) == owners(published.first)[MAIN].name == "first"
    write(published.first, 4)
    start_over(published.settings, "first")
    copy_all(source(published, "first"))
    write(published.first, 5)
    copy_all(source(published, "first"))
    source(published, "first").require_equal("public.projects")


def test_old_producer_is_lost_before_it_has_published_everything(published: Ends) -> None:
    write(published.first, 3)
    move_main(published)
    write(published.second, 4)
    waiting = Running(source(published, "second"))
    waiting.stop.set()
    assert waiting.ended() is None, "it waits for the old producer"
    assert source(published, "second").recorded().stream is None
    start_over(published.settings, "second")
    copy_all(source(published, "second"))
    assert isinstance(Running(source(published, "first")).ended(), OwnershipMoved), "it still runs, and adds nothing"
    write(published.second, 5)
    copy_all(source(published, "second"))
    source(published, "second").require_equal("public.projects")


def test_schema_without_an_owner_is_claimed_by_its_producer(published: Ends) -> None:
    published.listed.append("gitlab_sec")
    published.lead("first", published.first_dsn)
    assert published.states("gitlab_sec") == ["a standby", "owned by no database"]
    for command in (published.run, published.abort):
        with pytest.raises(NotMovable, match=r"list it under databases\.first\.gitlab_schemas and start `headrace pro"):
            command("gitlab_sec")
    with running(source(published, "first")) as producer:
        producer.caught_up()
    assert published.states("gitlab_sec") == ["a standby", "not started"]
    assert published.run("gitlab_sec")
    assert published.open_on("gitlab_sec") == ["second"]


@pytest.mark.long
def test_old_database_is_lost_before_the_promotion(prefix: str, tmp_path: Path) -> None:
    with own_server() as server, Ends(server, prefix, tmp_path) as ends:
        spare = ends.standby_of("first", "spare")
        ends.run_to("replay", CI)
        server.abandon()
        spare.promote()
        ends.lead("first", spare.dsn(ends.name))
        copy = ends.standby_of("spare", "copy")
        ends.lead("second", copy.dsn(ends.name))
        assert ends.states(CI, MAIN) == ["a standby", "replayed", "not started"]
        assert ends.run(CI)
        assert (ends.owner_by("first", CI), ends.owner_by("first", MAIN)) == ("second", "first")
        assert (ends.owner_by("second", CI), ends.owner_by("second", MAIN)) == ("second", "first")


@pytest.mark.long
def test_old_database_is_lost_after_the_promotion(prefix: str, tmp_path: Path) -> None:
    with own_server() as server, Ends(server, prefix, tmp_path) as ends:
        ends.run_to("replay", CI, MAIN)
        ends.standby.promote()
        server.abandon()
        with pytest.raises(HeadraceError, match="does not answer"):
            ends.run(CI)
        given = ends.second.execute("SELECT gitlab_schema FROM headrace.schema_ownership WHERE owner = 'second'")
        assert sorted(given) == [(CI,), (MAIN,)]
        ends.follow("open by hand", ends.second)
        assert database_name(ends.second) == "second"
        assert {name: owner.name for name, owner in owners(ends.second).items()} == {
            CI: "second",
            MAIN: "first",
            SHARED: "second",
        }
        made = slots.read(ends.second, ends.slot)
        assert made is not None
        assert made.confirmed_flush is not None
        server.start()  # it comes back after all
        assert ends.states(CI) == ["named", "open, not released"]
        assert ends.run(CI)
        assert ends.states(CI) == ["named", "open"]


@pytest.mark.long
def test_old_database_failed_over_to_the_copy(prefix: str, tmp_path: Path) -> None:
    with own_server() as server, Ends(server, prefix, tmp_path) as ends:
        ends.run_to("replay", CI)
        server.abandon()
        ends.standby.promote()
        ends.lead("first", ends.second_dsn)
        assert ends.states(CI)[0] == "the same server"
        with pytest.raises(NotMovable, match="make another standby of it and point the dsn there"):
            ends.run(CI)
        another = ends.standby.standby(f"{ends.name}_another")
        try:
            ends.lead("second", another.dsn(ends.name))
            assert ends.states(CI) == ["a standby", "replayed"]
            assert ends.run(CI)
            with psycopg.connect(another.dsn(ends.name)) as connection:
                assert database_name(connection) == "second"
        finally:
            another.abandon()
