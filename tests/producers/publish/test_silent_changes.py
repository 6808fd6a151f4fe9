"""Tests each rule for changes without events."""

from __future__ import annotations

from infra.state.positions import ColumnForm, FormState
from producers.publish.silent_changes import silent_change
from producers.publish.table_publisher import TableFeed
from schemas.positions import Lsn
from tests.producers.captures import MemoryRegistry, done, feed

A = ColumnForm(number=2, version=700)
BEFORE = FormState(columns={"id": ColumnForm(number=1, version=700), "v": A}, storage={"9": 1})


def changed(*, storage: int = 1, copying: bool = False, **columns: ColumnForm) -> tuple[str, bool] | None:
    now = FormState(columns={**BEFORE.columns, **columns}, storage={"9": storage})
    change = silent_change(BEFORE, now, captured={"id", "v"}, key=("id",), copying=copying)
    return None if change is None else (change.reason, change.keys)


def test_a_rewrite_counts_for_the_columns_that_were_altered() -> None:
    altered = A.model_copy(update={"version": 701})
    assert changed(storage=2) is None
    assert changed(v=altered) is None
    assert changed(storage=2, v=altered) == ("column v was altered, and the table was rewritten", False)
    assert changed(storage=2, w=ColumnForm(number=3, version=701)) == (
        "column w was added, and the table was rewritten",
        False,
    )
    unpublished = ColumnForm(number=3, version=701, generated=True)
    assert changed(storage=2, w=unpublished) is None


def test_a_change_of_a_key_column_counts_before_all_others() -> None:
    key = ColumnForm(number=1, version=701)
    assert changed(storage=2, a=ColumnForm(number=3, version=701), id=key) == (
        "column id was altered, and the table was rewritten",
        True,
    )


def test_changed_key_order_counts_while_chunks_use_it() -> None:
    other = ColumnForm(number=1, version=701, collation=950)
    assert changed(id=other) is None
    assert changed(id=other, copying=True) == ("column id has another collation, so its order changed", True)


def test_dropped_column_is_remembered_until_its_name_is_reused() -> None:
    state = done().model_copy(update={"form": BEFORE})
    table = feed(MemoryRegistry(), state)
    dropped = FormState(columns={"id": BEFORE.columns["id"]}, storage={"9": 1})
    assert table.take_form(dropped, 9) is None
    again = FormState(
        columns={**dropped.columns, "v": ColumnForm(number=3, version=702)}, storage={"9": 1}, lsn=Lsn(900)
    )
    change = table.take_form(again, 9)
    assert change is not None
    assert change.reason == "column v was dropped and added again, or another column has its name now"
    assert table.copying
    assert (table.state.not_before, table.state.form.columns) == (9, again.columns)


def under_way(state: FormState) -> TableFeed:
    table = feed(MemoryRegistry(), done().model_copy(update={"form": BEFORE}))
    assert table.take_form(state, 9) is not None
    return table


def test_truncate_older_than_form_does_not_end_snapshot() -> None:
    """Rows in the stream after the truncate may be older than the change."""
    form = FormState(
        columns={**BEFORE.columns, "v": A.model_copy(update={"number": 3})}, storage={"9": 1}, lsn=Lsn(900)
    )
    table = under_way(form)
    table.truncated(Lsn(899))
    assert table.copying
    table.truncated(Lsn(900))
    assert not table.copying


def test_change_during_first_snapshot_causes_resnapshot() -> None:
    table = feed(MemoryRegistry(), None)
    table.take_form(BEFORE, 7)
    assert not table.state.asked
    rewritten = FormState(columns={**BEFORE.columns, "v": A.model_copy(update={"version": 701})}, storage={"9": 2})
    assert table.take_form(rewritten, 9) is not None
    assert len(table.state.asked) == 1
    assert not table.state.done
