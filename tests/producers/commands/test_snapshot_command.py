"""The command `snapshot`: what it prints as JSON, and that the producer does what it requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import headrace
from tests.documents import hold
from tests.producers.folding import ops
from tests.producers.processes import write_settings
from tests.producers.sources import Source, copy_all

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]


def test_requested_range_is_in_the_document_and_re_snapshotted_at_the_next_start(
    new_source: NewSource, tmp_path: Path
) -> None:
    source = new_source("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2), (3)", "public.t")
    copy_all(source)
    words = ("snapshot", "public.t", "--from", "2", "--to", "2", "--json")
    config = write_settings(source.settings, tmp_path / "headrace.toml")
    ended = CliRunner().invoke(headrace.app, [*words, "--config", str(config)], catch_exceptions=False)
    hold(words, ended.stdout)
    document = json.loads(ended.stdout)
    assert document.pop("answer").endswith(": the producer of main re-snapshots public.t once it is there")
    assert document == {"source": "main", "table": "public.t", "from_scratch": False}

    copy_all(source)
    records = source.require_equal("public.t")
    assert [ops(records, id=key) for key in (1, 2, 3)] == [["r"], ["r", "r"], ["r"]]
