"""`headrace up` and `headrace down`, as programs of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # it ships no types
import psycopg
import pytest

from infra.settings.file import load_settings
from infra.stack import background
from infra.stack.embedded import require_space, translated
from infra.stack.processes.keeper import runs
from schemas.errors import UsageError
from tests.documents import hold

pytestmark = pytest.mark.stack
ROOT = Path(__file__).parents[3]
# What headrace.py does, without the rest of it: mount the two commands, print an error as one line.
PROGRAM = """
import sys
import typer
from headrace import load_sample
from infra.stack.up_command import down, up_with
from schemas.errors import HeadraceError
app = typer.Typer()
app.command()(up_with(load_sample))
app.command()(down)
try:
    app()
except HeadraceError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def start(*words: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def headrace(*words: str | Path) -> tuple[int, str, str]:
    process = start(*words)
    out, err = process.communicate(timeout=400)
    hold(words, out)
    return process.returncode, out, err


def up(directory: Path, *words: str) -> dict[str, Any]:
    code, out, err = headrace("up", "--json", "--dir", directory, *words)
    assert code == 0, err
    said: dict[str, Any] = json.loads(out)
    return said


@pytest.fixture
def directory() -> Iterator[Path]:
    """A place for a stack that root's PostgreSQL user can enter, as it can't pytest's own."""
    with tempfile.TemporaryDirectory(prefix="headrace-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name) / "stack"
        background.bring_down(Path(name) / "stack", remove_data=True)


def test_up_and_down_are_idempotent_and_keep_data_and_ports(directory: Path) -> None:
    first = up(directory)
    assert set(first) == {"bootstrap_servers", "dsn", "pid_file", "data_dir", "pids"}
    assert Path(first["pid_file"]).stat().st_mode & 0o777 == 0o600
    assert up(directory) == first
    with psycopg.connect(first["dsn"], autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS x")
        # Only the tests' own servers are without.
        assert connection.execute("SHOW fsync").fetchone() == ("on",)

    assert headrace("down", "--dir", directory)[:2] == (0, f"stopped the stack in {directory}\n")
    assert not any(psutil.pid_exists(pid) and runs(psutil.Process(pid)) for pid in first["pids"].values())
    assert headrace("down", "--dir", directory)[:2] == (0, f"nothing is up in {directory}\n")

    again = up(directory)
    assert again["dsn"] == first["dsn"]
    assert again["bootstrap_servers"] == first["bootstrap_servers"]
    with psycopg.connect(again["dsn"]) as connection:
        assert connection.execute("SELECT x FROM kept").fetchall() == [(1,)]

    assert headrace("down", "--dir", directory, "--remove-data")[0] == 0
    assert not directory.exists()


@pytest.mark.long
def test_sample_is_created_once_and_the_written_settings_capture_it(directory: Path, tmp_path: Path) -> None:
    config, other = tmp_path / "headrace.toml", tmp_path / "other.toml"
    dsn = up(directory, "--sample", "--write-settings", "--config", str(config))["dsn"]
    tables = load_settings(config).database("main").tables
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = [connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() for table in tables]
        assert rows == [(200_000,), (200,), (50_000,)]
        connection.execute("DELETE FROM public.container_repositories WHERE id = 1")

        up(directory, "--sample", "--write-settings", "--config", str(other))
        assert other.read_text() == config.read_text()
        assert connection.execute("SELECT count(*) FROM public.container_repositories").fetchone() == (199_999,)

        connection.execute("DROP SCHEMA proof CASCADE")
    code, out, err = headrace("up", "--sample", "--dir", directory)
    assert (code, out) == (3, "")
    assert 'the sample\'s names: relation "namespaces" already exists; drop them, or leave out --sample' in err


@pytest.mark.long
def test_up_after_a_crash_cleans_up_and_starts_again(directory: Path) -> None:
    first = up(directory)
    os.kill(first["pids"]["kafka"], signal.SIGKILL)
    again = up(directory)
    assert set(again["pids"].values()).isdisjoint(first["pids"].values())
    assert again["dsn"] == first["dsn"]


@pytest.mark.long
def test_a_stack_of_three_brokers_stays_one(directory: Path) -> None:
    refused = headrace("up", "--dir", directory, "--brokers", "2")
    assert refused[0] == 2
    assert refused[2].startswith("a stack has 1, 3, 5 brokers, not 2; ")
    first = up(directory, "--brokers", "3")
    assert set(first["pids"]) == {"kafka-1", "kafka-2", "kafka-3", "postgres"}
    assert len(first["bootstrap_servers"].split(",")) == 3
    assert up(directory) == first
    other = f"the stack in {directory} has 3 brokers, not 1; "
    assert headrace("up", "--dir", directory, "--brokers", "1")[2].startswith(other)
    assert headrace("down", "--dir", directory)[0] == 0
    assert not any(psutil.pid_exists(pid) and runs(psutil.Process(pid)) for pid in first["pids"].values())
    assert headrace("up", "--dir", directory, "--brokers", "1")[2].startswith(other)


def test_concurrent_calls_start_one_stack(directory: Path) -> None:
    both = [start("up", "--json", "--dir", directory) for _ in range(2)]
    said = [json.loads(process.communicate(timeout=400)[0]) for process in both]
    assert said[0] == said[1]


def test_a_reused_process_id_is_never_killed(directory: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as innocent:
        directory.mkdir()
        stale = {
            "bootstrap_servers": "127.0.0.1:1",
            "dsn": "postgresql://127.0.0.1:1/x",
            "data_dir": str(directory),
            "processes": {"kafka": {"pid": innocent.pid, "started": psutil.Process(innocent.pid).create_time() - 60}},
        }
        background.write_private(directory / background.RECORD, stale)
        assert headrace("down", "--dir", directory)[:2] == (0, f"nothing is up in {directory}\n")
        assert innocent.poll() is None
        innocent.kill()


@pytest.mark.parametrize(("option", "server"), [("--kafka-port", "Kafka"), ("--postgres-port", "PostgreSQL")])
def test_a_taken_port_is_one_line_and_leaves_nothing_running(directory: Path, option: str, server: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = headrace("up", "--dir", directory, option, str(port))
    assert (code, out) == (2, "")
    assert err.startswith(f"port {port} for {server} is taken by another program; ")
    assert option in err
    assert err.count("\n") == 1
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if any(str(directory) in w for w in p.info["cmdline"] or ())
    ]


def test_a_directory_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = headrace("up", "--dir", tmp_path / "file")
    assert code == 2
    assert err == f"{tmp_path / 'file'} is not a directory; choose another directory with --dir\n"


def test_too_little_space_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"no space left in {tmp_path}"):
        require_space(tmp_path, 1 << 62)


def test_space_that_runs_out_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no space left"):
        raise translated(OSError(28, "No space left on device"), tmp_path)
