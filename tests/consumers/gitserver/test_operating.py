"""Operating `rehash_moves`: situations that the seed does not specify."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from consumers.commands import dead_letters_command
from consumers.contract.external import Outside
from consumers.gitserver import worker
from consumers.gitserver.locks import clone_slot
from consumers.migrations.rehash_moves import RehashMoves
from consumers.operations.dry_run import dry_run
from consumers.operations.pauses import set_paused
from consumers.operations.remaining import remaining
from consumers.operations.replay import replay
from consumers.repositories import clone
from consumers.repositories.git import NoRoom
from consumers.repositories.storage import Copy, Root
from consumers.routing.placement import md5_home, order_key, partition_of
from consumers.runtime.assembly import consumer_of
from consumers.testing.waiting import PATIENCE, until
from infra.service import log
from schemas.errors import SettingsError
from tests.consumers.container_repositories import start_member
from tests.consumers.gitserver.driver import NAMES, World, broken, drive, hang, member
from tests.consumers.gitservers import NODES, Application, git, is_whole, make_repository, refs, shards

pytestmark = pytest.mark.stack


def test_a_dry_run_counts_and_writes_nothing(world: World, application: Application) -> None:
    world.connection.execute("DROP SCHEMA headrace CASCADE")
    make_repository(world.disks.old(NAMES[0]))
    application.add({NAMES[0]: md5_home(NAMES[0], NODES)})
    application.publish()
    migration = RehashMoves.configure(world.settings.migration("rehash_moves"))
    outcome = dry_run(world.settings, migration, "main", stopping=threading.Event())
    assert (outcome.events, outcome.changes) == (2, 2)
    assert remaining(world.settings, migration, "main") == 1
    assert world.connection.execute("SELECT to_regnamespace('headrace')").fetchone() == (None,)
    assert world.disks.copies(NAMES[0]) == [world.disks.old(NAMES[0])]


def test_sha256_repository_with_detached_head_is_cloned(world: World) -> None:
    def make(place: Path) -> None:
        make_repository(place, object_format="sha256")
        git(place, "update-ref", "--no-deref", "HEAD", git(place, "rev-parse", "refs/heads/main"))
        git(place, "config", "sourcegraph.type", "git")

    world.add(NAMES[:1], make=make)
    old, new = world.disks.old(NAMES[0]), world.disks.new(NAMES[0])
    head, settings = (old / "HEAD").read_text(), (old / "config").read_text()
    drive(world.settings)
    assert len(head.strip()) == 64
    assert ((new / "HEAD").read_text(), (new / "config").read_text()) == (head, settings)
    assert is_whole(new)


def test_empty_repository_is_cloned(world: World) -> None:
    world.add(NAMES[:1], make=lambda place: make_repository(place, branches=()))
    drive(world.settings)
    assert refs(world.disks.new(NAMES[0])) == {"HEAD": "refs/heads/main"}


def test_new_run_retries_failed_moves(world: World) -> None:
    bad = NAMES[0]
    world.add([bad], make=broken)
    drive(world.settings)
    shutil.rmtree(world.disks.old(bad))
    make_repository(world.disks.old(bad))
    world.new_run()
    drive(world.settings)
    assert world.disks.copies(bad) == [world.disks.new(bad)]
    assert world.states() == {bad: "settled"}


def test_clone_limit_counts_other_machines(world: World) -> None:
    elsewhere, here = (
        Outside(world.settings, RehashMoves.configure(world.settings.migration("rehash_moves")), "main")
        for _ in range(2)
    )
    try:
        with clone_slot(elsewhere.session, 2) as first, clone_slot(here.session, 2) as second:
            assert (first, second) == (True, True)
        with clone_slot(elsewhere.session, 1) as taken, clone_slot(here.session, 1) as refused:
            assert (taken, refused) == (True, False)
    finally:
        elsewhere.close()
        here.close()


def test_repo_deleted_while_it_is_copied_leaves_no_copy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(NAMES[:1])
    original = clone.copy

    def copy(source: Copy, *arguments: Any, **named: Any) -> Any:
        made = yield from original(source, *arguments, **named)
        world.connection.execute("DELETE FROM repo")
        shutil.rmtree(source.path)
        return made

    monkeypatch.setattr(clone, "copy", copy)
    drive(world.settings)
    assert world.disks.copies(NAMES[0]) == []
    assert world.states() == {}
    assert world.disks.leftovers() == []


def test_full_disk_gives_no_move_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(NAMES[:1])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data")

    monkeypatch.setattr(clone, "write_base", full)
    with pytest.raises(NoRoom, match="/data: No space left on device; Free space there, then start the consumer again"):
        drive(world.settings)
    assert world.states() == {NAMES[0]: "wanted"}
    assert world.disks.leftovers() == []
    monkeypatch.undo()
    drive(world.settings)
    assert world.states() == {NAMES[0]: "settled"}


def test_consecutive_failures_throttle_moves_and_others_continue(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(worker, "_IN_A_ROW", 3)
    monkeypatch.setattr(worker, "_SLOW_SECONDS", 0.01)
    original = worker.Mover._may_begin

    def may_begin(self: worker.Mover, until: float) -> Any:
        waited.append(self._begin_from)
        return original(self, until)

    monkeypatch.setattr(worker.Mover, "_may_begin", may_begin)
    names = sorted(NAMES[:9], key=lambda name: (partition_of(name), order_key(name)))
    world.add(names[:6], make=broken)
    world.add(names[6:])
    drive(world.with_options(tries=1))
    assert world.states() == {name: "failed" if name in names[:6] else "settled" for name in names}
    assert max(waited) > 0.0
    assert "moves throttled after consecutive failures" in capsys.readouterr().out


def test_unmounted_root_gives_no_move_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(NAMES[:1], make=broken)
    monkeypatch.setattr(Root, "is_the_same", False)
    with pytest.raises(worker.MachineFailed, match="is not the directory that it was at the start: is it mounted"):
        drive(world.settings)
    assert world.states() == {NAMES[0]: "wanted"}


def test_pause_ends_the_clone_in_progress_and_starts_no_other(
    world: World, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_repository(world.disks.old(NAMES[0]))
    application.add({NAMES[0]: md5_home(NAMES[0], NODES)})
    application.publish()
    stopping = threading.Event()
    migration = RehashMoves.configure(world.settings.migration("rehash_moves"))
    with monkeypatch.context() as patched:
        patched.setattr(clone, "prove", hang)
        running = threading.Thread(
            target=consumer_of(world.settings, migration, "main", stopping=stopping, until_caught_up=True).run
        )
        running.start()
        until(world.disks.leftovers, "a clone is in progress")
        set_paused(world.settings, RehashMoves, "main", True)
        until(lambda: not world.disks.leftovers(), "it is aborted and cleaned up")
    assert world.states() == {NAMES[0]: "wanted"}
    set_paused(world.settings, RehashMoves, "main", False)
    running.join(timeout=PATIENCE)
    assert not running.is_alive()
    assert world.disks.copies(NAMES[0]) == [world.disks.new(NAMES[0])]


def test_consumer_killed_in_a_clone_leaves_nothing_after_another_resumes(
    world: World, application: Application
) -> None:
    names = NAMES[:3]
    for name in names:
        make_repository(world.disks.old(name))
    application.add({name: md5_home(name, NODES) for name in names})
    application.publish()
    process = start_member(world.config, migration="rehash_moves")
    until(lambda: any(state != "wanted" for state in world.states().values()), "it moves")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    drive(world.settings)
    for name in names:
        assert world.disks.copies(name) == [world.disks.new(name)]
    assert world.disks.leftovers() == []


def test_reverse_moves_all_repositories_back(world: World, application: Application) -> None:
    names = NAMES[:3]
    for name in names:
        make_repository(world.disks.old(name))
    application.add({name: md5_home(name, NODES) for name in names})
    application.publish()
    member(world.settings)

    replay(world.settings, RehashMoves, "main")
    member(world.with_options(direction="reverse"))

    for name in names:
        assert world.disks.copies(name) == [world.disks.old(name)]
    assert shards(world.connection) == {name: md5_home(name, NODES) for name in names}


@pytest.mark.parametrize(
    ("roots", "said"),
    [
        ({}, r"node gitserver-0:3178 has no root; set gitserver\.roots\.\"gitserver-0:3178\""),
        ({NODES[0]: "https://gitserver-0/"}, "is an address, but headrace needs a directory"),
        ({NODES[0]: "/not/there"}, "the root of node gitserver-0:3178 does not exist: /not/there"),
    ],
)
def test_unusable_roots_are_refused_at_the_start(world: World, roots: dict[str, str], said: str) -> None:
    gitserver = world.settings.gitserver.model_copy(update={"roots": roots})
    with pytest.raises(SettingsError, match=said):
        drive(world.settings.model_copy(update={"gitserver": gitserver}))


def test_failed_moves_are_listed_with_dead_letters_and_retried_by_the_operator(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The runner closes its standard error after each command, and the log of this process would keep using it.
    monkeypatch.setattr(log, "configure", lambda _settings: None)
    bad = NAMES[0]
    world.add([bad], make=broken)
    drive(world.settings)
    runner, config = CliRunner(), ["--config", str(world.config)]

    listed = runner.invoke(dead_letters_command.app, ["list", "rehash_moves", "--json", *config])
    (given_up,) = json.loads(listed.output)["given_up"]
    assert given_up["name"] == bad
    assert given_up["reason"].startswith("git: ")
    assert bad in runner.invoke(dead_letters_command.app, ["list", "rehash_moves", *config]).output

    shutil.rmtree(world.disks.old(bad))
    make_repository(world.disks.old(bad))
    retried = runner.invoke(dead_letters_command.app, ["retry", "rehash_moves", bad, "--json", *config])
    assert json.loads(retried.output)["taken_up"] == 1
    drive(world.settings)
    assert world.disks.copies(bad) == [world.disks.new(bad)]
    assert "no dead letters" in runner.invoke(dead_letters_command.app, ["list", "rehash_moves", *config]).output
