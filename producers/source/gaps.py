"""Refusals that keep a gap from being silent: what was written meanwhile would be in no topic."""

from __future__ import annotations

from producers.source.publication import GONE
from schemas.errors import Refused


class SilentGap(Refused):
    """Start over with `headrace produce SOURCE --start-over`: with a new slot it reads all tables anew."""


def start_over_with(source: str) -> str:
    """Return the remedy for a gap that nothing can fill."""
    return f"start over with `headrace produce {source} --start-over`: with a new slot it reads all tables anew"


def publication_gap(source: str, name: str, what: str) -> SilentGap:
    """Return the refusal of a source whose publication is not the one under which its topics were filled."""
    again, stays = start_over_with(source), f"so that it stays: change databases.{source}.tables, not the publication"
    if what == GONE:
        return SilentGap(
            f"publication {name} of {source} {what}: what is written now is in no stream",
            remedy=f"correct databases.{source}.publication if it names another, or {again}; {stays}",
        )
    return SilentGap(
        f"publication {name} of {source} {what} by another session: what was written meanwhile may be in no stream",
        remedy=f"{again}; {stays}",
    )
