"""Moving small repositories with one consumer, optionally compared with another checkout of headrace.

There are 1,000 of them, or one for each thousand of the --rows that the other benchmarks have. HEADRACE_PEER is the
directory of a checkout with its own .venv (as `git worktree add` and make leave it); the two take turns on the same
servers and disks.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import tomli_w

from consumers.routing.placement import PARTITIONS, md5_home, normalised
from infra.stack.postgresql.databases import drop_slots
from infra.stack.processes.keeper import Guarded
from schemas.errors import HeadraceError
from tests.benchmarks.bench import Bench, median, median_or_none
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.machine import cpu_seconds
from tests.consumers.gitserver.driver import moving
from tests.consumers.gitservers import NODES, add_rows, make_repository, make_tables

_ROWS_EACH: Final = 1_000
_HERE: Final = Path(__file__).parents[3]
_PEER: Final = "HEADRACE_PEER"
_STOP_SECONDS: Final = 20.0
_THERE: Final = "SELECT to_regclass('headrace.rehash_moves') IS NOT NULL"
_SLOTS: Final = "SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = {}"
_DONE: Final = """
    SELECT (SELECT count(*) FROM headrace.rehash_moves),
           (SELECT count(*) FROM headrace.rehash_moves WHERE state = 'settled'),
           (SELECT count(*) FROM headrace.rehash_cursors WHERE finished)
"""


@dataclass(frozen=True, slots=True)
class Moved:
    """One run: from the first recorded move to the last settled one, and the CPU of the consumer and its children.

    All in seconds.
    """

    seconds: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, CPU {self.cpu:.1f} s"


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure both checkouts in turn."""
    count = bench.rows // _ROWS_EACH
    template = bench.place / "template"
    make_repository(template, commits=3, branches=("main", "next"))
    peer = os.environ.get(_PEER)
    ours: list[Moved] = []
    theirs: list[Moved] = []

    def run(number: int) -> Moved:
        if peer:
            theirs.append(_moved(bench, Path(peer), template, f"peer_{number}", count))
            bench.say(f"the peer: {theirs[-1]}")
        ours.append(_moved(bench, _HERE, template, f"ours_{number}", count))
        return ours[-1]

    bench.repeated(f"{count:,} repositories", run, str)
    for name, attribute in ((f"moves of {count:,}", "seconds"), ("moves, CPU", "cpu")):
        yield Figure(
            name, median(getattr(each, attribute) for each in ours), "s",
            peer=median_or_none(getattr(each, attribute) for each in theirs),
            target=Target(at_least=0.97, ratio=True), smaller=True,
        )  # fmt: skip


def _moved(bench: Bench, checkout: Path, template: Path, name: str, count: int) -> Moved:
    """Create all repositories, have a checkout's producer publish their rows, and its consumer move them."""
    disks = bench.place / name
    roots = {node: disks / node.partition(":")[0] for node in NODES}
    names = moving(f"github.com/team-{number % 50}/{number}" for number in range(2 * count))[:count]
    for each in names:
        place = roots[md5_home(each, NODES)] / normalised(each) / ".git"
        place.parent.mkdir(parents=True)
        shutil.copytree(template, place)
    dsn = bench.stack.postgres.create_database(f"bench_moves_{name}")
    with bench.sql(dsn) as connection:
        make_tables(connection)
        add_rows(connection, {each: md5_home(each, NODES) for each in names})
    file = bench.kept_private(f"moves-{name}.toml", tomli_w.dumps(_settings(bench, checkout, dsn, roots, name)))
    producer = _started(bench, checkout, name, file, "produce", "main")
    consumer = None
    try:
        consumer = _started(bench, checkout, name, file, "consume", "rehash_moves")
        return _timed(bench, dsn, consumer, producer, count)
    finally:
        for process in filter(None, (consumer, producer)):
            process.stop(signal.SIGTERM, _STOP_SECONDS)
        with bench.sql(dsn) as connection:
            mine = psycopg.sql.SQL(_SLOTS).format(psycopg.sql.Literal(connection.info.dbname))
            drop_slots(connection, mine)
        shutil.rmtree(disks)


def _settings(bench: Bench, checkout: Path, dsn: str, roots: dict[str, Path], name: str) -> dict[str, Any]:
    known = next((checkout / "infra").rglob("gitserver*.py")).read_text("utf-8")  # also in older layouts
    for root in roots.values():
        root.mkdir(parents=True, exist_ok=True)
    return {
        "prefix": f"moves_{name}",
        "kafka": {"bootstrap_servers": bench.stack.endpoints.bootstrap_servers},
        "databases": {
            "main": {
                "dsn": dsn,
                "gitlab_schemas": ["gitserver"],
                "tables": ["public.repo", "public.gitserver_repos"],
            }
        },
        "gitserver": {
            "nodes": list(NODES),
            "refresh_seconds": 0.25,
            "grace_seconds": 1.0,
            "roots": {node: str(root) for node, root in roots.items()},
            # A checkout from before November 2026 has no such setting.
            **({"wrong_shard_deletion": "off"} if "wrong_shard_deletion" in known else {}),
        },
    }


def _started(bench: Bench, checkout: Path, name: str, file: Path, *words: str) -> Guarded:
    python = checkout / ".venv" / "bin" / "python"
    command: list[str | Path] = [python, "-m", "headrace", *words, "--config", file]
    return bench.stack.keeper.start(command, log=bench.place / f"{words[0]}-{name}.log", cwd=checkout)


def _timed(bench: Bench, dsn: str, consumer: Guarded, producer: Guarded, count: int) -> Moved:
    began: float | None = None
    with bench.sql(dsn) as connection:
        for _ in bench.watched("the moves", consumer, producer, every=0.05):
            if connection.execute(_THERE).fetchone() != (True,):
                continue
            row = connection.execute(_DONE).fetchone()
            assert row is not None
            noted, settled, finished = row
            if began is None and noted:
                began = time.monotonic()
            if began is not None and settled == count and finished == PARTITIONS:
                return Moved(time.monotonic() - began, cpu_seconds(consumer.pid))
    raise HeadraceError("the moves did not finish", remedy="")
