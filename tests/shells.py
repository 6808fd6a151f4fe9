"""Runs `headrace`, as a process or within this one, and judges how it ends."""

from __future__ import annotations

import io
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest

import headrace
from infra.stack.processes.keeper import wait_gone
from tests.documents import hold

SECRET = "s3cret-of-the-test"
MARK = "MARK_OF_THE_TEST"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def error(self, code: int) -> str:
        """Return the one line of the error, after the checks that hold for each."""
        assert "Traceback" not in self.err + self.out, self.err
        lines = [line for line in self.err.splitlines() if not line.startswith("{")]  # a service's log comes first
        assert len(lines) == 1, self.err
        assert lines[0].startswith("headrace: error: ")
        assert self.err.splitlines()[-1] == lines[0]
        assert self.code == code, lines[0]
        assert SECRET not in self.err
        return lines[0]


class Shell:
    """Runs `headrace` in a directory of its own; every process that comes of it carries a mark."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mark = secrets.token_hex(8)
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        self.environment |= {MARK: self.mark, "COLUMNS": "120"}

    def start(self, *arguments: object, before: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*before, sys.executable, "-m", "headrace", *map(str, arguments)],
            cwd=self.directory,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, before: Sequence[str] = (), **environment: str) -> Ended:
        ended = self.end(self.start(*arguments, before=before, **environment))
        hold(arguments, ended.out)
        return ended

    def call(self, *arguments: object, **environment: str) -> Ended:
        """Run it within this process: for help, and for what is refused before anything is started."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(err):
            patched.chdir(self.directory)
            patched.setattr(sys, "argv", ["headrace", *map(str, arguments)])
            for name in os.environ.keys() - self.environment.keys():
                patched.delenv(name)
            for name, value in (self.environment | environment).items():
                patched.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                headrace.main()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, out.getvalue(), err.getvalue())

    def end(self, process: subprocess.Popen[str]) -> Ended:
        """Wait for its end, which leaves nothing running."""
        try:
            out, err = process.communicate(timeout=400)
        finally:
            process.kill()
            process.wait()
        ended = Ended(process.returncode, out, err)
        assert wait_gone(self.left(), 120.0) == [], "a process outlives the command"
        return ended

    def left(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def settings(
        self, dsn: str, bootstrap_servers: str, tables: Sequence[str] = ("public.container_repositories",)
    ) -> None:
        self.write(
            f'prefix = "{secrets.token_hex(4)}"\n[kafka]\nbootstrap_servers = "{bootstrap_servers}"\n'
            f'[databases.main]\ndsn = "{dsn}"\ngitlab_schemas = ["gitlab_main"]\ntables = {json.dumps(tables)}\n'
        )

    def write(self, text: str) -> None:
        (self.directory / "headrace.toml").write_text(text)
