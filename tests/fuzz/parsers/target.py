"""Defines a fuzz target: one parser, the property that every input must satisfy, and initial inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from schemas.errors import HeadraceError


class Violation(AssertionError):
    """The parser broke a property that holds for every input."""


@dataclass(frozen=True)
class Target:
    """One parser under test.

    `run` takes any bytes and returns if the property holds. Otherwise it raises Violation, or passes on an error
    outside the parser's contract. `seeds` are well-formed inputs. `dictionary` are tokens that a mutation may insert.
    `longest` limits the inputs, in bytes.
    """

    about: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    dictionary: tuple[bytes, ...] = ()
    longest: int = 2048


def agree(what: str, *outcomes: object) -> None:
    """Raise Violation unless all outcomes are equal."""
    first = outcomes[0]
    for other in outcomes[1:]:
        if other != first:
            raise Violation(f"{what} differ:\n  {first!r}\n  {other!r}")


def outcome(error: type[HeadraceError], call: Callable[..., object], *arguments: object) -> tuple[str, object]:
    """Return ("value", the result), or ("refused", the message) if the call raises the error of its contract."""
    try:
        return "value", call(*arguments)
    except error as refusal:
        return "refused", f"{type(refusal).__name__}: {refusal}"


def pack(parts: Iterable[bytes]) -> bytes:
    """Join parts, each after its length in two bytes."""
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def unpack(data: bytes) -> list[bytes]:
    """Split what `pack` joined; a wrong length ends at the end of the input."""
    parts = []
    position = 0
    while position + 2 <= len(data):
        end = position + 2 + int.from_bytes(data[position : position + 2], "big")
        parts.append(data[position + 2 : end])
        position = end
    return parts
