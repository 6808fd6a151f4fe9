"""Tunes a separate process, since the settings are process-wide."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import gc, sys
from consumers.commands.execution import process_tuning
from consumers.runtime import consumer
before = gc.get_threshold()[0]
process_tuning.tune()
print(gc.isenabled(), gc.get_freeze_count() > 10_000, gc.get_threshold()[0] > before, sys.getswitchinterval() < 0.001)
"""


def test_tuning_makes_gc_rare_freezes_modules_and_shortens_switch_interval() -> None:
    ended = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["True"] * 4
