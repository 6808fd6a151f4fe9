"""Completion, in the shells themselves where they are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

import headrace
from infra.cli.completion_command import Shell, script

CASES = [
    ("headrace con", {"consume", "config"}),
    ("headrace schema ex", {"expand"}),
    ("headrace --verbose schema expand --d", {"--down"}),
    ("headrace consume skip_resets --until", {"--until-caught-up"}),
]
BASH = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_headrace
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = 'source "$argv[1]"; complete -C "$argv[2]"'


SETTINGS = """
[databases.first]
dsn = "postgresql://h/d"
gitlab_schemas = ["gitlab_main", "gitlab_ci", "gitlab_shared"]
[databases.second]
dsn = "postgresql://h/e"
gitlab_schemas = ["gitlab_ci"]
[virtual_storages."a $(touch b)"]
database = "first"
primary = "one"
storages = { one = { path = "/r" } }
[migrations.lower_names.declare]
table = "public.projects"
set = { name = "lower(name)" }
where = "name <> lower(name)"
"""
NAMED = [
    ("headrace consume l", {"lower_names"}),
    ("headrace dead-letters retry skip", {"skip_resets"}),
    ("headrace produce s", {"second"}),
    ("headrace check s", {"second", "skip_resets", "status_backfills"}),
    ("headrace cleanup f", {"first"}),
    ("headrace switchover gitlab", {"gitlab_ci", "gitlab_main"}),
    ("headrace guard gitlab_main g", {"gitlab_ci", "gitlab_main"}),
    ("headrace route f", set()),
]


def printed(shell: str, *options: str) -> str:
    ended = CliRunner().invoke(headrace.app, ["completion", shell, *options], catch_exceptions=False)
    assert ended.exit_code == 0
    return ended.output


@pytest.mark.parametrize("shell", Shell)
def test_script_has_every_command_of_the_command_line(shell: Shell) -> None:
    text = printed(shell)
    for words in ("dead-letters retry", "schema contract", "config show", "schema-registry", "completion"):
        assert f'" {words}"' in text or f"' {words}'" in text


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("typed", "offered"), CASES)
def test_bash_offers_what_may_follow(tmp_path: Path, typed: str, offered: set[str]) -> None:
    file = tmp_path / "headrace"
    file.write_text(printed("bash"))
    assert completed(file, typed) == (offered, "")


def completed(script: Path, typed: str) -> tuple[set[str], str]:
    """Return what bash offers, and its standard error."""
    words = ["bash", "-c", BASH, "bash", str(script), *typed.split()]
    ended = subprocess.run(words, capture_output=True, text=True, check=True, cwd=script.parent)
    return set(ended.stdout.split()), ended.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("typed", "offered"), NAMED)
def test_bash_offers_the_names_of_the_settings(tmp_path: Path, typed: str, offered: set[str]) -> None:
    (tmp_path / "own.toml").write_text(SETTINGS)
    file = tmp_path / "headrace"
    file.write_text(printed("bash", "--config", str(tmp_path / "own.toml")))
    assert completed(file, typed) == (offered, "")
    assert "touch" not in file.read_text()


@pytest.mark.parametrize("shell", Shell)
def test_script_without_a_settings_file_has_the_built_in_migrations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: Shell
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_CONFIG", raising=False)
    assert "skip_resets" in printed(shell)
    (tmp_path / "headrace.toml").write_text(SETTINGS)
    assert "lower_names" in printed(shell)


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
@pytest.mark.parametrize(("typed", "offered"), CASES)
def test_fish_offers_what_may_follow(tmp_path: Path, typed: str, offered: set[str]) -> None:
    file = tmp_path / "headrace.fish"
    file.write_text(printed("fish"))
    ended = subprocess.run(["fish", "--no-config", "-c", FISH, file, typed], capture_output=True, text=True, check=True)
    assert {line.split("\t")[0] for line in ended.stdout.splitlines()} == offered


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_reads_the_script(tmp_path: Path) -> None:
    file = tmp_path / "_headrace"
    file.write_text(printed("zsh"))
    subprocess.run(["zsh", "-n", file], check=True)


def test_description_may_contain_quotes() -> None:
    words = {"": [("it", "A migration's \\ `name`: new")]}
    assert "'it:A migration'\\''s \\ `name`: new'" in script(Shell.ZSH, words)
    assert 'words="it"' in script(Shell.BASH, words)
