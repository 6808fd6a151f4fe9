"""The files of a new migration: formatted, valid under the defaults of ruff, and mistakes are refused in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from consumers.contract.discovery import discover
from consumers.contract.plugins import in_folder
from consumers.operations.authoring.new_migration import NewMigration, assignments, files, parse_key, require_names
from consumers.testing.promises import PROMISES
from schemas.errors import UsageError

LONG = "x" * 63
NEW = {
    "usual": NewMigration("lower_emails", "public.users", "gitlab_main", sets={"email": "lower(email)"}),
    "empty": NewMigration("empty", "public.users", "gitlab_main"),
    "several": NewMigration(
        "several", "other.order", "registry", "user", "uuid", {"when": "0", "Name": "true", "plain": "'50%\\'"}
    ),
    "long": NewMigration(LONG, f"{LONG}.{LONG}", LONG, LONG, "text", {f"{name}{LONG[1:]}": "''" for name in "abc"}),
    "nearly_long": NewMigration("m" * 24, f"public.{'t' * 55}", "gitlab_main", "k" * 52, "text", {"b": "0.5"}),
    "named_like_an_import": NewMigration("change_event", "public.users", "gitlab_main", sets={"email": "NULL"}),
}


@pytest.fixture(params=NEW)
def new(request: pytest.FixtureRequest) -> NewMigration:
    return NEW[request.param]


@pytest.fixture
def folder(new: NewMigration, tmp_path: Path) -> Path:
    made = tmp_path / "migrations"
    made.mkdir()
    for name, text in files(new).items():
        (made / name).write_text(text)
    return made


@pytest.mark.parametrize("command", [["format", "--check", "--diff"], ["check"], ["check", "--select=I,F,UP"]])
def test_files_pass_the_defaults_of_ruff(folder: Path, command: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", "migrations"],
        cwd=folder.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_migration_is_found_and_valid(folder: Path, new: NewMigration) -> None:
    found = discover(in_folder(folder))
    assert found.broken == {}
    kind = found.migrations[new.name]
    assert (kind.tables, kind.columns) == ((new.table,), (new.key, *new.sets))
    assert kind.headrace_api == 1


def test_sql_has_names_quoted_and_percent_signs_doubled_only_with_parameters() -> None:
    text = files(NEW["several"])["several.py"]
    assert """UPDATE other."order" SET "when" = 0, "Name" = true, plain = '50%%\\\\'""" in text
    assert """WHERE "user" = ANY(%s::uuid[])""" in text
    assert text.count("plain IS DISTINCT FROM ('50%%\\\\')") == text.count("plain IS DISTINCT FROM ('50%\\\\')") == 1


def test_unit_tests_of_the_files_pass(tmp_path: Path) -> None:
    for name, text in files(NEW["usual"]).items():
        (tmp_path / name).write_text(text)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not contract", "."],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    assert "2 passed" in ended.stdout


def test_contract_is_one_test_a_promise(tmp_path: Path) -> None:
    for name, text in files(NEW["usual"]).items():
        (tmp_path / name).write_text(text)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", "-k", "contract", "."],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    collected = [line for line in ended.stdout.splitlines() if "::" in line]
    assert collected == [f"test_lower_emails.py::test_contract[{promise}]" for promise in PROMISES], ended.stdout


def test_migration_without_an_assignment_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text(files(NEW["empty"])["empty.py"])
    kind = discover(in_folder(tmp_path)).migrations["empty"]
    assert "raise NotImplementedError" in (tmp_path / "empty.py").read_text()
    assert not getattr(kind, "__abstractmethods__", None)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "LowerEmails"}, "'LowerEmails' cannot be the name of a migration; a name has 1 to 63 lowercase"),
        ({"name": "json"}, "json is a name of Python's own; choose another"),
        ({"name": "pass"}, "pass is a name of Python's own"),
        ({"table": "users"}, "--table 'users' is not schema.table; give the table with its schema: --table public.use"),
        ({"table": "public.us*"}, "--table 'public.us*' is not schema.table"),
        ({"table": 'public.a"b'}, "is not schema.table"),
        ({"key": ""}, "--key '' is not COLUMN:TYPE; for example: --key id:uuid"),
        ({"key": "id:uuid[]); DROP"}, "is not COLUMN:TYPE"),
        ({"sets": ["email"]}, "--set 'email' is not COLUMN=EXPRESSION; for example: --set"),
        ({"sets": ["=1"]}, "is not COLUMN=EXPRESSION"),
        ({"sets": ["email= "]}, "is not COLUMN=EXPRESSION"),
        ({"sets": ["email='a\nb'"]}, "--set email has a line break or three double quotes"),
        ({"sets": ['email="a"""']}, "--set email has a line break or three double quotes"),
        ({"sets": ["id=1"]}, "--set id: the column is the key"),
        ({"sets": ["a=1", "a=2"]}, "--set a: the column is set twice"),
        ({"gitlab_schema": "Gitlab"}, "--gitlab-schema 'Gitlab' is not a name"),
    ],
)
def test_mistake_is_refused(changed: dict[str, Any], said: str) -> None:
    usual: dict[str, Any] = {"name": "lower_emails", "table": "public.users", "key": "id", "sets": ["email=''"]}
    given = usual | {"gitlab_schema": None} | changed

    def check() -> None:
        require_names(given["name"], given["table"], given["gitlab_schema"])
        assignments(given["sets"], parse_key(given["key"])[0])

    with pytest.raises(UsageError) as refused:
        check()
    assert said in str(refused.value)


def test_arguments_are_taken_apart() -> None:
    assert parse_key("id:UUID") == ("id", "uuid")
    assert parse_key("key") == ("key", "bigint")
    assert assignments(["email = coalesce(email, '=')"], "id") == {"email": "coalesce(email, '=')"}
