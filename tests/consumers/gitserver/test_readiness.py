"""The preconditions of moving repositories."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import headrace
from consumers.gitserver import readiness
from consumers.gitserver.readiness import GitUnusable, JanitorNotConfirmed, RootInParts, RootUnusable, missing
from consumers.operations.check import advise
from consumers.operations.status import gather
from consumers.repositories.storage import OWN
from consumers.routing.placement import PARTITIONS, md5_home
from infra.service import log
from infra.settings.gitserver import GitserverSettings
from infra.settings.model import Settings
from tests.consumers.gitserver.driver import NAMES, World, broken, drive
from tests.consumers.gitservers import NODES, Application, Disks, is_whole, make_repository

NOBODY = 65534


@pytest.fixture
def disks() -> Iterator[Disks]:
    """Roots that every user of the machine can access."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Disks(Path(directory))


@pytest.fixture
def unprivileged() -> Iterator[int]:
    """Run the test as an unprivileged user; return its id."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield os.geteuid()
    finally:
        os.seteuid(user)


def found(disks: Disks, **changes: object) -> list[str]:
    return [str(each) for each in missing(GitserverSettings.model_validate(disks.settings(**changes)))]


def put_git(directory: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Make a script the first git in PATH."""
    script = directory / "bin" / "git"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")


def with_gitserver(world: World, **changes: object) -> Settings:
    gitserver = world.settings.gitserver.model_copy(update=changes)
    return world.settings.model_copy(update={"gitserver": gitserver})


def janitor(disks: Disks) -> Iterator[Path]:
    """Delete as gitserver's own janitor does by default; yield the deleted path."""
    for node in NODES:
        root = disks.path(node)
        for place in root.glob("github.com/*/*/.git"):
            if md5_home(str(place.parent.relative_to(root)), NODES) != node:
                shutil.rmtree(place)
                yield place


@pytest.mark.stack
def test_nothing_moves_until_the_janitor_setting_is_confirmed(world: World) -> None:
    name = NAMES[0]
    world.add([name])
    with pytest.raises(JanitorNotConfirmed, match=r"every moved one.*disable it on every node"):
        drive(with_gitserver(world, wrong_shard_deletion=None))
    assert list(janitor(world.disks)) == []
    assert is_whole(world.disks.old(name))

    drive(with_gitserver(world, wrong_shard_deletion="follows_cursor"))
    # The reason for the setting: the only copy is not on its md5 node.
    assert list(janitor(world.disks)) == [world.disks.new(name)]


def test_valid_setup_has_no_problems(disks: Disks) -> None:
    make_repository(disks.old(NAMES[0]))
    assert found(disks) == []
    assert not any((disks.path(node) / OWN).exists() for node in NODES), "the check changes nothing"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo git version 2.35.8", "/git is version 2.35.8, which is too old; Install git 2.36 or newer"),
        ("echo git version 1.8.3.1", "/git is version 1.8.3.1, which is too old"),
        ("echo hello", "/git printed no version: 'hello'"),
        ("exit 1", "/git printed no version: ''"),
        ("echo git version 2.36.0.windows.1", None),
        ("echo 'git version 2.39.5 (Apple Git-154)'", None),
        ("echo git version 10.0", None),
    ],
)
def test_git_version_that_is_too_old_is_reported(
    disks: Disks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str | None
) -> None:
    put_git(tmp_path, monkeypatch, text)
    if said is None:
        assert found(disks) == []
    else:
        (problem,) = found(disks)
        assert said in problem


def test_missing_git_is_reported(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(disks.directory))
    (problem,) = found(disks)
    assert problem.startswith("git is not installed on this machine; Install git 2.36 or newer")


def test_all_unusable_roots_are_reported(disks: Disks) -> None:
    roots = {NODES[0]: "/not/there", NODES[1]: "https://node/", NODES[2]: str(disks.path(NODES[2]))}
    (disks.path(NODES[2]) / OWN).write_text("")
    one, two, three = found(disks, roots=roots)
    assert "the root of node gitserver-0:3178 does not exist: /not/there" in one
    assert "the root of node gitserver-1:3178 is an address" in two
    assert f"{OWN} on node gitserver-2:3178 is not a directory; remove it" in three


def test_nested_roots_are_reported(disks: Disks) -> None:
    inner = disks.path(NODES[0]) / "inner"
    inner.mkdir()
    settings = disks.settings()
    (problem,) = found(disks, roots={**settings["roots"], NODES[1]: str(inner)})
    assert (
        "the roots of gitserver-0:3178 and gitserver-1:3178 are the same directory, or one is inside the other"
        in problem
    )


