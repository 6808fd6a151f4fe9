"""Validates the declarations of a migration's class; each mistake is one line with a correct example.

Pure: it inspects the class and calls none of its methods.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from consumers.contract.backfill import Backfill
from consumers.contract.migration import API, Migration, Options, Shared
from consumers.contract.suggested_index import SuggestedIndex
from consumers.ledger.versions import Declared
from infra.settings.model import MigrationSettings
from infra.settings.section import NAME_PATTERN
from schemas.lazy_dataclass import dataclass

_PRIVILEGES: Final = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"})
_TABLE: Final = re.compile(r"[^.\s*?\[\]]+\.[^.\s*?\[\]]+")
_MISSING: Final = object()


@dataclass(frozen=True)
class Mistake:
    """A problem with a declaration, and a correct example."""

    problem: str
    example: str


def mistakes(kind: type[Migration]) -> Iterator[Mistake]:
    """Yield all mistakes in the declarations of `kind`; none for a class that can run."""
    if kind.headrace_api != API:
        # All else may have another meaning there.
        yield Mistake(
            f"is written for API version {kind.headrace_api!r}, and this headrace has version {API}",
            f"headrace_api = {API}, after the changes that docs/changelog.md lists",
        )
        return
    yield from _of_name(kind)
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        yield Mistake(f"lacks {', '.join(missing)}", f"def {missing[0]}(self, …), as in headrace.Migration")
    if issubclass(kind, Backfill) and (found := next(_of_backfill(kind), None)) is not None:
        # The other declarations of a backfill are derived from these.
        yield found
        return
    for attribute, check in _CHECKS.items():
        value = getattr(kind, attribute, _MISSING)
        wrong, example = check(value)
        if value is _MISSING:
            yield Mistake(f"declares no {attribute}", example)
        elif wrong is not None:
            yield Mistake(f"{attribute} {wrong}", example)
        elif attribute == "optional_columns" and isinstance(getattr(kind, "columns", None), tuple):
            yield from _outside_columns(kind)
    yield from _of_options(kind)


def _of_name(kind: type[Migration]) -> Iterator[Mistake]:
    name = getattr(kind, "name", _MISSING)
    example = f'name = "{_suggested(kind, name)}"'
    if name is _MISSING:
        yield Mistake("declares no name", example)
    elif not isinstance(name, str):
        yield Mistake(f"name is {_described(name)}, not a string", example)
    elif not re.fullmatch(NAME_PATTERN, name):
        yield Mistake(
            f"name is {name!r}; a name has 1 to 63 lowercase letters, digits and underscores, and starts with a letter",
            example,
        )


def _suggested(kind: type[Migration], name: object) -> str:
    words = name if isinstance(name, str) and re.search("[A-Za-z]", name) else kind.__name__
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", words)
    return re.sub(r"[^a-z0-9]+", "_", apart.lower()).strip("_0123456789")[:63] or "lower_emails"


def _outside_columns(kind: type[Migration]) -> Iterator[Mistake]:
    if others := [name for name in kind.optional_columns if name not in kind.columns]:
        yield Mistake(f"optional_columns has {others[0]}, which is not in columns", f'columns = (…, "{others[0]}")')


def _of_options(kind: type[Migration]) -> Iterator[Mistake]:
    options = kind.options_type
    if not (inspect.isclass(options) and issubclass(options, Options)):
        return
    # The settings consume these keys, so they never reach the migration.
    if taken := sorted(options.model_fields.keys() & MigrationSettings.model_fields.keys()):
        yield Mistake(
            f"options_type has {taken[0]}, which is a setting of every migration", f"own_{taken[0]}: … (another name)"
        )
    if unknown := sorted(set(options.not_deciding) - options.model_fields.keys()):
        yield Mistake(
            f"options_type.not_deciding has {unknown[0]}, which is not one of its options",
            'not_deciding: ClassVar[tuple[str, ...]] = ("batch_pause",)',
        )


def _of_backfill(kind: type[Backfill]) -> Iterator[Mistake]:
    """Yield mistakes that keep a backfill's declarations from being derived or its column from being created."""
    table, key, column, column_type = (
        getattr(kind, name, _MISSING) for name in ("table", "key", "column", "column_type")
    )
    if not (isinstance(table, str) and _TABLE.fullmatch(table)):
        yield Mistake(_said("table", table, "a table as schema.table"), 'table = "public.users"')
    if not (isinstance(column, str) and column):
        yield Mistake(_said("column", column, "a column's name"), 'column = "status"')
    if not (isinstance(key, tuple) and key and all(_is_pair(each) for each in key)):
        yield Mistake(_said("key", key, "a tuple of (column, type) pairs"), 'key = (("id", "bigint"),)')
    if not isinstance(column_type, str):
        yield Mistake(_said("column_type", column_type, "an SQL type"), 'column_type = "text"')
    if getattr(kind, "value", None) is None:
        yield Mistake("declares no value", 'value = "native"')
    if not (isinstance(kind.checks, tuple) and all(_is_pair(each) for each in kind.checks)):
        yield Mistake(
            _said("checks", kind.checks, "a tuple of (name, condition) pairs"),
            'checks = (("length", "char_length(status) <= 255"),)',
        )


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(each, str) and each for each in value)


