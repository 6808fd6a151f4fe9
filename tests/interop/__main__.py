"""`python -m tests.interop`: foreign programs read tables with every type, and end with the rows that PostgreSQL has.

Exit code 1 where a row or a value differs, where a program fails or cannot be had, and where it answers otherwise than
results.json has it. With --write the answers are stored instead, and docs/reference/types.md is written.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from infra.service import log
from infra.settings.model import LogSettings
from infra.stack.postgresql.server import EmbeddedPostgres
from infra.stack.processes.keeper import Keeper
from schemas.errors import HeadraceError
from tests.interop import changes, reading, results, worlds
from tests.interop.programs import NotToBeHad
from tests.server_versions import NEWEST, stack_of

_SHOWN: Final = 20


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.interop", description=__doc__)
    names = [program.name for program in reading.PROGRAMS]
    arguments.add_argument("--only", choices=names, help="run one program")
    arguments.add_argument("--write", action="store_true", help="store the answers, and write their page")
    given = arguments.parse_args()
    programs = [program for program in reading.PROGRAMS if given.only in (None, program.name)]
    log.configure(LogSettings(level="error"))
    with stack_of(NEWEST) as (server, bootstrap_servers, _), ExitStack() as opened:
        keeper = Keeper()
        opened.callback(keeper.close)
        lane = Lane(server, bootstrap_servers, keeper)
        for registry in (reading.TOPIC, reading.APICURIO):
            if wanted := [program for program in programs if registry in program.registries]:
                lane.run(registry, wanted)
    if not given.write:
        for line in results.changes(lane.seen, results.read()):
            print(f"{line}; if that is right, store it with WRITE=1")
            lane.failed = True
    elif not lane.failed:
        results.write(lane.seen)
    return 1 if lane.failed else 0


class Lane:
    """One run, over both registries."""

    def __init__(self, server: EmbeddedPostgres, bootstrap_servers: str, keeper: Keeper) -> None:
        self._server = server
        self._bootstrap_servers = bootstrap_servers
        self._keeper = keeper
        self.seen: dict[str, Any] = {"servers": results.servers(), "columns": {}, "keys": {}, "programs": {}}
        """What results.json has: versions; the types of columns and, by table, of keys in PostgreSQL (see
        `results.stored_types`); of each program its versions, its types and their forms, what it makes of the tables
        that not every one can read, whether it reads `exact`, and what was compared through each registry."""
        self.failed = False

    def run(self, registry: str, programs: Sequence[reading.Program]) -> None:
        """Publish with the schemas in a registry, and let the programs read. Their logs are kept if one fails."""
        directory = Path(tempfile.mkdtemp(prefix="headrace-interop-"))
        failed_before = self.failed
        with ExitStack() as opened:
            try:
                world = self._published(registry, directory, opened)
            except NotToBeHad as error:
                self._say(registry, str(error), failed=True)
                return
            for program in programs:
                self._read(registry, program, world, directory)
                if registry == reading.APICURIO:
                    self._attempt(program, world, directory)
        if self.failed == failed_before:
            shutil.rmtree(directory)

    def _published(self, registry: str, directory: Path, opened: ExitStack) -> worlds.World:
        prefix = f"i{secrets.token_hex(3)}"
        dsn = self._server.create_database(prefix)
        if registry == reading.APICURIO:
            address, own = opened.enter_context(worlds.apicurio(self._keeper, directory))
            settings, tables = worlds.publish(self._bootstrap_servers, prefix, dsn, address)
        else:
            settings, tables = worlds.publish(self._bootstrap_servers, prefix, dsn)
            address, own = opened.enter_context(worlds.served_topic(self._keeper, directory, settings)), ""
        for name in changes.WITH_EVERY_TYPE:
            types = results.stored_types(tables[name].types)
            self.seen["columns"].update((column, types[column]) for column in results.COLUMN_NAMES)
        for name, table in tables.items():
            types = results.stored_types(table.types)
            self.seen["keys"][name] = {column: types[column] for column in table.key}
        return worlds.World(settings, address, own, tables, worlds.topics_of(settings))

    def _request(self, world: worlds.World, directory: Path, *names: str) -> dict[str, Any]:
        target = self._server.create_database(f"target_{secrets.token_hex(3)}")
        return reading.request_of(world, directory, target, names)

    def _read(self, registry: str, program: reading.Program, world: worlds.World, directory: Path) -> None:
        """Let a program read the tables that every one can read."""
        began = time.monotonic()
        names = [name for name in changes.TABLES if name not in reading.LIMITS]
        try:
            outcome = reading.read(program, world, self._request(world, directory, *names), self._keeper, directory)
        except HeadraceError as error:
            self._say(program.name, f"failed with {registry}: {error}", failed=True)
            return
        for line in outcome.different[:_SHOWN]:
            print(f"  {line}")
        said = f"{outcome.values} values of {outcome.rows} rows of {outcome.tables} tables through {registry}"
        count = len(outcome.different)
        self._say(program.name, f"{said}: {count} different ({time.monotonic() - began:.0f} s)", failed=count > 0)
        seen = self.seen["programs"].setdefault(program.name, {"versions": program.versions(), "compared": {}})
        seen |= results.answered(outcome, world.tables)
        seen["compared"][registry] = {"values": outcome.values, "rows": outcome.rows, "tables": outcome.tables}

    def _attempt(self, program: reading.Program, world: worlds.World, directory: Path) -> None:
        """Let a program read the tables that not every one can read."""
        for table, what in reading.LIMITS.items():
            if what not in program.limits:
                continue
            request = self._request(world, directory, table)
            made, reasons = reading.attempt(program, world, request, self._keeper, directory)
            self._say(program.name, f"{what}: {made}", failed=made == reading.OTHER)
            for line in reasons[:_SHOWN]:
                print(f"  {line}")
            self.seen["programs"].setdefault(program.name, {})[what] = made

    def _say(self, name: str, words: str, *, failed: bool) -> None:
        print(f"{name}: {words}", flush=True)
        self.failed = self.failed or failed


if __name__ == "__main__":
    sys.exit(main())