def test_mount_below_a_root_is_reported(disks: Disks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = disks.path(NODES[0]).resolve()
    lines = [
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw",
        f"23 22 8:2 / {root} rw - ext4 /dev/sdb1 rw",
        f"24 23 8:3 / {root}-other rw - ext4 /dev/sdc1 rw",
        f"25 23 8:3 / {root}/github.com/my\\040team rw - ext4 /dev/sdc1 rw",
    ]
    monkeypatch.setattr(readiness, "_MOUNTS", tmp_path / "mounts")
    (tmp_path / "mounts").write_text("\n".join(lines))
    (problem,) = missing(GitserverSettings.model_validate(disks.settings()))
    assert isinstance(problem, RootInParts)
    assert f"another file system is mounted at {root}/github.com/my team, below the root of node gitserv" in str(
        problem
    )


def test_inaccessible_roots_are_reported(disks: Disks, request: pytest.FixtureRequest) -> None:
    first, second = (disks.path(node) for node in NODES[:2])
    first.chmod(0o000)
    (second / OWN / "coming").mkdir(parents=True)
    (second / OWN / "coming").chmod(0o555)
    disks.path(NODES[2]).chmod(0o777)
    hidden = disks.directory / "hidden"
    hidden.mkdir(mode=0o000)
    second.chmod(0o777)
    (second / OWN).chmod(0o777)
    user = request.getfixturevalue("unprivileged")
    roots = {**disks.settings()["roots"], NODES[2]: str(hidden / "repositories")}
    said = found(disks, roots=roots)
    assert f"user {user} cannot access the root of node gitserver-2:3178: {hidden}" in said[0]
    assert f"user {user} cannot write to {first} on node gitserver-0:3178; Run as the user that owns" in said[1]
    assert f"user {user} cannot write to {second}/{OWN}/coming on node gitserver-1:3178" in said[2]


def test_repositories_of_another_user_are_reported(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    make_repository(disks.old(NAMES[0]))
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    (problem,) = missing(GitserverSettings.model_validate(disks.settings()))
    assert isinstance(problem, RootUnusable)
    assert f"belong to user {owner}, and user 4711 cannot create copies with that owner; Run as" in str(problem)


@pytest.mark.stack
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_root_user_leaves_no_files_of_its_own_below_the_roots(world: World, disks: Disks) -> None:
    make_repository(disks.old(NAMES[0]))
    for directory, _, names in os.walk(disks.directory):
        for path in (directory, *(os.path.join(directory, name) for name in names)):
            os.chown(path, NOBODY, NOBODY)
    world.note(world.rows([NAMES[0]]))
    drive(with_gitserver(world, roots=disks.settings()["roots"]))
    assert world.states() == {NAMES[0]: "settled"}
    everything = [Path(at, name) for at, below, names in os.walk(disks.directory) for name in (*below, *names)]
    assert {path for path in everything if path.lstat().st_uid != NOBODY} == set()
    assert any(path.name == OWN for path in everything)


@pytest.mark.stack
def test_check_and_start_report_the_same_problems(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_git(tmp_path, monkeypatch, "echo git version 2.20.1")
    settings = with_gitserver(world, roots={})
    where = "migrations.rehash_moves"
    said = [each.problem for each in advise(settings) if each.where == where and each.blocks]
    assert any("git is version 2.20.1, which is too old" in problem for problem in said)
    assert [problem for problem in said if "has no root" in problem] == [f"node {node} has no root" for node in NODES]
    with pytest.raises(GitUnusable, match=r"git is version 2\.20\.1, which is too old"):
        drive(settings)


@pytest.mark.stack
def test_given_up_moves_are_in_the_status_and_block_completion(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # The runner closes its standard error after each command, and the log of this process would keep using it.
    monkeypatch.setattr(log, "configure", lambda _settings: None)
    bad, good = NAMES[:2]
    world.add([bad], make=broken)
    world.add([good])
    make_repository(world.disks.new(good))  # which is set aside, and reported
    drive(world.settings)
    world.connection.execute("UPDATE headrace.migrations SET completed_at = now()")

    (shown,) = [each for each in gather(world.settings)["migrations"] if each["name"] == "rehash_moves"]
    expected = {"state": "given_up", "complete": False, "given_up": 1, "reported": 1, "remaining": 0}
    assert {key: shown[key] for key in expected} == expected
    assert shown["reached"] == {str(partition): "every name" for partition in range(PARTITIONS)}
    verified = CliRunner().invoke(headrace.app, ["verify", "rehash_moves", "--json", "--config", str(world.config)])
    assert json.loads(verified.output.splitlines()[0])["given_up"] == 1
    assert str(verified.exception) == (
        "rehash_moves: 1 were given up; See `headrace dead-letters list`, fix what it names, then"
        " `headrace dead-letters retry`."
    )

    shutil.rmtree(world.disks.old(bad))
    make_repository(world.disks.old(bad))
    world.new_run()
    drive(world.settings)
    world.connection.execute("UPDATE headrace.migrations SET completed_at = now()")
    (shown,) = [each for each in gather(world.settings)["migrations"] if each["name"] == "rehash_moves"]
    assert (shown["state"], shown["complete"], shown["given_up"], shown["reported"]) == ("complete", True, 0, 1)


@pytest.mark.stack
def test_finalize_fails_with_the_number_of_given_up_moves(
    world: World, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "configure", lambda _settings: None)  # see above
    bad, good = NAMES[:2]
    broken(world.disks.old(bad))
    make_repository(world.disks.old(good))
    application.add({name: md5_home(name, NODES) for name in (bad, good)})
    application.publish()
    application.snapshot_done()

    finalized = CliRunner().invoke(headrace.app, ["finalize", "rehash_moves", "--json", "--config", str(world.config)])

    document = json.loads(next(line for line in finalized.output.splitlines() if line.startswith("{")))
    assert (document["complete"], document["given_up"]) == (False, 1)
    assert str(finalized.exception).startswith(
        "rehash_moves has ended; 1 were given up; See `headrace dead-letters list"
    )
    assert world.disks.copies(bad) == [world.disks.old(bad)]
    assert world.disks.copies(good) == [world.disks.new(good)]
