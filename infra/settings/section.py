"""Base class of the tables of the settings file, and the names that they share."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, StringConstraints

NAME_PATTERN: Final = r"^[a-z][a-z0-9_]{0,62}$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A name of a database or migration, safe in a topic, a slot, a transactional id and a file."""


class Section(BaseModel):
    """A table of the file; an unknown key is an error, so that a misspelt one is never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)
