"""A request to re-snapshot a table: which rows and which bounds are one."""

from __future__ import annotations

import pytest

from infra.state.snapshot_requests import RequestRefused, SnapshotRequest, read_request


def test_invalid_request_row_is_refused() -> None:
    whole = {"table": b"public.t", "first_key": b'{"a b",NULL,"c\\"d"}', "last_key": None, "from_scratch": b"f"}
    for row in (whole, {}, {**whole, "first_key": b"{{a},{b}}"}, {**whole, "first_key": None, "table": b"\xff"}):
        with pytest.raises(RequestRefused, match=r"is not a valid request; Nothing was changed"):
            read_request(row)


def test_request_is_read_from_its_row() -> None:
    row = {"table": b"public.t", "first_key": b'{"a b","c\\"d",NULLS,""}', "last_key": b"{\\u00}", "from_scratch": b"t"}
    assert read_request(row) == SnapshotRequest(
        table="public.t", first=("a b", 'c"d', "NULLS", ""), last=("u00",), from_scratch=True
    )


def test_bounds_need_a_value_for_each_column_of_the_key() -> None:
    SnapshotRequest(table="public.t").require_bounds(("id", "n"))
    SnapshotRequest(table="public.t", first=("1", "2"), last=("3", "4")).require_bounds(("id", "n"))
    for request in (
        SnapshotRequest(table="public.t", first=("1", "2"), last=("3",)),
        SnapshotRequest(table="public.t", first=("1",)),
    ):
        with pytest.raises(RequestRefused, match=r"a key with 1 value\(s\) was given, .* public\.t is \(id, n\)"):
            request.require_bounds(("id", "n"))


def test_bounds_are_limited_in_size() -> None:
    half = "\u00e9" * (64 * 1024)
    request = SnapshotRequest(table="public.t", first=(half,), last=(half,))
    request.require_bounds(("id",))
    with pytest.raises(RequestRefused, match=r"a key of more than 262144 bytes was given for public\.t"):
        request.model_copy(update={"last": (half + "x",)}).require_bounds(("id",))
