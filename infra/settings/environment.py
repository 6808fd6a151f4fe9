"""Overrides settings by environment variables: `HEADRACE_KAFKA__BOOTSTRAP_SERVERS` is `bootstrap_servers` of `[kafka]`.

A variable's name is the path to a key, in any case, joined by two underscores. A list or a table is JSON. A table in a
variable and one in the file become one, in which the variable's keys win.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel

from schemas.errors import SettingsError

PREFIX: Final = "headrace_"
_DELIMITER: Final = "__"
_UNIONS: Final = (Union, UnionType)


def overridden(values: Mapping[str, Any], model: type[BaseModel], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return `values`, of a settings file for `model`, with those of the environment.

    Raises SettingsError, which names the variable, for a list or table that is not JSON.
    """
    found: dict[str, Any] = {}
    # A whole table before its keys.
    for name in sorted(environ, key=lambda name: name.count(_DELIMITER)):
        section, *keys = name.lower().removeprefix(PREFIX).split(_DELIMITER)
        field = model.model_fields.get(section)
        if field is None or not name.lower().startswith(PREFIX) or (keys and not _is_complex(field.annotation)):
            continue
        _put(found, [section, *keys], _value(name, environ[name], field.annotation, keys))
    return _merged(values, found)


def _put(table: dict[str, Any], path: list[str], value: Any) -> None:
    """Set the key at the end of `path`; a value that should be a table stays, for the model to report."""
    *tables, last = path
    for key in tables:
        below = table.setdefault(key, {})
        if not isinstance(below, dict):
            return
        table = below
    table[last] = value


def _value(name: str, text: str, annotation: Any, keys: list[str]) -> Any:
    """Return the value of a variable for the key that `keys` leads to; of a key that no model knows, JSON or text."""
    strict = True
    for key in keys:
        strict = not _is_mapping(annotation)
        annotation = _below(annotation, key)
    if annotation is not None and not _is_complex(annotation):
        return text
    try:
        return json.loads(text)
    except ValueError:
        if annotation is None or not strict or _is_union(annotation):
            return text  # the model says what is wrong with it
        raise SettingsError(
            f"environment variable {name} is not JSON: a list or table must be JSON in a variable",
            remedy="""correct or unset it; a list is '["public.projects"]'""",
        ) from None


def _below(annotation: Any, key: str) -> Any:
    """Return the type of `key` in a table of this type, None if it has no such key."""
    annotation = _plain(annotation)
    if _is_mapping(annotation):
        return get_args(annotation)[-1]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return next((field.annotation for name, field in annotation.model_fields.items() if name == key), None)
    members = get_args(annotation) if _is_union(annotation) else ()
    return next((found for member in members if (found := _below(member, key)) is not None), None)


def _is_complex(annotation: Any) -> bool:
    """Return whether values of this type are lists or tables."""
    plain = _plain(annotation)
    if _is_union(plain):
        return any(_is_complex(member) for member in get_args(plain))
    return get_origin(plain) in (dict, list, tuple) or (isinstance(plain, type) and issubclass(plain, BaseModel))


def _is_mapping(annotation: Any) -> bool:
    return get_origin(_plain(annotation)) is dict


def _is_union(annotation: Any) -> bool:
    return get_origin(_plain(annotation)) in _UNIONS


def _plain(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return two tables as one; where both have a key, `other` wins, unless both values are tables."""
    return {**one, **dict(_of_both(one, other))}


def _of_both(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in other.items():
        before = one.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        yield key, _merged(before, value) if both else value  # type: ignore[arg-type]  # both are mappings
