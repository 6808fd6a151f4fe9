"""Storage walks into a real Kafka."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tomli_w

from consumers.testing.waiting import PATIENCE, until
from infra.schema_registry.topic_registry import open_registry
from infra.settings.file import load_settings
from infra.state.positions import SnapshotState, read_sources
from producers.publish.kafka_transaction import Relay
from producers.walk.events import Kind, WalkEncoder
from producers.walk.run import WalkIncomplete, WalksFailed, storage_walk_topic, walk
from schemas.errors import Fenced, Interrupted, SettingsError, Unavailable, UsageError
from schemas.events import Row
from schemas.topics import positions_topic
from tests.producers.folding import ops
from tests.producers.storages import drop_rights, hashed, repository, without_rights
from tests.producers.walk.gitaly_node import Node, serving
from tests.producers.walk.walks import PARTITIONS, Walks, ends

pytestmark = pytest.mark.stack

BATCH = 10_000
"""The size of the producer's transactions; see walk_producer."""


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    made = tmp_path / "storage-0"
    for project in range(20):
        repository(made, hashed(project))
    return made


@pytest.fixture
def walks(bootstrap_servers: str, prefix: str, storage: Path) -> Walks:
    return Walks(bootstrap_servers, prefix, {"gitaly-0": {"path": str(storage)}})


def paths(rows: Iterable[Row]) -> list[object]:
    return [row["relative_path"] for row in rows]


def test_walk_publishes_each_repository_and_an_end_per_partition(walks: Walks) -> None:
    (walked,) = walks.walk()
    assert (walked.storage, walked.walk_id, walked.repositories, walked.problems) == ("gitaly-0", 1, 20, 0)
    rows = walks.rows()
    assert paths(row for row in rows if row["kind"] == Kind.REPOSITORY) == sorted(map(hashed, range(20)))
    assert {(row["virtual_storage"], row["storage"], row["is_primary"]) for row in rows} == {
        ("default", "gitaly-0", True)
    }
    assert [row["kind"] for row in rows] == ["start"] * PARTITIONS + ["repository"] * 20 + ["end"] * PARTITIONS
    for end in walks.folded(kind="end"):
        assert (end["walk_id"], end["repositories"], end["problems"], end["complete"]) == (1, 20, 0, True)


def test_each_partition_begins_with_its_start_and_ends_with_its_end(walks: Walks) -> None:
    walks.walk()
    records = walks.records()
    for partition in range(PARTITIONS):
        own = [record.event.after for record in records if record.partition == partition and record.event]
        assert [row and row["kind"] for row in own] == ["start", *["repository"] * (len(own) - 2), "end"]
        for mark in (own[0], own[-1]):
            assert mark is not None
            assert (mark["relative_path"], mark["partitions"]) == (f"/{partition}", PARTITIONS)


def test_second_walk_comes_after_the_first_and_replaces_it(walks: Walks, storage: Path) -> None:
    walks.walk()
    repository(storage, "new.git")
    (walked,) = walks.walk()
    assert (walked.walk_id, walked.repositories) == (2, 21)
    assert [row["walk_id"] for row in walks.rows()] == [1] * (20 + 2 * PARTITIONS) + [2] * (21 + 2 * PARTITIONS)
    assert len(walks.folded(walk_id=2, kind="repository")) == 21
    assert walks.folded(walk_id=1) == []


def test_complete_walk_removes_vanished_repositories(walks: Walks, storage: Path) -> None:
    repository(storage, b"\xff.git")
    walks.walk()
    shutil.rmtree(storage / hashed(7))
    shutil.rmtree(os.fsencode(storage) + b"/\xff.git")
    (walked,) = walks.walk()
    assert (walked.repositories, walked.removed) == (19, 2)
    assert len(walks.folded()) == 19 + PARTITIONS
    records = walks.records()
    for path in (hashed(7), "/\\xff.git"):
        key = {"virtual_storage": "default", "storage": "gitaly-0", "relative_path": path}
        assert ops(records, **key) == ["r", "d", "tombstone"]
    (again,) = walks.walk()
    assert again.removed == 0
    repository(storage, hashed(7))
    assert walks.walk()[0].repositories == 20
    assert len(walks.folded(relative_path=hashed(7))) == 1


def test_walk_removes_nothing_of_another_storage(walks: Walks, storage: Path, tmp_path: Path) -> None:
    repository(tmp_path / "other", "a.git")
    walks.storages = {"gitaly-0": {"path": str(storage)}, "gitaly-1": {"path": str(tmp_path / "other")}}
    for _ in range(2):
        assert [walked.removed for walked in walks.walk(all_storages=True)] == [0, 0]
    assert len(walks.folded(kind="repository")) == 21


def test_open_transaction_of_another_storage_hides_nothing(walks: Walks) -> None:
    walks.walk()
    settings, topic = walks.settings, storage_walk_topic(walks.settings)
    other = WalkEncoder(
        open_registry(settings), topic, "default", "gitaly-9", walk_id=1, is_primary=False, partitions=PARTITIONS
    )
    before = ends(settings, topic)
    with closing(Relay(settings.kafka, f"{walks.prefix}.other", positions_topic(walks.prefix))) as relay:
        relay.send(topic, other.start())
        until(lambda: all(now > end for now, end in zip(ends(settings, topic), before, strict=True)), "its records")
        (walked,) = walks.walk()
        assert (walked.repositories, walked.removed) == (20, 0)
    assert len(walks.folded(kind="repository", walk_id=2)) == 20


