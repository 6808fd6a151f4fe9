"""An upgrade under load: consumers and a producer of this version, then of the next one, with formats one higher.

Everything happens in one run, which the tests inspect, because starting services takes long.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consumers.testing.waiting import PATIENCE, until
from infra.kafka.topics import LogReader
from infra.settings.file import load_settings
from infra.settings.model import Settings
from infra.stack import Stack
from infra.state.positions import read_sources
from schemas import formats
from schemas.topics import positions_topic
from tests.conftest import new_database
from tests.consumers.container_repositories import TABLE, TOO_MANY_TAGS, fill, states, write_settings, written
from tests.consumers.services import ROOT
from tests.upgrades.next_version import PROGRAM
from tests.upgrades.release import settings_file
from tests.upgrades.states import RELEASED, restore, save

pytestmark = pytest.mark.stack

PRESENT = "headrace"
NEXT = "tests.upgrades.next_version"


@dataclass
class Upgraded:
    """What happened: exit codes and logs by service name, and the stored state at several moments."""

    settings: Settings
    config: Path
    saved: Path
    connection: psycopg.Connection[Any]
    codes: dict[str, int] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    before: list[dict[str, Any]] = field(default_factory=list)
    after: list[dict[str, Any]] = field(default_factory=list)
    resets_before: int = 0
    rows: int = 0


class Writer:
    """An application that inserts rows to be reset, and changes others, until it is stopped."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.rows = 0
        self._connection = connection
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        while not self._stop.wait(0.01):
            fill(self._connection, {self.rows + each: TOO_MANY_TAGS for each in range(5)})
            self.rows += 5

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)


def start(made: ExitStack, log: Path, program: str, *arguments: str) -> subprocess.Popen[bytes]:
    file = made.enter_context(log.open("ab"))
    process = subprocess.Popen(
        [sys.executable, "-m", program, *arguments], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
    )
    made.callback(process.wait)
    made.callback(process.kill)
    return process


def stored(settings: Settings) -> list[dict[str, Any]]:
    """Return the last record of each key of the positions topic."""
    found: dict[bytes, dict[str, Any]] = {}
    for message in LogReader(settings.kafka, positions_topic(settings.prefix)).read():
        found[message.key() or b""] = json.loads(message.value() or b"{}")
    return list(found.values())


def format_of(connection: psycopg.Connection[Any]) -> object:
    return connection.execute("SELECT format, format_by FROM headrace.database").fetchone()


