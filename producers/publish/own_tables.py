"""Reads rows of headrace's own tables from the stream: owners of gitlab schemas, and snapshot requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from infra.postgres.control import Owner
from infra.state.positions import HandoverState
from infra.state.snapshot_requests import RequestRow
from producers.publish.table_publisher import TableFeed
from schemas.events import UNCHANGED, Relation, Unchanged
from schemas.positions import Lsn, Position

_OF_OWNER: Final = ("gitlab_schema", "owner", "epoch")


def is_table(relation: Relation, own: tuple[str, str]) -> bool:
    """Whether the relation is one of headrace's own tables."""
    return (relation.schema, relation.table) == own


def request_row(relation: Relation, values: Sequence[bytes | Unchanged | None]) -> RequestRow:
    """Return a row of headrace.snapshot_requests by column."""
    names = (column.name for column in relation.columns)
    return {name: text for name, text in zip(names, values, strict=True) if not isinstance(text, Unchanged)}


def owner_in(relation: Relation, values: Sequence[bytes | Unchanged | None]) -> tuple[str, Owner]:
    """Return gitlab schema and owner from a row of headrace.schema_ownership in the stream."""
    texts = dict(zip((column.name for column in relation.columns), values, strict=True))
    gitlab_schema, owner, epoch = (
        text.decode() if isinstance(text := texts[name], bytes) else "" for name in _OF_OWNER
    )
    assert UNCHANGED not in (texts[name] for name in _OF_OWNER), "its values are too short to be stored elsewhere"
    return gitlab_schema, Owner(owner, int(epoch))


def handed_over(feeds: Sequence[TableFeed], owner: Owner, position: Position) -> HandoverState:
    """Return what to record of a gitlab schema that the change at `position` gave to another owner, with its tables."""
    return HandoverState(
        source=feeds[0].source,
        gitlab_schema=feeds[0].table.gitlab_schema,
        owner=owner.name,
        epoch=owner.epoch,
        commit_lsn=position.commit_lsn,
        ordinal=position.ordinal,
        confirmed_lsn=Lsn(position.commit_lsn + 1),
        snapshots=tuple(feed.state for feed in feeds),
    )
