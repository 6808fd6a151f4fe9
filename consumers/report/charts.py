"""Draws a run's progress and rate over time as SVG, with the periods in which it was throttled or paused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Final
from xml.etree.ElementTree import Element

from consumers.report.facts import Facts, Period, Sample
from consumers.report.markup import tag
from schemas.lazy_dataclass import dataclass

_WIDTH, _HEIGHT = 760, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 16, 14, 34
GAP: Final = timedelta(minutes=5)
"""Between samples further apart nothing was applied, or no consumer ran: that part of a line is dashed."""
_HOURLY: Final = timedelta(days=7)
"""Older samples are an hour apart."""
_HOUR_GAP: Final = timedelta(hours=2)
_STEPS: Final = (60, 300, 900, 3_600, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 2_592_000)
"""Seconds between two marks of the time axis."""


@dataclass(frozen=True)
class Rate:
    """Events a second between two samples."""

    since: datetime
    until: datetime
    per_second: float
    gap: bool


def points(facts: Facts) -> list[Sample]:
    """Return the run's samples, from its start at zero to its counts now, in order of time."""
    found = [each for each in facts.samples if facts.last_progress is None or each.at < facts.last_progress]
    if found and facts.started is not None and facts.started < found[0].at:
        found.insert(0, Sample(facts.started, 0, 0, 0, 0))
    if found and facts.last_progress is not None:
        found.append(facts.last)
    return found


def rates(samples: Sequence[Sample], now: datetime) -> list[Rate]:
    """Return the rate between each sample and the next."""
    return [
        Rate(one.at, other.at, (other.events - one.events) / seconds, _is_gap(one, other, now))
        for one, other in pairwise(samples)
        if (seconds := (other.at - one.at).total_seconds()) > 0
    ]


def progress_chart(facts: Facts) -> Element | None:
    """Return the events that the run has passed over time; None with fewer than two samples."""
    samples = points(facts)
    if len(samples) < 2:
        return None
    plane = _Plane(samples[0].at, samples[-1].at, max(each.events for each in samples))
    solid, dashed = _lines(
        [(_is_gap(one, other, facts.now), (one, other)) for one, other in pairwise(samples)],
        lambda each: (plane.x(each.at), plane.y(each.events)),
    )
    area = [f"{plane.x(each.at):.1f},{plane.y(each.events):.1f}" for each in samples]
    ends = f"{plane.x(samples[-1].at):.1f},{plane.y(0):.1f}", f"{plane.x(samples[0].at):.1f},{plane.y(0):.1f}"
    return _chart(
        f"Events passed over time, from {samples[0].events:,} to {samples[-1].events:,}",
        plane,
        facts,
        tag("polygon", points=" ".join([*area, *ends]), class_="area"),
        tag("path", d=solid, class_="line") if solid else None,
        tag("path", d=dashed, class_="line gap") if dashed else None,
    )


def rate_chart(facts: Facts) -> Element | None:
    """Return the events a second over time; None with fewer than two samples."""
    found = rates(points(facts), facts.now)
    if not found:
        return None
    plane = _Plane(found[0].since, found[-1].until, max(each.per_second for each in found))
    bars = [
        tag(
            "rect",
            x=f"{plane.x(each.since):.1f}",
            y=f"{plane.y(each.per_second):.1f}",
            width=f"{max(0.5, plane.x(each.until) - plane.x(each.since)):.1f}",
            height=f"{plane.y(0) - plane.y(each.per_second):.1f}",
            class_="bar gap" if each.gap else "bar",
        )
        for each in found
    ]
    highest = max(each.per_second for each in found)
    return _chart(f"Events a second over time, at most {highest:,.0f}", plane, facts, *bars)


class _Plane:
    """Where a moment and a number are in the picture."""

    def __init__(self, begin: datetime, end: datetime, highest: float) -> None:
        self.begin, self.end = begin, max(end, begin + timedelta(seconds=1))
        self.step = _round_step(max(highest, 1) / 4)
        self.highest = self.step * math.ceil(max(highest, 1) / self.step)

    def x(self, at: datetime) -> float:
        share = (at - self.begin) / (self.end - self.begin)
        return _LEFT + min(1.0, max(0.0, share)) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, number: float) -> float:
        return _TOP + (1 - max(0.0, number) / self.highest) * (_HEIGHT - _TOP - _BOTTOM)

    def moments(self) -> Iterator[datetime]:
        """Yield the moments of the marks of the time axis, at round times."""
        seconds = (self.end - self.begin).total_seconds()
        step = next((each for each in _STEPS if seconds / each <= 6), _STEPS[-1])
        first = math.ceil(self.begin.timestamp() / step) * step
        at = datetime.fromtimestamp(first, UTC)
        while at <= self.end:
            yield at
            at += timedelta(seconds=step)


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5, 10, 20, … that is at least `least`."""
    power: float = 10 ** math.floor(math.log10(least))
    return max(1.0, next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least - 1e-9))


def _is_gap(one: Sample, other: Sample, now: datetime) -> bool:
    return other.at - one.at > (_HOUR_GAP if now - one.at > _HOURLY else GAP)


def _lines(
    parts: Sequence[tuple[bool, tuple[Sample, Sample]]], at: Callable[[Sample], tuple[float, float]]
) -> tuple[str, str]:
    """Return the path of the parts that are measured, and that of the gaps."""
    paths = {False: "", True: ""}
    for gap, (one, other) in parts:
        (x, y), (to_x, to_y) = at(one), at(other)
        paths[gap] += f"M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}"
    return paths[False], paths[True]


def _chart(title: str, plane: _Plane, facts: Facts, *drawn: Element | None) -> Element:
    return tag(
        "svg",
        tag("title", title),
        *_bands(plane, facts.throttled, "throttled"),
        *_bands(plane, facts.paused, "paused"),
        *_grid(plane),
        *drawn,
        *(
            tag("line", x1=f"{plane.x(each.at):.1f}", x2=f"{plane.x(each.at):.1f}", y1=_TOP, y2=_HEIGHT - _BOTTOM,
                class_="failed")
            for each in facts.failures
            if plane.begin <= each.at <= plane.end
        ),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=title,
    )  # fmt: skip


def _bands(plane: _Plane, periods: Sequence[Period], kind: str) -> Iterator[Element]:
    for each in periods:
        if each.until < plane.begin or each.since > plane.end:
            continue
        x, to_x = plane.x(each.since), plane.x(each.until)
        yield tag(
            "rect", tag("title", f"{kind}: {each.reason}"), x=f"{x:.1f}", y=_TOP, width=f"{max(1.0, to_x - x):.1f}",
            height=_HEIGHT - _TOP - _BOTTOM, class_=f"band {kind}",
        )  # fmt: skip


def _grid(plane: _Plane) -> Iterator[Element]:
    number = 0.0
    while number <= plane.highest:
        y = f"{plane.y(number):.1f}"
        yield tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid")
        yield tag("text", _short(number), x=_LEFT - 8, y=f"{plane.y(number) + 4:.1f}", text_anchor="end")
        number += plane.step
    several_days = plane.begin.astimezone(UTC).date() != plane.end.astimezone(UTC).date()
    for at in plane.moments():
        label = f"{at:%m-%d %H:%M}" if several_days else f"{at:%H:%M}"
        yield tag("text", label, x=f"{plane.x(at):.1f}", y=_HEIGHT - 12, text_anchor="middle")


def _short(number: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:g}{unit}"
    return f"{number:g}"
