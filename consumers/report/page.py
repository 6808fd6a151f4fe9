"""Writes the report of a run as one HTML page without scripts and without anything to load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Final
from xml.etree.ElementTree import Element

from consumers.report.charts import GAP, points, progress_chart, rate_chart, rates
from consumers.report.facts import Facts, Period
from consumers.report.markup import Child, add, page_text, tag
from infra.state.history import Actor
from infra.state.history_text import described, together
from schemas.formats import PROGRAM

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
_MOST_ROWS: Final = 200
_MOST_SAMPLES: Final = 48
_GOOD, _BAD = "verdict good", "verdict bad"


def report_page(facts: Facts, author: Actor) -> str:
    """Return the page; `author` is who wrote it."""
    title = f"{facts.name}, run {facts.run}"
    body = tag("body", tag("h1", title), tag("p", _subtitle(facts), class_="muted"))
    sections = (
        _summary,
        _progress,
        _interruptions,
        _skipped,
        _dead_letters,
        _verification,
        _actions,
        _unknown,
        _samples,
    )
    for section in sections:
        for each in section(facts):
            add(body, each)
    add(body, _footer(facts, author))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", f"headrace: {title}"),
    )
    style = resources.files("consumers.report").joinpath("report.css").read_text(encoding="utf-8")
    return page_text(tag("html", head, body, lang="en"), style)


def verdict(facts: Facts) -> tuple[str, str]:
    """Return the report's first sentence, and its class by which it is good, bad or neither."""
    left = facts.remaining
    rows = "" if left.rows is None else f" {'About ' if left.estimated else ''}{_rows(left.rows)} left to change."
    letters = len(facts.open_dead_letters)
    waiting = f" {letters:,} dead letter{' is' if letters == 1 else 's are'} open." if letters else ""
    bad = bool(facts.open_dead_letters or facts.state in ("failed", "given_up"))
    if facts.state == "replaced":
        return f"This run was replaced by a later one, after {facts.events:,} events.{waiting}", "verdict"
    said = {
        "complete": "The migration is complete.",
        "caught_up": "The run has applied everything that its topics hold.",
        "failed": "The migration has failed: its consumers write nothing until it is resumed.",
        "given_up": "All events are applied, but some work was given up.",
        "paused": "The migration is paused.",
        "throttled": "The migration is throttled.",
        "running": "The run is under way.",
        "waiting": "No consumer is at work.",
    }.get(facts.state, "The state is not known, since Kafka did not answer.")
    good = facts.state in ("complete", "caught_up") and left.exact == 0 and not bad
    return f"{said}{rows}{waiting}", _GOOD if good else _BAD if bad else "verdict"


def _subtitle(facts: Facts) -> str:
    return f"A migration of {', '.join(facts.tables)} ({facts.gitlab_schema}) in database {facts.database}"


def _summary(facts: Facts) -> Iterator[Child]:
    sentence, kind = verdict(facts)
    yield tag("p", sentence, class_=kind)
    until = facts.completed or facts.last_progress
    took = until - facts.started if until and facts.started else None
    options = ", ".join(f"{key} = {value}" for key, value in (facts.declared.get("options") or {}).items())
    terms: list[tuple[str, str]] = [
        ("State", facts.state.replace("_", " ")),
        ("Started", _when(facts.started)),
        ("Last progress", _when(facts.last_progress)),
        ("Completed", _when(facts.completed) if facts.completed else "no"),
        ("From start to end", _span(took) if took is not None else "not known"),
        ("Reason of the run", facts.run_reason or "not known"),
        ("Version of the migration", str(facts.declared.get("version", "not known"))),
        ("Options", options or ("defaults" if facts.declared else "not known")),
        ("Events passed", f"{facts.events:,}"),
        ("Rows changed", f"{facts.last.applied:,}"),
        ("Events skipped", f"{facts.last.skipped:,}"),
        ("Dead letters", f"{facts.last.dead_letters:,}"),
        ("Of the topics", _share(facts)),
        ("Rows left", _left(facts)),
        ("Average rate", _average(facts)),
        ("Partitions", f"{facts.partitions:,}"),
    ]
    if facts.work is not None:
        reached = ", ".join(f"{part}: {where}" for part, where in facts.work.reached.items())
        terms += [
            ("Work given up", f"{facts.work.given_up:,}"),
            ("Work done with a report", f"{facts.work.reported:,}"),
            *([("Work reached", reached)] if reached else []),
        ]
    yield tag("dl", *(tag("div", tag("dt", term), tag("dd", value)) for term, value in terms))


