"""A run has one version of a migration and one set of options; consumers with others are refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import psycopg
import pytest

from consumers.contract.declarations import declared
from consumers.dead_letters.settle import retry
from consumers.ledger.progress import Ledger
from consumers.ledger.versions import Declared, OtherVersion
from consumers.migrations.skip_resets import SkipResets, SkipResetsOptions
from consumers.operations.pauses import set_paused
from consumers.operations.replay import replay
from consumers.runtime.assembly import consumer_of
from consumers.runtime.totals import Totals
from consumers.testing.waiting import PATIENCE, until
from infra.settings.model import MigrationSettings, Settings
from tests.conftest import Database
from tests.consumers.container_repositories import DEFAULT, TOO_MANY_TAGS, Feed, fill, states, written

pytestmark = pytest.mark.stack

CatchUp = Callable[..., Totals]


class Second(SkipResets):
    """Decides differently."""

    version = 2


class Tunable(SkipResetsOptions):
    """Has another option, which is not deciding."""

    not_deciding: ClassVar[tuple[str, ...]] = ("speed",)
    speed: int = 1


class Tuned(SkipResets):
    """Its migration."""

    options_type = Tunable


def configured(kind: type[SkipResets], **options: Any) -> SkipResets:
    made = kind.configure(MigrationSettings.model_validate(options))
    assert isinstance(made, SkipResets)
    return made


def with_options(settings: Settings, **options: Any) -> Settings:
    return settings.model_copy(update={"migrations": {"skip_resets": MigrationSettings.model_validate(options)}})


def test_consumer_with_another_version_is_refused_until_replay(
    feed: Feed, connection: psycopg.Connection[Any], settings: Settings, catch_up: CatchUp
) -> None:
    fill(connection, {1: TOO_MANY_TAGS, 2: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    assert catch_up().applied == 1
    feed.snapshot({2: TOO_MANY_TAGS})
    said = "run 1 of skip_resets was started by version 1, but this is version 2; .*`headrace replay skip_resets`"
    with pytest.raises(OtherVersion, match=said) as refused:
        catch_up(settings, configured(Second))
    assert refused.value.exit_code == 3
    assert written(connection) == [1]

    replay(settings, Second, "main")
    with pytest.raises(OtherVersion, match="run 2 of skip_resets was started by version 2, but this is version 1"):
        catch_up()
    assert written(connection) == [1]
    assert catch_up(settings, configured(Second)).applied == 1
    assert written(connection) == [1, 2]


def test_running_consumer_of_old_version_exits_after_run_with_newer_version(
    feed: Feed, connection: psycopg.Connection[Any], settings: Settings
) -> None:
    fill(connection, {1: TOO_MANY_TAGS, 2: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    stopping = threading.Event()
    old = consumer_of(settings, configured(SkipResets), "main", stopping=stopping)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(old.run)
        try:
            until(lambda: written(connection) == [1], "the old version works")
            connection.execute("UPDATE headrace.migrations SET run = 2, declared = %s", (Declared(2).document(),))
            feed.snapshot({2: TOO_MANY_TAGS})
            with pytest.raises(OtherVersion, match="run 2 of skip_resets was started by version 2"):
                working.result(PATIENCE)
        finally:
            stopping.set()
    assert written(connection) == [1]


def test_consumer_with_other_options_is_refused_with_option_name(
    feed: Feed, connection: psycopg.Connection[Any], settings: Settings, catch_up: CatchUp
) -> None:
    feed.snapshot({1: DEFAULT})
    catch_up()
    clearing = with_options(settings, clear_shipped_columns=True)
    with pytest.raises(OtherVersion, match=r"with another value of migrations.skip_resets.clear_shipped_columns; "):
        catch_up(clearing)
    assert catch_up(with_options(settings, clear_shipped_columns=False)).events == 0, "the default"
    replay(clearing, SkipResets, "main")
    assert catch_up(clearing).events == 1
    with pytest.raises(OtherVersion, match="clear_shipped_columns"):
        catch_up()


def test_not_deciding_options_may_differ(feed: Feed, settings: Settings, catch_up: CatchUp) -> None:
    feed.snapshot({1: DEFAULT})
    catch_up(settings, configured(Tuned, speed=5))
    assert catch_up(settings, configured(Tuned, speed=7)).events == 0
    assert catch_up().events == 0, "a consumer without the option"


def test_dead_letter_is_not_retried_by_another_version(
    feed: Feed, connection: psycopg.Connection[Any], settings: Settings, catch_up: CatchUp
) -> None:
    connection.execute("ALTER TABLE container_repositories ADD CONSTRAINT poison CHECK (migration_state <> 'default')")
    fill(connection, {1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    assert catch_up().dead_letters == 1
    connection.execute("ALTER TABLE container_repositories DROP CONSTRAINT poison")
    with pytest.raises(OtherVersion):
        retry(settings, configured(Second), "main", (), threading.Event())
    assert states(connection)[1] == TOO_MANY_TAGS


def test_migration_paused_before_first_start_records_first_consumers_version(
    connection: psycopg.Connection[Any], settings: Settings, feed: Feed, catch_up: CatchUp
) -> None:
    feed.snapshot({1: DEFAULT})
    set_paused(settings, SkipResets, "main", True)
    set_paused(settings, SkipResets, "main", False)
    catch_up(settings, configured(Second))
    with pytest.raises(OtherVersion, match="started by version 2"):
        catch_up()


def test_first_of_two_concurrent_consumers_records_its_version(
    connection: psycopg.Connection[Any],
    database: Database,
    feed: Feed,
    catch_up: CatchUp,
) -> None:
    catch_up()
    connection.execute("UPDATE headrace.migrations SET declared = NULL")
    other = Ledger("skip_resets", "gitlab_main", "here:2", Declared(4))
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with ThreadPoolExecutor(1) as pool, database.connect() as one, database.connect() as watching:
        with one.transaction():
            Ledger("skip_resets", "gitlab_main", "here:1", Declared(3)).begin(one)
            beginning = pool.submit(other.begin, connection)
            until(lambda: watching.execute(waiting).fetchone() == (1,), "the other one waits")
        with pytest.raises(OtherVersion, match="started by version 3, but this is version 4"):
            beginning.result(PATIENCE)


def test_run_records_only_options_that_are_not_defaults() -> None:
    assert declared(configured(SkipResets)) == Declared(1, {})
    assert declared(configured(Tuned, speed=5, clear_shipped_columns=True)) == Declared(
        1, {"clear_shipped_columns": True}
    )
