"""Fuzzes parsers: `python -m tests.fuzz.parsers --only pgoutput --cases 1000000`; see `make fuzz`.

Each target runs in a separate process, which a crash, a hang or a lack of memory ends. An input that breaks a parser
is kept in tests/fuzz/parsers/regressions, and is a test from then on. `--sanitize` builds the codec with
AddressSanitizer and UndefinedBehaviorSanitizer. `--keep` adds inputs that reached something new to the corpora in the
tree.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.fuzz.parsers.campaign import HERE, REGRESSIONS, load_target
from tests.fuzz.parsers.corpus import keep
from tests.schemas.codec.sanitized import Sanitized, build

WORK: Final = Path(".fuzz")
_STATS: Final = re.compile(r"stat::(\w+):\s+(\d+)")
_COVERED: Final = re.compile(r"cov: (\d+)")


def names() -> list[str]:
    """Return the targets' names."""
    return sorted(path.stem for path in (HERE / "targets").glob("*.py"))


def _run(name: str, arguments: argparse.Namespace, sanitized: Sanitized | None) -> bool:
    """Run one target, print its result, and return whether it passed."""
    WORK.mkdir(exist_ok=True)
    log = WORK / f"{name}.log"
    seed = arguments.seed or secrets.randbelow(2**31 - 1) + 1
    command = [sys.executable, "-m", "tests.fuzz.parsers.campaign", name, "--work", str(WORK / name)]
    command += ["--cases", str(arguments.cases), "--seconds", str(arguments.seconds), "--seed", str(seed)]
    environment: Mapping[str, str] = os.environ
    if sanitized is not None:
        command += ["--codec", str(sanitized.module), *([] if sanitized.guided else ["--unguided"])]
        environment = {**os.environ, **sanitized.environment}
    with log.open("wb") as file:
        code = subprocess.run(command, env=environment, stdout=file, stderr=file, check=False).returncode
    text = log.read_text(errors="replace")
    stats = dict(_STATS.findall(text))
    cases = int(stats.get("number_of_executed_units", 0))
    covered = _COVERED.findall(text)
    details = f"coverage {covered[-1]}" if covered else "not guided by coverage"
    memory = f", {stats['peak_rss_mb']} MiB" if "peak_rss_mb" in stats else ""
    if code != 0:
        print(f"{name}: FAILED after at least {cases:,} cases (exit code {code}), seed {seed}; {log} ends:")
        print("\n".join(text.splitlines()[-40:]))
        print(f"input saved in {REGRESSIONS / name}; repeat with `make fuzz ONLY={name} INPUT=…`")
        return False
    print(f"{name}: {cases:,} cases, no crash, hang or difference; {details}{memory}, seed {seed}", flush=True)
    return True


def main() -> int:
    """Run the targets and return 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=names(), action="append")
    parser.add_argument("--cases", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--input", type=Path, help="run one input, in this process")
    arguments = parser.parse_args()
    chosen = arguments.only or names()
    if arguments.input is not None:
        load_target(chosen[0]).run(arguments.input.read_bytes())
        return 0
    if arguments.keep:
        for name in chosen:
            print(f"{name}: {keep(name, WORK / name)} inputs kept")
        return 0
    sanitized = build() if arguments.sanitize else None
    held = [_run(name, arguments, sanitized) for name in chosen]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
