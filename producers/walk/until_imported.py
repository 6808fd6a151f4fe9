"""Walks a virtual storage repeatedly until Praefect's database has it as imported.

Seed 000: a flag in the database prevents a needless second import; until it is set, the import runs on each node at its
start, and again after every restart. `missing_records` sets the flag; this module only reads it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg

from infra.postgres import connect
from infra.postgres.advisory_locks import lock_key
from infra.service import log
from infra.settings.database_login import Address
from infra.settings.model import Settings
from producers.walk.run import virtual_storage_section, walk
from schemas.errors import Fenced, HeadraceError, Interrupted, Refused, SettingsError, Unavailable, UsageError

FIRST_PAUSE_SECONDS: Final = 60.0
"""The pause after the first walk; it doubles after each walk."""
LONGEST_PAUSE_SECONDS: Final = 12 * 3600.0
"""Below `missing_records`' max_age_hours, after which a walk's repositories are no longer recorded."""

_LOOK_SECONDS: Final = 2.0

_IMPORTED: Final = """
SELECT coalesce(bool_or(repositories_imported), false) FROM public.virtual_storages WHERE virtual_storage = %s
"""


class ImportFlag:
    """The import flag of a virtual storage; its connection is opened on demand, and reopened after it is lost."""

    def __init__(self, address: Address, virtual_storage: str) -> None:
        self._address = address
        self._virtual_storage = virtual_storage
        self._connection: psycopg.Connection[Any] | None = None
        self._alone = False

    def is_set(self) -> bool:
        """Whether the virtual storage is imported. Raises SettingsError where the database is not Praefect's."""
        try:
            return self._asked(_IMPORTED, self._virtual_storage)
        except HeadraceError as error:
            if isinstance(error.__cause__, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
                raise SettingsError(
                    f"{connect.described(self._address)} is not Praefect's database: it has no"
                    " virtual_storages.repositories_imported",
                    remedy=f"correct virtual_storages.{self._virtual_storage}.database, or walk with --again, which"
                    " does not read it",
                ) from error
            raise

    def alone(self) -> bool:
        """Whether this process walks: the first of several does, as long as its connection lives."""
        if not self._alone:
            self._alone = self._asked("SELECT pg_try_advisory_lock(%s)", lock_key("walk", self._virtual_storage))
        return self._alone

    def close(self) -> None:
        connection, self._connection, self._alone = self._connection, None, False
        if connection is not None:
            connection.close()

    def _asked(self, query: str, parameter: object) -> bool:
        try:
            with connect.translated(self._address):
                if self._connection is None:
                    self._connection = connect.connect(self._address, name=f"walk {self._virtual_storage}")
                return self._connection.execute(query.encode(), (parameter,)).fetchone() == (True,)
        except HeadraceError:
            self.close()
            raise


def walk_unless_imported(
    settings: Settings, virtual_storage: str, stop: threading.Event, *, all_storages: bool = False
) -> None:
    """Walk once, unless the virtual storage is imported. Raises the errors of `walk`.

    Walks if the settings lack Praefect's database, as on a machine that has only the storage.
    """
    lines = log.get(**{log.SOURCE: virtual_storage})
    if virtual_storage_section(settings, virtual_storage).database in settings.databases:
        with import_flag(settings, virtual_storage) as flag:
            if flag.is_set():
                lines.info("walk skipped", **{log.REASON: "already imported"}, remedy="use --again to walk anyway")
                return
    walk(settings, virtual_storage, stop, all_storages=all_storages)


def walk_until_imported(
    settings: Settings,
    virtual_storage: str,
    stop: threading.Event,
    *,
    all_storages: bool = False,
    pause_seconds: float = FIRST_PAUSE_SECONDS,
) -> None:
    """Walk repeatedly, with growing pauses, until the virtual storage is imported or `stop` is set.

    Of several such processes one walks, and the others wait. A walk that fails because of its storage or a server
    is logged and retried; an error in the settings is raised, as is a database that does not answer at the start.
    """
    lines = log.get(**{log.SOURCE: virtual_storage})
    with import_flag(settings, virtual_storage) as flag:
        imported, due, waiting = flag.is_set(), time.monotonic(), False
        while not (imported or stop.is_set()):
            try:
                if flag.alone() and time.monotonic() >= due:
                    waiting = False
                    if not _walked(settings, virtual_storage, stop, all_storages=all_storages):
                        lines.warning("walk will be retried", seconds=pause_seconds)
                    due = time.monotonic() + pause_seconds
                    pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
                elif not (flag.alone() or waiting):
                    waiting = True
                    lines.info("waiting, another process walks")
                imported = flag.is_set()
            except Unavailable as error:
                lines.warning("waiting for a server", **{log.REASON: str(error)})
            if not imported:
                stop.wait(_LOOK_SECONDS)
    lines.info("imported" if imported else "stopped before the import")


@contextmanager
def import_flag(settings: Settings, virtual_storage: str) -> Iterator[ImportFlag]:
    """Yield the flag of a virtual storage; raises UsageError if the settings lack it or its database."""
    section = virtual_storage_section(settings, virtual_storage)
    flag = ImportFlag(settings.database(section.database).address, virtual_storage)
    try:
        yield flag
    finally:
        flag.close()


def _walked(settings: Settings, virtual_storage: str, stop: threading.Event, *, all_storages: bool) -> bool:
    """Walk; return False if it failed for a reason that can be fixed without a restart."""
    try:
        walk(settings, virtual_storage, stop, all_storages=all_storages)
    except Interrupted:
        return True
    except HeadraceError as error:
        if isinstance(error, UsageError | Refused) and not isinstance(error, Fenced):
            raise
        log.get(**{log.SOURCE: virtual_storage}).error("walk incomplete", **{log.REASON: str(error)})
        return False
    return True
