"""The commands `produce` and `check` of an installation without the compiled codec: slower, equal, and said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import headrace
from schemas.codec import implementation
from tests.producers.processes import write_settings
from tests.producers.sources import Source, running

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]


@pytest.fixture
def source(new_source: NewSource, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setattr(implementation, "compiled", None)
    monkeypatch.setattr(implementation, "name", "Python")
    return new_source("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'one')", "public.t")


def test_producer_without_the_compiled_codec_warns_and_publishes_the_same(
    source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("INSERT INTO t VALUES (2, 'two'); UPDATE t SET v = 'eins' WHERE id = 1")
        producer.caught_up()
    source.require_equal("public.t")
    logged = capsys.readouterr().out
    assert "codec is not compiled" in logged
    assert implementation.MISSING_REMEDY in logged


def test_check_advises_to_install_the_compiled_codec(source: Source, tmp_path: Path) -> None:
    config = write_settings(source.settings, tmp_path / "headrace.toml")
    result = CliRunner().invoke(headrace.app, ["check", "--json", "--config", str(config)])
    advice = json.loads(result.stdout)["advice"]
    assert {
        "where": "headrace",
        "problem": implementation.MISSING,
        "shown": [],
        "remedy": implementation.MISSING_REMEDY,
    } in advice
