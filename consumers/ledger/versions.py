"""The version of a migration, and the options that affect its decisions, as recorded with a run.

A consumer with another version or other options is refused, so that consumers that decide differently never work on the
same run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb

from schemas.errors import Refused
from schemas.lazy_dataclass import dataclass


class OtherVersion(Refused):
    """Run consumers of one version, with the same options; `headrace replay NAME` starts a run with these."""


@dataclass(frozen=True)
class Declared:
    """A migration as one process declares it: version, and option → value for those that are not defaults."""

    version: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> Jsonb:
        """Return the form in which it is recorded."""
        return Jsonb({"version": self.version, "options": dict(self.options)})


def agree(connection: Connection[Any], name: str, declared: Declared) -> None:
    """Raise OtherVersion, within a transaction, if the current run of `name` was started with something else.

    If nothing is recorded, as for a migration that was paused before its first start, this records `declared`.
    Idempotent.
    """
    run, recorded = _recorded(connection, name)
    if recorded is None:
        connection.execute(
            "UPDATE headrace.migrations SET declared = %s WHERE name = %s AND run = %s AND declared IS NULL",
            (declared.document(), name, run),
        )
        # Another consumer may have been first.
        run, recorded = _recorded(connection, name)
        assert recorded is not None
    if (begun := recorded["version"]) != declared.version:
        raise OtherVersion(
            f"run {run} of {name} was started by version {begun}, but this is version {declared.version}",
            remedy=_remedy(name, "version"),
        )
    theirs, ours = recorded["options"], declared.options
    differing = [option for option in sorted(theirs.keys() | ours.keys()) if theirs.get(option) != ours.get(option)]
    if differing:
        raise OtherVersion(
            f"run {run} of {name} was started with another value of migrations.{name}.{differing[0]}",
            remedy=_remedy(name, "options"),
        )


def _recorded(connection: Connection[Any], name: str) -> tuple[int, dict[str, Any] | None]:
    row = connection.execute("SELECT run, declared FROM headrace.migrations WHERE name = %s", (name,)).fetchone()
    assert row is not None
    return int(row[0]), row[1]


def _remedy(name: str, what: str) -> str:
    return (
        f"start a consumer with that {what.removesuffix('s')}, or stop all consumers and start a run with this {what}:"
        f" `headrace replay {name}`"
    )
