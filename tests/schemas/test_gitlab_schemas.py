"""headrace's own list of tables and their gitlab schemas."""

from __future__ import annotations

from schemas.gitlab_schemas import KNOWN, TABLES


def test_every_label_in_the_dictionary_is_known() -> None:
    assert {label for labels in TABLES.values() for label in labels} <= KNOWN
