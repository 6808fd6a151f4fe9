"""In a process of its own: what it sets is the whole process's."""

from __future__ import annotations

import subprocess
import sys

_TOLD = """
import gc, sys
from consumers.commands import process_tuning
from consumers.runtime import consumer
before = gc.get_threshold()[0]
process_tuning.tune()
print(gc.isenabled(), gc.get_freeze_count() > 10_000, gc.get_threshold()[0] > before, sys.getswitchinterval() < 0.001)
"""


def test_a_member_looks_for_garbage_seldom_and_not_in_modules_and_its_threads_give_way_soon() -> None:
    told = subprocess.run([sys.executable, "-c", _TOLD], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True"] * 4
