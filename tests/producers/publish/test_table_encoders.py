"""A table's versions in the stream and in the catalog, which is ahead of it: no rename goes unnoticed.

A column is written with its attnum in the catalog: `id1 v2`. A step is a version that the stream describes, or that a
chunk has (`chunk`), with the catalog of that moment.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from infra.state.positions import ColumnState
from producers.publish.table_encoders import TableEncoders
from producers.source.schema_changes import TableNow, TableStopped
from schemas.events import Column, Relation
from tests.producers.captures import RELATION, TABLE, MemoryRegistry

Step = tuple[str, str, int]
"""The version's columns, the catalog's with their numbers, and the highest number that was ever used."""


def version(names: str) -> Relation:
    return replace(RELATION, columns=tuple(Column(name, 23) for name in names.split()))


class Session:
    """The encoders of one session of a producer."""

    def __init__(self, recorded: tuple[ColumnState, ...] = ()) -> None:
        self.catalog = TableNow("public.t", {}, frozenset(), frozenset({frozenset({"id"})}), True, {})
        self.encoders = TableEncoders("main", TABLE, MemoryRegistry(), recorded, lambda: self.catalog)

    def meet(self, step: Step) -> None:
        names, columns, last = step
        numbers = {each[:-1]: int(each[-1]) for each in columns.split()}
        self.catalog = replace(self.catalog, numbers=numbers, last=last)
        if names.startswith("chunk "):
            self.encoders.encoder(version(names.removeprefix("chunk ")))
        else:
            self.encoders.stream_encoder(version(names), self.catalog)


RENAMED = {
    "added before the start, and renamed after it": [
        ("chunk id v y", "id1 v2 y3", 3),
        ("id v", "id1 v2 y3", 3),
        ("id v y", "id1 v2 y3", 3),
        ("id v z", "id1 v2 z3", 3),
    ],
    "added and renamed before the start": [
        ("chunk id v b", "id1 v2 b3", 3),
        ("id v", "id1 v2 b3", 3),
        ("id v a", "id1 v2 b3", 3),
        ("id v b", "id1 v2 b3", 3),
    ],
    "dropped and added again, then renamed": [
        ("chunk id v y", "id1 v2 y3", 3),
        ("id v y", "id1 v2 y3", 3),
        ("id v y", "id1 v2 y4", 4),
        ("id v z", "id1 v2 z4", 4),
    ],
    "renamed while a chunk with it was read": [
        ("id v", "id1 v2", 2),
        ("chunk id v y", "id1 v2 z3", 3),
        ("id v", "id1 v2 z3", 3),
        ("id v z", "id1 v2 z3", 3),
    ],
    "added and renamed while the producer lagged": [
        ("id v", "id1 v2 b3", 3),
        ("id v a", "id1 v2 b3", 3),
        ("id v b", "id1 v2 b3", 3),
    ],
}

FOLLOWED = {
    "came and went, then another, with rows between": [
        ("id v", "id1 v2", 4),
        ("id v a", "id1 v2", 4),
        ("id v", "id1 v2", 4),
        ("id v b", "id1 v2", 4),
    ],
    "came and went in one transaction, and another came later": [
        ("id v", "id1 v2", 2),
        ("id v tmp", "id1 v2", 3),
        ("id v b", "id1 v2 b4", 4),
    ],
    "the stream is back before a change that a chunk has": [
        ("id v n", "id1 v2 n3", 3),
        ("chunk id v m", "id1 v2 m4", 4),
        ("id v n", "id1 v2 m4", 4),
        ("id v m", "id1 v2 m4", 4),
    ],
    "dropped, and added again after a row": [
        ("id v n", "id1 v2 n3", 3),
        ("id v", "id1 v2", 3),
        ("id v n", "id1 v2 n4", 4),
    ],
}


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("steps", RENAMED.values(), ids=RENAMED)
def test_renamed_column_stops_the_table(steps: list[Step], restarts: bool) -> None:
    with pytest.raises(TableStopped, match=r"was renamed to|one may be a rename of the other"):
        play(steps, restarts)


@pytest.mark.parametrize("steps", FOLLOWED.values(), ids=FOLLOWED)
def test_other_changes_are_followed(steps: list[Step]) -> None:
    play(steps, restarts=False)


def play(steps: list[Step], restarts: bool) -> None:
    """Meet each version; with `restarts` each in a session of its own, with what was recorded."""
    session = Session()
    for step in steps:
        session.meet(step)
        if restarts:
            session = Session(session.encoders.columns or ())
