"""Sections and switches of migrations that do not exist: found, and refused by the start that they are meant for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from consumers.operations import migration_sections
from consumers.operations.migration_sections import UnknownMigration
from infra.settings.file import load_settings
from infra.settings.model import Settings
from tests.consumers.contract.authors import sound


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.upper().startswith("HEADRACE_")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "migrations"
    folder.mkdir()
    return folder


def load(folder: Path, text: str) -> Settings:
    file = folder.parent / "headrace.toml"
    file.write_text(f'plugin_paths = ["migrations"]\n{text}')
    return load_settings(file)


def test_misspelt_section_is_refused_by_the_migration_that_it_is_meant_for(folder: Path) -> None:
    settings = load(folder, "[migrations.skip_reset]\nbatch_size = 5\n[migrations.entirely_else]\n")
    with pytest.raises(
        UnknownMigration,
        match=r"^migrations\.skip_reset: unknown migration skip_reset, did you mean skip_resets\?; correct",
    ):
        migration_sections.require_spelt(settings, "skip_resets")
    migration_sections.require_spelt(settings, "rehash_moves")
    assert [each.where for each in migration_sections.unknown(settings)] == [
        "migrations.entirely_else",
        "migrations.skip_reset",
    ]


def test_misspelt_switch_is_refused_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_SKIP_REST_ENABLED", "false")
    with pytest.raises(
        UnknownMigration, match=r"^HEADRACE_SKIP_REST_ENABLED is set for the unknown migration skip_rest"
    ):
        migration_sections.require_spelt(load(folder, ""), "skip_resets")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("lower_emails.py", "def broken(:\n"),
        ("emails.py", sound("lower_emails") + "\ndef broken(:\n"),
        ("emails.py", sound("lower_emails", tables='tables = ("public.users")')),
        ("emails.py", 'import not_installed_anywhere\n\nNAME = "lower_emails"\n'),
    ],
)
def test_section_of_a_broken_migration_is_known(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text)
    settings = load(folder, "[migrations.lower_emails]\nbatch_size = 5\nown = 3\n")
    assert list(migration_sections.unknown(settings)) == []
    assert list(migration_sections.invalid(settings)) == []


def test_section_that_no_broken_file_mentions_is_unknown(folder: Path) -> None:
    (folder / "emails.py").write_text("def broken(:\n")
    assert [each.where for each in migration_sections.unknown(load(folder, "[migrations.lower_emails]\n"))] == [
        "migrations.lower_emails"
    ]


def test_sections_may_be_of_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    assert list(migration_sections.unknown(load(tmp_path / "missing", "[migrations.lower_emails]\n"))) == []


def test_every_mistake_of_the_sections_is_found_with_its_key(folder: Path) -> None:
    text = """
[databases.main]
dsn = "postgresql://h/d"
[databases.main.snapshot.health]
replica_lag = "much"
archive = 10
[migrations.skip_resets]
clear_shiped_columns = true
clear_shipped_columns = "perhaps"
bach_size = 3
database = "mian"
[migrations.skip_resets.health]
temperature = 40
archive = "many"
"""
    found = dict(migration_sections.invalid(load(folder, text)))
    at = ("migrations", "skip_resets")
    assert found.keys() == {
        (*at, "database"),
        (*at, "clear_shiped_columns"),
        (*at, "clear_shipped_columns"),
        (*at, "bach_size"),
        (*at, "health", "temperature"),
        (*at, "health", "archive"),
        ("databases", "main", "snapshot", "health", "replica_lag"),
    }
    assert "did you mean main?" in found[*at, "database"]
    assert "did you mean clear_shipped_columns?" in found[*at, "clear_shiped_columns"]
    assert "did you mean batch_size?" in found[*at, "bach_size"]
