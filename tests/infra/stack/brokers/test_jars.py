"""Kafka's jars are the pinned ones, or none."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.stack.brokers.jars import Jar, ensure_jars, pinned_jars
from schemas.errors import Malformed, Unavailable

CONTENT = b"a jar, as far as this test is concerned"
PINNED = [Jar("org.example", name, "1.0", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT)) for name in ("one", "two")]


class Repository:
    """Serves CONTENT, and counts; `tampered` arrives changed, `missing` not at all."""

    def __init__(self, *, tampered: str = "", missing: str = "") -> None:
        self.tampered = tampered
        self.missing = missing
        self.served: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, jar: Jar, directory: Path) -> Path:
        if jar.artifact == self.missing:
            raise RuntimeError("503 from the repository")
        with self._lock:
            self.served.append(jar.artifact)
        file = directory / jar.file_name
        file.write_bytes(CONTENT.swapcase() if jar.artifact == self.tampered else CONTENT)
        return file


def test_pins_are_whole() -> None:
    jars = pinned_jars()
    assert "org.apache.kafka:kafka_2.13:4.3.0" in {jar.coordinate for jar in jars}
    assert all(len(jar.sha256) == 64 and jar.size > 0 for jar in jars)
    assert len({jar.file_name for jar in jars}) == len(jars)


def test_a_second_start_downloads_nothing(tmp_path: Path) -> None:
    repository = Repository()
    home = ensure_jars(PINNED, tmp_path, repository)
    assert ensure_jars(PINNED, tmp_path, repository) == home
    assert sorted(repository.served) == ["one", "two"]
    assert sorted(path.name for path in home.iterdir()) == ["one-1.0.jar", "two-1.0.jar"]


def test_a_changed_jar_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match=r"org\.example:two:1\.0 was rejected"):
        ensure_jars(PINNED, tmp_path, Repository(tampered="two"))
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_broken_download_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"cannot download org\.example:one:1\.0: 503") as caught:
        ensure_jars(PINNED, tmp_path, Repository(missing="one"))
    assert "\n" not in str(caught.value)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_damaged_cache_is_replaced(tmp_path: Path) -> None:
    home = ensure_jars(PINNED, tmp_path, Repository())
    (home / "one-1.0.jar").write_bytes(b"half")
    assert (ensure_jars(PINNED, tmp_path, Repository()) / "one-1.0.jar").read_bytes() == CONTENT


def test_two_at_once_download_once(tmp_path: Path) -> None:
    repository = Repository()
    with ThreadPoolExecutor(4) as pool:
        homes = list(pool.map(lambda _: ensure_jars(PINNED, tmp_path, repository), range(4)))
    assert len(set(homes)) == 1
    assert sorted(repository.served) == ["one", "two"]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot store the jars of kafka-4"):
        ensure_jars(PINNED, tmp_path / "file" / "cache", Repository())