def _progress(facts: Facts) -> Iterator[Child]:
    yield tag("h2", "Progress over time")
    pictures = (progress_chart(facts), rate_chart(facts))
    if None in pictures:
        yield tag("p", "There are fewer than two samples of this run, so there is no picture.")
        return
    for caption, picture in zip(("Events passed", "Events a second"), pictures, strict=True):
        yield tag("figure", tag("figcaption", f"{caption}, times in UTC"), picture)
    yield tag(
        "p",
        tag("span", class_="key throttled"), "throttled",
        tag("span", class_="key paused"), "paused",
        tag("span", class_="key stopped"), "failed",
        "; dashed or pale: no sample in between, since nothing was applied.",
        class_="muted",
    )  # fmt: skip


def _interruptions(facts: Facts) -> Iterator[Child]:
    yield tag("h2", "Throttled, paused, failed")
    if not (facts.throttled or facts.paused or facts.failures):
        yield tag("p", "No interruption is recorded.")
        return
    rows = [
        *(("throttled", each) for each in facts.throttled),
        *(("paused", each) for each in facts.paused),
        *(("failed", Period(each.at, each.at, "", each.reason)) for each in facts.failures),
    ]
    for kind, periods in (("throttled", facts.throttled), ("paused", facts.paused)):
        if periods:
            many = f"{len(periods):,} period{'' if len(periods) == 1 else 's'}"
            yield tag("p", f"{kind.capitalize()} for {_span(together_for(periods))} in all, in {many}.")
    rows.sort(key=lambda row: row[1].since)
    yield _table(
        None,
        ("From", "For", "What", "Consumer or operator", "Why"),
        [
            (_when(each.since), _span(each.until - each.since) if kind != "failed" else "", kind, each.who, each.reason)
            for kind, each in rows
        ],
    )


def together_for(periods: Sequence[Period]) -> timedelta:
    """Return how long at least one of the periods lasted: two consumers may be throttled at once."""
    total, end = timedelta(), datetime.min.replace(tzinfo=UTC)
    for each in sorted(periods):
        if each.until > end:
            total += each.until - max(each.since, end)
            end = each.until
    return total


def _skipped(facts: Facts) -> Iterator[Child]:
    if facts.skip_reasons:
        yield tag("h2", "Skipped events")
        yield _table(
            None, ("Reason", "#Events"), [(reason, f"{count:,}") for reason, count in facts.skip_reasons.items()]
        )


def _dead_letters(facts: Facts) -> Iterator[Child]:
    yield tag("h2", "Dead letters")
    settled = (
        f" Of this run applied or discarded: {facts.settled_dead_letters:,}." if facts.settled_dead_letters else ""
    )
    yield tag("p", f"Open: {len(facts.open_dead_letters):,}.{settled}")
    if facts.open_dead_letters:
        yield _table(
            None,
            ("Recorded", "Event", "Reason"),
            [(_when(each.recorded_at), each.name, each.reason) for each in facts.open_dead_letters],
        )


def _verification(facts: Facts) -> Iterator[Child]:
    yield tag("h2", "Verification")
    if facts.remaining.rows is None:
        yield tag("p", "For this report no rows were counted.")
    else:
        how = " by the planner's estimate, since counting took too long" if facts.remaining.estimated else ""
        yield tag("p", f"Counted for this report{how}: {_rows(facts.remaining.rows)} left to change.")
    done = [each for each in facts.actions if each.action in ("verify", "repair")]
    if not done:
        yield tag("p", "No verification of this run is recorded; ", tag("code", "headrace verify"), " makes one.")
        return
    yield _table(
        None,
        ("Time", "What", "Found", "By"),
        [(_when(each.at), f"{each.action} {each.subject}", described([each]), each.actor) for each in done],
    )


def _actions(facts: Facts) -> Iterator[Child]:
    yield tag("h2", "Who did what")
    rows = [
        (
            _when(same[-1].at),
            f"{same[-1].action} {same[-1].subject}",
            described(same),
            f"{same[-1].actor} ({same[-1].via}, role {same[-1].role})",
            same[-1].reason or "",
        )
        for same in together(facts.actions)
    ]
    if rows:
        yield _table(None, ("Time", "What", "Details", "By", "Why"), rows)
    else:
        yield tag("p", "No action of an operator is recorded.")


