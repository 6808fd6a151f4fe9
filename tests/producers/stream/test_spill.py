"""Transactions stored on disk, with full and unwritable disks."""

from __future__ import annotations

import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.stream.spill import Spill, SpillDirectory, SpillFailed


def message(xid: int, content: bytes, kind: bytes = b"I") -> bytes:
    return kind + struct.pack("!I", xid) + content


def read(spill: Spill) -> list[bytes]:
    return [message for block in spill.read() for message in block]


@given(
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from((0, 1, 3, 500, 40_000, 70_000))), max_size=40),
    st.sets(st.integers(2, 4)),
)
def test_added_messages_are_read_without_aborted_ones(
    tmp_path_factory: pytest.TempPathFactory, added: list[tuple[int, int]], aborted: set[int]
) -> None:
    with SpillDirectory(tmp_path_factory.getbasetemp()) as directory:
        spill = directory.transaction(1)
        messages = [message(xid, b"%d" % number * size) for number, (xid, size) in enumerate(added)]
        for each in messages:
            spill.add(each)
        for xid in aborted:
            spill.abort(xid)
        kept = [each for (xid, _), each in zip(added, messages, strict=True) if xid not in aborted]
        assert read(spill) == kept
        assert read(spill) == kept
        assert spill.size == sum(map(len, messages)) + 4 * len(messages)
        spill.discard()
        assert (read(spill), spill.size, list(directory.path.iterdir())) == ([], 0, [])


def test_message_of_any_size_is_read_back(tmp_path: Path) -> None:
    with SpillDirectory(tmp_path) as directory:
        spill = directory.transaction(7)
        messages = [message(7, b"x" * size) for size in (5_000_000, 1, 3_000_000, 0, 1_048_576, 1_048_563, 64)]
        for each in messages:
            spill.add(each)
        assert read(spill) == messages


def test_parts_are_about_a_megabyte(tmp_path: Path) -> None:
    with SpillDirectory(tmp_path) as directory:
        spill = directory.transaction(7)
        for number in range(50_000):
            spill.add(message(7, b"%0100d" % number))
        parts = [sum(map(len, part)) for part in spill.read()]
    assert len(parts) > 4
    assert max(parts) < 2 << 20


def test_origin_has_no_subtransaction(tmp_path: Path) -> None:
    with SpillDirectory(tmp_path) as directory:
        spill = directory.transaction(7)
        origin = message(9, b"not an xid", kind=b"O")
        spill.add(origin)
        spill.abort(9)
        assert read(spill) == [origin]


def test_little_stays_in_memory_and_no_file_after_discard(tmp_path: Path) -> None:
    with SpillDirectory(tmp_path / "new" / "place") as directory:
        small, large = directory.transaction(1), directory.transaction(2)
        small.add(message(1, b"x" * 100))
        large.add(message(2, b"x" * 100_000))
        assert [path.name for path in directory.path.iterdir()] == ["2"]
        assert directory.path.stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "new" / "place").iterdir()) == []
    directory.close()


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow past `size` bytes: the system refuses the write, as it does on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


def test_full_disk_error_names_directory_and_size(tmp_path: Path) -> None:
    with SpillDirectory(tmp_path) as directory:
        spill = directory.transaction(7)
        for _ in range(150):
            spill.add(message(7, b"x" * 1_000))
        with full_disk(200_000), pytest.raises(SpillFailed) as caught:
            spill.add(message(7, b"x" * 100_000))
        assert str(caught.value).splitlines() == [
            f"{directory.path} has no space left: transaction 7 takes more than {spill.size} bytes; Free some space, or"
            " set databases.<name>.spill_directory, then start again: nothing is lost."
        ]
        assert spill.size == 150 * 1_009 + 100_009


def test_unusable_directory_is_refused_at_start(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SpillFailed, match="cannot hold large transactions"):
        SpillDirectory(file / "spill")


DIES = """
import os, signal, sys
from pathlib import Path
from producers.stream.spill import SpillDirectory
directory = SpillDirectory(Path(sys.argv[1]))
spill = directory.transaction(7)
spill.add(b"I" + bytes(100_000))
print(directory.path, flush=True)
sys.stdin.read()
"""


def test_directory_of_dead_process_is_removed_and_of_running_one_stays(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", DIES, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        text=True,
    ) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        with SpillDirectory(tmp_path) as mine:
            assert left.is_dir()
            process.kill()
            process.wait(180)
            assert (left / "7").stat().st_size > 100_000
            with SpillDirectory(tmp_path) as next_one:
                assert not left.exists()
                assert mine.path.is_dir()
                assert next_one.path.is_dir()
