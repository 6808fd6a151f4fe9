"""The demo's first act: `skip_resets` on a large table while an application writes, with a consumer killed half-way."""

from __future__ import annotations

import json
import time
from typing import Any, Final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from infra.demo.gitlab import Application, Proof, build, prove, skipped_rows
from infra.demo.stage import Line, ProofFailed, Stage
from infra.kafka.topics import end_offsets
from infra.stack.processes.keeper import Guarded

_MIGRATION: Final = "skip_resets"
_TABLE: Final = "public.container_repositories"
_TOPIC: Final = "headrace.gitlab_main.container_repositories"


class Resets:
    """Many rows, a producer, two consumers, an application at work, and a SIGKILL."""

    def __init__(self, stage: Stage, rows: int) -> None:
        self._stage = stage
        self._rows = rows
        self._dsn, self._sql = stage.database("gitlabhq")

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """See Act.sections."""
        main = {"dsn": self._dsn, "gitlab_schemas": ["gitlab_main", "gitlab_shared"], "tables": [_TABLE]}
        return {"databases": {"main": main}}

    def play(self) -> list[Line]:
        """See Act.play."""
        stage, console = self._stage, self._stage.console
        with (
            console.status(f"building a GitLab-shaped database with {self._rows:,} container repositories"),
            stage.timed(
                f"database built: {self._rows:,} container repositories,"
                f" {skipped_rows(self._rows):,} of them skipped for too many tags"
            ),
        ):
            build(self._sql, self._rows)
        application = Application(self._dsn, self._rows)
        application.start()
        try:
            began = time.monotonic()
            producer = stage.start("produce", "main")
            members = [stage.start("consume", _MIGRATION), stage.start("consume", _MIGRATION)]
            console.print("an application inserts and updates; a producer and two consumers run")
            copied, caught_up, killed_at = self._watch(producer, members, began)
        finally:
            application.stop()
        with console.status("the application has stopped; waiting for its last changes"):
            self._wait_until_caught_up()
        _, applied, skipped = stage.progress(self._sql, _MIGRATION)
        proof = self._prove()
        console.print(f"proven by SQL: {proof.resets:,} rows reset, each once; no other row touched")
        with console.status("replaying the topics"):
            replayed, seconds = self._replay(members)
        again = self._prove()
        if (again.resets, again.by_application) != (proof.resets, proof.by_application):
            raise ProofFailed(f"the replay changed {again.resets - proof.resets} rows that were already up to date")
        stage.end(producer)
        return [
            ("snapshot", f"{self._rows:,} rows in {copied:.1f} s, {self._rows / copied:,.0f} rows/s, while written to"),
            (
                "application",
                f"{application.statements:,} statements meanwhile; {proof.inserted:,} rows inserted,"
                f" {proof.by_application:,} states changed, none of them overwritten",
            ),
            (
                _MIGRATION,
                f"{applied:,} rows reset, {skipped:,} events required no change, caught up after {caught_up:.1f} s",
            ),
            ("SIGKILL", f"one of two consumers at {killed_at:.0%}; the other took over, nothing lost or duplicated"),
            (
                "exactly once",
                f"{proof.resets:,} resets recorded by the trigger, {proof.twice} twice, {proof.wrong} wrong,"
                f" {proof.left_over} left over, {proof.touched} other rows touched",
            ),
            ("replay", f"{replayed:,} events from the topics alone in {seconds:.1f} s, 0 rows changed"),
        ]

    def _watch(self, producer: Guarded, members: list[Guarded], began: float) -> tuple[float, float, float]:
        """Show progress until the snapshot and the migration are done; kill a consumer half-way.

        Returns the seconds until the snapshot was done, the seconds until all was caught up, and the progress at the
        kill.
        """
        copied = killed_at = 0.0
        with Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._stage.console,
        ) as bars:
            snapshot = bars.add_task("snapshot, rows", total=self._rows, note="")
            events = bars.add_task("skip_resets, events", total=self._rows, note="")
            for _ in self._stage.patiently("the migration", producer, *members):
                state = self._stage.positions.sources().get("main")
                table = state.snapshots.get(_TABLE) if state else None
                done = bool(table and table.done)
                if table:
                    bars.update(
                        snapshot, completed=table.rows, total=table.rows if done else max(self._rows, table.rows)
                    )
                if done and not copied:
                    copied = time.monotonic() - began
                consumed, applied, _ = self._stage.progress(self._sql, _MIGRATION)
                end = sum(end_offsets(self._stage.kafka, _TOPIC).values())
                bars.update(events, completed=consumed, total=max(end, self._rows), note=f"{applied:,} reset")
                if len(members) == 2 and consumed >= self._rows / 2:
                    killed_at = consumed / max(end, self._rows)
                    victim = members.pop(0)
                    self._stage.kill(victim)
                    bars.console.print(f"SIGKILL for consumer {victim.pid} at {killed_at:.0%}; the other takes over")
                if done and len(members) == 1 and end - consumed < max(200, self._rows // 100):
                    return copied, time.monotonic() - began, killed_at
        raise ProofFailed("unreachable")

    def _wait_until_caught_up(self) -> None:
        """Wait until the producer has passed the current end of WAL, and the consumer the end of the topic."""
        row = self._sql.execute("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint").fetchone()
        assert row is not None
        for _ in self._stage.patiently("the producer"):
            state = self._stage.positions.sources()["main"].stream
            if state is not None and state.confirmed_lsn >= row[0]:
                break
        for _ in self._stage.patiently("the consumer"):
            reached = self._stage.progress(self._sql, _MIGRATION)[0]
            if reached >= sum(end_offsets(self._stage.kafka, _TOPIC).values()):
                return

    def _replay(self, members: list[Guarded]) -> tuple[int, float]:
        self._stage.end(*members)
        self._stage.until_left(f"headrace.{_MIGRATION}")
        self._stage.command("replay", _MIGRATION)
        began = time.monotonic()
        report = json.loads(self._stage.command("consume", _MIGRATION, "--until-caught-up", "--json"))
        self._stage.command("verify", _MIGRATION)
        return report["applied"] + report["skipped"], time.monotonic() - began

    def _prove(self) -> Proof:
        with self._stage.console.status("querying the database for changes"):
            proof = prove(self._sql)
        if proof.broken:
            raise ProofFailed("; ".join(proof.broken))
        return proof
