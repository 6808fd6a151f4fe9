"""The command line as a process: help, and every bad input of a user ends in one line, with nothing left running."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

import headrace
from infra.settings.file import load_settings
from infra.stack.postgresql.server import EmbeddedPostgres
from infra.stack.processes.keeper import Keeper, wait_gone
from tests.conftest import Database
from tests.shells import SECRET, Ended, Shell

COMMANDS = sorted(headrace.COMMANDS)
TABLE = (
    "CREATE TABLE public.container_repositories (id bigint PRIMARY KEY, migration_state text,"
    " migration_skipped_reason smallint); CREATE TABLE public.unmapped (id int)"
)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port without a listener, reserved during the test."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture(scope="module")
def plain_server() -> Iterator[EmbeddedPostgres]:
    """A server as it comes: without logical decoding, and with no limit to what a slot may retain."""
    directory = Path(tempfile.mkdtemp(prefix="headrace-test-"))
    directory.chmod(0o711)  # the server's own user passes through when the tests run as root
    keeper = Keeper(remove=directory)
    server = EmbeddedPostgres(
        directory / "postgres", keeper, fsync=False, settings={"wal_level": "replica", "max_slot_wal_keep_size": "-1"}
    )
    server.start()
    with server.connect() as connection:
        connection.execute(TABLE)
    yield server
    server.abandon()
    keeper.close()


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_explains(shell: Shell, command: str | None) -> None:
    ended = shell.call(*([command] if command else []), "--help")
    assert ended.code == 0
    assert ended.err == ""
    assert "Usage: headrace " in ended.out
    for line in COMMANDS if command is None else ["--help"]:
        assert line in ended.out
    explained = [line for line in ended.out.splitlines() if line.strip() and line.strip()[0].isalpha()]
    assert len(explained) >= 2, "usage, and a sentence"


def test_without_a_command_it_shows_its_help(shell: Shell) -> None:
    assert shell.run() == shell.call("--help")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command 'nonsense'; see `headrace --help`"),
        (["produce"], "Missing argument 'SOURCE'; see `headrace produce --help`"),
        (["status", "--jsom"], "No such option: --jsom (Possible options: --json); see `headrace status --help`"),
        (["demo", "--rows", "few"], "'--rows'"),
        (["up", "--kafka-port", "99999"], "'--kafka-port'"),
    ],
)
def test_invalid_command_is_refused(shell: Shell, arguments: list[str], said: str) -> None:
    assert said in shell.call(*arguments).error(2)


@pytest.mark.parametrize("arguments", [["check"], ["consume", "skip_resets"]])
def test_no_settings_file(shell: Shell, arguments: list[str]) -> None:
    line = shell.call(*arguments).error(2)
    assert "settings file headrace.toml does not exist; write one with `headrace init`" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[kafka]\nbootstrap_server = "x"', "unknown key kafka.bootstrap_server, did you mean bootstrap_servers?"),
        ("[kafka]\npartitions = 0", "kafka.partitions: must be 1 or more"),
        (f'[databases.main]\ndsn = "{SECRET} x"\ngitlab_schemas = ["gitlab_main"]', "databases.main.dsn: not a Postgr"),
        ("[kafka", "settings file headrace.toml is not TOML: "),
    ],
)
def test_invalid_settings_file_is_refused(shell: Shell, text: str, said: str) -> None:
    shell.write(text)
    line = shell.call("check").error(2)
    assert "settings file headrace.toml" in line
    assert said in line


def test_a_settings_file_that_cannot_be_read(shell: Shell) -> None:
    (shell.directory / "headrace.toml").mkdir()
    assert "settings file headrace.toml cannot be read: Is a directory" in shell.call("check").error(2)


def test_invalid_variable_is_refused(shell: Shell) -> None:
    shell.write("")
    line = shell.call("check", HEADRACE_KAFKA__PARTITIONS="many").error(2)
    assert "environment variable HEADRACE_KAFKA__PARTITIONS" in line


def test_an_unknown_source_or_migration(shell: Shell) -> None:
    shell.settings("postgresql://u@h/d", "127.0.0.1:1")
    assert "no database named 'mian' in the settings (configured: main)" in shell.call("produce", "mian").error(2)
    for command in ("consume", "verify"):
        line = shell.call(command, "skip_reset").error(2)
        assert "unknown migration 'skip_reset'; did you mean skip_resets?" in line


def test_an_unknown_option_of_a_migration(shell: Shell) -> None:
    shell.settings("postgresql://u@h/d", "127.0.0.1:1")
    with (shell.directory / "headrace.toml").open("a") as file:
        file.write("[migrations.skip_resets]\nbatchsize = 7\n")
    assert "batchsize" in shell.call("consume", "skip_resets").error(2)


@pytest.mark.parametrize("wrong", ["host", "password", "database", "port"])
def test_invalid_dsn_is_refused(
    shell: Shell, database: Database, bootstrap_servers: str, closed_port: int, wrong: str
) -> None:
    parts = conninfo_to_dict(database.dsn)
    user, password, host, port, name = (str(parts[key]) for key in ("user", "password", "host", "port", "dbname"))
    host = "host.invalid" if wrong == "host" else host
    password = SECRET if wrong == "password" else password
    port = str(closed_port) if wrong == "port" else port
    name = "not_there" if wrong == "database" else name
    shell.settings(f"postgresql://{user}:{password}@{host}:{port}/{name}", bootstrap_servers)
    code = 1 if wrong == "port" else 2
    for arguments in (["produce", "main"], ["verify", "skip_resets"]):
        line = shell.run(*arguments).error(code)
        assert f"PostgreSQL at {host}:{port}/{name} " in line
        assert "dsn" in line
        assert password not in line
    if wrong != "port":
        # A server that does not answer may come back, which is what a consumer waits for.
        assert f"PostgreSQL at {host}:{port}/{name} " in shell.run("consume", "skip_resets").error(code)


@pytest.mark.long
def test_a_broker_that_is_down(shell: Shell, database: Database, closed_port: int) -> None:
    with database.connect() as connection:
        connection.execute(TABLE)
    shell.settings(database.dsn, f"127.0.0.1:{closed_port}")
    commands = [["produce", "main"], ["consume", "skip_resets"], ["status"], ["replay", "skip_resets"]]
    for process in [shell.start(*arguments) for arguments in commands]:
        out, err = process.communicate(timeout=400)
        line = Ended(process.returncode, out, err).error(1)
        assert f"Kafka at 127.0.0.1:{closed_port} does not answer" in line
        assert "kafka.bootstrap_servers in the settings" in line
    assert wait_gone(shell.left(), 120.0) == []


def test_wal_level_is_not_logical(shell: Shell, plain_server: EmbeddedPostgres, bootstrap_servers: str) -> None:
    shell.settings(plain_server.dsn(), bootstrap_servers)
    line = shell.run("produce", "main").error(3)
    assert "source main: wal_level is replica, not logical" in line
    assert "ALTER SYSTEM SET wal_level = 'logical' and restart" in line


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            "public.not_there",
            "databases.main.tables names public.not_there, but the database has no such ordinary table",
        ),
        ("public.unmapped", 'no gitlab schema is known for table public.unmapped; add "public.unmapped" ='),
    ],
)
def test_a_table_that_is_missing_or_unmapped(
    shell: Shell, database: Database, bootstrap_servers: str, table: str, said: str
) -> None:
    with database.connect() as connection:
        connection.execute(TABLE)
    shell.settings(database.dsn, bootstrap_servers, [table])
    assert said in shell.run("produce", "main").error(3)


def test_check_lists_everything_that_is_missing(
    shell: Shell, plain_server: EmbeddedPostgres, bootstrap_servers: str
) -> None:
    shell.settings(plain_server.dsn(), bootstrap_servers, ["public.unmapped"])
    ended = shell.run("check")
    assert (ended.code, ended.err) == (3, "")
    problems = ["wal_level is replica", "max_slot_wal_keep_size is unlimited", "no gitlab schema is known"]
    assert all(any(problem in line for line in ended.out.splitlines()) for problem in problems), ended.out

    as_json = shell.run("check", "--json")
    assert as_json.code == 3
    findings = json.loads(as_json.out)["findings"]
    assert all(finding.keys() == {"where", "problem", "remedy", "shown"} for finding in findings)
    assert {finding["where"] for finding in findings} == {"databases.main"}
    assert [problem for problem in problems if not any(problem in each["problem"] for each in findings)] == []


def test_check_finds_nothing(shell: Shell, database: Database, bootstrap_servers: str) -> None:
    with database.connect() as connection:
        connection.execute(TABLE)
    shell.settings(database.dsn, bootstrap_servers)
    ended = shell.run("check")
    assert (ended.code, ended.err) == (0, "")
    warning, *_, last = ended.out.splitlines()
    assert warning.startswith("kafka: WARNING: Kafka has one broker: ")
    assert last == "ready: Kafka; database main"
    assert json.loads(shell.run("check", "--json").out)["findings"] == []


def test_the_version_is_the_distributions(shell: Shell) -> None:
    assert shell.run("--version") == Ended(0, f"headrace {version('headrace')}\n", "")


def test_init_writes_settings_that_load_and_never_overwrites(shell: Shell) -> None:
    ended = shell.call("init")
    assert (ended.code, ended.err) == (0, "")
    written = (shell.directory / "headrace.toml").read_text()
    assert load_settings(shell.directory / "headrace.toml").databases.keys() == {"main"}
    assert "headrace.toml exists already" in shell.call("init").error(3)
    assert (shell.directory / "headrace.toml").read_text() == written
    assert "CREATE PUBLICATION" in shell.call("init", "--sql").out


@pytest.mark.parametrize("server", ["kafka", "postgres"])
def test_up_with_a_port_that_is_taken(shell: Shell, server: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, tempfile.TemporaryDirectory() as place:
        port = taken.getsockname()[1]
        line = shell.call("up", "--dir", place, f"--{server}-port", port).error(2)
    assert f"port {port} for" in line
    assert f"choose another port with --{server}-port" in line


def test_up_with_no_disk_space(shell: Shell) -> None:
    place = shell.directory / "small"
    place.mkdir()
    # A disk of its own, in a namespace of its own: with what every Linux has, and no right on the machine.
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount += [f'mount -t tmpfs -o size=16m tmpfs "{place}" && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs Linux with user namespaces, for a small disk")
    line = shell.run("up", "--dir", place, before=mount).error(2)
    assert f"no space left in {place}" in line
    assert "choose another directory with --dir" in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device without space")
def test_output_to_a_full_disk(shell: Shell) -> None:
    shell.call("init")
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "headrace", "init", "--sql"],
            cwd=shell.directory,
            env=shell.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert "no space left to write the output" in Ended(process.returncode, "", process.stderr).error(1)


def test_closed_output_pipe_is_not_an_error(shell: Shell) -> None:
    shell.call("init")
    process = shell.start("init", "--sql")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as err:
        assert err.read() == ""
    assert process.wait(180) == 1


def test_unconfirmed_command_changes_nothing(shell: Shell) -> None:
    shell.settings("postgresql://u@h/d", "127.0.0.1:1")
    ended = shell.run("produce", "main", "--start-over")
    assert ended.code == 1
    assert ended.err.splitlines()[-1].endswith("headrace: error: not confirmed; nothing was changed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_service_that_waits_stops_in_order(
    shell: Shell, database: Database, bootstrap_servers: str, number: signal.Signals
) -> None:
    with database.connect() as connection:
        connection.execute(TABLE)
    shell.settings(database.dsn, bootstrap_servers)
    process = shell.start("consume", "skip_resets")
    assert process.stderr is not None
    assert any("waiting for the producer" in line for line in process.stderr)
    process.send_signal(number)
    ended = shell.end(process)
    assert ended.code == 0
    assert "Traceback" not in ended.err
