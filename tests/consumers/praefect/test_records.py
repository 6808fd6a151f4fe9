"""Repositories to record are split into statements, so that no notification is too long."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.praefect import records
from consumers.praefect.records import PAYLOAD_BYTES, Found, recordable, statements
from tests.conftest import Database

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=400)
FOUND = st.builds(Found, TEXT, TEXT, TEXT)


def whole_rows(batch: list[Found]) -> str:
    """Return the payload of the first versions' triggers, with every column at its longest."""
    extra = {"repository_id": 2**63 - 1, "assigned": True, "verified_at": None, "verification_leased_until": None}
    rows = [
        json.dumps({**row._asdict(), "generation": 0, **extra}, ensure_ascii=False, separators=(",", ":"))
        for row in batch
    ]
    return f'{{"old" : null, "new" : [{", ".join(rows)}]}}'.replace("}, {", "}, \n {")


def paths(batch: list[Found]) -> str:
    """Return the payload of later versions' triggers."""
    groups: dict[str, list[str]] = {}
    for row in batch:
        groups.setdefault(row.virtual_storage, []).append(row.relative_path)
    return json.dumps(
        [{"relative_paths": names, "virtual_storage": name} for name, names in groups.items()], ensure_ascii=False
    )


@given(st.lists(FOUND, max_size=60))
def test_statements_stay_below_the_limit_of_notify(found: list[Found]) -> None:
    batches = list(statements(found))
    assert [row for batch in batches for row in batch] == found
    for batch in batches:
        assert len(paths(batch).encode()) <= PAYLOAD_BYTES
        assert len(batch) == 1 or len(whole_rows(batch).encode()) <= PAYLOAD_BYTES


@given(st.integers(1, 400))
def test_statement_has_two_dozen_ordinary_paths(count: int) -> None:
    found = [Found("default", f"@hashed/aa/bb/{number:064}.git", "gitaly-0") for number in range(count)]
    assert len(list(statements(found))) <= -(-count // 24)


def test_path_that_may_be_too_long_gets_its_own_statement() -> None:
    found = [Found("default", path, "gitaly-0") for path in ("a", "b" * 7_900, "c")]
    assert [len(batch) for batch in statements(found)] == [1, 1, 1]


@pytest.mark.parametrize(("more", "fits"), [(0, True), (1, False)])
def test_path_is_recordable_up_to_the_exact_byte(more: int, fits: bool) -> None:
    path = "é" * 10
    path += "d" * (PAYLOAD_BYTES - len(paths([Found("default", path, "")]).encode()) + more)
    assert recordable("default", path) is fits


@pytest.mark.stack
def test_json_length_matches_postgresql(database: Database) -> None:
    texts = [chr(code) for code in (*range(1, 0x300), 0x2028, 0xFFFF, 0x1F980)] + ['a\\b"c/d\n\x1f\x7f']
    row = (
        database.connect()
        .execute(
            "SELECT array_agg(octet_length(to_json(t)::text) ORDER BY n), array_agg(octet_length(to_jsonb(t)::text)"
            " ORDER BY n) FROM unnest(%s::text[]) WITH ORDINALITY AS texts(t, n)",
            (texts,),
        )
        .fetchone()
    )
    assert row is not None
    lengths = [records._json_bytes(text) for text in texts]
    assert (row[0], row[1]) == (lengths, lengths)
