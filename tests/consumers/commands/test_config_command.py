"""`headrace config check`, `show` and `schema`: what they print, without a server."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import headrace
from schemas import formats
from schemas.errors import HeadraceError, SettingsError
from tests.consumers.contract.authors import sound

SECRET = "s3cret-of-the-test"
VALID = f"""plugin_paths = ["migrations"]
[databases.main]
dsn = "postgresql://u:{SECRET}@h/d"
gitlab_schemas = ["gitlab_main"]
[migrations.skip_resets]
batch_size = 5
"""


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.upper().startswith("HEADRACE_")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "migrations").mkdir()
    file = tmp_path / "some.toml"
    file.write_text(VALID)
    return file


def run(file: Path, *words: str) -> Result:
    ended = CliRunner().invoke(headrace.app, ["config", *words, "--config", str(file)])
    assert SECRET not in ended.output
    if ended.exception is not None and not isinstance(ended.exception, SystemExit | HeadraceError):
        raise ended.exception
    return ended


def test_valid_file(file: Path) -> None:
    ended = run(file, "check")
    assert (ended.exit_code, ended.output) == (0, f"{file} is valid\n")
    assert json.loads(run(file, "check", "--json").output) == {"file": str(file), "mistakes": [], "unchecked": []}


def test_each_mistake_is_a_line_with_its_place(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(f"{VALID}bach_size = 3\n[migrations.skip_reset]\n")
    ended = run(file, "check")
    assert ended.exit_code == 2
    unknown, key = ended.output.splitlines()
    assert unknown.startswith(
        f"settings file {file}:8: unknown migration skip_reset, did you mean skip_resets?; correct"
    )
    assert key.startswith(
        f"settings file {file}:7: unknown key migrations.skip_resets.bach_size, did you mean batch_size?"
    )
    file.write_text(f"{VALID}[kafka]\npartitions = 0\nreplication_factor = -7\n")
    monkeypatch.setenv("HEADRACE_METRICS__PORT", "many")
    assert run(file, "check").output.splitlines() == [
        f"settings file {file}:8: kafka.partitions: must be 1 or more",
        f"settings file {file}:9: kafka.replication_factor: must be -1 or more",
        "environment variable HEADRACE_METRICS__PORT: metrics.port: must be a whole number",
    ]
    document = json.loads(run(file, "check", "--json").output)
    assert [each["line"] for each in document["mistakes"]] == [8, 9, None]


def test_broken_declaration_is_a_mistake_and_hides_no_misspelt_name(file: Path) -> None:
    declared = '[migrations.lower.declare]\ntable = "public.users"\nwhere = "a; b"\nset = { c = "d" }\n'
    file.write_text(f"{VALID}{declared}[migrations.skip_reset]\n")
    found = json.loads(run(file, "check", "--json").output)
    assert found["unchecked"] == []
    assert [(each["line"], each["problem"].split(" ", 2)[0]) for each in found["mistakes"]] == [
        (11, "unknown"),
        (7, "[migrations.lower.declare]:"),
    ]


def test_file_that_is_not_toml_and_one_that_is_missing(file: Path) -> None:
    file.write_text("[kafka")
    assert run(file, "check").output.startswith(f"settings file {file}: is not TOML: ")
    ended = run(file.with_name("other.toml"), "check", "--json")
    assert ended.exit_code == 2
    (mistake,) = json.loads(ended.output)["mistakes"]
    assert mistake["problem"].startswith("does not exist; write one with `headrace init`")


def test_newer_format_is_refused_by_its_version(file: Path) -> None:
    file.write_text(f"format = {formats.SETTINGS.version + 1}\n{VALID}")
    for command in ("check", "show", "schema"):
        ended = run(file, command)
        assert isinstance(ended.exception, formats.NewerFormat)
        assert f"{file} has format {formats.SETTINGS.version + 1}; this is headrace " in str(ended.exception)


def test_broken_plug_in_is_not_checked_and_no_mistake(file: Path) -> None:
    (file.parent / "migrations" / "bad.py").write_text(sound("bad", tables='tables = ("public.users")'))
    file.write_text(f"{VALID}[migrations.bad]\nown = 3\n")
    ended = run(file, "check")
    assert ended.exit_code == 0
    note, valid = ended.output.splitlines()
    assert note.startswith(f"not checked: bad: {file.parent}/migrations/bad.py:7: class Lowers tables is the string")
    assert valid == f"{file} is valid"
    (entry,) = json.loads(run(file, "check", "--json").output)["unchecked"]
    assert entry.keys() == {"name", "place", "problem", "remedy"}


def test_effective_settings_as_toml_and_json(file: Path) -> None:
    document = tomllib.loads(run(file, "show").output)
    assert document["migrations"]["skip_resets"] | {"batch_size": 5} == document["migrations"]["skip_resets"]
    assert document["databases"]["main"]["dsn"] == "user=u host=h dbname=d password=**********"
    listed = json.loads(run(file, "show", "--json").output)
    assert listed.keys() == {"file", "settings"}
    assert all(each.keys() == {"key", "value", "origin", "line", "variable"} for each in listed["settings"])
    (one,) = [each for each in listed["settings"] if each["key"] == "migrations.skip_resets.batch_size"]
    assert one == {
        "key": "migrations.skip_resets.batch_size", "value": 5, "origin": "file", "line": 6, "variable": None,
    }  # fmt: skip
    file.write_text("[kafka]\npartitions = 0\n")
    assert isinstance(run(file, "show").exception, SettingsError)


def test_schema_has_the_options_of_plug_ins_and_needs_no_valid_file(file: Path) -> None:
    (file.parent / "migrations" / "one.py").write_text(sound("one"))
    sections = json.loads(run(file, "schema").output)["properties"]["migrations"]
    assert {"one", "skip_resets"} <= sections["properties"].keys()
    assert sections["additionalProperties"]["required"] == ["declare"]
    file.write_text("[kafka]\npartitions = 0\n")
    assert "skip_resets" in json.loads(run(file, "schema").output)["properties"]["migrations"]["properties"]


def test_misspelt_section_keeps_its_migration_from_starting(file: Path) -> None:
    file.write_text(f"{VALID}[migrations.skip_reset]\n")
    for command in ("consume", "finalize"):
        ended = CliRunner().invoke(headrace.app, [command, "skip_resets", "--config", str(file)])
        assert "unknown migration skip_reset, did you mean skip_resets?" in str(ended.exception)
