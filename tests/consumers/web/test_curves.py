"""The curves of rates: one value each five seconds, and gaps where no one watched."""

from __future__ import annotations

from consumers.web.curves import RateCurves


def test_curve_has_one_value_each_five_seconds() -> None:
    now = 100.0
    curves = RateCurves(lambda: now)
    for second in range(11):
        now = 100.0 + second
        curves.add({"main/a": second * 10.0})
    assert curves.read() == {"main/a": [0.0, 50.0, 100.0]}


def test_time_without_viewers_is_a_gap() -> None:
    now = 100.0
    curves = RateCurves(lambda: now)
    curves.add({"main/a": 1.0})
    now = 120.0
    curves.add({"main/a": 2.0, "main/b": 3.0})
    assert curves.read() == {"main/a": [1.0, None, None, None, 2.0], "main/b": [3.0]}


def test_curve_ends_with_its_migration_and_has_a_limit() -> None:
    now = 0.0
    curves = RateCurves(lambda: now)
    curves.add({"main/a": 1.0, "main/b": 1.0})
    for step in range(1, 1000):
        now = step * 5.0
        curves.add({"main/a": float(step)})
    found = curves.read()
    assert found.keys() == {"main/a"}
    assert len(found["main/a"]) == 180
    assert found["main/a"][-1] == 999.0
    now += 1e6
    curves.add({"main/a": 7.0})
    assert curves.read()["main/a"] == [*[None] * 179, 7.0]
