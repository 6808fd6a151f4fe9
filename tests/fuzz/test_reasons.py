"""Reasons are matched by their whole text."""

from __future__ import annotations

from tests.fuzz import reasons

TABLES = ("public.t", "Sch-ema.semi;colon1", 's"q.t: 2')


def test_reason_matches_only_its_own_column_and_table() -> None:
    renamed = reasons.renamed_column("a.b")
    assert reasons.is_one_of("column a.b was renamed to c", renamed)
    assert reasons.is_one_of(
        "a change in the stream has column a.b in place of c: one may be a rename of the other", renamed
    )
    assert not reasons.is_one_of("column axb was renamed to c", renamed)
    assert not reasons.is_one_of("its column a.b was renamed to c", renamed)
    assert not reasons.is_one_of("column a.b changed its type, so its values in the topic no longer match", renamed)


def test_reasons_of_a_refused_start_are_split_by_table() -> None:
    problem = (
        "every table of main is stopped (Sch-ema.semi;colon1: it was dropped; public.t: column a; b was renamed to"
        ' public.t: x; s"q.t: 2: it was renamed to x; y)'
    )
    assert reasons.reasons_of(problem, TABLES) == [
        ("Sch-ema.semi;colon1", "it was dropped"),
        ("public.t", "column a; b was renamed to public.t: x"),
        ('s"q.t: 2', "it was renamed to x; y"),
    ]
    finding = "source main: table public.t may not be read by this role"
    for problem_text in (finding, f"{finding} (and 2 more: see `headrace check`)"):
        [(table, reason)] = reasons.reasons_of(problem_text, TABLES)
        assert table is None
        assert reasons.is_one_of(reason, reasons.hidden("public.t"))
    assert reasons.reasons_of("publication headrace of main was altered", TABLES) == [
        (None, "publication headrace of main was altered")
    ]
