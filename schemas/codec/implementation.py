"""Selects the codec: the compiled one, or Python if headrace was installed without a compiler (`compiled` is None).

Both write the same bytes (tests/schemas/codec/test_encoder.py runs with either). A producer logs which one it uses.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from schemas.column_types import ColumnType, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from schemas.codec._compiled import Plan

_VERSION: Final = 10
"""The version of schemas/codec/extension/module.c; a module with another one is an outdated build."""


def _load() -> ModuleType | None:
    try:
        from schemas.codec import _compiled  # noqa: PLC0415 - optional
    except ImportError:
        return None
    return _compiled if _compiled.VERSION == _VERSION else None


compiled: Final[Any] = _load()
"""The module `schemas.codec._compiled`, or None."""

name: Final = "Python" if compiled is None else "C"
"""The codec's language, for messages."""

MISSING: Final = "headrace was installed without a C compiler: rows are encoded in Python, many times as slowly"
MISSING_REMEDY: Final = "install a C compiler and Python's headers, then install headrace again"

_KINDS: Final = {kind: number for number, kind in enumerate(Kind)}
"""The values of enum Kind in schemas/codec/extension/values.h, which has the same order."""


class Fallbacks(NamedTuple):
    """The Python functions to which the compiled ones fall back."""

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
    """Return the compiled encoder of rows of these columns, None without a compiled codec; see _compiled.pyi."""
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
