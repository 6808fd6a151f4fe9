"""Commands that print a secret: what is said of those that fail, and what never is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest

from consumers.testing.waiting import until
from infra.service.command_output import CommandFailed, output_of
from schemas.errors import SettingsError

SECRET = "s3cret-of-the-test"


def run(program: str, *arguments: str) -> str:
    return output_of([sys.executable, "-c", program, *arguments], "password_command")


def test_output_is_returned_without_the_blanks_around_it() -> None:
    assert run("print('  a b\\nc \\n')") == "a b\nc"
    assert run("import sys; print(sys.stdin.read() == '')") == "True", "there is no input"
    assert run("import sys; print(sys.argv[1])", "$HOME; echo x") == "$HOME; echo x", "there is no shell"


def test_program_that_cannot_be_started_is_named() -> None:
    with pytest.raises(SettingsError) as raised:
        output_of(["/nowhere/print-it", SECRET], "password_command of PostgreSQL at h:1/d")
    assert str(raised.value) == (
        "password_command of PostgreSQL at h:1/d (/nowhere/print-it) cannot be started: No such file or directory;"
        " correct password_command of PostgreSQL at h:1/d: a list of a program and its arguments"
    )


def test_failure_shows_standard_error_and_neither_output_nor_arguments() -> None:
    program = "import sys; print('out-' + sys.argv[1]); sys.stderr.write('no\\n  credentials'); sys.exit(3)"
    with pytest.raises(CommandFailed) as raised:
        run(program, SECRET)
    assert raised.value.problem == f"password_command ({sys.executable}) failed with exit code 3: no credentials"
    assert SECRET not in str(raised.value)
    with pytest.raises(CommandFailed, match="failed with exit code -9: no message"):
        run("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(CommandFailed) as raised:
        run("import sys; sys.exit('x' * 5000)")
    assert raised.value.problem.endswith(f": {'x' * 400}")


def test_empty_output_is_an_error() -> None:
    with pytest.raises(CommandFailed, match="printed nothing"):
        run("print()")


def test_command_that_takes_too_long_ends_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = tmp_path / "pid"
    program = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '600']);"
        " open(sys.argv[1], 'w').write(f'{child.pid}.'); child.wait()"
    )

    def communicate(self: subprocess.Popen[bytes], timeout: float) -> None:
        until(lambda: noted.exists() and noted.read_text().endswith("."), "the command to start another")
        raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
    with pytest.raises(CommandFailed, match="took more than 30 s"):
        run(program, str(noted))
    pid = int(noted.read_text().rstrip("."))
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, "it to end")
