"""The story that `headrace demo` tells: real servers, real processes, and a proof at the end.

Everything that headrace does in it is done by its own commands as separate processes, just as a person would run
them; this module starts and kills them, watches, and counts.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
import tomli_w
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from infra.demo.gitlab import Application, Proof, build, prove, skipped_rows
from infra.positions import Positions
from infra.postgres import connect
from infra.settings import KafkaSettings
from infra.stack import EmbeddedStack, embedded_stack
from infra.stack.processes import Guarded
from infra.topics import end_offsets
from schemas.errors import HeadraceError

_MIGRATION: Final = "skip_resets"
_TABLE: Final = "public.container_repositories"
_TOPIC: Final = "headrace.gitlab_main.container_repositories"
_DATABASE: Final = "gitlabhq"
_PATIENCE: Final = 600.0
"""Seconds without an end after which a step is taken for broken."""

_PROGRESS = """
SELECT coalesce(sum(next_offset), 0)::bigint, coalesce(sum(applied), 0)::bigint, coalesce(sum(skipped), 0)::bigint
FROM headrace.progress JOIN headrace.migrations ON name = migration AND headrace.progress.run = headrace.migrations.run
"""


class ProofFailed(HeadraceError):
    """This should never happen: please report it, with the versions of everything."""


def tell(rows: int) -> None:
    """Tell it with `rows` container repositories; raises ProofFailed if a claim turns out false."""
    console = Console(highlight=False)
    began = time.monotonic()
    with ExitStack() as held:
        with console.status("starting Kafka and PostgreSQL"), _timed(console, "Kafka and PostgreSQL started"):
            stack = held.enter_context(embedded_stack())
        # Below the stack's own directory, which goes when this process goes, however it ends.
        place = stack.directory / "demo"
        place.mkdir()
        story = _Story(console, stack, place, rows)
        held.callback(story.close)
        summary = story.run()
    summary.add_row("all of it", f"{time.monotonic() - began:.0f} s; nothing is left behind")
    console.print(summary)


class _Story:
    def __init__(self, console: Console, stack: EmbeddedStack, place: Path, rows: int) -> None:
        self._console = console
        self._stack = stack
        self._place = place
        self._rows = rows
        self._dsn = stack.postgres.create_database(_DATABASE)
        self._sql: psycopg.Connection[Any] = connect(self._dsn, name="demo")
        self._kafka = KafkaSettings(bootstrap_servers=stack.endpoints.bootstrap_servers)
        self._positions = Positions("headrace", self._kafka)
        self._running: list[Guarded] = []
        self._settings = place / "headrace.toml"
        self._ends: dict[int, int] = {}

    def close(self) -> None:
        for process in self._running:
            process.kill()
        self._sql.close()

    def run(self) -> Table:
        say = self._console.print
        with self._console.status(f"building a GitLab-shaped database of {self._rows:,} container repositories"):
            with _timed(
                self._console,
                f"database built: {self._rows:,} container repositories, of which"
                f" {skipped_rows(self._rows):,} were skipped for too many tags",
            ):
                build(self._sql, self._rows)
        self._write_settings()
        application = Application(self._dsn, self._rows)
        application.start()
        try:
            began = time.monotonic()
            producer = self._start("produce", "main")
            members = [self._start("consume", _MIGRATION), self._start("consume", _MIGRATION)]
            say("an application goes on inserting and updating; a producer and two consumers run")
            copied, caught_up, killed_at = self._watch(producer, members, began)
        finally:
            application.stop()
        with self._console.status("the application has stopped; the rest of its changes flow through"):
            self._wait_until_flowed()
        applied, skipped = self._progress()[1:]
        proof = self._prove()
        say(f"proven by SQL: {proof.resets:,} rows reset, each once; no other row touched")
        with self._console.status("replaying the topics"):
            replayed, seconds = self._replay(members)
        again = self._prove()
        if (again.resets, again.by_application) != (proof.resets, proof.by_application):
            raise ProofFailed(f"the replay changed {again.resets - proof.resets} rows that were right already")
        self._end(producer)
        summary = Table(title="headrace demo: what was proven", title_justify="left", show_header=False)
        for line in (
            ("snapshot", f"{self._rows:,} rows in {copied:.1f} s, {self._rows / copied:,.0f} rows/s, while written to"),
            (
                "application",
                f"{application.statements:,} statements meanwhile; {proof.inserted:,} rows inserted,"
                f" {proof.by_application:,} states changed, every one left as the application made it",
            ),
            (
                "migration",
                f"{applied:,} rows reset, {skipped:,} events needed nothing, caught up after {caught_up:.1f} s",
            ),
            ("SIGKILL", f"one of two consumers at {killed_at:.0%}; the other took over, nothing lost, nothing doubled"),
            (
                "exactly once",
                f"{proof.resets:,} resets in the trigger's log, {proof.twice} twice, {proof.wrong} wrong,"
                f" {proof.left_over} left over, {proof.touched} other rows touched",
            ),
            ("replay", f"{replayed:,} events from the topics alone in {seconds:.1f} s, 0 rows changed"),
        ):
            summary.add_row(*line)
        return summary

    def _watch(self, producer: Guarded, members: list[Guarded], began: float) -> tuple[float, float, float]:
        """Show progress until snapshot and migration are through; kill a member half-way.

        Returns seconds until the snapshot was done, seconds until all was caught up, and the share at the kill.
        """
        copied = killed_at = 0.0
        with Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        ) as bars:
            snapshot = bars.add_task("snapshot, rows", total=self._rows, note="")
            events = bars.add_task("skip_resets, events", total=self._rows, note="")
            for _ in self._patiently("the migration", producer, *members):
                state = self._positions.sources().get("main")
                table = state.snapshots.get(_TABLE) if state else None
                done = bool(table and table.done)
                if table:
                    bars.update(
                        snapshot, completed=table.rows, total=table.rows if done else max(self._rows, table.rows)
                    )
                if done and not copied:
                    copied = time.monotonic() - began
                consumed, applied, _ = self._progress()
                self._ends = end_offsets(self._kafka, _TOPIC)
                end = sum(self._ends.values())
                bars.update(events, completed=consumed, total=max(end, self._rows), note=f"{applied:,} reset")
                if len(members) == 2 and consumed >= self._rows / 2:
                    killed_at = consumed / max(end, self._rows)
                    victim = members.pop(0)
                    victim.kill()
                    self._running.remove(victim)
                    bars.console.print(f"SIGKILL for consumer {victim.pid} at {killed_at:.0%}; the other takes over")
                if done and len(members) == 1 and end - consumed < max(200, self._rows // 100):
                    return copied, time.monotonic() - began, killed_at
        raise ProofFailed("unreachable")

    def _wait_until_flowed(self) -> None:
        """Wait until the producer has passed the log's present end, and the consumer the topic's."""
        row = self._sql.execute("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint").fetchone()
        assert row is not None
        for _ in self._patiently("the producer", *self._running):
            state = self._positions.sources()["main"].stream
            if state is not None and state.confirmed_lsn >= row[0]:
                break
        self._wait_until_consumed()

    def _wait_until_consumed(self) -> None:
        for _ in self._patiently("the consumer", *self._running):
            if self._progress()[0] >= sum(end_offsets(self._kafka, _TOPIC).values()):
                return

    def _replay(self, members: list[Guarded]) -> tuple[int, float]:
        for member in members:
            self._end(member)
        self._command("replay", _MIGRATION)
        began = time.monotonic()
        report = json.loads(self._command("consume", _MIGRATION, "--until-caught-up", "--json"))
        self._command("verify", _MIGRATION)
        return report["applied"] + report["skipped"], time.monotonic() - began

    def _prove(self) -> Proof:
        with self._console.status("asking the database what changed"):
            proof = prove(self._sql)
        if proof.broken:
            raise ProofFailed("; ".join(proof.broken))
        return proof

    def _progress(self) -> tuple[int, int, int]:
        """Return the ledger's sums: offset reached, rows changed, events that needed nothing."""
        if self._sql.execute("SELECT to_regclass('headrace.progress')").fetchone() == (None,):
            return 0, 0, 0
        row = self._sql.execute(_PROGRESS).fetchone()
        assert row is not None
        return row[0], row[1], row[2]

    def _patiently(self, what: str, *processes: Guarded) -> Iterator[None]:
        """Yield a few times a second until the caller is satisfied; raises when a process ends or nothing comes."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            yield
            for process in processes:
                if process in self._running and process.poll() is not None:
                    raise HeadraceError(f"a process of {what} ended: {process.last_lines()}")
            time.sleep(0.2)
        raise HeadraceError(f"{what} did not come to an end within {_PATIENCE:.0f} s")

    def _write_settings(self) -> None:
        document = {
            "kafka": {"bootstrap_servers": self._kafka.bootstrap_servers},
            "databases": {
                "main": {
                    "dsn": self._dsn,
                    "gitlab_schemas": ["gitlab_main", "gitlab_shared"],
                    "tables": [_TABLE],
                }
            },
        }
        self._settings.touch(mode=0o600)
        self._settings.write_text(tomli_w.dumps(document), encoding="utf-8")

    def _start(self, *words: str) -> Guarded:
        log = self._place / f"{'-'.join(words)}-{len(self._running)}.log"
        process = self._stack.keeper.start(self._words(*words), log=log, cwd=self._place, stop_signal=signal.SIGKILL)
        self._running.append(process)
        return process

    def _end(self, process: Guarded) -> None:
        process.stop(signal.SIGTERM, 15)
        self._running.remove(process)

    def _command(self, *words: str) -> str:
        """Run a command to its end and return what it printed."""
        output = self._place / f"{'-'.join(words)}.out"
        self._stack.keeper.run(self._words(*words), log=output, cwd=self._place, timeout=_PATIENCE)
        lines = output.read_text(encoding="utf-8").splitlines()
        return lines[-1] if lines else ""

    def _words(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "headrace", *words, "--config", str(self._settings)]


@contextmanager
def _timed(console: Console, what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    console.print(f"{what} ({time.monotonic() - began:.1f} s)")
