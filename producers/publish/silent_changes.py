"""Changes of a table that give its rows other values, and of which the stream says nothing: pure rules, no I/O.

A statement such as `ALTER … TYPE text USING upper(v)` or `ALTER TYPE … RENAME VALUE` changes rows without an event for
any of them. What the catalog says of the columns, the table's storage and the types (`FormState`) is recorded with the
topic, and compared with what it says later. A change that was undone in between has moved it too.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from infra.state.positions import ColumnForm, FormState


@dataclass(frozen=True, slots=True)
class SilentChange:
    """Rows that the topic has may have other values in the table now, and why.

    `keys` says that the same is true of their keys: the topic may then have keys that no row has any more.
    """

    reason: str
    keys: bool


def silent_change(
    before: FormState, now: FormState, *, captured: Collection[str], key: Collection[str], copying: bool
) -> SilentChange | None:
    """Return what changed between two looks at the catalog without an event, None where nothing did.

    `captured` are the columns of the topic's last records, `copying` says that chunks were read in the key's order.
    What may have been harmless counts as a change where the catalog cannot tell: a table rewritten by VACUUM FULL, say,
    one of whose columns was altered besides.
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
            found[name] = "has another collation, and with it another order"
    if not found:
        return None
    name = next((name for name in found if name in key), min(found))
    return SilentChange(f"column {name} {found[name]}", name in key)


def merged(before: FormState, now: FormState) -> FormState:
    """Return what is recorded after `now` was seen."""
    return now.model_copy(update={"columns": {**before.columns, **now.columns}})


def _rewritten(before: FormState, now: FormState) -> bool:
    """Whether every file of the table may have been rewritten: none is known to be the same."""
    return bool(before.storage) and not any(now.storage.get(oid) == file for oid, file in before.storage.items())


def _added(column: ColumnForm, rewritten: bool) -> str | None:
    """Return what makes the values of a column doubtful that was added since, and perhaps written and altered."""
    if rewritten:
        return "was added, and the table was rewritten"
    return "was added, and its type was changed" if column.touched else None


def _changed(was: ColumnForm, now: ColumnForm, rewritten: bool) -> str | None:
    """Return what happened to a column that changed its values, as the end of a sentence."""
    if was.number != now.number:
        return "was dropped and added again, or another one has its name now"
    if was.generated and not now.generated:
        return "is not generated any more, and rows have values that were never published"
    if rewritten and was.version != now.version:
        return "was altered, and the table was rewritten"
    if any(now.types.get(part, version) != version for part, version in was.types.items()):
        return "is of a type whose labels or attributes were changed"
    return None
