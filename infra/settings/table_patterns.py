"""Finds the gitlab schema of a table in `table_schemas`, whose keys are names and patterns of tables.

In a pattern, `*` matches any text, also none, and `?` one character. An exact name wins over every pattern. Of several
patterns that match, the most specific wins: the one whose tables are all matched by the other, too. Two that overlap
with different gitlab schemas, neither of which is more specific, are ambiguous, and refused when settings are loaded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from itertools import combinations
from typing import Final

Pattern = re.Pattern[str]

_WILDCARD: Final = re.compile(r"[*?\[]")
EVERY_TABLE: Final = "*.*"
"""The pattern that matches every table, and is less specific than any other."""


def is_pattern(key: str) -> bool:
    """Whether a key of `table_schemas` matches more than the table of that name."""
    return "*" in key or "?" in key


def matches(table: str, names: Collection[str], wildcards: Iterable[str]) -> bool:
    """Whether one of `names` is `table`, or one of `wildcards` matches it; see `divided`."""
    return table in names or any(fnmatchcase(table, pattern) for pattern in wildcards)


@lru_cache(maxsize=64)
def divided(patterns: tuple[str, ...]) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return all of `patterns`, as names, and those of them with wildcards.

    A thousand tables that are named in full are then not each compared with a thousand patterns.
    """
    return frozenset(patterns), tuple(pattern for pattern in patterns if _WILDCARD.search(pattern))


def matching(table: str, table_schemas: Mapping[str, str]) -> str | None:
    """Return the gitlab schema of `table`: of its name or of the pattern that wins, None without either."""
    if table in table_schemas:
        return table_schemas[table]
    found = [key for key in table_schemas if is_pattern(key) and _compiled(key).fullmatch(table)]
    for key in found:
        if not any(_narrower(other, key) for other in found):
            return table_schemas[key]
    return None


def ambiguous(table_schemas: Mapping[str, str]) -> tuple[str, str] | None:
    """Return two patterns that are ambiguous, None if `table_schemas` has no such pair."""
    patterns = sorted(key for key in table_schemas if is_pattern(key))
    for one, other in combinations(patterns, 2):
        equal = not _narrower(one, other) and not _narrower(other, one)
        if equal and table_schemas[one] != table_schemas[other] and _overlap(one, other):
            return one, other
    return None


@cache
def _compiled(pattern: str) -> Pattern:
    # As few stars as possible: each more multiplies the time of a failing match.
    parts = re.split(r"([*?]+)", pattern)
    return re.compile("".join(_gap(part) if is_pattern(part) else re.escape(part) for part in parts), re.DOTALL)


def _gap(wildcards: str) -> str:
    least = wildcards.count("?")
    return f".{{{least},}}" if "*" in wildcards else f".{{{least}}}"


def _narrower(pattern: str, than: str) -> bool:
    return includes(than, pattern) and not includes(pattern, than)


def _overlap(one: str, other: str) -> bool:
    """Whether some name matches both patterns."""
    ends = {0}
    for each in one:
        if each == "*":
            ends = set(range(min(ends), len(other) + 1))
            continue
        # A star of the other takes the character, or none.
        ends = _after_stars(other, ends)
        ends = {end if other[end] == "*" else end + 1 for end in ends if end < len(other) and _meet(each, other[end])}
        if not ends:
            return False
    return len(other) in _after_stars(other, ends)


def _meet(one: str, other: str) -> bool:
    return one in {other, "?"} or other in {"*", "?"}


def _after_stars(pattern: str, ends: set[int]) -> set[int]:
    found = set(ends)
    for start in ends:
        stars = len(pattern) - start - len(pattern[start:].lstrip("*"))
        found |= set(range(start, start + stars + 1))
    return found


@cache
def includes(wide: str, narrow: str) -> bool:
    """Whether every name that the pattern `narrow` matches is matched by the pattern `wide`."""
    # With a star around each of its question marks, where it has one, `wide` can be compared character by character:
    # its star takes any part of `narrow`, its question mark a character or a question mark.
    spread = re.sub(r"[*?]*\*[*?]*", lambda gap: "*" + "?*" * gap[0].count("?"), wide)
    ends = {0}
    for each in spread:
        if each == "*":
            ends = set(range(min(ends), len(narrow) + 1))
        elif each == "?":
            ends = {end + 1 for end in ends if end < len(narrow) and narrow[end] != "*"}
        else:
            ends = {end + 1 for end in ends if narrow[end : end + 1] == each}
        if not ends:
            return False
    return len(narrow) in ends
