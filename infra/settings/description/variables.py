"""Finds the environment variable that sets a key, by the rules of `infra.settings.environment`."""

from __future__ import annotations

import json
import os
import re

from infra.settings.environment import PREFIX
from infra.settings.mistakes import Location


def variable_name(location: Location) -> str:
    """Return the name of the variable that sets a key, such as HEADRACE_DATABASES__MAIN__DSN; a dot becomes `_`."""
    return (PREFIX + "__".join(re.sub(r"\W", "_", str(part)) for part in location)).upper()


def variable_of(location: Location) -> str | None:
    """Return the environment variable that a value comes from, None if it comes from elsewhere.

    A whole list or table may be one variable, in JSON; it is the place of the keys that it has, and if it is no JSON of
    all keys in it.
    """
    for depth in range(len(location), 0, -1):
        wanted = {variable_name(location[:depth]), (PREFIX + "__".join(map(str, location[:depth]))).upper()}
        for variable, text in os.environ.items():
            if variable.upper() in wanted and _has(text, location[depth:]):
                return variable
    return None


def _has(text: str, inner: Location) -> bool:
    """Whether a variable's value has a key; one that cannot be read counts as having it."""
    try:
        value = json.loads(text)
    except ValueError:
        return True
    for part in inner:
        if isinstance(part, int) or not isinstance(value, dict):
            return True
        if part not in value:
            return False
        value = value[part]
    return True
