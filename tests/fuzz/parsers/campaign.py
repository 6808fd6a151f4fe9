"""Runs one target in this process: `python -m tests.fuzz.parsers.campaign TARGET …`; `tests.fuzz.parsers` starts it.

With atheris (libFuzzer for Python; its wheel needs no compiler) coverage of headrace's modules guides the mutations.
They are instrumented during import, so nothing of headrace is imported earlier. Without atheris, inputs are mutations
of the kept ones, drawn from the seed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from tests.schemas.codec import another_build

if TYPE_CHECKING:
    from tests.fuzz.parsers.target import Target

HERE: Final = Path(__file__).parent
CORPORA: Final = HERE / "corpora"
REGRESSIONS: Final = HERE / "regressions"

SECONDS_A_CASE: Final = 10
"""Processor seconds after which a case counts as hanging."""

MEGABYTES_A_CASE: Final = 64
"""Growth of the process in one case that counts as unbounded memory: inputs have a few kilobytes."""

_PACKAGES: Final = ["schemas", "infra", "producers", "consumers"]
_PROCESS_MEGABYTES: Final = 4096
_STUCK_SECONDS: Final = 900
"""libFuzzer's own timeout: no exception reaches a loop in C. Long, since the machine may be busy."""
_NASTY: Final = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
"""Boundary values of counts, lengths and signs."""


class Hangs(Exception):
    """A case took more than SECONDS_A_CASE of the processor's time."""


class Grew(MemoryError):
    """The process grew by more than MEGABYTES_A_CASE in one case."""


def load_target(name: str) -> Target:
    """Return the target in tests/fuzz/parsers/targets/<name>.py."""
    found: Target = importlib.import_module(f"tests.fuzz.parsers.targets.{name}").TARGET
    return found


def kept(name: str) -> list[bytes]:
    """Return a target's inputs in the tree: its corpus, and its regressions."""
    folders = (CORPORA / name, REGRESSIONS / name)
    return [path.read_bytes() for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]


def bounded(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Return `run`, raising Hangs or Grew for a case that exceeds a limit; call it in the main thread."""
    peak = 0

    def hangs(number: int, frame: object) -> None:
        del number, frame
        raise Hangs(f"a case took more than {SECONDS_A_CASE} s of the processor's time")

    def watched(data: bytes) -> None:
        nonlocal peak
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS_A_CASE)
        run(data)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if peak and now - peak > MEGABYTES_A_CASE << 10:
            raise Grew(f"one case took {(now - peak) >> 10} MiB")
        peak = now

    signal.signal(signal.SIGVTALRM, hangs)
    return watched


def mutations(target: Target, inputs: list[bytes], seed: object) -> Iterator[bytes]:
    """Yield mutations of `inputs` endlessly, the same ones for the same seed."""
    rng = random.Random(f"{seed}")
    inputs = [each for each in inputs if each] or [b"\0"]
    while True:
        data = rng.choice(inputs)
        for _ in range(rng.randint(1, 4)):
            data = _mutate(rng, data, inputs, target.dictionary)
        yield data[: target.longest]


def _mutate(rng: random.Random, data: bytes, inputs: list[bytes], dictionary: tuple[bytes, ...]) -> bytes:
    """Replace a part of `data`, of any length including zero, by something else or nothing."""
    start = rng.randint(0, len(data))
    end = rng.choice((start, start + 1, start + 4, rng.randint(start, len(data))))
    match rng.randrange(8):
        case 0:
            new = b""
        case 1:
            new = rng.randbytes(rng.randint(1, 4))
        case 2 | 3:
            width = rng.choice((1, 2, 4))
            new = (rng.choice(_NASTY) & ((1 << 8 * width) - 1)).to_bytes(width, "big")
        case 4:
            other = rng.choice(inputs)
            new = other[rng.randint(0, len(other)) :]
        case 5:
            new = data[rng.randint(0, start) : start]
        case 6:
            new = bytes(byte ^ 1 << rng.randrange(8) for byte in data[start:end])
        case _:
            new = rng.choice(dictionary or (b"\0",))
    return data[:start] + new + data[end:]


def _guide() -> Any | None:
    """Return atheris, None if it is not installed."""
    if importlib.util.find_spec("atheris") is None:
        return None
    guide: ModuleType = importlib.import_module("atheris")
    return guide


def _guided(guide: Any, target: Target, arguments: argparse.Namespace, work: Path) -> None:
    """Let libFuzzer choose the inputs; it ends this process."""
    broken = REGRESSIONS / arguments.target
    broken.mkdir(parents=True, exist_ok=True)
    tokens = work.with_suffix(".dict")
    tokens.write_text("".join(f'"{_escaped(token)}"\n' for token in target.dictionary))
    folders = [str(work), *(str(folder) for folder in (CORPORA / arguments.target, broken) if folder.is_dir())]
    options = [
        f"-runs={arguments.cases or -1}",
        f"-max_total_time={arguments.seconds}",
        f"-timeout={_STUCK_SECONDS}",
        f"-report_slow_units={_STUCK_SECONDS}",
        f"-rss_limit_mb={_PROCESS_MEGABYTES}",
        f"-max_len={target.longest}",
        f"-seed={arguments.seed or 0}",
        f"-artifact_prefix={broken}/",
        f"-dict={tokens}",
        "-print_final_stats=1",
    ]
    guide.Setup([sys.argv[0], *folders, *options], bounded(target.run))
    guide.Fuzz()


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


def _unguided(target: Target, arguments: argparse.Namespace) -> None:
    run = bounded(target.run)
    inputs = [*target.seeds(), *kept(arguments.target)]
    ends = time.monotonic() + (arguments.seconds or float("inf"))
    cases = 0
    for data in mutations(target, inputs, arguments.seed):
        if cases == arguments.cases or time.monotonic() > ends:
            break
        cases += 1
        try:
            run(data)
        except Exception:
            folder = REGRESSIONS / arguments.target
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"crash-{arguments.seed}-{cases}").write_bytes(data)
            raise
    print(f"stat::number_of_executed_units: {cases}", file=sys.stderr)


def main() -> int:
    """Run the campaign; an input that breaks a property ends it, and is kept among the regressions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--cases", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="directory for inputs with new coverage")
    parser.add_argument("--codec", type=Path, help="another build of the compiled codec")
    parser.add_argument("--unguided", action="store_true", help="only mutate the kept inputs")
    arguments = parser.parse_args()
    if arguments.codec is not None:
        another_build.use(arguments.codec)
    guide = None if arguments.unguided else _guide()
    instrumented = contextlib.nullcontext() if guide is None else guide.instrument_imports(include=_PACKAGES)
    with instrumented:
        target = load_target(arguments.target)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if guide is None:
        _unguided(target, arguments)
        return 0
    for number, seed in enumerate(target.seeds()):
        (arguments.work / f"seed-{number}").write_bytes(seed)
    _guided(guide, target, arguments, arguments.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