@pytest.fixture(scope="module")
def upgraded(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    folder = tmp_path_factory.mktemp("upgrade")
    with ExitStack() as made:
        database = made.enter_context(new_database(stack.postgres))
        config = settings_file(folder / "headrace.toml", f"u{database.name[-6:]}", stack, database.dsn)
        connection = database.connect()
        connection.execute(TABLE)
        run = Upgraded(load_settings(config), config, folder / "saved", connection)
        play(made, folder, run, Writer(database.connect()))
        yield run


def play(made: ExitStack, folder: Path, run: Upgraded, writer: Writer) -> None:
    produce = ("produce", "main", "--config", str(run.config))
    consume = ("consume", "skip_resets", "--config", str(run.config))

    def resets() -> int:
        return len(written(run.connection))

    def service(name: str, program: str, arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
        return start(made, folder / f"{name}.log", program, *arguments)

    def ends(name: str, process: subprocess.Popen[bytes]) -> None:
        run.codes[name] = process.wait(PATIENCE)
        run.logs[name] = (folder / f"{name}.log").read_text()

    def shows(condition: Callable[[], bool], what: str, *running: str) -> None:
        try:
            until(condition, what)
        except AssertionError as error:
            logs = "".join((folder / f"{name}.log").read_text()[-2000:] for name in running)
            raise AssertionError(f"{error}\n{logs}") from None

    older = {
        "old producer": service("old producer", PRESENT, produce),
        "old consumer": service("old consumer", PRESENT, consume),
        "other old consumer": service("other old consumer", PRESENT, consume),
    }
    shows(lambda: resets() > 50, "resets by the present version", *older)
    run.before = stored(run.settings)
    save(run.config, run.saved)
    newer = [service("new consumer", NEXT, consume)]
    for name, process in older.items():
        ends(name, process)
    run.resets_before = resets()
    newer.append(service("new producer", NEXT, produce))
    shows(lambda: resets() > run.resets_before + 50, "resets by the next version", "new consumer", "new producer")
    writer.stop()
    run.rows = writer.rows
    shows(lambda: resets() >= run.rows, "all rows to be reset", "new consumer", "new producer")
    for process in newer:
        process.terminate()
    for name, process in zip(("new consumer", "new producer"), newer, strict=True):
        ends(name, process)
    run.after = stored(run.settings)


def test_upgrade_resets_each_row_once(upgraded: Upgraded) -> None:
    assert set(states(upgraded.connection).values()) == {("default", None)}
    assert sorted(written(upgraded.connection)) == list(range(upgraded.rows))
    assert [upgraded.codes[name] for name in ("new consumer", "new producer")] == [0, 0]


def test_older_services_end_with_an_error_when_the_first_newer_one_starts(upgraded: Upgraded) -> None:
    for name in ("old producer", "old consumer", "other old consumer"):
        assert upgraded.codes[name] == 3, upgraded.logs[name]
        assert re.search(rf"has format \d+, written by headrace {re.escape(PROGRAM)}", upgraded.logs[name])
        assert "Run the version of headrace that wrote it, or a later one" in upgraded.logs[name]


def test_older_versions_state_was_upgraded(upgraded: Upgraded) -> None:
    assert {record["format"] for record in upgraded.before} == {formats.POSITIONS.version}
    assert {record["format"] for record in upgraded.after} == {formats.POSITIONS.version + 1}
    assert all("confirmed_lsn" in record or "chunks_done" in record for record in upgraded.before)
    assert all("flushed_lsn" in record or "chunks_copied" in record for record in upgraded.after)
    assert format_of(upgraded.connection) == (formats.TABLES.version + 1, PROGRAM)
    assert upgraded.connection.execute("SELECT sum(read_up_to) > 0 FROM headrace.progress").fetchone() == (True,)


@pytest.mark.parametrize(
    "arguments",
    [
        ("consume", "skip_resets"),
        ("produce", "main"),
        ("pause", "skip_resets"),
        ("status",),
        ("check",),
    ],
)
def test_older_version_refuses_what_the_newer_one_wrote(upgraded: Upgraded, arguments: tuple[str, ...]) -> None:
    before = stored(upgraded.settings)
    done = subprocess.run(
        [sys.executable, "-m", PRESENT, *arguments, "--config", str(upgraded.config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    assert f"written by headrace {PROGRAM}" in " ".join(output.split()), output
    assert done.returncode == 3, output
    assert format_of(upgraded.connection) == (formats.TABLES.version + 1, PROGRAM)
    assert stored(upgraded.settings) == before


def require_readable(state: Path, folder: Path, stack: Stack, program: str) -> None:
    """Fail unless `program` resumes from a state saved as files: its status shows what the files have."""
    with ExitStack() as made:
        database = made.enter_context(new_database(stack.postgres))
        written = tomllib.loads((state / "headrace.toml").read_text())
        written |= {
            "prefix": f"r{database.name[-6:]}",
            "kafka": {"bootstrap_servers": stack.endpoints.bootstrap_servers},
        }
        written["databases"]["main"]["dsn"] = database.dsn
        config = write_settings(folder / "headrace.toml", written)
        connection = database.connect()
        restore(state, load_settings(config), connection)
        for arguments in (("pause", "skip_resets"), ("status", "--json")):
            done = subprocess.run(
                [sys.executable, "-m", program, *arguments, "--config", str(config)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        (shown,) = [each for each in json.loads(done.stdout)["migrations"] if each["name"] == "skip_resets"]
        rows = json.loads((state / "rows.json").read_text())["progress"]
        assert (shown["state"], shown["applied"]) == ("paused", sum(row["applied"] for row in rows))
        (source,) = json.loads(done.stdout)["sources"]
        assert source["name"] == "main"
        assert shown["dead_letters"] == sum(row["dead_letters"] for row in rows)


def test_next_version_resumes_from_state_saved_as_files(upgraded: Upgraded, stack: Stack, tmp_path: Path) -> None:
    require_readable(upgraded.saved, tmp_path, stack, NEXT)


@pytest.mark.parametrize("state", sorted(RELEASED.glob("*")), ids=lambda state: state.name)
def test_this_version_resumes_from_the_state_of_a_release(state: Path, stack: Stack, tmp_path: Path) -> None:
    require_readable(state, tmp_path, stack, PRESENT)


def test_positions_of_the_newer_version_are_refused_when_they_are_read(upgraded: Upgraded) -> None:
    newer = rf"record main.* of the positions topic has format {formats.POSITIONS.version + 1}, written by"
    with pytest.raises(formats.NewerFormat, match=newer):
        read_sources(upgraded.settings)
