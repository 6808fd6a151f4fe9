"""Services, a source's producer or a migration's consumers, with the rights that they need."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from infra.rights.acls import Acl
from infra.rights.privileges import TablePrivileges
from infra.settings.model import Settings
from schemas.errors import UsageError
from schemas.lazy_dataclass import dataclass


@dataclass(frozen=True)
class Program:
    """`headrace produce NAME` or `headrace consume NAME`, on one database."""

    name: str
    database: str | None
    """The database whose dsn's role gets the privileges, None without a database."""
    acls: tuple[Acl, ...]
    privileges: tuple[TablePrivileges, ...] = ()
    own_tables: str = ""
    """SQL that creates its own tables in schema `headrace`; see Migration.own_tables."""
    replicates: bool = False
    """Whether it reads a replication slot."""


Programs = Callable[[Settings], Iterable[Program]]
"""Returns the programs of the settings; asks no server."""


def chosen(programs: Sequence[Program], names: Collection[str]) -> list[Program]:
    """Return the programs called `names`, or all without names. Raises UsageError for an unknown name."""
    known = {program.name for program in programs}
    for name in sorted(set(names) - known):
        raise UsageError(
            f"no source or migration named {name!r} in the settings",
            remedy=f"use one of: {', '.join(sorted(known)) or 'none'}",
        )
    return [program for program in programs if not names or program.name in names]


def privileges(programs: Iterable[Program]) -> list[TablePrivileges]:
    """Return the privileges that the programs need together, one entry per table."""
    merged: dict[tuple[str, str], tuple[str, ...]] = {}
    for program in programs:
        for each in program.privileges:
            key = each.schema, each.table
            merged[key] = tuple(dict.fromkeys((*merged.get(key, ()), *each.privileges)))
    return [TablePrivileges(*key, wanted) for key, wanted in merged.items()]


def acls(programs: Iterable[Program]) -> list[Acl]:
    """Return the ACLs of the programs together, without duplicates."""
    return list(dict.fromkeys(acl for program in programs for acl in program.acls))
