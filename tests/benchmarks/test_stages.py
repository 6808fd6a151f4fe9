"""The processor time of each stage, of few rows: that it can be measured."""

from __future__ import annotations

import pytest

from schemas.codec import implementation
from tests.benchmarks.stages import report
from tests.conftest import Database


def test_each_stage_of_each_codec_has_a_line(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    report(database.dsn, 50)
    lines = capsys.readouterr().out.splitlines()
    stages = 2 if implementation.compiled is None else 5
    assert len([line for line in lines if "to records" in line]) == stages
    assert all(float(line.split()[-2]) >= 0 for line in lines)
    assert len(lines) == stages + (1 if implementation.compiled is None else 3)
