"""`[gitserver]`: the nodes that hold repositories; for the migration that moves them and for applications that ask."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, StringConstraints, model_validator

from infra.settings.mistakes import close_to
from infra.settings.section import Section

NODE: Final = r"^[^\s,=]+$"
"""An address, such as gitserver-0:3178; `headrace place` has a list of them with commas, and pins with `=`."""
NODE_WORDS: Final = "a node's name has at least one character, and no space, comma or ="

_ELSEWHERE: Final = re.compile(r"[^/]+:")
"""As git tells an address (`https://…`, `git@host:…`) from a path: a colon before the first slash."""

NodeName = Annotated[str, StringConstraints(pattern=NODE)]


class WrongShardDeletion(StrEnum):
    """What gitserver's janitor does with a repository on another node than the one that its hash gives."""

    OFF = "off"
    """It deletes none."""
    FOLLOWS_CURSOR = "follows_cursor"
    """It deletes what is at none of the homes that readers are sent to (docs/routing.md), and nothing else."""


class GitserverSettings(Section):
    """The nodes that repositories are moved between."""

    nodes: tuple[NodeName, ...] = ()
    """In the order in which the application has them: the old placement, by md5, depends on it."""
    roots: dict[NodeName, Annotated[str, StringConstraints(min_length=1)]] = Field(default_factory=dict)
    """Where each node's repositories are reached: a directory, absolute once loaded. `rehash_moves` refuses an address:
    a copy can neither be put in its place there, nor be removed."""
    pins: dict[str, NodeName] = Field(default_factory=dict)
    """Repository → the node it stays on, whatever the hash says."""
    wrong_shard_deletion: WrongShardDeletion | None = None
    """What is so on every node, by the operator's word. `rehash_moves` does not start without: left as gitserver has
    it, that deletes each repository that was moved."""
    max_concurrent_clones: int = Field(default=5, ge=1)
    """How many clones all members of the migration together have under way."""
    refresh_seconds: float = Field(default=1, gt=0, le=10)
    """How often an application asks how far the migration is: all its threads together, once in this time."""
    grace_seconds: float = Field(default=10, gt=0)
    """How long an old copy stays after its name was passed. An application takes what it knows for good for half of
    this; the other half is for a request that is under way."""

    @model_validator(mode="after")
    def _nodes_are_known(self) -> Self:
        if twice := sorted({node for node in self.nodes if self.nodes.count(node) > 1}):
            raise ValueError(f"nodes: {twice[0]} is there twice")
        for key, named in (("roots", self.roots), ("pins", self.pins.values())):
            for node in named:
                if node not in self.nodes:
                    raise ValueError(f"{key}: no node is called {node}{close_to(node, self.nodes)}")
        if self.grace_seconds < 4 * self.refresh_seconds:
            raise ValueError("grace_seconds: must be at least four times refresh_seconds")
        return self

    def beside(self, directory: Path) -> Self:
        """Return these settings with the roots that are directories taken from `directory`, where they are relative."""
        roots = {node: root if _ELSEWHERE.match(root) else str(directory / root) for node, root in self.roots.items()}
        return self.model_copy(update={"roots": roots})
