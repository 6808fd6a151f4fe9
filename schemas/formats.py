"""Versions the formats of all stored data: newer ones are refused, older ones are upgraded or refused.

Stored data contains its format, an integer, and the version of headrace that wrote it; without a mark it has format 1.
A format's version increases when an older headrace would misread or damage the data, not for additions that it may
ignore. To change a format, increase its version and add the upgrade from the previous one (docs/how-to/upgrading.md): a
pure function of a document here, SQL in a file of infra for tables. Where there is none, increase `oldest` as well.

Callers name a format through this module (`formats.POSITIONS`), so that a build with higher ones can be tested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from importlib import metadata
from typing import Any, Final

from schemas.errors import Malformed, Refused
from schemas.lazy_dataclass import dataclass

VERSION_MARK: Final = "format"
PROGRAM_MARK: Final = "written_by"

PROGRAM: Final = metadata.version("headrace")
"""The version of this headrace."""

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""A document in one format → the same in the next; may change its argument."""


class NewerFormat(Refused):
    """Run the version of headrace that wrote it, or a later one; nothing was changed."""


class OlderFormat(Refused):
    """Produce these topics again, under another prefix or after deleting them; nothing was changed."""


@dataclass(frozen=True)
class Format:
    """The format of one kind of stored data.

    `what` names it in messages. `upgrades` maps a version to the upgrade from it, for documents. Versions before
    `oldest` are refused.
    """

    what: str
    version: int = 1
    upgrades: Mapping[int, Upgrade] = field(default_factory=dict)
    oldest: int = 1

    def write(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the document with its mark."""
        return {**document, VERSION_MARK: self.version, PROGRAM_MARK: PROGRAM}

    def read(self, document: object, where: str) -> dict[str, Any]:
        """Return a stored document in the current format, without its mark; `where` identifies it in messages.

        Raises NewerFormat, OlderFormat, and Malformed for anything but a document.
        """
        if not isinstance(document, dict):
            raise Malformed(f"{where} is not a document of {self.what}")
        found = dict(document)
        by = found.pop(PROGRAM_MARK, None)
        version = self.require(found.pop(VERSION_MARK, 1), where, by)
        for step in range(version, self.version):
            found = self.upgrades[step](found)
        return found

    def require(self, version: object, where: str, by: object = None) -> int:
        """Return the format of stored data; raise NewerFormat or OlderFormat if this headrace does not read it.

        `by` is the version of headrace that wrote it, if known. Raises Malformed for an invalid format.
        """
        if type(version) is not int or version < 1:
            raise Malformed(
                f"{where} has no readable format", remedy=f"restore it: the format of {self.what} is a whole number"
            )
        if version > self.version:
            wrote = f", written by headrace {by}" if isinstance(by, str) else ""
            raise NewerFormat(
                f"{where} has format {version}{wrote}; this is headrace {PROGRAM}, which reads {self.what} up to format"
                f" {self.version}"
            )
        if version < self.oldest:
            raise OlderFormat(
                f"{where} has format {version}; this is headrace {PROGRAM}, which reads {self.what} from format"
                f" {self.oldest} on"
            )
        return version


POSITIONS = Format("records of the positions topic", version=2, upgrades={1: lambda document: document})
"""Since 2 the copied ranges of a table need not be adjacent."""
TABLES = Format("headrace's own tables")
EVENTS = Format("events of tables and storage walks", version=2, oldest=2)
DEAD_LETTERS = Format("dead letters")
SCHEMAS = Format("records of the schemas topic")
SETTINGS = Format("settings files")
STACKS = Format("records of a local stack")
MOVES = Format("notes of moving repositories")


def every() -> dict[str, Format]:
    """Return all formats by name."""
    return {name.lower(): found for name, found in globals().items() if isinstance(found, Format)}
