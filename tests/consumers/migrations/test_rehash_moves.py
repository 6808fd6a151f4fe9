"""Seed 002, sentence by sentence: repositories move from their md5 homes to their rendezvous homes."""

from __future__ import annotations

import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from consumers.gitserver import worker
from consumers.gitserver.cursors import reached
from consumers.migrations.rehash_moves import RehashMoves
from consumers.repositories import clone
from consumers.repositories.storage import Copy
from consumers.routing.lookup import Router
from consumers.routing.placement import Algorithm, Placement, md5_home, order_key, partition_of, rendezvous_home
from consumers.runtime.assembly import consumer_of
from consumers.testing.waiting import PATIENCE, until
from tests.consumers.container_repositories import start_member
from tests.consumers.gitserver.driver import NAMES, World, broken, drive, hang, member
from tests.consumers.gitservers import NODES, Application, is_whole, make_repository, refs, shards

pytestmark = pytest.mark.stack


ONE_PARTITION = [name for name in NAMES if partition_of(name) == partition_of(NAMES[0])]


@pytest.fixture
def world(gitserver_world: World) -> World:
    return gitserver_world


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The sources of all copies that this process begins, in order."""
    made: list[Path] = []
    original = clone.copy

    def copy(source: Copy, *arguments: Any, **named: Any) -> Any:
        made.append(source.path)
        return original(source, *arguments, **named)

    monkeypatch.setattr(clone, "copy", copy)
    return made


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every clone of this process hang for longer than any test."""
    monkeypatch.setattr(clone, "prove", hang)


def test_repos_need_to_be_moved_from_one_instance_of_gitserver_to_another(
    world: World, application: Application
) -> None:
    names = NAMES[:3]
    for name in names:
        make_repository(world.disks.old(name), branches=("main", "next"), commits=2)
    application.add({name: md5_home(name, NODES) for name in names})
    application.publish()
    before = {name: refs(world.disks.old(name)) for name in names}

    totals = member(world.settings)

    assert totals.applied == 3
    for name in names:
        assert world.disks.copies(name) == [world.disks.new(name)]
        assert refs(world.disks.new(name)) == before[name]
        assert is_whole(world.disks.new(name))
    assert shards(world.connection) == {name: rendezvous_home(name, NODES) for name in names}
    assert world.disks.leftovers() == []


def test_repos_are_iterated_in_repo_name_order(world: World, copied: list[Path]) -> None:
    names = ONE_PARTITION[:5]
    world.add(names[::-1])
    drive(world.settings)
    assert copied == [world.disks.old(name) for name in sorted(names, key=order_key)]


def test_find_its_new_home_based_on_rendezvous_hashing(world: World) -> None:
    world.add(NAMES[:1])
    drive(world.settings)
    assert world.disks.place(rendezvous_home(NAMES[0], NODES), NAMES[0]).exists()


def test_clone_the_repo_to_its_new_location_whole_with_its_head_settings_and_symbolic_refs(world: World) -> None:
    def make(place: Path) -> None:
        make_repository(place, branches=("main", "trunk"))
        (place / "HEAD").write_text("ref: refs/heads/trunk\n")
        (place / "refs" / "remotes" / "origin").mkdir(parents=True)
        (place / "refs" / "remotes" / "origin" / "HEAD").write_text("ref: refs/heads/main\n")
        with (place / "config").open("a") as config:
            config.write("[sourcegraph]\n\ttype = git\n[transfer]\n\thideRefs = refs/heads/trunk\n")
        (place / "description").write_text("what it is for\n")
        (place / "sg_refhash").write_text("abc\n")

    world.add(NAMES[:1], make=make)
    old, new = world.disks.old(NAMES[0]), world.disks.new(NAMES[0])
    wanted = (refs(old), (old / "config").read_text())
    drive(world.settings)
    assert (refs(new), (new / "config").read_text()) == wanted
    assert (new / "refs" / "remotes" / "origin" / "HEAD").read_text() == "ref: refs/heads/main\n"
    assert (new / "description").read_text() == "what it is for\n"
    assert (new / "sg_refhash").read_text() == "abc\n"


