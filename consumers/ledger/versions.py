"""What a run was begun with: a migration's version, and those of its options that decide what changes.

Recorded with the run. A consumer of another version, or with other options, is refused by name, so that two that decide
differently never work on the same run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb

from schemas.errors import Refused


class OtherVersion(Refused):
    """Run consumers of one version, with the same options; `headrace replay NAME` begins a run with this one's."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What one process declares of a migration: its version, and option → value where that is not the default."""

    version: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> Jsonb:
        """Return it as it is recorded."""
        return Jsonb({"version": self.version, "options": dict(self.options)})


def agree(connection: Connection[Any], name: str, declared: Declared) -> None:
    """Raise OtherVersion, within a transaction, where the current run of `name` was begun with something else.

    A run of which nothing is recorded, as of a migration that was paused before its first start, is given this. A
    duplicate changes nothing.
    """
    run, recorded = _recorded(connection, name)
    if recorded is None:
        connection.execute(
            "UPDATE headrace.migrations SET declared = %s WHERE name = %s AND run = %s AND declared IS NULL",
            (declared.document(), name, run),
        )
        # Another may have been first.
        run, recorded = _recorded(connection, name)
        assert recorded is not None
    if (begun := recorded["version"]) != declared.version:
        raise OtherVersion(
            f"run {run} of {name} was begun by version {begun} of it, and this is version {declared.version}",
            remedy=_remedy(name, "version"),
        )
    theirs, ours = recorded["options"], declared.options
    differing = [option for option in sorted(theirs.keys() | ours.keys()) if theirs.get(option) != ours.get(option)]
    if differing:
        raise OtherVersion(
            f"run {run} of {name} was begun with another value of migrations.{name}.{differing[0]}",
            remedy=_remedy(name, "options"),
        )


def _recorded(connection: Connection[Any], name: str) -> tuple[int, dict[str, Any] | None]:
    row = connection.execute("SELECT run, declared FROM headrace.migrations WHERE name = %s", (name,)).fetchone()
    assert row is not None
    return int(row[0]), row[1]


def _remedy(name: str, what: str) -> str:
    return (
        f"start a consumer of that {what.removesuffix('s')}, or stop all and begin a run with this one's {what}:"
        f" `headrace replay {name}`"
    )
