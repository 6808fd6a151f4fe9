"""How Python is set in a member's process, where one thread plans while the other waits for the database."""

from __future__ import annotations

import gc
import sys
from typing import Final

_SWITCH_SECONDS: Final = 0.0001
"""How long Python stays with one thread when the other could go on: 5 ms by default, in which the database answers
many times."""
_YOUNG: Final = 50_000
"""Objects made, beyond those let go of, before the collector looks at them: more than a batch has, so that it seldom
finds batches alive. 700 by default; what it is for, objects that hold each other, a member makes few of."""


def tune() -> None:
    """Set the interpreter for a member; called once, when all is imported and before it runs.

    Without it a fifth of a member's time goes into looking for garbage in modules and in records that are in use.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG)
