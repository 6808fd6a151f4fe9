"""A source under random work whose producer is killed repeatedly, and the properties that must hold afterwards."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psycopg
from psycopg.conninfo import make_conninfo

from consumers.testing.waiting import until
from infra.postgres.moments import current_moment
from infra.state.snapshot_requests import SnapshotRequest, send_request
from producers.snapshot.reader import CHUNKS_EACH
from schemas.positions import Lsn
from tests.producers.crashes.dying import chunks_read_again, dying, note
from tests.producers.crashes.failpoints import Arming
from tests.producers.processes import LARGE_KEYS, SCHEMA, Workload, write_settings
from tests.producers.sources import Source, settings_for

TABLE: Final = "public.t"

# Without a space, since it is quoted in a settings file.
_SMALL_MEMORY: Final = "-clogical_decoding_work_mem=64kB"
"""Makes the server stream a larger transaction before its commit."""


class Crashes:
    """One table with random work (from entering to `prove`) and a producer that dies at points or moments."""

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection],
        bootstrap_servers: str,
        prefix: str,
        dsn: str,
        directory: Path,
        *,
        rows: int = 300,
        chunk_rows: int = 7,
        partitions: int = 2,
        workers: int = 1,
    ) -> None:
        self._workers = workers
        self._connect = connect
        connection = connect()
        connection.execute(SCHEMA)
        connection.execute("INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, %s) i", (rows,))
        self._dsn = dsn
        self._journal = directory / "journal.jsonl"
        self._spills = directory / "spills"
        settings = settings_for(
            bootstrap_servers,
            prefix,
            make_conninfo(dsn, options=_SMALL_MEMORY),
            TABLE,
            partitions=partitions,
            snapshot={"chunk_rows": chunk_rows, "workers": workers},
            spill_directory=self._spills,
        )
        self.source = Source(settings, connection)
        self.config = directory / "headrace.toml"
        self.starts_with(workers)
        self.kills = 0
        self._truncated = False
        self._asked = Lsn(0)

    def work(self, seed: int, *, keys: int = 400, truncates: bool = False, large: int = 40) -> Workload:
        """Return random work on the table, to be entered."""
        self._truncated = truncates
        return Workload(self._dsn, seed, keys=keys, truncates=truncates, large=large)

    def starts_with(self, workers: int) -> None:
        """Let producers that start from now on have so many workers."""
        settings = self.source.settings
        database = settings.database("main")
        snapshot = database.snapshot.model_copy(update={"workers": workers})
        changed = {"main": database.model_copy(update={"snapshot": snapshot})}
        write_settings(settings.model_copy(update={"databases": changed}), self.config)

    def dies_at(self, arming: Arming) -> None:
        """Run a producer that kills itself at the point; wait for its end."""
        with dying(self.config, self._journal, arming) as process:
            code = process.ended()
        assert code == -signal.SIGKILL, f"{arming}: ended with {code}\n{process.log.read_text()}"
        self.kills += 1

    def dies_within(self, seconds: float, arming: Arming | None) -> bool:
        """Run a producer, killed after a time unless it dies at the point before; return whether it did."""
        with dying(self.config, self._journal, arming) as process:
            code = process.waited(seconds)
        assert code in (None, -signal.SIGKILL), f"{arming}: ended with {code}\n{process.log.read_text()}"
        self.kills += 1
        return code is not None

    def reconnect(self) -> None:
        """Continue after a crash of the database."""
        self.source.connection = self._connect()

    def ask(self, request: SnapshotRequest) -> None:
        """Re-snapshot rows; no copy may be running."""
        note(self._journal, what="copy")
        send_request(self.source.connection, request)
        self._asked = current_moment(self.source.connection).lsn

    @property
    def under_way(self) -> bool:
        """Whether rows are being copied or are to be copied, by the recorded state."""
        state = self.source.state()
        if state.stream is None or state.stream.commit_lsn < self._asked:
            return True
        return any(each.under_way for each in state.snapshots.values())

    def settle(self) -> None:
        """Run a producer until everything is published and nothing is being copied, then stop it."""
        with dying(self.config, self._journal) as process:
            self.source.caught_up(process.check)
            until(lambda: not self.under_way, "nothing to be under way")
            process.send(signal.SIGTERM)
            assert process.ended() == 0, process.log.read_text()

    def prove(self) -> int:
        """Fail unless nothing was lost or doubled and each start read at most one chunk of each worker again.

        Returns the number of such chunks. The work must have ended, and its writes be published.
        """
        source = self.source
        records = source.require_equal(TABLE)
        slot, stream = source.slot_state(), source.recorded().stream
        assert stream is not None
        assert slot.confirmed_flush is not None
        assert slot.confirmed_flush <= stream.confirmed_lsn, "the slot released changes that are not recorded"
        again = chunks_read_again(self._journal)
        # Two chunks have together at most the chunk_rows that a worker may have read again.
        most = CHUNKS_EACH * self._workers
        assert max(again) <= most, f"a start read more than two chunks of a worker again: {again}"
        assert sum(again) <= self.kills * most
        assert not list(self._spills.iterdir()), "transactions of dead producers are still on disk"
        # A truncate may remove its rows, which have the last keys, before the copy has come to them.
        assert self._truncated or any(
            isinstance(key := record.key.get("id"), int) and key >= LARGE_KEYS for record in records
        ), "no large transaction was published"
        return sum(again)
