"""Lists the blocks of the documents that are not run where they are, with their reasons: `python -m tests.docs`."""

from __future__ import annotations

from tests.docs.blocks import every_block

for block in every_block():
    if reason := block.not_run or block.run_by:
        print(f"{block}: {reason}")
