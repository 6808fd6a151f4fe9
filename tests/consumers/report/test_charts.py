"""The pictures of a run: rates between samples, gaps that are shown as such, bands within the picture."""

from __future__ import annotations

from xml.etree.ElementTree import Element

import pytest

from consumers.report.charts import points, progress_chart, rate_chart, rates
from consumers.report.facts import Failure, Period, Sample
from tests.consumers.report.made_facts import START, at, made_facts, sample


def of_class(chart: Element | None, kind: str) -> list[Element]:
    assert chart is not None
    return [each for each in chart.iter() if each.get("class") == kind]


def test_points_begin_at_zero_and_end_at_the_present_counts() -> None:
    found = points(made_facts())
    assert found[0] == Sample(START, 0, 0, 0, 0)
    assert found[-1] == sample(10, 10_000)
    assert len(found) == 11


def test_sample_after_the_last_progress_is_not_counted_twice() -> None:
    facts = made_facts(samples=[sample(1, 1_000), sample(10, 10_000)])
    assert [each.events for each in points(facts)] == [0, 1_000, 10_000]


def test_rates_are_per_second_and_gaps_are_marked() -> None:
    found = rates([sample(0, 0), sample(1, 600), sample(30, 600), sample(31, 660)], at(60))
    assert [(each.per_second, each.gap) for each in found] == [(10.0, False), (0.0, True), (1.0, False)]
    # Samples of more than a week ago are an hour apart.
    (old,) = rates([sample(0, 0), sample(60, 3_600)], at(60 * 24 * 8))
    assert not old.gap


def test_progress_is_dashed_where_nothing_was_sampled() -> None:
    whole = progress_chart(made_facts())
    assert (len(of_class(whole, "line")), len(of_class(whole, "line gap"))) == (1, 0)
    chart = progress_chart(made_facts(samples=[sample(1, 1_000), sample(9, 9_000)]))
    (dashed,) = of_class(chart, "line gap")
    assert str(dashed.get("d")).count("M") == 1


@pytest.mark.parametrize("samples", [[], [sample(1, 5)]])
def test_picture_needs_two_points(samples: list[Sample]) -> None:
    facts = made_facts(samples=samples, started=None, last_progress=None)
    assert progress_chart(facts) is None
    assert rate_chart(facts) is None


def test_bands_stay_within_the_picture_and_name_their_reason() -> None:
    facts = made_facts(
        throttled=[Period(at(-5), at(2), "host:1", "<b>replica_lag</b>"), Period(at(20), at(30), "host:1", "later")],
        paused=[Period(at(8), at(90), "alice", "")],
        failures=[Failure(at(3), "most failed")],
    )
    chart = rate_chart(facts)
    (band,) = of_class(chart, "band throttled")
    assert [each.text for each in band] == ["throttled: <b>replica_lag</b>"]
    (paused,) = of_class(chart, "band paused")
    assert float(str(paused.get("x"))) + float(str(paused.get("width"))) <= 760 - 16 + 0.1
    assert len(of_class(chart, "failed")) == 1


@pytest.mark.parametrize("scale", [1, 7, 1_000, 3 * 10**9])
def test_every_number_is_within_the_picture(scale: int) -> None:
    facts = made_facts(samples=[sample(minute, minute * scale) for minute in range(1, 10)], last=sample(10, 10 * scale))
    chart = progress_chart(facts)
    (area,) = of_class(chart, "area")
    heights = [float(pair.split(",")[1]) for pair in str(area.get("points")).split()]
    assert min(heights) >= 14
    assert max(heights) <= 240 - 34 + 0.1
    marks = [each.text for each in chart.iter("text")] if chart is not None else []
    assert len(marks) == len(set(marks)), "no two marks of one axis read the same"


def test_same_moment_has_no_rate() -> None:
    assert rates([sample(1, 5), sample(1, 6)], at(2)) == []
