"""A command imports what it needs: its help none of what it runs with, and its start nothing of other commands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import typer

import headrace
from tests.shells import Shell
from tests.waiting_commands import configure

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

OTHERS = {
    "consumers.migrations.rehash_moves",
    "consumers.gitserver",
    "consumers.praefect",
    "consumers.declared.sections",
}
"""What other migrations need than the named one, and migrations that the settings declare."""


@pytest.mark.parametrize(
    ("words", "unneeded"),
    [
        ("place --nodes a,b", {"psycopg", "confluent_kafka", "fastavro", "structlog", "yaml"}),
        ("migrations", {"confluent_kafka", "fastavro", "structlog", "prometheus_client"}),
        ("pause skip_resets", {"confluent_kafka", "fastavro", "structlog", "prometheus_client", *OTHERS}),
        ("cleanup main", {"confluent_kafka", "fastavro", "structlog", "prometheus_client"}),
        ("guard gitlab_main --database main --yes", {"confluent_kafka", "fastavro", "structlog", "prometheus_client"}),
        ("route github.com/a/b --database main", {"confluent_kafka", "fastavro", "structlog", "prometheus_client"}),
        ("consume skip_resets", {"producers"}),
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
