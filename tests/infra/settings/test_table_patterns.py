"""Names and patterns of tables: which one wins, and which pairs are ambiguous."""

from __future__ import annotations

import itertools
import re
from functools import cache

import pytest

from infra.settings import table_patterns
from infra.settings.table_patterns import EVERY_TABLE, ambiguous, divided, includes, matches, matching

WORDS = ["".join(each) for length in range(6) for each in itertools.product("ab-", repeat=length)]
PATTERNS = ["".join(each) for length in range(4) for each in itertools.product("ab*?", repeat=length)]


@cache
def language(pattern: str) -> frozenset[str]:
    """Return the short words that a pattern matches, by a reading of it that shares nothing with the module."""
    expression = re.compile("".join({"*": ".*", "?": "."}.get(each, each) for each in pattern))
    return frozenset(word for word in WORDS if expression.fullmatch(word))


def test_inclusion_and_overlap_agree_with_the_words_that_match() -> None:
    languages = {pattern: language(pattern) for pattern in PATTERNS}
    for one, other in itertools.product(PATTERNS, repeat=2):
        mine, theirs = languages[one], languages[other]
        assert includes(one, other) == (theirs <= mine), (one, other)
        if "*" in one + other or "?" in one + other:
            pair = {f"a.{one}*": "gitlab_main", f"a.{other}*": "gitlab_ci"}
            one_, other_ = (language(f"{each}*") for each in (one, other))
            if len(pair) == 2:
                overlap, nested = bool(one_ & other_), one_ < other_ or other_ < one_
                assert (ambiguous(pair) is not None) == (overlap and not nested), pair


@pytest.mark.parametrize(
    ("table", "gitlab_schema"),
    [
        ("public.ci_builds", "by_name"),
        ("public.ci_pipelines", "narrow"),
        ("public.ci_x", "narrowest"),
        ("public.projects", "wide"),
        ("audit.events", "widest"),
        ("audit.with.dots", "widest"),
        ("public.ci_\nline", "narrow"),
    ],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_name_wins_over_patterns_and_the_most_specific_pattern_wins(
    table: str, gitlab_schema: str, backwards: bool
) -> None:
    labels = {
        EVERY_TABLE: "widest",
        "public.*": "wide",
        "public.ci_*": "narrow",
        "public.ci_?": "narrowest",
        "public.ci_builds": "by_name",
    }
    if backwards:
        labels = dict(reversed(labels.items()))
    assert matching(table, labels) == gitlab_schema
    assert ambiguous(labels) is None


def test_table_that_nothing_matches_has_no_gitlab_schema() -> None:
    assert matching("other.t", {"public.*": "gitlab_main", "other.u": "gitlab_main"}) is None
    assert matching("publicXt", {"public.?": "gitlab_main"}) is None
    assert matching("public.t1", {"public.t[1]": "gitlab_main"}) is None, "only * and ? are wildcards"


@pytest.mark.parametrize(
    "pair",
    [
        ("public.*_metadata", "public.ci_*"),
        ("*.events", "public.*"),
        ("public.?x", "public.x?"),
        ("public.*?", "public.?*"),
    ],
)
def test_overlapping_patterns_of_different_gitlab_schemas_are_ambiguous(pair: tuple[str, str]) -> None:
    labels = dict(zip(pair, ("gitlab_main", "gitlab_ci"), strict=True))
    assert ambiguous({EVERY_TABLE: "gitlab_shared", **labels}) == pair
    assert ambiguous(dict.fromkeys(pair, "gitlab_main")) is None, "they agree"


def test_patterns_without_a_common_table_are_not_ambiguous() -> None:
    assert ambiguous({"public.a*": "gitlab_main", "public.b*": "gitlab_ci", "other.*": "gitlab_sec"}) is None


def test_table_is_matched_by_its_name_or_by_a_wildcard() -> None:
    patterns = ("public.users", "public.p_*", "ci.?", "a.t[12]")
    expected = {
        "public.users": True,
        "public.users2": False,
        "public.p_": True,
        "public.p_x.y": True,
        "ci.a": True,
        "ci.ab": False,
        "a.t1": True,
        "a.t[12]": True,
        "a.t3": False,
    }
    assert {table: matches(table, *divided(patterns)) for table in expected} == expected


def test_tables_named_in_full_are_not_compared_with_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def noted(table: str, pattern: str) -> bool:
        compared.append(pattern)
        return False

    monkeypatch.setattr(table_patterns, "fnmatchcase", noted)
    names = tuple(f"public.t{number}" for number in range(1_000))
    assert all(matches(name, *divided((*names, "ci.*"))) for name in names)
    assert not matches("public.other", *divided((*names, "ci.*")))
    assert compared == ["ci.*"]
