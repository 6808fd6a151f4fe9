"""`headrace new backfill` adds a section that was checked on the server, or leaves the settings as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import headrace
from consumers.commands import backfill_command
from consumers.operations import catalog
from infra.settings.file import load_settings
from schemas.errors import HeadraceError
from tests.conftest import Database
from tests.consumers.container_repositories import write_settings

pytestmark = pytest.mark.stack

OPTIONS = ["--table", "public.people", "--set", "nick=lower(name)", "--where", "nick IS NULL AND \"name\" <> '\\'"]


@pytest.fixture
def config(database: Database, tmp_path: Path) -> Path:
    with database.connect() as connection:
        connection.execute(
            "CREATE TABLE public.people (a uuid, b text, name text, nick text, PRIMARY KEY (b, a));"
            "INSERT INTO public.people SELECT md5(n::text)::uuid, 'b', 'N' || n FROM generate_series(1, 250) n"
        )
    return write_settings(tmp_path / "headrace.toml", {"databases": {"people": {"dsn": database.dsn}}})


def new(config: Path, *words: str, answers: str = "") -> str:
    """Return the output; raises the command's error."""
    ended = CliRunner().invoke(
        headrace.app, ["new", "backfill", "nicks", *words, "--config", str(config)], answers, catch_exceptions=False
    )
    assert ended.exit_code == 0, ended.output
    return ended.output


def test_section_is_added_with_key_plan_rows_and_time(config: Path, database: Database) -> None:
    output = new(config, *OPTIONS)
    assert "rows to change: 250 (counted)" in output
    assert "rows/s, as 100 rows took that were updated and rolled back" in output
    assert "  Update on people" in output
    plan = output.partition("plan of one batch:\n")[2].splitlines()[:-1]
    assert any(line.startswith("        ") for line in plan), "it is indented as the server does"
    assert all(len(line) <= 100 for line in plan), "a hundred keys are not shown"
    kind = catalog.migration_class(load_settings(config), "nicks")
    assert kind.columns == ("b", "a")
    assert kind.gitlab_schema == "people"
    with database.connect() as connection:
        assert connection.execute("SELECT count(nick) FROM public.people").fetchone() == (0,)
    with pytest.raises(HeadraceError, match="there is a migration nicks already"):
        new(config, *OPTIONS)


def test_document_has_what_is_shown(config: Path) -> None:
    document = json.loads(new(config, *OPTIONS, "--json"))
    assert (document["rows"], document["estimated"], document["tried"]) == (250, False, 100)
    assert document["seconds"] > 0
    assert document["section"] in config.read_text()


def test_terminal_is_asked_for_what_is_missing(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = config.read_text()
    with pytest.raises(HeadraceError, match=r"--table is missing; give it, or run the command on a terminal"):
        new(config)
    monkeypatch.setattr(backfill_command, "_on_a_terminal", lambda: True)
    answers = "public.people\nnick=lower(name)\n\n"
    refused = CliRunner().invoke(headrace.app, ["new", "backfill", "nicks", "--config", str(config)], f"{answers}n\n")
    assert refused.exit_code == 1
    assert config.read_text() == before
    assert "Which rows still need it [nick IS NULL]" in new(config, answers=f"{answers}y\n")
    assert 'where = "nick IS NULL"' in config.read_text()


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ("nick IS NULL) OR (true", "where has a ) that closes nothing"),
        ("name IS NOT NULL", r"still true of a row after set, so the migration would never end \(100 of 100 rows"),
        ("nik IS NULL", 'where: column "nik" does not exist'),
    ],
)
def test_section_that_is_refused_is_not_written(config: Path, replaced: str, said: str) -> None:
    before = config.read_text()
    with pytest.raises(HeadraceError, match=said.replace("a )", r"a \)")):
        new(config, *OPTIONS[:-1], replaced)
    assert config.read_text() == before
