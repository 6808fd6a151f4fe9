"""What is run as a service, a source's producer or a migration's consumers, with what it needs to be allowed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from infra.rights.acls import Acl
from infra.rights.privileges import TablePrivileges
from infra.settings.model import Settings
from schemas.errors import UsageError


@dataclass(frozen=True)
class Program:
    """`headrace produce NAME` or `headrace consume NAME`, on one database."""

    name: str
    database: str | None
    """Whose dsn's role gets the privileges; None: it has no database."""
    acls: tuple[Acl, ...]
    privileges: tuple[TablePrivileges, ...] = ()
    own_tables: str = ""
    """SQL that makes tables of its own in schema `headrace`; see Migration.own_tables."""
    replicates: bool = False
    """Whether it reads a replication slot."""


Programs = Callable[[Settings], Iterable[Program]]
"""Says which programs these settings are for; asks no server."""


def chosen(programs: Sequence[Program], names: Collection[str]) -> list[Program]:
    """Return those called `names`, all without names. Raises UsageError for a name that none has."""
    known = {program.name for program in programs}
    for name in sorted(set(names) - known):
        raise UsageError(
            f"these settings run nothing called {name!r}", remedy=f"there: {', '.join(sorted(known)) or 'nothing'}"
        )
    return [program for program in programs if not names or program.name in names]


def privileges(programs: Iterable[Program]) -> list[TablePrivileges]:
    """Return what the programs need together, each table once."""
    merged: dict[tuple[str, str], tuple[str, ...]] = {}
    for program in programs:
        for each in program.privileges:
            key = each.schema, each.table
            merged[key] = tuple(dict.fromkeys((*merged.get(key, ()), *each.privileges)))
    return [TablePrivileges(*key, wanted) for key, wanted in merged.items()]


def acls(programs: Iterable[Program]) -> list[Acl]:
    """Return the ACLs of the programs together, none of them twice."""
    return list(dict.fromkeys(acl for program in programs for acl in program.acls))
