"""`headrace place` reads names and prints each with its node."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import typer
from typer.testing import CliRunner, Result

from consumers.commands.place_command import place, place_lines
from consumers.routing.placement import Algorithm, Placement, md5_home, rendezvous_home
from schemas.errors import UsageError

NODES = ["gitserver-0:3178", "gitserver-1:3178", "gitserver-2:3178"]
NAMES = ["github.com/a/b", "GitHub.com/A/B.git", "foobar", "-n", "a\tb/c", "gitlab.com/\u00e9", "DELETED-1.2-foobar"]


def run(*arguments: str, names: bytes = b"") -> Result:
    app = typer.Typer()
    app.command()(place)
    return CliRunner().invoke(app, arguments, input=names)


@pytest.mark.parametrize(
    ("arguments", "home"),
    [([], rendezvous_home), (["--algorithm", "rendezvous"], rendezvous_home), (["--algorithm", "md5"], md5_home)],
)
def test_place_prints_every_name_unchanged_with_its_node(
    arguments: list[str], home: Callable[[str, Sequence[str]], str]
) -> None:
    result = run("--nodes", ",".join(NODES), *arguments, names="".join(f"{name}\n" for name in NAMES).encode())
    assert result.exit_code == 0
    assert result.stdout_bytes.decode() == "".join(f"{name}\t{home(name, NODES)}\n" for name in NAMES)


@pytest.mark.parametrize("names", [b"a\nb", b"a\nb\n", b"\na\n\n\nb\n\n", b"a\r\nb\r\n"])
def test_place_accepts_any_line_ending(names: bytes) -> None:
    assert run("--nodes", "x", names=names).stdout_bytes == b"a\tx\nb\tx\n"


def test_place_without_names_prints_nothing() -> None:
    assert run("--nodes", "x").stdout_bytes == b""


def test_place_prints_bytes_that_are_not_utf_8_unchanged() -> None:
    name = b"gitlab.com/\xff\xe2\x82"
    node = rendezvous_home(name.decode("utf-8", "surrogateescape"), NODES)
    assert run("--nodes", ",".join(NODES), names=name).stdout_bytes == name + b"\t" + node.encode() + b"\n"


def test_pin_overrides_the_hash() -> None:
    pins = [f"--pin=github.com/a={number}={node}" for number, node in enumerate(NODES)]
    result = run("--nodes", ",".join(NODES), *pins, names=b"GitHub.com/A=0\ngithub.com/a=1.git\ngithub.com/a=2")
    assert [line.split("\t")[1] for line in result.output.splitlines()] == NODES


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nodes", ""], "--nodes: '' is not a node"),
        (["--nodes", "a,,b"], "--nodes: '' is not a node"),
        (["--nodes", "a,b,"], "--nodes: '' is not a node"),
        (["--nodes", "a, b"], "--nodes: ' b' is not a node: a node's name has at least one character, and no space"),
        (["--nodes", "a,b=c"], "--nodes: 'b=c' is not a node"),
        (["--nodes", "a,b,a"], "--nodes: a is listed twice; list each node once"),
        (["--nodes", "a,b", "--pin", "name"], "--pin: 'name' is not NAME=NODE; write --pin"),
        (["--nodes", "a,b", "--pin", "=a"], "--pin: '=a' is not NAME=NODE"),
        (["--nodes", "node-1,node-2", "--pin", "x=node-3"], "--pin: unknown node node-3, did you mean node-"),
        (["--nodes", "a,b", "--pin", "x/y=a", "--pin", "x/y=b"], "--pin: x/y is pinned to two nodes"),
        (["--nodes", "a,b", "--pin", "x/y=a", "--pin", "X/y.git=b"], "x/y is pinned to two nodes; pin it once"),
    ],
)
def test_invalid_options_are_refused(arguments: list[str], said: str) -> None:
    error = run(*arguments, names=b"foobar").exception
    assert isinstance(error, UsageError)
    assert said in str(error)


def test_overlong_line_is_reported_by_number() -> None:
    lines = place_lines(Placement(("x",)), Algorithm.MD5, io.BytesIO(b"a\n" * 70_000 + b"b" * 10_000_000))
    with pytest.raises(UsageError, match="line 70001 has more than 65,536 bytes; give one name a line"):
        list(lines)


def test_name_may_arrive_in_pieces() -> None:
    class Piecewise(io.BytesIO):
        def read1(self, size: int | None = -1, /) -> bytes:
            return super().read1(min(size or 3, 3))

    lines = place_lines(Placement(("x",)), Algorithm.MD5, Piecewise("github.com/\u00e9/b\n\na\u00df\nc".encode()))
    assert b"".join(lines).decode() == "github.com/\u00e9/b\tx\na\u00df\tx\nc\tx\n"


def test_place_keeps_only_the_last_read_in_memory() -> None:
    class Endless:
        read = 0

        def read1(self, size: int, /) -> bytes:
            self.read += 1
            return b"github.com/a/b\n" * (size // 15)

    endless = Endless()
    for number, placed in enumerate(place_lines(Placement(("x",)), Algorithm.RENDEZVOUS, endless), 1):
        assert endless.read == number
        assert len(placed) < 100_000
        if number == 20:
            break


@contextmanager
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-m", "headrace", "place", "--nodes", "x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def test_place_answers_before_end_of_input_and_ends_on_ctrl_c() -> None:
    with process() as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdin.write(b"foobar\nhalf a na")
        running.stdin.flush()
        assert running.stdout.readline() == b"foobar\tx\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(180) == 130
        assert running.stderr.read() == b"headrace: stopped; start it again to continue\n"


def test_place_ends_when_its_reader_is_gone() -> None:
    with process() as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        running.stdin.write(b"foobar\n")
        running.stdin.close()
        assert running.wait(180) == 1
        assert running.stderr.read() == b""
