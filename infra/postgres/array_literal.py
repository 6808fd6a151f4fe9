"""Arrays as the text of a parameter: the server parses it in less time than psycopg takes to convert a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def array_parameter(values: Sequence[Any]) -> str | list[Any]:
    """Return whole numbers or texts as an array's literal, anything else as a list that psycopg converts.

    The parameter needs a cast to the array's type in the statement, such as `%s::uuid[]`.
    """
    types = set(map(type, values))
    if types == {int}:
        return "{" + ",".join(map(str, values)) + "}"
    if types == {str}:
        # Doubling is not enough within an array: a quote and a backslash are escaped by a backslash.
        escaped = [value.replace("\\", "\\\\").replace('"', '\\"') for value in values]
        return '{"' + '","'.join(escaped) + '"}'
    return list(values)
