"""Every command has --json and a model of what it prints, or a reason; those that need no server are run here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

import headrace
from tests.command_tree import command_of, paths
from tests.consumers.commands.test_display import migration
from tests.consumers.contract.authors import sound
from tests.documents import DOCUMENTS, WITHOUT, hold


def test_every_command_has_a_model_or_a_reason() -> None:
    with_json: set[str] = set()
    without: set[str] = set()
    for words in paths():
        command = command_of(words)
        if not isinstance(command, typer.core.TyperGroup):
            options = {name for option in command.params for name in option.opts}
            (with_json if "--json" in options else without).add(" ".join(words))
    assert with_json == DOCUMENTS.keys()
    assert without == WITHOUT.keys()


@pytest.mark.parametrize(
    "words",
    [
        ("migrations", "--json"),
        ("config", "check", "--json"),
        ("config", "show", "--json"),
        ("new", "migration", "lower_names", "--table", "public.users", "--json"),
    ],
    ids=" ".join,
)
def test_document_without_servers_is_as_its_model(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "bad.py").write_text(sound("bad", tables='tables = ("public.users")'))
    config = tmp_path / "headrace.toml"
    config.write_text(
        'plugin_paths = ["migrations"]\n[databases.main]\ndsn = "postgresql://h/d"\n[migrations.skip_reset]'
    )
    ended = CliRunner().invoke(headrace.app, [*words, "--config", str(config)])
    assert ended.stdout
    hold(words, ended.stdout)


def test_model_finds_a_field_that_is_missing_or_unknown() -> None:
    document: dict[str, list[Any]] = {"migrations": [], "sources": [], "given_away": []}
    hold(("status", "--json"), json.dumps(document))
    wrong: list[dict[str, Any]] = [
        {"migrations": [], "sources": []},
        {**document, "more": 1},
        {**document, "migrations": [migration()]},
    ]
    for each in wrong:
        with pytest.raises(ValidationError):
            hold(("status", "--json"), json.dumps(each))
