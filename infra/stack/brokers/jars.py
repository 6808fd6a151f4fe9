"""Downloads sets of jars, such as Kafka's, pinned by Maven coordinate and SHA-256, into the user's cache directory.

A set of jars becomes visible by one rename after every checksum matched, so an existing cache directory is complete;
later starts compare only sizes. A lock makes a second process wait instead of downloading too.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import resources
from pathlib import Path

import platformdirs
from rich.progress import Progress

from infra.cli import tables
from schemas.errors import HeadraceError, Malformed, Unavailable
from schemas.lazy_dataclass import dataclass

KAFKA_VERSION = "4.3.0"
PARALLEL_DOWNLOADS = 8


@dataclass(frozen=True)
class Jar:
    """One pinned artifact; `size` in bytes."""

    group: str
    artifact: str
    version: str
    sha256: str
    size: int

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"

    @property
    def coordinate(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"


Download = Callable[[Jar, Path], Path]
"""Fetches a jar into an empty directory and returns the file."""


def pinned_jars() -> list[Jar]:
    """Return the jars of kafka_jars.txt."""
    return listed_jars(resources.files("infra.stack.brokers").joinpath("kafka_jars.txt").read_text())


def listed_jars(text: str) -> list[Jar]:
    """Parse a list with one jar per line: its coordinate, its SHA-256 and its size."""
    jars = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            coordinate, sha256, size = line.split()
            group, artifact, version = coordinate.split(":")
            jars.append(Jar(group, artifact, version, sha256, int(size)))
    return jars


def kafka_home(cache: Path | None = None) -> Path:
    """Return the directory with Kafka's jars, downloaded at first use.

    `cache` is by default the user's own. Raises Unavailable if a download fails, Malformed (naming the jar) if it does
    not match its pinned checksum.
    """
    return ensure_jars(pinned_jars(), cache or Path(platformdirs.user_cache_dir("headrace")), download_from_maven)


def ensure_jars(jars: Sequence[Jar], cache: Path, download: Download, name: str = f"kafka-{KAFKA_VERSION}") -> Path:
    """Return a directory below `cache` with `jars`, calling `download` for them if it does not exist yet.

    The directory is named after `name`, such as kafka-4.3.0, and a hash of the pins.
    """
    pins = hashlib.sha256("".join(jar.sha256 for jar in jars).encode()).hexdigest()[:12]
    home = cache / f"{name}-{pins}"
    if is_whole(home, jars):
        return home
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{home.name}.lock"):
            if is_whole(home, jars):
                return home
            with tempfile.TemporaryDirectory(prefix="download-", dir=cache) as work:
                new = Path(work) / "jars"
                new.mkdir()
                _download_all(jars, new, Path(work), download, name)
                if home.exists():  # damaged: a file is missing or has another size
                    home.rename(Path(work) / "damaged")
                new.rename(home)
    except OSError as error:
        raise Unavailable(
            f"cannot store the jars of {name} in {cache}: {error.strerror or error}",
            remedy=f"provide {_megabytes(jars)} MB of writable space there",
        ) from error
    return home


def is_whole(home: Path, jars: Sequence[Jar]) -> bool:
    """Return whether every jar exists with its size."""
    try:
        return all((home / jar.file_name).stat().st_size == jar.size for jar in jars)
    except OSError:
        return False


def download_from_maven(jar: Jar, directory: Path) -> Path:
    """Download one jar with jgo, which also checks the repository's own checksum."""
    from jgo.maven import MavenContext  # noqa: PLC0415  needed only once per cache

    context = MavenContext(repo_cache=directory, timeout=30)
    return Path(context.project(jar.group, jar.artifact).at_version(jar.version).artifact("", "jar").resolve())


def _megabytes(jars: Sequence[Jar]) -> int:
    return -(-sum(jar.size for jar in jars) // 1_000_000)


def _download_all(jars: Sequence[Jar], into: Path, work: Path, download: Download, name: str) -> None:
    def fetch(jar: Jar) -> None:
        # a new directory for each try: jgo takes a partial file for a complete one
        with tempfile.TemporaryDirectory(dir=work) as own:
            try:
                file = download(jar, Path(own))
            except HeadraceError:
                raise
            except Exception as error:  # jgo raises its HTTP library's errors
                raise Unavailable(
                    f"cannot download {jar.coordinate}: {error}",
                    remedy="check the network and the proxy settings, then start again",
                ) from error
            found = hashlib.sha256(file.read_bytes()).hexdigest()
            if found != jar.sha256:
                raise Malformed(
                    f"{jar.coordinate} was rejected: its SHA-256 is {found}, the pinned one {jar.sha256}",
                    remedy="it was changed between the Maven repository and this machine; try another network",
                )
            shutil.move(file, into / jar.file_name)

    with (
        ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool,
        Progress(
            console=tables.console(stderr=True), transient=True, disable=not tables.console(stderr=True).is_terminal
        ) as bar,
    ):
        task = bar.add_task(f"Downloading {name}", total=sum(jar.size for jar in jars))
        waiting = {pool.submit(fetch, jar): jar for jar in jars}
        try:
            for done in as_completed(waiting):
                done.result()
                bar.advance(task, waiting[done].size)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