def _said(attribute: str, value: object, wanted: str) -> str:
    return f"declares no {attribute}" if value is _MISSING else f"{attribute} is {_described(value)}, not {wanted}"


Found = tuple[str | None, str]
"""The problem with a value, or None, and a correct example."""


def _label(value: Any) -> Found:
    wrong = None if isinstance(value, str) and re.fullmatch(NAME_PATTERN, value) else _not(value, "a gitlab schema")
    return wrong, 'gitlab_schema = "gitlab_main"'


def _tables(attribute: str, *, required: bool) -> Callable[[Any], Found]:
    def check(value: Any) -> Found:
        example = f'{attribute} = ("public.users",)'
        if (wrong := _not_texts(value)) is not None:
            if isinstance(value, str) and _TABLE.fullmatch(value):
                example = f'{attribute} = ("{value}",)'
            return wrong, example
        if required and not value:
            return "is empty", example
        for name in value:
            if not _TABLE.fullmatch(name):
                plain = re.fullmatch(r"\w+", name)
                schema = f'; write {attribute} = ("public.{name}",)' if plain else ""
                return f"has {name!r}, which is not schema.table{schema}", example
        return None, example

    return check


def _texts(attribute: str, example: str) -> Callable[[Any], Found]:
    return lambda value: (_not_texts(value), f"{attribute} = {example}")


def _not_texts(value: Any) -> str | None:
    if isinstance(value, str):
        return f"is the string {value!r}, not a tuple: a one-element tuple needs a comma"
    if not isinstance(value, tuple):
        return _not(value, "a tuple of strings")
    for each in value:
        if not (isinstance(each, str) and each):
            return f"has {_described(each)}, not a string"
    return None


def _indexes(value: Any) -> Found:
    example = 'suggested_indexes = (SuggestedIndex("public.users", ("email",), "email <> lower(email)"),)'
    if isinstance(value, SuggestedIndex):
        return "is one index, not a tuple: a one-element tuple needs a comma", example
    if not isinstance(value, tuple) or not all(isinstance(each, SuggestedIndex) for each in value):
        return _not(value, "a tuple of SuggestedIndex"), example
    for each in value:
        if not _TABLE.fullmatch(str(each.table)):
            return f"has the table {each.table!r}, which is not schema.table", example
        if _not_texts(each.columns) is not None:
            return f"has columns that are {_described(each.columns)}, not a tuple of strings", example
    return None, example


def _privileges(value: Any) -> Found:
    example = 'privileges = {"public.notes": ("SELECT", "INSERT")}'
    if not isinstance(value, Mapping):
        return _not(value, "a dict"), example
    for table, wanted in value.items():
        if not (isinstance(table, str) and _TABLE.fullmatch(table)):
            return f"has the table {table!r}, which is not schema.table", example
        if _not_texts(wanted) is not None or not set(wanted) <= _PRIVILEGES:
            return f"has for {table} {_described(wanted)}, not a subset of {', '.join(sorted(_PRIVILEGES))}", example
    return None, example


def _version(value: Any) -> Found:
    whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31
    return None if whole else _not(value, "a positive integer"), "version = 2"


def _kind_of(wanted: type, words: str, example: str) -> Callable[[Any], Found]:
    return lambda value: (None if isinstance(value, wanted) else _not(value, words), example)


def _options(value: Any) -> Found:
    wrong = None if inspect.isclass(value) and issubclass(value, Options) else _not(value, "a subclass of Options")
    return wrong, "options_type = LowerEmailsOptions"


def _not(value: Any, wanted: str) -> str:
    return f"is {_described(value)}, not {wanted}"


def _described(value: object) -> str:
    """Return a value from the author's code for a message: short, on one line."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '…'} ({type(value).__name__})"


_CHECKS: Final[Mapping[str, Callable[[Any], Found]]] = {
    "gitlab_schema": _label,
    "tables": _tables("tables", required=True),
    "columns": _texts("columns", '("id", "email")'),
    "writes": _tables("writes", required=False),
    "privileges": _privileges,
    "optional_columns": _texts("optional_columns", '("status",)'),
    "mentions": _texts("mentions", '("import_skipped",)'),
    "suggested_indexes": _indexes,
    "version": _version,
    "continuous": _kind_of(bool, "True or False", "continuous = True"),
    "own_tables": _kind_of(str, "a string of SQL", 'own_tables = "CREATE TABLE IF NOT EXISTS headrace.mine (…)"'),
    "shared": _kind_of(Shared, "a Shared", "shared = Shared.PER_DATABASE"),
    "options_type": _options,
}


def declared(migration: Migration) -> Declared:
    """Return what `migration` declares in this process, with its options from the settings."""
    options = migration.options
    # Without defaults, so that an option added by a later headrace does not count as different.
    decide = options.model_dump(mode="json", exclude=set(options.not_deciding), exclude_defaults=True)
    return Declared(migration.version, decide)
