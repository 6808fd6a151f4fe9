"""Renamed columns are recognized by their attnums and by their neighbours."""

from __future__ import annotations

from dataclasses import replace

import pytest

from producers.source.schema_changes import FollowedColumn, TableNow, obstacle
from schemas.events import Column
from tests.producers.captures import RELATION, TABLE


@pytest.mark.parametrize(
    ("followed", "now", "stream", "reason"),
    [
        pytest.param("id1 v2", "id1 w2", "id w", "column v was renamed to w", id="renamed"),
        pytest.param("id1 v2", "id1 x2", "id w", "column v was renamed to x", id="renamed twice"),
        pytest.param("id1 v2", "id1 w3", "id w", None, id="dropped, and another added"),
        pytest.param("id1 v2", "id1", "id w", None, id="dropped, and another that came and went"),
        pytest.param("id1 v2", "id1 v3", "id", None, id="dropped, and added again since"),
        pytest.param("id1 v2", "id1 v2", "id w", "w in place of v", id="renamed for a while, or before"),
        pytest.param("id1 v3", "id1 v3", "id w", "w in place of v", id="perhaps another one of before"),
        pytest.param("id1 v2 n3", "id1 v2 n3", "id w v", None, id="another one of before, by the one behind it"),
        pytest.param("id1 v2 n4", "id1 v2 n4", "id v n w", None, id="all are there"),
        pytest.param("id1 v2 n4", "id1 v2 n4", "id w n", "w in place of v", id="in its place"),
        pytest.param("id1 v2", None, "id w", "column v was renamed to w", id="the table is gone"),
        pytest.param("id1 v2", "id1 v2", "k v", "from before key column id was", id="the key, before"),
        pytest.param("id1 v2", "k1 v2", "k v", "key column id no longer exists", id="the key, since"),
        pytest.param("id1 v0", "id1 v2", "id w", "column v was renamed to w", id="a number that was not noted"),
        pytest.param("id1 v0", "id1 w2", "id w", "column v was renamed to w", id="not noted, and renamed since"),
        pytest.param("id1 v0", "id1 w2", "id", None, id="not noted, and dropped before another was added"),
    ],
)
def test_renamed_column_is_recognized(followed: str, now: str | None, stream: str, reason: str | None) -> None:
    relation = replace(RELATION, columns=tuple(Column(name, 23) for name in stream.split()))
    columns = {each[:-1]: FollowedColumn(int(each[-1]), 23) for each in followed.split()}
    numbers = {each[:-1]: int(each[-1]) for each in (now or "").split()}
    key = frozenset({"id"})
    catalog = TableNow("public.t", numbers, frozenset(), frozenset({key}), True, {}) if now else None
    found = obstacle(TABLE, relation, columns, catalog)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert reason in found
