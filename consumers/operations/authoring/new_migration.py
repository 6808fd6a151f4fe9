"""Writes the files of a new migration as text: the migration, its case and its test, formatted as ruff would.

Pure; `headrace new migration` writes them to a folder.
"""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Final

from consumers.contract.migration import API
from infra.settings.section import NAME_PATTERN
from schemas.errors import UsageError
from schemas.lazy_dataclass import dataclass

_WIDTH: Final = 88
"""The longest line that ruff's and black's defaults leave as it is."""
_TABLE: Final = re.compile(r"[^.\s*?\[\]\"'\\%]+\.[^.\s*?\[\]\"'\\%]+")
_TYPE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_. ]*(\(\d+(, ?\d+)?\))?")
_PLAIN: Final = re.compile(r"[a-z_][a-z0-9_]*")
_IMPORTED: Final = frozenset(
    {"Change", "ChangeEvent", "Cursor", "Decision", "Migration", "Sequence", "Skip", "TableCase"}
)
_WORDS: Final = """
all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation column
concurrently constraint create cross current_catalog current_date current_role current_schema current_time
current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign freeze from
full grant group having ilike in initially inner intersect into is isnull join lateral leading left like limit localtime
localtimestamp natural not notnull null offset on only or order outer overlaps placing primary references returning
right select session_user similar some symmetric system_user table tablesample then to trailing true union unique user
using variadic verbose when where window with
"""
_RESERVED: Final = frozenset(_WORDS.split())
"""PostgreSQL's words that are no names without quotes (its documentation, appendix C)."""


@dataclass(frozen=True)
class NewMigration:
    """What is known of it: `key` is the only column of the key, of type `key_type`; `sets` is column → expression."""

    name: str
    table: str
    gitlab_schema: str
    key: str = "id"
    key_type: str = "bigint"
    sets: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The name of its class."""
        camel = "".join(word.capitalize() for word in self.name.split("_"))
        return f"{camel}Rows" if camel in _IMPORTED or keyword.iskeyword(camel) else camel


def require_names(name: str, table: str, gitlab_schema: str | None) -> None:
    """Raise UsageError, which names the mistake, for what cannot be a name of a migration, a table or a schema."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(
            f"{name!r} cannot be the name of a migration",
            remedy="a name has 1 to 63 lowercase letters, digits and underscores, and starts with a letter",
        )
    if keyword.iskeyword(name) or name in sys.stdlib_module_names:
        raise UsageError(f"{name} is a name of Python's own", remedy="choose another: it is the name of a module too")
    if not _TABLE.fullmatch(table):
        plain = f": --table public.{table}" if re.fullmatch(r"\w+", table) else ""
        raise UsageError(f"--table {table!r} is not schema.table", remedy=f"give the table with its schema{plain}")
    if gitlab_schema is not None and not re.fullmatch(NAME_PATTERN, gitlab_schema):
        raise UsageError(
            f"--gitlab-schema {gitlab_schema!r} is not a name", remedy="such as --gitlab-schema gitlab_main"
        )


def parse_key(key: str) -> tuple[str, str]:
    """Return the column and the type of `COLUMN:TYPE`; without a type it is bigint. Raises UsageError."""
    column, _, key_type = key.partition(":")
    key_type = key_type.lower() or "bigint"
    if not column or not _is_name(column) or not _TYPE.fullmatch(key_type):
        raise UsageError(f"--key {key!r} is not COLUMN:TYPE", remedy="for example: --key id:uuid")
    return column, key_type


def assignments(sets: Sequence[str], key: str) -> dict[str, str]:
    """Return column → expression of `COLUMN=EXPRESSION`. Raises UsageError, also for the column that is the `key`."""
    found: dict[str, str] = {}
    for each in sets:
        column, equals, expression = (part.strip() for part in each.partition("="))
        if not (equals and expression and _is_name(column)):
            raise UsageError(
                f"--set {each!r} is not COLUMN=EXPRESSION", remedy='for example: --set "email=lower(email)"'
            )
        if not expression.isprintable() or '"""' in expression:
            raise UsageError(f"--set {column} has a line break or three double quotes", remedy="write it on one line")
        if column == key or column in found:
            reason = "is the key" if column == key else "is set twice"
            raise UsageError(f"--set {column}: the column {reason}", remedy="name each other column once")
        found[column] = expression
    return found


