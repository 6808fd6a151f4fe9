"""Sections of the settings become migrations, listed with file and line; a broken one is no other command's problem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import headrace
from consumers.contract.decisions import Change, Skip
from consumers.contract.declarations import declared
from consumers.contract.discovery import BrokenMigration
from consumers.contract.suggested_index import creation
from consumers.operations import catalog
from consumers.testing.table_case import TableCase
from infra.settings.file import load_settings
from infra.settings.model import Settings
from schemas.errors import SettingsError
from schemas.events import UNCHANGED

FILE = """
[databases.main]
dsn = "postgresql://u@h/d"
gitlab_schemas = ["gitlab_main"]

[migrations.lower_emails]
batch_size = 50

[migrations.lower_emails.declare]
table = "public.users"
where = "email <> lower(email)"
set = { email = "lower(email)" }
"""


def written(directory: Path, text: str = FILE) -> Settings:
    (directory / "headrace.toml").write_text(text)
    return load_settings(directory / "headrace.toml")


def test_section_is_a_migration_with_its_file_and_line(tmp_path: Path) -> None:
    settings = written(tmp_path)
    output = CliRunner().invoke(
        headrace.app, ["migrations", "--json", "--config", str(tmp_path / "headrace.toml")], catch_exceptions=False
    )
    (mine,) = [each for each in json.loads(output.output)["migrations"] if each["name"] == "lower_emails"]
    assert mine == {
        "name": "lower_emails",
        "origin": f"{tmp_path}/headrace.toml:9",
        "enabled": True,
        "gitlab_schema": "gitlab_main",
        "tables": ["public.users"],
        "version": 1,
        "description": "Set email of public.users where email <> lower(email).",
    }
    kind = catalog.migration_class(settings, "lower_emails")
    assert catalog.migration_class(load_settings(tmp_path / "headrace.toml"), "lower_emails") is kind
    assert creation(kind.suggested_indexes[0]) == (
        'CREATE INDEX CONCURRENTLY ON "public"."users" ("id") WHERE email <> lower(email);'
    )
    assert catalog.target_database(settings, kind) == "main"


def test_declaration_belongs_to_the_run_and_other_settings_do_not(tmp_path: Path) -> None:
    def recorded(text: str) -> Any:
        return declared(catalog.configured(written(tmp_path, text), "lower_emails"))

    before = recorded(FILE)
    assert before.options["declare"]["where"] == "email <> lower(email)"
    assert recorded(FILE.replace("= 50", "= 60")) == before
    assert recorded(FILE.replace('lower(email)" }', 'lower(trim(email))" }')) != before


def test_gitlab_schema_is_the_tables_or_given(tmp_path: Path) -> None:
    own = FILE.replace('"public.users"', '"public.people"')
    settings = written(tmp_path, own)
    with pytest.raises(BrokenMigration, match=r"headrace.toml:9: \[migrations\.lower_emails\.declare\]: table public"):
        catalog.migration_class(settings, "lower_emails")
    settings = written(tmp_path, f'{own}gitlab_schema = "gitlab_main"\n')
    assert catalog.migration_class(settings, "lower_emails").gitlab_schema == "gitlab_main"
    settings = written(tmp_path, own.replace('gitlab_schemas = ["gitlab_main"]\n', ""))
    assert catalog.migration_class(settings, "lower_emails").gitlab_schema == "main"


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        (('"lower(email)"', '"lower(email"'), "set.email has an unclosed (; write one SQL expression in set.email"),
        (('"email <> lower(email)"', '"true) OR (true"'), "where has a ) that closes nothing; write one SQL"),
        (('"email <> lower(email)"', '"email <> \'\'; DROP TABLE x"'), "where has a semicolon; "),
        (("[migrations.lower_emails.declare]", "[migrations.lower_emails.declare]\nprefilter = 'a > 1'"),
         "prefilter has a comparison of a that needs a query; use column"),
        (('"public.users"', '"users"\ngitlab_schema = "gitlab_main"'), "has 'users', which is not schema.table"),
    ],
)  # fmt: skip
def test_mistake_is_one_line_and_leaves_other_migrations_alone(
    tmp_path: Path, replaced: tuple[str, str], said: str
) -> None:
    settings = written(tmp_path, FILE.replace(*replaced))
    entry = catalog.broken(settings)["lower_emails"]
    assert entry.place == f"{tmp_path}/headrace.toml:9"
    assert said in str(entry)
    assert "\n" not in str(entry)
    assert "skip_resets" in catalog.migrations(settings)


def test_name_of_another_migration_stays_its_own(tmp_path: Path) -> None:
    settings = written(tmp_path, FILE.replace("lower_emails", "skip_resets"))
    assert catalog.origins(settings)["skip_resets"] == "built in"
    (entry,) = [each for each in catalog.broken(settings).values() if "has the same name, skip_resets" in each.problem]
    assert entry.place.endswith("headrace.toml:9")


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        (('where = "email <> lower(email)"\n', ""), "migrations.lower_emails.declare.where is missing"),
        (('set = { email = "lower(email)" }', "set = {}"), "migrations.lower_emails.declare.set"),
        (("where =", "wher ="), "migrations.lower_emails.declare.wher"),
    ],
)
def test_incomplete_section_is_a_mistake_in_the_settings(tmp_path: Path, replaced: tuple[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        written(tmp_path, FILE.replace(*replaced))


def test_unknown_option_next_to_the_declaration_is_refused(tmp_path: Path) -> None:
    settings = written(tmp_path, FILE.replace("batch_size", "bach_size"))
    with pytest.raises(SettingsError, match=r"unknown key migrations\.lower_emails\.bach_size"):
        catalog.configured(settings, "lower_emails")


def test_decisions_are_by_key_and_prefilter(tmp_path: Path) -> None:
    text = FILE.replace("where =", 'key = ["b", "a"]\nprefilter = "state = \'new\' AND email IS NOT NULL"\nwhere =')

    class Case(TableCase):
        """Only decisions are made."""

        migration = catalog.migration_class(written(tmp_path, text), "lower_emails")

    row = {"a": 1, "b": "x", "state": "new", "email": UNCHANGED}
    assert Case.migration.columns == ("b", "a", "state", "email")
    assert Case.migration.mentions == ("new",)
    assert Case.decision(row) == Change(("x", 1))
    assert Case.decision({**row, "state": "old"}) == Skip("prefilter")
    assert Case.decision({**row, "state": UNCHANGED}) == Change(("x", 1))
    assert Case.decision({**row, "email": None}) == Skip("prefilter")
    assert Case.decision(None) == Skip("deleted")
