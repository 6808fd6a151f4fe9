"""The history check of `make chaos ONLY=switchovers` finds each fault, and none in a correct history."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.chaos.tenures import Event, Write, find_faults

TABLE = "container_repositories"
MIGRATION = "headrace consume skip_resets"


def write(
    server: str,
    sequence: int,
    op: str,
    old: str | None,
    new: str | None,
    *,
    key: int = 7,
    name: str | None = None,
    owner: str | None = None,
    epoch: int = 1,
    at: float | None = None,
    by: str = "application",
    gitlab_schema: str = "gitlab_main",
) -> Write:
    name = name or server
    when = float(sequence) if at is None else at
    return Write(server, sequence, when, gitlab_schema, TABLE, key, op, old, new, by, name, owner or name, epoch)


OLD = [
    write("first", 1, "u", "a/default/", "b/import_skipped/2"),
    write("first", 2, "u", "b/import_skipped/2", "b/default/", by=MIGRATION),
]
NEW = [
    write("second", 3, "u", "b/default/", "c/import_skipped/2", epoch=2),
    write("second", 4, "u", "c/import_skipped/2", "c/default/", epoch=2, by=MIGRATION),
]


@dataclass
class Found:
    """Row 7 existed, and was changed twice on each side, before and after its gitlab schema moved."""

    old: list[Write] = field(default_factory=lambda: list(OLD))
    inherited: list[Write] | None = None
    new: list[Write] = field(default_factory=lambda: list(NEW))
    events: list[Event] = field(
        default_factory=lambda: [
            Event("r", "a/default/"),
            Event("u", "b/import_skipped/2"),
            Event("u", "b/default/"),
            Event("u", "c/import_skipped/2"),
            Event("u", "c/default/"),
        ]
    )

    def kinds(self) -> list[str]:
        inherited = self.old if self.inherited is None else self.inherited
        histories = {"first": self.old, "second": [*inherited, *self.new]}
        found = find_faults(histories, {TABLE: {7: self.events}}, {(TABLE, 7): "a/default/"})
        return [fault.kind for fault in found]


def test_correct_history_has_no_fault() -> None:
    assert Found().kinds() == []


def test_write_at_the_old_owner_after_the_new_one_started_is_a_fault() -> None:
    assert Found(old=[OLD[0], OLD[1]._replace(at=3.5)]).kinds() == ["two owners"]


def test_two_servers_in_one_epoch_are_a_fault() -> None:
    # For example a promoted copy that still has the old server's name.
    new = [each._replace(epoch=1, name="first", owner="first") for each in NEW]
    assert "two owners" in Found(new=new).kinds()


def test_write_in_a_database_that_is_not_the_owner_is_a_fault() -> None:
    assert Found(new=[NEW[0]._replace(name="first"), NEW[1]]).kinds() == ["written without ownership"]


def test_write_in_a_database_without_a_name_is_a_fault() -> None:
    assert Found(new=[NEW[0]._replace(name=None, owner=None), NEW[1]]).kinds() == ["written without ownership"]


def test_write_missing_at_the_new_owner_is_a_fault() -> None:
    kinds = Found(inherited=OLD[:1]).kinds()
    assert kinds == ["missing at the later owner"]


def test_write_on_stale_data_is_a_fault() -> None:
    new = [NEW[0]._replace(old="b/import_skipped/2"), NEW[1]]
    assert Found(new=new).kinds() == ["written on stale data"]


def test_second_change_by_the_migration_is_a_fault() -> None:
    again = write("second", 5, "u", "c/default/", "c/default/", epoch=2, by=MIGRATION)
    kinds = Found(new=[*NEW, again]).kinds()
    assert kinds == ["changed by the migration but not wanted", "not published once and in order"]


def test_wanted_row_that_was_never_changed_is_a_fault() -> None:
    kinds = Found(new=NEW[:1], events=Found().events[:-1]).kinds()
    assert kinds == ["wanted but never changed"]


def test_unpublished_write_is_a_fault() -> None:
    events = Found().events
    assert Found(events=[*events[:3], *events[4:]]).kinds() == ["not published once and in order"]


def test_write_published_twice_is_a_fault() -> None:
    events = Found().events
    assert Found(events=[*events, events[-1]]).kinds() == ["not published once and in order"]


def test_events_out_of_order_are_a_fault() -> None:
    events = Found().events
    assert Found(events=[*events[:2], events[3], events[2], events[4]]).kinds() == ["not published once and in order"]


def test_snapshot_in_the_middle_of_the_events_is_a_fault() -> None:
    events = Found().events
    assert Found(events=[*events[:3], Event("r", "b/default/"), *events[3:]]).kinds() == [
        "not published once and in order"
    ]


def test_event_without_a_write_is_a_fault() -> None:
    found = Found()
    histories = {"first": found.old, "second": [*found.old, *found.new]}
    topics = {TABLE: {7: found.events, 8: [Event("c", "x/default/")]}}
    kinds = [fault.kind for fault in find_faults(histories, topics, {(TABLE, 7): "a/default/"})]
    assert kinds == ["not published once and in order"]


def test_shared_tables_are_independent_in_each_database() -> None:
    old = write("first", 9, "c", None, "x", key=1, gitlab_schema="gitlab_shared")
    new = write("second", 9, "c", None, "y", key=1, gitlab_schema="gitlab_shared")
    assert Found(old=[*OLD, old], inherited=OLD, new=[*NEW, new]).kinds() == []


def test_shared_table_written_by_a_copy_under_another_name_is_a_fault() -> None:
    stray = write("second", 9, "c", None, "y", key=1, gitlab_schema="gitlab_shared", name="first", owner="second")
    assert Found(new=[*NEW, stray]).kinds() == ["written without ownership"]