def _unknown(facts: Facts) -> Iterator[Child]:
    yield tag("h2", "What this report does not know")
    lines = list(unknowns(facts))
    yield tag("ul", *(tag("li", line) for line in lines))


def _samples(facts: Facts) -> Iterator[Child]:
    if len(points(facts)) < 2:
        return
    yield tag("h2", "Samples")
    samples = points(facts)
    every = max(1, -(-len(samples) // _MOST_SAMPLES))
    shown = [*samples[:-1:every], samples[-1]]
    per_second = {each.until: each.per_second for each in rates(shown, facts.now)}
    yield _table(
        f"Rates are those since the row before{'' if every == 1 else f'; one in {every} samples is shown'}",
        ("Time", "#Events", "#Changed", "#Skipped", "#Dead letters", "#Events/s"),
        [
            (
                _when(each.at),
                f"{each.events:,}",
                f"{each.applied:,}",
                f"{each.skipped:,}",
                f"{each.dead_letters:,}",
                f"{per_second[each.at]:,.0f}" if each.at in per_second else "",
            )
            for each in shown
        ],
    )


def unknowns(facts: Facts) -> Iterator[str]:
    """Yield what the report cannot say, one sentence each."""
    yield from (f"{each[:1].upper()}{each[1:]}." for each in facts.problems)
    first = facts.samples[0] if facts.samples else None
    if first is None:
        yield "How the run went over time: no sample was taken, as by a version of headrace that had none."
    elif facts.started is None or (first.events and first.at - facts.started > GAP):
        yield f"How the run went before its first sample, {_when(first.at)}."
    if facts.run > 1 and facts.current and not any(each.action == "replay" for each in facts.actions):
        yield "Who started the run: it was started before actions were recorded."
    if not facts.current:
        yield "The reason, the version and the options of the run: they are kept of the last run only."
    if facts.work is not None:
        yield "How the work outside the database went over time: only events are sampled."
    yield "Throttled periods of consumers that were killed meanwhile, and what was changed by SQL and not by headrace."
    yield "Dead letters that were settled more than a day ago may no longer be counted; their retries are listed above."


def _footer(facts: Facts, author: Actor) -> Element:
    reason = f", {author.reason}" if author.reason else ""
    return tag(
        "footer",
        f"Written by {author.name}{reason} at {_when(facts.now)} with headrace {PROGRAM}; times are those of the server"
        f" of database {facts.database}, PostgreSQL {facts.server_version}, in UTC.",
        class_="muted",
    )


def _table(caption: str | None, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Element:
    """Return a table; headings that begin with # are of numbers. It shows the last rows, and says so."""
    left_out = f"The last {_MOST_ROWS} of {len(rows):,} rows" if len(rows) > _MOST_ROWS else None
    kinds = ["number" if each.startswith("#") else "when" if each in ("Time", "From") else None for each in headings]
    heads = [
        tag("th", each.removeprefix("#"), scope="col", class_=kind) for each, kind in zip(headings, kinds, strict=True)
    ]
    shown = ". ".join(each for each in (caption, left_out) if each)
    return tag(
        "div",
        tag(
            "table",
            tag("caption", shown) if shown else None,
            tag("thead", tag("tr", *heads)),
            tag(
                "tbody",
                *(
                    tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True)))
                    for row in rows[-_MOST_ROWS:]
                ),
            ),
        ),
        class_="table",
    )


def _when(at: datetime | None) -> str:
    return "not known" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _rows(count: int) -> str:
    return "1 row is" if count == 1 else f"{count:,} rows are"


def _span(time: timedelta) -> str:
    seconds = round(time.total_seconds())
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, seconds = divmod(rest, 60)
    parts = [f"{days} d" if days else "", f"{hours} h" if hours else "", f"{minutes} min" if minutes else ""]
    return " ".join([each for each in parts if each] or [f"{seconds} s"])


def _share(facts: Facts) -> str:
    if facts.passed is None or facts.end_sum is None:
        return "not known"
    return f"{facts.passed / facts.end_sum:.1%}" if facts.end_sum else "they are empty"


def _left(facts: Facts) -> str:
    if facts.remaining.rows is None:
        return "not known"
    return f"{'about ' if facts.remaining.estimated else ''}{facts.remaining.rows:,}"


def _average(facts: Facts) -> str:
    if facts.started is None or facts.last_progress is None:
        return "not known"
    seconds = (facts.last_progress - facts.started).total_seconds()
    return f"{facts.events / seconds:,.0f} events/s" if seconds > 0 else "not known"
