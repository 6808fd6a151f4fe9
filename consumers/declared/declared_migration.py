"""Makes a migration of a section `[migrations.NAME.declare]`: a class like one that an author wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from consumers.contract.decisions import Change, Decision, Skip
from consumers.contract.migration import Cursor, Migration, Options
from consumers.contract.suggested_index import SuggestedIndex
from consumers.declared import event_condition, refusals, statements
from consumers.declared.event_condition import Term
from consumers.declared.expression import called, tokens
from infra.settings.declare import DeclareSettings
from infra.settings.model import MigrationSettings
from schemas.events import ChangeEvent, Op

_DELETED: Final = Skip("deleted")
_TRUNCATED: Final = Skip("truncated")
_PREFILTERED: Final = Skip("prefilter")
_OF_THE_SESSION: Final = frozenset(
    {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp", "current_user", "now"}
)
"""Words that no index may depend on."""


class RunOptions(Options):
    """The declaration as an option, so that a run records it and refuses consumers with another one."""

    declare: DeclareSettings


class DeclaredMigration(Migration):
    """The base class of what `migration_of` makes."""

    declaration: ClassVar[DeclareSettings]
    place: ClassVar[str]
    """`file:line` of the section."""
    terms: ClassVar[tuple[Term, ...]] = ()
    """The prefilter."""

    @classmethod
    def configure(cls, settings: MigrationSettings) -> Migration:
        """See Migration.configure; it has no options beyond its declaration."""
        super().configure(settings)
        return cls(RunOptions(declare=cls.declaration))

    def decide(self, event: ChangeEvent) -> Decision:
        """Change a row unless the prefilter is false for it; see Migration.decide."""
        row = event.after
        if row is None:
            return _TRUNCATED if event.op is Op.TRUNCATE else _DELETED
        for term in self.terms:
            if not term.may_hold(row):
                return _PREFILTERED
        key = self.declaration.key
        return Change(row[key[0]] if len(key) == 1 else tuple([row[name] for name in key]))

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        """Update the rows for which the guard is true; see Migration.apply."""
        # In key order, so that two consumers do not deadlock.
        keys = sorted({change.key for change in changes})  # type: ignore[type-var]
        statements.update(cursor, self.declaration, keys)
        return cursor.rowcount

    def remaining(self, cursor: Cursor) -> int:
        """Count the rows for which the guard is true."""
        row = cursor.execute(statements.count(self.declaration)).fetchone()
        assert row is not None
        return int(row[0])

    def validate(self, cursor: Cursor) -> None:
        """See Migration.validate. Raises RefusedDeclaration."""
        refusals.refuse(cursor, self.declaration, f"{self.place}: [migrations.{self.name}.declare]", self.terms)


def migration_of(name: str, declaration: DeclareSettings, gitlab_schema: str, place: str) -> type[DeclaredMigration]:
    """Return the migration's class. Raises NotAnExpression for a prefilter that is not decided on events."""
    terms = event_condition.parse(declaration.prefilter) if declaration.prefilter else ()
    columns = ", ".join(declaration.set)
    return type(
        name,
        (DeclaredMigration,),
        {
            "__doc__": f"Set {columns} of {declaration.table} where {' '.join(declaration.where.split())}.",
            "__module__": place,  # its source: place_of reports it
            "name": name,
            "gitlab_schema": gitlab_schema,
            "tables": (declaration.table,),
            "columns": tuple(dict.fromkeys((*declaration.key, *(term.column for term in terms)))),
            "mentions": event_condition.mentions(terms),
            "suggested_indexes": tuple(_indexes(declaration)),
            "declaration": declaration,
            "place": place,
            "terms": terms,
        },
    )


def _indexes(declaration: DeclareSettings) -> list[SuggestedIndex]:
    found = tokens(declaration.where)
    functions = {name for schema, name in called(found) if schema is not None}
    if functions or any(token.kind == "word" and token.text in _OF_THE_SESSION for token in found):
        return []
    return [SuggestedIndex(declaration.table, declaration.key, declaration.where, partial=True)]