def _is_name(column: str) -> bool:
    return bool(column) and column.isprintable() and not re.search(r"[\s\"'\\%]", column)


def files(new: NewMigration) -> dict[str, str]:
    """Return file name → text."""
    return {f"{new.name}.py": _migration(new), f"{new.name}_case.py": _case(new), f"test_{new.name}.py": _test(new)}


def _migration(new: NewMigration) -> str:
    columns = ", ".join(new.sets)
    said = f"Sets {columns} of {new.table}." if new.sets else f"Changes rows of {new.table}."
    parts = [
        f'"""{said}"""\n\nfrom __future__ import annotations\n\nfrom collections.abc import Sequence\n\n'
        "from headrace import Change, ChangeEvent, Cursor, Decision, Migration, Skip\n\n\n"
        f"class {new.kind}(Migration):\n"
        f'    """{said.replace("Sets", "Set").replace("Changes", "Change")}"""\n\n'
        f"    name = {_text(new.name)}\n    headrace_api = {API}\n    gitlab_schema = {_text(new.gitlab_schema)}\n",
        _tuple("tables", [new.table]),
        _tuple("columns", [new.key, *new.sets]),
        _DECIDE.replace("RETURN", _returned(_text(new.key))),
        _written(new) if new.sets else _UNWRITTEN,
    ]
    return "".join(parts)


_DECIDE: Final = '''
    def decide(self, event: ChangeEvent) -> Decision:
        """Look at every row that exists: the guard of `apply` decides."""
        if event.after is None:
            return Skip("deleted")
RETURN
'''

_UNWRITTEN: Final = '''
    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        """Write the rows that still need it; return how many changed."""
        raise NotImplementedError("an UPDATE of these keys, guarded by a condition")

    def remaining(self, cursor: Cursor) -> int:
        """Count the rows that `apply` would write."""
        raise NotImplementedError("a SELECT count(*) with the condition of the UPDATE")
'''


def _written(new: NewMigration) -> str:
    """Return the methods with their SQL."""
    key = f"{_quoted(new.key)} = ANY(%s::{new.key_type}[])"
    # In a statement with parameters the driver reads %% as a percent sign.
    update, guard = (_escaped(each).replace("%", "%%") for each in (_update(new), _guard(new)))
    return f'''
    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        """Write the rows that still need it."""
        cursor.execute(
            """
            {update}
             WHERE {key}
               AND {guard}
            """,
            ([change.key for change in changes],),
        )
        return cursor.rowcount

    def remaining(self, cursor: Cursor) -> int:
        """Count the rows that `apply` would write."""
        cursor.execute(
            """
            SELECT count(*) FROM {_table(new)}
             WHERE {_escaped(_guard(new))}
            """
        )
        row = cursor.fetchone()
        assert row is not None
        return int(row[0])
'''  # noqa: S608 - a file for the author, not a statement


def _guard(new: NewMigration) -> str:
    tests = [f"{_quoted(column)} IS DISTINCT FROM ({expression})" for column, expression in new.sets.items()]
    return tests[0] if len(tests) == 1 else f"({' OR '.join(tests)})"


def _update(new: NewMigration) -> str:
    assignments = ", ".join(f"{_quoted(column)} = {expression}" for column, expression in new.sets.items())
    return f"UPDATE {_table(new)} SET {assignments}"  # noqa: S608 - see above


def _case(new: NewMigration) -> str:
    columns = {new.key: f"{new.key_type} PRIMARY KEY"} | {
        column: _type_of(expression) for column, expression in new.sets.items()
    }
    declared = ", ".join(f"{_quoted(column)} {column_type}" for column, column_type in columns.items())
    rows = ",\n            ".join(
        f"({', '.join([_key(new, number), *(_value(e, number) for e in new.sets.values())])})" for number in (1, 2, 3)
    )
    names = ", ".join(map(_quoted, columns))
    effect = _sql(f"{_update(new)}\n         WHERE {_guard(new)}") if new.sets else '""'
    insert = f"INSERT INTO {_table(new)} ({names}) VALUES\n            {rows}"
    schema = _quoted(new.table.partition(".")[0])
    imports = _imports({"headrace": "TableCase", new.name: new.kind})
    made = f"CREATE SCHEMA {schema};\n        " if schema != "public" else ""
    return (
        f'"""Rows for the contract test of {new.name}; give them the columns and values of your table."""\n\n'
        f"from __future__ import annotations\n\n{imports}\n\n"
        "class Case(TableCase):\n"
        '    """Some rows that the migration should change, and some that it should not."""\n\n'
        f"    migration = {new.kind}\n"
        f"    create_sql = {_sql(f'{made}CREATE TABLE {_table(new)} ({declared})')}\n"
        f"    insert_sql = {_sql(insert)}\n"
        f"    effect_sql = {effect}\n"
    )


