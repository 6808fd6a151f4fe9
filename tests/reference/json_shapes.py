"""The documents that commands print with --json, as a text with the keys and types of each."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Any, Final

from pydantic import TypeAdapter

_WORDS: Final = {"string": "text", "integer": "number", "number": "number", "boolean": "true or false", "null": "null"}


def shape(model: Any) -> str:
    """Return what a document of this model looks like; a key with `?` may be left out."""
    schema = TypeAdapter(model).json_schema()
    one_line = _of(schema, schema.get("$defs", {}))
    return textwrap.fill(one_line, 110, subsequent_indent=" ", break_long_words=False, break_on_hyphens=False)


def _of(node: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    match node:
        case {"$ref": str() as reference}:
            text = _of(known[reference.removeprefix("#/$defs/")], known)
        case {"anyOf": list() as choices}:
            text = " or ".join(_of(each, known) for each in choices)
        case {"enum": list() as values}:
            text = " or ".join(map(json.dumps, values))
        case {"const": value}:
            text = json.dumps(value)
        case {"type": "array", "items": dict() as items}:
            text = f"[{_of(items, known)}, …]"
        case {"properties": dict() as properties}:
            required = node.get("required", ())
            fields = [
                f'"{key}"{"" if key in required else "?"}: {_of(each, known)}' for key, each in properties.items()
            ]
            text = "{" + ", ".join(fields) + "}"
        case {"additionalProperties": dict() as values}:
            text = f"{{NAME: {_of(values, known)}, …}}"
        case {"type": "object"}:
            text = "{…}"
        case {"type": str() as kind}:
            text = _WORDS.get(kind, kind)
        case _:
            text = "any value"
    return text