def test_record_that_the_repo_has_been_moved(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # The cursor is moved at each step, even if the query for unrecorded names was slow.
    monkeypatch.setattr(worker, "_LOOK_SHARE", 0.0)
    first, *rest = sorted(ONE_PARTITION[:3], key=order_key)
    world.add([first, *rest])
    cursor = "SELECT upto, finished FROM headrace.rehash_cursors WHERE partition = %s"
    seen: list[Any] = []

    def look() -> bool:
        seen.append(world.connection.execute(cursor, (partition_of(first),)).fetchone())
        return False

    drive(world.with_options(moves_at_once=1), until=look)

    recorded = [row for row in dict.fromkeys(seen) if row and row != (None, False)]
    assert recorded == [(first, False), (rest[0], False), (None, True)]
    assert shards(world.connection)[first] == rendezvous_home(first, NODES)


def test_remove_the_repo_from_its_old_location_only_when_no_read_can_still_go_there(world: World) -> None:
    world.add(NAMES[:1])
    old = world.disks.old(NAMES[0])
    at: dict[str, datetime] = {}

    def look() -> bool:
        for state, changed_at in world.connection.execute("SELECT state, changed_at FROM headrace.rehash_moves"):
            at.setdefault(state, changed_at)
            assert old.exists() or state in ("leaving", "settled")
        return False

    drive(world.settings, until=look)

    assert (at["leaving"] - at["passed"]).total_seconds() >= world.settings.gitserver.grace_seconds
    assert not old.exists()
    assert not old.parent.exists(), "the directory of its name is removed too"


def test_once_a_repo_has_been_moved_all_new_reads_use_rendezvous_hashing(world: World) -> None:
    world.add(NAMES[:4])
    placement = Placement(NODES)
    # The mover's grace is as short as possible; this reader trusts its cursors longer, even on a slow machine.
    patient = world.settings.gitserver.model_copy(update={"grace_seconds": 600.0})
    with Router(world.settings.database("main").dsn.get_secret_value(), patient) as router:
        assert [router.home(name) for name in NAMES[:4]] == [placement.home(name, Algorithm.MD5) for name in NAMES[:4]]
        drive(world.settings)
        new = [placement.home(name, Algorithm.RENDEZVOUS) for name in NAMES[:4]]
        # Its cursors may be from before the last name was passed; it reads them again soon.
        until(lambda: [router.home(name) for name in NAMES[:4]] == new, "it reads the cursors again")


def test_before_that_repo_in_order_the_new_hash_otherwise_the_old_one(world: World) -> None:
    names = sorted(ONE_PARTITION[:4], key=order_key)
    world.add(names)
    # No partition is finished while other moves are in progress.
    patient = world.settings.gitserver.model_copy(update={"grace_seconds": 1000.0})
    drive(
        world.with_options(moves_at_once=1).model_copy(update={"gitserver": patient}),
        until=lambda: list(world.states().values()).count("passed") >= 2,
    )
    row = world.connection.execute(
        "SELECT upto FROM headrace.rehash_cursors WHERE partition = %s", (partition_of(names[0]),)
    ).fetchone()
    assert row is not None
    with world.connection.cursor() as cursor:
        assert reached(cursor)[str(partition_of(names[0]))] == f"the names up to {row[0]}"
    for name in names:
        if order_key(name) <= row[0].encode():
            assert world.disks.new(name).exists()
        else:
            assert world.disks.old(name).exists()


def test_failed_clone_is_tried_3_times_and_marked_as_moved(world: World, copied: list[Path]) -> None:
    bad, good = sorted(ONE_PARTITION[:2], key=order_key)
    world.add([bad], make=broken)
    world.add([good])

    drive(world.settings)

    assert copied.count(world.disks.old(bad)) == 3
    assert world.states() == {bad: "failed", good: "settled"}
    reason = "SELECT failure FROM headrace.rehash_moves WHERE name = %s"
    assert "git: " in str(world.connection.execute(reason, (bad,)).fetchone())
    assert world.disks.copies(bad) == [world.disks.old(bad)], "a repository that could not be moved stays"
    assert world.disks.leftovers() == []
    assert world.disks.copies(good) == [world.disks.new(good)]


def test_grabs_a_few_hundred_repos_at_a_time(world: World) -> None:
    assert RehashMoves.configure(world.settings.migration("rehash_moves")).options.moves_at_once == 200  # type: ignore[attr-defined]


def test_clones_never_exceed_the_limit_shared_by_all_consumers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(NAMES[:6])
    one = world.settings.gitserver.model_copy(update={"max_concurrent_clones": 1})
    settings = world.settings.model_copy(update={"gitserver": one})
    under_way: set[int] = set()
    most: list[int] = []
    original = clone.copy

    def copy(*arguments: Any, **named: Any) -> Any:
        under_way.add(threading.get_ident())
        try:
            steps = original(*arguments, **named)
            while True:
                try:
                    pace = next(steps)
                except StopIteration as end:
                    return end.value
                most.append(len(under_way))
                yield pace
        finally:
            under_way.discard(threading.get_ident())

    monkeypatch.setattr(clone, "copy", copy)
    members = [threading.Thread(target=drive, args=(settings,)) for _ in range(2)]
    for each in members:
        each.start()
    for each in members:
        each.join()
    assert max(most) == 1
    assert set(world.states().values()) == {"settled"}


def test_only_repos_marked_as_cloned_are_considered(world: World, application: Application, copied: list[Path]) -> None:
    application.add({NAMES[0]: "x", NAMES[1]: "x"}, status="not_cloned")
    application.add({NAMES[2]: "x"}, status="cloning")
    application.publish()
    assert member(world.settings).applied == 0
    assert copied == []
    assert world.states() == {}


def test_repo_no_longer_cloned_when_its_turn_comes_is_skipped(world: World, copied: list[Path]) -> None:
    world.add(NAMES[:1])
    world.connection.execute("UPDATE gitserver_repos SET clone_status = 'not_cloned'")
    drive(world.settings)
    assert copied == []
    assert world.states() == {}


def test_migration_can_be_disabled_by_an_environment_variable(
    world: World, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_repository(world.disks.old(NAMES[0]))
    application.add({NAMES[0]: "x"})
    application.publish()
    monkeypatch.setenv("HEADRACE_REHASH_MOVES_ENABLED", "false")
    process = start_member(world.config, migration="rehash_moves")
    assert process.wait(PATIENCE) == 0
    process.communicate()
    assert world.states() == {}
    assert world.disks.copies(NAMES[0]) == [world.disks.old(NAMES[0])]


def test_makes_forward_progress_with_a_best_effort_to_move_all_repos(world: World) -> None:
    names = NAMES[:12]
    bad = names[::4]
    world.add(bad, make=broken)
    world.add([name for name in names if name not in bad])
    drive(world.settings)
    assert world.states() == {name: "failed" if name in bad else "settled" for name in names}
    finished = "SELECT count(*) FROM headrace.rehash_cursors WHERE finished"
    assert world.connection.execute(finished).fetchone() == (16,)


def test_migration_can_be_stopped_quickly(world: World, application: Application, hanging: None) -> None:
    make_repository(world.disks.old(NAMES[0]))
    application.add({NAMES[0]: md5_home(NAMES[0], NODES)})
    application.publish()
    stopping = threading.Event()
    migration = RehashMoves.configure(world.settings.migration("rehash_moves"))
    runtime = consumer_of(world.settings, migration, "main", stopping=stopping)
    running = threading.Thread(target=runtime.run)
    running.start()
    until(world.disks.leftovers, "a clone is in progress")

    stopping.set()
    running.join(timeout=PATIENCE)

    assert not running.is_alive()
    assert world.disks.leftovers() == [], "the clone in flight is cleaned up"
    assert world.disks.copies(NAMES[0]) == [world.disks.old(NAMES[0])]
    assert world.states() == {NAMES[0]: "wanted"}


def test_no_transaction_is_open_while_it_clones(world: World, hanging: None) -> None:
    world.add(NAMES[:1])
    sessions = "SELECT state, xact_start IS NULL FROM pg_stat_activity WHERE application_name LIKE 'headrace%'"
    seen: set[Any] = set()

    def look() -> bool:
        if world.disks.leftovers():
            seen.update(world.connection.execute(sessions + " AND datname = current_database()").fetchall())
        return bool(seen)

    drive(world.settings, until=look)

    assert seen == {("idle", True)}
