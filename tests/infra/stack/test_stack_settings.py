"""The settings file that leads to the servers of `headrace up`."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

import headrace
from infra.settings.file import load_settings
from infra.stack.background import Record
from infra.stack.stack_settings import write_settings
from schemas.errors import Refused

RECORD = Record("127.0.0.1:1,127.0.0.1:2", "postgresql://headrace:s3cret@127.0.0.1:3/headrace", "/data", {})


def test_settings_lead_to_the_servers(tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    write_settings(path, RECORD)
    settings = load_settings(path)
    assert settings.kafka.bootstrap_servers == RECORD.bootstrap_servers
    assert settings.database("main").dsn.get_secret_value() == RECORD.dsn
    assert settings.database("main").captures("public.container_repositories")
    assert settings.plugin_paths == ()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_settings_capture_the_given_tables_and_know_where_migrations_may_be(tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    write_settings(path, RECORD, "public.projects", "public.namespaces")
    path.write_text(path.read_text().replace("# plugin_paths", "plugin_paths"))
    settings = load_settings(path)
    assert settings.database("main").tables == ("public.projects", "public.namespaces")
    assert settings.plugin_paths == (tmp_path / "migrations",)


def test_file_is_never_overwritten_and_nothing_is_started(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    with pytest.raises(Refused, match=r"mine\.toml exists already; choose another with --config"):
        write_settings(path, RECORD)
    words = ["up", "--write-settings", "--config", str(path), "--dir", str(tmp_path / "stack")]
    assert isinstance(CliRunner().invoke(headrace.app, words).exception, Refused)
    assert path.read_text() == "mine"
    assert not (tmp_path / "stack").exists()


def test_path_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"not_there/new\.toml cannot be written: No such file or directory"):
        write_settings(tmp_path / "not_there" / "new.toml", RECORD)
