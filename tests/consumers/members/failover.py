"""A primary with a physical standby, a migration under load, restarted services, and the final checks.

Triggers log every write on both sides with the recorded owner at that moment.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg

from consumers.testing.waiting import PATIENCE, until
from infra.guard import write_guard
from infra.postgres.heartbeat import beat
from infra.settings.file import load_settings
from infra.settings.model import Settings
from infra.stack import EmbeddedStack
from infra.stack.postgresql.server import EmbeddedPostgres
from infra.state.positions import read_sources
from schemas.topics import table_topic
from tests.consumers.container_repositories import TABLE, TOO_MANY_TAGS, fill, write_settings
from tests.consumers.services import ROOT, Application, Service, run
from tests.documents import hold
from tests.producers.folding import folded_rows, read_topic, require_order, table_rows

_TRIES = 15
MOVED = "gitlab_main"
STAYS = "gitlab_ci"
_LOGGED = f"""
    ALTER TABLE public.writes ADD COLUMN database text, ADD COLUMN owner text, ADD COLUMN epoch bigint;
    CREATE OR REPLACE FUNCTION public.log_write() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO public.writes (id, old_state, new_state, application, database, owner, epoch)
            SELECT coalesce(NEW.id, OLD.id), OLD.migration_state, NEW.migration_state,
                   current_setting('application_name'), d.name, o.owner, o.epoch
              FROM (SELECT) AS always
              LEFT JOIN headrace.database d ON true
              LEFT JOIN headrace.schema_ownership o ON o.gitlab_schema = '{MOVED}';
            RETURN coalesce(NEW, OLD);
        END $$;
    DROP TRIGGER log_write ON public.container_repositories;
    CREATE TRIGGER log_write AFTER INSERT OR UPDATE OR DELETE ON public.container_repositories
        FOR EACH ROW EXECUTE FUNCTION public.log_write();
    CREATE TABLE public.ci_builds (id bigint PRIMARY KEY, n int NOT NULL);
