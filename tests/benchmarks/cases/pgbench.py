"""pgbench's own script, which is like TPC-B, at the server's full rate, without and with a reader of its changes.

The readers are headrace, Debezium, and pg_recvlogical, which shows what PostgreSQL's own decoding takes. The database,
with that decoding in it, and pgbench have one half of the processors, Kafka and the reader the other (see
processors.py). pgbench_history has no key, so the readers have the other three tables, of which each transaction
updates one row. Every change has to arrive.
"""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psycopg import sql

from infra.stack.postgresql.postgres_programs import installed_programs
from infra.stack.processes.keeper import Guarded
from schemas.errors import HeadraceError
from schemas.positions import format_lsn
from tests.benchmarks.bench import PATIENCE, Bench, Site, drop_slot, less_is_better, median
from tests.benchmarks.debezium import Debezium, has_debezium
from tests.benchmarks.delays import Clock, Delay, Follower, debezium_clock, headrace_clock, percentile, within
from tests.benchmarks.figures import Figure, Target, displayed
from tests.benchmarks.machine import Meter, context_switches
from tests.benchmarks.processors import Halves
from tests.benchmarks.producing import producing, servers, write_position
from tests.benchmarks.receiver import RECEIVER, create_receiver, receiver_command
from tests.benchmarks.watching import EndWatch, PositionsWatch, await_change

_TABLES: Final = ("public.pgbench_accounts", "public.pgbench_branches", "public.pgbench_tellers")
_SCALE_ROWS: Final = 100_000
"""Accounts per unit of pgbench's scale."""

_CLIENTS: Final = ("-c", "4", "-j", "2", "-M", "prepared")
_WARM_SECONDS: Final = 10
_THIRD_SECONDS: Final = 10
_SECONDS: Final = _WARM_SECONDS + 3 * _THIRD_SECONDS

_STOP_SECONDS: Final = 20.0

_SENT: Final = """
SELECT r.sent_lsn >= %s FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid
 WHERE s.slot_name = %s
"""
_WALSENDER: Final = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s AND active"

