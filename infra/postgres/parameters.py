"""Values as parameters of statements: arrays as literals, JSON and free text in the database's encoding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg.types.json import set_json_dumps

UTF8: Final = "UTF8"
NO_ENCODING: Final = "SQL_ASCII"
"""PostgreSQL's name for a database that stores any bytes."""


def array_parameter(values: Sequence[Any]) -> str | list[Any]:
    """Return whole numbers or texts as an array's literal, anything else as a list that psycopg converts.

    The server parses a literal in less time than psycopg takes to convert a list. The parameter needs a cast to the
    array's type in the statement, such as `%s::uuid[]`.
    """
    types = set(map(type, values))
    if types == {int}:
        return "{" + ",".join(map(str, values)) + "}"
    if types == {str}:
        # Doubling is not enough within an array: a quote and a backslash are escaped by a backslash.
        escaped = [value.replace("\\", "\\\\").replace('"', '\\"') for value in values]
        return '{"' + '","'.join(escaped) + '"}'
    return list(values)


def encoding_of(connection: psycopg.Connection[Any]) -> str:
    """Return PostgreSQL's name of the connected database's encoding."""
    return connection.info.parameter_status("server_encoding") or UTF8


def send_json_as_text(connection: psycopg.Connection[Any]) -> None:
    r"""Make the connection send JSON without escapes such as `\u00e9`, unless JSON needs them.

    An SQL_ASCII database refuses those in a jsonb value, but stores the character itself.
    """
    set_json_dumps(_dumps, connection)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def storable(connection: psycopg.Connection[Any], text: str) -> str:
    r"""Return free text, such as the reason of an operator or author, so that the database can store it.

    Only a UTF-8 database has every character, and an SQL_ASCII one asks for none: any other gets those outside of ASCII
    as escapes, such as `\xe9`, since a record of what happened must not fail because of its wording.
    """
    if encoding_of(connection) in {UTF8, NO_ENCODING}:
        return text
    return text.encode("ascii", "backslashreplace").decode()
