"""Detects changes of a table that alter its rows without events: pure rules, no I/O.

A statement such as `ALTER … TYPE text USING upper(v)` or `ALTER TYPE … RENAME VALUE` changes rows without an event for
any of them. The catalog's state of columns, storage and types (`FormState`) is recorded with the topic and compared
with its later state. A change that was reverted in between differs too.
"""

from __future__ import annotations

from collections.abc import Collection

from infra.state.positions import ColumnForm, FormState
from schemas.lazy_dataclass import dataclass


@dataclass(frozen=True)
class SilentChange:
    """Why rows of the topic may have other values in the table now.

    With `keys`, their keys may differ too: the topic may have keys that no row has.
    """

    reason: str
    keys: bool


def silent_change(
    before: FormState, now: FormState, *, captured: Collection[str], key: Collection[str], copying: bool
) -> SilentChange | None:
    """Return the change between two states of the catalog that has no event, None if there is none.

    `captured` are the columns of the topic's last records; `copying`: chunks were read in key order. Where the catalog
    does not know, a possibly harmless change counts: for example, VACUUM FULL of a table with a column altered.
    """
    rewritten = _rewritten(before, now)
    found: dict[str, str] = {}
    for name, column in now.columns.items():
        if column.generated and name not in captured:
            continue
        was = before.columns.get(name)
        reason = _added(column, rewritten) if was is None else _changed(was, column, rewritten)
        if reason is not None:
            found[name] = reason
    for name in key:
        pair = before.columns.get(name), now.columns.get(name)
        if copying and pair[0] is not None and pair[1] is not None and pair[0].collation != pair[1].collation:
            found[name] = "has another collation, so its order changed"
    if not found:
        return None
    name = next((name for name in found if name in key), min(found))
    return SilentChange(f"column {name} {found[name]}", name in key)


def merged(before: FormState, now: FormState) -> FormState:
    """Return the state to record after `now` was read."""
    return now.model_copy(update={"columns": {**before.columns, **now.columns}})


def _rewritten(before: FormState, now: FormState) -> bool:
    """Whether every file of the table may have been rewritten: none is known to be unchanged."""
    return bool(before.storage) and not any(now.storage.get(oid) == file for oid, file in before.storage.items())


def _added(column: ColumnForm, rewritten: bool) -> str | None:
    """Return why the values of an added column may be wrong: perhaps it was written and then altered."""
    if rewritten:
        return "was added, and the table was rewritten"
    return "was added, and its type was changed" if column.touched else None


def _changed(was: ColumnForm, now: ColumnForm, rewritten: bool) -> str | None:
    """Return how a column's values changed, as the end of a sentence."""
    if was.number != now.number:
        return "was dropped and added again, or another column has its name now"
    if was.generated and not now.generated:
        return "is no longer generated, so rows have values that were never published"
    if rewritten and was.version != now.version:
        return "was altered, and the table was rewritten"
    if any(now.types.get(part, version) != version for part, version in was.types.items()):
        return "has a type whose labels or attributes changed"
    return None
