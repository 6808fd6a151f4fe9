"""`[virtual_storages.NAME]`: the git storages that a walk reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import SecretStr, StringConstraints, model_validator

from infra.settings.mistakes import close_to
from infra.settings.section import Name, Section

STORAGE: Final = r"^[^/\x00-\x1f\x7f]+$"
STORAGE_WORDS: Final = "a storage's name has at least one character, and no slash"

StorageName = Annotated[str, StringConstraints(pattern=STORAGE)]
"""A name in Gitaly or Praefect; no slash, since `virtual storage/storage` identifies a walk."""


class StorageSettings(Section):
    """One git storage of a virtual storage: a directory, or a Gitaly node by its address (tcp, tls or unix)."""

    path: str | None = None
    """The directory of its repositories."""
    address: str | None = None
    """The address of its Gitaly node: `tcp://host:port`, `tls://host:port` or `unix:/path`."""
    token: SecretStr | None = None
    """Gitaly's token."""

    @model_validator(mode="after")
    def _one_way_to_it(self) -> Self:
        if (self.path is None) == (self.address is None):
            raise ValueError("a storage has either a path or an address")
        if self.address and not re.match(r"(tcp|tls)://[^/]+:\d+$|unix:.", self.address):
            raise ValueError("an address is tcp://host:port, tls://host:port or unix:/path")
        return self


class VirtualStorageSettings(Section):
    """A virtual storage of Praefect, which `headrace produce NAME` walks."""

    database: Name
    """Praefect's database: a name of `[databases.NAME]`."""
    primary: StorageName
    """The storage that is walked."""
    storages: dict[StorageName, StorageSettings]
    """Its storages by name."""

    @model_validator(mode="after")
    def _primary_is_there(self) -> Self:
        if self.primary not in self.storages:
            raise ValueError(f"primary: no storage is called {self.primary}{close_to(self.primary, self.storages)}")
        return self

    def beside(self, directory: Path) -> Self:
        """Return these settings with the storages' relative paths resolved against `directory`."""
        storages = {
            name: one.model_copy(update={"path": str(directory / one.path)}) if one.path else one
            for name, one in self.storages.items()
        }
        return self.model_copy(update={"storages": storages})
