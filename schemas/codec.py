"""The compiled codec, where there is one: `compiled` is None without a compiler at install, and all goes in Python.

Both write the same bytes (tests/schemas/test_encoder.py runs with either). A producer's log says which it has.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from schemas.column_types import ColumnType, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from schemas._codec import Plan

_VERSION: Final = 4
"""Of the functions in schemas/_codec.c; another one there is a build from before a change of the checkout."""


def _load() -> ModuleType | None:
    try:
        from schemas import _codec  # noqa: PLC0415 - there may be none
    except ImportError:
        return None
    return _codec if _codec.VERSION == _VERSION else None


compiled: Final[Any] = _load()
"""The module `schemas._codec`, or None."""

name: Final = "Python" if compiled is None else "C"
"""Which codec rows go through, for people."""

_KINDS: Final = {kind: number for number, kind in enumerate(Kind)}
"""The numbers of enum Kind in schemas/_codec_values.h, which is in the same order."""


class Fallbacks(NamedTuple):
    """The Python functions that the compiled ones stand before."""

    copy: Callable[..., Any]
    key: Callable[..., Any]
    change: Callable[..., Any]
    update: Callable[..., Any]
    delete: Callable[..., Any]


def plan(
    types: Sequence[ColumnType],
    key: Sequence[int],
    lacking: Collection[int],
    *,
    header: bytes,
    lacking_names: bytes,
    names: Sequence[bytes],
    python: Fallbacks,
) -> Plan | None:
    """Return what encodes rows of these columns, None without a compiled codec; see schemas/_codec.pyi."""
    if compiled is None:
        return None
    columns = tuple(
        (
            _KINDS[column.kind],
            column.low,
            column.high,
            column.precision,
            column.scale,
            column.partial,
            column.toastable,
            index in lacking,
        )
        for index, column in enumerate(types)
    )
    made: Plan = compiled.Plan(columns, tuple(key), header, lacking_names, tuple(names), tuple(python))
    return made
