"""Tunes Python for a consumer's process, where one thread plans while the other waits for the database."""

from __future__ import annotations

import gc
import sys
from typing import Final

_SWITCH_SECONDS: Final = 0.0001
"""The longest time that a thread keeps the GIL while another one waits for it. In Python's default of 5 ms the
database answers many times."""
_YOUNG: Final = 50_000
"""The net number of new objects before a garbage collection: more than a batch has, so that it seldom finds batches
alive. Python's default is 700; a consumer makes few reference cycles."""


def tune() -> None:
    """Tune the interpreter for a consumer; called once, after all imports and before it runs.

    Without it the garbage collector takes a fifth of a consumer's time, on modules and records that are in use.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG)