_DONE: Final = re.compile(r"^number of transactions actually processed: (\d+)", re.MULTILINE)
_RATE: Final = re.compile(r"^tps = ([\d.]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Lag:
    """Milliseconds from commit to a consumer after the warm-up, and the p99 of the middle and of the last third."""

    p50: float
    p99: float
    middle: float
    last: float

    @property
    def growth(self) -> float:
        """How many times the middle third's p99 the last third's is; it stays near 1 if the reader keeps up."""
        return self.last / self.middle

    @classmethod
    def of(cls, delays: Sequence[Delay]) -> Lag:
        """Return the lag in the delays of a whole run."""
        second, third = (_WARM_SECONDS + number * _THIRD_SECONDS for number in (1, 2))
        counted = within(delays, _WARM_SECONDS)
        return cls(
            percentile(counted, 50),
            percentile(counted, 99),
            percentile(within(delays, second, third), 99),
            percentile(within(delays, third), 99),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """pgbench's transactions per second, and what one of them took: processor time in microseconds, by process (that of
    PostgreSQL has the walsender's in it), and the walsender's context switches. The lag is that of the reader, if it
    writes into Kafka.
    """

    tps: float
    cpu: dict[str, float]
    switches: float | None = None
    lag: Lag | None = None

    def __str__(self) -> str:
        words = [f"{self.tps:,.0f} tps", "us per transaction:"]
        words += [f"{name} {displayed(microseconds)}," for name, microseconds in self.cpu.items()]
        if self.switches is not None:
            words.append(f"context switches of the walsender {self.switches:.2f},")
        if (lag := self.lag) is not None:
            words.append(
                f"p50 {lag.p50:.1f} ms, p99 {lag.p99:.1f} ms, of the middle third {lag.middle:.1f} ms,"
                f" of the last {lag.last:.1f} ms"
            )
        return " ".join(words).rstrip(",")


class _PgbenchSite(Site):
    """The site of pgbench's tables."""

    touch = "UPDATE pgbench_branches SET bbalance = bbalance WHERE bid = 1"


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure all situations in each run, of which each is the first one now and then."""
    dsn = bench.once("pgbench", lambda: _filled(bench))
    situations: dict[str, Callable[[_Pgbench], Outcome]] = {
        "no reader": _Pgbench.alone,
        "pg_recvlogical": _Pgbench.received,
        "headrace": _Pgbench.ours,
    }
    if has_debezium(bench):
        situations["Debezium"] = _Pgbench.theirs
    halves = Halves()

    def run(number: int) -> dict[str, Outcome]:
        site = _PgbenchSite(bench, dsn, f"pgbench{number}", tables=_TABLES)
        names = list(situations)
        first = number % len(names)
        return {name: situations[name](_Pgbench(site, halves, number)) for name in names[first:] + names[:first]}

    with halves.between(bench):
        runs = bench.repeated(
            "pgbench", run, lambda outcomes: "; ".join(f"{name} {found}" for name, found in outcomes.items())
        )
    outcomes = {name: [each[name] for each in runs] for name in situations}
    yield from _rates(outcomes)
    yield from _costs(outcomes)
    yield from _lags(outcomes)


def _rates(outcomes: dict[str, list[Outcome]]) -> Iterator[Figure]:
    tps = {name: median(each.tps for each in found) for name, found in outcomes.items()}
    alone = tps.pop("no reader")
    yield Figure("pgbench, no reader", alone, "tps")
    targets = {"headrace": Target(at_least=0.95, ratio=True)}
    for name, value in tps.items():
        yield Figure(f"pgbench, {name} compared with no reader", value, "tps", peer=alone, target=targets.get(name))
    yield Figure(
        "pgbench, headrace compared with pg_recvlogical",
        tps["headrace"],
        "tps",
        peer=tps["pg_recvlogical"],
        target=Target(at_least=0.95, ratio=True),
    )


def _costs(outcomes: dict[str, list[Outcome]]) -> Iterator[Figure]:
    """Yield headrace's figures for one transaction, compared with Debezium's, and each reader's share of the server."""
    ours, theirs = outcomes["headrace"], outcomes.get("Debezium", [])
    shares = {
        name: median(100 * each.cpu["walsender"] / each.cpu["PostgreSQL"] for each in found)
        for name, found in outcomes.items()
        if name != "no reader"
    }
    for name, value in shares.items():
        peer = None if name == "pg_recvlogical" else shares["pg_recvlogical"]
        yield Figure(f"pgbench, walsender's share of PostgreSQL, {name}", value, "%", peer=peer, smaller=True)
    for who in ours[0].cpu:
        yield less_is_better(
            f"pgbench, CPU of {who}",
            "us/transaction",
            [each.cpu[who] for each in ours],
            [each.cpu[who] for each in theirs],
        )
    yield less_is_better(
        "pgbench, context switches of the walsender",
        "1/transaction",
        (each.switches for each in ours),
        (each.switches for each in theirs),
    )


def _lags(outcomes: dict[str, list[Outcome]]) -> Iterator[Figure]:
    ours, theirs = (
        [each.lag for each in outcomes.get(name, []) if each.lag is not None] for name in ("headrace", "Debezium")
    )
    for share in ("p50", "p99"):
        yield less_is_better(
            f"pgbench, latency {share}",
            "ms",
            [getattr(lag, share) for lag in ours],
            [getattr(lag, share) for lag in theirs],
        )
    yield less_is_better(
        "pgbench, latency p99 of the last third / middle third",
        "x",
        (lag.growth for lag in ours),
        (lag.growth for lag in theirs),
        Target(at_most=2),
    )


def _filled(bench: Bench) -> str:
    """Return a database that pgbench filled and has worked on, so that the first situation is like later ones."""
    dsn = bench.stack.postgres.create_database("bench_pgbench")
    scale = max(1, bench.rows // _SCALE_ROWS)
    for options in (("-i", "-q", "-s", str(scale)), (*_CLIENTS, "-T", str(_WARM_SECONDS))):
        words, env = _command(bench, dsn, *options)
        bench.stack.keeper.run(words, log=bench.place / "pgbench-fill.log", cwd=bench.place, env=env, timeout=PATIENCE)
    bench.say(f"pgbench's tables of scale {scale}")
    return dsn


def _command(bench: Bench, dsn: str, *options: str) -> tuple[list[str | Path], dict[str, str]]:
    """Return pgbench's command line and environment; it writes its results to its log."""
    database, env = bench.for_libpq(dsn)
    return [installed_programs() / "pgbench", *options, database], env


class _Pgbench:
    """One situation: a load, and perhaps a reader whose slot and topics are for it only."""

    def __init__(self, site: Site, halves: Halves, number: int) -> None:
        self._site = site
        self._halves = halves
        self._number = number

    def alone(self) -> Outcome:
        """Measure without a reader."""
        load = self._load("alone")
        meter = Meter.started(servers(self._site.bench))
        load.wait(PATIENCE)
        return _outcome(load, meter)

    def received(self) -> Outcome:
        """Measure with pg_recvlogical, which discards what it receives."""
        bench, dsn = self._site.bench, self._site.dsn
        name, tables = (
            sql.Identifier(RECEIVER),
            sql.SQL(", ").join(sql.Identifier(*each.split(".")) for each in _TABLES),
        )
        with bench.sql(dsn) as connection:
            connection.execute(sql.SQL("CREATE PUBLICATION {} FOR TABLE {}").format(name, tables))
        create_receiver(bench, dsn)
        try:
            words, env = receiver_command(bench, dsn, RECEIVER, Path("/dev/null"))
            with contextlib.ExitStack() as stack:
                process = bench.start(f"{self._site.prefix}-receiver", words, env)
                stack.callback(process.stop, signal.SIGTERM, _STOP_SECONDS)
                return self._metered("receiver", RECEIVER, process, lambda load: self._until_sent(load, process))
        finally:
            drop_slot(bench, dsn, RECEIVER)
            with bench.sql(dsn) as connection:
                connection.execute(sql.SQL("DROP PUBLICATION {}").format(name))

    def ours(self) -> Outcome:
        """Measure with a producer that has copied the tables before."""
        site = self._site
        try:
            with PositionsWatch(site) as watch, producing(site) as process:
                watch.until_copied(process)
                return self._followed("headrace", site.slot, site.topics, headrace_clock(), process)
        finally:
            site.drop()

    def theirs(self) -> Outcome:
        """Measure with Debezium, which streams."""
        peer = Debezium(self._site.bench, self._site, f"dbz_pgbench{self._number}", snapshot=False)
        try:
            with peer.running() as process:
                return self._followed("debezium", peer.name, peer.topics, debezium_clock, process)
        finally:
            peer.drop()

    def _followed(self, name: str, slot: str, topics: Sequence[str], clock: Clock, reader: Guarded) -> Outcome:
        kafka = self._site.settings.kafka
        await_change(self._site, EndWatch(kafka, topics), reader)
        with Follower(kafka, topics, clock) as follower:

            def arrived(load: Guarded) -> Lag:
                return Lag.of(follower.follow(load, lambda: int(_found(_DONE, load)) * len(_TABLES), reader))

            return self._metered(name, slot, reader, arrived)

    def _metered(self, name: str, slot: str, reader: Guarded, arrive: Callable[[Guarded], Lag | None]) -> Outcome:
        """Measure a load until all of its changes `arrive` from a slot at a reader, which returns their lag."""
        walsender = self._walsender(slot, reader)
        pids = {**servers(self._site.bench), "walsender": walsender, "reader": reader.pid}
        load = self._load(name)
        meter, switches = Meter.started(pids), context_switches(walsender)
        lag = arrive(load)
        return _outcome(load, meter, context_switches(walsender) - switches, lag)

    def _walsender(self, slot: str, reader: Guarded) -> int:
        """Return the server's process that a slot's reader is connected to, once it is."""
        with self._site.bench.sql(self._site.dsn) as connection:
            for _ in self._site.bench.watched("the reader", reader):
                if (row := connection.execute(_WALSENDER, (slot,)).fetchone()) is not None:
                    return int(row[0])
        raise AssertionError

    def _until_sent(self, load: Guarded, reader: Guarded) -> None:
        """Wait until the load has ended and the server has sent all of its changes."""
        load.wait(PATIENCE)
        with self._site.bench.sql(self._site.dsn) as connection:
            end = format_lsn(write_position(connection))
            for _ in self._site.bench.watched("the reader", reader):
                if connection.execute(_SENT, (end, RECEIVER)).fetchone() == (True,):
                    return

    def _load(self, name: str) -> Guarded:
        """Start the load; before it the tables are vacuumed, and what was written before is flushed."""
        site = self._site
        with site.bench.sql(site.dsn) as connection:
            connection.execute("VACUUM pgbench_accounts")
            connection.execute("CHECKPOINT")
        words, env = _command(site.bench, site.dsn, *_CLIENTS, "-T", str(_SECONDS))
        load = site.bench.start(f"{site.prefix}-{name}", words, env)
        self._halves.for_the_database(load.pid)
        return load


def _found(wanted: re.Pattern[str], load: Guarded) -> float:
    """Return a number of pgbench's results."""
    found = wanted.search(load.log.read_text(encoding="utf-8"))
    if found is None:
        raise HeadraceError(f"pgbench failed: {load.last_lines()}", remedy="see its output")
    return float(found[1])


def _outcome(load: Guarded, meter: Meter, switches: int | None = None, lag: Lag | None = None) -> Outcome:
    """Return the outcome of a load that has ended, with what its processes have used since the meter was started."""
    done = _found(_DONE, load)
    cpu = {name: seconds / done * 1e6 for name, seconds in meter.read().items()}
    return Outcome(_found(_RATE, load), cpu, None if switches is None else switches / done, lag)
