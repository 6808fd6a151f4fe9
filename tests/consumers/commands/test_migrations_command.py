"""`headrace migrations` lists what there is, valid and broken, without a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import headrace
from tests.consumers.contract.authors import sound


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A settings file with a folder that has a valid, a disabled and a broken migration."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "one.py").write_text(sound("one"))
    (folder / "two.py").write_text(sound("two").replace('    """Lowercase email addresses."""\n', ""))
    (folder / "bad.py").write_text(sound("bad", tables='tables = ("public.users")'))
    file = tmp_path / "headrace.toml"
    file.write_text('plugin_paths = ["migrations"]\n[migrations.two]\nenabled = false\n')
    return file


def listed(config: Path, *words: str, width: int = 200) -> str:
    ended = CliRunner().invoke(
        headrace.app,
        ["migrations", "--config", str(config), *words],
        env={"COLUMNS": str(width)},
        catch_exceptions=False,
    )
    assert ended.exit_code == 0
    return ended.output


def test_valid_and_broken_ones_are_listed(config: Path) -> None:
    folder = config.parent / "migrations"
    lines = listed(config, width=1_000).splitlines()
    assert "skip_resets: enabled, built in" in lines
    assert lines[lines.index(f"one: enabled, {folder}") + 1] == "  Lowercase email addresses."
    assert lines[lines.index(f"two: disabled, {folder}") + 1] == f"bad: broken, {folder}"
    assert lines[-1].startswith(f"  {folder}/bad.py:7: class Lowers tables is the string 'public.users'")


def test_document_has_the_same(config: Path) -> None:
    found = json.loads(listed(config, "--json"))
    (one,) = [each for each in found["migrations"] if each["name"] == "one"]
    assert one == {
        "name": "one",
        "origin": str(config.parent / "migrations"),
        "enabled": True,
        "gitlab_schema": "gitlab_main",
        "tables": ["public.users"],
        "version": 1,
        "description": "Lowercase email addresses.",
    }
    (bad,) = found["broken"]
    assert bad.keys() == {"name", "origin", "place", "problem", "remedy"}
    assert bad["place"] == f"{config.parent}/migrations/bad.py:7"


def test_lines_fold_on_a_narrow_terminal(config: Path) -> None:
    words = [line for line in listed(config, width=60).splitlines() if len(line) > 60]
    assert all(len(line.split()) == 1 for line in words), words
