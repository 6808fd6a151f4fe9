"""A command imports what it needs: its help none of what it runs with, and its start nothing of other commands."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import typer

import headrace
from tests.shells import Shell
from tests.waiting_commands import WAITING, configure

HEAVY = {
    "asyncio", "confluent_kafka", "fastapi", "fastavro", "jgo", "prometheus_client", "psutil", "psycopg", "pydantic",
    "rich", "ssl", "structlog", "uvicorn", "yaml",
}  # fmt: skip
"""What only a running command needs."""

PROGRAM = """
import json, sys
import headrace

found = {}
for words in json.loads(sys.argv[1]):
    sys.argv = ["headrace", *words]
    before = set(sys.modules)
    try:
        headrace.main()
    except SystemExit as ended:
        code = ended.code
    found[" ".join(words)] = [code, sorted(set(sys.modules) - before)]
print("imported", json.dumps(found), file=sys.stderr)
"""


def imported(words: Sequence[Sequence[str]], place: Path) -> dict[str, tuple[int, set[str]]]:
    """Run each command in one process; return exit code and newly imported modules of each."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(words)],
        cwd=place, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    last = ended.stderr.splitlines()[-1]
    return {name: (code, set(modules)) for name, (code, modules) in json.loads(last.removeprefix("imported ")).items()}


def commands() -> Iterator[tuple[str, ...]]:
    """Yield the words of each command and each command of a group."""
    for name, each in headrace.listed().items():
        command = each.load()
        if isinstance(command, typer.Typer):
            for one in command.registered_commands:
                assert one.callback is not None
                yield name, one.name or one.callback.__name__
        yield (name,)


def test_summaries_are_the_first_lines_of_the_commands() -> None:
    for name, each in headrace.listed().items():
        command = each.load()
        text = command.info.help if isinstance(command, typer.Typer) else command.__doc__
        assert isinstance(text, str), name
        assert text.splitlines()[0] == each.summary, name


def test_help_of_each_command_imports_nothing_that_only_its_run_needs(tmp_path: Path) -> None:
    words = [("--help",), *((*each, "--help") for each in commands())]
    found = imported(words, tmp_path)
    assert len(found) == len(words)
    assert {code for code, _ in found.values()} == {0}
    wrong = {name: modules & HEAVY for name, (_, modules) in found.items()}
    assert {name: modules for name, modules in wrong.items() if modules} == {}


NEVER = {"jgo", "rich", "cryptography", "httpx2", "authlib", "grpc"}
"""What no start needs: help and tables, certificates, a registry's client, Gitaly, the embedded stack."""

LATER = NEVER | {
    "consumers.gitserver.worker", "consumers.runtime.consumer", "fastavro", "http.server", "prometheus_client",
    "producers.session.opening", "producers.walk.run",
}  # fmt: skip
"""What no command needs before a server has answered: what it reads, applies and serves with."""

OTHERS = {
    "consumers.migrations.rehash_moves",
    "consumers.gitserver",
    "consumers.praefect",
    "consumers.declared.sections",
}
"""What other migrations need than the named one, and migrations that the settings declare."""

CONSUMER = {"producers", "confluent_kafka", *OTHERS}
EARLY = {
    "check": {"producers.session", "consumers.runtime"},
    "consume skip_resets": CONSUMER,
    "finalize skip_resets": CONSUMER,
    "produce main": {"consumers", "producers.session", "schemas.codec"},
    "snapshot public.container_repositories": {"consumers", "producers.publish.table_publisher", "schemas.codec"},
    "status": {"producers", "consumers.runtime", "schemas.codec"},
    "verify skip_resets": {"producers", "consumers.compare", "schemas.codec", *OTHERS},
}
"""Command → what it, too, does not need before its first question."""

OWN = 140
"""A start imports at most so many of headrace's own modules; each takes up to a millisecond of the processor."""

COMPILED = 35
"""It compiles the methods of at most so many dataclasses, for half a millisecond each (schemas.lazy_dataclass)."""

ASKING = """
import json, os, socket, sys, threading
import headrace

def answer():
    asked = server.accept()
    compiled = [
        f"{name}.{each.__qualname__}"
        for name, module in sorted(sys.modules.items())
        for each in vars(module).values()
        if isinstance(each, type) and each.__module__ == name and "__dataclass_fields__" in vars(each)
    ]
    print("imported", json.dumps([sorted(sys.modules), compiled]), flush=True)
    os._exit(0)

server = socket.socket(fileno=int(sys.argv[1]))
threading.Thread(target=answer, daemon=True).start()
sys.argv = ["headrace", *json.loads(sys.argv[2])]
headrace.main()
"""


def imported_to_ask(words: str, shell: Shell) -> tuple[set[str], set[str]]:
    """Return the modules that a command has imported when it connects to its first server, which is all that it does.

    Also returned are the dataclasses that have their methods.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        configure(shell, server.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-c", ASKING, str(server.fileno()), json.dumps(words.split())],
            cwd=shell.directory, env=shell.environment, capture_output=True, text=True, check=True,
            stdin=subprocess.DEVNULL, pass_fds=[server.fileno()],
        )  # fmt: skip
    last = ended.stdout.splitlines()[-1]
    modules, compiled = json.loads(last.removeprefix("imported "))
    return set(modules), set(compiled)


def own(names: set[str]) -> set[str]:
    return {name for name in names if name.partition(".")[0] in {"consumers", "infra", "producers", "schemas"}}


@pytest.mark.parametrize("words", WAITING)
def test_command_asks_its_first_question_before_it_imports_what_the_answer_is_for(shell: Shell, words: str) -> None:
    modules, compiled = imported_to_ask(words, shell)
    unneeded = LATER | EARLY.get(words, set())
    if words == "status --watch":
        unneeded -= {"rich"}  # it draws whatever it is answered
    assert modules & unneeded == set()
    assert len(own(modules)) <= OWN
    assert len(own(compiled)) <= COMPILED


@pytest.mark.parametrize(
    ("words", "unneeded"),
    [
        ("place --nodes a,b", {"psycopg", "confluent_kafka", "fastavro", "structlog", "yaml"}),
        ("migrations", {"confluent_kafka", "fastavro", "structlog", "prometheus_client"}),
        ("pause skip_resets", {"confluent_kafka", "fastavro", "structlog", "prometheus_client", *OTHERS}),
        ("cleanup main", {"confluent_kafka", "fastavro", "structlog", "prometheus_client"}),
        ("guard gitlab_main --database main --yes", {"confluent_kafka", "fastavro", "structlog", "prometheus_client"}),
        ("route github.com/a/b --database main", {"confluent_kafka", "fastavro", "structlog", "prometheus_client"}),
        ("consume skip_resets", {"prometheus_client", "consumers.runtime", *CONSUMER}),
        ("verify skip_resets", {"producers", "prometheus_client", *OTHERS}),
        ("schema expand status_backfills", {"fastavro", "prometheus_client", "consumers.runtime", *OTHERS}),
    ],
)
def test_start_imports_nothing_of_other_commands(shell: Shell, words: str, unneeded: set[str]) -> None:
    """A command that ends with an error of PostgreSQL has imported all that it needs to ask for something."""
    configure(shell, port=1)
    ((code, modules),) = imported([words.split()], shell.directory).values()
    assert code == (0 if words.split(maxsplit=1)[0] in {"place", "migrations"} else 1)
    assert modules & (unneeded | NEVER) == set()