def _sql(statement: str) -> str:
    return f'"""\n        {_escaped(statement)}\n    """'


def _test(new: NewMigration) -> str:
    key = "1" if _numeric(new.key_type) else '"1"'
    imports = _imports({"headrace": "Change, Contract, Skip", f"{new.name}_case": "Case"})
    return f'''"""{new.name}: its decisions, and that it keeps every promise of a migration."""

from __future__ import annotations

{imports}
KEY = {_text(new.key)}


def test_existing_row_is_changed() -> None:
    assert Case.decision({{KEY: {key}}}) == Change({key})


def test_deleted_row_is_skipped() -> None:
    assert Case.decision(None) == Skip("deleted")


def test_contract(headrace_contract: Contract) -> None:
    headrace_contract.check(Case)
'''


def _table(new: NewMigration) -> str:
    return ".".join(map(_quoted, new.table.split(".", 1)))


def _quoted(name: str) -> str:
    """Return a name as SQL has it; `checked` allows none with quotes."""
    return name if _PLAIN.fullmatch(name) and name not in _RESERVED else f'"{name}"'


def _escaped(statement: str) -> str:
    """Return SQL as it is within a string of Python."""
    return statement.replace("\\", "\\\\")


def _text(value: str) -> str:
    return f'"{value}"'


def _tuple(attribute: str, values: Sequence[str]) -> str:
    texts = [_text(value) for value in values]
    line = f"    {attribute} = ({', '.join(texts)}{',' if len(texts) == 1 else ''})\n"
    if len(line) <= _WIDTH + 1:
        return line
    return "".join([f"    {attribute} = (\n", *(f"        {text},\n" for text in texts), "    )\n"])


def _returned(column: str) -> str:
    for lines in (
        [f"return Change(event.after[{column}])"],
        ["return Change(", f"    event.after[{column}]", ")"],
        ["return Change(", "    event.after[", f"        {column}", "    ]", ")"],
    ):
        text = "\n".join(f"{' ' * 8}{line}" for line in lines)
        if max(map(len, text.split("\n"))) <= _WIDTH:
            break
    return text


def _imports(names: Mapping[str, str]) -> str:
    """Return the imports of module → names, in the order that ruff's rule I001 wants."""
    lines = (f"from {module} import {names[module]}\n" for module in sorted(names))
    return "".join(line if len(line) <= _WIDTH + 1 else _split(line) for line in lines)


def _split(line: str) -> str:
    start, _, names = line.rstrip().partition(" import ")
    return f"{start} import (\n    {names},\n)\n"


def _numeric(key_type: str) -> bool:
    return key_type in ("smallint", "integer", "int", "bigint", "numeric")


def _key(new: NewMigration, number: int) -> str:
    if new.key_type == "uuid":
        return f"'00000000-0000-0000-0000-{number:012}'"
    return str(number) if _numeric(new.key_type) else f"'{number}'"


def _type_of(expression: str) -> str:
    """Return a column's type, by the looks of its value."""
    if re.fullmatch(r"-?\d+", expression):
        return "bigint"
    if re.fullmatch(r"-?\d*\.\d+", expression):
        return "numeric"
    return "boolean" if expression.lower() in ("true", "false") else "text"


def _value(expression: str, number: int) -> str:
    """Return a value before the migration: two that it probably changes, and null."""
    if number == 3:
        return "NULL"
    column_type = _type_of(expression)
    if column_type == "boolean":
        return str(expression.lower() == "false").lower()
    return f"'Value {number}'" if column_type == "text" else str(1_000_000 + number)