def test_names_of_any_bytes_are_events_or_reported_by_name(walks: Walks, storage: Path) -> None:
    for name in (b"a\nb.git", b'it\'s "quoted".git', b"\xff\xfe.git"):
        repository(storage, name)
    (walked,) = walks.walk()
    assert (walked.repositories, walked.problems) == (22, 1)
    assert {"a\nb.git", 'it\'s "quoted".git'} <= set(paths(walks.folded(kind="repository")))
    (problem,) = walks.folded(kind="problem")
    assert (problem["relative_path"], problem["detail"]) == (
        "/\\xff\\xfe.git",
        "the name is not valid UTF-8, or contains NUL",
    )
    assert [end["complete"] for end in walks.folded(kind="end")] == [True] * PARTITIONS


def test_unreadable_directory_makes_the_walk_incomplete(bootstrap_servers: str, prefix: str) -> None:
    with without_rights() as storage:
        for path in ("a.git", "closed/b.git", "d.git"):
            repository(storage, path)
        walks = Walks(bootstrap_servers, prefix, {"gitaly-0": {"path": str(storage)}})
        walks.walk()
        (storage / "closed").chmod(0)
        drop_rights()
        with pytest.raises(
            WalkIncomplete, match=r"1 directories of default/gitaly-0 could not be read.*'closed'"
        ) as caught:
            walks.walk()
    assert caught.value.exit_code == 1
    # Rows of an earlier walk in that directory stay: the repositories may still exist.
    assert paths(walks.folded(kind="repository")) == unordered(["a.git", "closed/b.git", "d.git"])
    assert [(row["relative_path"], row["detail"]) for row in walks.folded(kind="problem")] == [
        ("closed", "Permission denied")
    ]
    ends = walks.folded(kind="end")
    assert {(end["complete"], end["repositories"], end["problems"]) for end in ends} == {(False, 2, 1)}


