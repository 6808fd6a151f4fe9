"""`python -m tests.interop`: foreign programs read tables with every type, and end with the rows that PostgreSQL has.

Exit code 1 where a row or a value differs, and where a program fails or cannot be had. With --write the types that the
programs have are stored, and docs/reference/types.md is written.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from infra.service import log
from infra.settings.model import LogSettings
from infra.stack.postgresql.server import EmbeddedPostgres
from infra.stack.processes.keeper import Keeper
from schemas.errors import HeadraceError
from tests.interop import reading, results, worlds
from tests.interop.programs import NotToBeHad
from tests.server_versions import NEWEST, stack_of

_SHOWN: Final = 20


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.interop", description=__doc__)
    names = [program.name for program in reading.PROGRAMS]
    arguments.add_argument("--only", choices=names, help="run one program")
    arguments.add_argument("--write", action="store_true", help="store the types, and write their page")
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
    if given.write and not lane.failed:
        results.write(lane.types, lane.columns)
    return 1 if lane.failed else 0


class Lane:
    """One run, over both registries."""

    def __init__(self, server: EmbeddedPostgres, bootstrap_servers: str, keeper: Keeper) -> None:
        self._server = server
        self._bootstrap_servers = bootstrap_servers
        self._keeper = keeper
        self.types: dict[str, dict[str, str]] = {}
        """Program → column → its type."""
        self.columns: dict[str, tuple[int, int]] = {}
        """Column → the OID and the modifier of its type in PostgreSQL."""
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
            request = reading.request_of(world, directory)
            for program in programs:
                self._read(registry, program, world, request, directory)
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
        for table in tables.values():
            self.columns.update(table.types)
        return worlds.World(settings, address, own, tables, worlds.topics_of(settings))

    def _read(
        self,
        registry: str,
        program: reading.Program,
        world: worlds.World,
        request: Mapping[str, Any],
        directory: Path,
    ) -> None:
        began = time.monotonic()
        try:
            outcome = reading.read(program, world, request, self._keeper, directory)
        except HeadraceError as error:
            self._say(program.name, f"failed with {registry}: {error}", failed=True)
            return
        for line in outcome.different[:_SHOWN]:
            print(f"  {line}")
        count = len(outcome.different)
        said = f"{outcome.rows} rows of {len(world.tables)} tables through {registry}: {count} different"
        self._say(program.name, f"{said} ({time.monotonic() - began:.0f} s)", failed=count > 0)
        self.types[program.name] = dict(outcome.types)

    def _say(self, name: str, words: str, *, failed: bool) -> None:
        print(f"{name}: {words}", flush=True)
        self.failed = self.failed or failed


if __name__ == "__main__":
    sys.exit(main())
