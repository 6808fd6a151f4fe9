"""Servers never outlive their owner, however it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest

from consumers.testing.waiting import until
from infra.stack.processes import guardian
from infra.stack.processes.keeper import Keeper, runs
from schemas.errors import HeadraceError, Unavailable

ROOT = Path(__file__).parents[3]

OWNER = """
import json, sys
from infra.stack import embedded_stack
with embedded_stack() as stack:
    standby = stack.standby("replica")
    servers = [stack.kafka.brokers[1].process, stack.postgres.process, standby.process]
    print(json.dumps({"directory": str(stack.directory), "pids": [server.pid for server in servers]}), flush=True)
    sys.stdin.read()
"""


def descendants(pid: int) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    return found


@pytest.mark.long
@pytest.mark.stack
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_of_an_owner_that_is(ending: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        line = owner.stdout.readline()
        said = json.loads(line)
        family = descendants(owner.pid)
        assert {process.pid for process in family} > set(said["pids"])
        owner.send_signal(ending)
        owner.wait(180)
    until(lambda: not Path(said["directory"]).exists(), "the directory is removed")
    until(lambda: not any(runs(process) for process in family), "the servers end")


def sleeper(seconds: int = 600) -> list[str]:
    return [sys.executable, "-c", f"import time; time.sleep({seconds})"]


def test_owner_s_pipe_is_the_server_s_life(tmp_path: Path) -> None:
    spec = {
        "argv": sleeper(),
        "cwd": "/",
        "user": None,
        "group": None,
        "stop_signal": signal.SIGTERM,
        "grace": 60,
    }
    with subprocess.Popen(
        [sys.executable, guardian.__file__, "run", json.dumps(spec)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as watcher:
        assert watcher.stdin is not None
        assert watcher.stdout is not None
        server = psutil.Process(int(watcher.stdout.readline()))
        assert runs(server)
        watcher.stdin.close()
        assert watcher.wait(180) == 128 + signal.SIGTERM
    assert not runs(server)


def test_a_server_that_ignores_the_signal_is_killed_with_its_children(tmp_path: Path) -> None:
    stubborn = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open("ready", "w").write(str(child.pid))
time.sleep(600)
"""
    keeper = Keeper()
    server = keeper.start([sys.executable, "-c", stubborn], log=tmp_path / "log", cwd=tmp_path)
    until(lambda: (tmp_path / "ready").exists() and (tmp_path / "ready").read_text(), "the server is ready")
    child = psutil.Process(int((tmp_path / "ready").read_text()))
    server.stop(signal.SIGTERM, 0.2)
    assert server.poll() == 128 + signal.SIGKILL
    assert not runs(child)


def test_a_directory_is_removed_after_its_servers(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    keeper = Keeper(remove=mine)
    server = keeper.start(sleeper(), log=mine / "log", cwd=mine)
    keeper.close()
    assert server.poll() is not None
    assert not mine.exists()


def test_a_detached_server_lives_on(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    keeper = Keeper(remove=mine)
    server = keeper.start(sleeper(), log=mine / "log", cwd=mine)
    keeper.detach()
    keeper.close()
    process = server.identity.find()
    assert process is not None
    assert mine.exists()
    process.kill()


def test_an_identity_is_not_fooled_by_a_reused_id(tmp_path: Path) -> None:
    keeper = Keeper()
    server = keeper.start(sleeper(), log=tmp_path / "log", cwd=tmp_path)
    before = type(server.identity)(server.pid, server.identity.started - 10)
    assert before.find() is None
    assert server.identity.find() is not None
    server.kill()
    assert server.identity.find() is None


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"cannot run /nowhere/at-all: No such file"):
        Keeper().start(["/nowhere/at-all"], log=tmp_path / "log", cwd=tmp_path)


def test_a_program_that_fails_is_quoted(tmp_path: Path) -> None:
    failing = [sys.executable, "-c", "import sys; sys.exit('the disk is on fire')"]
    with pytest.raises(HeadraceError, match="the disk is on fire"):
        Keeper().run(failing, log=tmp_path / "log", cwd=tmp_path)


def test_the_environment_is_not_on_a_command_line(tmp_path: Path) -> None:
    keeper = Keeper()
    process = keeper.start(
        [sys.executable, "-c", "import os, time; print(os.environ['SECRET'], flush=True); time.sleep(600)"],
        log=tmp_path / "log",
        cwd=tmp_path,
        env={"SECRET": "hunter2"},
    )
    try:
        until(lambda: "hunter2" in (tmp_path / "log").read_text(), "the secret is printed")
        child = psutil.Process(process.pid)
        words = [word for each in (child, child.parent()) if each for word in each.cmdline()]
        assert words
        assert not [word for word in words if "hunter2" in word]
    finally:
        process.kill()
        keeper.close()
