"""Findings of a command are shown line by line, to be pasted into the settings."""

from __future__ import annotations

import json

import pytest
import typer
from psycopg import sql

import headrace
from infra.settings.model import Settings
from producers.commands import source_findings
from producers.source.preflight import Finding
from schemas.gitlab_schemas import UnmappedTable
from tests.conftest import Database
from tests.shells import Shell


def test_lines_that_an_error_shows_follow_its_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> int:
        raise UnmappedTable("two tables", remedy="add them", shown=("[a]", '"public.a" = "b"', "\x1b"))

    monkeypatch.setattr(headrace, "_run", fails)
    with pytest.raises(SystemExit) as caught:
        headrace.main()
    assert caught.value.code == 3
    shown = 'headrace: error: two tables; add them\n[a]\n"public.a" = "b"\n\\x1b\n'
    assert capsys.readouterr() == ("", shown)


def test_finding_of_check_is_followed_by_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    examined = [("databases.main", Finding("two tables", "add them", ("[a]", '"public.a" = "b"')))]
    with pytest.raises(typer.Exit):
        source_findings.show(Settings(), ["main"], [], [], examined, as_json=False)
    assert capsys.readouterr().out == 'databases.main: two tables; add them\n[a]\n"public.a" = "b"\n'
    with pytest.raises(typer.Exit):
        source_findings.show(Settings(), ["main"], [], [], examined, as_json=True)
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert found["shown"] == ["[a]", '"public.a" = "b"']


@pytest.mark.long
def test_check_and_produce_list_every_table_without_a_gitlab_schema_as_toml(
    shell: Shell, database: Database, bootstrap_servers: str
) -> None:
    names = [f"t{number}" for number in range(87)] + ['odd "name"']
    with database.connect() as connection:
        for name in names:
            connection.execute(sql.SQL("CREATE TABLE {} (id int PRIMARY KEY)").format(sql.Identifier(name)))
    shell.settings(database.dsn, bootstrap_servers, ["public.*"])
    settings = (shell.directory / "headrace.toml").read_text()
    ended = shell.run("check")
    assert ended.code == 3
    problem, *shown = [line for line in ended.out.splitlines() if not line.startswith("kafka: ")]
    assert problem.startswith("databases.main: 88 tables have no gitlab schema of this database: ")
    lines = shown[: len(names) + 1]
    assert lines[0] == "[databases.main.table_schemas]"

    produced = shell.run("produce", "main")
    assert produced.code == 3
    assert produced.err.splitlines()[-len(lines) :] == lines

    # A pattern does as well; a table that headrace knows is then named.
    with database.connect() as connection:
        connection.execute("CREATE TABLE ci_builds (id int PRIMARY KEY)")
    mapped = '[databases.main.table_schemas]\n"public.*" = "gitlab_main"\n'
    shell.write(settings.replace('["gitlab_main"]', '["gitlab_main", "gitlab_ci"]') + mapped)
    ended = shell.run("check", "--json")
    assert ended.code == 0
    assert ['"public.ci_builds" = "gitlab_ci"'] in [each["shown"] for each in json.loads(ended.out)["advice"]]
    with database.connect() as connection:
        connection.execute("DROP TABLE ci_builds")

    # Pasted as they are, they are all that was missing.
    shell.write("\n".join([settings, *lines]))
    assert shell.run("check").code == 0
