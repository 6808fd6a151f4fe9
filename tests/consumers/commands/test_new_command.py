"""`headrace new migration` writes into the author's folder, and overwrites nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import headrace
from consumers.operations import catalog
from schemas.errors import HeadraceError, UsageError
from tests.conftest import Database

SETS = ["--table", "public.users", "--set", "email=lower(email)"]


def new(*words: str) -> str:
    """Return the output; raises the command's error."""
    ended = CliRunner().invoke(headrace.app, ["new", "migration", *words], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.output


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_CONFIG", raising=False)
    return tmp_path


def test_three_files_are_written_next_to_the_settings_file(directory: Path) -> None:
    output = new("lower_emails", *SETS)
    folder = directory / "migrations"
    assert sorted(path.name for path in folder.iterdir()) == [
        "lower_emails.py", "lower_emails_case.py", "test_lower_emails.py",
    ]  # fmt: skip
    assert 'add to headrace.toml, above its first section: plugin_paths = ["./migrations"]' in output


def test_what_was_taken_for_granted_is_said(directory: Path) -> None:
    assert "no database says its key, which is taken to be id bigint" in new("one", *SETS)
    assert "captures" not in new("two", *SETS, "--key", "id:uuid")
    (directory / "headrace.toml").write_text(
        '[databases.main]\ndsn = "postgresql://u@h/d"\ngitlab_schemas = ["gitlab_main"]\ntables = ["public.user"]\n'
    )
    output = new("three", *SETS, "--key", "id:uuid")
    assert "no database of headrace.toml captures public.users: correct it, or add it to the `tables` of one" in output
    assert "taken to be" not in output


def test_folder_of_the_settings_is_used(directory: Path) -> None:
    (directory / "headrace.toml").write_text('plugin_paths = ["./own"]\n')
    written = json.loads(new("lower_emails", *SETS, "--json"))
    assert written["listed"] is True
    assert Path(written["files"][0]).resolve() == directory / "own" / "lower_emails.py"
    catalog._discovered.cache_clear()  # another process
    listed = CliRunner().invoke(headrace.app, ["migrations", "--json"], catch_exceptions=False)
    (mine,) = [each for each in json.loads(listed.output)["migrations"] if each["name"] == "lower_emails"]
    assert mine["description"] == "Set email of public.users."


def test_environment_without_a_settings_file_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_DATABASES__MAIN__DSN", "postgresql://u@h/d")
    assert "wrote" in new("lower_emails", *SETS)


def test_gitlab_schema_is_the_dictionarys_the_settings_or_given(directory: Path) -> None:
    (directory / "headrace.toml").write_text(
        '[databases.main]\ndsn = "postgresql://u@h/d"\ngitlab_schemas = ["own"]\ntable_schemas = {"a.b" = "own"}\n'
    )
    new("one", "--table", "public.users")
    new("two", "--table", "a.b")
    new("three", "--table", "c.d", "--gitlab-schema", "gitlab_ci")
    texts = [(directory / "migrations" / f"{name}.py").read_text() for name in ("one", "two", "three")]
    for text, label in zip(texts, ("gitlab_main", "own", "gitlab_ci"), strict=True):
        assert f'gitlab_schema = "{label}"' in text
    with pytest.raises(HeadraceError, match=r"table c\.d has no known gitlab schema; choose one: --gitlab-schema gitl"):
        new("four", "--table", "c.d")


@pytest.mark.parametrize("name", ["lower_emails.py", "lower_emails_case.py", "test_lower_emails.py"])
def test_no_file_is_overwritten(directory: Path, name: str) -> None:
    folder = directory / "migrations"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(HeadraceError, match=rf"{name} exists already") as refused:
        new("lower_emails", *SETS)
    assert refused.value.exit_code == 3
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("skip_resets", r"there is a migration skip_resets already \(built in\)"),
        ("psycopg", "an installed module is called psycopg"),
        ("Capitals", "'Capitals' cannot be the name of a migration"),
    ],
)
def test_name_that_is_taken_or_invalid_is_refused(directory: Path, name: str, said: str) -> None:
    with pytest.raises(HeadraceError, match=said):
        new(name, *SETS)
    assert list(directory.iterdir()) == []


def test_files_are_never_writable_by_every_user(directory: Path, umask_of_none: None) -> None:
    new("lower_emails", *SETS)
    modes = {path.stat().st_mode & 0o002 for path in [directory / "migrations", *(directory / "migrations").iterdir()]}
    assert modes == {0}


@pytest.fixture
def umask_of_none() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def keyed(directory: Path, database: Database) -> Path:
    """A settings file whose database has tables with several kinds of keys."""
    database.connect().execute(
        "CREATE TABLE public.bare (id bigint); CREATE TABLE public.tokens (token uuid PRIMARY KEY, name text);"
        " CREATE TABLE public.members (group_id bigint, user_id bigint, PRIMARY KEY (group_id, user_id))"
    )
    tables = '{ "public.bare" = "own", "public.tokens" = "own", "public.members" = "own" }'
    (directory / "headrace.toml").write_text(
        f"[databases.main]\ndsn = {json.dumps(database.dsn)}\ngitlab_schemas = ['own']\ntable_schemas = {tables}\n"
    )
    return directory


@pytest.mark.stack
def test_key_is_the_databases_unless_one_is_given(keyed: Path) -> None:
    output = new("name_tokens", "--table", "public.tokens", "--set", "name='x'")
    text = (keyed / "migrations/name_tokens.py").read_text()
    assert 'columns = ("token", "name")' in text
    assert "token = ANY(%s::uuid[])" in text
    assert "taken to be" not in output
    new("other_key", "--table", "public.tokens", "--set", "name='x'", "--key", "id:text")
    assert "ANY(%s::text[])" in (keyed / "migrations/other_key.py").read_text()


@pytest.mark.stack
def test_key_of_several_columns_is_refused_with_what_to_do(keyed: Path) -> None:
    with pytest.raises(UsageError, match=r"public\.members has 2 columns, group_id, user_id: .*--key group_id:bigint"):
        new("name_members", "--table", "public.members")
    assert not (keyed / "migrations").exists()


@pytest.mark.stack
def test_table_without_a_key_is_written_with_the_usual_one_and_that_is_said(keyed: Path) -> None:
    assert "taken to be id bigint" in new("fill_bare", "--table", "public.bare")
