"""Reasons are told apart by their whole text."""

from __future__ import annotations

from tests.fuzz import reasons

TABLES = ("public.t", "Sch-ema.semi;colon1", 's"q.t: 2')


def test_a_reason_is_one_with_its_own_column_and_table_alone() -> None:
    renamed = reasons.renamed_column("a.b")
    assert reasons.is_one_of("column a.b is called c now", renamed)
    assert reasons.is_one_of(
        "a change in the stream has column a.b in the place of c: one may be the other, renamed", renamed
    )
    assert not reasons.is_one_of("column axb is called c now", renamed)
    assert not reasons.is_one_of("column a.b is called c now, and more", renamed)
    assert not reasons.is_one_of("column a.b changed its type, and with it the values that stand in the topic", renamed)


def test_what_a_refused_start_blames_is_told_apart_by_table() -> None:
    problem = (
        "every table of main is stopped (Sch-ema.semi;colon1: it was dropped; public.t: column a; b is called public.t:"
        ' now; s"q.t: 2: it was renamed to x; y)'
    )
    assert reasons.reasons_of(problem, TABLES) == [
        ("Sch-ema.semi;colon1", "it was dropped"),
        ("public.t", "column a; b is called public.t: now"),
        ('s"q.t: 2', "it was renamed to x; y"),
    ]
    finding = "source main: table public.t may not be read by this role"
    for told in (finding, f"{finding} (and 2 more: see `headrace check`)"):
        [(table, reason)] = reasons.reasons_of(told, TABLES)
        assert table is None
        assert reasons.is_one_of(reason, reasons.hidden("public.t"))
    assert reasons.reasons_of("publication headrace of main was altered", TABLES) == [
        (None, "publication headrace of main was altered")
    ]