"""


class World:
    """One round: the database `first` with its standby `second`, which is to get gitlab_main."""

    def __init__(self, stack: EmbeddedStack, directory: Path, name: str) -> None:
        self.name = name
        self.stack = stack
        self.directory = directory
        self.first_dsn = stack.postgres.create_database(name)
        with psycopg.connect(self.first_dsn, autocommit=True) as connection:
            connection.execute("CREATE SCHEMA IF NOT EXISTS headrace")
            connection.execute((ROOT / "infra" / "postgres" / "control.sql").read_bytes())
            connection.execute("INSERT INTO headrace.database (name) VALUES ('first')")
            connection.execute(
                "INSERT INTO headrace.schema_ownership (gitlab_schema, owner) VALUES (%s, 'first'), (%s, 'first')",
                (MOVED, STAYS),
            )
            connection.execute(TABLE.encode())
            connection.execute(_LOGGED.encode())
            write_guard.install(connection, MOVED, ["public.container_repositories"])
            fill(connection, {key: TOO_MANY_TAGS if key % 3 else ("default", None) for key in range(1, 400)})
        self.standby: EmbeddedPostgres = stack.standby(name)
        self.second_dsn = self.standby.dsn(name)
        self.config = write_settings(
            directory / f"{name}.toml",
            {
                "prefix": name,
                "kafka": {"bootstrap_servers": stack.endpoints.bootstrap_servers, "partitions": 2},
                "databases": {
                    "first": {
                        "dsn": self.first_dsn,
                        "gitlab_schemas": [MOVED, STAYS],
                        "tables": ["public.container_repositories", "public.ci_builds"],
                        "snapshot": {"chunk_rows": 25},
                    },
                    "second": {
                        "dsn": self.second_dsn,
                        "gitlab_schemas": [MOVED],
                        "tables": ["public.container_repositories"],
                        "snapshot": {"chunk_rows": 25},
                    },
                },
                "migrations": {
                    # Continuous: rows to reset keep arriving.
                    "skip_resets": {"batch_size": 50, "sub_batch_size": 5, "pause_ms": 5, "continuous": True}
                },
            },
        )
        self.settings: Settings = load_settings(self.config)

    def close(self) -> None:
        self.standby.abandon()
        self.stack.postgres.forget_standby(self.name)
        self.stack.postgres.drop_database(self.name)
        shutil.rmtree(self.standby.directory, ignore_errors=True)

    def service(self, *arguments: str) -> Service:
        log = self.directory / f"{self.name}-{'-'.join(arguments)}.log"
        return Service(log, *arguments, "--config", str(self.config))

    @contextlib.contextmanager
    def first(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.first_dsn, autocommit=True) as connection:
            yield connection

    @contextlib.contextmanager
    def second(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.second_dsn, autocommit=True) as connection:
            yield connection

    def slot_is_synchronized(self) -> bool:
        """Whether the slot is persistent on the standby; advances it, as a longer run would."""
        with self.first() as first, self.second() as second:
            first.execute("SELECT pg_log_standby_snapshot()")
            row = second.execute("SELECT bool_or(synced AND NOT temporary) FROM pg_replication_slots").fetchone()
        return row == (True,)

    def resets(self) -> int:
        with self.first() as connection:
            row = connection.execute(
                "SELECT count(*) FROM writes WHERE application LIKE 'headrace consume%'"
            ).fetchone()
        assert row is not None
        return int(row[0])

    def switchover(self, *options: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{self.name}-switchover.log").open("a") as log:
            return run(
                log,
                *("switchover", MOVED, "--from", "first", "--to", "second", "--yes", "--config", str(self.config)),
                *options,
            )

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a headrace command to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "headrace", *arguments, "--config", str(self.config)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        hold(arguments, done.stdout)
        return done

    def settle(self) -> None:
        """Wait until the migration has applied everything and both producers have published that."""
        self._until_published()
        until(self._nothing_left, "the migration has applied all")
        # The migration's own last changes come after what was waited for above.
        self._until_published()

    def _until_published(self) -> None:
        for source, connect in (("first", self.first), ("second", self.second)):
            with connect() as connection:
                lsn = beat(connection)
            until(lambda source=source, lsn=lsn: self._published(source, lsn), f"{source} published up to {lsn}")  # type: ignore[misc]

    def _published(self, source: str, lsn: int) -> bool:
        state = read_sources(self.settings).get(source)
        if state is None or state.stream is None:
            return False
        return state.stream.commit_lsn >= lsn and all(each.done for each in state.snapshots.values())

    def _nothing_left(self) -> bool:
        with self.second() as connection:
            row = connection.execute(
                "SELECT count(*) FROM container_repositories"
                " WHERE migration_state = 'import_skipped' AND migration_skipped_reason = 2"
            ).fetchone()
        return row == (0,)

    def prove(self) -> None:
        """Fail unless every row that should change changed exactly once, on the owner's side."""
        query = "SELECT sequence, id, old_state, new_state, application, database, owner, epoch FROM writes ORDER BY 1"
        with self.first() as first, self.second() as second:
            old, new = first.execute(query).fetchall(), second.execute(query).fetchall()
            assert {(database, owner, epoch) for *_, database, owner, epoch in old} == {("first", "first", 1)}
            assert new[: len(old)] == old, "the old side has a write that the copy lacks: it was made after the switch"
            sides = {(database, owner, epoch) for *_, database, owner, epoch in new[len(old) :]}
            assert sides == {("second", "second", 2)}, sides
            self._prove_once(new)
            applied = second.execute("SELECT sum(applied) FROM headrace.progress").fetchone()
            resets = sum(application.startswith("headrace consume") for *_, application, _, _, _ in new)
            assert applied == (resets,), "the ledger and the log of writes disagree"
            self._prove_topic(MOVED, "container_repositories", second)
            self._prove_topic(STAYS, "ci_builds", first)

    def _prove_once(self, writes: Sequence[tuple[Any, ...]]) -> None:
        state: dict[int, str | None] = defaultdict(lambda: None)
        for _, key, old, new, application, *_ in writes:
            assert state[key] == old, f"row {key}: a write that the log lacks"
            if application.startswith("headrace consume"):
                assert (old, new) == ("import_skipped", "default"), f"row {key} was changed and should not"
            else:
                # Only the migration resets a requested change, so that each request shows its answer.
                assert not (old == "import_skipped" and new == "default")
            state[key] = new

    def _prove_topic(self, gitlab_schema: str, table: str, owner: psycopg.Connection[Any]) -> None:
        records = read_topic(self.settings, table_topic(self.name, gitlab_schema, "first", "public", table))
        require_order(records)
        folded, rows = set(folded_rows(records)), set(table_rows(owner, f"public.{table}"))
        assert folded == rows, (
            f"only in the topic: {sorted(folded - rows)[:3]}, in the table: {sorted(rows - folded)[:3]}"
        )


