"""The section `[migrations.NAME.declare]`: a migration without code."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from infra.settings.section import Section

_Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class DeclareSettings(Section):
    """A guarded UPDATE of one table. The expressions are SQL, and trusted like the rest of the file."""

    table: _Text
    """As `schema.table`."""
    gitlab_schema: _Text | None = None
    """By default that of the table."""
    key: tuple[_Text, ...] = Field(default=("id",), min_length=1)
    """The columns of the table's primary key, in any order."""
    where: _Text
    """The guard, a condition: which rows still have to change. It is false for a row that was changed."""
    set: dict[_Text, _Text] = Field(min_length=1)
    """Column → expression."""
    prefilter: _Text | None = None
    """A condition on the event: rows for which it is false are skipped without a query."""
