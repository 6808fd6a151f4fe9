"""Refusals of starts that would silently lose changes."""

from __future__ import annotations

from producers.source.publication import GONE
from schemas.errors import Refused


class SilentGap(Refused):
    """Re-snapshot all tables with `headrace produce SOURCE --start-over`, which creates a new slot."""


def start_over_with(source: str) -> str:
    """Return the remedy for changes that are lost."""
    return f"re-snapshot all tables with `headrace produce {source} --start-over`, which creates a new slot"


def publication_gap(source: str, name: str, what: str) -> SilentGap:
    """Return the refusal for a source whose publication changed since its topics were filled."""
    again, stays = start_over_with(source), f"in future change databases.{source}.tables, not the publication"
    if what == GONE:
        return SilentGap(
            f"publication {name} of {source} {what}: new changes are not streamed",
            remedy=f"correct databases.{source}.publication if it names another, or {again}; {stays}",
        )
    return SilentGap(
        f"publication {name} of {source} {what} by another session: changes made meanwhile may be missing",
        remedy=f"{again}; {stays}",
    )
