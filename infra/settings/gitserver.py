"""`[gitserver]`: the nodes that store repositories, for the migration that moves them and for applications."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, StringConstraints, model_validator

from infra.settings.mistakes import close_to
from infra.settings.section import Section

NODE: Final = r"^[^\s,=]+$"
"""An address, such as gitserver-0:3178; `headrace place` takes a comma-separated list, and pins with `=`."""
NODE_WORDS: Final = "a node's name has at least one character, and no space, comma or ="

_ELSEWHERE: Final = re.compile(r"[^/]+:")
"""An address (`https://…`, `git@host:…`) instead of a path, by git's rule: a colon before the first slash."""

NodeName = Annotated[str, StringConstraints(pattern=NODE)]


class WrongShardDeletion(StrEnum):
    """What gitserver's janitor does with a repository on another node than its hash names."""

    OFF = "off"
    """It deletes none."""
    FOLLOWS_CURSOR = "follows_cursor"
    """It deletes only repositories on nodes that no reader is routed to (docs/how-to/routing.md)."""


class GitserverSettings(Section):
    """The nodes that repositories are moved between."""

    nodes: tuple[NodeName, ...] = ()
    """In the application's order: the old placement, by md5, depends on it."""
    roots: dict[NodeName, Annotated[str, StringConstraints(min_length=1)]] = Field(default_factory=dict)
    """The directory of each node's repositories, absolute once loaded. `rehash_moves` refuses an address, where it
    could neither install nor remove a copy."""
    pins: dict[str, NodeName] = Field(default_factory=dict)
    """Repository → the node it stays on, regardless of the hash."""
    wrong_shard_deletion: WrongShardDeletion | None = None
    """The configuration of every node, as confirmed by the operator. Required by `rehash_moves`: gitserver's default
    deletes each moved repository."""
    max_concurrent_clones: int = Field(default=5, ge=1)
    """Maximum of concurrent clones of all consumers of the migration together."""
    refresh_seconds: float = Field(default=1, gt=0, le=10)
    """How often an application polls the progress of the migration, for all its threads together."""
    grace_seconds: float = Field(default=10, gt=0)
    """How long an old copy stays after its repository moved. An application caches its knowledge for half of this; the
    other half covers a request in progress."""

    @model_validator(mode="after")
    def _nodes_are_known(self) -> Self:
        if twice := sorted({node for node in self.nodes if self.nodes.count(node) > 1}):
            raise ValueError(f"nodes: {twice[0]} is listed twice")
        for key, named in (("roots", self.roots), ("pins", self.pins.values())):
            for node in named:
                if node not in self.nodes:
                    raise ValueError(f"{key}: no node is called {node}{close_to(node, self.nodes)}")
        if self.grace_seconds < 4 * self.refresh_seconds:
            raise ValueError("grace_seconds: must be at least four times refresh_seconds")
        return self

    def beside(self, directory: Path) -> Self:
        """Return these settings with relative root directories resolved against `directory`."""
        roots = {node: root if _ELSEWHERE.match(root) else str(directory / root) for node, root in self.roots.items()}
        return self.model_copy(update={"roots": roots})
