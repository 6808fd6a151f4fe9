"""The report: what it says, that hostile values stay texts, and what it admits not to know."""

from __future__ import annotations

import re
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any
from uuid import uuid4

import pytest

from consumers.contract.counting import Count
from consumers.contract.external import WorkStatus
from consumers.delivery.dead_letter_topic import Entry
from consumers.ledger.progress import Place
from consumers.report.facts import Failure, Period, paused_periods
from consumers.report.page import report_page, together_for, unknowns, verdict
from infra.state.history import Actor, HistoryEntry
from schemas.positions import Offset
from tests.consumers.report.made_facts import at, made_facts, sample

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
BOB = Actor("bob@here")


def action(minutes: float, what: str, subject: str = "skip_resets", **values: Any) -> HistoryEntry:
    given: dict[str, Any] = {"actor": "alice@here", "via": "command", "reason": None, "details": {}, "role": "headrace"}
    given |= {"request": uuid4(), **values}
    return HistoryEntry(database="main", id=uuid4(), at=at(minutes), action=what, subject=subject, **given)


def dead_letter(reason: str) -> Entry:
    return Entry("main", Place("t", 0), Offset(5), 1, reason, at(3), None)


class Tags(HTMLParser):
    """Collects the elements of a page, and the values of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.partition("<body>")[2]))


def test_page_loads_nothing_runs_nothing_and_closes_its_elements() -> None:
    page = report_page(made_facts(), BOB)
    tags = Tags(page)
    assert tags.open == []
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(tags.names)
    assert not {name for name in tags.attributes if name.startswith("on") or name in ("src", "href", "style")}
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert tags.names.count("svg") == 2


def test_hostile_values_stay_texts() -> None:
    page = report_page(
        made_facts(
            name=HOSTILE,
            tables=(HOSTILE,),
            run_reason=HOSTILE,
            declared={"version": 1, "options": {HOSTILE: HOSTILE}},
            skip_reasons={HOSTILE: 1},
            throttled=[Period(at(1), at(2), HOSTILE, HOSTILE)],
            failures=[Failure(at(3), HOSTILE)],
            open_dead_letters=[dead_letter(f"{HOSTILE}\0\x1b[31m")],
            actions=[
                action(1, HOSTILE, HOSTILE, actor=HOSTILE, reason=HOSTILE, role=HOSTILE, details={HOSTILE: HOSTILE}),
                action(2, "verify", HOSTILE, actor=HOSTILE, details={"rows": HOSTILE}),
            ],
            problems=[HOSTILE],
            work=WorkStatus(reached={HOSTILE: HOSTILE}),
        ),
        Actor(HOSTILE, HOSTILE),
    )
    tags = Tags(page)
    assert tags.open == []
    assert not {"script", "img"} & set(tags.names)
    assert page.count("&lt;script&gt;") >= 20
    assert "\0" not in page
    assert "\x1b" not in page


def test_page_says_what_was_done_by_whom_and_why() -> None:
    request = uuid4()
    retries = [
        action(20, "retry", request=request, details={"event": str(number), "outcome": "applied"})
        for number in range(30)
    ]
    facts = made_facts(
        actions=[
            action(2, "pause", reason="CHG-7"),
            action(4, "resume"),
            *retries,
            action(30, "verify", details={"remaining": 0, "given_up": 0}, actor="carol@there"),
        ],
        paused=[Period(at(2), at(4), "alice@here", "CHG-7")],
        settled_dead_letters=30,
        skip_reasons={"already up to date": 7},
    )
    text = text_of(report_page(facts, Actor("bob@here", "for CHG-7")))
    for words in (
        "skip_resets, run 1",
        "A migration of public.container_repositories (gitlab_main) in database main",
        "The migration is complete. 0 rows are left to change.",
        "Events passed 10,000",
        "Of the topics 100.0%",
        "Average rate 17 events/s",
        "From start to end 10 min",
        "Paused for 2 min in all, in 1 period.",
        "2026-01-31 12:02:00 2 min paused alice@here CHG-7",
        "already up to date 7",
        "Open: 0. Of this run applied or discarded: 30.",
        "2026-01-31 12:30:00 verify skip_resets remaining 0, given up 0 carol@there",
        "2026-01-31 12:20:00 retry skip_resets 30 applied alice@here (command, role headrace)",
        "2026-01-31 12:02:00 pause skip_resets alice@here (command, role headrace) CHG-7",
        "Written by bob@here, for CHG-7 at 2026-01-31 13:00:00 with headrace",
    ):
        assert words in text, words


@pytest.mark.parametrize(
    ("values", "words", "kind"),
    [
        ({}, "The migration is complete. 0 rows are left to change.", "verdict good"),
        ({"state": "caught_up", "remaining": Count(3)}, "everything that its topics hold. 3 rows are left", "verdict"),
        ({"state": "running", "remaining": Count(3, True)}, "under way. About 3 rows are left", "verdict"),
        ({"state": "failed", "remaining": Count(None)}, "has failed: its consumers write nothing until", "verdict bad"),
        ({"open_dead_letters": [dead_letter("x")]}, "1 dead letter is open.", "verdict bad"),
        ({"state": "unknown", "remaining": Count(0)}, "not known, since Kafka did not answer.", "verdict"),
        ({"state": "replaced", "remaining": Count(None)}, "replaced by a later one, after 10,000 events.", "verdict"),
    ],
)
def test_verdict(values: dict[str, Any], words: str, kind: str) -> None:
    sentence, found = verdict(made_facts(**values))
    assert words in sentence
    assert found == kind


def test_run_without_samples_is_reported_with_what_is_not_known() -> None:
    facts = made_facts(samples=[], started=None, passed=None, end_sum=None, problems=["kafka did not answer"])
    page = report_page(facts, BOB)
    assert "svg" not in Tags(page).names
    text = text_of(page)
    for words in (
        "There are fewer than two samples of this run, so there is no picture.",
        "How the run went over time: no sample was taken",
        "Kafka did not answer.",
        "Of the topics not known",
        "Average rate not known",
    ):
        assert words in text, words


def test_unknowns_of_an_earlier_run_and_of_a_late_first_sample() -> None:
    earlier = list(unknowns(made_facts(run=1, current=False)))
    assert "The reason, the version and the options of the run: they are kept of the last run only." in earlier
    text = text_of(report_page(made_facts(run=1, current=False, declared={}), BOB))
    assert "Version of the migration not known Options not known" in text
    assert "Options defaults" in text_of(report_page(made_facts(), BOB))
    late = list(unknowns(made_facts(samples=[sample(9, 9_000)])))
    assert "How the run went before its first sample, 2026-01-31 12:09:00." in late
    replayed = made_facts(run=2)
    assert "Who started the run: it was started before actions were recorded." in list(unknowns(replayed))
    known = made_facts(run=2, actions=[action(0, "replay", details={"run": 2})])
    assert not [each for each in unknowns(known) if each.startswith("Who started")]


def test_long_tables_show_their_end_and_say_so() -> None:
    text = text_of(report_page(made_facts(open_dead_letters=[dead_letter(f"r{n}") for n in range(300)]), BOB))
    assert "The last 200 of 300 rows" in text
    assert " r99 " not in text
    assert " r100 " in text


def test_paused_periods_are_those_between_pause_and_resume() -> None:
    actions = [
        action(1, "resume"),
        action(2, "pause", reason="a"),
        action(3, "pause", reason="again"),
        action(4, "pause", "another"),
        action(5, "resume"),
        action(8, "pause"),
    ]
    assert paused_periods(actions, "skip_resets", at(10)) == [
        Period(at(2), at(5), "alice@here", "a"),
        Period(at(8), at(10), "alice@here", ""),
    ]


def test_time_of_periods_that_overlap_counts_once() -> None:
    periods = [Period(at(5), at(7), "b", ""), Period(at(0), at(2), "a", ""), Period(at(1), at(6), "b", "")]
    assert together_for(periods) == timedelta(minutes=7)
    assert together_for([]) == timedelta()
