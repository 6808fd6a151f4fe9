"""Behaviour of `missing_records` that the seed does not specify: stale walks, odd names, notifications, settings."""

from __future__ import annotations

from typing import Any

import pytest

from consumers.contract.decisions import Change, DeadLetter, Skip
from schemas.errors import SettingsError, UsageError
from schemas.events import ChangeEvent, Op
from tests.consumers.importing import HOUR_MS, World, configured, end, event, paths
from tests.consumers.praefect_database import flags, listening, records, track

# Stale sightings.


@pytest.mark.stack
def test_old_sighting_is_not_recorded_and_completes_no_walk(world: World) -> None:
    world.migration = configured(max_age_hours=2)
    old = {"relative_path": paths(1)[0], "age_ms": 3 * HOUR_MS}
    assert world.apply(old, {"relative_path": paths(2)[1], "age_ms": HOUR_MS}, end(repositories=2)) == 1
    assert records(world.connection).keys() == {paths(2)[1]}
    assert flags(world.connection) == {}


@pytest.mark.stack
def test_repository_missing_in_a_later_complete_walk_is_not_recorded(world: World) -> None:
    # One consumer is at the end of walk 2 in its partition, another still at walk 1 in its own.
    world.apply(end(2, repositories=1, partitions=2))
    gone = {"relative_path": paths(1)[0], "age_ms": HOUR_MS}
    assert world.apply(gone) == 0
    assert world.apply({"relative_path": paths(2)[1], "walk_id": 2}, end(2, repositories=1, partitions=2, partition=1))
    assert records(world.connection).keys() == {paths(2)[1]}
    assert flags(world.connection) == {"default": True}


@pytest.mark.stack
def test_walk_numbers_that_restart_with_a_new_topic_hide_nothing(world: World) -> None:
    world.apply({**end(7, repositories=5), "age_ms": HOUR_MS})
    assert world.walk(paths(2), walk_id=1) == 3


def test_repository_gone_from_the_storage_is_skipped() -> None:
    gone = ChangeEvent(Op.DELETE, event().source, 0, {"relative_path": "a.git"}, None)
    assert configured().decide(gone) == Skip("no longer in the storage")


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
def test_any_text_name_is_recorded_unchanged(world: World) -> None:
    with listening(world.database.dsn) as (_, received):
        assert world.walk(NAMES) == len(NAMES) + 1
        assert sorted(received().paths()) == sorted(NAMES)
    assert records(world.connection).keys() == set(NAMES)


@pytest.mark.parametrize("path", ["", "/a.git", "../a.git", "a/../b.git", "a//b.git", "./a.git", "a/", "a\0.git"])
def test_path_that_leads_out_of_the_storage_becomes_a_dead_letter(path: str) -> None:
    assert configured().decide(event(relative_path=path)) == DeadLetter("the path leads out of the storage")


def test_name_that_is_not_text_becomes_a_dead_letter() -> None:
    decision = configured().decide(event(relative_path="/\\xff.git", kind="problem"))
    assert decision == DeadLetter("the repository's path is not valid text in the database")


def test_unreadable_directory_is_skipped_with_reason() -> None:
    decision = configured().decide(event(relative_path="closed", kind="problem", modified_at=None))
    assert decision == Skip("unreadable directory")


@pytest.mark.parametrize(
    "columns", [{"kind": "other"}, end(repositories=1, partitions=None), end(repositories=1, relative_path="/x")]
)
def test_unknown_kind_of_row_becomes_a_dead_letter(columns: dict[str, Any]) -> None:
    assert isinstance(configured().decide(event(**columns)), DeadLetter)


def test_start_of_a_walk_is_skipped() -> None:
    assert configured().decide(event(kind="start", relative_path="/0", modified_at=None)) == Skip("start of a walk")


# Notifications.


@pytest.mark.stack
def test_notifications_stay_below_the_limit_of_notify(world: World) -> None:
    long = [f"{'d' * 200}/{number}/{chr(1) * 100}.git" for number in range(40)]
    every = [*paths(300), *long, *(f"{number}.git" for number in range(300))]
    with listening(world.database.dsn) as (_, received):
        assert world.walk(every) == len(every) + 1
        listener = received()
    assert sorted(listener.paths()) == sorted(every)
    assert listener.longest < 8_000
    assert len(listener.payloads) < len(every) / 4


@pytest.mark.stack
def test_praefect_is_not_notified_if_no_record_is_missing(world: World) -> None:
    track(world.connection, paths(5))
    with listening(world.database.dsn) as (_, received):
        world.walk(paths(5))
        assert received().payloads == []


@pytest.mark.stack
def test_path_that_just_fits_a_notification_is_recorded(world: World) -> None:
    # Below 2,700 bytes, or compressible: the limit of an index.
    path = "d" * 7_500
    with listening(world.database.dsn) as (_, received):
        assert world.walk([path, "a.git"]) == 3
        assert sorted(map(len, received().paths())) == [5, 7_500]


def test_path_too_long_for_a_notification_becomes_a_dead_letter() -> None:
    alone = len('[{"relative_paths": [""], "virtual_storage": "default"}]')
    assert isinstance(configured().decide(event(relative_path="d" * (7_999 - alone))), Change)
    too_long = configured().decide(event(relative_path="d" * (8_000 - alone)))
    assert too_long == DeadLetter("the path is too long for a notification of 7,999 bytes")
    # Each of these takes six bytes in JSON.
    assert isinstance(configured().decide(event(relative_path="\x01" * 1_400)), DeadLetter)


# Settings.


@pytest.mark.stack
def test_every_virtual_storage_in_the_settings_has_to_be_imported(world: World) -> None:
    world.migration = configured({"default": ("gitaly-0", "praefect"), "other": ("gitaly-0", "praefect")})
    assert world.remaining() == 2
    world.walk(paths(2))
    assert world.remaining() == 1
    world.connection.execute("INSERT INTO virtual_storages VALUES ('stranger', false)")
    assert world.remaining() == 1
    world.walk([], virtual_storage="other")
    assert world.remaining() == 0


def test_remaining_is_complete_only_with_virtual_storages_in_the_settings() -> None:
    assert configured({"default": ("gitaly-0", "praefect")}).remaining_is_all
    assert not configured().remaining_is_all


@pytest.mark.stack
def test_settings_without_a_virtual_storage_for_the_database_are_refused(world: World) -> None:
    world.migration = configured({"default": ("gitaly-0", "elsewhere")})
    with pytest.raises(UsageError, match="database praefect, which no virtual storage in the settings has"):
        world.remaining()


@pytest.mark.stack
def test_virtual_storages_that_differ_between_settings_and_database_are_logged(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.migration = configured({"default": ("gitaly-0", "praefect"), "never-walked": ("gitaly-0", "praefect")})
    track(world.connection, paths(1), virtual_storage="stranger")
    world.walk(paths(2))
    said = "".join(capsys.readouterr())
    assert "virtual storages ignored: in the database, but not in the settings" in said
    assert "stranger" in said
    assert "virtual storages in the settings not walked yet" in said
    assert "never-walked" in said


@pytest.mark.parametrize("options", [{"max_age_hours": 0}, {"virtual_storages": "x"}, {"_primaries": "x"}])
def test_unknown_option_is_reported(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"migrations.missing_records.{next(iter(options))}"):
        configured(**options)