class unordered(list[object]):
    """A list that equals another with the same items."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list) and sorted(map(str, self)) == sorted(map(str, other))

    __hash__ = None


def test_failing_storage_does_not_stop_the_others(walks: Walks, storage: Path) -> None:
    walks.storages = {
        "gitaly-0": {"path": str(storage / "missing")},
        "gitaly-1": {"path": str(storage)},
        "gitaly-2": {"path": str(storage / "missing too")},
    }
    with pytest.raises(WalksFailed) as caught:
        walks.walk(all_storages=True)
    assert caught.value.exit_code == 1
    assert "2 of 3 storages of default failed: gitaly-0 (storage " in str(caught.value)
    assert "gitaly-2" in str(caught.value)
    assert {row["storage"] for row in walks.folded(kind="end")} == {"gitaly-1"}
    assert {row["is_primary"] for row in walks.folded(storage="gitaly-1")} == {False}
    assert len(walks.folded(storage="gitaly-1", kind="repository")) == 20


def test_only_the_primary_is_walked_unless_asked(walks: Walks, storage: Path) -> None:
    walks.storages = {"gitaly-0": {"path": str(storage)}, "gitaly-1": {"path": str(storage / "missing")}}
    walks.walk()
    assert {row["storage"] for row in walks.rows()} == {"gitaly-0"}


def test_each_storage_has_its_own_order(walks: Walks, storage: Path) -> None:
    walks.storages = {"gitaly-0": {"path": str(storage)}, "gitaly-1": {"path": str(storage)}}
    walks.walk()
    first, second = walks.walk(all_storages=True)
    assert (first.storage, first.walk_id) == ("gitaly-0", 2)
    assert (second.storage, second.walk_id) == ("gitaly-1", 1)
    assert len(walks.folded(kind="end")) == 2 * PARTITIONS


def test_missing_storage_has_no_end(walks: Walks, storage: Path) -> None:
    walks.storages = {"gitaly-0": {"path": str(storage / "missing")}}
    with pytest.raises(Unavailable, match="cannot be read"):
        walks.walk()
    assert {row["kind"] for row in walks.rows()} == {"start"}


@dataclass
class Halting:
    """A storage of a Gitaly node whose first walk halts after a batch; later walks complete."""

    halted: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    calls: int = 0

    def __call__(self) -> Iterator[bytes]:
        self.calls += 1
        halting = self.calls == 1
        for number in range(BATCH + 5):
            if halting and number == BATCH:
                self.halted.set()
                self.released.wait(PATIENCE)
            name = b"%d.git" % number
            yield b"\x0a" + bytes((len(name),)) + name


@contextmanager
def halting_node(walks: Walks) -> Iterator[Halting]:
    halting = Halting()
    with serving(Node({"gitaly-0": halting}, token="t")) as port:
        walks.storages = {"gitaly-0": {"address": f"tcp://127.0.0.1:{port}", "token": "t"}}
        try:
            yield halting
        finally:
            halting.released.set()


def found_so_far(walks: Walks) -> SnapshotState:
    return read_sources(walks.settings)["default"].snapshots["gitaly-0"]


@pytest.mark.long
def test_killed_walk_has_no_end_and_the_next_restarts(walks: Walks, tmp_path: Path) -> None:
    walks.walk()
    with halting_node(walks) as halting:
        child = start_produce(walks.config(tmp_path))
        try:
            until(lambda: halting.halted.is_set() or child.poll() is not None, "the second walk")
            until(lambda: found_so_far(walks).rows > 20 or child.poll() is not None, "a batch of it")
        finally:
            child.send_signal(signal.SIGKILL)
            _, log = child.communicate()
        assert child.returncode == -signal.SIGKILL, log
        # The end of the first walk is withdrawn: the second must not be taken for a complete walk.
        assert walks.folded(kind="end") == []
        found = found_so_far(walks)
        assert not found.done
        assert 20 < len(walks.rows(walk_id=2, kind="repository")) == found.rows
        assert [row["walk_id"] for row in walks.folded(kind="start")] == [2] * PARTITIONS
        (walked,) = walks.walk()
    assert (walked.walk_id, walked.repositories) == (3, BATCH + 5)
    assert [row["repositories"] for row in walks.folded(kind="end", walk_id=3)] == [BATCH + 5] * PARTITIONS
    assert len(walks.folded(kind="repository", walk_id=3)) == BATCH + 5


@pytest.mark.long
def test_later_of_two_walks_takes_over(walks: Walks) -> None:
    ended: list[BaseException] = []

    def older() -> None:
        try:
            walks.walk()
        except BaseException as error:
            ended.append(error)

    with halting_node(walks) as halting:
        thread = threading.Thread(target=older, daemon=True)
        thread.start()
        assert halting.halted.wait(PATIENCE)
        (walked,) = walks.walk()
        halting.released.set()
        thread.join(PATIENCE)
    (error,) = ended
    assert isinstance(error, Fenced)
    assert error.problem == "another walk of default/gitaly-0 took over"
    assert walked.walk_id == 2
    assert {row["walk_id"] for row in walks.rows(kind="end")} == {2}
    assert len(walks.folded(kind="repository", walk_id=2)) == BATCH + 5


@pytest.mark.long
def test_stopped_walk_has_no_end(walks: Walks) -> None:
    stop = threading.Event()
    ended: list[BaseException] = []

    def run() -> None:
        try:
            walk(walks.settings, "default", stop)
        except BaseException as error:
            ended.append(error)

    with halting_node(walks) as halting:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        assert halting.halted.wait(PATIENCE)
        stop.set()
        thread.join(PATIENCE)
        assert isinstance(ended[0], Interrupted)
    assert walks.rows(kind="end") == []
    stop.set()
    with pytest.raises(Interrupted):
        walk(walks.settings, "default", stop)


def test_status_sees_a_walk_as_a_snapshot_of_its_storage(walks: Walks) -> None:
    walks.walk()
    state = read_sources(walks.settings)["default"]
    assert state.stream is None
    snapshot = state.snapshots["gitaly-0"]
    assert (snapshot.rows, snapshot.done, snapshot.topic) == (20, True, f"{walks.prefix}.praefect.storage_walk")


def start_produce(config: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "headrace", "produce", "default", "--config", str(config), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def test_produce_walks_a_virtual_storage_once(walks: Walks, tmp_path: Path) -> None:
    child = start_produce(walks.config(tmp_path))
    _, log = child.communicate()
    assert child.returncode == 0, log
    assert '"repositories": 20' in log
    assert len(walks.folded(kind="end")) == PARTITIONS


def test_produce_reports_a_failed_walk_in_one_line(walks: Walks, tmp_path: Path) -> None:
    walks.storages = {"gitaly-0": {"path": str(tmp_path / "missing")}}
    child = start_produce(walks.config(tmp_path))
    _, log = child.communicate()
    assert child.returncode == 1
    assert log.splitlines()[-1].startswith(f"headrace: error: storage {tmp_path}/missing cannot be read: No such file")


def test_walk_has_nothing_to_start_over(walks: Walks, tmp_path: Path) -> None:
    child = start_produce(walks.config(tmp_path), "--start-over")
    _, log = child.communicate()
    assert child.returncode == 2
    assert "a walk always starts from the beginning" in log


def test_unknown_virtual_storage_error_names_the_known_ones(walks: Walks) -> None:
    with pytest.raises(UsageError, match=r"no virtual storage named 'other' in the settings \(configured: default\)"):
        walk(walks.settings, "other", threading.Event())


def test_name_is_a_database_or_a_virtual_storage_and_not_both(walks: Walks, tmp_path: Path) -> None:
    databases = {"default": {"dsn": "postgresql://h/d", "gitlab_schemas": ["praefect"]}}
    file = tmp_path / "headrace.toml"
    file.write_text(tomli_w.dumps({**walks.values, "databases": databases}))
    with pytest.raises(
        SettingsError, match="virtual_storages: default is also the name of a database; rename the database"
    ):
        load_settings(file)
