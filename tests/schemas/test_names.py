"""Escaped names stay distinct."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.names import escape, escape_identifier, unescape

NAMES = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.text("_xX0F5.-é", max_size=9))


@given(NAMES)
@settings(deadline=None)
def test_every_name_comes_back(name: str) -> None:
    assert unescape(escape(name)) == name
    assert unescape(escape_identifier(name)) == name
    assert re.fullmatch(r"[A-Za-z0-9_]*", escape(name))
    assert re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*)?", escape_identifier(name))


def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("container_repositories", "foo_xml", "CamelCase", "_x", "_xyz"):
        assert escape_identifier(name) == name
    assert escape("a.b") == "a_x2E_b"
    assert escape_identifier("1st") == "_x31_st"
    assert escape("_x41") == "_x5F_x41"
