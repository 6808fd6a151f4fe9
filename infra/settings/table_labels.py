"""Decides which gitlab schema each table of a database belongs to.

What `table_schemas` says of the table, by name or by pattern, wins over `gitlab_dictionary`, and that over headrace's
own list (`schemas.gitlab_schemas`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from infra.settings import table_patterns
from infra.settings.description.toml_text import toml_value
from infra.settings.gitlab_dictionary import read_dictionary
from infra.settings.model import DatabaseSettings
from schemas.gitlab_schemas import KNOWN, PER_DATABASE, TABLES, UnmappedTable
from schemas.lazy_dataclass import dataclass

_NAMED: Final = 3
"""How many tables an error of one line names; the others are in the lines that it shows."""


@dataclass(frozen=True)
class Unmapped:
    """A table without a gitlab schema, why, and those of the database's gitlab schemas that it may belong to.

    `elsewhere` are the gitlab schemas that it belongs to by the dictionary, none of which the database has.
    """

    table: str
    problem: str
    candidates: tuple[str, ...]
    elsewhere: tuple[str, ...] = ()


class TableLabels:
    """The gitlab schemas of one database's tables. Raises SettingsError if its `gitlab_dictionary` cannot be read."""

    def __init__(self, database: str, section: DatabaseSettings) -> None:
        self._database = database
        self._section = section
        path = section.gitlab_dictionary
        self._dictionary = None if path is None else read_dictionary(path)

    def of(self, table: str) -> str:
        """Return the gitlab schema of `table` (`schema.table`); raises UnmappedTable if it has none."""
        return self.of_all([table])[table]

    def of_all(self, tables: Iterable[str]) -> dict[str, str]:
        """Return table → gitlab schema; raises UnmappedTable about all that have none, with TOML lines for several."""
        found: dict[str, str] = {}
        unmapped: list[Unmapped] = []
        for table in tables:
            answer = self._answer(table)
            if isinstance(answer, str):
                found[table] = answer
            else:
                unmapped.append(answer)
        if unmapped:
            raise self._refusal(unmapped)
        return found

    def known(
        self, table: str, also: Iterable[str] = (), elsewhere: Mapping[str, str] = MappingProxyType({})
    ) -> str | None:
        """Return the gitlab schema of `table`, None if it has none.

        `also` are gitlab schemas that count as the database's own, and `elsewhere` has tables that the sections of
        other databases name: these count if this section's `table_schemas` does not mention the table.
        """
        written = table_patterns.matching(table, self._section.table_schemas) or elsewhere.get(table)
        if written is not None:
            return written
        listed, possible = self._listed(table), {*self._section.gitlab_schemas, *also}
        fitting = listed if len(listed) == 1 else tuple(each for each in listed if each in possible)
        return fitting[0] if len(fitting) == 1 else None

    def contradicted(self, tables: Iterable[str]) -> dict[str, str]:
        """Return the tables that only a pattern labels and the dictionary labels otherwise, with its gitlab schema.

        Only those whose gitlab schema by the dictionary, or by headrace's own list, is one of the database's.
        """
        found: dict[str, str] = {}
        for table in tables:
            written = table_patterns.matching(table, self._section.table_schemas)
            if written is None or table in self._section.table_schemas:
                continue
            fitting = [each for each in self._listed(table) if each in self._section.gitlab_schemas]
            if len(fitting) == 1 and fitting[0] != written:
                found[table] = fitting[0]
        return found

    def _listed(self, table: str) -> tuple[str, ...]:
        """Return the gitlab schemas that the dictionary has for `table`, or headrace's own list."""
        if self._dictionary is not None and (label := self._dictionary.gitlab_schema(table)) is not None:
            return (label,)
        return TABLES.get(table, ())

    def _answer(self, table: str) -> str | Unmapped:
        written = table_patterns.matching(table, self._section.table_schemas)
        if written is not None:
            return written
        own, listed = self._section.gitlab_schemas, self._listed(table)
        fitting = tuple(each for each in listed if each in own)
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            return Unmapped(table, f"table {table} may belong to {' or '.join(fitting)}", fitting)
        if listed and (self._dictionary is not None or KNOWN.intersection(own)):
            problem = (
                f"table {table} belongs to {' or '.join(listed)}, "
                f"and the database's gitlab_schemas are {', '.join(own) or 'empty'}"
            )
            return Unmapped(table, problem, (), listed)
        # A database without GitLab's gitlab schemas has tables of its own, whatever their names.
        candidates = tuple(each for each in own if each not in PER_DATABASE) or own
        return Unmapped(table, f"no gitlab schema is known for table {table}", candidates)

    def _refusal(self, unmapped: list[Unmapped]) -> UnmappedTable:
        place = f"[databases.{self._database}.table_schemas]"
        first = unmapped[0]
        value = first.candidates[0] if len(first.candidates) == 1 else "<gitlab schema>"
        if len(unmapped) == 1:
            problem = first.problem
            remedy = f'add "{first.table}" = "{value}" under {place}'
        else:
            named = ", ".join(each.table for each in unmapped[:_NAMED])
            more = f" and {len(unmapped) - _NAMED} more" if len(unmapped) > _NAMED else ""
            problem = f"{len(unmapped)} tables have no gitlab schema of this database: {named}{more}"
            pattern = f"{first.table.partition('.')[0]}.*"
            remedy = (
                f'add each under {place} (lines to paste are below), or one pattern such as "{pattern}" = "{value}";'
                " a copy of GitLab's dictionary is read with gitlab_dictionary"
            )
        if any(each.elsewhere for each in unmapped):
            remedy = f"list the gitlab schema under [databases.{self._database}], or {remedy}"
        heading = place if not self._section.table_schemas else f"# to add under {place}:"
        # Of a single table the remedy says it all, and an error is one line where it can be.
        shown = (heading, *map(_line, unmapped)) if len(unmapped) > 1 else ()
        return UnmappedTable(problem, remedy=remedy, shown=shown)


def _line(unmapped: Unmapped) -> str:
    """Return the line of TOML that gives the table its gitlab schema; where there is a choice, the value is empty."""
    if len(unmapped.candidates) == 1:
        return label_line(unmapped.table, unmapped.candidates[0])
    choice = " or ".join(unmapped.candidates)
    if unmapped.elsewhere:
        choice = f"{' or '.join(unmapped.elsewhere)}, which the database's gitlab_schemas lack"
    return f'{toml_value(unmapped.table)} = ""  # {choice}'


def label_line(table: str, gitlab_schema: str) -> str:
    """Return the line of `table_schemas` that gives a table its gitlab schema."""
    return f"{toml_value(table)} = {toml_value(gitlab_schema)}"
