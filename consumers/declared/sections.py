"""Makes migrations of the sections that declare them, or says what is wrong with one."""

from __future__ import annotations

from collections.abc import Iterator

from consumers.contract.discovery import Broken, Candidate
from consumers.declared.declaration import Declaration
from consumers.declared.declared_migration import migration_of
from consumers.declared.expression import NotAnExpression, tokens
from infra.settings.declare import DeclareSettings
from schemas.errors import UsageError


def candidates(found: tuple[Declaration, ...]) -> Iterator[Candidate | Broken]:
    """Yield the class of each, or what is wrong with it."""
    for name, place, label, document in found:
        section = DeclareSettings.model_validate_json(document)
        try:
            require_expressions(section)
            if not label:
                problem = f"table {section.table} has no known gitlab schema, or more than one"
                raise UsageError(problem, remedy='choose one: gitlab_schema = "gitlab_main"')
            yield Candidate(name, place, migration_of(name, section, label, place))
        except UsageError as error:
            problem = f"[migrations.{name}.declare]: {error.problem}"
            yield Broken(name, place, problem, error.remedy, place)


def require_expressions(section: DeclareSettings) -> None:
    """Raise UsageError, which names the key, unless each of the section's texts is one SQL expression."""
    texts = {"where": section.where, **{f"set.{column}": text for column, text in section.set.items()}}
    for key, text in texts.items():
        try:
            tokens(text)
        except NotAnExpression as error:
            raise UsageError(f"{key} {error}", remedy=f"write one SQL expression in {key}") from None
    if section.prefilter is not None:
        try:
            migration_of("prefilter", section, "", "")
        except NotAnExpression as error:
            raise UsageError(f"prefilter {error}", remedy="correct prefilter, or remove it") from None
