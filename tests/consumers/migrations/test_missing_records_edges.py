"""What `missing_records` does where the seed is silent: stale walks, odd names, notifications, settings."""

from __future__ import annotations

from typing import Any

import pytest

from consumers.contract.decisions import Change, Park, Skip
from schemas.errors import SettingsError, UsageError
from schemas.events import ChangeEvent, Op
from tests.consumers.importing import HOUR_MS, World, configured, end, event, paths
from tests.consumers.praefect_database import flags, listening, records, track

# What a walk saw may not be so any more.


@pytest.mark.stack
def test_what_was_seen_too_long_ago_is_not_recorded_and_completes_no_walk(world: World) -> None:
    world.migration = configured(max_age_hours=2)
    old = {"relative_path": paths(1)[0], "age_ms": 3 * HOUR_MS}
    assert world.apply(old, {"relative_path": paths(2)[1], "age_ms": HOUR_MS}, end(repositories=2)) == 1
    assert records(world.connection).keys() == {paths(2)[1]}
    assert flags(world.connection) == {}


@pytest.mark.stack
def test_what_a_later_whole_walk_did_not_find_again_is_not_recorded(world: World) -> None:
    # One member is at the end of walk 2 in its partition, another still at walk 1 in its own.
    world.apply(end(2, repositories=1, partitions=2))
    gone = {"relative_path": paths(1)[0], "age_ms": HOUR_MS}
    assert world.apply(gone) == 0
    assert world.apply({"relative_path": paths(2)[1], "walk_id": 2}, end(2, repositories=1, partitions=2, partition=1))
    assert records(world.connection).keys() == {paths(2)[1]}
    assert flags(world.connection) == {"default": True}


@pytest.mark.stack
def test_walk_numbers_that_begin_anew_with_a_new_topic_hide_nothing(world: World) -> None:
    world.apply({**end(7, repositories=5), "age_ms": HOUR_MS})
    assert world.walk(paths(2), walk_id=1) == 3


def test_what_is_gone_from_the_storage_asks_for_nothing() -> None:
    gone = ChangeEvent(Op.DELETE, event().source, 0, {"relative_path": "a.git"}, None)
    assert configured().decide(gone) == Skip("not in the storage any more")


# Names.

NAMES = [
    "a\nb.git",
    'it\'s "quoted".git',
    "back\\slash.git",
    "tab\t\x01.git",
    "ünïcödé-\U0001f980.git",
    "-rf.git",
    "%s.git",
]


@pytest.mark.stack
def test_any_name_that_is_text_is_recorded_as_it_is(world: World) -> None:
    with listening(world.database.dsn) as (_, told):
        assert world.walk(NAMES) == len(NAMES) + 1
        assert sorted(told().paths()) == sorted(NAMES)
    assert records(world.connection).keys() == set(NAMES)


@pytest.mark.parametrize("path", ["", "/a.git", "../a.git", "a/../b.git", "a//b.git", "./a.git", "a/", "a\0.git"])
def test_a_path_that_tries_to_escape_is_parked(path: str) -> None:
    assert configured().decide(event(relative_path=path)) == Park("a path that does not stay in the storage")


def test_a_name_that_is_no_text_is_parked() -> None:
    decision = configured().decide(event(relative_path="/\\xff.git", kind="problem"))
    assert decision == Park("a repository whose path cannot be text in a database")


def test_a_directory_that_could_not_be_read_is_counted() -> None:
    decision = configured().decide(event(relative_path="closed", kind="problem", modified_at=None))
    assert decision == Skip("a directory that could not be read")


@pytest.mark.parametrize(
    "columns", [{"kind": "other"}, end(repositories=1, partitions=None), end(repositories=1, relative_path="/x")]
)
def test_what_a_later_version_may_write_is_parked_and_not_guessed(columns: dict[str, Any]) -> None:
    assert isinstance(configured().decide(event(**columns)), Park)


def test_a_start_needs_nothing() -> None:
    assert configured().decide(event(kind="start", relative_path="/0", modified_at=None)) == Skip("a walk begins")


# Notifications.


@pytest.mark.stack
def test_notifications_stay_below_what_notify_takes_whatever_the_paths(world: World) -> None:
    long = [f"{'d' * 200}/{number}/{chr(1) * 100}.git" for number in range(40)]
    every = [*paths(300), *long, *(f"{number}.git" for number in range(300))]
    with listening(world.database.dsn) as (_, told):
        assert world.walk(every) == len(every) + 1
        listener = told()
    assert sorted(listener.paths()) == sorted(every)
    assert listener.longest < 8_000
    assert len(listener.payloads) < len(every) / 4


@pytest.mark.stack
def test_praefect_is_not_notified_where_nothing_is_missing(world: World) -> None:
    track(world.connection, paths(5))
    with listening(world.database.dsn) as (_, told):
        world.walk(paths(5))
        assert told().payloads == []


@pytest.mark.stack
def test_a_path_that_just_fits_a_notification_is_recorded(world: World) -> None:
    # Below 2,700 bytes, or compressible: an index takes no more.
    path = "d" * 7_500
    with listening(world.database.dsn) as (_, told):
        assert world.walk([path, "a.git"]) == 3
        assert sorted(map(len, told().paths())) == [5, 7_500]


def test_a_path_that_no_notification_takes_is_parked() -> None:
    alone = len('[{"relative_paths": [""], "virtual_storage": "default"}]')
    assert isinstance(configured().decide(event(relative_path="d" * (7_999 - alone))), Change)
    too_long = configured().decide(event(relative_path="d" * (8_000 - alone)))
    assert too_long == Park("a path too long for a notification of 7,999 bytes")
    # Each of these takes six bytes in JSON.
    assert isinstance(configured().decide(event(relative_path="\x01" * 1_400)), Park)


# Settings.


@pytest.mark.stack
def test_every_virtual_storage_of_the_settings_has_to_be_imported(world: World) -> None:
    world.migration = configured({"default": ("gitaly-0", "praefect"), "other": ("gitaly-0", "praefect")})
    assert world.remaining() == 2
    world.walk(paths(2))
    assert world.remaining() == 1
    world.connection.execute("INSERT INTO virtual_storages VALUES ('stranger', false)")
    assert world.remaining() == 1
    world.walk([], virtual_storage="other")
    assert world.remaining() == 0


def test_that_nothing_remains_is_known_only_by_settings_that_have_virtual_storages() -> None:
    assert configured({"default": ("gitaly-0", "praefect")}).remaining_is_all
    assert not configured().remaining_is_all


@pytest.mark.stack
def test_settings_that_give_no_virtual_storage_to_the_database_are_a_mistake(world: World) -> None:
    world.migration = configured({"default": ("gitaly-0", "elsewhere")})
    with pytest.raises(UsageError, match="no virtual storage in the settings has the database praefect"):
        world.remaining()


@pytest.mark.stack
def test_virtual_storages_that_settings_and_database_do_not_share_are_said(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.migration = configured({"default": ("gitaly-0", "praefect"), "never-walked": ("gitaly-0", "praefect")})
    track(world.connection, paths(1), virtual_storage="stranger")
    world.walk(paths(2))
    said = "".join(capsys.readouterr())
    assert "the settings do not have; they are left alone" in said
    assert "stranger" in said
    assert "of which nothing was walked yet" in said
    assert "never-walked" in said


@pytest.mark.parametrize("options", [{"max_age_hours": 0}, {"virtual_storages": "x"}, {"_primaries": "x"}])
def test_a_wrong_option_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"migrations.missing_records.{next(iter(options))}"):
        configured(**options)
