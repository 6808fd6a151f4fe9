"""Runs the commands of a page, one after the other, as a reader would in one terminal and some more for services."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from consumers.testing.waiting import PATIENCE, until
from tests.docs.blocks import Block

_SERVICE: Final = re.compile(
    r"headrace (produce (?!.*--start-over)|consume (?!.*(--until-caught-up|--dry-run))|web\b|schema-registry\b"
    r"|route --serve)"
)
_LOOKS: Final = re.compile(r"headrace (verify|status|check|dead-letters list|try|history)\b|curl ")
"""Commands that change nothing: while services work, they may show the documented result a moment later."""
_EXIT_CODE: Final = re.compile(r" # exit code (\d+)(?:$|[:;,])")
_SECONDS: Final = 400.0
"""The time limit of a command."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a block, with the exit code and, in a `console` block, the output that the page shows for it."""

    text: str
    exit_code: int = 0
    shown: str = ""

    @property
    def is_service(self) -> bool:
        """Whether it runs until it is stopped."""
        return _SERVICE.match(self.text) is not None

    @property
    def looks(self) -> bool:
        """Whether it may be repeated until what it shows is there."""
        return _LOOKS.search(self.text) is not None


def commands(block: Block) -> list[Command]:
    """Return the commands of a block; one of several lines ends with a here document, or each line with a backslash."""
    if block.language == "console":
        parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
        return [_command(first, shown.strip()) for first, _, shown in (part.partition("\n") for part in parts)]
    return [_command(text) for text in _split(block.text) if text.strip() and not text.startswith("#")]


def _command(text: str, shown: str = "") -> Command:
    first = text.partition("\n")[0]
    code = _EXIT_CODE.search(first)
    return Command(text, int(code[1]) if code else 0, shown)


def _split(text: str) -> Iterator[str]:
    lines = iter(text.splitlines())
    for line in lines:
        whole, end = [line], re.search(r"<<'(\w+)'", line)
        while (whole[-1] != end[1]) if end else whole[-1].endswith("\\"):
            whole.append(next(lines))
        yield "\n".join(whole)


class Session:
    """A directory and an environment in which the commands of a page run; the services among them end with it."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.directory = directory
        self._state = directory.parent / "state.sh"
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "120",
            **environment,
        }
        self._stack = shlex.quote(str(directory.parent / "stack"))
        self._state.write_text(f"cd {shlex.quote(str(directory))}\n", encoding="utf-8")
        self._services: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = {text: self._end(text) for text in list(self._services)}
        if kind is None:
            assert {text: code for text, (code, _) in ended.items() if code != 0} == {}, ended

    def run(self, block: Block) -> None:
        """Run a block; raises AssertionError where a command ends or prints otherwise than the page says."""
        for command in commands(block):
            if command.text.startswith("stop "):
                code, log = self._end(command.text.removeprefix("stop "))
                assert code == 0, f"{block}: {command.text}: exit code {code}\n{log}"
            elif command.is_service:
                self._start(command.text)
            else:
                self._finish(block, command)

    def _finish(self, block: Block, command: Command) -> None:
        said = ""

        def is_as_shown() -> bool:
            nonlocal said
            ended = self._call(command.text)
            said = f"{block}: {command.text}: exit code {ended.returncode}\n{ended.stdout}{ended.stderr}"
            right = ended.returncode == command.exit_code and has_shape(ended.stdout, command.shown)
            return right or self._failed_service() is not None

        if command.looks and self._services:
            until(is_as_shown, "the documented result", _SECONDS, seen=lambda: said)
        else:
            assert is_as_shown(), said
        assert self._failed_service() is None, self._failed_service()

    def _failed_service(self) -> str | None:
        for text, process in self._services.items():
            if process.poll() not in (None, 0):
                return f"{text}: exit code {process.returncode}\n{self._log(text).read_text()}"
        return None

    def _call(self, text: str) -> subprocess.CompletedProcess[str]:
        # The directory of the stack is one for each user, or for the machine: a test has its own.
        stack = f'headrace() {{ case $1 in up|down) set -- "$@" --dir {self._stack};; esac; command headrace "$@"; }}'
        kept = f"(export -p; printf 'cd %q\\n' \"$PWD\") > {shlex.quote(str(self._state))}"
        script = "\n".join([self._resumed, stack, text, "ended=$?", kept, "exit $ended"])
        return subprocess.run(
            ["bash", "-c", script],
            cwd=self.directory,
            env=self._environment,
            input="y\n" * 3,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )

    @property
    def _resumed(self) -> str:
        """The command by which a shell continues where the last one ended."""
        return f". {shlex.quote(str(self._state))}"

    def _start(self, text: str) -> None:
        text = text.partition(" #")[0].rstrip()
        if text in self._services:
            self._end(text)
        with self._log(text).open("wb") as log:
            self._services[text] = subprocess.Popen(
                ["bash", "-c", f"{self._resumed}\nexec {text}"],
                cwd=self.directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _log(self, text: str) -> Path:
        return self.directory.parent / (re.sub(r"\W+", "_", text) + ".log")

    def _end(self, text: str) -> tuple[int, str]:
        process = self._services.pop(text)
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
        if code == -signal.SIGTERM and "--until" in text:
            code = 0  # it was about to end by itself, and no longer handled signals
        return code, self._log(text).read_text()


def has_shape(printed: str, shown: str) -> bool:
    """Whether output is what a page shows, but for numbers, widths, and what it leaves out as `…`.

    JSON has the same keys, with values of the same types.
    """
    try:
        return bool(_types(json.loads(printed)) == _types(json.loads(shown)))
    except json.JSONDecodeError:
        parts = re.split(r"(\d[\d.,]*|…)", " ".join(shown.split()))
        return re.search("".join(map(_pattern, parts)), " ".join(printed.split())) is not None


def _pattern(part: str) -> str:
    if part[:1].isdigit():
        return r"\d[\d.,]*"
    return ".*" if part == "…" else re.escape(part)


def _types(value: Any) -> Any:
    match value:
        case dict():
            return {key: _types(each) for key, each in value.items()}
        case list():
            return [_types(each) for each in value[:1]]
        case _:
            return type(value)
