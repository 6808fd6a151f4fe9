from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from consumers.repositories.clone import copy
from consumers.repositories.git import GitFailed, NoRoom, View, asked, failure, git, remove, run
from consumers.repositories.storage import Root
from consumers.testing.waiting import until
from tests.consumers.gitserver.steps import result
from tests.consumers.gitservers import make_repository, refs


def test_failure_has_the_output_of_git(tmp_path: Path) -> None:
    with pytest.raises(GitFailed, match=r"git: fatal: not a git repository"):
        result(git("for-each-ref", at=View(tmp_path, None)))


def test_full_disk_is_reported_as_no_room() -> None:
    ended = result(run("sh", "-c", "echo 'fatal: write error: No space left on device' >&2; exit 128", seconds=120))
    assert isinstance(failure("git", ended), NoRoom)
    assert "No space left on device; Free space there" in str(failure("git", ended))


def test_command_that_takes_too_long_is_killed() -> None:
    with pytest.raises(GitFailed, match="sleep did not end within 0 s"):
        result(run("sleep", "100", seconds=0.1))


def test_close_kills_the_command_and_its_children(tmp_path: Path) -> None:
    child = tmp_path / "child"
    steps = run("sh", "-c", f"sleep 100 & echo $! > {child}; wait", seconds=200)
    next(steps)
    until(lambda: child.exists() and child.read_text().strip(), "its child has begun")
    steps.close()
    until(lambda: not _lives(int(child.read_text())), "both have ended")


def test_large_output_does_not_block() -> None:
    ended = result(run("sh", "-c", "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2", seconds=60))
    assert (len(ended.said), len(ended.complained)) == (3000000, 3000000)


def test_configuration_and_environment_have_no_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = tmp_path / "hostile"
    hostile.write_text("[core]\n\thooksPath = /nowhere\n[user]\n\tname = Somebody\n")
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, str(hostile))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.name")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "Somebody")
    assert result(asked("config", "--get", "user.name")).code == 1


def test_names_are_never_interpreted_as_options_or_commands(tmp_path: Path) -> None:
    root, other = Root(tmp_path / "--upload-pack=x"), Root(tmp_path / "other")
    other.path.mkdir()
    for name in ("-rf/--help", "a b/$(touch x)", "host/\n\tnew line", "ext::sh -c touch", "ünïcode/ﬀ"):
        make_repository(root.place(name))
        made = result(copy(root.copy(name), other, seconds=60))
        other.install(made.path, name)
        assert refs(other.place(name)) == refs(root.place(name))
    result(remove(other.place("-rf/--help")))
    assert not other.place("-rf/--help").exists()


def test_read_only_directory_is_removed(tmp_path: Path) -> None:
    closed = tmp_path / "annex" / "key"
    closed.mkdir(parents=True)
    (closed / "file").touch()
    closed.chmod(0o500)
    result(remove(tmp_path / "annex"))
    assert not (tmp_path / "annex").exists()


def test_git_ends_with_a_killed_consumer(tmp_path: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv, as on Linux")
    code = (
        "from consumers.repositories.git import run\n"
        f"steps = run('sh', '-c', 'echo $$ > {tmp_path}/pid; exec sleep 100', seconds=200)\n"
        "while True: next(steps)\n"
    )
    member = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip(), "it runs")
    member.kill()
    member.wait()
    child = int((tmp_path / "pid").read_text())
    until(lambda: not _lives(child), "its command has ended too")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
