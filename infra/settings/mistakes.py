"""Describes a mistake in the settings: the key, what is wrong with it, and a similar known key.

Never shows the value: it may be a secret.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ValidationError

Location = tuple[int | str, ...]

_TYPE_WORDS: Final = {
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "tuple_type": 'must be a list, such as ["a", "b"]',
    "dict_type": "must be a table of keys",
    "model_type": "must be a table of keys",
    "too_short": "must not be empty",
}


class Mistakes:
    """Describes validation errors of a settings model; `patterns` has its patterns in words."""

    def __init__(self, model: type[BaseModel], patterns: Mapping[str, str]) -> None:
        self._model = model
        self._patterns = patterns

    def each(self, error: ValidationError) -> list[tuple[Location, str]]:
        """Return the location of each mistake, and a sentence about it that starts with its dotted key."""
        return [self._one(dict(one)) for one in error.errors(include_url=False, include_input=False)]

    def _one(self, error: Mapping[str, Any]) -> tuple[Location, str]:
        location: Location = error["loc"]
        if location[-1] == "[key]":
            location = location[:-1]
        key = dotted(location)
        if error["type"] == "extra_forbidden":
            return location, self.unknown(location)
        if error["type"] == "missing":
            return location, f"{key} is missing"
        said = self._in_words(error["type"], error.get("ctx", {}), error["msg"])
        # A section's own check names the key itself.
        joint = "." if re.match(r"\w+(\.\S+)?: ", said) and error["type"] == "value_error" else ": "
        return location, f"{key}{joint}{said}"

    def unknown(self, location: Location) -> str:
        """Return the message for an unknown key, with a similar key of the same section."""
        section: Any = self._model
        for part in location[:-1]:
            field = getattr(section, "model_fields", {}).get(part)
            section = field.annotation if field is not None else getattr(section, "__args__", (None,))[-1]
        return f"unknown key {dotted(location)}{close_to(str(location[-1]), getattr(section, 'model_fields', ()))}"

    def _in_words(self, kind: str, context: Mapping[str, Any], message: str) -> str:
        """Return pydantic's finding in the terms of a TOML file."""
        if kind == "string_pattern_mismatch":
            return self._patterns[context["pattern"]]
        if kind == "greater_than_equal":
            return f"must be {context['ge']} or more"
        if kind == "less_than_equal":
            return f"must be {context['le']} or less"
        return _TYPE_WORDS.get(kind, message.removeprefix("Value error, "))


def dotted(location: Location) -> str:
    """Return a key in TOML's notation, quoted if needed."""
    return ".".join(str(part) if re.fullmatch(r"[\w-]+", str(part)) else f'"{part}"' for part in location)


def close_to(word: str, known: Iterable[str]) -> str:
    """Return `, did you mean …?` if a known word is similar to `word`."""
    close = difflib.get_close_matches(word, sorted(known), n=1)
    return f", did you mean {close[0]}?" if close else ""
