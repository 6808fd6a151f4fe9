"""Two sources that claim one table at the same first start never both publish it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from producers.session import opening
from producers.session.handover import TwoSources
from tests.conftest import Database
from tests.producers.sources import Running, Source, copy_all, running, settings_for

pytestmark = pytest.mark.stack

TABLE = "CREATE TABLE public.t (id int PRIMARY KEY, source text)"


@pytest.fixture
def pair(new_databases: Callable[[str | None], Database], bootstrap_servers: str, prefix: str) -> tuple[Source, Source]:
    """Sources main and ci, whose databases both have the table in gitlab_main."""
    made = []
    for name in ("main", "ci"):
        database = new_databases(None)
        connection = database.connect()
        connection.execute(TABLE)
        connection.execute("INSERT INTO public.t VALUES (1, %s)", (name,))
        settings = settings_for(bootstrap_servers, prefix, database.dsn, "public.t", source=name)
        made.append(Source(settings, connection, name=name))
    return made[0], made[1]


def test_source_that_claims_a_table_after_another_one_withdraws(
    pair: tuple[Source, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    main, ci = pair
    found, published = threading.Event(), threading.Event()
    claim = opening.claim

    def late(start: opening.Start, *rest: Any) -> Any:
        if start.source == "ci":
            found.set()
            assert published.wait(180)
        return claim(start, *rest)

    monkeypatch.setattr(opening, "claim", late)
    second = Running(ci)
    assert found.wait(180), "it found no other source's record"
    with running(main) as first:
        first.caught_up()
        published.set()
        with pytest.raises(TwoSources, match=r"main publishes public\.t to topic .* too, and no switchover") as caught:
            raise second.ended() or AssertionError("it published")
        assert caught.value.exit_code == 3
        main.connection.execute("INSERT INTO t VALUES (2, 'main')")
        first.caught_up()
        main.require_equal("public.t")
    assert ci.recorded().snapshots == {}
    copy_all(main)


def test_sources_that_both_see_both_claims_withdraw_and_one_can_start_alone(
    pair: tuple[Source, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = opening.claim
    both = threading.Barrier(2)

    def together(start: opening.Start, *rest: Any) -> Any:
        both.wait(180)
        made = claim(start, *rest)
        both.wait(180)
        return made

    monkeypatch.setattr(opening, "claim", together)
    for ended in [Running(source).ended for source in pair]:
        with pytest.raises(TwoSources):
            raise ended() or AssertionError("it published")
    monkeypatch.undo()
    for source in pair:
        assert source.recorded().snapshots == {}
        assert source.records("public.t") == []
    copy_all(pair[1])
    pair[1].require_equal("public.t")