def play(stack: EmbeddedStack, directory: Path, seed: int, *, synchronized: bool) -> dict[str, Any]:
    """Play one round; return what happened. Raises AssertionError if a promise was broken.

    With `synchronized`, the standby has the old producer's slot, which the new one then takes over.
    """
    draw = random.Random(seed)
    world = World(stack, directory, f"f{seed}x{draw.randrange(16**6):06x}")
    services = {
        name: world.service(*name.split())
        for name in ("produce first", "produce second", "consume skip_resets", "consume skip_resets --json")
    }
    application = Application((world.first_dsn, world.second_dsn), seed)
    kills = {"services": 0, "switchover": 0}
    try:
        share = draw.randrange(5, 200)
        until(lambda: world.resets() >= share, f"{share} rows are reset")
        if synchronized:
            until(world.slot_is_synchronized, "the slot is on the standby")
        _move(world, services, application, draw, kills)
        application.stop()
        world.settle()
        for service in services.values():
            service.stop()
        world.prove()
        listed = world.command("cleanup", "first", "--json", "--yes")
        assert listed.returncode == 0, listed.stderr
        assert [each["migration"] for each in json.loads(listed.stdout)["removed"]] == ["skip_resets"]
        story: dict[str, Any] = {"seed": seed, "resets before": share, **kills, "writes": application.transactions}
        moves = (directory / f"{world.name}-switchover.log").read_text()
        taken_over = '"synchronized": true' in moves
        assert taken_over or not synchronized
        return {**story, "synchronized slot": taken_over}
    except BaseException:
        for log in sorted(directory.glob(f"{world.name}-*.log")):
            print(f"--- {log.name}", *log.read_text().splitlines()[-12:], sep="\n", file=sys.stderr)
        raise
    finally:
        with contextlib.suppress(BaseException):
            application.stop()
        for service in services.values():
            service.stop()
        world.close()


def _move(
    world: World, services: dict[str, Service], application: Application, draw: random.Random, kills: dict[str, int]
) -> None:
    """Run the switchover to its end, with kills of itself and everything else."""
    calm = threading.Event()
    killer = threading.Thread(target=_kill_now_and_then, args=(services, random.Random(draw.random()), calm, kills))
    killer.start()
    try:
        for _ in range(_TRIES):
            moving = world.switchover()
            # Killed after a random time; nothing depends on how far it gets.
            if kills["switchover"] < 4 and draw.random() < 0.85:
                threading.Event().wait(draw.uniform(0.7, 2.5))
                if moving.poll() is None:
                    moving.kill()
                    kills["switchover"] += 1
            if moving.wait(PATIENCE) == 0:
                break
        else:
            raise AssertionError(f"the switchover was not complete after {_TRIES} times")
        world.stack.postgres.forget_standby(world.name)
        before = application.transactions
        until(lambda: application.transactions > before + 100, "the application continues")
    finally:
        calm.set()
        killer.join()


def _kill_now_and_then(
    services: dict[str, Service], draw: random.Random, calm: threading.Event, kills: dict[str, int]
) -> None:
    while not calm.wait(draw.uniform(0.3, 3.0)):
        services[draw.choice(sorted(services))].kill()
        kills["services"] += 1
