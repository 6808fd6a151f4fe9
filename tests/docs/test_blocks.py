"""The blocks of the documents are valid settings, JSON, units and Python."""

from __future__ import annotations

import ast
import configparser
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from consumers.operations import catalog
from infra.settings.description.settings_schema import json_schema
from infra.settings.file import load_settings
from infra.settings.model import Settings
from tests.docs.blocks import CHECKOUT, Block, every_block
from tests.docs.test_mentions import has

ALL = list(every_block())
LANGUAGES = {"sh", "console", "sql", "toml", "json", "yaml", "ini", "python", "go", "text"}
OTHERS = {"project"}
"""The first key of a TOML file that is not headrace.toml."""


def of(*languages: str) -> list[Block]:
    return [each for each in ALL if each.language in languages]


def test_every_block_has_a_language() -> None:
    assert [str(each) for each in ALL if each.language not in LANGUAGES] == []


@pytest.mark.parametrize("block", [each for each in of("toml") if not each.run_by], ids=str)
def test_settings_are_valid(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tomllib.loads(block.text)
    if document.keys() & OTHERS:
        return
    for database in document.get("databases", {}):  # a fragment may leave out the one key that is required
        monkeypatch.setenv(f"HEADRACE_DATABASES__{database.upper()}__DSN", "postgresql://h@127.0.0.1/d")
    file = tmp_path / "headrace.toml"
    file.write_text(block.text, encoding="utf-8")
    load_settings(file)


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_keys_that_are_commented_out_exist(block: Block) -> None:
    options = {key: kind.options_type for key, kind in catalog.migrations(Settings.model_construct()).items()}
    schema = json_schema(options, complete=True)
    section: list[str] = []
    for line in block.text.splitlines():
        if (opened := re.match(r"(?:# )?\[([\w.-]+)\]", line)) is not None:
            section = opened[1].split(".")
        elif (key := re.match(r"# (\w+) = ", line)) is not None:
            assert has(schema, [*section, key[1]]), line


@pytest.mark.parametrize("block", of("json", "yaml", "ini", "python"), ids=str)
def test_text_of_another_language_can_be_parsed(block: Block) -> None:
    match block.language:
        case "json":
            json.loads(block.text)
        case "yaml":
            yaml.safe_load(block.text)
        case "ini":
            parser = configparser.ConfigParser()
            parser.optionxform = str  # type: ignore[assignment,method-assign]
            parser.read_string(block.text)
        case _:
            ast.parse(block.text)


@pytest.mark.parametrize("block", [each for each in ALL if each.run_by], ids=str)
def test_block_that_another_test_runs_is_read_there(block: Block) -> None:
    assert Path(block.page).name in (CHECKOUT / block.run_by).read_text(encoding="utf-8")


@pytest.mark.parametrize("block", of("go"), ids=str)
def test_fragment_of_go_is_run_elsewhere_or_has_a_reason(block: Block) -> None:
    assert block.run_by or block.not_run
