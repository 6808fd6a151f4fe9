"""`headrace place`: prints the node of each repository in a list."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Final, Protocol, cast

import typer

from consumers.routing.placement import Algorithm, Placement
from schemas.errors import UsageError

_CHUNK_BYTES: Final = 1 << 16
_LONGEST_NAME: Final = 1 << 16
"""In bytes; a longer line is not a name, and would be kept in memory."""


def place(
    nodes: Annotated[
        str,
        typer.Option(
            "--nodes", metavar="NODE,NODE...", help="The nodes, in the application's order, on which md5 depends."
        ),
    ],
    algorithm: Annotated[
        Algorithm, typer.Option("--algorithm", help="md5: before the moves; rendezvous: after them.")
    ] = Algorithm.RENDEZVOUS,
    pin: Annotated[
        list[str] | None,
        typer.Option("--pin", metavar="NAME=NODE", help="Pin a repository to a node, regardless of the hash."),
    ] = None,
) -> None:
    """Print the gitserver node of each repository.

        headrace place --nodes a,b,c < names

    Reads names from standard input, one a line, such as github.com/gitlab-org/gitlab, and prints NAME, a tab and NODE;
    empty lines are skipped. A name is printed as it was read and placed by its normal form, as gitserver does: without
    .git, its host in lower case. To count the repositories that move when a third node is added:

        headrace place --nodes a,b < names > before; headrace place --nodes a,b,c < names | diff before - | grep -c '^>'
    """
    chosen = Placement(tuple(_nodes(nodes)), dict(_pins(pin or [], nodes.split(","))))
    if sys.stdin is None:
        raise UsageError("standard input is closed", remedy="pass the names on standard input, one a line")
    if sys.stdin.isatty():
        print("reading names from the terminal, one a line; end with Ctrl-D", file=sys.stderr)
    for placed in place_lines(chosen, algorithm, cast(Readable, sys.stdin.buffer)):
        sys.stdout.buffer.write(placed)
        sys.stdout.buffer.flush()


class Readable(Protocol):
    def read1(self, size: int, /) -> bytes: ...


def place_lines(placement: Placement, algorithm: Algorithm, names: Readable) -> Iterator[bytes]:
    """Yield `name<TAB>node<LF>` for every line, as many at a time as one read returned.

    Raises UsageError with the line's number if a line is too long.
    """
    before = 0
    for lines in _whole_lines(names):
        placed = []
        for number, line in enumerate(lines, before + 1):
            if len(line) > _LONGEST_NAME:
                raise UsageError(f"line {number} has more than {_LONGEST_NAME:,} bytes", remedy="give one name a line")
            if name := line.removesuffix(b"\r"):
                node = placement.home(name.decode("utf-8", "surrogateescape"), algorithm)
                placed.append(b"%b\t%b\n" % (name, node.encode("utf-8", "surrogateescape")))
        before += len(lines)
        yield b"".join(placed)


def _whole_lines(stream: Readable) -> Iterator[list[bytes]]:
    rest = b""
    while chunk := stream.read1(_CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        # An overlong line is yielded as it is, so that the caller refuses it by its number.
        if len(rest) > _LONGEST_NAME:
            lines, rest = [*lines, rest], b""
        yield lines
    yield [rest]


def _nodes(text: str) -> Iterator[str]:
    from infra.settings.gitserver import NODE, NODE_WORDS

    seen: set[str] = set()
    for node in text.split(","):
        if re.fullmatch(NODE, node) is None:
            raise UsageError(f"--nodes: {node!r} is not a node: {NODE_WORDS}", remedy="write --nodes a,b,c")
        if node in seen:
            raise UsageError(f"--nodes: {node} is listed twice", remedy="list each node once")
        seen.add(node)
        yield node


def _pins(texts: Iterable[str], nodes: list[str]) -> Iterator[tuple[str, str]]:
    from infra.settings.mistakes import close_to

    seen: dict[str, str] = {}
    for text in texts:
        name, equals, node = text.rpartition("=")
        if not equals or not name:
            raise UsageError(f"--pin: {text!r} is not NAME=NODE", remedy="write --pin github.com/a/b=node")
        if node not in nodes:
            raise UsageError(f"--pin: unknown node {node}{close_to(node, nodes)}", remedy="pin to one of --nodes")
        if seen.setdefault(name, node) != node:
            raise UsageError(f"--pin: {name} is pinned to two nodes", remedy="pin it once")
        yield name, node
