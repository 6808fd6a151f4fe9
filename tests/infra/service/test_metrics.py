"""The metrics against the documents and the files that use them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.reference.metrics_page import names

ROOT = Path(__file__).parents[3]
USERS = ("infra/observability/dashboard.json", "infra/observability/rules.yml")


@pytest.mark.parametrize("user", USERS)
def test_each_metric_that_is_used_exists(user: str) -> None:
    used = re.findall(r"\bheadrace_\w+", (ROOT / user).read_text(encoding="utf-8"))
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in used} - names() == set()


def test_dashboard_shows_every_metric_but_those_of_few() -> None:
    shown = (ROOT / USERS[0]).read_text(encoding="utf-8") + (ROOT / USERS[1]).read_text(encoding="utf-8")
    hidden = {name for name in names() if name not in shown}
    # A position, a count of calls whose time is shown, and a state that few servers have.
    assert hidden == {"headrace_confirmed_lsn_bytes", "headrace_kafka_stalls_total", "headrace_standby_awaited"}
