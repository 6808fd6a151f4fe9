"""Rows of headrace's own tables as the stream has them: who owns a gitlab schema, and requests to re-snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from infra.postgres.control import Owner
from schemas.events import UNCHANGED, Relation, Unchanged

_OF_OWNER: Final = ("gitlab_schema", "owner", "epoch")

Told = Mapping[str, bytes | None]
"""A row of the table of requests as the stream has it: column → text."""


def told(relation: Relation, values: Sequence[bytes | Unchanged | None]) -> Told:
    """Return a row of the table of requests by its columns."""
    names = (column.name for column in relation.columns)
    return {name: text for name, text in zip(names, values, strict=True) if not isinstance(text, Unchanged)}


def owner_in(relation: Relation, values: Sequence[bytes | Unchanged | None]) -> tuple[str, Owner]:
    """Return gitlab schema and owner of a row of headrace.schema_ownership, as the stream has it."""
    texts = dict(zip((column.name for column in relation.columns), values, strict=True))
    gitlab_schema, owner, epoch = (
        text.decode() if isinstance(text := texts[name], bytes) else "" for name in _OF_OWNER
    )
    assert UNCHANGED not in (texts[name] for name in _OF_OWNER), "its values are too short to be stored elsewhere"
    return gitlab_schema, Owner(owner, int(epoch))
