"""The one way in which tests wait: for a condition, until a deadline, with a failure that says what was seen."""

from __future__ import annotations

import ast
import linecache
import time
from collections.abc import Callable, Iterator
from inspect import getclosurevars
from types import FunctionType
from typing import Any, Final, TypeVar

PATIENCE: Final = 180.0
"""Seconds until a test that waits gives up; nothing is asserted about it."""

_LEAST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.5

Found = TypeVar("Found")


def until(
    condition: Callable[[], Found],
    what: str,
    seconds: float = PATIENCE,
    *,
    passing: type[BaseException] | tuple[type[BaseException], ...] = (),
    seen: Callable[[], object] | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> Found:
    """Wait until the condition returns something true, and return that.

    `passing` are the exceptions that count as "not yet", `meanwhile` is called between two looks; without it they are
    so far apart that looking takes a quarter of the time at most, which leaves the machine to what is awaited. Raises
    AssertionError after `seconds`, with `what` was awaited, what was seen last (`seen`, or what the condition returned,
    and the operands of its comparisons where it is a lambda), and the last exception that was suppressed, also as the
    cause.
    """
    deadline = time.monotonic() + seconds
    suppressed: BaseException | None = None
    while True:
        found: object = None
        began = time.monotonic()
        try:
            if found := condition():
                return found
        except passing as error:
            suppressed = error
        ended = time.monotonic()
        if ended >= deadline:
            break
        if meanwhile is not None:
            meanwhile()
        else:
            time.sleep(min(max(3 * (ended - began), _LEAST_PAUSE), _LONGEST_PAUSE))
    parts = [f"timed out after {seconds:g} s: {what}", f"last seen: {repr(found) if seen is None else seen()}"]
    parts += _operands(condition) if seen is None else []
    if suppressed is not None:
        parts.append(f"suppressed: {type(suppressed).__name__}: {suppressed}")
    raise AssertionError("\n".join(parts)) from suppressed


def _operands(condition: Callable[[], object]) -> Iterator[str]:
    """Return `text = value` of each operand of a lambda's comparisons, evaluated once more."""
    body = _body(condition)
    if body is None or not isinstance(condition, FunctionType):
        return
    names: dict[str, Any] = {**condition.__globals__, **getclosurevars(condition).nonlocals}
    names |= dict(zip(condition.__code__.co_varnames, condition.__defaults__ or (), strict=False))
    for compared in body.values if isinstance(body, ast.BoolOp) else [body]:
        if not isinstance(compared, ast.Compare):
            continue
        for operand in (compared.left, *compared.comparators):
            if not isinstance(operand, ast.Constant):
                text = ast.unparse(operand)
                try:
                    yield f"  {text} = {eval(text, names)!r}"  # noqa: S307  # the caller's own lambda
                except Exception as error:
                    yield f"  {text}: {type(error).__name__}: {error}"


def _body(condition: Callable[[], object]) -> ast.expr | None:
    """Return a lambda's expression, read from its file by the positions that its bytecode has."""
    if not isinstance(condition, FunctionType) or condition.__name__ != "<lambda>":
        return None
    code = condition.__code__
    places = [
        ((start, column), (end, end_column))
        for start, end, column, end_column in code.co_positions()
        if start and end and column is not None and end_column  # without those of no text, such as the start
    ]
    if not places:
        return None
    first, left = min(begin for begin, _ in places)
    last, right = max(end for _, end in places)
    lines = [linecache.getline(code.co_filename, number).encode() for number in range(first, last + 1)]
    lines[-1] = lines[-1][:right]
    lines[0] = lines[0][left:]
    try:
        return ast.parse(b"(" + b"".join(lines) + b"\n)", mode="eval").body
    except SyntaxError:
        return None
