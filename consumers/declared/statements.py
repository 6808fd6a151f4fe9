"""The statements of a declared migration. Its expressions come from the settings, each in parentheses of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from psycopg import sql

from consumers.contract.migration import Cursor
from infra.postgres.key_order import Operators, among, compared, default_operators, key_order
from infra.postgres.parameters import array_parameter
from infra.settings.declare import DeclareSettings

_KEYS: Final = "headrace_keys"
_TYPES: Final = """
SELECT a.attname::text, format_type(a.atttypid, -1) FROM pg_attribute a
 WHERE a.attrelid = %s::regclass AND a.attname = ANY(%s::text[]) AND a.attnum > 0 AND NOT a.attisdropped
"""
_KNOWN: Final[dict[tuple[object, ...], tuple[tuple[str, ...], tuple[Operators, ...]]]] = {}
"""(server process, table, key) → types and operators of the key's columns, for as long as the session lasts."""


def table_of(declaration: DeclareSettings) -> sql.Identifier:
    """Return the table's name for a statement."""
    return sql.Identifier(*declaration.table.split(".", 1))


def expression(text: str) -> sql.Composable:
    """Return an expression of the settings, in parentheses. The line break ends what no check has noticed."""
    return sql.SQL("({}\n)").format(sql.SQL(text))


def count(declaration: DeclareSettings) -> sql.Composed:
    """Return the query for the number of rows that are left."""
    return sql.SQL("SELECT count(*) FROM {} WHERE {}").format(table_of(declaration), expression(declaration.where))


def update(cursor: Cursor, declaration: DeclareSettings, keys: Sequence[Any], *, returning: bool = False) -> None:
    """Update the rows with these keys for which the guard is true.

    With `returning` the cursor has a boolean for each updated row: whether the guard is still true.
    """
    columns = [[key] for key in keys] if len(declaration.key) == 1 else [list(key) for key in keys]
    arrays = [list(column) for column in zip(*columns, strict=True)] or [[] for _ in declaration.key]
    statement = updating(cursor, declaration)
    if returning:
        statement += sql.SQL(" RETURNING {} IS TRUE").format(_escaped(declaration.where))
    cursor.execute(statement, list(map(array_parameter, arrays)))


def updating(cursor: Cursor, declaration: DeclareSettings) -> sql.Composed:
    """Return the guarded UPDATE; its parameters are arrays of the key's columns."""
    types, operators = _key(cursor, declaration)
    schema, _, table = declaration.table.partition(".")
    columns = [_name(table, column) for column in declaration.key]
    arrays = [sql.SQL("%s::{}[]").format(sql.SQL(each.replace("%", "%%"))) for each in types]
    source: sql.Composable = sql.SQL("")
    if len(columns) == 1 and not any(each.cast for each in operators):
        # For many keys the join below may read the whole table, where this looks each key up.
        same = among(columns[0], arrays[0], operators)
    else:
        names = [sql.Identifier(f"headrace_key_{number}") for number in range(1, len(types) + 1)]
        source = sql.SQL(" FROM unnest({}) AS {} ({})").format(
            sql.SQL(", ").join(arrays), sql.Identifier(_KEYS), sql.SQL(", ").join(names)
        )
        same = compared(columns, "=", names, operators)
    return sql.SQL("UPDATE {table} SET {sets}{source} WHERE {same} AND {guard}").format(
        table=_name(schema, table),
        sets=sql.SQL(", ").join(
            sql.SQL("{} = {}").format(_name(column), _escaped(text)) for column, text in declaration.set.items()
        ),
        source=source,
        same=same,
        guard=_escaped(declaration.where),
    )


def _escaped(text: str) -> sql.Composable:
    """Return an expression for a statement with parameters."""
    return expression(text.replace("%", "%%"))


def _name(*parts: str) -> sql.Composable:
    """Return a name for a statement with parameters."""
    return sql.SQL(sql.Identifier(*parts).as_string(None).replace("%", "%%"))


def _key(cursor: Cursor, declaration: DeclareSettings) -> tuple[tuple[str, ...], tuple[Operators, ...]]:
    connection = cursor.connection
    known = (id(connection), connection.info.backend_pid, declaration.table, declaration.key)
    if known not in _KNOWN:
        _KNOWN.clear()
        name, columns = table_of(declaration).as_string(cursor), list(declaration.key)
        types = dict(connection.execute(_TYPES, (name, columns)).fetchall())
        row = connection.execute("SELECT %s::regclass::oid::bigint", (name,)).fetchone()
        assert row is not None
        operators = key_order(connection, row[0], columns) or default_operators(connection, row[0], columns)
        _KNOWN[known] = tuple(types[column] for column in columns), operators
    return _KNOWN[known]
