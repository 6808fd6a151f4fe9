"""Copying a whole table over TLS, compared with the same without TLS, in turn on the same server."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from psycopg.conninfo import make_conninfo

from tests.benchmarks.bench import Bench, Site, median
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.producing import Run, copied
from tests.security.authority import Authority
from tests.security.secured_postgres import tls_server
from tests.server_versions import NoSuchServer

_MODES: Final = ("disable", "require")


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure a producer with each sslmode; without a server that has TLS, nothing."""
    with ExitStack() as opened:
        place = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="headrace-bench-")))
        place.chmod(0o755)  # the server is another user's if this is root's
        try:
            server = opened.enter_context(tls_server(Authority(place, "authority")))
        except NoSuchServer as error:
            bench.say(f"no PostgreSQL with TLS: {error}")
            return
        plain, encrypted = zip(*runs(bench.with_postgres(server)), strict=True)
    yield Figure(
        "snapshot over TLS",
        median(run.rate for run in encrypted),
        "rows/s",
        peer=median(run.rate for run in plain),
        target=Target(at_least=0.85, ratio=True),
    )
    for who in encrypted[0].cpu:
        cost, peer = (median(run.cpu[who] / run.events * 1e6 for run in each) for each in (encrypted, plain))
        yield Figure(f"snapshot over TLS, CPU of {who}", cost, "s/million", peer=peer, smaller=True)


def runs(bench: Bench) -> list[tuple[Run, Run]]:
    """Return pairs of a run without and one with TLS, of the same table."""
    dsn = bench.database("tls", bench.rows)

    def pair(number: int) -> tuple[Run, Run]:
        plain, encrypted = (copy_with(bench, make_conninfo(dsn, sslmode=mode), f"{mode}{number}") for mode in _MODES)
        return plain, encrypted

    return bench.repeated("snapshot without and with TLS", pair, lambda pair: f"{pair[0]}; {pair[1]}")


def copy_with(bench: Bench, dsn: str, prefix: str) -> Run:
    """Run a producer that has this dsn."""
    site = Site(bench, dsn, prefix)
    run = copied(site)
    site.drop()
    return run
