"""The three-way merge of refs."""

from __future__ import annotations

from itertools import product

import pytest

from consumers.repositories.refs import Carry, Clash, plan

MAIN = "refs/heads/main"


@pytest.mark.parametrize(
    ("base", "source", "target", "carries", "clashes"),
    [
        ("a", "a", "a", [], []),
        ("a", "b", "a", [Carry(MAIN, "b", "a")], []),
        ("a", None, "a", [Carry(MAIN, None, "a")], []),
        (None, "b", None, [Carry(MAIN, "b", None)], []),
        ("a", "a", "b", [], []),
        ("a", "a", None, [], []),
        (None, None, "b", [], []),
        ("a", "b", "b", [], []),
        ("a", "b", "c", [], [Clash(MAIN, "b", "c")]),
        ("a", "b", None, [], [Clash(MAIN, "b", None)]),
        (None, "b", "c", [], [Clash(MAIN, "b", "c")]),
        ("a", None, "b", [], []),
    ],
)
def test_ref_takes_the_value_of_the_side_that_changed_it(
    base: str | None, source: str | None, target: str | None, carries: list[Carry], clashes: list[Clash]
) -> None:
    def refs(value: str | None) -> dict[str, str]:
        return {} if value is None else {MAIN: value}

    assert plan(refs(base), refs(source), refs(target)) == (carries, clashes)


def test_merge_loses_no_value() -> None:
    values = (None, "a", "b", "c")
    for base, source, target in product(values, repeat=3):

        def refs(value: str | None) -> dict[str, str]:
            return {} if value is None else {MAIN: value}

        carries, clashes = plan(refs(base), refs(source), refs(target))
        kept = {target} | {each.new for each in carries} | {each.source for each in clashes}
        replaced = {each.old for each in carries}
        # The source's value is there afterwards, unless it is the base's and the target has changed since.
        assert source in kept or source in (None, base)
        # Only the base's value is replaced.
        assert replaced <= {base}


def test_head_is_kept_as_a_ref_only_if_it_is_a_commit() -> None:
    here, there = {"HEAD": "ref: refs/heads/next"}, {"HEAD": "ref: refs/heads/main"}
    assert plan(there, here, there) == ([Carry("HEAD", here["HEAD"], there["HEAD"])], [])
    assert plan({"HEAD": "ref: refs/heads/old"}, here, there) == ([], [])
    assert plan({"HEAD": "ref: refs/heads/old"}, {"HEAD": "a"}, there) == ([], [Clash("HEAD", "a", there["HEAD"])])
