"""Describes recorded actions in words, those of one command on one subject together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra.state.history import HistoryEntry


def together(entries: Sequence[HistoryEntry]) -> Iterator[list[HistoryEntry]]:
    """Yield the entries of one command on one subject as a list, such as the dead letters that one retry settled."""
    for _, group in groupby(entries, key=lambda entry: (entry.request, entry.action, entry.subject)):
        yield list(group)


def described(same: Sequence[HistoryEntry]) -> str:
    """Return the details of entries of one command on one subject; empty without any."""
    if len(same) == 1:
        shown = ", ".join(
            key.replace("_", " ") if value is True else f"{key.replace('_', ' ')} {_text(value)}"
            for key, value in same[0].details.items()
            if value is not None and value is not False and value != {}
        )
        return "as in the settings" if not shown and same[0].action == "pace" else shown
    outcomes = [str(entry.details.get("outcome") or entry.details.get("step") or "done") for entry in same]
    return ", ".join(f"{outcomes.count(each):,} {each}" for each in dict.fromkeys(outcomes))


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {_text(each)}" for key, each in value.items())
    return (
        " ".join(map(_text, value)) if isinstance(value, list) else f"{value:,}" if type(value) is int else str(value)
    )
